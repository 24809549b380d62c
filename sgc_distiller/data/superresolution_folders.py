"""Which folders of a collection of pictures are for training, and which are known test sets."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from sgc_distiller.data.decoding import SUFFIXES, all_files
from sgc_distiller.errors import UserError

__all__ = ["find_split", "is_test_set"]

log = logging.getLogger(__name__)

_BENCHMARKS = frozenset({"set5", "set14", "b100", "bsd100", "bsds100", "urban100", "manga109", "val", "test"})
_REDUCED = re.compile(r"(^|[_-])lr($|[_-]|bic|x\d)", re.IGNORECASE)  # LR, DIV2K_train_LR_bicubic, LRbicx4


def is_test_set(name: str) -> bool:
    """Return whether a folder of this name holds a known test set, whatever the case of its letters."""
    return name.lower() in _BENCHMARKS or "valid" in name.lower()


def find_split(folder: Path, split: str, advice: str) -> dict[str, list[Path]]:
    """Return a split's pictures by the name of their folder, sorted.

    Args:
        folder: What the user gave.
        split: ``train`` or ``test``.
        advice: Sentence that says what may be given.

    Raises:
        UserError: There are none.
    """
    divided = (folder / "train").is_dir() and (folder / "test").is_dir()
    root = folder / split if divided else folder
    groups: dict[str, list[Path]] = {}
    left_out = set()
    for file in all_files(root):
        parts = file.relative_to(root).parts[:-1]
        reduced = next((part for part in parts if _REDUCED.search(part)), None)
        if reduced is not None:
            left_out.add(reduced)
            continue
        group = parts[0] if parts else root.name
        if divided or is_test_set(parts[0] if parts else "") == (split == "test"):
            groups.setdefault(group, []).append(file)
    if left_out:
        log.info("Folders of reduced pictures are left out: %s", ", ".join(sorted(left_out)))
    if not groups:
        there = sorted(item.name for item in folder.iterdir() if item.is_dir())
        got = f"the subfolders {', '.join(there)}" if there else "no subfolder"
        what = "test" if split == "test" else "training"
        endings = ", ".join(sorted(SUFFIXES))
        raise UserError(
            f"Expected {what} pictures in {folder}, got none in {got}. {advice} Files with these endings "
            f"count: {endings}."
        )
    return groups
