"""What a schedule can ask for here and cannot in Intel's Distiller, refused; docs/deviations.md says why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from sgc_distiller.element_pruners import (
    AutomatedGradualPruner,
    BaiduRNNPruner,
    SparsityLevelParameterPruner,
)
from sgc_distiller.epochs import last_active_epoch
from sgc_distiller.errors import ScheduleError
from sgc_distiller.filter_pruners import FilterPruner
from sgc_distiller.pruning_policy import PruningPolicy
from sgc_distiller.ranked_pruners import RandomLevelStructureParameterPruner, RankedPruner
from sgc_distiller.regularization_policy import RegularizationPolicy
from sgc_distiller.regularizers import ParameterRegularizer
from sgc_distiller.schedule_reader import InstanceSpec, PolicySpec
from sgc_distiller.structure_pruners import StructureParameterPruner, StructurePruner
from sgc_distiller.structures import GROUP_TYPES

__all__ = ["check_distiller", "lacking"]

Entry = tuple[PolicySpec, Any]

_MATRIX_GROUPS = ("Rows", "Cols", "Rows+Cols", "Cols+Rows")


def check_distiller(entries: Sequence[Entry], model: nn.Module) -> None:
    """Refuse what Intel's Distiller lacks, fails on, or makes something else of.

    Args:
        entries: Policies in their order, each with its entry in the file, except those of learning rates.
        model: The model that is compressed.

    Raises:
        ScheduleError: At the first of these.
    """
    parameters = dict(model.named_parameters())
    for policy, made in entries:
        if isinstance(made, PruningPolicy):
            _check_pruning(policy, made, parameters)
        target = getattr(made, "pruner", getattr(made, "regularizer", None))
        if isinstance(target, StructureParameterPruner | ParameterRegularizer):
            _check_groups(policy.instance, target, parameters)
    pruning = [(policy, made) for policy, made in entries if isinstance(made, PruningPolicy)]
    _check_double_copies(pruning)
    _check_gradients(pruning)
    _check_thresholds(entries, pruning)
    _check_own(entries)


def lacking(spec: InstanceSpec, what: str, instead: str) -> ScheduleError:
    """Return the error that something cannot be said in Distiller."""
    return spec.node.error(f"Expected what Distiller has too, got {what}. {instead}")


def _check_pruning(policy: PolicySpec, made: PruningPolicy, parameters: Mapping[str, nn.Parameter]) -> None:
    spec, pruner = policy.instance, made.pruner
    if made.fold_batchnorm:
        raise lacking(
            spec,
            "'fold_batchnorm'",
            "Distiller's needs a tracer that fails with today's torch: leave it out.",
        )
    made.use_levels()
    if isinstance(pruner, AutomatedGradualPruner | SparsityLevelParameterPruner):
        _check_shares(policy, pruner, parameters)
    if isinstance(pruner, FilterPruner):
        _check_can_run(spec)
    if isinstance(pruner, StructurePruner):
        _check_structures(policy, pruner, parameters)
    if isinstance(pruner, BaiduRNNPruner) and _ends_early(policy) and (made.keep_mask or made.mask_gradients):
        raise lacking(
            spec,
            f"'ending_epoch: {policy.meta['ending_epoch']}' with 'keep_mask' or 'mask_gradients'",
            f"In Distiller they act in the epoch before it only: write {last_active_epoch(policy.meta) + 1}.",
        )


def _ends_early(policy: PolicySpec) -> bool:
    """Return whether the last epoch of a policy's range is not an active one."""
    return last_active_epoch(policy.meta) + 1 < int(policy.meta["ending_epoch"])


def _check_shares(policy: PolicySpec, pruner: Any, parameters: Mapping[str, nn.Parameter]) -> None:
    """Refuse shares below one element, on which Distiller fails."""
    meta = {**policy.meta, "current_epoch": policy.meta["starting_epoch"]}
    for name, parameter in parameters.items():
        share = pruner.target(name, meta)
        is_listed = name in getattr(pruner, "weights", ()) or share > 0
        if is_listed and int(share * parameter.numel()) == 0:
            raise lacking(
                policy.instance,
                f"a sparsity of {share:g} for the {parameter.numel()} elements of {name!r}",
                "Distiller fails where not one element is pruned: begin with a larger sparsity.",
            )


def _check_can_run(spec: InstanceSpec) -> None:
    """Refuse pruners that Distiller has and that fail in it here."""
    name = spec.kind.__name__
    reason = "" if torch.cuda.is_available() else "Distiller's needs a GPU, and this machine has none"
    if name.startswith("Activation"):
        reason = "Distiller's needs statistics of a collector, which this program has not"
    if name.startswith("Bernoulli"):
        reason = "Distiller's fails with today's torch"
    if reason:
        raise spec.node.error(
            f"Expected a pruner that can run in Distiller here, got {name}: {reason}. Use --runtime builtin."
        )


def _check_structures(
    policy: PolicySpec, pruner: StructurePruner, parameters: Mapping[str, nn.Parameter]
) -> None:
    spec = policy.instance
    if pruner.kind in ("Elements", "Vectors", "Kernels"):
        raise lacking(
            spec, f"the group type {pruner.kind}", "Distiller ranks Filters, Channels, Rows and Blocks."
        )
    for name in pruner.weights:
        count = parameters[name].dim()
        fitting = {"Filters": (4,), "Channels": (2, 4)}.get(pruner.kind, (4,))
        if count not in fitting:
            raise lacking(
                spec,
                f"{pruner.kind} of {name!r}, a weight with {count} dimensions",
                f"Distiller's have {'four' if fitting == (4,) else 'two or four'}.",
            )
    if isinstance(pruner, RankedPruner):
        for name, usual in (("scope", "layer"), ("group_size", 1), ("rounding_fn", "floor")):
            given = spec.arguments.get(name, usual)
            if given != usual:
                raise lacking(spec, f"'{name}: {given}'", f"Distiller knows '{name}: {usual}' only.")
        if pruner.kind == "Blocks" and pruner.noise:
            raise lacking(spec, "'noise' for Blocks", "Distiller ignores it there: leave it out.")
        if pruner.is_coupled:
            raise lacking(
                spec,
                "'group_dependency: Coupled'",
                "Distiller knows 'Leader' only: name the layers that belong together under one.",
            )
        if pruner.follows_leader:
            _check_leader(policy, pruner, parameters[pruner.weights[0]])


def _check_leader(policy: PolicySpec, pruner: RankedPruner, leading: nn.Parameter) -> None:
    """Refuse leaders of which no structure goes at first, on which Distiller fails."""
    leader = pruner.weights[0]
    share = pruner.target(leader, {**policy.meta, "current_epoch": policy.meta["starting_epoch"]})
    if isinstance(pruner, RandomLevelStructureParameterPruner):
        share = pruner.sparsity_range[0]
    count = pruner.grouping(leader, leading).count
    if pruner.drop_count(count, share) == 0:
        raise lacking(
            policy.instance,
            f"a sparsity of {share:g} for the {count} {pruner.kind.lower()} of the leader {leader!r}",
            "Distiller fails where not one of them is pruned: begin with a larger sparsity, or leave "
            "'group_dependency' out.",
        )


def _check_groups(
    spec: InstanceSpec,
    target: StructureParameterPruner | ParameterRegularizer,
    parameters: Mapping[str, nn.Parameter],
) -> None:
    """Refuse groups of ``reg_regims`` that Distiller's do not know, or not of such weights."""
    for name, group in _named_groups(target).items():
        shape = tuple(parameters[name].shape)
        if "+4D" in group or "4D+" in group or GROUP_TYPES.get(group) == "Vectors":
            raise lacking(
                spec, f"the group {group!r}", "Distiller knows 2D, 3D, 4D, Channels, Rows and Cols."
            )
        if group not in _MATRIX_GROUPS and len(shape) != 4:
            raise lacking(
                spec,
                f"{group} of {name!r} of shape {shape}",
                "Distiller's are of weights with four dimensions.",
            )
        is_mean = target.threshold_criteria == "Mean_Abs"
        if is_mean and group in ("Rows", "Cols") and shape[0] != shape[1]:
            raise lacking(
                spec,
                f"the mean magnitude of {group} of {name!r} of shape {shape}",
                "Distiller divides by the wrong side of the matrix: take 'threshold_criteria: Max'.",
            )


def _named_groups(target: StructureParameterPruner | ParameterRegularizer) -> dict[str, str]:
    if isinstance(target, StructureParameterPruner):
        return target.structures()
    return {name: value[1] for name, value in target.reg_regims.items() if isinstance(value, tuple)}


def _flags(pruning: Sequence[Entry]) -> Iterator[tuple[list[Entry], Any]]:
    """Yield the active policies of each epoch, and the policy whose options are in force."""
    begun: set[int] = set()
    in_force = None
    for epoch in sorted({epoch for policy, _ in pruning for epoch in policy.active}):
        active = [(policy, made) for policy, made in pruning if epoch in policy.active]
        for policy, made in active:
            if id(policy) not in begun:
                begun.add(id(policy))
                in_force = made
        yield active, in_force


def _check_double_copies(pruning: Sequence[Entry]) -> None:
    for active, in_force in _flags(pruning):
        if len(active) > 1 and in_force.use_double_copies:
            raise lacking(
                active[-1][0].instance,
                "two policies in one epoch with 'use_double_copies' in force",
                "Distiller loses the dense weights then: let one of them begin when the other has ended.",
            )


def _check_gradients(pruning: Sequence[Entry]) -> None:
    """Refuse masked gradients while another policy ends or masks them too."""
    for policy, made in pruning:
        if not made.mask_gradients:
            continue
        first, last = policy.active[0], policy.active[-1]
        for other, other_made in pruning:
            ends = first <= other.active[-1] < last
            begins = other_made.mask_gradients and first <= other.active[0] <= last
            if other is not policy and (ends or begins):
                raise lacking(
                    policy.instance,
                    f"'mask_gradients' in epochs {first} to {last} beside {other.instance.name!r}",
                    "Distiller stops masking with the first policy that ends: let one of them begin when the "
                    "other has ended.",
                )


def _check_thresholds(entries: Sequence[Entry], pruning: Sequence[Entry]) -> None:
    """Refuse a regularizer's threshold beside masks that Distiller loses by it."""
    for policy, made in entries:
        if not (isinstance(made, RegularizationPolicy) and made.has_threshold):
            continue
        named = getattr(made.regularizer, "reg_regims", {})
        for _, other in pruning:
            if other.mask_on_forward_only:
                raise lacking(
                    policy.instance,
                    "a regularizer's threshold beside 'mask_on_forward_only'",
                    "Distiller makes the masks of all weights permanent then: leave one of them out.",
                )
            shared = [name for name in named if other.prunes(name)]
            if shared:
                raise lacking(
                    policy.instance,
                    f"a regularizer's threshold for {shared[0]!r}, which a pruner may prune too",
                    "Distiller loses the pruner's mask then: leave 'threshold_criteria' out.",
                )


def _check_own(entries: Sequence[Entry]) -> None:
    """Refuse one policy of the user's own in two entries: Distiller gives both the epochs of the last."""
    own = [policy for policy, _ in entries if policy.section == "extensions"]
    names = [policy.instance.name for policy in own if "." in policy.instance.node.value["class"]]
    for policy in own:
        if names.count(policy.instance.name) > 1:
            raise lacking(
                policy.instance,
                f"the extension {policy.instance.name!r} in two policies",
                "Distiller gives both of them the epochs of the last one: declare it twice, by two names.",
            )
