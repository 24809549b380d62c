"""The command line: the only module that prints, parses arguments and exits."""

from __future__ import annotations

import argparse
import atexit
import dataclasses
import gc
import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console as RichConsole
from rich.logging import RichHandler

from sgc_distiller import arguments, checks, inspection_arguments, summaries
from sgc_distiller.deploy_arguments import batch_sizes
from sgc_distiller.errors import UserError
from sgc_distiller.experiment import compress, evaluate, plan, train, warm_up
from sgc_distiller.export import export, export_onnx, find_formats
from sgc_distiller.export_tables import exported_tables
from sgc_distiller.extractor_training import train_folder_extractor
from sgc_distiller.inspection import inspect_schedule, plot_outline, write_plain
from sgc_distiller.quickstart import quickstart
from sgc_distiller.recording import Console
from sgc_distiller.resources import find_schedule
from sgc_distiller.runs import atomic_write
from sgc_distiller.sensitivity import measure_sensitivity
from sgc_distiller.sensitivity_outcome import closing_notes, sensitivity_table, write_outcome
from sgc_distiller.settings import Options, resolve
from sgc_distiller.speed import speed_report, speed_table
from sgc_distiller.studies.studies import STUDIES
from sgc_distiller.study_arguments import request_of
from sgc_distiller.task_arguments import task_options
from sgc_distiller.terminal import WIDTH, Terminal
from sgc_distiller.thinned_runs import thin_run, thinned_tables

__all__ = ["compress_gan", "main"]

log = logging.getLogger("sgc_distiller")

Record = dict[str, Any]
EXIT_ERROR = 2
EXIT_INTERRUPTED = 130


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
    elif parsed.command in STUDIES:
        _study(parsed, Terminal())
    elif parsed.command == "extractor":
        _extractor(parsed, Terminal())
    elif parsed.command == "thin":
        _thin(parsed, Terminal())
    elif parsed.command == "speed":
        _speed(parsed, Terminal())
    elif parsed.command == "export":
        _export(parsed, Terminal())
    elif parsed.command in ("summary", "sense"):
        _set_up_logging(verbose=False)
        _inspect(_of_checkpoint(parsed), parsed, Terminal())
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
    thins = getattr(parsed, "thinnify", False)
    inspection_arguments.refuse_lonely_flags(parsed)
    others = inspection_arguments.inspects(parsed) or arguments.is_evaluation(parsed) or parsed.dry_run
    if thins and (others or getattr(parsed, "export_onnx", None)):
        raise UserError(
            "--thinnify writes a generator, where the other flags measure or show one; leave one out"
        )
    if inspection_arguments.inspects(parsed):
        _inspect(options, parsed, terminal)
    elif getattr(parsed, "export_onnx", None):
        _export_onnx(options, parsed, terminal)
    elif arguments.is_evaluation(parsed):
        terminal.result(evaluate(options, terminal), "")
    elif parsed.dry_run:
        if not compresses:
            raise UserError("--dry-run prints what a schedule asks for: add --compress FILE, or leave it out")
        terminal.plan(plan(options))
    else:
        warms_up = getattr(parsed, "command", "") == "warm-up-discriminator"
        if thins and not compresses:
            _thinnify(options, terminal)
            return
        _run(options, warm_up if warms_up else compress if compresses else train, terminal)
        if thins:
            _thinnify(dataclasses.replace(options, weights_from=options.folder, resume_from=None), terminal)


def _run(options: Options, action: Callable[[Options, Console], Record], terminal: Terminal) -> None:
    try:
        result = action(options, terminal)
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
        console = RichConsole(stderr=True, width=WIDTH)
    handler = RichHandler(console=console, show_path=False, show_time=False)
    if not verbose:  # the run's first line says which runtime it is
        handler.addFilter(lambda r: r.name != "sgc_distiller.schedule" or r.levelno > logging.INFO)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    log.setLevel(logging.DEBUG if verbose else logging.INFO)


def _schedule(parsed: argparse.Namespace, terminal: Terminal) -> None:
    """Check a schedule, print what it does, and write what was asked for."""
    _set_up_logging(verbose=False)
    given = {key: value for key, value in vars(parsed).items() if value is not None}
    task, sizes, weights = given.get("task"), task_options(parsed), given.get("weights_from")
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


def _extractor(parsed: argparse.Namespace, terminal: Terminal) -> None:
    """Train an extractor and print how it can be trusted."""
    _set_up_logging(verbose=False)
    terminal.extractor(train_folder_extractor(parsed.data, parsed.image_size, parsed.seed))


def _thin(parsed: argparse.Namespace, terminal: Terminal) -> None:
    """Thin a generator and print what became smaller."""
    _set_up_logging(verbose=False)
    _thinnify(_of_checkpoint(parsed), terminal, parsed.out_dir)


def _of_checkpoint(parsed: argparse.Namespace) -> Options:
    """Return the settings of a command that takes a checkpoint."""
    return resolve(inspection_arguments.asked_of_checkpoint(parsed))


def _speed(parsed: argparse.Namespace, terminal: Terminal) -> None:
    """Time a generator, print the table, and write it where that was asked for."""
    _set_up_logging(verbose=False)
    sizes = batch_sizes(parsed.batch)
    if parsed.threads is not None:
        torch.set_num_threads(checks.integer(parsed.threads, "--threads", low=1))
    images = checks.integer(parsed.pictures, "--test-images", low=0)
    report = speed_report(_of_checkpoint(parsed), parsed.dense, sizes, parsed.seconds, images, terminal)
    table = speed_table(report)
    terminal.study(table)
    if parsed.out_dir:
        folder = Path(parsed.out_dir)
        atomic_write(folder / "speed.json", json.dumps(report, indent=1) + "\n")
        atomic_write(folder / "speed.md", table.markdown())
        terminal.note(f"every number: {folder / 'speed.json'}; the table: {folder / 'speed.md'}")


def _thinnify(options: Options, terminal: Terminal, folder: str | None = None) -> None:
    source = str(options.resume_from or options.weights_from or "")
    if not source:
        raise UserError(
            "--thinnify takes zero filters out of a trained generator: name it with --resume-from or "
            "--exp-load-weights-from, or prune one with --compress"
        )
    named = Path(source).parent if Path(source).is_file() else Path(source)
    target = folder or f"{named}_thin"
    for table in thinned_tables(thin_run(options, target, terminal)):
        terminal.study(table)
    terminal.note(
        f"thinned: {target}; `sgc compress` trains it on with --exp-load-weights-from "
        f"{shlex.quote(str(target))}"
    )


def _export(parsed: argparse.Namespace, terminal: Terminal) -> None:
    """Export a generator and print what was written."""
    _set_up_logging(verbose=False)
    given = vars(parsed)
    formats = find_formats(given.get("formats"), terminal)
    options = _of_checkpoint(parsed)
    folder = parsed.out_dir or "exported"
    record = export(options, folder, formats, given.get("half", False), terminal)
    for table in exported_tables(record):
        terminal.study(table)
    terminal.note(f"written to {folder}, all of this and more in export.json")


def _export_onnx(options: Options, parsed: argparse.Namespace, terminal: Terminal) -> None:
    if getattr(parsed, "schedule", None):
        raise UserError("--export-onnx writes a checkpoint's generator as it is; leave --compress out")
    for item in export_onnx(options, Path(options.folder) / parsed.export_onnx, terminal):
        terminal.note(
            f"{item['file']}: differs from the checkpoint by {item['largest_difference']:.1e} at most"
        )


def _inspect(options: Options, parsed: argparse.Namespace, terminal: Terminal) -> None:
    if getattr(parsed, "sense", None):
        _sense(options, parsed, terminal)
    else:
        _summary(options, parsed, terminal)


def _summary(options: Options, parsed: argparse.Namespace, terminal: Terminal) -> None:
    """Print summaries of a generator."""
    kinds = list(dict.fromkeys(getattr(parsed, "summary", None) or ["sparsity"]))
    file = getattr(parsed, "csv", None)
    if file and (len(kinds) > 1 or kinds == ["model"]):
        raise UserError(
            f"--csv {file}: expected one kind that is a table (sparsity, compute, modules), got "
            f"{', '.join(kinds)}"
        )
    run, generator, source = summaries.inspected(options, terminal)
    for kind in kinds:
        if kind == "model":
            terminal.note(str(generator))
            continue
        rows, table, texts = summaries.summary_of(kind, run, generator, source)
        terminal.wide(table, texts)
        if file:
            atomic_write(file, summaries.rows_as_csv(rows))
            terminal.note(f"csv: {file}")


def _sense(options: Options, parsed: argparse.Namespace, terminal: Terminal) -> None:
    """Analyse a generator's sensitivity, print it, and say what was written."""
    request = inspection_arguments.sensitivity_request(parsed)
    folder = inspection_arguments.sensitivity_folder(parsed)
    try:
        found = measure_sensitivity(options, request, folder / f"{request.structure}.jsonl", terminal)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on where it stopped") from None
    for metric in request.metrics:
        terminal.wide(sensitivity_table(found, metric))
    for text in closing_notes(found):
        terminal.note(text)
    files = write_outcome(found, folder)
    terminal.note(f"table: {files.csv}")
    terminal.note(f"plot: {files.plot}")
    terminal.note(f"schedule to start from: {files.schedule or 'none, since no layer tolerates anything'}")


def _study(parsed: argparse.Namespace, terminal: Terminal) -> None:
    """Run a study and print its tables."""
    _set_up_logging(verbose=False)
    request = request_of(parsed)
    try:
        evidence = STUDIES[parsed.command](request, terminal)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on where it stopped") from None
    for table in evidence.tables:
        terminal.study(table)
    terminal.note(f"tables, pages and every number, a folder a GAN in {request.out}: {parsed.command}.*")
    if evidence.failed:
        runs = "1 run" if evidence.failed == 1 else f"{evidence.failed} runs"
        raise UserError(f"{runs} failed, with the reasons in the cells; the same command tries again")


def _quickstart(parsed: Any, terminal: Terminal) -> None:
    _set_up_logging(verbose=False)
    if parsed.seeds < 1:
        raise UserError(f"--seeds: expected at least 1, got {parsed.seeds}")
    named = "quickstart" if parsed.task == "dcgan" else f"quickstart_{parsed.task}"
    folder = Path(parsed.out_dir or named)
    try:
        seeds = quickstart(
            folder, parsed.seeds, parsed.smoke, "cpu" if parsed.cpu else None, terminal, parsed.task
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on where it stopped") from None
    terminal.comparison(seeds)
    terminal.note(f"report: {folder / 'report.html'}")


if __name__ == "__main__":
    sys.exit(main())
