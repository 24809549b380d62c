"""Whether an extractor can judge pictures: distances must rise with what makes a set of pictures worse.

A set is compared with copies of itself that are blurred, noisy, or lack pictures of half of its classes, in
three strengths each. An extractor whose Fréchet distances rise at every step of all three is valid. The test
is necessary and not sufficient: it cannot tell that a metric agrees with people. As ours learn to tell blur
and noise, it says of these no more than that they have learnt it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sgc_distiller.data import ImageSet, normalise
from sgc_distiller.feature_networks import Extractor
from sgc_distiller.metrics import FeatureStatistics, frechet_distance
from sgc_distiller.picture_changes import blurred
from sgc_distiller.seeding import generator_for

__all__ = ["BLURS", "DROPS", "NOISES", "Validity", "validate"]

BLURS = (0.5, 1.0, 2.0)
"""Deviations of the Gaussian blur in pixels, at 64x64 pixels or less."""

NOISES = (0.05, 0.1, 0.2)
"""Deviations of the Gaussian noise in units of pictures in [-1, 1], at 64x64 pixels or less."""

DROPS = (1 / 3, 2 / 3, 1.0)
"""Shares of the pictures of half of the classes that are left out."""

_MOST_PICTURES = 2000
_LARGEST_SIZE = 64
_BATCH = 250


@dataclass(frozen=True)
class Validity:
    """Fréchet distances between a set of pictures and worse copies of it.

    Args:
        groups: What the classes are of which pictures were dropped.
        table: For ``blur``, ``noise`` and ``drop`` the pairs of strength and distance, weakest first.
    """

    groups: str
    table: Mapping[str, tuple[tuple[float, float], ...]]

    @property
    def failures(self) -> list[str]:
        """Names of the changes with which the distance does not rise at every step from 0 on."""
        bad = []
        for name, pairs in self.table.items():
            distances = [0.0, *(distance for _, distance in pairs)]
            if not all(low < high for low, high in zip(distances, distances[1:], strict=False)):
                bad.append(name)
        return bad

    @property
    def valid(self) -> bool:
        """Whether every distance rises with the strength."""
        return not self.failures

    def as_record(self) -> dict[str, Any]:
        """Return it in dictionaries, lists, strings and numbers."""
        table = {name: [list(pair) for pair in pairs] for name, pairs in self.table.items()}
        return {"groups": self.groups, "table": table, "valid": self.valid}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Validity:
        """Return what `as_record` was made from."""
        table = {
            name: tuple((float(strength), float(distance)) for strength, distance in pairs)
            for name, pairs in record["table"].items()
        }
        return cls(str(record["groups"]), table)


def validate(extractor: Extractor, images: ImageSet, labels: Tensor | None) -> Validity:
    """Measure how an extractor's distances answer to blur, noise and missing classes.

    At most 2,000 pictures of the set are taken, larger ones at 64x64 pixels. Of labels that are attributes,
    every combination that occurs is a class. Pictures without labels are divided into a darker and a brighter
    half, and the darker one counts as half of the classes.

    Args:
        extractor: Computes the features, on its device.
        images: The set.
        labels: Classes int64 (N,), attributes float (N, c) in {0, 1}, or None.

    Returns:
        The table of distances.

    Raises:
        UserError: There are fewer than two pictures, or a file cannot be decoded.
    """
    chosen = torch.randperm(len(images), generator=generator_for(0, "validity"))[:_MOST_PICTURES]
    pictures = torch.cat([_small(images.pixels(part)) for part in torch.split(chosen, _BATCH)])
    device = next(extractor.parameters()).device

    def features(change: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.cat([extractor(change(part).to(device)) for part in torch.split(pictures, _BATCH)])

    real = features(lambda part: part)
    mu, sigma = _statistics(real)

    def distance(changed: Tensor) -> float:
        return frechet_distance(*_statistics(changed), mu, sigma)

    half, groups = _half_of_the_classes(pictures, None if labels is None else labels[chosen])
    lot = torch.rand(len(pictures), generator=generator_for(0, "validity", "drop"))
    blurs = [(width, distance(features(partial(blurred, sigma=width)))) for width in BLURS]
    noises = [(size, distance(features(_noise(size)))) for size in NOISES]
    drops = [(share, distance(real[~(half & (lot < share)).to(device)])) for share in DROPS]
    return Validity(groups, {"blur": tuple(blurs), "noise": tuple(noises), "drop": tuple(drops)})


def _small(pixels: Tensor) -> Tensor:
    pictures = normalise(pixels)
    if pictures.shape[-1] <= _LARGEST_SIZE:
        return pictures
    size = (_LARGEST_SIZE, _LARGEST_SIZE)
    return F.interpolate(pictures, size=size, mode="bilinear", align_corners=False, antialias=True)


def _statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    statistics = FeatureStatistics()
    statistics.update(features)
    return statistics.compute()


def _half_of_the_classes(pictures: Tensor, labels: Tensor | None) -> tuple[Tensor, str]:
    """Return which pictures belong to half of the classes, bool (N,), and in words what these are."""
    if labels is not None:
        cells = labels if labels.ndim == 2 else labels[:, None]
        found, codes = torch.unique(cells, dim=0, return_inverse=True)
        half = codes < len(found) // 2
        if len(found) > 1 and int((~half).sum()) >= 2:
            what = "classes" if labels.ndim == 1 else "combinations of attributes"
            return half, f"{len(found) // 2} of {len(found)} {what}"
    brightness = pictures.mean(dim=(1, 2, 3))
    return brightness < brightness.median(), "the darker half of the pictures"


def _noise(deviation: float) -> Callable[[Tensor], Tensor]:
    """Return a function that adds the same stream of Gaussian noise, of another size for each strength."""
    generator = generator_for(0, "validity", "noise")

    def add(pictures: Tensor) -> Tensor:
        noise = torch.randn(pictures.shape, generator=generator, dtype=pictures.dtype)
        return (pictures + deviation * noise).clamp(-1, 1)

    return add
