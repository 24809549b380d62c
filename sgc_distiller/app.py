"""The command line: the only module that prints, parses arguments and exits."""

from __future__ import annotations

import argparse
import atexit
import gc
import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console as RichConsole
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from sgc_distiller import arguments, wording
from sgc_distiller.errors import UserError
from sgc_distiller.experiment import compress, evaluate, plan, train
from sgc_distiller.inspection import Outline, inspect_schedule, plot_outline, write_plain
from sgc_distiller.quickstart import mean_and_spread, quickstart
from sgc_distiller.recording import Console
from sgc_distiller.resources import find_schedule
from sgc_distiller.settings import Options, resolve
from sgc_distiller.training import StepReport

__all__ = ["Terminal", "compress_gan", "main"]

log = logging.getLogger("sgc_distiller")

Record = dict[str, Any]
EXIT_ERROR = 2
EXIT_INTERRUPTED = 130
_WIDTH = 110  # columns where the output is no terminal


class Terminal(Console):
    """Prints a run's progress: a bar with the time left, and one line of a table for each epoch.

    Args:
        console: Where to print; by default standard output.
    """

    def __init__(self, console: RichConsole | None = None) -> None:
        own = RichConsole(highlight=False)
        self.console = console or (own if own.is_terminal else RichConsole(highlight=False, width=_WIDTH))
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
        self.console.print(
            f"{record['epoch']:>5} {record['step']:>7} {judge:>9.4f} "
            f"{terms['generator.loss']:>9.4f} {wording.percent(record['sparsity_asked']):>8} "
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
            share = (wording.percent(row.get("asked", 0.0)), wording.percent(row["sparsity"]))
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
            table.add_row(str(epoch), *(wording.percent(asked.get(name, 0.0)) for name in names))
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
            overall = [wording.percent(outline.overall[epoch])] if outline.overall else []
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

    def comparison(self, seeds: list[list[Record]]) -> None:
        """Print rows of several runs, with mean and standard deviation where there are several seeds."""
        table = Table(title="Dense and pruned", title_justify="left")
        first = seeds[0][0]["metrics"]
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


def _share(asked: tuple[float, float] | None) -> str:
    """Return a group's sparsity, or its range; what only training tells is said so."""
    if asked is None:
        return "by the weights"
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``sgc`` and return its exit code: 0, 2 for a mistake in the input, 130 when interrupted."""
    return _guarded(lambda: _sgc(argv))


def compress_gan(argv: Sequence[str] | None = None) -> int:
    """Run ``compress_gan.py DATASET_DIR``, the counterpart of Distiller's compress_classifier."""
    return _guarded(lambda: _compress_gan(argv))


def _guarded(action: Callable[[], None]) -> int:
    atexit.register(gc.freeze)  # otherwise the interpreter's end searches all modules for cycles, for seconds
    try:
        action()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_ERROR
    except OSError as error:  # a full disk, a missing permission
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        if log.isEnabledFor(logging.DEBUG):
            raise
        print(f"error: {error}; -v shows where it happened", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt as interrupt:
        print(
            f"interrupted; {interrupt.args[0] if interrupt.args else 'nothing was written yet, begin again'}",
            file=sys.stderr,
        )
        return EXIT_INTERRUPTED
    return 0


def _sgc(argv: Sequence[str] | None) -> None:
    parsed = arguments.parse(arguments.sgc_parser(), argv)
    if parsed.command == "quickstart":
        _quickstart(parsed, Terminal())
    elif parsed.command == "schedule":
        _schedule(parsed, Terminal())
    else:
        _act(parsed, compresses=parsed.command == "compress")


def _compress_gan(argv: Sequence[str] | None) -> None:
    _act(arguments.parse(arguments.compress_gan_parser(), argv), compresses=None)


def _act(parsed: argparse.Namespace, compresses: bool | None) -> None:
    """Do what was asked for; ``compresses`` is ``None`` where the options tell whether to prune."""
    _set_up_logging(parsed.verbose)
    terminal = Terminal()
    given = arguments.given_options(parsed)
    if given.get("schedule"):
        given["schedule"] = str(find_schedule(given["schedule"]))
    options = resolve(given)
    if compresses is None:
        compresses = options.schedule is not None
    if arguments.is_evaluation(parsed):
        terminal.result(evaluate(options, terminal), "")
    elif parsed.dry_run:
        if not compresses:
            raise UserError("--dry-run prints what a schedule asks for: add --compress FILE, or leave it out")
        terminal.plan(plan(options))
    else:
        _run(options, compresses, terminal)


def _run(options: Options, compresses: bool, terminal: Terminal) -> None:
    try:
        result = (compress if compresses else train)(options, terminal)
    except KeyboardInterrupt:
        if (Path(options.folder) / "checkpoint.pth.tar").is_file():
            raise KeyboardInterrupt(
                f"--resume-from {shlex.quote(options.folder)} goes on after the last finished epoch"
            ) from None
        raise
    terminal.result(result, options.folder)


def _set_up_logging(verbose: bool) -> None:
    console = RichConsole(stderr=True)
    if not console.is_terminal:
        console = RichConsole(stderr=True, width=_WIDTH)
    handler = RichHandler(console=console, show_path=False, show_time=False)
    if not verbose:  # the run's first line says which runtime it is
        handler.addFilter(lambda r: r.name != "sgc_distiller.schedule" or r.levelno > logging.INFO)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    log.setLevel(logging.DEBUG if verbose else logging.INFO)


def _schedule(parsed: argparse.Namespace, terminal: Terminal) -> None:
    """Check a schedule, print what it does, and write what was asked for."""
    _set_up_logging(verbose=False)
    given = {key: value for key, value in vars(parsed).items() if value is not None}
    task, sizes, weights = given.get("task"), arguments.task_options(parsed), given.get("weights_from")
    if weights:
        known = resolve({"weights_from": weights, "task_options": sizes, **({"task": task} if task else {})})
        task, sizes = known.task, dict(known.task_options)
    elif sizes and not task:
        raise UserError("sizes are those of a GAN: add -a TASK, or leave them out")
    outline = inspect_schedule(find_schedule(given["schedule"]), task, sizes, weights, given.get("lr"))
    terminal.outline(outline)
    if given.get("plot"):
        plot_outline(outline, given["plot"])
        terminal.note(f"plot: {given['plot']}")
    if given.get("plain"):
        for file in write_plain(outline, given["plain"]):
            terminal.note(f"for Intel's Distiller: {file}")


def _quickstart(parsed: Any, terminal: Terminal) -> None:
    _set_up_logging(verbose=False)
    if parsed.seeds < 1:
        raise UserError(f"--seeds: expected at least 1, got {parsed.seeds}")
    folder = Path(parsed.out_dir)
    try:
        seeds = quickstart(folder, parsed.seeds, parsed.smoke, "cpu" if parsed.cpu else None, terminal)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on where it stopped") from None
    terminal.comparison(seeds)
    terminal.note(f"report: {folder / 'report.html'}")


if __name__ == "__main__":
    sys.exit(main())
