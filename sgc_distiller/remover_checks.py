"""What removers of a schedule mean for its other policies: refused, or said aloud, when it is read."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from sgc_distiller.removers import LAYER_REMOVAL, is_remover
from sgc_distiller.schedule_reader import PolicySpec

__all__ = ["check_removers", "removal_epochs"]

log = logging.getLogger(__name__)


def removal_epochs(policies: Sequence[PolicySpec]) -> list[int]:
    """Return the epochs in which a schedule takes zeros out of its model, in order."""
    removing = [
        policy
        for policy in policies
        if is_remover(policy.instance.kind) and policy.instance.make(name="").has_effect
    ]
    return sorted({epoch for policy in removing for epoch in policy.active})


def check_removers(policies: Sequence[PolicySpec], source: str, is_part: bool) -> None:
    """Refuse removers that cannot work, and say what those that can mean for pruners.

    Args:
        policies: The schedule's policies.
        source: Its file.
        is_part: Whether it is the discriminator's own schedule.

    Raises:
        ScheduleError: If they are the discriminator's, or a policy needs the dense sizes.
    """
    removers = [policy for policy in policies if is_remover(policy.instance.kind)]
    if removers and is_part:
        raise removers[0].node.error(
            "Expected no remover in the discriminator's schedule: the discriminator judges dense and pruned "
            "pictures alike and is not kept, so its zeros stay masked. Leave the policy out."
        )
    if any(policy.instance.arguments.get("thinning_func_str") == LAYER_REMOVAL for policy in removers):
        log.warning(
            "%s: %s takes whole layers out of one classifier of Distiller's and has no effect here; zeroed "
            "layers stay in the network.",
            *(source, LAYER_REMOVAL),
        )
    epochs = removal_epochs(policies)
    if not epochs:
        return
    for policy in policies:
        if getattr(policy.instance.kind, "needs_dense_sizes", False) and policy.active[-1] >= epochs[0]:
            raise policy.node.error(
                f"Expected {policy.instance.name!r}, which compares layers of the same size, to end before "
                f"filters are taken out in epoch {epochs[0]}, got epoch {policy.active[-1]}. Let it end "
                "earlier, or let the remover act after it."
            )
    for name in _going_on(policies, epochs):
        log.warning(
            "%s: the pruner %r goes on after filters were taken out: its shares are of what is left then.",
            *(source, name),
        )


def _going_on(policies: Sequence[PolicySpec], epochs: Sequence[int]) -> list[str]:
    """Return the names of pruners that set masks before and after zeros are taken out."""
    active: dict[str, set[int]] = {}
    for policy in policies:
        if policy.section == "pruners":
            active.setdefault(policy.instance.name, set()).update(policy.active)
    return [name for name, own in active.items() if any(min(own) <= epoch < max(own) for epoch in epochs)]
