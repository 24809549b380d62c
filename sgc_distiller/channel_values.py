"""What a channel that is the same for every input is after an operation; NaN where that is not known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from sgc_distiller.channel_flow import LayerFlow, Values

__all__ = ["after_layer", "after_norm", "is_uniform", "of_both", "of_one", "only_where", "only_zeros"]


def of_one(function: Callable[..., Tensor], values: Values, *args: Any, **kwargs: Any) -> Values:
    """Return an elementwise function of values."""
    with torch.no_grad():
        made = function(torch.from_numpy(values.copy()).reshape(1, -1, 1, 1), *args, **kwargs)
    return made.reshape(-1).numpy()


def of_both(function: Callable[..., Any], one: Any, other: Any, **kwargs: Any) -> Values:
    """Return a function of two values a channel, or of one and a number."""
    first, second = (
        torch.from_numpy(item.copy()) if isinstance(item, np.ndarray) else item for item in (one, other)
    )
    made: Values = function(first, second, **kwargs).numpy()
    return made


def only_zeros(values: Values) -> Values:
    """Return values after an operation that leaves zero channels alone, and perhaps no other ones."""
    return only_where(values, 0.0)


def only_where(values: Values, kept: float) -> Values:
    """Return values after an operation that leaves channels alone that hold ``kept``, such as padding."""
    return np.where(values == kept, values, np.nan)


def after_norm(norm: Any, values: Values) -> Values:
    """Return values behind a norm of each channel by itself.

    By its own statistics a constant channel has no variance: the norm's bias is all that is left.
    """
    count = len(values)
    bias = _or(norm.bias, count, 0.0)
    weight = _or(norm.weight, count, 1.0)
    if norm.training or getattr(norm, "running_mean", None) is None:
        made = np.where(np.isnan(values), np.nan, bias)
    else:
        spread = np.sqrt(_or(norm.running_var, count, 1.0) + norm.eps)
        made = (values - _or(norm.running_mean, count, 0.0)) / spread * weight + bias
    return np.where(weight == 0.0, bias, made)


def after_layer(layer: LayerFlow, values: Values) -> Values:
    """Return what a layer's outputs hold, for inputs that hold ``values``."""
    kernels = layer.kernels().numpy()  # (outputs, inputs of a group, k)
    reads = (kernels != 0).any(axis=2)
    each = np.repeat(values.reshape(layer.groups, -1), kernels.shape[0] // layer.groups, axis=0)
    bad = np.isnan(each) if is_uniform(layer.module) else each != 0  # NaN is not 0 either
    made = _or(layer.module.bias, len(kernels), 0.0) + (kernels.sum(axis=2) * np.nan_to_num(each)).sum(axis=1)
    return np.where((reads & bad).any(axis=1), np.nan, made)


def is_uniform(layer: nn.Module) -> bool:
    """Return whether constant inputs give constant outputs, at the borders too."""
    if isinstance(layer, nn.Linear):
        return True
    if isinstance(layer, _ConvTransposeNd):
        return False
    module: Any = layer
    if module.padding_mode != "zeros" or module.padding == "valid":
        return True
    return max(module.kernel_size) == 1 if module.padding == "same" else not any(module.padding)


def _or(tensor: Tensor | None, count: int, default: float) -> Values:
    return np.full(count, default) if tensor is None else tensor.detach().double().cpu().numpy()
