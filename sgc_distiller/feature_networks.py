"""Networks whose features the metrics compare.

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
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sgc_distiller.errors import UserError

__all__ = [
    "DIGITS_WEIGHTS",
    "INCEPTION_URL",
    "Classifier",
    "DigitsExtractor",
    "DigitsNetwork",
    "Extractor",
    "InceptionExtractor",
    "fetch_inception",
    "inception_path",
    "parse_weights",
    "read_weights",
]

log = logging.getLogger(__name__)

INCEPTION_URL = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
DIGITS_WEIGHTS = Path(__file__).parent / "assets" / "digits_cnn.pt"

_INCEPTION_HASH = "6726825d"
_INCEPTION_CHUNK = 50  # pictures at once; pytorch-fid's batch
_DIGITS_SIZE = 32


class Classifier(nn.Module):
    """Names attributes or classes of pictures.

    Args:
        name: Name with which metrics are labelled.
        targets: Names of the attributes or classes, one for each output.
    """

    def __init__(self, name: str, targets: Sequence[str]) -> None:
        super().__init__()
        self.name = name
        self.targets = tuple(targets)

    def predict(self, pictures: Tensor) -> Tensor:
        """Return the probabilities (B, targets) in [0, 1] of pictures (B, 1 or 3, H, W) in [-1, 1]."""
        raise NotImplementedError


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
        return self.features(self.in_8_bits(pictures))

    @staticmethod
    def in_8_bits(pictures: Tensor) -> Tensor:
        """Return pictures (B, 1 or 3, H, W) in [-1, 1] as a file would hold them, in [0, 1]."""
        if pictures.ndim != 4 or pictures.shape[1] not in (1, 3):
            raise ValueError(f"Expected pictures (B, 1 or 3, H, W), got {tuple(pictures.shape)}.")
        return pictures.to(torch.float32).mul(127.5).add(128).floor().clamp(0, 255) / 255

    def classifier(self, attributes: Sequence[str]) -> Classifier | None:
        """Return what names these attributes of pictures; None where the network has not learnt them."""
        return None

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


class DigitsExtractor(Extractor):
    """The digits network with the weights in a file; colour pictures are made grey and brought to 32x32.

    Args:
        weights: The file.

    Raises:
        UserError: It is missing, damaged or another network's.
    """

    def __init__(self, weights: Path) -> None:
        content = read_weights(weights, "the digits extractor")
        super().__init__(f"digits-{_sha256(content)[:8]}", DigitsNetwork.dim)
        self.network = DigitsNetwork()
        try:
            self.network.load_state_dict(parse_weights(content)["state_dict"])
        except (pickle.UnpicklingError, RuntimeError, ValueError, KeyError, TypeError, EOFError) as error:
            raise UserError(_wrong_weights(weights, "the digits extractor", error)) from error
        self.requires_grad_(False).eval()

    def features(self, pictures: Tensor) -> Tensor:
        """Return the features (B, 64) of pictures (B, 1 or 3, H, W) in [0, 1]."""
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


class InceptionExtractor(Extractor):
    """pytorch-fid's Inception with the weights in a file; grey pictures get three equal channels.

    Args:
        weights: The file.

    Raises:
        UserError: It is missing, damaged or another network's.
    """

    def __init__(self, weights: Path) -> None:
        from pytorch_fid import inception

        content = read_weights(weights, "Inception")
        digest = _sha256(content)
        standard = digest.startswith(_INCEPTION_HASH)
        super().__init__("inception" if standard else f"inception-{digest[:8]}", 2048)
        try:
            state = parse_weights(content)
            # pytorch-fid always fetches its weights; hand it those of the file, which are loaded safely.
            with patch.object(inception, "load_state_dict_from_url", lambda *_, **__: state):
                self.network = inception.InceptionV3([inception.InceptionV3.BLOCK_INDEX_BY_DIM[2048]])
        except (pickle.UnpicklingError, RuntimeError, ValueError, KeyError, TypeError, EOFError) as error:
            raise UserError(_wrong_weights(weights, "pytorch-fid's Inception", error)) from error
        self.requires_grad_(False).eval()

    def features(self, pictures: Tensor) -> Tensor:
        """Return the features (B, 2048) of pictures (B, 1 or 3, H, W) in [0, 1]."""
        colour = pictures.expand(-1, 3, -1, -1)
        return torch.cat([self.network(part)[0].flatten(1) for part in torch.split(colour, _INCEPTION_CHUNK)])


def inception_path() -> Path:
    """Return where pytorch-fid and torch keep the Inception weights."""
    return Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_URL.rsplit("/", 1)[-1]


def fetch_inception() -> Path:
    """Return the file of the Inception weights, downloaded where it is missing.

    Raises:
        UserError: The download failed.
    """
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


def read_weights(path: Path, what: str) -> bytes:
    """Return the content of a file of weights.

    Raises:
        UserError: It cannot be read; the text says whose weights it should hold.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"Cannot read the weights of {what} at {path}: {error.strerror}. Give the path of an existing "
            "file, or choose the extractor 'digits' without one."
        ) from error


def parse_weights(content: bytes) -> dict[str, Any]:
    """Return what torch saved, on the CPU, without running code that the file may hold."""
    loaded: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return loaded


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _wrong_weights(path: Path, what: str, error: Exception) -> str:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"Expected the weights of {what} in {path}: {reason}. Fetch the file again or give another one."
