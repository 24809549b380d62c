"""Small sets that need no download: scikit-learn's handwritten digits, as they are and rendered in colour.

The rendered ones have the kinds of structure that GANs for translation learn from (attributes, pairs, two
domains), at any size. All arithmetic is that of integers, so that they are the same on every machine.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sgc_distiller.data.decoding import Array

__all__ = [
    "DIGIT_ATTRIBUTES",
    "coloured_digits",
    "digit_indices",
    "digit_outlines",
    "digit_pictures",
    "red_or_blue_digits",
]

DIGIT_ATTRIBUTES = ("Red", "Green", "Blue", "Inverted")
"""What the coloured digits are: of one ink, on black or, if inverted, on white."""

_TRAIN_DIGITS = 1437  # the last 360 of 1,797 are the test set; other people wrote them
_BRIGHT = ((255, 56, 56), (48, 224, 72), (72, 104, 255))  # inks on black
_DARK = ((168, 0, 0), (0, 112, 16), (0, 16, 176))  # the same inks on white
_CLASSES = (
    *((230, 60, 60), (240, 150, 40), (235, 220, 60), (120, 200, 60), (30, 140, 90)),
    *((70, 210, 220), (60, 110, 230), (140, 80, 210), (235, 110, 200), (190, 190, 190)),
)
_NIGHT = (18, 22, 40)  # behind the filled digits


@cache
def digit_pictures() -> tuple[Array, Array]:
    """Return scikit-learn's 1,797 digits as uint8 (N, 8, 8), and their classes (N,)."""
    from sklearn.datasets import load_digits

    bundle = load_digits()
    return np.round(bundle.images * (255 / 16)).astype(np.uint8), bundle.target


def digit_indices(split: str) -> range:
    """Return which of the digits a split of a rendered set is made of."""
    return range(_TRAIN_DIGITS) if split == "train" else range(_TRAIN_DIGITS, len(digit_pictures()[0]))


def coloured_digits(indices: Array, size: int) -> tuple[Tensor, Tensor]:
    """Return digits in red, green or blue ink on black or white, and which of `DIGIT_ATTRIBUTES` each has.

    Args:
        indices: Which digits, shape (N,).
        size: Height and width in pixels.

    Returns:
        Pictures as uint8 (N, 3, size, size), and attributes in {0, 1} as float32 (N, 4).
    """
    draws = np.random.RandomState(4).randint(0, 3 * 2, len(digit_pictures()[0]))[indices]
    hues, inverted = draws // 2, draws % 2
    inks = np.where(inverted[:, None] == 1, np.array(_DARK)[hues], np.array(_BRIGHT)[hues])
    paper = np.repeat(inverted[:, None] * 255, 3, axis=1)
    labels = np.concatenate([np.eye(3)[hues], inverted[:, None]], axis=1).astype(np.float32)
    return _painted(_strokes(indices, size), inks, paper), torch.from_numpy(labels)


def digit_outlines(indices: Array, size: int) -> Tensor:
    """Return white outlines of digits beside the digits, filled with the colour of their class.

    Args:
        indices: Which digits, shape (N,).
        size: Height and width in pixels.

    Returns:
        uint8 (N, 2, 3, size, size): the outline, then the filled digit. Which colour it has can be seen from
        the outline only by reading the digit.
    """
    strokes = _strokes(indices, size)
    reach = max(1, size // 48)
    edges = _spread(strokes, reach, np.maximum) - _spread(strokes, reach, np.minimum)
    outline = torch.from_numpy(edges)[:, None].expand(-1, 3, -1, -1)
    count = len(indices)
    colours = np.array(_CLASSES)[digit_pictures()[1][indices]]
    filled = _painted(strokes, colours, np.tile(np.array(_NIGHT), (count, 1)))
    return torch.stack([outline, filled], dim=1)


def red_or_blue_digits(indices: Array, size: int, domain: str) -> Tensor:
    """Return red digits on black (domain A), or striped and dotted blue ones on white (domain B).

    Args:
        indices: Which digits, shape (N,).
        size: Height and width in pixels.
        domain: ``A`` or ``B``.

    Returns:
        uint8 (N, 3, size, size).
    """
    strokes = _strokes(indices, size)
    count = len(indices)
    if domain == "A":
        return _painted(strokes, np.tile(np.array(_BRIGHT[0]), (count, 1)), np.zeros((count, 3), np.int64))
    period = max(4, size // 8)
    down, right = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    stripes = (down + right) % period < (period + 1) // 2
    dots = (down % period < (2 * period + 2) // 3) & (right % period < (2 * period + 2) // 3)
    striped = np.asarray(indices) // 2 % 2 == 0
    kept = np.where(striped[:, None, None], stripes[None], dots[None])
    ink = np.tile(np.array((24, 48, 216)), (count, 1))
    return _painted(np.where(kept, strokes, 0), ink, np.full((count, 3), 255))


def _strokes(indices: Array, size: int) -> Array:
    """Return how much ink lies where, uint8 (N, size, size): the digits enlarged, with clear edges."""
    pixels = digit_pictures()[0]
    steeper = [min(255, max(0, 3 * (value - 84))) for value in range(256)]
    enlarged = [
        np.array(Image.fromarray(pixels[i]).resize((size, size), Image.Resampling.BICUBIC).point(steeper))
        for i in indices
    ]
    return np.stack(enlarged)


def _spread(values: Array, reach: int, combine: Callable[[Array, Array], Array]) -> Array:
    """Return the largest (or smallest) value within ``reach`` pixels down and across, shape (N, H, W)."""
    for axis in (1, 2):
        result = values.copy()
        for step in range(1, reach + 1):
            upper = (slice(None),) * axis + (slice(step, None),)
            lower = (slice(None),) * axis + (slice(None, -step),)
            result[upper] = combine(result[upper], values[lower])
            result[lower] = combine(result[lower], values[upper])
        values = result
    return values


def _painted(strokes: Array, inks: Array, papers: Array) -> Tensor:
    """Return pictures, uint8 (N, 3, H, W), with ink of a colour (N, 3) on paper of a colour (N, 3)."""
    cover = np.arange(256)
    pictures = np.empty((len(strokes), 3, *strokes.shape[1:]), np.uint8)
    for picture, stroke, ink, paper in zip(pictures, strokes, inks, papers, strict=True):
        for channel in range(3):
            mixed = (ink[channel] * cover + paper[channel] * (255 - cover) + 127) // 255
            np.take(mixed.astype(np.uint8), stroke, out=picture[channel], mode="clip")
    return torch.from_numpy(pictures)
