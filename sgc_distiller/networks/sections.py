"""Sections of a generator: chains of its modules that can be trained one by one."""

from __future__ import annotations

from torch import nn

__all__ = ["chains_around", "chains_from"]


def chains_from(layers: nn.Sequential, kind: type[nn.Module]) -> list[list[nn.Module]]:
    """Return the layers cut before each one of a kind."""
    chains: list[list[nn.Module]] = []
    for layer in layers:
        if isinstance(layer, kind) or not chains:
            chains.append([])
        chains[-1].append(layer)
    return chains


def chains_around(layers: nn.Sequential, kind: type[nn.Module]) -> list[list[nn.Module]]:
    """Return each layer of a kind by itself, and what stands before, between and behind as chains."""
    chains: list[list[nn.Module]] = [[]]
    for layer in layers:
        if isinstance(layer, kind):
            chains += [[layer], []]
        else:
            chains[-1].append(layer)
    return [chain for chain in chains if chain]
