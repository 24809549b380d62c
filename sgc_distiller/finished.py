"""A generator that was trained, pruned or thinned, opened with the run it belongs to."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from sgc_distiller import checkpoints
from sgc_distiller.assembly import Run
from sgc_distiller.errors import UserError
from sgc_distiller.recording import Console
from sgc_distiller.settings import Options
from sgc_distiller.thinning import fit

__all__ = ["Finished", "build_generator", "open_finished"]


@dataclass(frozen=True)
class Finished:
    """A trained generator.

    Attributes:
        run: Its task, data and metrics.
        generator: The network with its weights.
        content: What else its checkpoint holds, see `sgc_distiller.checkpoints.load_checkpoint`.
        source: Where it comes from.
    """

    run: Run
    generator: nn.Module
    content: dict[str, Any]
    source: str


def open_finished(options: Options, console: Console | None = None) -> Finished:
    """Open the generator of a checkpoint; nothing is trained or written.

    Args:
        options: Name it by ``resume_from`` or ``weights_from``.
        console: Where a person follows.

    Raises:
        UserError: If the options name no checkpoint, or it does not fit.
    """
    source = options.resume_from or options.weights_from
    if not source:
        raise UserError("expected a checkpoint: --resume-from or --exp-load-weights-from CHECKPOINT")
    run = Run(dataclasses.replace(options, schedule=None), console)
    content = checkpoints.load_checkpoint(source, run.device)
    generator = build_generator(run, content)
    checkpoints.load_weights(generator, run.task.adapted(content["state_dict"]), f"{source}, generator")
    return Finished(run, generator, content, source)


def build_generator(run: Run, content: Mapping[str, Any]) -> nn.Module:
    """Return an untrained generator with the sizes of a checkpoint's, which may have been thinned.

    Raises:
        UserError: If its layers are not those of the run's task.
    """
    generator = run.build("generator", float(content.get("student_width", 1.0)))
    paths = {path for path, _ in generator.named_modules()}  # one of several networks may be opened alone
    sizes = {path: own for path, own in (content.get("thinned") or {}).items() if path in paths}
    if sizes:
        fit(generator, sizes, run.task.adapted(content["state_dict"]))
    return generator
