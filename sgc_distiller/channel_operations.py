"""Operations that channels can be followed through, and what simple ones do to an `Activation`."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from sgc_distiller.channel_flow import Activation, Values
from sgc_distiller.channel_values import only_where

__all__ = [
    "BINARY_FUNCTIONS",
    "BINARY_METHODS",
    "CONSTANT_PADS",
    "DROPOUTS",
    "DROPOUT_FUNCTIONS",
    "IN_PLACE",
    "JOINING_FUNCTIONS",
    "NOT_A_TENSOR",
    "PRODUCTS",
    "SAME_METHODS",
    "SHUFFLING_FUNCTIONS",
    "SPATIAL_FUNCTIONS",
    "SPATIAL_MODULES",
    "UNARY_FUNCTIONS",
    "UNARY_METHODS",
    "UNARY_MODULES",
    "UNARY_MODULES",
    "ZERO_FUNCTIONS",
    "ZERO_MODULES",
    "activations",
    "averaged",
    "changed",
    "flattened",
    "padded",
    "same",
    "unknown",
    "unshuffled",
]

NOT_A_TENSOR = object()
"""Stands for sizes and other things that are no tensors."""

UNARY_MODULES = (
    *(nn.ReLU, nn.LeakyReLU, nn.ReLU6, nn.Tanh, nn.Sigmoid, nn.ELU, nn.SELU, nn.CELU, nn.SiLU, nn.GELU),
    *(nn.Mish, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Softplus, nn.Softsign, nn.LogSigmoid),
    nn.Identity,
)
UNARY_FUNCTIONS = frozenset(
    (
        *(F.relu, F.relu_, F.leaky_relu, F.leaky_relu_, F.relu6, F.tanh, F.sigmoid, F.elu, F.elu_, F.selu),
        *(F.silu, F.gelu, F.mish, F.hardtanh, F.hardsigmoid, F.hardswish, F.softplus, torch.relu),
        *(torch.relu_, torch.tanh, torch.sigmoid, torch.clamp, torch.abs, torch.neg, torch.exp),
        *(torch.square, torch.sqrt, operator.neg),
    )
)
UNARY_METHODS = frozenset(
    (
        *("relu", "relu_", "tanh", "tanh_", "sigmoid", "sigmoid_", "clamp", "clamp_", "abs", "neg", "exp"),
        *("square", "sqrt"),
    )
)
SAME_METHODS = frozenset(
    (
        *("contiguous", "clone", "detach", "float", "half", "bfloat16", "double", "to", "type_as", "cpu"),
        "cuda",
    )
)
BINARY_FUNCTIONS = frozenset(
    (
        *(operator.add, operator.iadd, operator.sub, operator.isub, operator.mul, operator.imul),
        *(operator.truediv, operator.itruediv, torch.add, torch.sub, torch.mul, torch.div),
    )
)
BINARY_METHODS = frozenset(("add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_"))
PRODUCTS = frozenset((operator.mul, operator.imul, torch.mul, "mul", "mul_"))
IN_PLACE = frozenset((operator.iadd, operator.isub, operator.imul, operator.itruediv))
JOINING_FUNCTIONS = frozenset((torch.cat, torch.concat, torch.concatenate))
SHUFFLING_FUNCTIONS = frozenset((F.pixel_shuffle, torch.pixel_shuffle))
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
DROPOUT_FUNCTIONS = frozenset((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, torch.dropout))
SPATIAL_MODULES = (
    *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d, nn.ReplicationPad1d),
    *(nn.ReplicationPad2d, nn.ReplicationPad3d, nn.Upsample, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d),
    nn.AdaptiveMaxPool2d,
)
"""Modules that leave a constant channel as it is."""
SPATIAL_FUNCTIONS = frozenset((F.interpolate, F.max_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d))
ZERO_MODULES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
"""Modules that leave a zero channel as it is, and perhaps no other one."""
ZERO_FUNCTIONS = frozenset((F.avg_pool2d,))
_SIDES = 4  # of height and width
CONSTANT_PADS = (
    nn.ConstantPad1d,
    nn.ConstantPad2d,
    nn.ConstantPad3d,
    nn.ZeroPad1d,
    nn.ZeroPad2d,
    nn.ZeroPad3d,
)


def unknown() -> Activation:
    """Return what comes in from outside: channels of unknown number, which must stay."""
    return Activation([None], [np.empty(0)])


def activations(items: Any) -> list[Activation]:
    """Return all activations inside nested containers."""
    if isinstance(items, Activation):
        return [items]
    if isinstance(items, Mapping):
        return activations(list(items.values()))
    if isinstance(items, slice):
        return activations([items.start, items.stop, items.step])
    if isinstance(items, list | tuple):
        return [found for item in items for found in activations(item)]
    return []


def same(given: Activation) -> Activation:
    """Return an activation behind something that leaves channels and their constants alone."""
    return Activation(list(given.numbers), list(given.values), given.kind)


def changed(given: Activation, change: Callable[[Values], Values], in_place: bool = False) -> Activation:
    """Return an activation whose constants become others; ``given`` itself changes where that is done."""
    values = [change(item) for item in given.values]
    if in_place:
        given.values = values
        return given
    return Activation(list(given.numbers), values, given.kind)


def flattened(given: Activation) -> Activation:
    """Return an activation whose height and width were flattened into its channels."""
    if given.kind == "vector":
        return same(given)
    return Activation(list(given.numbers), list(given.values), "flat") if given.is_known else unknown()


def unshuffled(given: Activation, factor: int) -> Activation | None:
    """Return an activation whose squares of ``factor`` pixels became channels, if that can be told."""
    if not given.is_known:
        return None
    square = factor * factor
    return Activation([np.repeat(given.known, square)], [np.repeat(given.all_values, square)], given.kind)


def padded(
    given: Activation, pad: Any, mode: str = "constant", value: float | None = None
) -> Activation | None:
    """Return an activation behind `torch.nn.functional.pad`, if it pads height and width."""
    if not isinstance(pad, tuple | list) or len(pad) > _SIDES or given.kind != "map":
        return None
    if mode != "constant":
        return same(given)
    return changed(given, lambda values: only_where(values, value or 0.0))


def averaged(given: Activation, dim: Any = None, keepdim: bool = False) -> Activation | None:
    """Return an activation that was averaged over height and width, and nothing else."""
    dims = (dim,) if isinstance(dim, int) else tuple(dim or ())
    if given.kind != "map" or sorted(dims) not in ([2, 3], [-2, -1]):
        return None
    return Activation(list(given.numbers), list(given.values), "map" if keepdim else "vector")
