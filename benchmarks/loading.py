"""Pictures a second that each data set yields, beside what a training step needs.

For every kind of set: the time of a batch with its crops and flips, as float32 on the CPU, from memory and,
where a folder is named, decoded from files by worker processes::

    python benchmarks/loading.py --attributes DIR --pairs DIR --superresolution DIR --workers 0 4

A kind whose folder is not named is measured on its built-in set, from memory alone. Sizes and batches are the
baselines'. What a step needs is an upper bound that depends on no network of ours: the multiply-adds of the
baseline's plain step an image, times two, on a device that sustains ``--tflops`` (the default is much for one
GPU in float32, as these small batches never reach it). A loader that is faster than that is no bottleneck,
and ``times as fast`` says by how much. Writes ``benchmarks/results/loading.json`` and prints Markdown.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from step_cost import RESULTS, machine

from sgc_distiller import data


@dataclass(frozen=True)
class Kind:
    """One kind of set and the baseline that learns from it.

    Attributes:
        open: Called with a source and an image size.
        size: The baseline's height and width in pixels.
        batch_size: The baseline's samples in a batch.
        gmac: 10^9 multiply-adds of its plain training step for one sample.
    """

    open: Callable[[Any, int], data.Samples]
    size: int
    batch_size: int
    gmac: float


KINDS = {
    "images": Kind(lambda source, size: data.open_images(source, size, 1), 64, 64, 1.118),
    "attributes": Kind(data.open_attributes, 128, 16, 30.28),
    "pairs": Kind(data.open_pairs, 256, 1, 43.47),
    "unpaired": Kind(data.open_unpaired, 256, 1, 939.6),
    "superresolution": Kind(data.open_superresolution, 128, 16, 44.66),
}
"""The multiply-adds are those of DCGAN, StarGAN (an iteration, on average), pix2pix, CycleGAN, SRGAN."""


@dataclass(frozen=True)
class Row:
    """One measurement; speeds in samples a second."""

    kind: str
    source: str
    samples: int
    workers: int | None
    milliseconds: float
    speed: float
    needed: float


def measure(
    kind: str, source: str | None, size: int, workers: int | None, options: argparse.Namespace
) -> Row | None:
    """Return the speed of one set, or ``None`` where it can only be had in memory.

    Args:
        kind: One of `KINDS`.
        source: A folder, or ``None`` for the built-in set.
        size: Height and width in pixels.
        workers: Processes that decode what a batch needs; ``None`` to decode all beforehand.
        options: How much to measure.
    """
    settings = KINDS[kind]
    usual = data.MEMORY_LIMIT
    data.MEMORY_LIMIT = 2**62 if workers is None else 0
    try:
        samples = settings.open(source, size)
    finally:
        data.MEMORY_LIMIT = usual
    if workers is not None and samples.in_memory:
        return None
    running = data.batches(samples, settings.batch_size, seed=0, workers=workers or 0)
    list(itertools.islice(running, options.warm_up))
    seconds = []
    for _ in range(options.rounds):
        start = time.perf_counter()
        list(itertools.islice(running, options.batches))
        seconds.append((time.perf_counter() - start) / options.batches)
    running.close()  # type: ignore[attr-defined]
    middle = statistics.median(seconds)
    name = "built in" if source is None else Path(source).resolve().name
    needed = options.tflops * 1e12 / (2e9 * settings.gmac)
    return Row(kind, name, len(samples), workers, 1e3 * middle, settings.batch_size / middle, needed)


def table(rows: Sequence[Row]) -> str:
    """Return the rows as Markdown."""
    head = ["set", "source", "samples", "decoded", "ms a batch", "samples/s", "needed/s", "times as fast"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        how = "once, in memory" if row.workers is None else f"as needed, {row.workers} workers"
        numbers = (
            f"{row.milliseconds:.2f} | {row.speed:,.0f} | {row.needed:,.0f} | {row.speed / row.needed:.1f}"
        )
        lines.append(f"| {row.kind} | {row.source} | {row.samples:,} | {how} | {numbers} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for kind in KINDS:
        parser.add_argument(f"--{kind}", metavar="DIR", help=f"folder to measure open_{kind} on")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="default: all")
    parser.add_argument("--size", type=int, help="height and width in pixels instead of the baselines'")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, os.cpu_count() or 1])
    parser.add_argument("--tflops", type=float, default=30.0, help="10^12 operations a second; default 30")
    parser.add_argument("--batches", type=int, default=30, help="of a round; default 30")
    parser.add_argument("--rounds", type=int, default=7, help="the median counts; default 7")
    parser.add_argument("--warm-up", type=int, default=5, metavar="BATCHES")
    parser.add_argument("--results", type=Path, default=RESULTS / "loading.json")
    options = parser.parse_args(arguments)
    rows: list[Row] = []
    for kind in options.kinds:
        source = getattr(options, kind)
        ways: list[int | None] = [None] if source is None else [None, *options.workers]
        size = options.size or KINDS[kind].size
        found = [measure(kind, source, size, workers, options) for workers in ways]
        rows += [row for row in found if row is not None]
    options.results.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "machine": machine(torch.device("cpu")),
        "tflops": options.tflops,
        "rows": [asdict(row) for row in rows],
    }
    options.results.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
