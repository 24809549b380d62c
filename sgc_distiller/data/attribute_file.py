"""Attribute files in CelebA's format: which picture has which attributes."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sgc_distiller.data.decoding import SUFFIXES, open_folder
from sgc_distiller.data.digits import DIGIT_ATTRIBUTES
from sgc_distiller.errors import UserError, nearest

__all__ = [
    "BUILT_IN",
    "CELEBA_FIVE",
    "attribute_names",
    "attribute_table",
    "chosen_columns",
    "usual_attributes",
]

log = logging.getLogger(__name__)

BUILT_IN = "coloured-digits"
"""Name of the set with attributes that needs no download."""

CELEBA_FIVE = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Male", "Young")
"""The attributes that StarGAN's baseline uses."""

_FILES = ("list_attr_celeba.txt", "list_attr.txt")
_PLACES = ("images", "img_align_celeba", "")
_VALUES = {"1": 1, "+1": 1, "-1": -1, "0": -1}
_SHOWN = 5

_Table = tuple[list[str], list[Path], npt.NDArray[np.int8]]


def attribute_names(source: str | Path | None) -> list[str]:
    """Return the names of all attributes of a set, in the order of its file.

    Args:
        source: A folder with an attribute file, or ``None`` or ``"coloured-digits"`` for the built-in set.

    Raises:
        UserError: There is no such folder, or its attribute file cannot be used.
    """
    if source is None or source == BUILT_IN:
        return list(DIGIT_ATTRIBUTES)
    file = _find_file(_open(source))
    return _parse_head(file, _read_lines(file))[1]


def attribute_table(folder: str | Path) -> _Table:
    """Return what a folder's attribute file says of its pictures.

    The file is ``list_attr_celeba.txt``, ``list_attr.txt`` or any other ``.txt`` that begins like one: if one
    likes the number of pictures, then a line of attribute names, then a line a picture: its file's name and 1
    or -1 for each attribute (0 counts as -1). The pictures lie in ``images``, ``img_align_celeba`` or beside
    the file. Lines whose picture is missing are left out with a warning.

    Args:
        folder: Where the attribute file is.

    Returns:
        The names of the attributes; the pictures' files, in the order of the lines; and the values 1 and -1,
        int8 (pictures, attributes).

    Raises:
        UserError: There is no folder, no attribute file, a line that cannot be read, or more than half of
            the pictures are missing.
    """
    place = _open(folder)
    file = _find_file(place)
    lines = _read_lines(file)
    start, names = _parse_head(file, lines)
    rows = [(number, line) for number, line in enumerate(lines[start:], start + 1) if line.strip()]
    if start == 2 and len(rows) != int(lines[0]):
        raise UserError(
            f"Expected {int(lines[0]):,} lines of pictures in {file}, as its first line says, got "
            f"{len(rows):,}. Fetch the file again, or correct its first line."
        )
    if not rows:
        raise UserError(f"Expected lines of pictures in {file}, got none after the attributes' names.")
    parts = [line.rsplit(maxsplit=len(names)) for _, line in rows]
    values = np.empty((len(rows), len(names)), np.int8)
    for index, part in enumerate(parts):
        found = [_VALUES[word] for word in part[1:] if word in _VALUES]
        if len(found) != len(names):
            raise UserError(_bad_line(file, *rows[index], names))
        values[index] = found
    files, kept = _present(place, file, [part[0].strip() for part in parts])
    return names, files, values[kept]


def usual_attributes(names: Sequence[str]) -> list[str]:
    """Return the baseline's five attributes if they are all among the names, else all names."""
    return list(CELEBA_FIVE) if set(CELEBA_FIVE) <= set(names) else list(names)


def chosen_columns(names: Sequence[str], chosen: Sequence[str] | None, where: str) -> list[int]:
    """Return where the chosen attributes stand among the names; `usual_attributes` if none are chosen.

    Raises:
        UserError: One of them is unknown or named twice, or the choice is empty.
    """
    wanted = usual_attributes(names) if chosen is None else list(chosen)
    for name in wanted:
        if name not in names:
            raise UserError(
                f"Expected attributes of {where}, got {name!r}.{nearest(name, names)} "
                f"It has {', '.join(names)}."
            )
        if wanted.count(name) > 1:
            raise UserError(f"Expected every attribute of {where} at most once, got {name!r} again.")
    if not wanted:
        raise UserError(f"Expected at least one attribute of {where}, got none. It has {', '.join(names)}.")
    return [names.index(name) for name in wanted]


def _open(source: str | Path) -> Path:
    advice = (
        "Give a folder with an attribute file such as CelebA's list_attr_celeba.txt and the pictures in "
        f"images/, or {BUILT_IN!r} for the set that comes with the package."
    )
    return open_folder(source, advice, [BUILT_IN])


def _find_file(folder: Path) -> Path:
    for name in _FILES:
        if (folder / name).is_file():
            return folder / name
    others = sorted(file for file in folder.glob("*.txt") if not file.name.startswith("."))
    fitting = [file for file in others if _looks_right(file)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        found = ", ".join(file.name for file in fitting)
        raise UserError(
            f"Expected one attribute file in {folder}, got {found}. Call the right one {_FILES[1]}."
        )
    found = ", ".join(file.name for file in others) or "no .txt file"
    raise UserError(
        f"Expected an attribute file ({' or '.join(_FILES)}) in {folder}, got {found}. It has a line of "
        "attribute names and a line 'file 1 -1 ...' a picture, as CelebA's has."
    )


def _looks_right(file: Path) -> bool:
    """Return whether a file begins as an attribute file does: the line after the names fits them."""
    with file.open(encoding="utf-8", errors="replace") as opened:
        lines = [opened.readline() for _ in range(3)]
    start = 2 if lines[0].strip().isdigit() else 1
    names, first = (
        lines[start - 1].split(),
        lines[start].rsplit(maxsplit=max(1, len(lines[start - 1].split()))),
    )
    return bool(names) and len(first) == len(names) + 1 and all(word in _VALUES for word in first[1:])


def _read_lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read the attribute file {file}: {error}. Fetch the file again.") from error


def _parse_head(file: Path, lines: list[str]) -> tuple[int, list[str]]:
    """Return how many lines stand above the first picture's, and the attributes' names."""
    start = 2 if lines and lines[0].strip().isdigit() else 1
    names = lines[start - 1].split() if len(lines) >= start else []
    if not names:
        raise UserError(f"Expected {file}:{start} to hold the attributes' names, got an empty line.")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"Expected {file}:{start} to name every attribute once, got {twice!r} again.")
    return start, names


def _bad_line(file: Path, number: int, line: str, names: list[str]) -> str:
    shown = line if len(line) <= 60 else f"{line[:57]}..."
    return (
        f"Expected {file}:{number} to hold a picture's name and {len(names)} values, each 1 or -1, one an "
        f"attribute; got {shown!r}. Correct or remove the line."
    )


def _present(folder: Path, file: Path, names: list[str]) -> tuple[list[Path], list[int]]:
    """Return the files of the pictures that are there, and which of the names they belong to."""
    root, there = _pictures_below(folder)
    kept = [index for index, name in enumerate(names) if name in there]
    missing = len(names) - len(kept)
    if missing:
        first = [name for name in names if name not in there][:_SHOWN]
        shown = ", ".join(first) + (", ..." if missing > len(first) else "")
        text = f"{missing:,} of the {len(names):,} pictures of {file} are missing in {root}: {shown}"
        if 2 * missing > len(names):
            raise UserError(f"{text}. Put the pictures there, under the names that the file has.")
        log.warning("%s; their lines are skipped.", text)
    unused = len(there) - len({names[index] for index in kept})
    if unused:
        log.info("%d pictures in %s have no line in %s and are not used.", unused, root, file.name)
    return [root / names[index] for index in kept], kept


def _pictures_below(folder: Path) -> tuple[Path, set[str]]:
    """Return where a folder's pictures are, and their paths below that place."""
    root = next(folder / place for place in _PLACES if (folder / place).is_dir())
    there: set[str] = set()
    for place, _, files in os.walk(root):
        prefix = os.path.relpath(place, root).replace(os.sep, "/") + "/"
        prefix = "" if prefix == "./" else prefix
        there.update(prefix + name for name in files if os.path.splitext(name)[1].lower() in SUFFIXES)
    return root, there
