"""Schedules driven by Intel's own Distiller, where it is installed."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from sgc_distiller.distiller_plugin import adopt, register
from sgc_distiller.errors import UserError
from sgc_distiller.filter_pruners import FilterPruner
from sgc_distiller.plain_schedule import own_classes
from sgc_distiller.schedule import Schedule

__all__ = ["build_with_distiller", "distiller_folder", "import_distiller"]


def import_distiller() -> ModuleType:
    """Return Intel's Distiller.

    Raises:
        UserError: If it cannot be imported.
    """
    try:
        return importlib.import_module("distiller")
    except ImportError as error:
        raise UserError(
            f"--runtime distiller: expected Intel's Distiller on the Python path, but importing it says: "
            f"{error}. README.md tells how to install it; --runtime builtin needs no Distiller"
        ) from error


def build_with_distiller(
    schedule: Schedule, model: nn.Module, optimizer: Optimizer
) -> tuple[Any, dict[str, Any]]:
    """Return Distiller's own scheduler with a schedule's policies, and the plain schedule that it was given.

    Args:
        schedule: What to build.
        model: The model that is compressed.
        optimizer: The optimizer of its parameters.

    Raises:
        UserError: If Distiller is not there, or the schedule asks for what it lacks.
    """
    distiller = import_distiller()
    register(distiller)
    plain = schedule.plain(model)
    for name, (section, kind) in own_classes(schedule.policies).items():
        if not adopt(distiller, section, name, kind):
            raise UserError(
                f"--runtime distiller: expected a class with a name of its own, got {name!r}, which "
                "Distiller has too; rename yours"
            )
    _refuse_what_cannot_run(schedule)
    return distiller.config.dict_config(model, optimizer, copy.deepcopy(plain)), plain


def _refuse_what_cannot_run(schedule: Schedule) -> None:
    """Refuse pruners that Distiller has and that fail in it here."""
    for policy in schedule.policies:
        kind = policy.instance.kind
        if not issubclass(kind, FilterPruner):
            continue
        reason = "" if torch.cuda.is_available() else "Distiller's needs a GPU, and this machine has none"
        if kind.__name__.startswith("Activation"):
            reason = "Distiller's needs statistics of a collector, which this program has not"
        if kind.__name__.startswith("Bernoulli"):
            reason = "Distiller's fails with today's torch"
        if reason:
            raise policy.instance.node.error(
                f"Expected a pruner that can run in Distiller here, got {kind.__name__}: {reason}. Use "
                "--runtime builtin."
            )


def distiller_folder() -> str:
    """Return the folder that Distiller is imported from."""
    return str(Path(str(import_distiller().__file__)).parent)
