"""What a schedule asks for in each epoch, before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sgc_distiller.schedule_reader import PolicySpec

__all__ = ["sparsity_plan"]


def sparsity_plan(
    entries: Sequence[tuple[PolicySpec, Any]], names: Sequence[str], epochs: int
) -> list[dict[str, float]]:
    """Return the sparsity that is asked of each pruned parameter in each epoch.

    Masks stay after the last epoch of their policy. Where they are used on the forward pass only, an epoch
    without a pruning policy is dense, so 0 is asked in it; masks that are discarded after each step last for
    the active epochs only.

    Args:
        entries: Entries about pruners, each with its `PruningPolicy`, in their order.
        names: The model's parameters.
        epochs: How many epochs to plan.

    Returns:
        For each epoch the sparsities in [0, 1] by parameter name, for all parameters that are ever pruned.
    """
    plan: list[dict[str, float]] = []
    state = _PlanState()
    for epoch in range(epochs):
        plan.append(state.next_epoch(epoch, entries, names))
    pruned = {name for row in plan for name, level in row.items() if level > 0}
    return [{name: row.get(name, 0.0) for name in names if name in pruned} for row in plan]


class _PlanState:
    """What a plan carries from one epoch to the next: levels, and whether masks are used between policies."""

    def __init__(self) -> None:
        self.levels: dict[str, float] = {}
        self.is_forward_only = False
        self._begun: set[int] = set()

    def next_epoch(
        self, epoch: int, entries: Sequence[tuple[PolicySpec, Any]], names: Sequence[str]
    ) -> dict[str, float]:
        active = [(policy, pruning) for policy, pruning in entries if epoch in policy.active]
        for policy, pruning in active:
            if id(policy) not in self._begun:
                self._begun.add(id(policy))
                self.is_forward_only = pruning.mask_on_forward_only
            pruning.use_levels()
            meta = {**policy.meta, "current_epoch": epoch}
            if hasattr(pruning.pruner, "target"):  # others cannot say in advance
                asked = {name: pruning.pruner.target(name, meta) for name in names}
                self.levels.update({name: level for name, level in asked.items() if level > 0})
        row = dict(self.levels) if active or not self.is_forward_only else {}
        for policy, pruning in active:
            if pruning.discard_masks_at_minibatch_end:
                self.levels = {}
            if pruning.keep_mask and epoch == policy.active[-1]:
                self.is_forward_only = False
        return row
