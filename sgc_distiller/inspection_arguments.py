"""What the command line understands of summaries and of sensitivity analyses."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sgc_distiller.errors import UserError
from sgc_distiller.sensitivity import METRICS, STRUCTURES, Request, levels_between
from sgc_distiller.summaries import KINDS
from sgc_distiller.task_arguments import task_options

__all__ = [
    "NAMES",
    "add_inspection_commands",
    "add_inspection_flags",
    "asked_of_checkpoint",
    "inspects",
    "refuse_lonely_flags",
    "sensitivity_folder",
    "sensitivity_request",
]

NAMES = ("summary", "csv", "sense", "sense_range", "sense_metric", "sense_tolerance")
"""Names of what is read here and is no setting of a run."""

_RANGE = (0.0, 0.95, 0.05)  # Distiller's
_MEASURING = ("discriminator_from", "batch_size", "seed", "extractor", "extractor_weights", "test_images")
_GIVEN = ("weights_from", "task", "data", "judged_on", *_MEASURING)


def add_inspection_flags(parser: argparse.ArgumentParser) -> None:
    """Add Distiller's ``--summary``, ``--sense`` and ``--sense-range`` to a parser, and what refines them."""
    add = parser.add_argument_group("looking into a generator, and exit").add_argument
    add(
        "--summary",
        action="append",
        choices=KINDS,
        metavar="KIND",
        help=f"print a summary, one of {', '.join(KINDS)}; may be repeated",
    )
    add(
        "--sense",
        choices=STRUCTURES,
        metavar="KIND",
        help=f"prune every layer alone, one of {', '.join(STRUCTURES)}, and measure the damage",
    )
    _add_refinements(add, "--sense-")


def add_inspection_commands(commands: Any, add_task_options: Callable[[Any], None]) -> None:
    """Add ``summary`` and ``sense`` to the subparsers of ``sgc``.

    Args:
        commands: The subparsers.
        add_task_options: Adds what names a checkpoint's task, data and device.
    """
    text = "show a generator's sparsity, computation, structure or modules"
    summary = commands.add_parser("summary", help=text, description=f"{text[0].upper()}{text[1:]}.")
    add = summary.add_argument
    add("weights_from", metavar="CHECKPOINT", help="a run folder, a checkpoint or a file of weights")
    add(
        "--kind",
        dest="summary",
        action="append",
        choices=KINDS,
        metavar="KIND",
        help=f"one of {', '.join(KINDS)}; may be repeated (default: sparsity)",
    )
    add("--csv", metavar="FILE", help="also write the table's plain numbers (one KIND, not model)")
    add_task_options(summary)
    text = "prune every layer of a generator alone, level by level, and measure the damage"
    sense = commands.add_parser(
        "sense",
        help=text,
        description=f"{text[0].upper()}{text[1:]}. Writes a table, a plot and a schedule to start from; the "
        "same command goes on where it stopped.",
    )
    add = sense.add_argument
    add("weights_from", metavar="CHECKPOINT", help="of a dense GAN: a run folder or a checkpoint")
    add(
        "--kind",
        "--sense",
        dest="sense",
        default="element",
        choices=STRUCTURES,
        metavar="KIND",
        help=f"what is pruned: {', '.join(STRUCTURES)} (default: element)",
    )
    _add_refinements(add, "--", "--sense-")
    add("-o", "--out-dir", default=None, metavar="DIR", help="where to write (default: sensitivity)")
    add("--test-images", type=int, metavar="N", help="pictures measured at each point (default: 5000)")
    add("--judged-on", choices=("test", "train"), help="pictures of the metrics (default: test)")
    add("--extractor", metavar="NAME", help="features of the metric: auto, inception, digits, folder")
    add("--extractor-weights", metavar="FILE", help="the extractor's weights")
    add("--discriminator-from", metavar="PATH", help="the discriminator's weights, if in another file")
    add("-b", "--batch-size", type=int, metavar="N", help="samples in a batch of the loss (baseline's)")
    add("--seed", type=int, metavar="N", help="of everything random (default: 0)")
    add_task_options(sense)


def _add_refinements(add: Callable[..., Any], *prefixes: str) -> None:
    def flags(name: str) -> list[str]:
        return [f"{prefix}{name}" for prefix in prefixes]

    add(
        *flags("range"),
        dest="sense_range",
        nargs=3,
        type=float,
        metavar=("START", "STOP", "STEP"),
        help="levels to prune to; STOP is left out (default: 0 0.95 0.05)",
    )
    add(
        *flags("metric"),
        dest="sense_metric",
        choices=METRICS,
        metavar="METRIC",
        help="fid, kid, loss (the supervised one, cheaper), or both: loss and fid (default: fid)",
    )
    add(
        *flags("tolerance"),
        dest="sense_tolerance",
        type=float,
        metavar="T",
        help="rise that a layer alone may cause in the schedule; relative, of the loss absolute (0.1)",
    )


def inspects(parsed: argparse.Namespace) -> bool:
    """Return whether a generator is to be looked into, and nothing else."""
    return bool(getattr(parsed, "summary", None) or getattr(parsed, "sense", None))


def asked_of_checkpoint(parsed: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that a command on a checkpoint was given, by the names of `Options`."""
    given = vars(parsed)
    found: dict[str, Any] = {name: given[name] for name in _GIVEN if given.get(name) is not None}
    return {**found, **({"device": "cpu"} if parsed.cpu else {}), "task_options": task_options(parsed)}


def sensitivity_request(parsed: argparse.Namespace) -> Request:
    """Return what is asked of a sensitivity analysis.

    Raises:
        UserError: If the range or the tolerance cannot be used.
    """
    given = vars(parsed)
    asked = {name: given[f"sense_{name}"] for name in ("metric", "tolerance") if f"sense_{name}" in given}
    levels = levels_between(*given.get("sense_range", _RANGE))
    return Request(given["sense"], levels, **asked)


def sensitivity_folder(parsed: argparse.Namespace) -> Path:
    """Return where an analysis is written: the same for the same command, so that it can go on."""
    if getattr(parsed, "command", "") == "sense":
        return Path(parsed.out_dir or "sensitivity")
    return Path(parsed.out_dir or "logs") / (parsed.name or "sensitivity")


def refuse_lonely_flags(parsed: argparse.Namespace) -> None:
    """Refuse what refines a sensitivity analysis where none is asked for.

    Raises:
        UserError: Names the flag.
    """
    lonely = [name for name in NAMES if name.startswith("sense_") and name in vars(parsed)]
    if lonely and not getattr(parsed, "sense", None):
        flag = f"--{lonely[0].replace('_', '-')}"
        raise UserError(f"{flag} means nothing without --sense; give both, or leave it out")
    if inspects(parsed) and getattr(parsed, "schedule", None):
        flag = "--sense" if getattr(parsed, "sense", None) else "--summary"
        raise UserError(f"{flag} looks into a generator as it is; leave --compress out")
