"""What a source of pictures says about them: attributes, domains, classes, or nothing.

An extractor learns from the first of these that is there: an attribute file in CelebA's format, pictures side
by side with their translations, ``trainA`` and ``trainB``, a subfolder for each class.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from sgc_distiller.data import (
    SUFFIXES,
    ImageSet,
    open_attributes,
    open_images,
    open_pairs,
    open_superresolution,
    open_unpaired,
)
from sgc_distiller.data.attribute_file import attribute_names
from sgc_distiller.data.idx import find_idx_folder

__all__ = ["LabelledSet", "holds_digits", "labelled_images", "open_labelled"]

_BUILT_IN = ("coloured-digits", "digit-outlines", "red-blue-digits", "photos")
_NO_CLASS = re.compile(r"train|test|val|^[hl]r|set\d+|_[hl]r")  # splits and benchmarks, in lower case
_DOMAINS = ("A", "B")
_LOOKED_AT = 10  # pictures whose shape shows whether they are pairs


@dataclass(frozen=True)
class LabelledSet:
    """A set of pictures with what is known about them.

    Args:
        images: The pictures; their labels are classes int64 (N,), attributes float (N, c), or None.
        names: Names of the classes or attributes, where they have some.
        mirror: Whether a mirrored picture is a picture of the same kind; not so for digits.
    """

    images: ImageSet
    names: tuple[str, ...] = ()
    mirror: bool = True


def labelled_images(source: str | Path | None, image_size: int, split: str = "train") -> ImageSet:
    """Return the pictures of `open_labelled`."""
    return open_labelled(source, image_size, split).images


def open_labelled(source: str | Path | None, image_size: int, split: str = "train") -> LabelledSet:
    """Open colour pictures with the labels that their source offers.

    Args:
        source: ``None`` or the name of a set of this package, or a folder: with MNIST's files; with an
            attribute file in CelebA's format; with ``train`` and ``test`` (or ``val``) of pictures twice as
            wide as high, whose halves are two classes; with ``trainA`` and ``trainB``, which are two classes;
            with pictures in two or more subfolders and none beside these, where each subfolder is a class
            unless it is called like a split or a benchmark; or of pictures without labels.
        image_size: Height and width to bring the pictures to, in pixels.
        split: ``train`` or ``test``.

    Raises:
        UserError: The source is missing, empty or damaged, or an argument is out of range.
    """
    if source in _BUILT_IN:
        return _open_built_in(str(source), image_size, split)
    folder = Path("" if source is None else source).expanduser()
    if source is None or source == "digits" or not folder.is_dir() or holds_digits(folder):
        names = tuple(str(digit) for digit in range(10))
        return LabelledSet(open_images(source, image_size, 3, split), names, mirror=False)
    folder = folder.resolve()
    if _has_attributes(folder):
        return _with_attributes(folder, image_size, split)
    if all((folder / f"{split}{domain}").is_dir() for domain in _DOMAINS):
        return _unpaired(folder, image_size, split)
    root = _root(folder, split)
    if root != folder and _are_pairs(root):
        return _paired(folder, image_size, split)
    groups = _classes(root)
    if groups:
        return _from_groups(f"folder:{folder.name}-{split}", groups, image_size)
    return LabelledSet(open_images(root, image_size, 3, split))


def holds_digits(source: str | Path | None) -> bool:
    """Return whether a source is the built-in digits or a folder with files in MNIST's format."""
    return source is None or source == "digits" or find_idx_folder(Path(source).expanduser()) is not None


def _open_built_in(name: str, image_size: int, split: str) -> LabelledSet:
    if name == "coloured-digits":
        opened = _with_attributes(name, image_size, split)
    elif name == "digit-outlines":
        opened = _paired(name, image_size, split)
    elif name == "red-blue-digits":
        opened = _unpaired(name, image_size, split)
    else:
        return LabelledSet(open_superresolution(name, split=split).tiles(image_size))
    return LabelledSet(opened.images, opened.names, mirror=False)


def _has_attributes(folder: Path) -> bool:
    """Return whether a folder holds a text file that begins as an attribute file does."""
    for file in folder.glob("*.txt"):
        with file.open(encoding="utf-8", errors="replace") as lines:
            if file.name.startswith("list_attr") or lines.readline().strip().isdigit():
                return True
    return False


def _with_attributes(source: str | Path, image_size: int, split: str) -> LabelledSet:
    names = attribute_names(source)
    return LabelledSet(open_attributes(source, image_size, names, split).images, tuple(names))


def _unpaired(source: str | Path, image_size: int, split: str) -> LabelledSet:
    domains = open_unpaired(source, image_size, split, load_size=image_size)
    return _two_domains(domains.name, *(domains.side(side) for side in _DOMAINS))


def _paired(source: str | Path, image_size: int, split: str) -> LabelledSet:
    ways = ("BtoA", "AtoB")  # whose targets are A and B
    halves = [open_pairs(source, image_size, split, direction=way, load_size=image_size) for way in ways]
    return _two_domains(halves[0].name, *(half.targets for half in halves))


def _two_domains(name: str, *domains: ImageSet) -> LabelledSet:
    """Return two sets as one in memory, with the number of the set as class."""
    pixels = torch.cat([images.pixels(torch.arange(len(images))) for images in domains])
    labels = torch.repeat_interleave(torch.tensor([len(images) for images in domains]))
    return LabelledSet(ImageSet(name, pixels, domains[0].image_size, 3, labels), _DOMAINS)


def _root(folder: Path, split: str) -> Path:
    """Return the folder of the split, or the whole one where it is not divided."""
    tests = [folder / name for name in ("test", "val") if (folder / name).is_dir()]
    if not tests or not (folder / "train").is_dir():
        return folder
    return folder / "train" if split == "train" else tests[0]


def _are_pairs(root: Path) -> bool:
    """Return whether the first pictures are all twice as wide as high."""
    shapes = set()
    for file in _only_pictures(root.iterdir())[:_LOOKED_AT]:
        try:
            with Image.open(file) as image:
                shapes.add(image.width == 2 * image.height)
        except (OSError, ValueError, Image.DecompressionBombError):
            return False
    return shapes == {True}


def _classes(root: Path) -> dict[str, list[Path]]:
    """Return the pictures in each subfolder where there are two or more and no pictures beside them."""
    if _only_pictures(root.iterdir()):
        return {}
    places = [place for place in sorted(root.iterdir()) if place.is_dir() and not place.name.startswith(".")]
    if any(_NO_CLASS.search(place.name.lower()) for place in places):
        return {}
    groups = {place.name: _only_pictures(place.rglob("*")) for place in places}
    groups = {name: files for name, files in groups.items() if files}
    return groups if len(groups) > 1 else {}


def _only_pictures(paths: Iterable[Path]) -> list[Path]:
    found = (path for path in paths if path.suffix.lower() in SUFFIXES and path.is_file())
    return sorted(path for path in found if not path.name.startswith("."))


def _from_groups(base: str, groups: dict[str, list[Path]], image_size: int) -> LabelledSet:
    """Return the pictures of all groups, decoded when they are needed, with the group's number as class."""
    files = [file for group in groups.values() for file in group]
    labels = torch.repeat_interleave(torch.tensor([len(group) for group in groups.values()]))
    return LabelledSet(ImageSet(f"{base}{len(files)}", files, image_size, 3, labels), tuple(groups))
