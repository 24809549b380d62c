"""What the command line understands of studies."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from sgc_distiller.errors import UserError
from sgc_distiller.studies.scales import SCALES
from sgc_distiller.studies.studies import OWN_TASKS, Request
from sgc_distiller.task_arguments import add_sizes, task_options

__all__ = ["HELPS", "add_study_commands", "request_of"]

HELPS: dict[str, str] = {
    "table1": "reproduce Table 1: fourteen ways to compress a GAN, side by side",
    "table2": "reproduce Table 2: the paper's method on every GAN at 25, 50, 75 and 90 %%",
    "table3": "reproduce Table 3: super-resolution, filters and elements pruned",
    "granularity": "prune elements, vectors, kernels and filters at 25, 50, 75 and 90 %%",
    "effort": "prune with 1, 2, 5 and 10 %% of the dense training's steps",
    "compare": "run any schedules side by side, over sparsities, learning rates and seeds",
}
"""Studies and what they do."""

_ROWS = {
    "table1": "letters such as b,d,e'; 'variants' for what the paper contradicts itself in; or schedules",
    "table2": "beginnings of the tasks' schedules (default: paper)",
    "granularity": "out of element, vector, kernel, filter",
    "effort": "schedules (default: table1/b_self_supervised)",
}


def add_study_commands(commands: Any) -> None:
    """Add a command for each study to the subparsers of ``sgc``."""
    for name, text in HELPS.items():
        description = f"{text[0].upper()}{text[1:]}. The same command goes on where it stopped."
        command = commands.add_parser(name, help=text, description=description)
        add = command.add_argument
        if name == "compare":
            add(
                "rows",
                nargs="+",
                metavar="SCHEDULE",
                help="files, or shipped schedules' names; NAME@5 at five times its learning rate",
            )
        elif name != "table3":
            add("--rows", metavar="LIST", help=_ROWS[name])
        if name == "effort":
            add("--shares", metavar="LIST", help="of the schedule's steps, in %% (default: 10,20,50,100)")
        _add_common(add)


def _add_common(add: Callable[..., Any]) -> None:
    add("--task", metavar="LIST", help="the GANs (default: the study's)")
    add(
        "--data",
        action="append",
        metavar="DIR",
        help="data set; with several tasks TASK=DIR, may be repeated (default: the bundled ones)",
    )
    add("--scale", default="small", metavar="NAME", help=f"{', '.join(SCALES)} (default: small)")
    add("--dense-steps", type=int, metavar="N", help="generator updates of the dense training (scale's)")
    add_sizes(add)
    add("--sparsity", metavar="LIST", help="in %% (default: the study's)")
    add("--seeds", type=int, default=1, metavar="N", help="how many seeds (default: 1)")
    add("--first-seed", type=int, default=0, metavar="N", help="the first of them (default: 0)")
    add("--lr-factors", metavar="LIST", help="learning rates to try, relative to a row's own (default: 1)")
    add(
        "--judged-on",
        choices=("test", "train"),
        default="test",
        help="pictures of the metrics (default: test)",
    )
    add("--jobs", type=int, metavar="N", help="runs at once (default: a core each, one on a GPU)")
    add("-o", "--out-dir", default="studies", metavar="DIR", help="where to write (default: studies)")
    add("--cpu", action="store_true", default=False, help="use no GPU")


def request_of(parsed: argparse.Namespace) -> Request:
    """Return what a person asks of a study.

    Raises:
        UserError: If a list cannot be read.
    """
    given: Mapping[str, Any] = vars(parsed)
    rows = given.get("rows")
    tasks = _words(given.get("task"))
    on_gpu = torch.cuda.is_available() and not parsed.cpu
    jobs = given.get("jobs")
    for flag, value, low in (
        ("--jobs", jobs, 1),
        ("--dense-steps", given.get("dense_steps"), 1),
        ("--seeds", parsed.seeds, 1),
        ("--first-seed", parsed.first_seed, 0),
    ):
        if value is not None and value < low:
            raise UserError(f"{flag}: expected at least {low}, got {value}")
    sparsities = [value / 100 for value in _numbers(given.get("sparsity"), "--sparsity")]
    wrong = [value for value in sparsities if not 0 < value < 1]
    if wrong:
        raise UserError(f"--sparsity: expected percentages between 0 and 100, got {100 * wrong[0]:g}")
    factors = _positive(given.get("lr_factors"), "--lr-factors") or [1.0]
    return Request(
        out=Path(parsed.out_dir),
        tasks=tasks,
        data=_data(given.get("data") or [], tasks, parsed.command),
        scale=parsed.scale,
        sparsities=tuple(dict.fromkeys(sparsities)),
        options=task_options(parsed),
        dense_steps=given.get("dense_steps"),
        rows=tuple(rows) if isinstance(rows, list) else _words(rows),
        seeds=tuple(range(parsed.first_seed, parsed.first_seed + parsed.seeds)),
        jobs=jobs or (1 if on_gpu else os.cpu_count() or 1),
        device="cpu" if parsed.cpu else None,
        judged_on=parsed.judged_on,
        lr_factors=tuple(dict.fromkeys(factors)),
        shares=tuple(value / 100 for value in _positive(given.get("shares"), "--shares")),
    )


def _words(text: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in (text or "").split(",") if word.strip())


def _numbers(text: str | None, flag: str) -> list[float]:
    try:
        return [float(word) for word in _words(text)]
    except ValueError:
        raise UserError(f"{flag}: expected numbers with commas between them, got {text!r}") from None


def _positive(text: str | None, flag: str) -> list[float]:
    values = _numbers(text, flag)
    for value in values:
        if not value > 0:
            raise UserError(f"{flag}: expected numbers above 0, got {value:g}")
    return values


def _data(given: list[str], tasks: tuple[str, ...], study: str) -> dict[str, str]:
    """Return folders of data by task: ``DIR`` is the only task's, ``TASK=DIR`` one of several's."""
    own = tasks or OWN_TASKS[study]
    found: dict[str, str] = {}
    for text in given:
        task, sign, folder = text.partition("=")
        is_named = bool(sign) and task in SCALES["tiny"]
        if is_named and task not in own:
            raise UserError(
                f"--data {text}: {task} is not in this study of {', '.join(own)}; add --task {task}"
            )
        name = task if is_named else own[0] if len(own) == 1 else ""
        if name in found:
            raise UserError(f"--data {text}: {name} has data already, {found[name]}; give one folder a task")
        if name:
            found[name] = folder if is_named else text
        else:
            raise UserError(
                f"--data {text}: expected TASK=DIR, since there are several tasks, with one of "
                f"{', '.join(own)}"
            )
    return found
