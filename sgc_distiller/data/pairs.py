"""Pictures beside their translations in one file, prepared as pix2pix's baseline prepares them."""

from __future__ import annotations

import hashlib
import logging
import statistics
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path

import torch
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
    in_threads,
    open_folder,
    open_store,
    picture_size,
)
from sgc_distiller.data.digits import digit_indices, outlined_digit
from sgc_distiller.data.images import ImageSet
from sgc_distiller.data.views import Views, default_load_size
from sgc_distiller.errors import UserError, nearest

__all__ = ["PairSet", "open_pairs"]

log = logging.getLogger(__name__)

_BUILT_IN = "digit-outlines"
_SHOWN = 5


class PairSet:
    """Pairs of pictures: ``A`` is what a generator is given, ``B`` what it should make of it.

    Args:
        name: What the set is, with its split and count; metrics carry it.
        views: The pairs as uint8 (N, 2, 3, H, W), A before B, at any size.
        image_size: Height and width of the samples in pixels.
        load_size: Height and width that random crops are taken from.
        split: ``train`` or ``test``: which view is decoded at once.
    """

    def __init__(self, name: str, views: Views, image_size: int, load_size: int, split: str) -> None:
        self.name = name
        self.image_size = image_size
        self.load_size = load_size
        self._views = views
        self._usual = views.at(load_size if split == "train" else image_size)

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self._usual)

    @property
    def in_memory(self) -> bool:
        """Whether all pairs are decoded already."""
        return self._usual.in_memory

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the content: of all pixels, or of each file's path, size and time of change."""
        digest = hashlib.sha256(f"pairs/{self.image_size}/{self.load_size}/{len(self)}".encode())
        for fact in self._usual.facts():
            digest.update(fact)
        return digest.hexdigest()

    @cached_property
    def targets(self) -> ImageSet:
        """The pictures B as the test sees them: resized, neither cropped nor mirrored."""
        store = self._views.at(self.image_size)
        if isinstance(store.source, Tensor):
            return ImageSet(self.name, store.source[:, 1].contiguous(), self.image_size, 3)
        assert store.decode is not None
        targets = Store(store.source, partial(_second, decode=store.decode))
        return ImageSet(self.name, targets, self.image_size, 3)

    def load(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Return ``A`` and ``B``, each uint8 (B, 3, H, W), cropped and mirrored alike.

        Args:
            indices: Which pairs.
            seeds: One integer a pair, from which its crop and flip are drawn; ``None`` for whole pictures.

        Raises:
            UserError: A file cannot be decoded, or its width is odd.
        """
        if seeds is None:
            both = self._views.at(self.image_size).stacked(indices)
        else:
            rows = self._views.at(self.load_size).rows(indices)
            both = crop(rows, self.image_size, uniform(seeds, 3))
        return {"A": both[:, 0], "B": both[:, 1]}


def open_pairs(
    source: str | Path | None,
    image_size: int,
    split: str = "train",
    fraction: float = 1.0,
    direction: str = "AtoB",
    load_size: int | None = None,
) -> PairSet:
    """Open a folder of files whose left half is A and whose right half is B.

    Each half is resized by PIL's bicubic filter: to ``load_size`` for training, where both are cropped and
    mirrored alike, and to ``image_size`` for tests.

    Args:
        source: A folder with ``train`` and ``test`` (or ``val``), or ``None`` or ``"digit-outlines"`` for
            outlines of scikit-learn's digits and the digits filled with a colour for their class.
        image_size: Height and width of the samples in pixels.
        split: ``train`` or ``test``.
        fraction: Share of the pairs to use, in (0, 1]; below 1 a fixed random choice of them.
        direction: ``AtoB``, or ``BtoA`` to exchange the halves.
        load_size: Size before cropping; by default 286/256 of ``image_size``.

    Raises:
        UserError: The source is missing, empty or damaged, or an argument is out of range.
    """
    check_choice(image_size, split, fraction)
    if direction not in ("AtoB", "BtoA"):
        raise UserError(f"Expected the direction 'AtoB' or 'BtoA', got {direction!r}.")
    order = (0, 1) if direction == "AtoB" else (1, 0)
    larger = default_load_size(image_size, load_size)
    if source is None or source == _BUILT_IN:
        rows = digit_indices(split)
        name, kept = choose(_BUILT_IN, split, len(rows), fraction)
        views = Views(partial(_drawn, name=name, rows=[rows[index] for index in kept], order=order))
        return PairSet(name, views, image_size, larger, split)
    folder = _split_folder(source, split)
    files = _whole_pairs(folder, find_pictures(folder))
    name, kept = choose(f"pairs:{folder.resolve().parent.name}", split, len(files), fraction)
    views = Views(partial(_read, name=name, files=[files[index] for index in kept], order=order))
    return PairSet(name, views, image_size, larger, split)


def _whole_pairs(folder: Path, files: list[Path]) -> list[Path]:
    """Return the files that are shaped like most of them; others lack a half, and are named and left out."""
    shapes = [width / height for width, height in in_threads(picture_size, files)]
    usual = statistics.median(shapes)
    odd = [file for file, shape in zip(files, shapes, strict=True) if not 2 / 3 < shape / usual < 1.5]
    if not odd:
        return files
    named = ", ".join(file.name for file in odd[:_SHOWN]) + (", ..." if len(odd) > _SHOWN else "")
    if 2 * len(odd) > len(files):
        raise UserError(
            f"Expected pairs of one shape in {folder}, left half A and right half B, got {len(odd)} of "
            f"{len(files)} files of another shape than the middle one: {named}. Repair or remove them."
        )
    log.warning(
        "%s: %d of %d files are left out, since they are shaped as if a half were missing: %s.",
        *(folder, len(odd), len(files), named),
    )
    return [file for file in files if file not in set(odd)]


def _split_folder(source: str | Path, split: str) -> Path:
    advice = (
        "Give a folder with subfolders train and test (or val) of pictures whose left half is A and right "
        f"half B, or {_BUILT_IN!r} for the set that comes with the package."
    )
    folder = open_folder(source, advice, [_BUILT_IN])
    names = ("train",) if split == "train" else ("test", "val")
    found = next((folder / name for name in names if (folder / name).is_dir()), None)
    if found is not None:
        return found
    there = sorted(item.name for item in folder.iterdir() if item.is_dir())
    got = ", ".join(there) or "no subfolder"
    raise UserError(
        f"Expected {' or '.join(names)} in {folder}, got {got}.{nearest(names[0], there)} {advice}"
    )


def _drawn(size: int, name: str, rows: Sequence[int], order: tuple[int, int]) -> Store:
    return open_store(name, rows, partial(outlined_digit, size=size, order=order), 6 * size**2)


def _read(size: int, name: str, files: Sequence[Path], order: tuple[int, int]) -> Store:
    return open_store(name, files, partial(_decode, size=size, order=order), 6 * size**2)


def _decode(file: Path, size: int, order: tuple[int, int]) -> Tensor:
    """Return the halves of the picture in ``file`` as uint8 (2, 3, size, size)."""
    image = decode_file(file)
    width, height = image.size
    if width % 2:
        raise UserError(
            f"Expected two halves of the same size in {file}, got an odd width ({width}x{height}). Repair or "
            "remove it."
        )
    boxes = [(0, 0, width // 2, height), (width // 2, 0, width, height)]
    halves = [image.crop(boxes[side]).resize((size, size), Image.Resampling.BICUBIC) for side in order]
    return torch.stack([transforms.pil_to_tensor(half) for half in halves])


def _second(file: Path, decode: Callable[[Path], Tensor]) -> Tensor:
    return decode(file)[1]
