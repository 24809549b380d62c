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


def photo_pieces(split: str) -> list[tuple[str, Tensor]]:
    """Return squares of 160 pixels, uint8 (3, 160, 160), and their names.

    Those of the left three quarters are for training; they overlap, as the baseline's pieces of DIV2K do. The
    right quarters are cut into squares without overlap for the test.
    """
    pieces = []
    for name, photo in _photos():
        width = photo.shape[2]
        first, last, step = (0, _TRAIN_WIDTH, _STEP) if split == "train" else (_TRAIN_WIDTH, width, _SIDE)
        for top in range(0, photo.shape[1] - _SIDE + 1, step):
            for left in range(first, last - _SIDE + 1, step):
                piece = photo[:, top : top + _SIDE, left : left + _SIDE]
                pieces.append((f"{name}-{top}-{left}", piece.contiguous()))
    return pieces


@cache
def _photos() -> list[tuple[str, Tensor]]:
    from sklearn.datasets import load_sample_image

    return [
        (name, torch.from_numpy(load_sample_image(f"{name}.jpg").copy()).permute(2, 0, 1).contiguous())
        for name in ("china", "flower")
    ]
