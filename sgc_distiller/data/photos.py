"""The two photographs that scikit-learn ships, in pieces: a small set for super-resolution."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

__all__ = ["PHOTOS", "photo_pieces"]

PHOTOS = "photos"
"""Name of the set for super-resolution that needs no download."""

_TRAIN_WIDTH = 480  # three quarters of 640 pixels
_SIDE = 160
_STEP = 64
_TEST_HEIGHT = 140


def photo_pieces(split: str) -> list[tuple[str, Tensor]]:
    """Return pieces of the photographs, uint8 (3, H, W), with their names.

    The left three quarters are for training, in squares of 160 pixels that overlap, as the baseline's pieces
    of DIV2K do. The right quarters are for the test, each in three pieces of 140x160 pixels without overlap.
    """
    pieces = []
    for name, photo in _photos():
        if split == "train":
            height, down, lefts = _SIDE, _STEP, range(0, _TRAIN_WIDTH - _SIDE + 1, _STEP)
        else:
            height, down, lefts = _TEST_HEIGHT, _TEST_HEIGHT, range(_TRAIN_WIDTH, _TRAIN_WIDTH + 1)
        for top in range(0, photo.shape[1] - height + 1, down):
            for left in lefts:
                piece = photo[:, top : top + height, left : left + _SIDE]
                pieces.append((f"{name}-{top}-{left}", piece.contiguous()))
    return pieces


@cache
def _photos() -> list[tuple[str, Tensor]]:
    from sklearn.datasets import load_sample_image

    return [
        (name, torch.from_numpy(load_sample_image(f"{name}.jpg").copy()).permute(2, 0, 1).contiguous())
        for name in ("china", "flower")
    ]
