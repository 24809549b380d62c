"""Small sets that need no download: scikit-learn's handwritten digits, as they are and rendered in colour.

The rendered ones have the kinds of structure that GANs for translation learn from (attributes, pairs, two
domains), at any size. All arithmetic is that of integers, so that they are the same on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sgc_distiller.data.decoding import Array

__all__ = [
    "DIGIT_ATTRIBUTES",
    "blue_digit",
    "coloured_digit",
    "digit_attributes",
    "digit_indices",
    "digit_pictures",
    "outlined_digit",
    "red_digit",
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
_STRIPES = (24, 48, 216)
_COVER = np.arange(256)
_STEEPER = [min(255, max(0, 3 * (value - 84))) for value in range(256)]

Colour = tuple[int, int, int]


@cache
def digit_pictures() -> tuple[Array, Array]:
    """Return scikit-learn's 1,797 digits as uint8 (N, 8, 8), and their classes (N,)."""
    from sklearn.datasets import load_digits

    bundle = load_digits()
    return np.round(bundle.images * (255 / 16)).astype(np.uint8), bundle.target


def digit_indices(split: str) -> range:
    """Return which of the digits a split of a rendered set is made of."""
    return range(_TRAIN_DIGITS) if split == "train" else range(_TRAIN_DIGITS, len(digit_pictures()[0]))


@cache
def _inks() -> tuple[Array, Array]:
    """Return each digit's ink (0 red, 1 green, 2 blue) and whether it is inverted, both (N,)."""
    draws = np.random.RandomState(4).randint(0, 3 * 2, len(digit_pictures()[0]))
    return draws // 2, draws % 2


def digit_attributes(indices: Sequence[int]) -> Tensor:
    """Return which of `DIGIT_ATTRIBUTES` the coloured digits have, in {0, 1}, float32 (B, 4)."""
    inks, inverted = (values[np.asarray(indices)] for values in _inks())
    return torch.from_numpy(np.column_stack([np.eye(3)[inks], inverted]).astype(np.float32))


def coloured_digit(index: int, size: int) -> Tensor:
    """Return a digit in red, green or blue ink, on black or, if it is inverted, on white.

    Args:
        index: Which digit.
        size: Height and width in pixels.

    Returns:
        uint8 (3, size, size).
    """
    inks, inverted = _inks()
    strokes = _strokes(index, size)
    if inverted[index]:
        return _painted(strokes, _DARK[inks[index]], (255, 255, 255))
    return _painted(strokes, _BRIGHT[inks[index]], (0, 0, 0))


def outlined_digit(index: int, size: int, order: tuple[int, int] = (0, 1)) -> Tensor:
    """Return the white outline of a digit, and the digit filled with the colour of its class.

    Which colour that is can be seen from the outline only by reading the digit.

    Args:
        index: Which digit.
        size: Height and width in pixels.
        order: ``(0, 1)`` for the outline first, ``(1, 0)`` for the filled digit first.

    Returns:
        uint8 (2, 3, size, size).
    """
    strokes = _strokes(index, size)
    reach = max(1, size // 48)
    edges = _spread(strokes, reach, np.maximum) - _spread(strokes, reach, np.minimum)
    outline = torch.from_numpy(edges).expand(3, -1, -1)
    filled = _painted(strokes, _CLASSES[digit_pictures()[1][index]], _NIGHT)
    both = (outline, filled)
    return torch.stack([both[place] for place in order])


def red_digit(index: int, size: int) -> Tensor:
    """Return a red digit on black, uint8 (3, size, size)."""
    return _painted(_strokes(index, size), _BRIGHT[0], (0, 0, 0))


def blue_digit(index: int, size: int) -> Tensor:
    """Return a striped or dotted blue digit on white, uint8 (3, size, size)."""
    period = max(4, size // 8)
    down, right = np.arange(size)[:, None], np.arange(size)
    if index // 2 % 2:
        wide = (2 * period + 2) // 3
        kept = (down % period < wide) & (right % period < wide)
    else:
        kept = (down + right) % period < (period + 1) // 2
    return _painted(np.where(kept, _strokes(index, size), 0), _STRIPES, (255, 255, 255))


def _strokes(index: int, size: int) -> Array:
    """Return how much ink lies where, uint8 (size, size): a digit enlarged, with clear edges."""
    enlarged = Image.fromarray(digit_pictures()[0][index]).resize((size, size), Image.Resampling.BICUBIC)
    return np.array(enlarged.point(_STEEPER))


def _spread(values: Array, reach: int, combine: Callable[[Array, Array], Array]) -> Array:
    """Return the largest (or smallest) value within ``reach`` pixels down and across, shape (H, W)."""
    for _ in range(2):
        result = values.copy()
        for step in range(1, reach + 1):
            result[step:] = combine(result[step:], values[:-step])
            result[:-step] = combine(result[:-step], values[step:])
        values = np.ascontiguousarray(result.T)
    return values


def _painted(strokes: Array, ink: Colour, paper: Colour) -> Tensor:
    """Return a picture, uint8 (3, H, W), with ink of a colour on paper of a colour."""
    mixtures = (_COVER * np.array(ink)[:, None] + (255 - _COVER) * np.array(paper)[:, None] + 127) // 255
    return torch.from_numpy(mixtures.astype(np.uint8)[:, strokes])
