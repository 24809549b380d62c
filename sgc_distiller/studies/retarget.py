"""A schedule at another sparsity: the same file, with other targets."""

from __future__ import annotations

import math
from copy import deepcopy
from pathlib import Path
from typing import Any

from sgc_distiller import yaml_source
from sgc_distiller.errors import UserError
from sgc_distiller.schedule import Schedule, read_schedule

__all__ = ["retargeted"]

_TARGETS = ("final_sparsity", "desired_sparsity")


def retargeted(file: Path, sparsity: float) -> str:
    """Return the text of a schedule whose pruners reach another sparsity.

    Every pruner's ``final_sparsity``, ``desired_sparsity`` and ``levels`` become the new one, those of the
    discriminator's own schedule too; a first sparsity that is not below it becomes 0. A narrower student
    (``width`` other than 1) gets the width at which its weights are about ``1 - sparsity`` of the dense ones.

    Args:
        file: The schedule.
        sparsity: In (0, 1).

    Raises:
        UserError: If the schedule cannot be read, or has no target that could be another one.
    """
    if not 0 < sparsity < 1:
        raise UserError(f"--sparsity: expected percentages between 0 and 100, got {100 * sparsity:g}")
    read_schedule(file)  # finds its mistakes
    root, _ = yaml_source.read_file(file)
    schedule: dict[str, Any] = deepcopy(root.value)
    changed = _retarget(schedule, sparsity)
    own = schedule.get("gan", {}).get("discriminator", {}).get("schedule")
    if own:
        changed += _retarget(own, sparsity)
    student = schedule.get("gan", {}).get("student", {})
    if student.get("width", 1.0) != 1.0:
        student["width"] = round(math.sqrt(1 - sparsity), 4)
        changed += 1
    if not changed:
        raise UserError(
            f"{file}: expected a pruner with final_sparsity, desired_sparsity or levels, which --sparsity "
            "could change, got none; leave --sparsity out"
        )
    Schedule.from_dict(schedule)
    source = file.parent.name + "/" + file.name
    return f"# {source} at a sparsity of {100 * sparsity:g} %\n{yaml_source.write(schedule)}"


def _retarget(schedule: dict[str, Any], sparsity: float) -> int:
    """Set the targets of all pruners; return how many there were."""
    changed = 0
    for pruner in schedule.get("pruners", {}).values():
        for key in _TARGETS:
            if key in pruner:
                pruner[key] = sparsity
                changed += 1
        if isinstance(pruner.get("levels"), dict):
            pruner["levels"] = dict.fromkeys(pruner["levels"], sparsity)
            changed += 1
        if pruner.get("initial_sparsity", 0.0) >= sparsity:
            pruner["initial_sparsity"] = 0.0  # a ramp rises
    return changed
