"""The command line: the only module that prints, parses arguments and exits."""

from __future__ import annotations

import datetime
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
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
from sgc_distiller.quickstart import mean_and_spread, quickstart
from sgc_distiller.resources import find_schedule
from sgc_distiller.settings import Options, resolve
from sgc_distiller.training import StepReport

__all__ = ["Terminal", "compress_gan", "main"]

log = logging.getLogger("sgc_distiller")

Record = dict[str, Any]
EXIT_ERROR = 2
EXIT_INTERRUPTED = 130
_WIDTH = 110  # columns where the output is no terminal


class Terminal:
    """Prints a run's progress: a bar with the time left, and one line of a table for each epoch.

    Args:
        console: Where to print; by default standard output.
    """

    def __init__(self, console: RichConsole | None = None) -> None:
        own = RichConsole(highlight=False)
        self.console = console or (own if own.is_terminal else RichConsole(highlight=False, width=_WIDTH))
        self._progress: Progress | None = None
        self._bar: Any = None
        self._first_epoch = 0
        self._header_shown = False

    def note(self, text: str) -> None:
        """Print one thing that matters."""
        self.console.print(text, markup=False)

    def start(self, epochs: int, steps_per_epoch: int, first_epoch: int) -> None:
        """Start the bar."""
        self._first_epoch = first_epoch
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
            self._progress.update(self._bar, completed=report.step)
        terms = "  ".join(f"{name} {value:.4g}" for name, value in report.means.items())
        log.debug("epoch %d [%d/%d]  %s", report.epoch, report.minibatch, report.minibatches, terms)

    def epoch(self, record: Record, epochs: int) -> None:
        """Print the epoch's line."""
        if not self._header_shown:
            metric = wording.short_name(record["metrics"][0]) if record["metrics"] else "metric"
            self.console.print(
                f"{'epoch':>9} {'step':>7} {'D loss':>9} {'G loss':>9} {'asked':>8} {'reached':>8} "
                f"{metric:>9} {'lr':>9} {'time':>8}",
                markup=False,
            )
            self._header_shown = True
        terms = record["terms"]
        judge = sum(value for name, value in terms.items() if name.startswith("discriminator."))
        value = wording.number(record["metrics"][0]["value"]) if record["metrics"] else wording.MISSING
        self.console.print(
            f"{record['epoch'] + 1:>4}/{epochs:<4} {record['step']:>7} {judge:>9.4f} "
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
        for metric in record["metrics"]:
            interval = wording.interval(metric)
            self.note(
                f"  {metric['name']}: {wording.number(metric['value'])}{' ' + interval if interval else ''}"
            )
        if folder:
            self.note(f"  checkpoint: {Path(folder) / 'checkpoint.pth.tar'}")
            self.note(f"  report: {Path(folder) / 'report.html'}")

    def plan(self, planned: Record) -> None:
        """Print a schedule and the sparsity that it asks of each layer in each epoch."""
        self.note(planned["schedule"])
        self.note(f"{planned['epochs']} epochs of {planned['steps_per_epoch']} generator updates\n")
        names = [row["name"] for row in planned["layers"]]
        table = Table(title="Sparsity asked", title_justify="left")
        for name in ("epoch", *names):
            table.add_column(name, justify="right", overflow="fold")
        last = planned["asked"][-1] if planned["asked"] else {}
        for epoch in range(planned["epochs"]):
            asked = planned["asked"][epoch] if epoch < len(planned["asked"]) else last
            table.add_row(str(epoch), *(wording.percent(asked.get(name, 0.0)) for name in names))
        self.console.print(table)

    def comparison(self, seeds: list[list[Record]]) -> None:
        """Print rows of several runs, with mean and standard deviation where there are several seeds."""
        table = Table(title="Dense and pruned", title_justify="left")
        first = seeds[0][0]["metrics"]
        heads = (
            "generator",
            "sparsity",
            "not zero",
            *(wording.short_name(m) for m in first),
            "/ dense",
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
    try:
        action()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("interrupted; --resume-from RUN_FOLDER goes on after the last finished epoch", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return 0


def _sgc(argv: Sequence[str] | None) -> None:
    parsed = arguments.parse(arguments.sgc_parser(), argv)
    terminal = Terminal()
    if parsed.command == "quickstart":
        _quickstart(parsed, terminal)
        return
    given, options = _prepare(parsed)
    if parsed.command == "evaluate":
        terminal.result(evaluate(options, terminal), "")
    elif parsed.command == "compress":
        _compress(options, terminal, parsed.dry_run)
    else:
        _refuse_schedule(given)
        terminal.note(f"run folder: {options.folder}")
        terminal.result(train(options, terminal), options.folder)


def _compress_gan(argv: Sequence[str] | None) -> None:
    parsed = arguments.parse(arguments.compress_gan_parser(), argv)
    terminal = Terminal()
    _, options = _prepare(parsed)
    if parsed.evaluate:
        terminal.result(evaluate(options, terminal), "")
    elif options.schedule:
        _compress(options, terminal, parsed.dry_run)
    else:
        terminal.note(f"run folder: {options.folder}")
        terminal.result(train(options, terminal), options.folder)


def _prepare(parsed: Any) -> tuple[Mapping[str, Any], Options]:
    _set_up_logging(parsed.verbose)
    name = parsed.name or datetime.datetime.now().strftime("%Y.%m.%d-%H%M%S")
    given = arguments.given_options(parsed, Path(parsed.out_dir) / name)
    if given.get("schedule"):
        given["schedule"] = str(find_schedule(given["schedule"]))
    return given, resolve(given)


def _set_up_logging(verbose: bool) -> None:
    handler = RichHandler(console=RichConsole(stderr=True), show_path=False, show_time=False)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    log.setLevel(logging.DEBUG if verbose else logging.INFO)


def _refuse_schedule(given: Mapping[str, Any]) -> None:
    for name, flag in (
        ("schedule", "--compress"),
        ("prune_only", "--prune-only"),
        ("distill_weight", "--kd-distill-wt"),
    ):
        if given.get(name):
            raise UserError(f"`sgc train` trains a dense GAN, which {flag} is not for; use `sgc compress`")


def _compress(options: Options, terminal: Terminal, dry_run: bool) -> None:
    if dry_run:
        terminal.plan(plan(options))
        return
    terminal.note(f"run folder: {options.folder}; schedule: {options.schedule}; runtime: built in")
    terminal.result(compress(options, terminal), options.folder)


def _quickstart(parsed: Any, terminal: Terminal) -> None:
    _set_up_logging(verbose=False)
    if parsed.seeds < 1:
        raise UserError(f"--seeds: expected at least 1, got {parsed.seeds}")
    folder = Path(parsed.out_dir)
    seeds = quickstart(folder, parsed.seeds, parsed.smoke, "cpu" if parsed.cpu else None, terminal)
    terminal.comparison(seeds)
    terminal.note(f"report: {folder / 'report.html'}")


if __name__ == "__main__":
    sys.exit(main())
