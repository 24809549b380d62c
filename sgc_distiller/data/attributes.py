"""Pictures with attributes, prepared as StarGAN's baseline prepares CelebA."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import functional as transforms

from sgc_distiller.data.attribute_file import BUILT_IN, attribute_table, chosen_columns
from sgc_distiller.data.augment import uniform
from sgc_distiller.data.decoding import check_choice, choose, decode_file, open_store
from sgc_distiller.data.digits import (
    DIGIT_ATTRIBUTES,
    coloured_digit,
    digit_attributes,
    digit_indices,
    digit_pictures,
)
from sgc_distiller.data.images import ImageSet
from sgc_distiller.errors import UserError

__all__ = ["AttributeSet", "open_attributes"]

_TEST_COUNT = 1999  # the baseline's code takes lines while their number, counted from 1, is below 2000


class AttributeSet:
    """Pictures with attributes; mirrored left to right half of the time when seeds are given.

    Args:
        images: The pictures, with their attributes in {0, 1} as float32 (N, attributes) for labels.
        attributes: The attributes' names.
    """

    def __init__(self, images: ImageSet, attributes: Sequence[str]) -> None:
        assert images.labels is not None
        assert images.labels.shape == (len(images), len(attributes))
        self.images = images
        self.attributes = tuple(attributes)
        self.labels = images.labels

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.images)

    @property
    def name(self) -> str:
        """What the set is, with its split and count; metrics carry it."""
        return self.images.name

    @property
    def in_memory(self) -> bool:
        """Whether all pictures are decoded already."""
        return self.images.in_memory

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the pictures, see `ImageSet.fingerprint`, and of their attributes."""
        digest = hashlib.sha256(f"{self.images.fingerprint}/{'/'.join(self.attributes)}".encode())
        digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()

    def load(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Return ``real``, uint8 (B, 3, H, W), and ``labels`` in {0, 1}, float32 (B, attributes).

        Args:
            indices: Which pictures.
            seeds: One integer a picture, by which it is mirrored or not; ``None`` to mirror none.

        Raises:
            UserError: A file cannot be decoded.
        """
        chosen = torch.as_tensor(indices)
        real = self.images.pixels(chosen)
        if seeds is not None:
            for picture, draw in zip(real.numpy(), uniform(seeds, 1)[:, 0].tolist(), strict=True):
                if draw < 0.5:
                    picture[...] = picture[..., ::-1].copy()
        return {"real": real, "labels": self.labels[chosen]}


def open_attributes(
    source: str | Path | None,
    image_size: int,
    attributes: Sequence[str] | None = None,
    split: str = "train",
    fraction: float = 1.0,
    test_last: int = 0,
    crop_size: int = 178,
) -> AttributeSet:
    """Open a folder with an attribute file in CelebA's format; see `attribute_table`.

    The centre of a picture, a square of ``crop_size`` pixels or of its shorter side if that is less, is
    resized by PIL's bilinear filter. The split is StarGAN's: the lines are shuffled by Python's
    ``random.seed(1234)``, and the first 1,999, or a fifth if that is less, are the test set.

    Args:
        source: A folder, or ``None`` or ``"coloured-digits"`` for scikit-learn's digits in red, green or blue
            ink on black or white paper.
        image_size: Height and width to bring the pictures to, in pixels.
        attributes: Names of the attributes to use; ``None`` for the baseline's five where the file has them,
            else for all.
        split: ``train`` or ``test``.
        fraction: Share of the pictures to use, in (0, 1]; below 1 a fixed random choice of them.
        test_last: If above 0, this many last lines are the test set instead.
        crop_size: Side of the square in pixels; 178 is right for CelebA's aligned faces.

    Raises:
        UserError: The source is missing, empty or damaged, an attribute unknown or an argument out of range.
    """
    check_choice(image_size, split, fraction)
    if crop_size < 1:
        raise UserError(f"Expected a crop size of at least 1 pixel, got {crop_size}.")
    if source is None or source == BUILT_IN:
        return _open_digits(image_size, attributes, split, fraction, test_last)
    names, files, values = attribute_table(source)
    folder = Path(source).expanduser().resolve().name
    columns = chosen_columns(names, attributes, f"the attribute file in {source}")
    rows = _shuffled(len(files), split) if test_last == 0 else _ordered(len(files), split, test_last)
    name, kept = choose(f"attributes:{folder}", split, len(rows), fraction)
    rows = [rows[index] for index in kept]
    decode = partial(_decode, size=image_size, crop_size=crop_size)
    store = open_store(name, [files[row] for row in rows], decode, 3 * image_size**2)
    labels = torch.from_numpy((values[rows][:, columns] > 0).astype(np.float32))
    return AttributeSet(ImageSet(name, store, image_size, 3, labels), [names[column] for column in columns])


def _open_digits(
    size: int, attributes: Sequence[str] | None, split: str, fraction: float, test_last: int
) -> AttributeSet:
    columns = chosen_columns(DIGIT_ATTRIBUTES, attributes, f"the set {BUILT_IN!r}")
    rows: Sequence[int] = digit_indices(split)
    if test_last:
        rows = _ordered(len(digit_pictures()[0]), split, test_last)
    name, kept = choose(BUILT_IN, split, len(rows), fraction)
    rows = [rows[index] for index in kept]
    store = open_store(name, rows, partial(coloured_digit, size=size), 3 * size**2)
    images = ImageSet(name, store, size, 3, digit_attributes(rows)[:, columns])
    return AttributeSet(images, [DIGIT_ATTRIBUTES[column] for column in columns])


def _shuffled(count: int, split: str) -> list[int]:
    """Return the lines of a split in the order that the baseline's shuffle gives them."""
    order = list(range(count))
    random.Random(1234).shuffle(order)
    tests = min(_TEST_COUNT, count // 5)
    rows = order[:tests] if split == "test" else order[tests:]
    if not rows:
        raise UserError(f"Expected at least 5 pictures to divide into train and test, got {count}.")
    return rows


def _ordered(count: int, split: str, test_last: int) -> list[int]:
    """Return the lines of a split of which the last ones are the test set."""
    if not 0 < test_last < count:
        raise UserError(
            f"Expected test_last, the size of the test set, between 1 and {count - 1:,} for {count:,} "
            f"pictures, got {test_last:,}."
        )
    first = count - test_last
    return list(range(first, count) if split == "test" else range(first))


def _decode(file: Path, size: int, crop_size: int) -> Tensor:
    """Return the centre of the picture in ``file`` as uint8 (3, size, size)."""
    image = decode_file(file)
    side = min(crop_size, *image.size)
    pixels: Tensor = transforms.pil_to_tensor(
        transforms.resize(transforms.center_crop(image, [side, side]), [size, size])
    )
    return pixels
