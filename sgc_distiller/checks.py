"""Checks of single arguments, whose errors know which argument they are about."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

from sgc_distiller.errors import UserError, nearest

__all__ = ["ArgumentError", "boolean", "fraction", "integer", "known", "names", "number", "one_of"]


class ArgumentError(UserError):
    """One argument cannot be used.

    Args:
        problem: What was expected and what was found.
        path: Name of the argument, followed by the keys inside it, such as ``("levels", "fc1.weight")``.
    """

    def __init__(self, problem: str, *path: str) -> None:
        super().__init__(f"{'.'.join(path)}: {problem}" if path else problem)
        self.problem = problem
        self.path = path


def number(
    value: Any, *path: str, low: float = -math.inf, high: float = math.inf, open_low: bool = False
) -> float:
    """Return ``value`` as a float, or refuse it.

    Args:
        value: What was given. A text, a truth value, infinity and not-a-number are no numbers here.
        path: Where it was given.
        low: Smallest number that is accepted; with ``open_low`` numbers must be greater.
        high: Greatest number that is accepted.
        open_low: Whether ``low`` itself is refused.

    Raises:
        ArgumentError: If it is no finite number of the range.
    """
    wanted = "a number"
    if open_low:
        wanted += f" greater than {low:g}"
    elif math.isfinite(low) and not math.isfinite(high):
        wanted += f" of at least {low:g}"
    if math.isfinite(high):
        wanted += f" and at most {high:g}" if open_low else f" between {low:g} and {high:g}"
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not _is_finite(value):
        raise ArgumentError(f"Expected {wanted}, got {value!r}.", *path)
    if not low <= value <= high or (open_low and value == low):
        raise ArgumentError(f"Expected {wanted}, got {value!r}.", *path)
    return float(value)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def fraction(value: Any, *path: str) -> float:
    """Return ``value`` as a float in [0, 1], or refuse it with an `ArgumentError`."""
    return number(value, *path, low=0.0, high=1.0)


def integer(value: Any, *path: str, low: int) -> int:
    """Return ``value`` if it is a whole number of at least ``low``, or refuse it with an `ArgumentError`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ArgumentError(f"Expected a whole number of at least {low}, got {value!r}.", *path)
    return value


def boolean(value: Any, *path: str) -> bool:
    """Return ``value`` if it is true or false, or refuse it with an `ArgumentError`."""
    if not isinstance(value, bool):
        raise ArgumentError(f"Expected true or false, got {value!r}.", *path)
    return value


def one_of(value: Any, choices: Collection[str], *path: str) -> str:
    """Return ``value`` if it is one of ``choices``, or refuse it with an `ArgumentError`."""
    if not isinstance(value, str) or value not in choices:
        raise ArgumentError(
            f"Expected one of {', '.join(choices)}, got {value!r}.{nearest(value, choices)}", *path
        )
    return value


def names(value: Any, *path: str) -> list[str]:
    """Return ``value`` as a new list of names and patterns, or refuse it with an `ArgumentError`."""
    wanted = "a list of names or patterns of weights"
    if isinstance(value, str):
        raise ArgumentError(f"Expected {wanted}, got the text {value!r}. Write [{value}].", *path)
    if not isinstance(value, Sequence):
        raise ArgumentError(f"Expected {wanted}, got {value!r}.", *path)
    for index, entry in enumerate(value):
        if not isinstance(entry, str):
            raise ArgumentError(f"Expected a name or a pattern, got {entry!r}.", *path, f"[{index}]")
    return list(value)


def known(name: str, names: Collection[str], what: str, *path: str) -> str:
    """Return ``name`` if it is one of ``names``, or refuse it with an `ArgumentError` that shows them."""
    if name not in names:
        shown = ", ".join(sorted(names)) or "none"
        raise ArgumentError(f"Expected {what} ({shown}), got {name!r}.{nearest(name, names)}", *path)
    return name
