"""Pictures to train on and to measure against: bundled digits, MNIST files, folders of images.

A picture is resized (shorter side, bilinear) and centre-cropped by PIL as torchvision's ``Resize`` and
``CenterCrop`` do, and scaled from [0, 255] to [-1, 1]. Sets of up to `MEMORY_LIMIT` bytes are decoded once
and kept as one uint8 tensor, from which a batch is one indexing operation; larger ones are decoded when a
batch needs them. The order of the pictures is a function of the seed and of the batch's number alone.
"""

from __future__ import annotations

import gzip
import hashlib
import logging
import math
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torchvision.transforms import functional as transforms

from sgc_distiller.errors import UserError, nearest
from sgc_distiller.interrupts import ignore_interrupts, uninterrupted
from sgc_distiller.seeding import generator_for

__all__ = ["ImageSet", "batches", "in_order", "normalise", "open_images"]

log = logging.getLogger(__name__)

MEMORY_LIMIT = 512 * 2**20
"""Sets that need at most this many bytes as uint8 are kept in memory."""

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""Endings of the files that count as pictures, in lower case."""

_Array = npt.NDArray[Any]
_IDX_PREFIX = {"train": "train", "test": "t10k"}
_DECODE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)


class ImageSet(Dataset[Tensor]):
    """A set of pictures of one size; ``images[i]`` is a float32 tensor (C, H, W) in [-1, 1].

    Args:
        name: What the set is, with its split and count, such as ``mnist-test10000``; metrics carry it.
        pixels: All pictures as uint8 (N, C, H, W), or the files to decode when they are needed.
        image_size: Height and width in pixels.
        channels: 1 (grey) or 3 (RGB).
        labels: Class of each picture as int64 (N,), where it is known.
    """

    def __init__(
        self,
        name: str,
        pixels: Tensor | Sequence[Path],
        image_size: int,
        channels: int,
        labels: Tensor | None = None,
    ) -> None:
        self.name = name
        self.image_size = image_size
        self.channels = channels
        self.labels = labels
        self._pixels = pixels

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self._pixels)

    def __getitem__(self, index: int) -> Tensor:
        """Return one picture as float32 (C, H, W) in [-1, 1]."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"Expected an index below {len(self)}, got {index}.")
        return normalise(self.pixels([index])[0])

    @property
    def in_memory(self) -> bool:
        """Whether all pictures are decoded already."""
        return isinstance(self._pixels, Tensor)

    def pixels(self, indices: Tensor | Sequence[int]) -> Tensor:
        """Return the pictures at ``indices`` as uint8 (B, C, H, W) on the CPU.

        Raises:
            UserError: A file cannot be decoded.
        """
        chosen = torch.as_tensor(indices)
        if isinstance(self._pixels, Tensor):
            return self._pixels[chosen]
        return _decode_all([self._pixels[i] for i in chosen.tolist()], self.image_size, self.channels)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the content: of all pixels, or of each file's path, size and time of change."""
        digest = hashlib.sha256(f"{self.image_size}/{self.channels}/{len(self)}".encode())
        if isinstance(self._pixels, Tensor):
            digest.update(self._pixels.numpy().data)
        else:
            for file in self._pixels:
                facts = file.stat()
                digest.update(f"\n{file}/{facts.st_size}/{facts.st_mtime_ns}".encode())
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
        image_size: Height and width to bring the pictures to, in pixels.
        channels: 1 for grey, 3 for RGB.
        split: ``train`` or ``test``.
        fraction: Share of the pictures to use, in (0, 1]; below 1 a fixed random choice of them.

    Raises:
        UserError: The source is missing, empty or damaged, or an argument is out of range.
    """
    _check_arguments(image_size, channels, split, fraction)
    if source is None or source == "digits":
        return _open_digits(image_size, channels, fraction)
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise UserError(_no_folder(folder))
    idx_folder = _find_idx_folder(folder)
    if idx_folder is not None:
        return _open_idx(idx_folder, image_size, channels, split, fraction)
    return _open_folder(folder, image_size, channels, split, fraction)


def batches(
    images: ImageSet,
    batch_size: int,
    seed: int,
    start: int = 0,
    workers: int = 0,
    device: torch.device | str | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Yield shuffled batches ``{"real": (B, C, H, W) float32 in [-1, 1]}`` without end.

    Every pass over the set has a new order and ceil(N / B) batches, of which the last may be smaller. Batch
    number i, counted over all passes, depends only on the seed and on i, so that a run which starts at batch
    k sees what an uninterrupted one sees there.

    Args:
        images: The set.
        batch_size: Pictures in a batch, at least 1.
        seed: The run's seed.
        start: Number of the first batch to yield, from 0.
        workers: Processes that decode files. A set in memory needs none and is indexed in place.
        device: Where the batches go; uint8 pixels travel there and become float32 there. Copies to a GPU are
            asynchronous, from pinned memory.

    Raises:
        UserError: A number is out of range, or a file cannot be decoded.
    """
    if batch_size < 1 or start < 0 or workers < 0:
        given = f"batch_size {batch_size}, start {start}, workers {workers}"
        raise UserError(f"Expected batch_size >= 1, start >= 0 and workers >= 0, got {given}.")
    order = _Order(len(images), batch_size, seed, start)
    target = torch.device("cpu" if device is None else device)
    return _generate(images, order, 0 if images.in_memory else workers, target)


def in_order(images: ImageSet, batch_size: int, device: torch.device | str | None = None) -> Iterator[Tensor]:
    """Yield all pictures once, unshuffled, as float32 batches (B, C, H, W) in [-1, 1] on ``device``."""
    target = torch.device("cpu" if device is None else device)
    for first in range(0, len(images), batch_size):
        chosen = torch.arange(first, min(first + batch_size, len(images)))
        yield _to_device(images.pixels(chosen), target)


class _Order:
    """The index lists of all batches from number ``start`` on, for iteration without end."""

    def __init__(self, count: int, batch_size: int, seed: int, start: int) -> None:
        self.count = count
        self.batch_size = batch_size
        self.seed = seed
        self.start = start

    def __iter__(self) -> Iterator[Tensor]:
        passes, skip = divmod(self.start, math.ceil(self.count / self.batch_size))
        while True:
            order = torch.randperm(self.count, generator=generator_for(self.seed, "order", passes))
            for first in range(skip * self.batch_size, self.count, self.batch_size):
                yield order[first : first + self.batch_size]
            passes, skip = passes + 1, 0


class _BatchReader(Dataset[object]):
    """Reads whole batches in a worker process; a mistake of the user's travels back as a value."""

    def __init__(self, images: ImageSet) -> None:
        self.images = images

    def __getitem__(self, indices: Tensor) -> Tensor | UserError:
        try:
            return self.images.pixels(indices)
        except UserError as error:  # raised anew by the reader, without the worker's traceback in its text
            return error


def _generate(
    images: ImageSet, order: _Order, workers: int, device: torch.device
) -> Iterator[dict[str, Tensor]]:
    loader = DataLoader(
        _BatchReader(images),
        batch_size=None,
        sampler=order,
        num_workers=workers,
        pin_memory=workers > 0 and device.type == "cuda",
        generator=generator_for(order.seed, "workers"),  # otherwise it draws from torch's global generator
        worker_init_fn=ignore_interrupts,
    )
    for pixels in uninterrupted(loader):
        if isinstance(pixels, UserError):
            raise pixels
        assert isinstance(pixels, Tensor)
        yield {"real": _to_device(pixels, device)}


def _to_device(pixels: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda" and not pixels.is_pinned():
        pixels = pixels.pin_memory()
    return normalise(pixels.to(device, non_blocking=True))


def _check_arguments(image_size: int, channels: int, split: str, fraction: float) -> None:
    if image_size < 1:
        raise UserError(f"Expected an image size of at least 1 pixel, got {image_size}.")
    if channels not in (1, 3):
        raise UserError(f"Expected 1 channel (grey) or 3 (RGB), got {channels}.")
    if split not in _IDX_PREFIX:
        raise UserError(f"Expected the split 'train' or 'test', got {split!r}.")
    if not 0 < fraction <= 1:
        raise UserError(f"Expected a fraction of the pictures above 0 and at most 1, got {fraction}.")


def _no_folder(folder: Path) -> str:
    if folder.exists():
        return f"Expected a folder of pictures, got the file {folder}. Give the folder that holds it."
    siblings = [item.name for item in folder.parent.iterdir()] if folder.parent.is_dir() else []
    return (
        f"The data folder {folder} does not exist.{nearest(folder.name, siblings)} Give a folder of pictures "
        "or of MNIST's files, or 'digits' for the handwritten digits that scikit-learn ships."
    )


def _choose(base: str, split: str, count: int, fraction: float) -> tuple[str, list[int]]:
    """Return the set's name and the indices of its pictures: all, or a fixed random choice."""
    if fraction == 1:
        return f"{base}-{split}{count}", list(range(count))
    kept = max(1, round(count * fraction))
    order = torch.randperm(count, generator=generator_for(0, "fraction", count))
    return f"{base}-{split}{kept}of{count}", sorted(order[:kept].tolist())


def _open_digits(image_size: int, channels: int, fraction: float) -> ImageSet:
    from sklearn.datasets import load_digits

    bundle = load_digits()
    pixels = np.round(bundle.images * (255 / 16)).astype(np.uint8)
    return _from_arrays("digits", "all", (pixels, bundle.target), image_size, channels, fraction)


def _find_idx_folder(folder: Path) -> Path | None:
    for place in (folder, folder / "raw", folder / "MNIST" / "raw"):
        if any(place.glob("*-images-idx3-ubyte*")):
            return place
    return None


def _open_idx(folder: Path, image_size: int, channels: int, split: str, fraction: float) -> ImageSet:
    expected = f"{_IDX_PREFIX[split]}-images-idx3-ubyte"
    images = _find_idx(folder, expected)
    if images is None:
        raise UserError(f"Expected the file {expected} or {expected}.gz in {folder}, got neither.")
    pixels = _read_idx(images, dimensions=3)
    if pixels.size == 0:
        raise UserError(f"Expected pictures in {images}, got none: its sizes are {pixels.shape}.")
    label_file = _find_idx(folder, f"{_IDX_PREFIX[split]}-labels-idx1-ubyte")
    labels = None if label_file is None else _read_idx(label_file, dimensions=1)
    if labels is not None and len(labels) != len(pixels):
        counts = f"got {len(labels)} for the {len(pixels)} pictures of {images}"
        raise UserError(f"Expected one label a picture in {label_file}, {counts}. Fetch both files again.")
    name = folder.resolve().parent.name if folder.name == "raw" else folder.resolve().name
    base = "mnist" if name.lower() == "mnist" else f"idx:{name}"
    return _from_arrays(base, split, (pixels, labels), image_size, channels, fraction)


def _find_idx(folder: Path, name: str) -> Path | None:
    return next((file for file in (folder / name, folder / f"{name}.gz") if file.is_file()), None)


def _read_idx(file: Path, dimensions: int) -> _Array:
    """Read unsigned bytes in the idx format: 0, 0, 8, number of sizes, big-endian sizes, data."""
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"Cannot read {file}: {error}. Fetch the file again.") from error
    header = 4 + 4 * dimensions
    magic = bytes((0, 0, 8, dimensions))
    if content[:4] != magic or len(content) < header:
        raise UserError(
            f"Expected {file} to begin with the idx header {magic.hex()} and {dimensions} sizes, "
            f"got {content[:4].hex() or 'an empty file'}. Fetch the file again."
        )
    sizes = struct.unpack(f">{dimensions}I", content[4:header])
    if len(content) - header != math.prod(sizes):
        raise UserError(
            f"Expected {math.prod(sizes):,} bytes of data in {file} (its sizes are {sizes}), "
            f"got {len(content) - header:,}. The file is damaged; fetch it again."
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(sizes)


def _from_arrays(
    base: str, split: str, data: tuple[_Array, _Array | None], image_size: int, channels: int, fraction: float
) -> ImageSet:
    """Build a set in memory from grey pictures, uint8 (N, H, W), and their labels (N,)."""
    pixels, labels = data
    name, chosen = _choose(base, split, len(pixels), fraction)
    resized = torch.stack([_fit(Image.fromarray(pixels[i]), image_size) for i in chosen])
    resized = resized.expand(-1, channels, -1, -1).contiguous()
    classes = None if labels is None else torch.from_numpy(labels[chosen].astype(np.int64))
    return ImageSet(name, resized, image_size, channels, classes)


def _open_folder(folder: Path, image_size: int, channels: int, split: str, fraction: float) -> ImageSet:
    divided = (folder / "train").is_dir() and (folder / "test").is_dir()
    root = folder / split if divided else folder
    found = (file for file in root.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    files = sorted(file for file in found if not file.name.startswith("."))
    if not files:
        endings = ", ".join(sorted(SUFFIXES))
        raise UserError(f"Expected pictures in {root}, got none. Files with these endings count: {endings}.")
    base = f"folder:{folder.resolve().name}"
    name, chosen = _choose(base, split if divided else "", len(files), fraction)
    files = [files[i] for i in chosen]
    if len(files) * channels * image_size**2 > MEMORY_LIMIT:
        log.info("%s needs more than %d MiB; decoding files as needed.", name, MEMORY_LIMIT // 2**20)
        return ImageSet(name, files, image_size, channels)
    return ImageSet(name, _decode_all(files, image_size, channels), image_size, channels)


def _decode_all(files: Sequence[Path], image_size: int, channels: int) -> Tensor:
    """Return the pictures in the files as uint8 (B, C, H, W); threads decode, but not in a worker process."""
    if get_worker_info() is not None:
        return torch.stack([_decode(file, image_size, channels) for file in files])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return torch.stack(list(pool.map(lambda file: _decode(file, image_size, channels), files)))


def _decode(file: Path, image_size: int, channels: int) -> Tensor:
    """Return the picture in ``file`` as uint8 (C, image_size, image_size)."""
    try:
        with Image.open(file) as opened:
            image: Image.Image = opened
            if image.mode.startswith("I"):  # 16 bits, which PIL would clip to 255
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            image = image.convert("L" if channels == 1 else "RGB")
    except _DECODE_ERRORS as error:
        raise UserError(f"Cannot decode the picture {file}: {error}. Repair or remove it.") from error
    return _fit(image, image_size)


def _fit(image: Image.Image, size: int) -> Tensor:
    """Resize the shorter side to ``size``, crop the centre, and return uint8 (C, size, size)."""
    if image.size != (size, size):
        image = transforms.center_crop(transforms.resize(image, [size]), [size, size])
    pixels: Tensor = transforms.pil_to_tensor(image)
    return pixels
