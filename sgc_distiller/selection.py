"""Which elements of a tensor go: exactly as many as asked, fast, and the same ones on every device."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["drop_smallest", "keep_largest"]


def drop_smallest(scores: Tensor, count: int) -> Tensor:
    """Return which elements are dropped: exactly ``count`` of them, those with the smallest scores.

    Of equal scores, the one with the lowest index goes first. On a GPU no value is read on the host, and only
    deterministic kernels are used.

    Args:
        scores: One dimension, any floating type, not-a-number excluded; the sign counts, -0.0 is 0.0.
        count: From 0 to the number of elements.

    Returns:
        True for each dropped element, on the device of ``scores``.
    """
    scores = scores.detach()
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    if scores.dtype in (torch.float16, torch.bfloat16):
        scores = scores.float()  # exact; numpy has no bfloat16
    return _drop_on_host(scores, count) if scores.is_cpu else _drop_on_device(scores, count)


def _drop_on_host(scores: Tensor, count: int) -> Tensor:
    values = scores.numpy()
    limit = values.min()
    ties = np.count_nonzero(values == limit)
    if ties < count:
        # such as zeros: a partition takes many times longer where a large part is equal
        larger = values if ties < values.size / 16 else values[values > limit]
        rank = count - 1 - (values.size - larger.size)
        limit = np.partition(larger, rank)[rank]
    dropped: npt.NDArray[np.bool_] = values <= limit
    too_many = np.count_nonzero(dropped) - count
    if too_many > 0:
        tied = np.flatnonzero(values == limit)
        dropped[tied[-too_many:]] = False
    return torch.from_numpy(dropped)


def _drop_on_device(scores: Tensor, count: int) -> Tensor:
    limit = scores.sort().values[count - 1]  # kthvalue has no deterministic kernel on a GPU
    smaller = scores < limit
    tied = scores == limit
    integers = torch.int32 if scores.numel() < 2**31 else torch.int64
    return smaller | (tied & (tied.cumsum(0, dtype=integers) <= count - smaller.sum()))


def keep_largest(weight: Tensor, drop_count: int, mask: Tensor | None = None) -> Tensor:
    """Return a mask that drops exactly ``drop_count`` elements, those smallest in magnitude.

    Of equal magnitudes, the one with the lowest flat index goes first. Elements that ``mask`` dropped and
    that are still 0 go before all others and never come back, even if they are more than ``drop_count``. On a
    GPU no value is read on the host.

    Args:
        weight: Any shape, any floating type.
        drop_count: From 1 to the number of elements.
        mask: The mask so far, None for a dense weight.

    Returns:
        Zeros and ones of the shape, type and device of ``weight``.
    """
    kept = weight.detach().abs()
    size = kept.flatten()
    if mask is not None and size.is_cpu and np.count_nonzero((size == 0).numpy()) <= drop_count:
        mask = None  # all zeros go anyway
    if mask is None:
        dropped = drop_smallest(size, drop_count)
    else:
        gone = (mask.to(size.device).expand(weight.shape).flatten() == 0).logical_and_(size == 0)
        dropped = drop_smallest(size.masked_fill(gone, -1.0), drop_count).logical_or_(gone)
    return kept.copy_(dropped.logical_not_().view(weight.shape))
