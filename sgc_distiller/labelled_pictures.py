"""What a folder of pictures says about them: attributes, classes, domains, or nothing.

An extractor learns from the best of these that is there. An attribute file in CelebA's format comes first,
then two domains (``trainA`` and ``trainB``), then a subfolder for each class.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sgc_distiller.data import SUFFIXES, ImageSet, open_images

__all__ = ["LabelledSet", "holds_digits", "labelled_images", "open_labelled"]

log = logging.getLogger(__name__)

_SPLITS = {"train": ("train",), "test": ("test", "val")}


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
    """Open a folder of colour pictures with the labels that it offers.

    Args:
        source: ``None`` or ``"digits"``, or a folder: with MNIST's files; with an attribute file in CelebA's
            format; with ``trainA`` and ``trainB`` (``testA`` and ``testB``), which are two classes; with
            pictures in two or more subfolders and none beside these, where each subfolder is a class; or of
            pictures without labels. ``train`` and ``test`` (or ``val``) below it are its splits.
        image_size: Height and width to bring the pictures to, in pixels.
        split: ``train`` or ``test``.

    Raises:
        UserError: The source is missing, empty or damaged, or an argument is out of range.
    """
    folder = Path("" if source is None else source).expanduser()
    if source is None or source == "digits" or not folder.is_dir() or holds_digits(folder):
        names = tuple(str(digit) for digit in range(10))
        return LabelledSet(open_images(source, image_size, 3, split), names, mirror=False)
    folder = folder.resolve()
    attributes = _with_attributes(folder, image_size, split)
    if attributes is not None:
        return attributes
    root = _root(folder, split)
    groups = _domains(root, split) or _classes(root)
    if not groups:
        if root == folder:
            return LabelledSet(open_images(folder, image_size, 3, split))
        return _from_groups(folder, {"": _pictures(root)}, image_size, split)
    return _from_groups(folder, groups, image_size, split)


def holds_digits(source: str | Path | None) -> bool:
    """Return whether a source is the built-in digits or a folder with files in MNIST's format."""
    if source is None or source == "digits":
        return True
    folder = Path(source).expanduser()
    places = (folder, folder / "raw", folder / "MNIST" / "raw")
    return any(any(place.glob("*-images-idx3-ubyte*")) for place in places if place.is_dir())


def _with_attributes(folder: Path, image_size: int, split: str) -> LabelledSet | None:
    return None


def _root(folder: Path, split: str) -> Path:
    """Return the folder of the split, or the whole one where it is not divided."""
    divided = (folder / "train").is_dir() and any((folder / name).is_dir() for name in _SPLITS["test"])
    places = [folder / name for name in _SPLITS.get(split, ()) if (folder / name).is_dir()]
    return places[0] if divided and places else folder


def _domains(root: Path, split: str) -> dict[str, list[Path]]:
    domains = {letter: root / f"{split}{letter}" for letter in "AB"}
    if not all(place.is_dir() for place in domains.values()):
        return {}
    return {letter: _pictures(place) for letter, place in domains.items()}


def _classes(root: Path) -> dict[str, list[Path]]:
    """Return the pictures in each subfolder where there are two or more and no pictures beside them."""
    if _only_pictures(root.iterdir()):
        return {}
    groups = {place.name: _pictures(place) for place in sorted(root.iterdir()) if place.is_dir()}
    groups = {name: files for name, files in groups.items() if files}
    return groups if len(groups) > 1 else {}


def _pictures(root: Path) -> list[Path]:
    return _only_pictures(root.rglob("*"))


def _only_pictures(paths: Iterable[Path]) -> list[Path]:
    found = (path for path in paths if path.suffix.lower() in SUFFIXES and path.is_file())
    return sorted(path for path in found if not path.name.startswith("."))


def _from_groups(
    folder: Path, groups: dict[str, Sequence[Path]] | dict[str, list[Path]], image_size: int, split: str
) -> LabelledSet:
    """Return the pictures of all groups, decoded when they are needed, with the group's number as class."""
    files = [file for group in groups.values() for file in group]
    if not files:
        open_images(folder, image_size, 3, split)  # says what is wrong with an empty folder
    codes = [code for code, group in enumerate(groups.values()) for _ in group]
    labels = torch.tensor(codes) if len(groups) > 1 else None
    images = ImageSet(f"folder:{folder.name}-{split}{len(files)}", files, image_size, 3, labels)
    return LabelledSet(images, tuple(groups) if len(groups) > 1 else ())
