"""The measurement of a generator with an extractor's features, and the choice of that extractor.

Inception's numbers compare with the literature. Where its weights cannot be had, the digits network of this
package ranks generators of digits, and a network trained on the user's own folder ranks those of any other
pictures. Every metric's name carries the extractor, for its numbers mean nothing beside another's.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from sgc_distiller.data import ImageSet, in_order
from sgc_distiller.errors import UserError, nearest
from sgc_distiller.extractor_training import cached_extractor
from sgc_distiller.feature_networks import (
    DIGITS_WEIGHTS,
    INCEPTION_URL,
    DigitsExtractor,
    DigitsNetwork,
    Extractor,
    InceptionExtractor,
    fetch_inception,
    inception_path,
)
from sgc_distiller.labelled_pictures import holds_digits
from sgc_distiller.metrics import (
    FeatureStatistics,
    MetricResult,
    frechet_distance,
    kernel_distance,
    load_statistics,
    matrix_root,
    save_statistics,
)
from sgc_distiller.picture_network import PictureExtractor, is_picture_extractor, load_picture_extractor
from sgc_distiller.seeding import generator_for

__all__ = ["DigitsNetwork", "Extractor", "GeneratorMetric", "inception_path", "load_extractor"]

log = logging.getLogger(__name__)

_REFERENCE_BATCH = 250
_KERNEL_PICTURES = 5000  # of each set at most: the kernel distance takes time in the square of it
_NAMES = ("auto", "digits", "folder", "inception")


class GeneratorMetric:
    """Fréchet and kernel distance of generated pictures to a reference set.

    Args:
        extractor: Computes the features, on its device.
        reference: Real pictures.
        cache_dir: Folder where the reference's statistics are kept between runs, as .npz files that
            pytorch-fid can read. A file belongs to one extractor and one content of the reference.
    """

    def __init__(
        self, extractor: Extractor, reference: ImageSet, cache_dir: str | Path | None = None
    ) -> None:
        self.extractor = extractor
        self.reference = reference
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self._statistics: dict[str, Tensor] | None = None

    def evaluate(
        self, pictures: Iterable[Tensor | Sequence[Tensor]], draw: str, seed: int = 0
    ) -> list[MetricResult]:
        """Measure a generator.

        Args:
            pictures: Batches (B, C, H, W) in [-1, 1], or lists of pictures (C, H, W) of any sizes, on any
                device. The extractor resizes what is not of the reference's size, and the names say so.
            draw: How they were drawn, such as ``train mode, batch 64``; part of the metrics' names.
            seed: Seed of the kernel distance's interval.

        Returns:
            The Fréchet distance, and the kernel distance with its 95 % interval. The kernel distance takes at
            most 5,000 pictures of each side: the first generated ones and random real ones.

        Raises:
            UserError: There are fewer than two pictures.
            NotANumberError: The pictures are not finite numbers.
            ValueError: The tensors have another shape.
        """
        statistics, features, sizes = self._measure(pictures)
        mu, sigma = statistics.compute()
        real = self._reference_statistics()
        distance = frechet_distance(mu, sigma, real["mu"], real["sigma"], root2=real["root"])
        generator = generator_for(seed, "kernel distance")
        value, low, high = kernel_distance(features, real["features"], generator)
        size = f"{self.reference.image_size}x{self.reference.image_size}"
        reference = f"reference {self.reference.name} {size}"
        sampled = len(real["features"])
        kernel_reference = reference if sampled == len(self.reference) else f"{reference}, {sampled} of them"
        label = self.extractor.name
        draw += _resized_note(sizes, self.reference.image_size)
        return [
            MetricResult(f"FID[{label}; {reference}; {statistics.count} images, {draw}]", distance),
            MetricResult(
                f"KID[{label}; {kernel_reference}; {len(features)} images, {draw}]", value, low, high
            ),
        ]

    def _measure(
        self, pictures: Iterable[Tensor | Sequence[Tensor]]
    ) -> tuple[FeatureStatistics, Tensor, set[tuple[int, ...]]]:
        """Return the statistics of all pictures, the features of the first ones, and all sizes (H, W)."""
        device = next(self.extractor.parameters()).device
        statistics, kept, sizes = FeatureStatistics(), [], set()
        for batch in _batches(pictures):
            features = self.extractor(batch.to(device))
            if statistics.count < _KERNEL_PICTURES:
                kept.append(features[: _KERNEL_PICTURES - statistics.count])
            statistics.update(features)
            sizes.add(tuple(batch.shape[2:]))
        return statistics, torch.cat(kept) if kept else torch.empty(0, self.extractor.dim), sizes

    def _reference_statistics(self) -> dict[str, Tensor]:
        """Return mu, sigma, the root of sigma, and features of the reference, computed once or cached."""
        if self._statistics is None:
            device = next(self.extractor.parameters()).device
            loaded = self._load_cached()
            statistics = self._compute_reference() if loaded is None else loaded
            self._statistics = {key: item.to(device) for key, item in statistics.items()}
        return self._statistics

    def _load_cached(self) -> dict[str, Tensor] | None:
        path = self._cache_path()
        if path is None or not path.is_file():
            return None
        try:
            return load_statistics(path, ("mu", "sigma", "root", "features"))
        except UserError as error:
            log.warning("%s It is computed anew.", error)
            return None

    def _compute_reference(self) -> dict[str, Tensor]:
        device = next(self.extractor.parameters()).device
        statistics = FeatureStatistics()
        order = torch.randperm(len(self.reference), generator=generator_for(0, "kernel reference"))
        chosen = torch.zeros(len(self.reference), dtype=torch.bool)
        chosen[order[:_KERNEL_PICTURES]] = True
        kept, first = [], 0
        for batch in in_order(self.reference, _REFERENCE_BATCH, device):
            features = self.extractor(batch)
            statistics.update(features)
            kept.append(features.cpu()[chosen[first : first + len(batch)]])
            first += len(batch)
        mu, sigma = statistics.compute()
        result = {"mu": mu, "sigma": sigma, "root": matrix_root(sigma), "features": torch.cat(kept)}
        path = self._cache_path()
        if path is not None:
            try:
                save_statistics(path, **result)
            except OSError as error:
                log.warning("The reference's statistics are not kept for the next run: %s", error)
        return result

    def _cache_path(self) -> Path | None:
        if self.cache_dir is None:
            return None
        key = hashlib.sha256(
            f"{self.extractor.name}/{self.reference.fingerprint}/{_KERNEL_PICTURES}".encode()
        ).hexdigest()
        return self.cache_dir / f"statistics-{self.extractor.name}-{key[:16]}.npz"


def load_extractor(
    name: str = "auto",
    weights: str | Path | None = None,
    device: torch.device | str = "cpu",
    source: str | Path | ImageSet | None = None,
    image_size: int | None = None,
) -> Extractor:
    """Load a feature extractor.

    Args:
        name: ``inception``, which fetches its weights where they are missing; ``digits``; ``folder``, a small
            network trained on ``source``, now and once where that was not done before; or ``auto``: inception
            where its weights are (``weights``, or torch's cache at `inception_path`), else digits for digits
            and for no source, else folder, with a ``note`` that says so. ``auto`` never fetches anything.
        weights: File of weights to load instead of the standard one. ``auto`` loads Inception's and those
            that ``sgc extractor train`` wrote.
        device: Where the network computes.
        source: The pictures that are to be judged: a folder, an open set, or ``digits``.
        image_size: Size in pixels of a folder's pictures.

    Raises:
        UserError: The name is unknown, the weights are missing, damaged or another network's, or there is
            nothing that an extractor could be trained on.
    """
    if name == "digits":
        extractor: Extractor = DigitsExtractor(DIGITS_WEIGHTS if weights is None else Path(weights))
    elif name == "inception":
        extractor = InceptionExtractor(fetch_inception() if weights is None else Path(weights))
    elif name == "folder":
        extractor = _from_folder(weights, device, source, image_size)
    elif name == "auto":
        extractor = _automatic(weights, device, source, image_size)
    else:
        raise UserError(
            f"Expected an extractor out of {', '.join(_NAMES)}, got {name!r}.{nearest(name, _NAMES)}"
        )
    return extractor.to(device)


def _automatic(
    weights: str | Path | None,
    device: torch.device | str,
    source: str | Path | ImageSet | None,
    image_size: int | None,
) -> Extractor:
    """Return the best extractor that is at hand."""
    if weights is not None and is_picture_extractor(Path(weights)):
        return _from_folder(weights, device, source, image_size)
    path = inception_path() if weights is None else Path(weights)
    if weights is not None or path.is_file():
        return InceptionExtractor(path)
    missing = f"The Inception weights are not at {path}:\n  "
    download = f"the extractor\n  'inception' downloads them from {INCEPTION_URL}"
    if isinstance(source, ImageSet) or not holds_digits(source):
        trained = _from_folder(None, device, source, image_size)
        trained.note = f"{missing}{trained.note};\n  {download}"
        return trained
    extractor = DigitsExtractor(DIGITS_WEIGHTS)
    extractor.note = (
        f"{missing}distances use the small extractor {extractor.name} of this package and do not compare "
        f"with published FIDs;\n  {download}"
    )
    return extractor


def _from_folder(
    weights: str | Path | None,
    device: torch.device | str,
    source: str | Path | ImageSet | None,
    image_size: int | None,
) -> PictureExtractor:
    """Return the extractor in a file, or that of a folder, with a note on what it is."""
    if weights is not None:
        extractor = load_picture_extractor(Path(weights))
    elif source is None:
        raise UserError(
            "Expected a folder of pictures for the extractor 'folder', got none. Name the data's folder, or "
            "the file that 'sgc extractor train DIR' wrote as the extractor's weights."
        )
    else:
        extractor = cached_extractor(source, image_size, device)
    extractor.note = _about(extractor, source)
    return extractor


def _about(extractor: PictureExtractor, source: str | Path | ImageSet | None) -> str:
    """Say that an extractor is a stand-in, how it is made beforehand, and whether it is valid."""
    record, validity = extractor.record, extractor.record.validity
    parts = [
        f"distances use the small extractor {extractor.name}, trained on the {record.kind} of "
        f"{record.trained_on}, and do not compare with published FIDs"
    ]
    if isinstance(source, (str, Path)):
        parts.append(f"'sgc extractor train {source}' makes it beforehand")
    if validity is None:
        parts.append("whether it is valid was not tried")
    elif validity.valid:
        parts.append("it is valid: distances rise with blur, noise and missing pictures")
    else:
        failures = " and ".join(validity.failures)
        parts.append(f"it is not valid, distances do not rise steadily with {failures}: mistrust their order")
    return ";\n  ".join(parts)


def _batches(pictures: Iterable[Tensor | Sequence[Tensor]]) -> Iterator[Tensor]:
    """Yield batches (B, C, H, W) in the order of the pictures, each of one size."""
    for item in pictures:
        if isinstance(item, Tensor):
            yield item if item.ndim == 4 else item[None]
            continue
        for _, run in groupby(item, key=lambda picture: picture.shape):
            yield torch.stack(list(run))


def _resized_note(sizes: set[tuple[int, ...]], reference: int) -> str:
    """Return what a metric's name says about pictures (H, W) that are not of the reference's size."""
    if sizes <= {(reference, reference)}:
        return ""
    if len(sizes) > 1:
        return ", of several sizes, resized by the extractor"
    height, width = next(iter(sizes))
    return f", {height}x{width} resized by the extractor"
