"""Random crops and flips as functions of one integer a sample.

What happens to a sample depends on its integer alone, whoever loads it and whatever was loaded before. The
numbers come from SplitMix64 (Steele, Lea and Flood, 2014, https://doi.org/10.1145/2660193.2660195), a hash of
64 bits that is computed for a whole batch at once: a `torch.Generator` a sample would take longer than
cropping it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sgc_distiller.data.decoding import Array
from sgc_distiller.seeding import seed_for

__all__ = ["crop", "sample_seeds", "uniform"]

_MASK = 2**64 - 1
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def sample_seeds(seed: int, passes: int, indices: Sequence[int]) -> list[int]:
    """Return one integer in [0, 2**63) a sample, from the run's seed, the pass over the set and the index."""
    base = np.uint64(seed_for(seed, "augment", passes))
    mixed = _mix(base + np.asarray(indices, dtype=np.uint64) * _GAMMA)
    seeds: list[int] = (mixed >> np.uint64(1)).tolist()
    return seeds


def uniform(seeds: Sequence[int], count: int) -> npt.NDArray[np.float64]:
    """Return ``count`` numbers a seed, uniform in [0, 1), shape (B, count)."""
    start = np.array([seed & _MASK for seed in seeds], dtype=np.uint64)
    steps = np.arange(1, count + 1, dtype=np.uint64) * _GAMMA
    return (_mix(start[:, None] + steps) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return SplitMix64's numbers for its states; sums and products wrap around at 2**64."""
    state = (state ^ (state >> np.uint64(30))) * _FIRST
    state = (state ^ (state >> np.uint64(27))) * _SECOND
    return state ^ (state >> np.uint64(31))


def crop(rows: Sequence[Array], size: int, draws: npt.NDArray[np.float64]) -> Tensor:
    """Cut a square out of each picture and mirror half of them, by slicing alone.

    Args:
        rows: Arrays of uint8 (..., H, W); everything before H and W is cut alike.
        size: Height and width of the squares, at most those of the pictures.
        draws: For each picture its top, left and flip as numbers in [0, 1), shape (B, 3); a picture is
            mirrored left to right below 0.5.

    Returns:
        uint8 (B, ..., size, size).
    """
    cut = np.empty((len(rows), *rows[0].shape[:-2], size, size), np.uint8)
    for target, row, (high, wide, flip) in zip(cut, rows, draws.tolist(), strict=True):
        top = int(high * (row.shape[-2] - size + 1))
        left = int(wide * (row.shape[-1] - size + 1))
        part = row[..., top : top + size, left : left + size]
        target[...] = part[..., ::-1] if flip < 0.5 else part
    return torch.from_numpy(cut)
