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
            return where + hint
    text = " ".join("".join(traceback.format_exception_only(error)).split())
    if text == type(error).__name__ and code:  # such as a bare assert
        text += f" at `{code}`"
    return where + text


def missing_distiller(path: str, classes: Mapping[str, str]) -> str:
    """Return what to write in a schedule in place of a class of Distiller's own, which is not installed."""
    name = path.rpartition(".")[2]
    ours = {**classes, **COUNTERPARTS}
    instead = f"Write {name!r}" if name in classes else f"Write '{ours[name]}.{name}'" if name in ours else ""
    install = "nstall Distiller (see README)."
    return f"{path!r} needs Intel's Distiller, which is not installed. " + (
        f"{instead}, or i{install}" if instead else f"I{install}"
    )


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
    return about.partition(".")[0] == _DISTILLER and not _has_distiller()


def _has_distiller() -> bool:
    """Return whether Intel's Distiller can be imported; another project of its name does not count."""
    try:
        return hasattr(importlib.import_module(_DISTILLER), "file_config")
    except ImportError:
        return False


def _distiller_hint(file: Path, line: int, ours: Mapping[str, str]) -> str:
    """Return which import of Distiller a file has at a line, or else at first, and what to write instead."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return ""
    statements = list(_imports_of_distiller(tree))
    here = [node for node in statements if node.lineno <= line <= (node.end_lineno or node.lineno)]
    if not statements:
        return ""
    first = (here or statements)[0]
    others = sorted(node.lineno for node in statements if node is not first)
    other = getattr(sys.modules.get(_DISTILLER), "__file__", None)
    found = f"{ast.unparse(first)!r} needs Intel's Distiller, which is not installed"
    found += f" ({shown_path(other)} is another project of that name)." if other else "."
    if others:
        found += f" So {'does line' if len(others) == 1 else 'do lines'} {', '.join(map(str, others))}."
    return f"{found} {_replacement(first, tree, ours)}"


def _imports_of_distiller(tree: ast.Module) -> Iterator[ast.Import | ast.ImportFrom]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            named = [node.module or ""]
        else:
            continue
        if any(name.partition(".")[0] == _DISTILLER for name in named):
            yield node


def _replacement(node: ast.Import | ast.ImportFrom, tree: ast.Module, ours: Mapping[str, str]) -> str:
    """Return the sentence that says what to write in place of an import."""
    if isinstance(node, ast.ImportFrom):
        return _sentence(*_replaced_names(node.names, ours))
    alias = next(alias for alias in node.names if alias.name.partition(".")[0] == _DISTILLER)
    local = alias.asname or _DISTILLER
    moved, missing = _replaced_uses(tree, local, ours)
    text = _sentence([f"import sgc_distiller as {local}"], missing)
    if moved:
        text += " There, " + ", ".join(f"{old} is {new}" for old, new in moved.items()) + "."
    return text


def _sentence(lines: list[str], missing: list[str]) -> str:
    without = f"{', '.join(map(repr, missing))} {'has' if len(missing) == 1 else 'have'} no counterpart here"
    if not lines or (missing and lines[0].startswith("import ")):
        return f"{without}: install Distiller (see README)."
    text = f"Write {'; '.join(lines)!r}, or install Distiller (see README)."
    return f"{text} But {without}." if missing else text


def _replaced_names(aliases: list[ast.alias], ours: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Return the statements that replace ``from distiller... import names``, and the names left over."""
    if aliases[0].name == "*":
        return ["from sgc_distiller import *"], []
    found: dict[str, list[str]] = {}
    missing = []
    for alias in aliases:
        if alias.name in ours:
            found.setdefault(ours[alias.name], []).append(ast.unparse(alias))
        else:
            missing.append(alias.name)
    return [f"from {module} import {', '.join(names)}" for module, names in found.items()], missing


def _replaced_uses(
    tree: ast.Module, local: str, ours: Mapping[str, str]
) -> tuple[Mapping[str, str], list[str]]:
    """Return how uses of the module ``local`` are written with ours, and the names that we do not have."""
    moved: dict[str, str] = {}
    missing: list[str] = []
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or id(node) in inner:
            continue
        chain = ast.unparse(node).split(".")
        if chain[0] != local or not all(part.isidentifier() for part in chain):
            continue
        known = next((part for part in chain[1:] if part in ours), None)
        if known is None:
            missing.append(".".join(chain))
            continue
        old = ".".join(chain[: chain.index(known) + 1])
        new = f"{local}{ours[known].removeprefix('sgc_distiller')}.{known}"
        if old != new:
            moved[old] = new
    return moved, list(dict.fromkeys(missing))
