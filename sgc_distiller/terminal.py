"""What a person sees of the command line; beside `sgc_distiller.app` the only module that prints."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console as RichConsole
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from sgc_distiller import wording
from sgc_distiller.inspection import Outline
from sgc_distiller.recording import Console
from sgc_distiller.studies.comparing import mean_and_spread
from sgc_distiller.studies.tables import Table as StudyTable
from sgc_distiller.training import StepReport

__all__ = ["WIDTH", "Terminal"]

log = logging.getLogger("sgc_distiller")

_LATE = "by the weights"  # in the place of a sparsity that only the run tells

Record = dict[str, Any]
_SHOWN = 5  # metrics in a table; the report has them all
_NO_LIMIT = 10_000  # columns
WIDTH = 110
"""Columns where the output is no terminal."""


class Terminal(Console):
    """Prints a run's progress: a bar with the time left, and one line of a table for each epoch.

    Args:
        console: Where to print; by default standard output.
    """

    def __init__(self, console: RichConsole | None = None) -> None:
        own = RichConsole(highlight=False)
        self.console = console or (own if own.is_terminal else RichConsole(highlight=False, width=WIDTH))
        self._progress: Progress | None = None
        self._bar: Any = None
        self._last_epoch = 0
        self._header_shown = False
        self._said: set[str] = set()

    def note(self, text: str, once: bool = False) -> None:
        """Print one thing that matters; with ``once`` only if it was not printed before."""
        if not (once and text in self._said):
            self.console.print(text, markup=False, soft_wrap=True)  # no line breaks inside of paths
        self._said.add(text)

    def start(self, epochs: int, steps_per_epoch: int, first_epoch: int) -> None:
        """Say which epochs follow, and start the bar."""
        self.note(_epochs_ahead(epochs, steps_per_epoch, first_epoch))
        self._last_epoch = epochs - 1
        self._header_shown = False
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps, elapsed"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        total, done = epochs * steps_per_epoch, first_epoch * steps_per_epoch
        self._bar = self._progress.add_task("training", total=total, completed=done)
        self._progress.start()

    def step(self, report: StepReport) -> None:
        """Move the bar; where there is none, keep quiet unless debugging."""
        if self._progress:
            where = f"epoch {report.epoch} (last: {self._last_epoch})"
            self._progress.update(self._bar, completed=report.step, description=where)
        terms = "  ".join(f"{name} {value:.4g}" for name, value in report.means.items())
        log.debug("epoch %d [%d/%d]  %s", report.epoch, report.minibatch, report.minibatches, terms)

    def epoch(self, record: Record) -> None:
        """Print the epoch's line."""
        if not self._header_shown:
            metric = wording.short_name(record["metrics"][0]) if record["metrics"] else "metric"
            self.console.print(
                f"{'epoch':>5} {'step':>7} {'D loss':>9} {'G loss':>9} {'asked':>8} {'reached':>8} "
                f"{metric:>9} {'lr':>9} {'time':>8}",
                markup=False,
            )
            self._header_shown = True
        terms = record["terms"]
        judge = sum(value for name, value in terms.items() if name.startswith("discriminator."))
        value = wording.number(record["metrics"][0]["value"]) if record["metrics"] else wording.MISSING
        loss = f"{terms['generator.loss']:.4f}" if "generator.loss" in terms else wording.MISSING
        self.console.print(
            f"{record['epoch']:>5} {record['step']:>7} {judge:>9.4f} "
            f"{loss:>9} {wording.share(record['sparsity_asked']):>8} "
            f"{wording.percent(record['sparsity']):>8} {value:>9} {record['lr']:>9.2g} "
            f"{wording.duration(record['seconds']):>8}",
            markup=False,
        )

    def layers(self, title: str, rows: list[Record]) -> None:
        """Print a table of layers."""
        table = Table(title=title, title_justify="left")
        for name in ("weight", "shape", "asked", "reached", "not zero", "of"):
            table.add_column(name, justify="left" if name in ("weight", "shape") else "right")
        for row in rows:
            shape = " x ".join(map(str, row["shape"]))
            share = (wording.share(row.get("asked", 0.0)), wording.percent(row["sparsity"]))
            table.add_row(
                row["name"], shape, *share, wording.count(row["nonzero"]), wording.count(row["dense"])
            )
        self.console.print(table)

    def finish(self) -> None:
        """Stop the bar."""
        if self._progress:
            self._progress.stop()
            self._progress = None

    def result(self, record: Record, folder: str) -> None:
        """Print what a run came to."""
        kept = f"{wording.count(record['nonzero'])} of {wording.count(record['weights'])} weights"
        self.note(f"\n{record['method']}: {kept} are not zero ({wording.percent(record['sparsity'])} sparse)")
        if "weights_before_thinning" in record:
            before = wording.count(record["weights_before_thinning"])
            self.note(f"  before filters were taken out there were {before} weights")
        if "discriminator_sparsity" in record:
            self.note(f"  discriminator: {wording.percent(record['discriminator_sparsity'])} sparse")
        for metric in record["metrics"]:
            interval = wording.interval(metric)
            self.note(
                f"  {metric['name']}: {wording.number(metric['value'])}"
                f"{f' (95 %: {interval})' if interval else ''}"
            )
        if folder:
            self.note(f"  checkpoint: {Path(folder) / 'checkpoint.pth.tar'}")
            self.note(f"  report: {Path(folder) / 'report.html'}")

    def plan(self, planned: Record) -> None:
        """Print a schedule, and as comments the settings beside it and the sparsity that it asks for.

        All of it together is a schedule file.
        """
        for name, value in planned["settings"].items():
            self.note(f"# {name}: {value}")
        self.note(planned["schedule"])
        names = [row["name"] for row in planned["layers"]]
        table = Table(title="Sparsity asked", title_justify="left")
        for name in ("epoch", *names):
            table.add_column(name, justify="right", overflow="fold")
        last = planned["asked"][-1] if planned["asked"] else {}
        for epoch in range(planned["epochs"]):
            asked = planned["asked"][epoch] if epoch < len(planned["asked"]) else last
            table.add_row(str(epoch), *(wording.share(asked.get(name, 0.0), _LATE) for name in names))
        with self.console.capture() as drawn:
            self.console.print(table, width=self.console.width - 2)
        for line in drawn.get().splitlines():
            print(f"# {line}", file=self.console.file)

    def outline(self, outline: Outline, title: str = "") -> None:
        """Print what a schedule does in each epoch, as a table and as bars."""
        if not title:
            self.note(f"{outline.source}: no mistakes; {outline.epochs} epoch{'s' * (outline.epochs != 1)}")
            self.note(f"checked against {outline.checked}")
        table = Table(title=title or "What each epoch asks for", title_justify="left")
        heads = [*outline.groups, *(["all weights"] if outline.overall else []), "learning rate"]
        for name in ("epoch", *heads, "active policies"):
            table.add_column(name, justify="left" if name == "active policies" else "right", overflow="fold")
        for epoch in range(outline.epochs):
            overall = [wording.share(outline.overall[epoch], _LATE)] if outline.overall else []
            table.add_row(
                str(epoch),
                *(_share(row[epoch]) for row in outline.groups.values()),
                *overall,
                _rate(outline.rates[epoch], outline.is_relative),
                ", ".join(outline.active[epoch]) or wording.MISSING,
            )
        self.console.print(table)
        rows = {name: [asked[1] if asked else 0.0 for asked in row] for name, row in outline.groups.items()}
        highest = max((rate or 0.0 for rate in outline.rates), default=0.0) or 1.0
        rows["learning rate"] = [(rate or 0.0) / highest for rate in outline.rates]
        width = max(map(len, rows))
        for name, values in rows.items():
            self.console.print(f"{name:>{width}}  {wording.bars(values)}", markup=False)
        if outline.discriminator is not None:
            self.outline(outline.discriminator, "The discriminator's own schedule")

    def extractor(self, record: Record) -> None:
        """Print what a trained extractor is, and how far its distances can be trusted."""
        about = f"{wording.count(record['pictures'])} pictures, {record['kind']}"
        self.note(f"{record['name']}: trained on {record['trained_on']} ({about})")
        self.note(f"  weights: {record['path']}")
        for target, value in record["accuracy"].items():
            self.note(f"  accuracy of {target} on held-out pictures: {wording.percent(value)}")
        table = Table(title="Distance from the set to its changed copy", title_justify="left")
        for name in ("change", "strengths", "distances"):
            table.add_column(name)
        for name, pairs in record["validity"].items():
            strengths, distances = zip(*pairs, strict=True)
            row = (", ".join(f"{item:g}" for item in strengths), ", ".join(map(wording.number, distances)))
            table.add_row(name, *row)
        self.console.print(table)
        verdict = "rises with every change: valid" if record["valid"] else "does not rise with every change"
        self.note(f"the distance {verdict}")

    def comparison(self, seeds: list[list[Record]]) -> None:
        """Print rows of several runs, with mean and standard deviation where there are several seeds."""
        table = Table(title="Dense and pruned", title_justify="left")
        first = seeds[0][0]["metrics"][:_SHOWN]
        heads = (
            "generator",
            "sparsity",
            "not zero",
            *(wording.short_name(m) for m in first),
            f"{wording.short_name(first[0])} / dense",
            "time",
        )
        for name in heads:
            table.add_column(name, justify="left" if name == "generator" else "right")
        for rows in zip(*seeds, strict=True):
            values = [[row["metrics"][i]["value"] for row in rows] for i in range(len(first))]
            ratios = [
                row["metrics"][0]["value"] / s[0]["metrics"][0]["value"]
                for row, s in zip(rows, seeds, strict=True)
            ]
            table.add_row(
                rows[0]["label"],
                wording.percent(rows[0]["sparsity"]),
                wording.count(rows[0]["nonzero"]),
                *(_mean(value) for value in values),
                _mean(ratios),
                wording.duration(mean_and_spread([row["seconds"] for row in rows])[0]),
            )
        self.console.print(table)
        for metric in first:
            self.note(f"{wording.short_name(metric)} is {metric['name']}")

    def wide(self, table: StudyTable, texts: int = 1) -> None:
        """Print a table with all its columns, none of them folded, and its notes.

        Args:
            table: What is printed.
            texts: How many columns, from the left, hold texts; the others hold numbers.
        """
        shown = Table(title=table.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for index, name in enumerate(table.columns):
            shown.add_column(name, justify="left" if index < texts else "right", no_wrap=True)
        for row in table.rows:
            shown.add_row(*(escape(text) for text in row))
        unlimited = RichConsole(file=self.console.file, width=_NO_LIMIT, highlight=False)
        unlimited.print(shown, soft_wrap=True)
        for text in table.notes:
            self.note(text)

    def study(self, table: StudyTable) -> None:
        """Print a table of a study and its notes."""
        narrow = table.narrowed()
        shown = Table(title=table.title, title_justify="left")
        for index, name in enumerate(narrow.columns):
            shown.add_column(name, justify="left" if index == 0 else "right", overflow="fold")
        for row in narrow.rows:
            shown.add_row(*(escape(text) for text in row))
        self.console.print(shown)
        for text in table.notes:
            self.note(text)


def _share(asked: tuple[float, float] | None) -> str:
    """Return a group's sparsity, or its range; what only training tells is said so."""
    if asked is None:
        return _LATE
    low, high = asked
    return wording.percent(high) if low == high else f"{wording.percent(low)} to {wording.percent(high)}"


def _rate(rate: float | None, is_relative: bool) -> str:
    if rate is None:
        return "by the metric"
    return f"x {rate:.4g}" if is_relative else f"{rate:.4g}"


def _epochs_ahead(epochs: int, steps_per_epoch: int, first_epoch: int) -> str:
    """Return which epochs a run is about to train, counted from 0 as everywhere."""
    last = epochs - 1
    if first_epoch > last:
        return f"epoch {last} was the last one; its result is measured"
    begin = f"goes on with epoch {first_epoch}: " if first_epoch else ""
    which = f"epochs {first_epoch} to {last}" if first_epoch < last else f"epoch {last}"
    return f"{begin}{which}, {wording.count(steps_per_epoch)} generator updates an epoch"


def _mean(values: list[float]) -> str:
    mean, spread = mean_and_spread(values)
    return wording.number(mean) + (f" ± {wording.number(spread)}" if len(values) > 1 else "")
