"""Two folders of pictures without pairs, prepared as CycleGAN's baseline prepares them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as transforms

from sgc_distiller.data.augment import crop, uniform
from sgc_distiller.data.decoding import (
    Store,
    check_choice,
    choose,
    decode_file,
    find_pictures,
    open_folder,
    open_store,
)
from sgc_distiller.data.digits import blue_digit, digit_indices, red_digit
from sgc_distiller.data.images import ImageSet
from sgc_distiller.data.views import Views, default_load_size
from sgc_distiller.errors import UserError, nearest

__all__ = ["UnpairedSet", "open_unpaired"]

_BUILT_IN = "red-blue-digits"
_SIDES = ("A", "B")


class UnpairedSet:
    """Two domains of pictures; a sample is a picture of ``A`` and an unrelated one of ``B``.

    There are as many samples as pictures in the larger domain: sample i shows picture i of A, counted round
    and round, and a random one of B.

    Args:
        names: What each domain is, with its split and count, by ``A`` and ``B``.
        views: The pictures of each as uint8 (N, 3, H, W), at any size.
        image_size: Height and width of the samples in pixels.
        load_size: Height and width that random crops are taken from.
        split: ``train`` or ``test``: which view is decoded at once.
    """

    def __init__(
        self, names: dict[str, str], views: dict[str, Views], image_size: int, load_size: int, split: str
    ) -> None:
        self.name = " + ".join(names[side] for side in _SIDES)
        self.image_size = image_size
        self.load_size = load_size
        self._names = names
        self._views = views
        size = load_size if split == "train" else image_size
        self._usual = {side: views[side].at(size) for side in _SIDES}

    def __len__(self) -> int:
        """Return the number of pictures in the larger domain."""
        return max(len(store) for store in self._usual.values())

    @property
    def in_memory(self) -> bool:
        """Whether all pictures are decoded already."""
        return all(store.in_memory for store in self._usual.values())

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the content: of all pixels, or of each file's path, size and time of change."""
        digest = hashlib.sha256(f"unpaired/{self.image_size}/{self.load_size}".encode())
        for side in _SIDES:
            digest.update(f"/{side}{len(self._usual[side])}".encode())
            for fact in self._usual[side].facts():
                digest.update(fact)
        return digest.hexdigest()

    def side(self, side: str) -> ImageSet:
        """Return all pictures of one domain as the test sees them: neither cropped nor mirrored.

        Args:
            side: ``A`` or ``B``.

        Raises:
            UserError: There is no such side, or a file cannot be decoded.
        """
        if side not in _SIDES:
            raise UserError(f"Expected the side 'A' or 'B', got {side!r}.")
        return ImageSet(self._names[side], self._views[side].at(self.image_size), self.image_size, 3)

    def load(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Return ``A`` and ``B``, each uint8 (B, 3, H, W).

        Args:
            indices: Which samples.
            seeds: One integer a sample, from which the picture of B and both crops and flips are drawn;
                ``None`` for whole pictures, those of B also counted round and round.

        Raises:
            UserError: A file cannot be decoded.
        """
        counts = {side: len(store) for side, store in self._usual.items()}
        places = {side: [index % counts[side] for index in indices] for side in _SIDES}
        if seeds is None:
            return {side: self._views[side].at(self.image_size).stacked(places[side]) for side in _SIDES}
        draws = uniform(seeds, 7)
        places["B"] = (draws[:, 0] * counts["B"]).astype(np.int64).tolist()
        moves = {"A": draws[:, 1:4], "B": draws[:, 4:7]}
        rows = {side: self._views[side].at(self.load_size).rows(places[side]) for side in _SIDES}
        return {side: crop(rows[side], self.image_size, moves[side]) for side in _SIDES}


def open_unpaired(
    source: str | Path | None,
    image_size: int,
    split: str = "train",
    fraction: float = 1.0,
    load_size: int | None = None,
) -> UnpairedSet:
    """Open a folder with the subfolders trainA, trainB, testA and testB.

    Pictures are resized by PIL's bicubic filter: to ``load_size`` for training, where they are cropped and
    mirrored each on its own, and to ``image_size`` for tests.

    Args:
        source: A folder, or ``None`` or ``"red-blue-digits"`` for scikit-learn's digits, red on black (A) and
            other ones of them in blue stripes and dots on white (B).
        image_size: Height and width of the samples in pixels.
        split: ``train`` or ``test``.
        fraction: Share of each domain's pictures to use, in (0, 1]; below 1 a fixed random choice of them.
        load_size: Size before cropping; by default 286/256 of ``image_size``.

    Raises:
        UserError: The source or a domain is missing, empty or damaged, or an argument is out of range.
    """
    check_choice(image_size, split, fraction)
    larger = default_load_size(image_size, load_size)
    names, views = {}, {}
    if source is None or source == _BUILT_IN:
        for parity, side in enumerate(_SIDES):
            rows = [index for index in digit_indices(split) if index % 2 == parity]
            names[side], kept = choose(_BUILT_IN, f"{split}{side}", len(rows), fraction)
            chosen = [rows[index] for index in kept]
            views[side] = Views(partial(_drawn, name=names[side], rows=chosen, side=side))
        return UnpairedSet(names, views, image_size, larger, split)
    for side, folder in _side_folders(source, split).items():
        files = find_pictures(folder)
        base = f"unpaired:{folder.resolve().parent.name}"
        names[side], kept = choose(base, f"{split}{side}", len(files), fraction)
        views[side] = Views(partial(_read, name=names[side], files=[files[index] for index in kept]))
    return UnpairedSet(names, views, image_size, larger, split)


def _side_folders(source: str | Path, split: str) -> dict[str, Path]:
    advice = (
        "Give a folder with the subfolders trainA, trainB, testA and testB, or "
        f"{_BUILT_IN!r} for the set that comes with the package."
    )
    folder = open_folder(source, advice, [_BUILT_IN])
    there = sorted(item.name for item in folder.iterdir() if item.is_dir())
    for side in _SIDES:
        wanted = f"{split}{side}"
        if not (folder / wanted).is_dir():
            others = [name for name in there if name not in ("trainA", "trainB", "testA", "testB")]
            got = ", ".join(there) or "no subfolder"
            raise UserError(f"Expected {wanted} in {folder}, got {got}.{nearest(wanted, others)} {advice}")
    return {side: folder / f"{split}{side}" for side in _SIDES}


def _drawn(size: int, name: str, rows: Sequence[int], side: str) -> Store:
    return open_store(name, rows, partial(red_digit if side == "A" else blue_digit, size=size), 3 * size**2)


def _read(size: int, name: str, files: Sequence[Path]) -> Store:
    return open_store(name, files, partial(_decode, size=size), 3 * size**2)


def _decode(file: Path, size: int) -> Tensor:
    """Return the picture in ``file`` as uint8 (3, size, size)."""
    image = decode_file(file).resize((size, size), Image.Resampling.BICUBIC)
    pixels: Tensor = transforms.pil_to_tensor(image)
    return pixels
