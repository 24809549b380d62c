"""Ctrl-C beside worker processes: they never see it, and the main process sees it at a safe place."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import TypeVar

__all__ = ["ignore_interrupts", "put_off_interrupts", "uninterrupted"]

_T = TypeVar("_T")


@contextlib.contextmanager
def put_off_interrupts() -> Iterator[None]:
    """Put off a Ctrl-C that comes inside the block until its end; a second one acts at once.

    A ``KeyboardInterrupt`` in the middle of starting a process or of talking to one can be swallowed, or
    break the other's half of the talk. Processes that are forked inside the block put it off as well, so
    that none of them is interrupted before it can call `ignore_interrupts`. Outside of the main thread,
    where none is ever raised, nothing is done.
    """
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or usual is None:
        yield
        return
    is_pending = False

    def put_off(number: int, frame: FrameType | None) -> None:
        nonlocal is_pending
        if is_pending and callable(usual):
            usual(number, frame)
        is_pending = True

    signal.signal(signal.SIGINT, put_off)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
        if is_pending:
            signal.raise_signal(signal.SIGINT)


def uninterrupted(source: Iterable[_T]) -> Iterator[_T]:
    """Yield what a loader with worker processes yields, with `put_off_interrupts` around its every move.

    When the generator is closed or forgotten, the loader's iterator goes first, which ends the workers.
    """
    with put_off_interrupts():
        items = iter(source)
    try:
        while True:
            with put_off_interrupts():
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item
    finally:
        with put_off_interrupts():
            del items  # and the workers with it, before anything else is cleaned up


def ignore_interrupts(worker: int = 0) -> None:
    """Leave Ctrl-C, which a terminal sends to every process, to the main one; called in a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
