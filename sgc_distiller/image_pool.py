"""The history of generated pictures that a discriminator is shown (Shrivastava et al., 2017)."""

from __future__ import annotations

import random
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["ImagePool"]


class ImagePool:
    """Keeps up to ``size`` earlier pictures and hands some of them out in the place of new ones.

    Until it is full it stores and returns each new picture; then, with probability 1/2, it returns a stored
    one and keeps the new one in its place, and else it returns the new one.

    Args:
        size: How many pictures it keeps, at least 1.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._pictures: list[Tensor] = []

    def __len__(self) -> int:
        """Return how many pictures it holds."""
        return len(self._pictures)

    def query(self, pictures: Tensor, seed: int) -> Tensor:
        """Return as many pictures as are given, new or stored ones.

        Args:
            pictures: New pictures (B, C, H, W) without graph.
            seed: What is drawn depends on it and on the pool alone.
        """
        stream = random.Random(seed)
        chosen = []
        for picture in pictures:
            if len(self._pictures) < self.size:
                self._pictures.append(picture.clone())
                chosen.append(picture)
            elif stream.random() < 0.5:
                place = stream.randrange(self.size)
                chosen.append(self._pictures[place])
                self._pictures[place] = picture.clone()
            else:
                chosen.append(picture)
        return torch.stack(chosen)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the stored pictures, for a checkpoint."""
        return {"pictures": torch.stack(self._pictures)} if self._pictures else {}

    def load_state_dict(self, state: Mapping[str, Tensor], device: torch.device | None = None) -> None:
        """Take up the stored pictures where `state_dict` left them."""
        self._pictures = [item.to(device).clone() for item in state.get("pictures", ())]
