"""Ctrl-C with worker processes: one line, no tracebacks of workers, none of them left, a quick exit."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sgc_distiller import data
from sgc_distiller.interrupts import put_off_interrupts, uninterrupted

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs signals as POSIX has them")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for index in range(16):
        pixels = np.full((16, 16, 3), 10 * index, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index:02d}.png")
    return tmp_path


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def test_an_interrupt_waits_for_the_end_of_the_block() -> None:
    done = []

    def act() -> None:
        with put_off_interrupts():
            ctrl_c()
            done.append("the rest")

    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        act()
    assert done == ["the rest"]
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        ctrl_c()


def test_a_second_interrupt_acts_at_once() -> None:
    done = []

    def act() -> None:
        with put_off_interrupts():
            ctrl_c()
            done.append("first")
            ctrl_c()
            done.append("second")

    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        act()
    assert done == ["first"]


def test_a_loader_starts_and_reads_as_a_whole() -> None:
    log: list[str] = []

    class Loader:
        def __iter__(self) -> Iterator[int]:
            ctrl_c()
            log.append("started")
            return self.items()

        def items(self) -> Iterator[int]:
            try:
                for item in range(3):
                    log.append(f"read {item}")
                    yield item
            finally:
                log.append("ended")

    items = uninterrupted(Loader())
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        next(items)
    assert log == ["started"]

    Loader.__iter__ = Loader.items  # type: ignore[method-assign]
    log.clear()
    assert list(uninterrupted(Loader())) == [0, 1, 2]
    assert log == ["read 0", "read 1", "read 2", "ended"]
    log.clear()
    items = uninterrupted(Loader())
    next(items)
    items.close()  # type: ignore[attr-defined]
    assert log == ["read 0", "ended"]


def test_workers_leave_interrupts_to_the_main_process(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "MEMORY_LIMIT", 0)
    batches = data.batches(data.open_images(pictures, 8, 3), 4, seed=0, workers=2)
    next(batches)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for _ in range(3):
        for worker in workers:
            os.kill(worker.pid or 0, signal.SIGINT)
        for _ in range(12):  # more than what was read ahead
            next(batches)
    assert all(worker.is_alive() for worker in workers)
    batches.close()  # type: ignore[attr-defined]
    assert multiprocessing.active_children() == []


PROGRAM = """
import atexit, gc, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit none
atexit.register(lambda: print("frozen:", gc.get_freeze_count() > 0))  # the last to be called
from sgc_distiller import data
from sgc_distiller.app import main
data.MEMORY_LIMIT = 0
sys.exit(main(sys.argv[1:]))
"""


def test_a_run_with_workers_stops_in_one_line(pictures: Path, tmp_path: Path) -> None:
    flags = "--image-size 16 --width 4 -b 4 --epochs 900 --steps-per-epoch 2 --epoch-images 0 -j 2"
    flags += " --cpu --extractor digits"
    command = ["train", "dcgan", "--data", str(pictures), *flags.split(), "-o", str(tmp_path / "out")]
    with subprocess.Popen(
        [sys.executable, "-u", "-c", PROGRAM, *command, "-n", "run"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a group of its own, to which Ctrl-C goes as from a terminal
    ) as process:
        assert process.stdout is not None
        lines: list[str] = []
        while not (lines and lines[-1].startswith("    0 ")):
            lines.append(process.stdout.readline())
            assert lines[-1], "the run ended before its first epoch"
        os.killpg(process.pid, signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    folder = tmp_path / "out" / "run"
    said = [line for line in errors.splitlines() if "decoding files as needed" not in line]
    assert said == [f"interrupted; --resume-from {folder} goes on after the last finished epoch"]
    assert rest.splitlines()[-1] == "frozen: True", "the interpreter's end need not search for cycles"
