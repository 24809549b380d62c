"""The whole path on data that come with the package: a dense GAN, then pruned ones, side by side."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sgc_distiller.experiment import compress, train
from sgc_distiller.recording import Console
from sgc_distiller.report import write_summary
from sgc_distiller.resources import find_schedule
from sgc_distiller.runs import RunFolder
from sgc_distiller.settings import resolve

__all__ = ["PLANS", "Plan", "Row", "quickstart"]

Record = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One line of the comparison.

    Attributes:
        label: What a person reads.
        schedule: A shipped schedule, or ``None`` for the dense GAN.
        prune_only: Whether the weights are left untrained.
    """

    label: str
    schedule: str | None = None
    prune_only: bool = False

    @property
    def folder(self) -> str:
        """Name of the row's run folder."""
        if self.schedule is None:
            return "dense"
        return self.schedule.rpartition("/")[2] + ("_untrained" if self.prune_only else "")


@dataclass(frozen=True)
class Plan:
    """What the quickstart of one GAN does.

    Attributes:
        title: Heading of the report.
        sizes: Options of the task.
        dense: Settings of the dense training.
        compressed: Settings of the compressing runs.
        rows: Lines of the comparison.
    """

    title: str
    sizes: dict[str, Any]
    dense: dict[str, Any]
    compressed: dict[str, Any]
    rows: tuple[Row, ...]


def _few(task: str, title: str, steps: int, batch: int, sizes: dict[str, Any], **dense: Any) -> Plan:
    """Return the plan of a GAN whose quickstart shows the paper's schedules at 50 and 75 %."""
    common = {"batch_size": batch, "test_images": 500, "epoch_images": 0}
    return Plan(
        f"{title}: dense and pruned",
        {"image_size": 32, "width": 16, **sizes},
        {"epochs": 10, "steps_per_epoch": steps, **common, **dense},
        {"steps_per_epoch": max(1, steps // 8), **common},
        (
            Row("dense"),
            Row("50 %, not trained", f"{task}/paper_50", prune_only=True),
            Row("50 %, supervised", f"{task}/paper_50"),
            Row("75 %, supervised", f"{task}/paper_75"),
        ),
    )


PLANS: dict[str, Plan] = {
    "dcgan": Plan(
        "DCGAN on handwritten digits: dense and pruned",
        {"image_size": 32, "channels": 1, "width": 32},
        {"epochs": 10, "steps_per_epoch": 100, "epoch_images": 0},
        {"steps_per_epoch": 20, "epoch_images": 256},
        (
            Row("dense"),
            Row("75 %, one-shot, not trained", "dcgan/oneshot_75", prune_only=True),
            Row("50 %, supervised", "dcgan/recommended_50"),
            Row("75 %, supervised", "dcgan/recommended_75"),
            Row("90 %, supervised", "dcgan/recommended_90"),
        ),
    ),
    "pix2pix": _few("pix2pix", "pix2pix, outlines to coloured digits", 100, 8, {}),
    "cyclegan": _few("cyclegan", "CycleGAN, red digits and blue ones", 50, 4, {"blocks": 2}),
    "stargan": _few("stargan", "StarGAN, digits in other inks", 30, 8, {"blocks": 2}, lr=0.0005),
    "srgan": _few(
        "srgan",
        "SRGAN, photographs four times larger",
        40,
        8,
        {"image_size": 64, "blocks": 4, "pixel_weight": 1.0},
    ),
}
"""Sizes and steps with which a GAN visibly learns its bundled data in a few minutes on one core."""

SMOKE = {"epochs": 2, "steps_per_epoch": 2, "epoch_images": 64, "test_images": 128}


def quickstart(
    folder: Path,
    seeds: int = 1,
    smoke: bool = False,
    device: str | None = None,
    console: Console | None = None,
    task: str = "dcgan",
) -> list[list[Record]]:
    """Train, prune and compare; writes ``report.html`` into ``folder``. Finished runs are not repeated.

    Args:
        folder: Where the runs go, one folder a seed.
        seeds: How many seeds, counted from 0.
        smoke: Take a few steps of everything, to see whether it runs; its numbers mean nothing.
        device: See `sgc_distiller.settings.Options`.
        console: Where a person follows.
        task: A key of `PLANS`.

    Returns:
        For each seed the result records of the plan's rows, in their order, each with ``label``.
    """
    console = console or Console()
    with _one_thread():
        results = [
            list(_seed_rows(task, folder / f"seed{seed}", seed, smoke, device, console))
            for seed in range(seeds)
        ]
    notes = ["A few steps of everything, to see whether it runs: the numbers mean nothing."] if smoke else []
    if seeds > 1:
        notes.append(f"Means over {seeds} seeds stand in the table that the command prints.")
    if smoke:
        console.note(notes[0])
    write_summary(
        folder / "report.html",
        PLANS[task].title,
        [
            {**row, "label": f"{row['label']}, seed {row['seed']}" if seeds > 1 else row["label"]}
            for rows in results
            for row in rows
        ],
        notes,
    )
    return results


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch compute on one core.

    For networks this small a second core saves a third of the time at best, and costs many times of it where
    another program wants that core too. The numbers are the same on every number of cores this way.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _seed_rows(
    task: str, folder: Path, seed: int, smoke: bool, device: str | None, console: Console
) -> Iterator[Record]:
    for row in PLANS[task].rows:
        run = folder / row.folder
        console.note(f"{row.label} (seed {seed}): {run}")
        result = _finished(run) or _run(task, row, run, folder / "dense", seed, smoke, device, console)
        yield {
            **result,
            "label": row.label,
            "picture": run / "samples" / "strip.png",
            "report": run / "report.html",
        }


def _finished(run: Path) -> Record | None:
    """Return the result of a run that has ended, or ``None``."""
    if not run.is_dir():
        return None
    own = RunFolder(run).own_results()
    return own[-1] if own else None


def _run(
    task: str, row: Row, run: Path, dense: Path, seed: int, smoke: bool, device: str | None, console: Console
) -> Record:
    plan = PLANS[task]
    if (run / "checkpoint.pth.tar").is_file():
        given: dict[str, Any] = {"resume_from": str(run)}
    else:
        given = {"folder": str(run), "seed": seed, **(SMOKE if smoke else {})}
        if row.schedule is None:
            given = {**plan.dense, **given, "task": task, "task_options": plan.sizes}
        else:
            schedule = str(find_schedule(row.schedule))
            given = {**plan.compressed, **given, "schedule": schedule, "weights_from": str(dense)}
            given["prune_only"] = row.prune_only
    if device:
        given["device"] = device
    options = resolve(given)
    return (train if row.schedule is None else compress)(options, console)
