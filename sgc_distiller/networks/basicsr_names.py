"""What BasicSR called the layers of its networks in v0.0, v0.1 and since v1.0.

Renaming changes no output: https://github.com/XPixelGroup/BasicSR kept the networks' computations.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from torch import Tensor

__all__ = ["current", "renamed"]

# Names of the same layers of the generator: since v1.0, and in v0.1.
_RENAMED = (("body.", "recon_trunk."), ("conv_hr.", "HRconv."))
_OLD_VGG_LAYERS = 10


def renamed(state: Mapping[str, Tensor], expected: Collection[str]) -> dict[str, Tensor]:
    """Return a state dictionary under the names that a network expects; others' stay as they are.

    Generators of v0.1 and v1.x are renamed into each other, and discriminators of v0.0 into later ones.

    Args:
        state: State dictionary of a file, without the prefixes of wrappers.
        expected: Names in the network's state dictionary.
    """
    state = dict(state)
    if "conv0_0.weight" in expected and _is_old_vgg(state):
        state = _from_old_vgg(state)
    for new, old in _RENAMED:
        for given, wanted in ((old, new), (new, old)):
            if _any_starts(expected, wanted) and not _any_starts(expected, given):
                state = {_with_start(name, given, wanted): tensor for name, tensor in state.items()}
    return state


def current(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dictionary under the names of v1.x."""
    return renamed(state, {"conv0_0.weight", *(f"{new}weight" for new, _ in _RENAMED)})


def _any_starts(names: Collection[str], start: str) -> bool:
    return any(name.startswith(start) for name in names)


def _with_start(name: str, given: str, wanted: str) -> str:
    return wanted + name.removeprefix(given) if name.startswith(given) else name


def _old_vgg_names() -> dict[str, str]:
    """Return the layers' names in BasicSR v0.0's discriminator and what they are called since v0.1."""
    names = {"features.0": "conv0_0", "classifier.0": "linear1", "classifier.2": "linear2"}
    for layer in range(1, _OLD_VGG_LAYERS):
        place = f"{layer // 2}_{layer % 2}"
        names[f"features.{3 * layer - 1}"] = f"conv{place}"
        names[f"features.{3 * layer}"] = f"bn{place}"
    return names


def _is_old_vgg(state: Mapping[str, Tensor]) -> bool:
    layers = {name.rpartition(".")[0] for name in state}
    return layers == set(_old_vgg_names())


def _from_old_vgg(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return BasicSR v0.0's discriminator as that of v0.1.

    A bias in front of a batch norm shifts the batch's mean and nothing else; in evaluation mode the norm
    subtracts the running mean instead, which takes the bias over.
    """
    names = _old_vgg_names()
    new = {}
    for name, tensor in state.items():
        layer, _, kind = name.rpartition(".")
        new[f"{names[layer]}.{kind}"] = tensor
    for name in [name for name in new if re.fullmatch(r"conv\d_\d\.bias", name)]:
        mean = f"bn{name[4:7]}.running_mean"
        if mean in new:
            new[mean] = new[mean] - new.pop(name)
    return new
