"""MNIST's file format: idx files, also compressed by gzip."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from sgc_distiller.data.decoding import Array
from sgc_distiller.errors import UserError

__all__ = ["find_idx_folder", "read_idx_split"]

_PREFIX = {"train": "train", "test": "t10k"}


def find_idx_folder(folder: Path) -> Path | None:
    """Return where idx files of pictures lie: in the folder, or below ``raw`` or ``MNIST/raw``."""
    for place in (folder, folder / "raw", folder / "MNIST" / "raw"):
        if any(place.glob("*-images-idx3-ubyte*")):
            return place
    return None


def read_idx_split(folder: Path, split: str) -> tuple[Array, Array | None]:
    """Return a split's pictures, uint8 (N, H, W), and their labels (N,) if there are any.

    Raises:
        UserError: A file is missing, empty or damaged, or the labels are more or fewer than the pictures.
    """
    expected = f"{_PREFIX[split]}-images-idx3-ubyte"
    images = _find(folder, expected)
    if images is None:
        raise UserError(f"Expected the file {expected} or {expected}.gz in {folder}, got neither.")
    pixels = _read(images, dimensions=3)
    if pixels.size == 0:
        raise UserError(f"Expected pictures in {images}, got none: its sizes are {pixels.shape}.")
    label_file = _find(folder, f"{_PREFIX[split]}-labels-idx1-ubyte")
    labels = None if label_file is None else _read(label_file, dimensions=1)
    if labels is not None and len(labels) != len(pixels):
        counts = f"got {len(labels)} for the {len(pixels)} pictures of {images}"
        raise UserError(f"Expected one label a picture in {label_file}, {counts}. Fetch both files again.")
    return pixels, labels


def _find(folder: Path, name: str) -> Path | None:
    return next((file for file in (folder / name, folder / f"{name}.gz") if file.is_file()), None)


def _read(file: Path, dimensions: int) -> Array:
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
