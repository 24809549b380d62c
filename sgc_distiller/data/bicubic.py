"""Bicubic resizing as MATLAB's ``imresize`` does it, which benchmarks of super-resolution are made with.

Keys' cubic with a = -1/2 (https://doi.org/10.1109/TASSP.1981.1163711). For reduction the kernel is stretched
by the factor of reduction, which is the antialiasing; a picture goes on beyond its edge as in a mirror, the
pixel at the edge repeated. Arithmetic is in float64 over rows, then columns; pixels are rounded once, at the
end, halves upwards, and clipped.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sgc_distiller.data.decoding import Array

__all__ = ["cubic", "reduced", "resized", "weights"]

_Floats = npt.NDArray[np.float64]


def cubic(distance: _Floats) -> _Floats:
    """Return Keys' cubic with a = -1/2: 1 at 0, 0 at every other whole number and beyond 2."""
    x = np.abs(distance)
    near = (1.5 * x - 2.5) * x**2 + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def weights(
    length: int, target: int, window: tuple[int, int] | None = None
) -> tuple[npt.NDArray[np.int64], _Floats]:
    """Return which samples each new sample is a sum of, and by which weights.

    Args:
        length: Number of samples.
        target: Number of new samples.
        window: First of the new samples to compute and how many of them; all by default.

    Returns:
        Indices into the samples and their weights, both of shape (taps, new samples); weights of a new
        sample add up to 1.
    """
    first, count = (0, target) if window is None else window
    stretch = max(1.0, length / target)
    centre = (np.arange(first, first + count) + 0.5) * length / target - 0.5
    leftmost = np.floor(centre - 2 * stretch).astype(np.int64)
    taps = np.arange(math.ceil(4 * stretch) + 2)
    places = leftmost + taps[:, None]
    values = cubic((places - centre) / stretch)
    mirrored = places % (2 * length)
    inside = np.minimum(mirrored, 2 * length - 1 - mirrored)
    used = np.any(values != 0, axis=1)
    return inside[used], (values / values.sum(axis=0))[used]


def resized(
    pixels: Array,
    height: int,
    width: int,
    rows: tuple[int, int] | None = None,
    columns: tuple[int, int] | None = None,
) -> _Floats:
    """Resize pictures of any number of channels.

    Args:
        pixels: Shape (..., H, W), any type.
        height: New height of the whole picture.
        width: New width of the whole picture.
        rows: First new row to compute and how many; all by default.
        columns: First new column to compute and how many; all by default.

    Returns:
        float64 (..., height, width) or the asked-for part of it, neither rounded nor clipped.
    """
    indices, factors = weights(pixels.shape[-1], width, columns)
    down, down_factors = weights(pixels.shape[-2], height, rows)
    low, high = int(indices.min()), int(indices.max()) + 1  # rows first, but only of the columns in use
    part = pixels[..., low:high]
    flat = np.zeros((*part.shape[:-2], down.shape[1], part.shape[-1]))
    for place, factor in zip(down, down_factors, strict=True):
        flat += part[..., place, :] * factor[:, None]
    result = np.zeros((*flat.shape[:-1], indices.shape[1]))
    for place, factor in zip(indices - low, factors, strict=True):
        result += flat[..., place] * factor
    return result


def reduced(pixels: Tensor, factor: int, window: tuple[int, int, int] | None = None) -> Tensor:
    """Return pictures reduced by a whole number.

    Args:
        pixels: uint8 (..., H, W), whose height and width the factor divides.
        factor: What height and width are divided by.
        window: Top, left and side of the square of the result to compute; all of it by default. It is the
            same to the bit as cut out of the whole result.

    Returns:
        uint8 (..., H / factor, W / factor), or (..., side, side).
    """
    height, width = pixels.shape[-2] // factor, pixels.shape[-1] // factor
    rows = columns = None
    if window is not None:
        top, left, side = window
        rows, columns = (top, side), (left, side)
    exact = resized(pixels.numpy(), height, width, rows, columns)
    return torch.from_numpy(np.clip(np.floor(exact + 0.5), 0, 255).astype(np.uint8))
