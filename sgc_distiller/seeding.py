"""Randomness as a function of a seed and of what it is for, never of the order of calls."""

from __future__ import annotations

import hashlib

import torch

__all__ = ["generator_for", "seed_for"]


def seed_for(seed: int, *keys: int | str) -> int:
    """Return the seed of one stream of random numbers.

    Args:
        seed: The run's seed.
        keys: What the numbers are for, such as ``("noise", step)``. Other keys give other streams.

    Returns:
        A number in [0, 2**63), the same on every machine and in every process.
    """
    text = "/".join(str(part) for part in (seed, *keys))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator_for(seed: int, *keys: int | str) -> torch.Generator:
    """Return a CPU generator for one stream; see `seed_for`.

    Numbers are always drawn on the CPU, so that a run sees the same ones on every device.
    """
    return torch.Generator().manual_seed(seed_for(seed, *keys))
