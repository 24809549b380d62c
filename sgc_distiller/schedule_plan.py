"""What a schedule asks for in each epoch, before anything is trained."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch.optim.lr_scheduler import ReduceLROnPlateau

from sgc_distiller.lr_schedulers import make_lr_scheduler, stand_in_optimizer, step_to
from sgc_distiller.schedule_reader import PolicySpec

__all__ = ["Row", "decided_late", "overall_plan", "planned_rates", "planned_targets", "sparsity_plan"]


Row = dict[str, float | None]
"""Sparsity by parameter name; None where only the run tells."""


def sparsity_plan(
    entries: Sequence[tuple[PolicySpec, Any]],
    names: Sequence[str],
    epochs: int,
    overall: bool = False,
    removals: Collection[int] = (),
) -> list[Row]:
    """Return the sparsity that is asked of each pruned parameter in each epoch.

    Masks stay after the last epoch of their policy. Where they are used on the forward pass only, an epoch
    without a pruning policy is dense, so 0 is asked in it; masks that are discarded after each step last for
    the active epochs only, and so do zeros of a regularizer's threshold that are not kept. Once zeros were
    taken out of the network, only the run tells how many are left.

    Args:
        entries: Entries about pruners and regularizers, each with its policy, in their order.
        names: The model's parameters.
        epochs: How many epochs to plan.
        overall: Whether the numbers are meant for all weights together, of which a global budget is known in
            advance; it is the share of each weight then.
        removals: Epochs in which zeros are taken out.

    Returns:
        For each epoch the sparsities in [0, 1] by parameter name, for all parameters that are ever pruned;
        None where only the run tells, by the weights or by chance.
    """
    state = _PlanState(names, overall, removals)
    plan = [state.next_epoch(epoch, entries) for epoch in range(epochs)]
    pruned = {name for row in plan for name, level in row.items() if level != 0.0}
    return [{name: row.get(name, 0.0) for name in names if name in pruned} for row in plan]


def overall_plan(plan: Sequence[Row], sizes: Mapping[str, int]) -> list[float | None]:
    """Return the sparsity that is asked of some parameters together in each epoch.

    Args:
        plan: What `sparsity_plan` returned with ``overall``.
        sizes: Elements by parameter name.

    Returns:
        A sparsity in [0, 1] for each epoch; None where only the run tells.
    """
    total: list[float | None] = []
    for row in plan:
        pairs = [(row.get(name, 0.0), size) for name, size in sizes.items()]
        known = [level * size for level, size in pairs if level is not None]
        total.append(sum(known) / sum(sizes.values()) if len(known) == len(pairs) else None)
    return total


class _PlanState:
    """What a plan carries from one epoch to the next: levels, and whether masks are used between policies."""

    def __init__(self, names: Sequence[str], overall: bool, removals: Collection[int]) -> None:
        self.names = names
        self.overall = overall
        self.removals = removals
        self.levels: Row = {}
        self.is_forward_only = False
        self._begun: set[int] = set()

    def next_epoch(self, epoch: int, entries: Sequence[tuple[PolicySpec, Any]]) -> Row:
        active = [(policy, made) for policy, made in entries if epoch in policy.active]
        pruning = [(policy, made) for policy, made in active if policy.section == "pruners"]
        for policy, made in pruning:
            if id(policy) not in self._begun:
                self._begun.add(id(policy))
                self.is_forward_only = made.mask_on_forward_only
            made.use_levels()
            meta = {**policy.meta, "current_epoch": epoch}
            asked = {name: self._asked(made, name, meta) for name in self.names if made.prunes(name)}
            self.levels.update({name: level for name, level in asked.items() if level != 0.0})
        is_masked = bool(pruning) or not self.is_forward_only
        if is_masked and epoch in self.removals:
            self.levels = {name: None if level != 0.0 else level for name, level in self.levels.items()}
        row = dict(self.levels) if is_masked else {}
        for policy, made in active:
            is_last = epoch == policy.active[-1]
            if policy.section == "pruners":
                if made.discard_masks_at_minibatch_end:
                    self.levels = {}
                if made.keep_mask and is_last:
                    self.is_forward_only = False
            elif made.has_threshold:
                dropped = dict.fromkeys(name for name in self.names if made.drops(name))
                row.update(dropped)
                if made.keep_mask and is_last:
                    self.levels.update(dropped)
        return row

    def _asked(self, made: Any, name: str, meta: Mapping[str, Any]) -> float | None:
        """Return a weight's share; None for one that only the run tells."""
        pruner = made.pruner
        if not hasattr(pruner, "target"):
            return None
        share: float = pruner.target(name, meta)
        return None if share > 0.0 and _is_late(pruner, self.overall) else share


def planned_targets(
    entries: Sequence[tuple[PolicySpec, Any]], epochs: int
) -> dict[str, list[tuple[float, float] | None]]:
    """Return the sparsity that each pruner asks of its weights in each epoch.

    Args:
        entries: Entries about pruners, each with its pruner.
        epochs: How many epochs to plan.

    Returns:
        By the pruner's name, for each epoch the smallest and the largest sparsity over its weights; None
        where the pruner cannot say in advance. Before a pruner's first epoch that is 0, between and after
        its epochs what it asked last.
    """
    found: dict[str, list[tuple[float, float] | None]] = {}
    for policy, pruner in entries:
        row = found.setdefault(policy.instance.name, [(0.0, 0.0)] * epochs)
        for epoch in range(epochs):
            if epoch in policy.active:
                asked = _asked(pruner, {**policy.meta, "current_epoch": epoch})
                row[epoch:] = [asked] * (epochs - epoch)
    return found


def decided_late(entries: Sequence[tuple[PolicySpec, Any]], overall: bool = False) -> list[str]:
    """Return the names of pruners of which only the run tells how much of each weight goes.

    Args:
        entries: Entries about pruners, each with its pruner.
        overall: Whether to ask for all weights together, of which a global budget is known in advance.
    """
    return [policy.instance.name for policy, pruner in entries if _is_late(pruner, overall)]


def _is_late(pruner: Any, overall: bool) -> bool:
    """Return whether only the run tells how much goes: by the weights, or by chance."""
    low, high = getattr(pruner, "sparsity_range", (0.0, 0.0))
    return (
        not hasattr(pruner, "target") or low < high or (getattr(pruner, "is_global", False) and not overall)
    )


def _asked(pruner: Any, meta: Mapping[str, Any]) -> tuple[float, float] | None:
    if hasattr(pruner, "sparsity_range"):  # drawn whenever masks are set
        return tuple(pruner.sparsity_range)
    names = list(getattr(pruner, "weights", None) or getattr(pruner, "levels", None) or [])
    if not hasattr(pruner, "target") or not names:
        return None
    shares = [pruner.target(name, meta) for name in names]
    return min(shares), max(shares)


def planned_rates(policies: Sequence[PolicySpec], epochs: int, lr: float) -> list[float | None]:
    """Return the learning rate of each epoch, of the first group of parameters.

    Args:
        policies: Entries about learning rates, in their order.
        epochs: How many epochs to plan.
        lr: The initial rate.

    Returns:
        A rate for each epoch; None where it follows a metric.
    """
    optimizer = stand_in_optimizer([policy.instance.arguments for policy in policies], lr)
    rates: list[float | None] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: dict[int, Any] = {}
        for policy in policies:
            spec = policy.instance
            if id(spec) not in made:
                made[id(spec)] = make_lr_scheduler(spec.kind, optimizer, spec.arguments)
        follows_metric = False
        for epoch in range(epochs):
            rates.append(None if follows_metric else float(optimizer.param_groups[0]["lr"]))
            for policy in policies:
                if epoch in policy.active:
                    schedule = made[id(policy.instance)]
                    follows_metric = isinstance(schedule, ReduceLROnPlateau)
                    step_to(schedule, epoch + 1, {"min": 1.0, "max": 1.0})
    return rates
