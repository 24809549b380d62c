"""Pictures beside reduced ones, prepared as BasicSR's baseline prepares DIV2K."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import functional as transforms

from sgc_distiller.data.augment import uniform
from sgc_distiller.data.bicubic import reduced
from sgc_distiller.data.decoding import (
    Array,
    check_choice,
    choose,
    decode_file,
    file_facts,
    in_threads,
    memory_limit,
    open_folder,
    picture_size,
)
from sgc_distiller.data.images import ImageSet
from sgc_distiller.data.photos import PHOTOS, photo_pieces
from sgc_distiller.data.superresolution_folders import find_split
from sgc_distiller.errors import UserError

__all__ = ["SuperResolutionSet", "cut_into_tiles", "open_superresolution"]

log = logging.getLogger(__name__)

_SHOWN = 5


class SuperResolutionSet:
    """Pictures ``high`` of any sizes, and what bicubic reduction by a whole number makes of them, ``low``.

    Pictures lose the rows and columns at their lower and right edges that the scale does not divide. They and
    their reductions are kept in memory if they are given as tensors; of a file, only the part that a crop
    needs is reduced, with the same result.

    Args:
        name: What the set is, with its split and count; metrics carry it.
        pictures: Each one as uint8 (3, H, W), or the file to decode when it is needed.
        names: Name of each picture.
        folders: Which pictures each test set (or folder of training pictures) is made of, by its name.
        crop_size: Height and width of the large samples in pixels.
        scale: How many times smaller the small ones are.
        split: ``train`` or ``test``.
    """

    def __init__(
        self,
        name: str,
        pictures: Sequence[Tensor] | Sequence[Path],
        names: Sequence[str],
        folders: dict[str, list[int]],
        crop_size: int,
        scale: int,
        split: str,
    ) -> None:
        self.name = name
        self.names = list(names)
        self.folders = folders
        self.crop_size = crop_size
        self.scale = scale
        self.split = split
        self._highs: list[Tensor | Path] = [
            _whole(item, scale) if isinstance(item, Tensor) else item for item in pictures
        ]
        kept = [item for item in self._highs if isinstance(item, Tensor)]
        self._lows = in_threads(partial(reduced, factor=scale), kept)  # all, or none

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self._highs)

    @property
    def in_memory(self) -> bool:
        """Whether all pictures are decoded already."""
        return bool(self._lows)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the content: of all pixels, or of each file's path, size and time of change."""
        digest = hashlib.sha256(f"superresolution/{self.crop_size}/{self.scale}/{len(self)}".encode())
        for item in self._highs:
            if isinstance(item, Tensor):
                digest.update(f"\n{tuple(item.shape)}".encode())
                digest.update(item.contiguous().numpy().data)
            else:
                digest.update(file_facts(item))
        return digest.hexdigest()

    def pair(self, index: int) -> tuple[Tensor, Tensor]:
        """Return a whole picture and its reduction, small one first: uint8 (3, h, w) and (3, H, W).

        Raises:
            UserError: A file cannot be decoded.
        """
        high = self._high(index)
        return (self._lows[index] if self._lows else reduced(high, self.scale)), high

    def load(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Return ``low``, uint8 (B, 3, crop / scale, crop / scale), and ``high``, uint8 (B, 3, crop, crop).

        Args:
            indices: Which pictures.
            seeds: One integer a picture, from which its crop is drawn, and whether it is mirrored left to
                right, top to bottom and along the diagonal; ``None`` for the centre as it is.

        Raises:
            UserError: A file cannot be decoded, or a picture is smaller than the crop.
        """
        if seeds is None:
            draws = np.tile([[0.5, 0.5, 1.0, 1.0, 1.0]], (len(indices), 1))
        else:
            draws = uniform(seeds, 5)
        jobs = list(zip(indices, draws.tolist(), strict=True))
        both = [self._sample(job) for job in jobs] if self._lows else in_threads(self._sample, jobs)
        return {
            "low": torch.from_numpy(np.stack([low for low, _ in both])),
            "high": torch.from_numpy(np.stack([high for _, high in both])),
        }

    def tiles(self, size: int) -> ImageSet:
        """Return all squares of ``size`` pixels that the large pictures can be cut into, in memory.

        Raises:
            UserError: No picture is large enough, or a file cannot be decoded.
        """
        pixels = torch.cat([cut_into_tiles(self._high(index), size) for index in range(len(self))])
        if not len(pixels):
            raise UserError(
                f"Expected pictures of at least {size} pixels in {self.name}, got only smaller ones."
            )
        return ImageSet(f"{self.name}-tiles{len(pixels)}", pixels, size, 3)

    def _high(self, index: int) -> Tensor:
        item = self._highs[index]
        return item if isinstance(item, Tensor) else _decode(item, self.scale)

    def _sample(self, job: tuple[int, list[float]]) -> tuple[Array, Array]:
        """Return a small crop and the large one that it shows."""
        index, (down, right, *flips) = job
        high, side = self._high(index), self.crop_size // self.scale
        rows, columns = high.shape[1] // self.scale - side + 1, high.shape[2] // self.scale - side + 1
        if min(rows, columns) < 1:
            raise UserError(
                f"Expected pictures of at least {self.crop_size}x{self.crop_size} pixels in {self.name}, "
                f"got {self.names[index]} with {high.shape[2]}x{high.shape[1]}. Choose a smaller crop or "
                "remove it."
            )
        top, left = int(down * rows), int(right * columns)
        if self._lows:
            low = self._lows[index][:, top : top + side, left : left + side]
        else:
            low = reduced(high, self.scale, (top, left, side))
        large = (slice(item * self.scale, (item + side) * self.scale) for item in (top, left))
        return _turned(low.numpy(), flips), _turned(high[(slice(None), *large)].numpy(), flips)


def cut_into_tiles(picture: Tensor, size: int) -> Tensor:
    """Return all squares (N, C, size, size) of a picture (C, H, W) that do not overlap; N may be 0."""
    channels, rows, columns = picture.shape[0], picture.shape[1] // size, picture.shape[2] // size
    cut = picture[:, : rows * size, : columns * size].reshape(channels, rows, size, columns, size)
    return cut.permute(1, 3, 0, 2, 4).flatten(0, 1)  # (rows * columns, C, size, size)


def open_superresolution(
    source: str | Path | None,
    crop_size: int = 128,
    scale: int = 4,
    split: str = "train",
    fraction: float = 1.0,
) -> SuperResolutionSet:
    """Open a folder of pictures of any sizes, to be reduced as benchmarks of super-resolution are.

    Grey pictures become RGB. Training pictures that are smaller than the crop are skipped with a warning.
    Files of many megapixels are slow to decode for one crop each: cut them into pieces of some 480 pixels
    first, as the baseline does with DIV2K.

    Args:
        source: A folder with ``train`` and ``test``. Or one with other subfolders: those called like a known
            benchmark (``Set5``, ``Set14``, ``BSD100``, ``Urban100``, ``Manga109``, ``val``, ``test`` or with
            ``valid`` in the name) are test sets, all else is for training; folders of reduced pictures
            (``LR`` in the name) are left out. Or ``None`` or ``"photos"`` for pieces of the two photographs
            that scikit-learn ships, their right quarters for the test.
        crop_size: Height and width of the large samples in pixels.
        scale: How many times smaller the small ones are, at least 2.
        split: ``train`` or ``test``.
        fraction: Share of the pictures to use, in (0, 1]; below 1 a fixed random choice of them.

    Raises:
        UserError: The source is missing, empty or damaged, or an argument is out of range.
    """
    check_choice(crop_size, split, fraction)
    if scale < 2 or crop_size % scale:
        raise UserError(
            f"Expected a scale of at least 2 that divides the crop of {crop_size} pixels, got {scale}."
        )
    if source is None or source == PHOTOS:
        return _open_photos(crop_size, scale, split, fraction)
    advice = (
        "Give a folder with the subfolders train and test, or with test sets under their usual names such as "
        f"Set5 beside folders of training pictures, or {PHOTOS!r} for the set that comes with the package."
    )
    folder = open_folder(source, advice, [PHOTOS])
    groups = find_split(folder, split, advice)
    files = [file for group in groups.values() for file in group]
    sizes = dict(zip(files, in_threads(picture_size, files), strict=True))
    files = _large_enough(folder, sizes, crop_size) if split == "train" else files
    name, kept = choose(f"sr:{folder.resolve().name}", split, len(files), fraction)
    files = [files[index] for index in kept]
    places = {file: index for index, file in enumerate(files)}
    members = {group: [places[file] for file in found if file in places] for group, found in groups.items()}
    folders = {group: indices for group, indices in members.items() if indices}
    names = [file.relative_to(folder).as_posix() for file in files]
    need = sum(3 * sizes[file][0] * sizes[file][1] for file in files) * (1 + scale**-2)
    pictures: Sequence[Tensor] | Sequence[Path] = files
    if need <= memory_limit():
        pictures = in_threads(partial(_decode, scale=scale), files)
    else:
        log.info("%s needs more than %d MiB; decoding files as needed.", name, memory_limit() // 2**20)
    return SuperResolutionSet(name, pictures, names, folders, crop_size, scale, split)


def _open_photos(crop_size: int, scale: int, split: str, fraction: float) -> SuperResolutionSet:
    pieces = photo_pieces(split)
    smallest = min(min(piece.shape[1:]) for _, piece in pieces)
    if split == "train" and smallest - smallest % scale < crop_size:
        raise UserError(
            f"Expected a crop of at most {smallest - smallest % scale} pixels for the set {PHOTOS!r}, got "
            f"{crop_size}. Choose a smaller one, or a folder of larger pictures."
        )
    name, kept = choose(PHOTOS, split, len(pieces), fraction)
    chosen = [pieces[index] for index in kept]
    names, pictures = [item for item, _ in chosen], [piece for _, piece in chosen]
    folders = {PHOTOS: list(range(len(chosen)))}
    return SuperResolutionSet(name, pictures, names, folders, crop_size, scale, split)


def _large_enough(folder: Path, sizes: dict[Path, tuple[int, int]], crop_size: int) -> list[Path]:
    """Return the files whose pictures the crop fits into; a warning names the others."""
    files = [file for file, size in sizes.items() if min(size) >= crop_size]
    small = [file.relative_to(folder).as_posix() for file, size in sizes.items() if min(size) < crop_size]
    if small:
        shown = ", ".join(small[:_SHOWN]) + (", ..." if len(small) > _SHOWN else "")
        text = f"{len(small):,} of the {len(sizes):,} training pictures in {folder} are smaller than the crop"
        if not files:
            raise UserError(
                f"{text} of {crop_size} pixels: {shown}. Choose a smaller crop or other pictures."
            )
        log.warning("%s of %d pixels and are skipped: %s", text, crop_size, shown)
    return files


def _turned(pixels: Array, flips: Sequence[float]) -> Array:
    """Mirror a square (C, H, W) left to right, top to bottom and along the diagonal, each below 0.5."""
    across, down, diagonal = (flip < 0.5 for flip in flips)
    pixels = pixels[..., ::-1] if across else pixels
    pixels = pixels[..., ::-1, :] if down else pixels
    return pixels.swapaxes(-1, -2) if diagonal else pixels


def _whole(high: Tensor, scale: int) -> Tensor:
    """Return a picture without the rows and columns that the scale does not divide."""
    height, width = (side - side % scale for side in high.shape[1:])
    return high[:, :height, :width]


def _decode(file: Path, scale: int) -> Tensor:
    return _whole(transforms.pil_to_tensor(decode_file(file)), scale)
