"""Training an extractor on the user's own pictures, where Inception's weights cannot be had.

The network learns what the folder says about its pictures: attributes, classes or domains; else by how many
quarters a picture was turned, which needs no labels (Gidaris et al. 2018, https://arxiv.org/abs/1803.07728).
Beside it the network learns how blurred and how noisy a picture was made, for what tells red from blue need
not see bad pictures. One file is kept for each set and size in the cache; its weights name it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sgc_distiller.data import ImageSet
from sgc_distiller.errors import UserError
from sgc_distiller.extractor_validity import Validity, validate
from sgc_distiller.labelled_pictures import LabelledSet, labelled_images, open_labelled
from sgc_distiller.metrics import FeatureStatistics
from sgc_distiller.picture_changes import as_input, augmented, damaged, resized, turned
from sgc_distiller.picture_network import (
    AttributeClassifier,
    Kind,
    PictureExtractor,
    PictureNetwork,
    TrainingRecord,
    load_picture_extractor,
    save_picture_extractor,
)
from sgc_distiller.resources import cache_folder
from sgc_distiller.seeding import generator_for, seed_for

__all__ = [
    "AttributeClassifier",
    "PictureExtractor",
    "Validity",
    "cached_extractor",
    "extractor_file",
    "labelled_images",
    "train_extractor",
    "train_folder_extractor",
    "validate",
]

log = logging.getLogger(__name__)

LARGEST_SIZE = 64
"""Pictures are brought to at most this height and width, in pixels."""

_MOST_PICTURES = 20_000
_FEWEST_PICTURES = 20
_PICTURES_TO_SEE = 30_000  # in all epochs together, where the caller names no number of epochs
_EPOCHS = (3, 40)  # the fewest and the most of them
_BATCH = 64
_BATCH_WITHOUT_GRADIENT = 250
_LEARNING_RATE = 4e-3
_TOTAL_VARIANCE = 100.0
_QUARTERS = 4
_DAMAGE_WEIGHT = 2.0


@dataclass(frozen=True)
class _Lesson:
    """What is learnt from which pictures.

    Args:
        kind: Classes, attributes or rotations.
        names: Names of the outputs.
        pixels: uint8 (N, 3, size, size).
        wanted: int64 (N,) or float32 (N, c); zeros for rotations, which are drawn in training.
        mirror: Whether pictures are mirrored at random.
    """

    kind: Kind
    names: tuple[str, ...]
    pixels: Tensor
    wanted: Tensor
    mirror: bool


def train_extractor(
    images: ImageSet,
    seed: int = 0,
    epochs: int | None = None,
    size: int | None = None,
    names: Sequence[str] = (),
    mirror: bool = True,
    device: torch.device | str = "cpu",
) -> PictureExtractor:
    """Train an extractor on a set of pictures, test it on a held-out tenth, and find out if it is valid.

    It learns the labels of the set where it has some, and rotations else. The same seed gives the same
    weights on the same CPU. A minute or two on one core, however many pictures of 64x64 there are.

    Args:
        images: The set. Of more than 20,000 pictures a fixed random choice is taken.
        seed: Seed of initialisation, order and augmentation.
        epochs: Passes over the pictures; None for as many as show 30,000 pictures, from 3 to 40.
        size: Height and width that the network sees, in pixels; None for the set's, but at most 64.
        names: Names of the classes or attributes.
        mirror: Whether mirrored pictures belong to the same class; leave it off for writing.
        device: Where to train; the extractor stays there.

    Raises:
        UserError: There are fewer than 20 pictures, all look alike, or a number is out of range.
    """
    size = min(LARGEST_SIZE, images.image_size) if size is None else size
    if size < 8 or (epochs is not None and epochs < 1):
        raise UserError(f"Expected at least 8 pixels and 1 epoch, got size {size} and epochs {epochs}.")
    if len(images) < _FEWEST_PICTURES:
        raise UserError(
            f"Expected at least {_FEWEST_PICTURES} pictures in {images.name} to train an extractor on, got "
            f"{len(images)}. Name a folder with more pictures of the kind, or another extractor, such as "
            "--extractor digits."
        )
    lesson = _lesson(images, size, tuple(names), mirror, torch.device(device))
    count = len(lesson.pixels)
    epochs = _epochs_for(count) if epochs is None else epochs
    order = torch.randperm(count, generator=generator_for(seed, "extractor", "held out"))
    held_out, kept = order[: count // 10], order[count // 10 :]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "extractor", "weights"))
        network = PictureNetwork(len(lesson.names)).to(device)
    _train(network, lesson, kept, epochs, seed)
    _set_scale(network.eval(), lesson.pixels, images.name)
    accuracy = _accuracy(network, lesson, held_out)
    record = TrainingRecord(
        images.name, images.fingerprint, lesson.kind, lesson.names, accuracy, count, seed, epochs, size
    )
    extractor = PictureExtractor(network, record)
    labels = None if lesson.kind == "rotations" else images.labels
    extractor.record = replace(record, validity=validate(extractor, images, labels))
    return extractor


def train_folder_extractor(
    source: str | Path,
    image_size: int = LARGEST_SIZE,
    seed: int = 0,
    epochs: int | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Train the extractor of a folder and put it where the metrics look for it; a former one is replaced.

    Args:
        source: The folder; see `open_labelled`.
        image_size: Size of the pictures in pixels; the network sees at most 64.
        seed: Seed of everything random.
        epochs: Passes over the pictures; see `train_extractor`.
        device: Where to train.

    Returns:
        For a person to read: ``path``, ``name``, ``kind``, ``trained_on``, ``pictures``, ``size``,
        ``epochs``, ``seed``, ``accuracy`` by target, ``valid``, ``validity`` (the table by change, as pairs
        of strength and distance), ``groups`` (whose pictures were dropped) and ``seconds``.

    Raises:
        UserError: The folder cannot be used.
    """
    begun = time.monotonic()
    opened = open_labelled(source, min(LARGEST_SIZE, image_size))
    extractor = _train_and_keep(opened, seed, epochs, device)
    record, validity = extractor.record, extractor.record.validity
    assert validity is not None
    return {
        "path": str(extractor_file(opened.images)),
        "name": extractor.name,
        "kind": record.kind,
        "trained_on": record.trained_on,
        "pictures": record.pictures,
        "size": record.size,
        "epochs": record.epochs,
        "seed": record.seed,
        "accuracy": dict(record.accuracy),
        "valid": validity.valid,
        "validity": {name: [list(pair) for pair in pairs] for name, pairs in validity.table.items()},
        "groups": validity.groups,
        "seconds": time.monotonic() - begun,
    }


def cached_extractor(
    source: str | Path | ImageSet,
    image_size: int | None = None,
    device: torch.device | str = "cpu",
) -> PictureExtractor:
    """Return the extractor of a folder or a set, trained now where the cache does not have it.

    Args:
        source: A folder, see `open_labelled`, or an open set.
        image_size: Size of a folder's pictures in pixels; the network sees at most 64, also for None.
        device: Where it trains and computes.

    Raises:
        UserError: The source cannot be used.
    """
    if isinstance(source, ImageSet):
        opened = LabelledSet(source)
    else:
        opened = open_labelled(source, min(LARGEST_SIZE, image_size or LARGEST_SIZE))
    path = extractor_file(opened.images)
    with _one_at_a_time(path):
        if path.is_file():
            try:
                return load_picture_extractor(path).to(device)
            except UserError as error:
                log.warning("%s It is trained anew.", error)
        log.info(
            "Training an extractor on %s, once; it takes a minute or two and is kept at %s.",
            opened.images.name,
            path,
        )
        return _train_and_keep(opened, 0, None, device)


@contextlib.contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Let other processes that want the same file wait inside the block, so that one of them makes it."""
    try:
        import fcntl

        cache_folder().mkdir(parents=True, exist_ok=True)
        file = (cache_folder() / f"{path.stem}.lock").open("a")
    except (ImportError, OSError):  # Windows; a cache that cannot be written, which is told later
        yield
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def extractor_file(images: ImageSet) -> Path:
    """Return where the extractor of a set is kept: a file for each content, with its labels, and size."""
    digest = hashlib.sha256(f"{images.fingerprint}/{images.image_size}".encode())
    if images.labels is not None:
        digest.update(images.labels.cpu().contiguous().numpy().tobytes())
    return cache_folder() / "extractors" / f"cnn-{images.image_size}px-{digest.hexdigest()[:16]}.pt"


def _train_and_keep(
    opened: LabelledSet, seed: int, epochs: int | None, device: torch.device | str
) -> PictureExtractor:
    extractor = train_extractor(
        opened.images, seed, epochs, names=opened.names, mirror=opened.mirror, device=device
    )
    path = extractor_file(opened.images)
    try:
        save_picture_extractor(extractor, path)
    except OSError as error:
        log.warning("The extractor %s is not kept for the next run: %s", extractor.name, error)
    return extractor


def _lesson(
    images: ImageSet, size: int, names: tuple[str, ...], mirror: bool, device: torch.device
) -> _Lesson:
    """Choose what is learnt, and bring the pictures to the network's size."""
    order = torch.randperm(len(images), generator=generator_for(0, "extractor", "pictures"))
    chosen = order[:_MOST_PICTURES].sort().values
    pixels = torch.cat(
        [resized(images.pixels(part), size) for part in torch.split(chosen, _BATCH_WITHOUT_GRADIENT)]
    )
    pixels = pixels.to(device)
    labels = images.labels
    if labels is not None and labels.ndim == 2 and labels.is_floating_point():
        known = names if len(names) == labels.shape[1] else tuple(map(str, range(labels.shape[1])))
        return _Lesson("attributes", known, pixels, labels[chosen].float().to(device), mirror)
    found = torch.empty(0) if labels is None else torch.unique(labels)
    if labels is not None and labels.ndim == 1 and len(found) > 1:
        known = tuple(names[int(i)] if 0 <= int(i) < len(names) else str(int(i)) for i in found)
        codes = torch.searchsorted(found, labels[chosen])
        return _Lesson("classes", known, pixels, codes.to(device), mirror)
    degrees = tuple(f"{90 * quarter} degrees" for quarter in range(_QUARTERS))
    nothing = torch.zeros(len(pixels), dtype=torch.int64, device=device)
    return _Lesson("rotations", degrees, pixels, nothing, mirror)


def _epochs_for(count: int) -> int:
    """Return how many passes over ``count`` pictures are worth their time."""
    fewest, most = _EPOCHS
    return min(max(math.ceil(_PICTURES_TO_SEE / count), fewest), most)


def _train(network: PictureNetwork, lesson: _Lesson, kept: Tensor, epochs: int, seed: int) -> None:
    steps = epochs * math.ceil(len(kept) / _BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=_LEARNING_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=steps)
    generator = generator_for(seed, "extractor", "damage")
    network.train()
    for pictures, wanted in _shuffled(lesson, kept, epochs, seed):
        pictures, damage = damaged(pictures, generator)
        logits, seen = network(pictures)
        whole = damage.sum(dim=1) == 0
        loss = _loss(logits[whole], wanted[whole]) + _DAMAGE_WEIGHT * F.mse_loss(seen, damage)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()


def _loss(logits: Tensor, wanted: Tensor) -> Tensor:
    if wanted.is_floating_point():
        return F.binary_cross_entropy_with_logits(logits, wanted)
    return F.cross_entropy(logits, wanted, label_smoothing=0.05)


def _shuffled(lesson: _Lesson, kept: Tensor, epochs: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield augmented batches (B, 3, size, size) in [-1, 1] with what they should be named."""
    for epoch in range(epochs):
        generator = generator_for(seed, "extractor", "epoch", epoch)
        for chosen in torch.split(kept[torch.randperm(len(kept), generator=generator)], _BATCH):
            pixels = augmented(lesson.pixels, chosen, lesson.mirror, generator)
            wanted = lesson.wanted[chosen.to(lesson.wanted.device)]
            if lesson.kind == "rotations":
                quarters = torch.randint(_QUARTERS, (len(chosen),), generator=generator)
                pixels, wanted = turned(pixels, quarters), quarters.to(wanted.device)
            yield as_input(pixels), wanted


@torch.no_grad()
def _set_scale(network: PictureNetwork, pixels: Tensor, name: str) -> None:
    """Scale the features such that their total variance over the pictures is 100."""
    statistics = FeatureStatistics()
    for part in torch.split(pixels, _BATCH_WITHOUT_GRADIENT):
        statistics.update(network.trunk(as_input(part)))
    variance = float(statistics.compute()[1].trace())
    if not math.isfinite(variance) or variance <= 0:
        raise UserError(
            f"Expected pictures that differ in {name}, got features with the total variance {variance}. Look "
            "at the pictures: an extractor can learn nothing from them."
        )
    network.scale.fill_((_TOTAL_VARIANCE / variance) ** 0.5)


@torch.no_grad()
def _accuracy(network: PictureNetwork, lesson: _Lesson, held_out: Tensor) -> dict[str, float]:
    """Return the share of held-out pictures that are named rightly; rotations are tried in all four."""
    right = []
    for chosen in torch.split(held_out.to(lesson.pixels.device), _BATCH_WITHOUT_GRADIENT):
        pixels, wanted = lesson.pixels[chosen], lesson.wanted[chosen]
        if lesson.kind == "rotations":
            for quarter in range(_QUARTERS):
                named = network(as_input(pixels.rot90(quarter, (2, 3))))[0].argmax(dim=1)
                right.append(named == quarter)
        elif lesson.kind == "classes":
            right.append(network(as_input(pixels))[0].argmax(dim=1) == wanted)
        else:
            right.append((network(as_input(pixels))[0] > 0) == (wanted > 0.5))
    shares = torch.cat(right).double().mean(dim=0)
    if lesson.kind == "attributes":
        return dict(zip(lesson.names, shares.tolist(), strict=True))
    return {"class" if lesson.kind == "classes" else "rotation": float(shares)}
