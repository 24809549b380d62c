"""Why a module of a user's own cannot be imported, in one line that says what to change."""

from __future__ import annotations

import ast
import importlib
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

__all__ = ["COUNTERPARTS", "describe", "missing_distiller", "shown_path"]

COUNTERPARTS: dict[str, str] = {
    **dict.fromkeys(
        (
            "CompressionScheduler",
            "LRPolicy",
            "LossComponent",
            "PolicyLoss",
            "PruningPolicy",
            "ScheduledTrainingPolicy",
            "dict_config",
            "file_config",
        ),
        "sgc_distiller",
    ),
    "ParameterMasker": "sgc_distiller.masks",
}
"""Names of Distiller's that we have too, beside those of schedules, and the module of ours that has them."""

_DISTILLER = "distiller"
_OWN_FOLDER = str(Path(__file__).parent)
_LIBRARIES = tuple(
    os.path.join(path, "")
    for path in {*map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib"))}
)


def describe(error: BaseException, classes: Mapping[str, str] | None = None) -> str:
    """Return what went wrong in a user's module: ``file:line: what``, on one line.

    The line is the last one of the user's own code. Where Intel's Distiller is missing, what stands in the
    file and what to write in its place.

    Args:
        error: What was raised.
        classes: Classes of ours that schedules can name, and their modules.
    """
    ours = {**(classes or {}), **COUNTERPARTS}
    if isinstance(error, SyntaxError):
        return f"{shown_path(error.filename or '?')}:{error.lineno}: {type(error).__name__}: {error.msg}"
    file, line, code = _place(error)
    where = f"{shown_path(file)}:{line}: " if file else ""
    if file and _is_about_distiller(error):
        hint = _distiller_hint(Path(file), line, ours)
        if hint:
            return hint
    text = " ".join("".join(traceback.format_exception_only(error)).split())
    if text == type(error).__name__ and code:  # such as a bare assert
        text += f" at `{code}`"
    return where + text


def missing_distiller(path: str, classes: Mapping[str, str]) -> str:
    """Return what to write in a schedule in place of a class of Distiller's own, which is not installed."""
    name = path.rpartition(".")[2]
    ours = {**classes, **COUNTERPARTS}
    needs = f"{path!r} needs Intel's Distiller, which is not installed."
    if name not in ours:
        return f"{needs} Install it (see README)."
    instead = name if name in classes else f"{ours[name]}.{name}"
    return f"{needs} Write {instead!r}, or install Distiller (see README)."


def shown_path(file: str) -> str:
    """Return a file's path from the current directory if it lies in it, else in full."""
    try:
        return str(Path(file).resolve().relative_to(Path.cwd().resolve()))
    except (OSError, ValueError):
        return file


def _place(error: BaseException) -> tuple[str, int, str]:
    """Return file, line number and line of the last piece of the user's own code."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(("<", _OWN_FOLDER))
    ]
    own = [frame for frame in frames if not _is_library(frame.filename)]
    for frame in reversed(own or frames):
        return frame.filename, frame.lineno or 0, frame.line or ""
    return "", 0, ""


def _is_library(file: str) -> bool:
    return file.startswith(_LIBRARIES) or f"{os.sep}site-packages{os.sep}" in file


def _is_about_distiller(error: BaseException) -> bool:
    """Return whether a name of Intel's Distiller could not be found, and Distiller itself is not there."""
    if isinstance(error, ImportError):
        about = error.name or ""
    elif isinstance(error, AttributeError):
        about = error.obj.__name__ if isinstance(error.obj, ModuleType) else ""
    else:
        return False
    return _is_distiller(about) and not _has_distiller()


def _has_distiller() -> bool:
    """Return whether Intel's Distiller can be imported; another project of its name does not count."""
    try:
        return hasattr(importlib.import_module(_DISTILLER), "file_config")
    except Exception:  # whatever stands in its way, it is not there
        return False


def _distiller_hint(file: Path, line: int, ours: Mapping[str, str]) -> str:
    """Return which import of Distiller a file has at a line, or else at first, and what to write instead."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return ""
    statements = sorted(_imports_of_distiller(tree), key=lambda node: node.lineno)
    if not statements:
        return ""
    here = [node for node in statements if node.lineno <= line <= (node.end_lineno or node.lineno)]
    first = (here or statements)[0]
    other = getattr(sys.modules.get(_DISTILLER), "__file__", None)
    found = f"{ast.unparse(first)!r} needs Intel's Distiller, which is not installed"
    found += f" ({shown_path(other)} is another project of that name)." if other else "."
    later = [node.lineno for node in statements if node is not first]
    if later:
        found += f" So {'does line' if len(later) == 1 else 'do lines'} {', '.join(map(str, later))}."
    return f"{shown_path(str(file))}:{first.lineno}: {found} {_replacement(first, tree, ours)}"


def _imports_of_distiller(tree: ast.Module) -> Iterator[ast.Import | ast.ImportFrom]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            named = [node.module or ""]
        else:
            continue
        if any(map(_is_distiller, named)):
            yield node


def _replacement(node: ast.Import | ast.ImportFrom, tree: ast.Module, ours: Mapping[str, str]) -> str:
    """Return the sentence that says what to write in place of an import."""
    is_from = isinstance(node, ast.ImportFrom)
    names: dict[str, list[str]] = {}  # by the module of ours to import them from
    modules: list[str] = []
    moved: dict[str, str] = {}
    missing: list[str] = []
    for alias in node.names:
        if is_from and (alias.name in ours or alias.name == "*"):
            names.setdefault(ours.get(alias.name, "sgc_distiller"), []).append(ast.unparse(alias))
        elif not is_from and not _is_distiller(alias.name):
            modules.append(f"import {ast.unparse(alias)}")
        else:
            local = alias.asname or alias.name.partition(".")[0]
            uses, absent = _replaced_uses(tree, local, ours)
            if absent or (is_from and not uses):
                missing += absent or [alias.name]
            else:
                modules.append(f"import sgc_distiller as {local}")
                moved.update(uses)
    lines = modules + [f"from {module} import {', '.join(items)}" for module, items in names.items()]
    without = f"{', '.join(map(repr, missing))} {'has' if len(missing) == 1 else 'have'} no counterpart here"
    if not lines:
        return f"{without}: install Distiller (see README)."
    text = f"Write {'; '.join(lines)!r}, or install Distiller (see README)."
    text += "".join(f" {old} is {new} then." for old, new in moved.items() if old != new)
    return f"{text} But {without}." if missing else text


def _is_distiller(module: str) -> bool:
    return module.partition(".")[0] == _DISTILLER


def _replaced_uses(tree: ast.Module, local: str, ours: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return how uses of the module ``local`` are written with ours, and those that we do not have."""
    found: dict[str, str] = {}
    missing: list[str] = []
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or id(node) in inner:
            continue
        chain = ast.unparse(node).split(".")
        if chain[0] != local:
            continue
        known = next((part for part in chain[1:] if part in ours), None)
        if known is None:
            missing.append(".".join(chain))
        else:
            old = ".".join(chain[: chain.index(known) + 1])
            found[old] = f"{local}{ours[known].removeprefix('sgc_distiller')}.{known}"
    return found, list(dict.fromkeys(missing))
