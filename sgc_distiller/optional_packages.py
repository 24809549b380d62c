"""Packages that not every user needs: what they are for, and how they are installed."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable
from typing import Any

from sgc_distiller.errors import UserError

__all__ = ["EXPORT", "load", "missing"]

EXPORT = "pip install 'sgc_distiller[export]'"
"""Installs what exported files are written, read and checked with."""


def missing(packages: Iterable[str]) -> list[str]:
    """Return the packages that are not installed, in their order."""
    return [name for name in packages if importlib.util.find_spec(name) is None]


def load(module: str, what: str) -> Any:
    """Import a module of a package of the extra ``export``.

    Args:
        module: Its dotted name.
        what: What needs it, for the error.

    Raises:
        UserError: If the package is not installed.
    """
    package = module.partition(".")[0]
    if missing([package]):
        raise UserError(f"{what} needs the package {package!r}, which is not installed; {EXPORT}")
    return importlib.import_module(module)
