"""Structures of a weight tensor: which elements form a group, how large a group is, what its mask is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from sgc_distiller.errors import UserError, nearest

__all__ = [
    "Axes",
    "Criterion",
    "GROUP_TYPES",
    "Grouping",
    "find_grouping",
    "group_name",
    "keep_n_of_m",
    "threshold_groups",
]

Axes = Literal["stored", "outputs_first", "inputs_first"]
"""How the first two dimensions of a weight are read.

``stored`` reads the tensor as Distiller does: Filters lie on dimension 0, Channels on dimension 1, whatever
the layer. The other two name the layer's true outputs and inputs: convolutions and linear layers store
``outputs_first``, transposed convolutions ``inputs_first``.
"""

Criterion = Literal["Max", "Mean_Abs"]
"""Size of a group: its largest magnitude, or the mean of its magnitudes."""

GROUP_TYPES: dict[str, str] = {
    "Elements": "Elements",
    "0D": "Elements",
    "Vectors": "Vectors",
    "1D": "Vectors",
    "Kernels": "Kernels",
    "2D": "Kernels",
    "Filters": "Filters",
    "3D": "Filters",
    "Channels": "Channels",
    "Rows": "Rows",
    "Cols": "Cols",
    "4D": "4D",
    "Blocks": "Blocks",
}
"""Names of group types in a schedule, each with the one that is used here."""


@dataclass(frozen=True)
class Grouping:
    """How a weight tensor falls into groups of equal size.

    Args:
        shape: The weight's shape.
        view: The shape in which the groups are told apart; it has as many elements.
        dims: Dimensions of ``view`` that number the groups; the others lie inside of a group.
    """

    shape: tuple[int, ...]
    view: tuple[int, ...]
    dims: tuple[int, ...]

    @property
    def count(self) -> int:
        """The number of groups."""
        return math.prod(self.view[dim] for dim in self.dims)

    @property
    def size(self) -> int:
        """The number of elements in a group."""
        return math.prod(self.view) // self.count

    def gather(self, weight: Tensor) -> Tensor:
        """Return the groups as rows of a matrix, shape (count, size)."""
        inside = [dim for dim in range(len(self.view)) if dim not in self.dims]
        return weight.reshape(self.view).permute(*self.dims, *inside).reshape(self.count, self.size)

    def norms(self, weight: Tensor, order: float, together: int = 1) -> Tensor:
        """Return each group's norm, at least in single precision.

        Args:
            weight: The weight, of any floating type.
            order: 1, 2 or infinity.
            together: So many neighbouring groups have one norm; it divides their number.

        Returns:
            Shape (count / together,).
        """
        weight = weight.detach()
        if weight.dtype in (torch.float16, torch.bfloat16):  # their sums are too coarse to be ranked
            weight = weight.float()
        if self.size * together == 1:
            return weight.abs().flatten()
        rows = self.gather(weight).reshape(self.count // together, -1)
        norms: Tensor = torch.linalg.vector_norm(rows, order, dim=1)
        return norms

    def expand(self, values: Tensor) -> Tensor:
        """Return one value a group, shape (count,), at each of its elements: the weight's shape."""
        ones = [self.view[dim] if dim in self.dims else 1 for dim in range(len(self.view))]
        return values.reshape(ones).expand(self.view).reshape(self.shape)


def group_name(group_type: object, allowed: Sequence[str]) -> str:
    """Return the group type that a schedule's name means.

    Args:
        group_type: What the schedule says, such as ``Filters`` or ``3D``.
        allowed: The group types that make sense there.

    Raises:
        UserError: If it is none of them.
    """
    names = [name for name, meaning in GROUP_TYPES.items() if meaning in allowed or name in allowed]
    if not isinstance(group_type, str) or group_type not in names:
        close = nearest(group_type, names) if isinstance(group_type, str) else ""
        raise UserError(f"Expected a group type ({', '.join(names)}), got {group_type!r}.{close}")
    return GROUP_TYPES[group_type]


def find_grouping(
    kind: str,
    shape: Sequence[int],
    axes: Axes = "stored",
    block_shape: Sequence[int] | None = None,
    among: Sequence[str] | None = None,
) -> Grouping:
    """Return how a weight of a shape falls into groups.

    Args:
        kind: ``Elements``; ``Vectors``, the rows of each 2-D kernel; ``Kernels``, one for each pair of first
            two indices; ``Filters``; ``Channels``; ``Rows`` and ``Cols`` of a matrix; ``4D``, the whole
            tensor; or ``Blocks``.
        shape: The weight's shape.
        axes: Which dimension Filters and Channels lie on.
        block_shape: For ``Blocks``: (repetitions, depth, 1, 1). ``repetitions * depth`` kernels that follow
            each other in the stored tensor form a super block; in it, the elements at one place of the
            kernels are a group.
        among: The group types that an error may propose; None for all.

    Raises:
        UserError: If a weight of this shape has no such groups.
    """
    found = tuple(shape)
    if kind == "Blocks":
        return _blocks(found, block_shape)
    dims = _group_dims(kind, len(found), axes)
    if dims is None:
        fitting = [
            name
            for name in _RANKS
            if (among is None or name in among) and _group_dims(name, len(found), axes) is not None
        ]
        proposal = f" Group types that fit it: {', '.join(fitting)}." if fitting else ""
        raise UserError(
            f"Expected {_RANKS[kind]} for the group type {kind}, got one of shape {found}.{proposal}"
        )
    return Grouping(found, found, dims)


_RANKS = {
    "Elements": "a weight",
    "Vectors": "a weight with four dimensions",
    "Kernels": "a weight with four dimensions",
    "Filters": "the weight of a convolution",
    "Channels": "a weight with at least two dimensions",
    "Rows": "a weight with two dimensions",
    "Cols": "a weight with two dimensions",
    "4D": "a weight with four dimensions",
}


def _group_dims(kind: str, rank: int, axes: Axes) -> tuple[int, ...] | None:
    """Return the dimensions that number the groups, None if there are no such groups."""
    outputs, inputs = (1, 0) if axes == "inputs_first" else (0, 1)
    dims: dict[str, tuple[tuple[int, ...], bool]] = {
        "Elements": (tuple(range(rank)), rank >= 1),
        "Vectors": ((0, 1, 2), rank == 4),
        "Kernels": ((0, 1), rank == 4),
        "Filters": ((outputs,), rank >= (3 if axes == "stored" else 2)),
        "Channels": ((inputs,), rank >= 2),
        "Rows": ((0,), rank == 2),
        "Cols": ((1,), rank == 2),
        "4D": ((), rank == 4),
    }
    found, is_fitting = dims[kind]
    return found if is_fitting else None


def _blocks(shape: tuple[int, ...], block_shape: Sequence[int] | None) -> Grouping:
    is_usable = (
        isinstance(block_shape, Sequence)
        and len(block_shape) == 4
        and all(isinstance(item, int) and item >= 1 for item in block_shape)
        and tuple(block_shape[2:]) == (1, 1)
    )
    if block_shape is None or not is_usable:
        raise UserError(
            f"Expected 'block_shape: [repetitions, depth, 1, 1]' for Blocks, got {block_shape!r}."
        )
    if len(shape) != 4:
        raise UserError(f"Expected a weight with four dimensions for Blocks, got one of shape {shape}.")
    block = block_shape[0] * block_shape[1]
    kernels, kernel = shape[0] * shape[1], shape[2] * shape[3]
    if block_shape[1] > 1:
        view = (kernels // block, block, kernel)
    else:
        view = (shape[0] // block, block, shape[1] * kernel)
    if math.prod(view) != math.prod(shape):
        raise UserError(
            f"Expected a block shape that divides the weight of shape {shape} exactly, got "
            f"{list(block_shape)}."
        )
    return Grouping(shape, view, (0, 2))


def threshold_groups(
    weight: Tensor, kind: str, threshold: float, criterion: Criterion, axes: Axes = "stored"
) -> Tensor:
    """Return a mask that drops the groups whose size is at most a threshold.

    Args:
        weight: Any shape that has such groups.
        kind: See `find_grouping`.
        threshold: Largest size that is dropped.
        criterion: What a group's size is.
        axes: Which dimension Filters and Channels lie on.

    Returns:
        Zeros and ones of the shape, type and device of ``weight``.

    Raises:
        UserError: If the weight has no such groups, or the criterion is none.
    """
    if criterion not in get_args(Criterion):
        raise UserError(f"Expected one of {', '.join(get_args(Criterion))}, got {criterion!r}.")
    grouping = find_grouping(kind, weight.shape, axes)
    sizes = grouping.norms(weight, math.inf if criterion == "Max" else 1)
    if criterion == "Mean_Abs":
        sizes = sizes / grouping.size
    return torch.empty_like(weight).copy_(grouping.expand(sizes > threshold))


def keep_n_of_m(weight: Tensor, n: int, m: int, dim: int) -> Tensor:
    """Return a mask that keeps the ``n`` largest magnitudes of each ``m`` neighbours along a dimension.

    Of equal magnitudes, those with the lowest indices go first.

    Args:
        weight: Any shape whose size along ``dim`` is a multiple of ``m``.
        n: From 0 to ``m``.
        m: Size of a group; groups begin at index 0.
        dim: Along which elements are neighbours.

    Returns:
        Zeros and ones of the shape, type and device of ``weight``.
    """
    moved = weight.detach().abs().movedim(dim, -1)
    groups = moved.reshape(-1, m)
    dropped = groups.argsort(dim=1, stable=True)[:, : m - n]
    mask = torch.ones_like(groups).scatter_(1, dropped, 0.0).reshape(moved.shape)
    return mask.movedim(-1, dim).contiguous()
