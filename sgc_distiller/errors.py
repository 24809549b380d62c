"""Errors that a user can mend: what is wrong, where, what was expected, what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["NotANumberError", "ScheduleError", "UserError", "nearest"]


class UserError(ValueError):
    """Input that cannot be used, explained in one message.

    The command line prints the message without a traceback and exits with code 2; in a program it is
    an ordinary ``ValueError``.
    """


class NotANumberError(UserError):
    """A loss or a weight stopped being finite; no checkpoint is written after it."""


class ScheduleError(UserError):
    """A mistake in a schedule, with the place where it stands.

    Args:
        problem: What is wrong, what was expected and what to do.
        source: File name, or ``<dict>`` for a schedule that was passed as a dictionary.
        line: Line number in the file, counted from 1, where it is known.
        key: Path of keys from the top of the schedule, such as ``pruners.fine.levels``.
    """

    def __init__(self, problem: str, *, source: str = "", line: int | None = None, key: str = "") -> None:
        place = source if line is None else f"{source}:{line}"
        super().__init__(": ".join(part for part in (place, key, problem) if part))
        self.problem = problem
        self.source = source
        self.line = line
        self.key = key


def nearest(name: str, names: Iterable[str], count: int = 1) -> str:
    """Return `` Did you mean 'x'?`` with the valid names nearest to ``name``, or an empty string."""
    found = difflib.get_close_matches(str(name), list(names), n=count, cutoff=0.5)
    if not found:
        return ""
    return f" Did you mean {' or '.join(repr(item) for item in found)}?"
