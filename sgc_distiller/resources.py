"""Where the files that come with the package are: shipped schedules, templates, weights."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path

from sgc_distiller.errors import UserError

__all__ = ["asset", "cache_folder", "find_schedule", "shipped_schedules", "template_folder"]

_PACKAGE = Path(__file__).resolve().parent


def shipped_schedules() -> Path:
    """Return the folder of the shipped schedules.

    In an installed wheel it lies inside the package, in a checkout (also one installed as editable)
    beside it.

    Raises:
        UserError: If the installation holds no schedules.
    """
    for folder in (_PACKAGE / "schedules", _PACKAGE.parent / "schedules"):
        if folder.is_dir():
            return folder
    raise UserError(
        f"Expected the shipped schedules in {_PACKAGE / 'schedules'}, got no such folder. "
        "Install the package again: pip install --force-reinstall --no-deps sgc-distiller."
    )


def find_schedule(name_or_path: str | Path) -> Path:
    """Return the schedule file that is meant by a path or by the name of a shipped schedule.

    An existing path wins. A shipped schedule goes by its path below `shipped_schedules`, with or without
    ``schedules/`` in front and ``.yaml`` at the end: ``dcgan/self_supervised_75``.

    Args:
        name_or_path: A path to a YAML file, or a shipped schedule's name.

    Raises:
        UserError: If there is no such file; names the nearest shipped schedule.
    """
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    folder = shipped_schedules()
    shipped = {item.relative_to(folder).with_suffix("").as_posix(): item for item in folder.rglob("*.yaml")}
    name = path.as_posix().removeprefix("./").removeprefix("schedules/").removesuffix(".yaml")
    if name in shipped:
        return shipped[name]
    if path.is_dir():
        raise UserError(f"Expected a schedule file, got the folder {path}. Name one of the files in it.")
    near = _nearest_schedule(name, shipped)
    hint = f" Did you mean {near!r}?" if near else ""
    raise UserError(
        f"Expected a schedule file or the name of a shipped schedule, got {str(name_or_path)!r}, which is "
        f"neither.{hint} Shipped schedules are in {folder}."
    )


def _nearest_schedule(name: str, shipped: Iterable[str]) -> str:
    """Return the shipped name most like ``name``, by the whole name or its last part, or an empty string."""

    def likeness(candidate: str) -> float:
        pairs = ((name, candidate), (name.rpartition("/")[2], candidate.rpartition("/")[2]))
        return max(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    best = max(shipped, key=likeness, default="")
    return best if best and likeness(best) >= 0.5 else ""


def template_folder() -> Path:
    """Return the folder of the HTML templates of the reports."""
    return _PACKAGE / "templates"


def cache_folder() -> Path:
    """Return the folder for what can be computed again, such as statistics of reference pictures.

    It is named by the environment variable ``SGC_CACHE``, else ``sgc_distiller`` below ``XDG_CACHE_HOME`` or
    ``~/.cache``.
    """
    named = os.environ.get("SGC_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sgc_distiller"


def asset(name: str) -> Path:
    """Return the path of a file that is shipped in ``sgc_distiller/assets``.

    Raises:
        UserError: If the installation lacks it.
    """
    path = _PACKAGE / "assets" / name
    if not path.is_file():
        raise UserError(
            f"Expected the shipped file {path}, got none. Install the package again: "
            "pip install --force-reinstall --no-deps sgc-distiller."
        )
    return path
