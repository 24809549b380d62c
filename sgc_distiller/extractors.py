"""Networks whose features the metrics compare, and the measurement of a generator with them.

``inception`` is pytorch-fid's network with its weights: numbers to compare with the literature. ``digits`` is
a small network of our own whose weights are part of the package: it ranks generators of handwritten digits
where the Inception weights cannot be had. Its numbers mean nothing beside Inception's, so every metric's name
carries the extractor.
"""

from __future__ import annotations

import hashlib
import io
import logging
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sgc_distiller.data import ImageSet, in_order
from sgc_distiller.errors import UserError, nearest
from sgc_distiller.metrics import (
    FeatureStatistics,
    MetricResult,
    frechet_distance,
    kernel_distance,
    load_statistics,
    matrix_root,
    save_statistics,
)
from sgc_distiller.seeding import generator_for

__all__ = ["DigitsNetwork", "Extractor", "GeneratorMetric", "inception_path", "load_extractor"]

log = logging.getLogger(__name__)

INCEPTION_URL = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
DIGITS_WEIGHTS = Path(__file__).parent / "assets" / "digits_cnn.pt"

_INCEPTION_HASH = "6726825d"
_INCEPTION_CHUNK = 50  # pictures at once; pytorch-fid's batch
_DIGITS_SIZE = 32
_REFERENCE_BATCH = 250
_KERNEL_PICTURES = 5000  # of each set at most: the kernel distance takes time in the square of it


class Extractor(nn.Module):
    """Maps pictures to features, without gradients and in evaluation mode.

    Args:
        name: Name with which metrics are labelled; other weights have another name.
        dim: Number of features.
        note: What to tell the user about the choice of this extractor; empty when there is nothing to tell.
    """

    def __init__(self, name: str, dim: int, note: str = "") -> None:
        super().__init__()
        self.name = name
        self.dim = dim
        self.note = note

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Tensor:
        """Return the features of pictures.

        Args:
            pictures: (B, C, H, W) in [-1, 1] with 1 or 3 channels on the extractor's device. They are rounded
                to 8 bits and clamped first, as they would be in a file.

        Returns:
            (B, dim) float32.
        """
        if pictures.ndim != 4 or pictures.shape[1] not in (1, 3):
            raise ValueError(f"Expected pictures (B, 1 or 3, H, W), got {tuple(pictures.shape)}.")
        levels = pictures.to(torch.float32).mul(127.5).add(128).floor().clamp(0, 255)
        return self.features(levels / 255)

    def features(self, pictures: Tensor) -> Tensor:
        """Return the features (B, dim) of pictures (B, C, H, W) in [0, 1]."""
        raise NotImplementedError


class DigitsNetwork(nn.Module):
    """Classifier of 32x32 grey digits; ``features`` are the 64 numbers before its last layer.

    They are multiplied with ``scale``, chosen in training such that the total variance over scikit-learn's
    digits is 100: a Fréchet distance of 100 is as much as the digits differ among themselves.
    """

    dim = 64

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((1, 16), (16, 32), (32, 64)):
            layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
        self.trunk = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 4 * 4, self.dim), nn.ReLU())
        self.head = nn.Linear(self.dim, 10)
        self.scale: Tensor
        self.register_buffer("scale", torch.ones(()))

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the logits (B, 10) of pictures (B, 1, 32, 32) in [-1, 1]."""
        logits: Tensor = self.head(self.trunk(pictures))
        return logits

    def features(self, pictures: Tensor) -> Tensor:
        """Return the features (B, 64) of pictures (B, 1, 32, 32) in [-1, 1]."""
        features: Tensor = self.trunk(pictures) * self.scale
        return features


class _DigitsExtractor(Extractor):
    def __init__(self, weights: Path) -> None:
        content = _read(weights, "the digits extractor")
        super().__init__(f"digits-{_sha256(content)[:8]}", DigitsNetwork.dim)
        self.network = DigitsNetwork()
        try:
            self.network.load_state_dict(_load(content)["state_dict"])
        except (pickle.UnpicklingError, RuntimeError, ValueError, KeyError, TypeError, EOFError) as error:
            raise UserError(_wrong_weights(weights, "the digits extractor", error)) from error
        self.requires_grad_(False).eval()

    def features(self, pictures: Tensor) -> Tensor:
        if pictures.shape[1] == 3:  # luminance, as PIL converts to grey
            pictures = (pictures * pictures.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, True)
        if pictures.shape[2:] != (_DIGITS_SIZE, _DIGITS_SIZE):
            pictures = F.interpolate(
                pictures,
                size=(_DIGITS_SIZE, _DIGITS_SIZE),
                mode="bilinear",
                align_corners=False,
                antialias=True,
            )
        return self.network.features(pictures * 2 - 1)


class _InceptionExtractor(Extractor):
    def __init__(self, weights: Path) -> None:
        from pytorch_fid import inception

        content = _read(weights, "Inception")
        digest = _sha256(content)
        standard = digest.startswith(_INCEPTION_HASH)
        super().__init__("inception" if standard else f"inception-{digest[:8]}", 2048)
        try:
            state = _load(content)
            # pytorch-fid always fetches its weights; hand it those of the file, which are loaded safely.
            with patch.object(inception, "load_state_dict_from_url", lambda *_, **__: state):
                self.network = inception.InceptionV3([inception.InceptionV3.BLOCK_INDEX_BY_DIM[2048]])
        except (pickle.UnpicklingError, RuntimeError, ValueError, KeyError, TypeError, EOFError) as error:
            raise UserError(_wrong_weights(weights, "pytorch-fid's Inception", error)) from error
        self.requires_grad_(False).eval()

    def features(self, pictures: Tensor) -> Tensor:
        colour = pictures.expand(-1, 3, -1, -1)
        return torch.cat([self.network(part)[0].flatten(1) for part in torch.split(colour, _INCEPTION_CHUNK)])


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

    def evaluate(self, pictures: Iterable[Tensor], draw: str, seed: int = 0) -> list[MetricResult]:
        """Measure a generator.

        Args:
            pictures: Batches (B, C, H, W) in [-1, 1], of the size of the reference, on any device.
            draw: How they were drawn, such as ``train mode, batch 64``; part of the metrics' names.
            seed: Seed of the kernel distance's interval.

        Returns:
            The Fréchet distance, and the kernel distance with its 95 % interval. The kernel distance takes at
            most 5,000 pictures of each side: the first generated ones and random real ones.

        Raises:
            UserError: There are fewer than two pictures.
            NotANumberError: The pictures are not finite numbers.
            ValueError: The pictures have another size than the reference.
        """
        statistics, features = self._measure(pictures)
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
        return [
            MetricResult(f"FID[{label}; {reference}; {statistics.count} images, {draw}]", distance),
            MetricResult(
                f"KID[{label}; {kernel_reference}; {len(features)} images, {draw}]", value, low, high
            ),
        ]

    def _measure(self, pictures: Iterable[Tensor]) -> tuple[FeatureStatistics, Tensor]:
        """Return the statistics of all pictures and the features of the first ones."""
        size = (self.reference.image_size,) * 2
        device = next(self.extractor.parameters()).device
        statistics, kept = FeatureStatistics(), []
        for batch in pictures:
            if tuple(batch.shape[2:]) != size:
                raise ValueError(f"Expected pictures of {size} pixels, got {tuple(batch.shape)}.")
            features = self.extractor(batch.to(device))
            if statistics.count < _KERNEL_PICTURES:
                kept.append(features[: _KERNEL_PICTURES - statistics.count])
            statistics.update(features)
        return statistics, torch.cat(kept) if kept else torch.empty(0, self.extractor.dim)

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
        key = _sha256(f"{self.extractor.name}/{self.reference.fingerprint}/{_KERNEL_PICTURES}".encode())
        return self.cache_dir / f"statistics-{self.extractor.name}-{key[:16]}.npz"


def load_extractor(
    name: str = "auto", weights: str | Path | None = None, device: torch.device | str = "cpu"
) -> Extractor:
    """Load a feature extractor.

    Args:
        name: ``inception``, which fetches its weights where they are missing; ``digits``; or ``auto``:
            inception where its weights are (``weights``, or torch's cache at `inception_path`), else digits,
            with a ``note`` that says so. ``auto`` never fetches anything.
        weights: File of weights to load instead of the standard one.
        device: Where the network computes.

    Raises:
        UserError: The name is unknown, or the weights are missing, damaged or another network's.
    """
    if name == "digits":
        extractor: Extractor = _DigitsExtractor(DIGITS_WEIGHTS if weights is None else Path(weights))
    elif name == "inception":
        extractor = _InceptionExtractor(_fetch_inception() if weights is None else Path(weights))
    elif name == "auto":
        path = inception_path() if weights is None else Path(weights)
        if weights is not None or path.is_file():
            extractor = _InceptionExtractor(path)
        else:
            extractor = _DigitsExtractor(DIGITS_WEIGHTS)
            extractor.note = (
                f"The Inception weights are not at {path}:\n  distances use the small extractor "
                f"{extractor.name} of this package and do not compare with published FIDs;\n  the extractor "
                f"'inception' downloads them from {INCEPTION_URL}"
            )
    else:
        names = ("auto", "digits", "inception")
        raise UserError(
            f"Expected an extractor out of {', '.join(names)}, got {name!r}.{nearest(name, names)}"
        )
    return extractor.to(device)


def inception_path() -> Path:
    """Return where pytorch-fid and torch keep the Inception weights."""
    return Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_URL.rsplit("/", 1)[-1]


def _fetch_inception() -> Path:
    path = inception_path()
    if path.is_file():
        return path
    log.info("Downloading %s to %s.", INCEPTION_URL, path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(INCEPTION_URL, str(path), hash_prefix=_INCEPTION_HASH, progress=False)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"Cannot download the Inception weights: {error}. Fetch {INCEPTION_URL} on another machine and "
            f"put it at {path}, or choose the extractor 'digits', which needs no download."
        ) from error
    return path


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"Cannot read the weights of {what} at {path}: {error.strerror}. Give the path of an existing "
            "file, or choose the extractor 'digits' without one."
        ) from error


def _load(content: bytes) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return loaded


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _wrong_weights(path: Path, what: str, error: Exception) -> str:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"Expected the weights of {what} in {path}: {reason}. Fetch the file again or give another one."
