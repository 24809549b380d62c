"""Single pictures: the digits that scikit-learn ships, MNIST's files, folders of images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from sgc_distiller.data.decoding import (
    Array,
    Store,
    check_choice,
    choose,
    decode_file,
    find_pictures,
    fit_picture,
    open_folder,
    open_store,
)
from sgc_distiller.data.digits import digit_pictures
from sgc_distiller.data.idx import find_idx_folder, read_idx_split
from sgc_distiller.errors import UserError

__all__ = ["ImageSet", "normalise", "open_images"]


class ImageSet(Dataset[Tensor]):
    """A set of pictures of one size; ``images[i]`` is a float32 tensor (C, H, W) in [-1, 1].

    Args:
        name: What the set is, with its split and count, such as ``mnist-test10000``; metrics carry it.
        pixels: All pictures as uint8 (N, C, H, W), or the files to decode when they are needed, or a store.
        image_size: Height and width in pixels.
        channels: 1 (grey) or 3 (RGB).
        labels: Class of each picture as int64 (N,), or its attributes in {0, 1} as float32 (N, attributes),
            where they are known.
    """

    def __init__(
        self,
        name: str,
        pixels: Tensor | Sequence[Path] | Store,
        image_size: int,
        channels: int,
        labels: Tensor | None = None,
    ) -> None:
        self.name = name
        self.image_size = image_size
        self.channels = channels
        self.labels = labels
        decode = partial(_decode, size=image_size, channels=channels)
        self._store = pixels if isinstance(pixels, Store) else Store(pixels, decode)

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self._store)

    def __getitem__(self, index: int) -> Tensor:
        """Return one picture as float32 (C, H, W) in [-1, 1]."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"Expected an index below {len(self)}, got {index}.")
        return normalise(self.pixels([index])[0])

    @property
    def in_memory(self) -> bool:
        """Whether all pictures are decoded already."""
        return self._store.in_memory

    def pixels(self, indices: Tensor | Sequence[int]) -> Tensor:
        """Return the pictures at ``indices`` as uint8 (B, C, H, W) on the CPU.

        Raises:
            UserError: A file cannot be decoded.
        """
        return self._store.stacked(indices)

    def load(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Return ``real``, uint8 (B, C, H, W); nothing is drawn from the seeds.

        Raises:
            UserError: A file cannot be decoded.
        """
        return {"real": self.pixels(indices)}

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the content: of all pixels, or of each file's path, size and time of change."""
        digest = hashlib.sha256(f"{self.image_size}/{self.channels}/{len(self)}".encode())
        for fact in self._store.facts():
            digest.update(fact)
        return digest.hexdigest()


def normalise(pixels: Tensor) -> Tensor:
    """Return uint8 pixels in [0, 255] as float32 in [-1, 1], computed on the device where they are."""
    return pixels.to(torch.float32).div_(255).sub_(0.5).div_(0.5)


def open_images(
    source: str | Path | None,
    image_size: int,
    channels: int,
    split: str = "train",
    fraction: float = 1.0,
) -> ImageSet:
    """Open a set of pictures.

    Args:
        source: ``None`` or ``"digits"`` for the 1,797 handwritten digits that scikit-learn ships, which are
            too few to split: both splits are all of them and the name says ``all``. A folder with MNIST's
            files (``train-images-idx3-ubyte`` and its fellows, also as ``.gz``, also below ``MNIST/raw``).
            Any other folder: all pictures below it, or those below ``train`` and ``test`` if it has both.
            Their shorter side is resized and their centre cropped by PIL as torchvision's ``Resize`` and
            ``CenterCrop`` do.
        image_size: Height and width to bring the pictures to, in pixels.
        channels: 1 for grey, 3 for RGB.
        split: ``train`` or ``test``.
        fraction: Share of the pictures to use, in (0, 1]; below 1 a fixed random choice of them.

    Raises:
        UserError: The source is missing, empty or damaged, or an argument is out of range.
    """
    check_choice(image_size, split, fraction)
    if channels not in (1, 3):
        raise UserError(f"Expected 1 channel (grey) or 3 (RGB), got {channels}.")
    if source is None or source == "digits":
        return _from_arrays("digits", "all", digit_pictures(), image_size, channels, fraction)
    advice = (
        "Give a folder of pictures or of MNIST's files, or 'digits' for the handwritten digits that "
        "scikit-learn ships."
    )
    folder = open_folder(source, advice, ["digits"])
    idx_folder = find_idx_folder(folder)
    if idx_folder is not None:
        name = idx_folder.resolve().parent.name if idx_folder.name == "raw" else idx_folder.resolve().name
        base = "mnist" if name.lower() == "mnist" else f"idx:{name}"
        arrays = read_idx_split(idx_folder, split)
        return _from_arrays(base, split, arrays, image_size, channels, fraction)
    return _open_folder(folder, image_size, channels, split, fraction)


def _from_arrays(
    base: str, split: str, data: tuple[Array, Array | None], image_size: int, channels: int, fraction: float
) -> ImageSet:
    """Build a set in memory from grey pictures, uint8 (N, H, W), and their labels (N,)."""
    pixels, labels = data
    name, chosen = choose(base, split, len(pixels), fraction)
    resized = torch.stack([fit_picture(Image.fromarray(pixels[i]), image_size) for i in chosen])
    resized = resized.expand(-1, channels, -1, -1).contiguous()
    classes = None if labels is None else torch.from_numpy(labels[chosen].astype(np.int64))
    return ImageSet(name, resized, image_size, channels, classes)


def _open_folder(folder: Path, image_size: int, channels: int, split: str, fraction: float) -> ImageSet:
    divided = (folder / "train").is_dir() and (folder / "test").is_dir()
    files = find_pictures(folder / split if divided else folder)
    base = f"folder:{folder.resolve().name}"
    name, chosen = choose(base, split if divided else "", len(files), fraction)
    decode = partial(_decode, size=image_size, channels=channels)
    store = open_store(name, [files[i] for i in chosen], decode, channels * image_size**2)
    return ImageSet(name, store, image_size, channels)


def _decode(file: Path, size: int, channels: int) -> Tensor:
    """Return the picture in ``file`` as uint8 (C, size, size)."""
    return fit_picture(decode_file(file, channels), size)
