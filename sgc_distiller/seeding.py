"""Randomness as a function of a seed and of what it is for, never of the order of calls."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

__all__ = ["RandomStreams", "generator_for", "seed_for"]


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


class RandomStreams:
    """Random numbers of Python, NumPy and torch apart from the global ones, which can be saved and taken up.

    Args:
        seed: Seed of the three streams; None to start them where the global generators are now.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.python = random.Random()
        self.numpy = np.random.RandomState()  # the legacy generator, whose stream NumPy keeps for good
        self.torch = torch.Generator()
        if seed is None:
            self.python.setstate(random.getstate())
            self.numpy.set_state(np.random.get_state())
            self.torch.set_state(torch.random.get_rng_state())
        else:
            self.python.seed(seed_for(seed, "python"))
            self.numpy.seed(seed_for(seed, "numpy") % 2**32)
            self.torch.manual_seed(seed_for(seed, "torch"))

    def __reduce__(self) -> tuple[Any, ...]:
        """Be copied by where the streams are: not every torch can copy a generator."""
        return _streams_at, (self.state_dict(),)

    def state_dict(self) -> dict[str, Any]:
        """Return where the streams are, in values that ``torch.load(weights_only=True)`` accepts."""
        version, words, gauss = self.python.getstate()
        kind, keys, position, has_gauss, cached = self.numpy.get_state(legacy=True)
        return {
            "python": [version, list(words), gauss],
            "numpy": [kind, torch.from_numpy(np.asarray(keys, np.int64)), position, has_gauss, cached],
            "torch": self.torch.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` left off."""
        version, words, gauss = state["python"]
        self.python.setstate((version, tuple(words), gauss))
        kind, keys, position, has_gauss, cached = state["numpy"]
        self.numpy.set_state((kind, keys.cpu().numpy().astype(np.uint32), position, has_gauss, cached))
        self.torch.set_state(state["torch"].cpu())


def _streams_at(state: Mapping[str, Any]) -> RandomStreams:
    streams = RandomStreams(0)
    streams.load_state_dict(state)
    return streams
