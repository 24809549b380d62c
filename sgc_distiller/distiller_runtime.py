"""Schedules driven by Intel's own Distiller, where it is installed."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn
from torch.optim import Optimizer

from sgc_distiller.distiller_plugin import adopt, adopt_all, check_is_distiller
from sgc_distiller.errors import UserError
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
    plain = schedule.plain(model)
    check_is_distiller(distiller)
    for name, (section, kind) in own_classes(schedule.policies).items():
        if not adopt(distiller, section, name, kind):
            raise UserError(
                f"--runtime distiller: expected a class with a name of its own, got {name!r}, which "
                "Distiller has too; rename yours"
            )
    adopt_all(distiller)  # the run's first line says that Distiller drives
    return distiller.config.dict_config(model, optimizer, copy.deepcopy(plain)), plain


def distiller_folder() -> str:
    """Return the folder that Distiller is imported from."""
    return str(Path(str(import_distiller().__file__)).parent)
