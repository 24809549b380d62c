"""What the tests of pruners share: a network with one layer of each kind, and masks as numpy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from sgc_distiller.masks import MaskSet
from sgc_distiller.pruners import Convention, Pruner


class Layers(nn.Module):
    """One layer of each kind, whose inputs and outputs differ in number."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 6, 3)
        self.up = nn.ConvTranspose2d(4, 10, 3)
        self.norm = nn.BatchNorm2d(6)
        self.fc = nn.Linear(12, 5)
        self.line = nn.Conv1d(3, 7, 5)
        self.grouped = nn.ConvTranspose2d(4, 4, 3, groups=2)


def meta(
    epoch: int = 0, start: int = 0, end: int = 10, frequency: int | None = 1, model: Any = None
) -> dict[str, Any]:
    epochs = {"starting_epoch": start, "ending_epoch": end, "frequency": frequency}
    return {**epochs, "current_epoch": epoch, "model": model}


class Pruning:
    """A model, its masks and one pruner, driven by hand."""

    def __init__(self, pruner: Pruner, model: nn.Module, convention: Convention = "stored") -> None:
        self.pruner, self.model, self.masks = pruner, model, MaskSet(model)
        pruner.bind(model, (), convention)

    def set(self, epoch: int = 0, **epochs: Any) -> dict[str, np.ndarray]:
        """Let the pruner set the masks of an epoch, and return those that there are, by name."""
        weights = dict(self.model.named_parameters())
        self.pruner.set_masks(weights, self.masks, meta(epoch, model=self.model, **epochs))
        return {
            name: masker.mask.detach().float().cpu().numpy()
            for name, masker in self.masks.items()
            if masker.mask is not None
        }

    def prune(self, epoch: int = 0, **epochs: Any) -> dict[str, np.ndarray]:
        """Set the masks of an epoch and mask the weights."""
        masks = self.set(epoch, **epochs)
        self.masks.mask_weights()
        return masks


def kept(mask: np.ndarray, dim: int) -> list[int]:
    """Return which slices along a dimension stay; all elements of a slice must agree."""
    rows = np.moveaxis(mask, dim, 0).reshape(mask.shape[dim], -1)
    assert (rows.min(1) == rows.max(1)).all()
    return np.flatnonzero(rows[:, 0]).tolist()


def numbers(model: nn.Module, name: str) -> np.ndarray:
    return model.get_parameter(name).detach().cpu().double().numpy()


def largest(sizes: np.ndarray, drop_count: int) -> list[int]:
    """Return all but the smallest ``drop_count``, the first of equal ones first, by sorting pairs."""
    order = sorted(range(len(sizes)), key=lambda index: (sizes[index], index))
    return sorted(order[drop_count:])


def fill(model: nn.Module, name: str, sizes: list[float], dim: int) -> None:
    """Give all elements of each slice along a dimension of a weight one value."""
    weight = model.get_parameter(name)
    shape = [-1 if index == dim else 1 for index in range(weight.dim())]
    with torch.no_grad():
        weight.copy_(torch.tensor(sizes, dtype=weight.dtype).reshape(shape).expand(weight.shape))
