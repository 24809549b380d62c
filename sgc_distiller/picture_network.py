"""A small network for colour pictures, trained on the user's own: features for metrics, and a classifier.

Where Inception's weights are missing, its features take their place for pictures of one folder. A number
that comes from them compares generators of the same pictures with each other and with nothing else, so the
name of the extractor is made of a hash of its weights.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sgc_distiller.errors import UserError, nearest
from sgc_distiller.extractor_validity import Validity
from sgc_distiller.feature_networks import Classifier, Extractor, parse_weights, read_weights
from sgc_distiller.runs import atomic_file

__all__ = [
    "AttributeClassifier",
    "Kind",
    "PictureExtractor",
    "PictureNetwork",
    "TrainingRecord",
    "is_picture_extractor",
    "load_picture_extractor",
    "save_picture_extractor",
]

Kind = Literal["classes", "attributes", "rotations"]

_FORMAT = "sgc picture extractor 1"


class PictureNetwork(nn.Module):
    """Classifier of colour pictures of any size; ``features`` are the 64 numbers before its last layers.

    They are drawn from three depths, so that they tell fine texture as well as what a picture shows, and are
    multiplied with ``scale``, chosen in training such that their total variance over the set is 100: a
    Fréchet distance of 100 is as much as the pictures differ among themselves.

    Args:
        outputs: Number of classes or attributes.
    """

    dim = 64

    def __init__(self, outputs: int) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        for inputs, width, stride in ((3, 24, 2), (24, 48, 2), (48, 96, 2), (96, 128, 2), (128, 128, 1)):
            convolution = nn.Conv2d(inputs, width, 3, stride=stride, padding=1, bias=False)
            stages.append(nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU()))
        self.stages = nn.ModuleList(stages)
        self.mix = nn.Linear(48 + 96 + 128, self.dim)
        self.head = nn.Linear(self.dim, outputs)
        self.damage = nn.Linear(self.dim, 2)
        self.scale: Tensor
        self.register_buffer("scale", torch.ones(()))

    def trunk(self, pictures: Tensor) -> Tensor:
        """Return the features (B, 64) of pictures (B, 3, H, W) in [-1, 1] before they are scaled."""
        pooled, maps = [], pictures
        for index, stage in enumerate(self.stages):
            maps = stage(maps)
            if index in (1, 2, 4):
                pooled.append(maps.mean(dim=(2, 3)))
        mixed: Tensor = self.mix(torch.cat(pooled, dim=1))
        return mixed

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Name pictures and say how damaged they are.

        Args:
            pictures: (B, 3, H, W) in [-1, 1].

        Returns:
            The logits (B, outputs), and how blurred and how noisy each is as shares (B, 2) of the most in
            training.
        """
        features = self.trunk(pictures)
        return self.head(features), self.damage(features)

    def features(self, pictures: Tensor) -> Tensor:
        """Return the features (B, 64) of pictures (B, 3, H, W) in [-1, 1]."""
        return self.trunk(pictures) * self.scale


@dataclass(frozen=True)
class TrainingRecord:
    """What a picture extractor was trained on and how well it did.

    Args:
        trained_on: Name of the set.
        fingerprint: Its fingerprint.
        kind: What was learnt: ``classes``, ``attributes``, or by how many quarters a picture was turned.
        targets: Names of the outputs, one each.
        accuracy: Share in [0, 1] of held-out pictures that are named rightly, for each attribute, or under
            ``class`` or ``rotation``.
        pictures: Number of pictures, those held out included.
        seed: Seed of everything random.
        epochs: Passes over the pictures.
        size: Height and width in pixels to which pictures are brought.
        validity: Whether distances made of its features rise as they should; None before that was tried.
    """

    trained_on: str
    fingerprint: str
    kind: Kind
    targets: tuple[str, ...]
    accuracy: Mapping[str, float]
    pictures: int
    seed: int
    epochs: int
    size: int
    validity: Validity | None = field(default=None)


class PictureExtractor(Extractor):
    """A trained `PictureNetwork` with its record; its name holds the first 8 digits of its weights' hash.

    Args:
        network: The network; it is put in evaluation mode and its gradients are switched off.
        record: What it was trained on.
    """

    def __init__(self, network: PictureNetwork, record: TrainingRecord) -> None:
        super().__init__(f"cnn-{_weights_hash(network)[:8]}", PictureNetwork.dim)
        self.network = network
        self.record = record
        self.requires_grad_(False).eval()

    def features(self, pictures: Tensor) -> Tensor:
        """Return the features (B, 64) of pictures (B, 1 or 3, H, W) in [0, 1]."""
        return self.network.features(_prepared(pictures, self.record.size))

    def classifier(self, attributes: Sequence[str]) -> AttributeClassifier | None:
        """Return what names these attributes of pictures; None where the network has not learnt them."""
        if self.record.kind != "attributes" or not set(attributes) <= set(self.record.targets):
            return None
        return AttributeClassifier(self, attributes)

    @torch.no_grad()
    def probabilities(self, pictures: Tensor) -> Tensor:
        """Return what the network's outputs say: probabilities (B, outputs) of pictures in [-1, 1].

        Those of attributes are independent of each other; those of classes and rotations sum to 1.
        """
        logits, _ = self.network(_prepared(self.in_8_bits(pictures), self.record.size))
        probabilities: Tensor = logits.sigmoid() if self.record.kind == "attributes" else logits.softmax(1)
        return probabilities


class AttributeClassifier(Classifier):
    """Names the attributes or the class of pictures, independently of the GAN that made them.

    Args:
        extractor: A trained extractor, or the file of one.
        attributes: Which of its targets, in this order; None for all.

    Raises:
        UserError: The file cannot be used, the network has learnt rotations only, or not these attributes.
    """

    def __init__(
        self, extractor: PictureExtractor | str | Path, attributes: Sequence[str] | None = None
    ) -> None:
        if not isinstance(extractor, PictureExtractor):
            extractor = load_picture_extractor(Path(extractor))
        record = extractor.record
        if record.kind == "rotations":
            raise UserError(
                f"Expected an extractor trained on attributes or classes, got {extractor.name}, which has "
                f"learnt rotations of {record.trained_on}. Train one on a folder with an attribute file or "
                "with a subfolder for each class."
            )
        wanted = record.targets if attributes is None else tuple(attributes)
        unknown = [name for name in wanted if name not in record.targets]
        if unknown:
            raise UserError(
                f"Expected attributes out of {', '.join(record.targets)}, which {extractor.name} has learnt, "
                f"got {unknown[0]!r}.{nearest(unknown[0], record.targets)}"
            )
        super().__init__(extractor.name, wanted)
        self.extractor = extractor
        self._columns = [record.targets.index(name) for name in wanted]

    def predict(self, pictures: Tensor) -> Tensor:
        """Return the probabilities (B, targets) float32 in [0, 1] of pictures (B, C, H, W) in [-1, 1].

        Those of attributes are independent of each other; those of all classes sum to 1.
        """
        return self.extractor.probabilities(pictures)[:, self._columns]


def save_picture_extractor(extractor: PictureExtractor, path: Path) -> None:
    """Write an extractor whole or not at all, readable with ``torch.load(weights_only=True)``."""
    record = asdict(extractor.record)
    record["targets"] = list(extractor.record.targets)
    record["accuracy"] = dict(extractor.record.accuracy)
    validity = extractor.record.validity
    record["validity"] = None if validity is None else validity.as_record()
    state = {name: tensor.cpu() for name, tensor in extractor.network.state_dict().items()}
    with atomic_file(path) as file:
        torch.save({"format": _FORMAT, "name": extractor.name, "state_dict": state, **record}, file)


def is_picture_extractor(path: Path) -> bool:
    """Return whether a file was written by `save_picture_extractor`; damaged and missing files were not."""
    try:
        content = parse_weights(path.read_bytes())
        return isinstance(content, dict) and content.get("format") == _FORMAT
    except (pickle.UnpicklingError, OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError):
        return False


def load_picture_extractor(path: Path) -> PictureExtractor:
    """Read an extractor from its file; it computes on the CPU.

    Raises:
        UserError: The file is missing, damaged or something else.
    """
    content = read_weights(path, "a trained extractor")
    try:
        found = parse_weights(content)
        if found["format"] != _FORMAT:
            raise ValueError(f"its format is {found['format']!r}")
        record = TrainingRecord(
            **{key: found[key] for key in ("trained_on", "fingerprint", "kind", "accuracy")},
            **{key: found[key] for key in ("pictures", "seed", "epochs", "size")},
            targets=tuple(found["targets"]),
            validity=None if found["validity"] is None else Validity.from_record(found["validity"]),
        )
        network = PictureNetwork(len(record.targets))
        network.load_state_dict(found["state_dict"])
    except (pickle.UnpicklingError, RuntimeError, ValueError, KeyError, TypeError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"Expected an extractor that 'sgc extractor train' wrote in {path}: {reason}. Remove the file "
            "and train it again, or give another one."
        ) from error
    return PictureExtractor(network, record)


def _prepared(pictures: Tensor, size: int) -> Tensor:
    """Return pictures (B, 1 or 3, H, W) in [0, 1] as (B, 3, size, size) in [-1, 1]."""
    if pictures.shape[2:] != (size, size):
        pictures = F.interpolate(
            pictures, size=(size, size), mode="bilinear", align_corners=False, antialias=True
        )
    return pictures.expand(-1, 3, -1, -1) * 2 - 1


def _weights_hash(network: nn.Module) -> str:
    """Return the SHA-256 of all weights and buffers with their names and shapes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name}/{tuple(tensor.shape)}/{tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
