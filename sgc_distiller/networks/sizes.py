"""Which sizes a network has, read from the names and shapes of its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sgc_distiller.errors import UserError

__all__ = ["buffer", "fitting", "kernel_shape"]

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def buffer(name: str) -> bool:
    """Return whether an entry of a state dictionary is a norm's statistic, not a learned weight."""
    return name.rpartition(".")[2] in _BUFFERS


def kernel_shape(state: Mapping[str, Tensor], name: str) -> tuple[int, int, int, int]:
    """Return the shape of a convolution's weight, all zero if there is none of that name.

    Args:
        state: State dictionary.
        name: Name of the weight, shape (out, in, height, width), or (in, out, ...) if it is transposed.
    """
    weight = state.get(name)
    if weight is None or weight.dim() != 4:
        return (0, 0, 0, 0)
    first, second, height, width = weight.shape
    return (first, second, height, width)


def fitting(
    build: Callable[..., nn.Module], state: Mapping[str, Tensor], sizes: dict[str, Any]
) -> dict[str, Any] | None:
    """Return ``sizes`` if a network of these sizes has exactly the learned weights in ``state``.

    The statistics of norms are left out of the comparison, since old files lack some and have others.
    Nothing is allocated: the network is built on the meta device.

    Args:
        build: The network's class.
        state: State dictionary without the prefixes of wrappers.
        sizes: Arguments of ``build``; integers below 1 mean that nothing fits.

    Returns:
        ``sizes``, or ``None`` if they do not fit.
    """
    if any(isinstance(size, int) and not isinstance(size, bool) and size < 1 for size in sizes.values()):
        return None
    try:
        with torch.device("meta"):
            network = build(**sizes)
    except UserError:
        return None
    found = {name: tensor.shape for name, tensor in state.items() if not buffer(name)}
    wanted = {name: tensor.shape for name, tensor in network.state_dict().items() if not buffer(name)}
    return sizes if found == wanted else None
