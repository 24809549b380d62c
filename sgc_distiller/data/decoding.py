"""From files of pictures to pixels: find them, decode them, keep them in memory if they need little."""

from __future__ import annotations

import importlib
import logging
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info
from torchvision.transforms import functional as transforms

from sgc_distiller.errors import UserError, nearest
from sgc_distiller.seeding import generator_for

__all__ = [
    "SUFFIXES",
    "Array",
    "Items",
    "Store",
    "all_files",
    "check_choice",
    "choose",
    "decode_file",
    "file_facts",
    "find_pictures",
    "fit_picture",
    "in_threads",
    "memory_limit",
    "open_folder",
    "open_store",
    "picture_size",
]

log = logging.getLogger(__name__)

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""Endings of the files that count as pictures, in lower case."""

Array = npt.NDArray[Any]
Items = Sequence[Path] | Sequence[int]
_T = TypeVar("_T")
_R = TypeVar("_R")
_DECODE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)


class Store:
    """Arrays of one shape as uint8 (N, ...): in memory, or made when they are needed.

    Args:
        source: All of them as one tensor; or one file each, or the number of a drawing each.
        decode: Returns the content of a file, or the drawing; a module's function or a `functools.partial` of
            one, so that worker processes can be sent it. Not needed for a tensor.
    """

    def __init__(self, source: Tensor | Items, decode: Callable[[Any], Tensor] | None = None) -> None:
        assert isinstance(source, Tensor) or decode is not None
        self.source = source
        self.decode = decode

    def __len__(self) -> int:
        """Return the number of arrays."""
        return len(self.source)

    @property
    def in_memory(self) -> bool:
        """Whether all of them are decoded already."""
        return isinstance(self.source, Tensor)

    def stacked(self, indices: Tensor | Sequence[int]) -> Tensor:
        """Return the arrays at ``indices`` as uint8 (B, ...) on the CPU.

        Raises:
            UserError: A file cannot be decoded.
        """
        chosen = torch.as_tensor(indices)
        if isinstance(self.source, Tensor):
            return self.source[chosen]
        assert self.decode is not None
        return torch.stack(in_threads(self.decode, [self.source[i] for i in chosen.tolist()]))

    def rows(self, indices: Sequence[int]) -> list[Array]:
        """Return the arrays at ``indices`` one by one; those in memory are views, which cost nothing.

        Raises:
            UserError: A file cannot be decoded.
        """
        if isinstance(self.source, Tensor):
            whole = self.source.numpy()
            return [whole[index] for index in indices]
        return list(self.stacked(indices).numpy())

    def facts(self) -> Iterator[bytes | memoryview]:
        """Yield what a fingerprint is made of: all bytes, or each file's path, size and time of change."""
        if isinstance(self.source, Tensor):
            yield self.source.contiguous().numpy().data
        else:
            for item in self.source:
                yield file_facts(item) if isinstance(item, Path) else f"\n{item}".encode()


def file_facts(file: Path) -> bytes:
    """Return a file's path, size and time of change."""
    found = file.stat()
    return f"\n{file}/{found.st_size}/{found.st_mtime_ns}".encode()


def memory_limit() -> int:
    """Return ``sgc_distiller.data.MEMORY_LIMIT``, which a program may set before it opens a set."""
    return int(importlib.import_module(__name__.rpartition(".")[0]).MEMORY_LIMIT)


def open_store(name: str, items: Items, decode: Callable[[Any], Tensor], bytes_each: int) -> Store:
    """Return a store of files or drawings, decoded now if they need no more than the memory limit.

    Args:
        name: What the log calls the set.
        items: One file, or number of a drawing, each.
        decode: Returns the content of one as uint8.
        bytes_each: How many bytes that is.

    Raises:
        UserError: A file that is decoded now cannot be.
    """
    if len(items) * bytes_each <= memory_limit():
        return Store(torch.stack(in_threads(decode, items)))
    log.info("%s needs more than %d MiB; decoding files as needed.", name, memory_limit() // 2**20)
    return Store(items, decode)


def in_threads(work: Callable[[_T], _R], items: Sequence[_T]) -> list[_R]:
    """Return ``work(item)`` for all items; threads share the work, but not in a worker process."""
    if get_worker_info() is not None:
        return [work(item) for item in items]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(work, items))


def decode_file(file: Path, channels: int = 3) -> Image.Image:
    """Return the picture in a file as RGB, or as grey for one channel; 16 bits are scaled to 8.

    Raises:
        UserError: The file is no picture, or part of it is missing.
    """
    try:
        with Image.open(file) as opened:
            image: Image.Image = opened
            if image.mode.startswith("I"):  # 16 bits, which PIL would clip to 255
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            return image.convert("L" if channels == 1 else "RGB")
    except _DECODE_ERRORS as error:
        raise _cannot_decode(file, error) from error


def picture_size(file: Path) -> tuple[int, int]:
    """Return a picture's width and height from the head of its file.

    Raises:
        UserError: The file is no picture.
    """
    try:
        with Image.open(file) as opened:
            return opened.size
    except _DECODE_ERRORS as error:
        raise _cannot_decode(file, error) from error


def _cannot_decode(file: Path, error: Exception) -> UserError:
    return UserError(f"Cannot decode the picture {file}: {error}. Repair or remove it.")


def fit_picture(image: Image.Image, size: int) -> Tensor:
    """Resize the shorter side to ``size`` (bilinear), crop the centre, and return uint8 (C, size, size)."""
    if image.size != (size, size):
        image = transforms.center_crop(transforms.resize(image, [size]), [size, size])
    pixels: Tensor = transforms.pil_to_tensor(image)
    return pixels


def all_files(folder: Path) -> list[Path]:
    """Return all pictures below a folder, sorted; hidden files do not count."""
    found = (file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    return sorted(file for file in found if not file.name.startswith("."))


def find_pictures(folder: Path) -> list[Path]:
    """Return all pictures below a folder, sorted.

    Raises:
        UserError: There are none.
    """
    files = all_files(folder)
    if not files:
        endings = ", ".join(sorted(SUFFIXES))
        raise UserError(
            f"Expected pictures in {folder}, got none. Files with these endings count: {endings}."
        )
    return files


def open_folder(source: str | Path, advice: str, built_in: Sequence[str] = ()) -> Path:
    """Return the folder that ``source`` names.

    Args:
        source: What the user gave.
        advice: Sentence that says what may be given.
        built_in: Names that would have been accepted as well.

    Raises:
        UserError: There is no such folder.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UserError(
            f"Expected a folder of pictures, got the file {folder}. Give the folder that holds it."
        )
    siblings = [item.name for item in folder.parent.iterdir()] if folder.parent.is_dir() else []
    near = nearest(folder.name, [*siblings, *built_in])
    raise UserError(f"The data folder {folder} does not exist.{near} {advice}")


def check_choice(image_size: int, split: str, fraction: float) -> None:
    """Refuse a size, a split or a fraction that no set can have.

    Raises:
        UserError: One of them is out of range.
    """
    if image_size < 1:
        raise UserError(f"Expected an image size of at least 1 pixel, got {image_size}.")
    if split not in ("train", "test"):
        raise UserError(f"Expected the split 'train' or 'test', got {split!r}.")
    if not 0 < fraction <= 1:
        raise UserError(f"Expected a fraction of the pictures above 0 and at most 1, got {fraction}.")


def choose(base: str, split: str, count: int, fraction: float) -> tuple[str, list[int]]:
    """Return a set's name and the indices of its pictures: all, or a fixed random choice."""
    if fraction == 1:
        return f"{base}-{split}{count}", list(range(count))
    kept = max(1, round(count * fraction))
    order = torch.randperm(count, generator=generator_for(0, "fraction", count))
    return f"{base}-{split}{kept}of{count}", sorted(order[:kept].tolist())
