"""Schedules: YAML in, a scheduler with policies out."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from sgc_distiller.errors import UserError
from sgc_distiller.experiment_spec import DiscriminatorSpec, GanSpec, StudentSpec
from sgc_distiller.lr_schedulers import make_lr_scheduler
from sgc_distiller.names import canonical, find_names, spell_out
from sgc_distiller.policies import LRPolicy, PruningPolicy
from sgc_distiller.schedule_reader import CLASSES, PolicySpec, read_spec
from sgc_distiller.scheduler import CompressionScheduler
from sgc_distiller.supervision import Supervision, unwrapped
from sgc_distiller.yaml_source import Node, read_dict, read_file

__all__ = [
    "CLASSES",
    "DiscriminatorSpec",
    "GanSpec",
    "Schedule",
    "StudentSpec",
    "dict_config",
    "file_config",
    "read_schedule",
]

log = logging.getLogger(__name__)

_NAMING = ("pruner", "regularizer")  # kinds of policies whose objects name parameters


class Schedule:
    """A schedule that was read and checked; it can be built for any number of models.

    Args:
        root: The schedule's values and their places.
        text: The file's text, or an empty text.

    Attributes:
        source: File name, or ``<dict>``.
        text: The file's text, or an empty text.
        gan: The ``gan:`` section, or None where there is none.
        epochs: How many epochs the schedule needs.

    Raises:
        ScheduleError: If there is a mistake in it.
    """

    def __init__(self, root: Node, text: str = "") -> None:
        spec = read_spec(root)
        self._root = root
        self.source = root.source
        self.text = text
        self.gan: GanSpec | None = spec.gan
        needed: int = max((policy.meta["ending_epoch"] for policy in spec.policies), default=0)
        self.epochs = self.gan.epochs if self.gan and self.gan.epochs else needed
        self._needed_epochs = needed
        if self.epochs < needed:
            raise (
                root.child("gan")
                .child("epochs")
                .error(f"Expected at least {needed} epochs, which the policies need, got {self.epochs}.")
            )
        self._policies = spec.policies
        for name in spec.unused:
            log.warning("%s: %s is declared, but no policy uses it.", self.source, name)

    @classmethod
    def from_dict(cls, schedule: Mapping[str, Any]) -> Schedule:
        """Return the schedule that a dictionary holds; the dictionary is not changed."""
        return cls(read_dict(schedule))

    def build(
        self,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        scheduler: CompressionScheduler | None = None,
        resumed_epoch: int | None = None,
    ) -> CompressionScheduler:
        """Return a scheduler with this schedule's policies for a model.

        Build it before the optimizer's state is loaded, and load both states afterwards; or, as Distiller's
        loops do, load both states first and say with ``resumed_epoch`` which epoch was trained last.

        Args:
            model: The model that is compressed.
            optimizer: The optimizer of its parameters; only learning-rate schedules need it.
            scheduler: A scheduler to add the policies to, in place of a new one; its model counts.
            resumed_epoch: The last epoch that was trained, None for a new run.

        Raises:
            ScheduleError: If a name or a pattern fits no parameter, an object cannot be made, or policies
                contradict each other.
        """
        made: dict[int, Any] = {}
        added = scheduler if scheduler is not None else CompressionScheduler(model)
        model = added.model
        spared = self._spared(model)
        policies = [policy for policy in self._policies if policy.section != "lr_schedulers"]
        built = [(policy, self._make_policy(policy, model, spared, made)) for policy in policies]
        built += [
            (policy, self._make_lr_policy(policy, optimizer, resumed_epoch, made))
            for policy in self._policies
            if policy.section == "lr_schedulers"
        ]
        _check_modes(built)
        for policy, instance in built:
            try:
                added.add_policy(instance, **policy.epochs)
            except UserError as error:
                raise policy.node.error(error) from error
        log.info("The schedule %s runs in sgc_distiller's own runtime.", self.source)
        return added

    def sparsity_plan(self, model: nn.Module, epochs: int | None = None) -> list[dict[str, float]]:
        """Return the sparsity that is asked of each pruned parameter in each epoch.

        Masks stay after the last epoch of their policy. Where they are used on the forward pass only, an
        epoch without a pruning policy is dense, so 0 is asked in it; masks that are discarded after each step
        last for the active epochs only.

        Args:
            model: The model that is to be compressed.
            epochs: How many epochs to plan; by default as many as the schedule needs.

        Returns:
            For each epoch the sparsities in [0, 1] by parameter name, for all parameters that
            are ever pruned.
        """
        made: dict[int, Any] = {}
        pruning = [policy for policy in self._policies if policy.section == "pruners"]
        spared = self._spared(model)
        entries = [(policy, self._make_policy(policy, model, spared, made)) for policy in pruning]
        names = [name for name, _ in model.named_parameters()]
        plan: list[dict[str, float]] = []
        state = _PlanState()
        for epoch in range(self.epochs if epochs is None else epochs):
            plan.append(state.next_epoch(epoch, entries, names))
        pruned = {name for row in plan for name, level in row.items() if level > 0}
        return [{name: row.get(name, 0.0) for name in names if name in pruned} for row in plan]

    def resolved(
        self,
        model: nn.Module,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        lr: float | None = None,
    ) -> dict[str, Any]:
        """Return the schedule that says of this model in full what this one leaves open; it means the same.

        Patterns of the pruners in use are replaced by names, and the ``gan:`` section has every setting. A
        schedule without that section stays without it.

        Args:
            model: The model that is to be compressed.
            epochs: Replaces ``gan.epochs``; never below what the policies need, which the file must have.
            steps_per_epoch: Replaces ``gan.steps_per_epoch``.
            lr: Replaces ``gan.lr``.

        Raises:
            ScheduleError: If a name or a pattern fits no parameter.
        """
        self.sparsity_plan(model, epochs=0)  # shows mistakes at their places
        spared = self._spared(model)
        found: dict[str, Any] = deepcopy(self._root.value)
        for policy, entry in zip(self._policies, found["policies"], strict=True):
            for kind in entry.keys() & set(_NAMING):
                named = found[policy.section]
                named[policy.instance.name] = spell_out(model, named[policy.instance.name], spared)
                if "args" in entry[kind]:
                    entry[kind]["args"] = spell_out(model, entry[kind]["args"], spared)
        if self.gan is not None:
            given = {"steps_per_epoch": steps_per_epoch, "lr": lr}
            found["gan"] = {
                **asdict(self.gan),
                **{key: value for key, value in given.items() if value is not None},
                "epochs": self.epochs if epochs is None else max(epochs, self._needed_epochs),
            }
        return found

    def _spared(self, model: nn.Module) -> set[str]:
        """Return the parameters that no pattern matches: with ``output_layer: dense`` the output layers."""
        if self.gan is None or self.gan.output_layer == "pruned":
            return set()
        try:
            supervision = Supervision.of(model)
        except UserError as error:
            raise self._root.child("gan").child("output_layer").error(str(error)) from error
        layers = set(supervision.task.output_layers(unwrapped(model)))
        return {name for name, _ in model.named_parameters() if canonical(name) in layers}

    def _make_policy(
        self, policy: PolicySpec, model: nn.Module, spared: set[str], made: dict[int, Any]
    ) -> Any:
        instance = policy.instance
        if id(instance) not in made:
            if policy.section == "pruners":
                _check_names(instance.node, model, spared)
            made[id(instance)] = instance.make(name=instance.name, model=model)
        if policy.section == "extensions":
            return made[id(instance)]
        pruning = PruningPolicy(made[id(instance)], policy.arguments)
        if pruning.levels is not None:
            _check_names(policy.node.child("pruner").child("args"), model, spared)
        try:
            pruning.bind(model, spared)
        except UserError as error:
            raise instance.node.error(error) from error
        return pruning

    def _make_lr_policy(
        self, policy: PolicySpec, optimizer: Optimizer | None, resumed_epoch: int | None, made: dict[int, Any]
    ) -> LRPolicy:
        instance = policy.instance
        if optimizer is None:
            raise instance.node.error("Expected an optimizer for a learning-rate schedule, got none.")
        if id(instance) not in made:
            try:
                made[id(instance)] = make_lr_scheduler(
                    instance.kind, optimizer, instance.arguments, resumed_epoch
                )
            except (TypeError, ValueError) as error:
                raise instance.node.error(error if isinstance(error, UserError) else str(error)) from error
        return LRPolicy(made[id(instance)])


class _PlanState:
    """What a plan carries from one epoch to the next: levels, and whether masks are used between policies."""

    def __init__(self) -> None:
        self.levels: dict[str, float] = {}
        self.is_forward_only = False
        self._begun: set[int] = set()

    def next_epoch(
        self, epoch: int, entries: list[tuple[PolicySpec, Any]], names: list[str]
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


def _check_names(node: Node, model: nn.Module, spared: set[str]) -> None:
    """Refuse names and patterns under ``weights`` and ``levels`` that fit no parameter, each at its place."""
    asked = node.mapping("arguments")
    entries = asked["weights"].sequence("a list") if "weights" in asked else []
    if "levels" in asked and asked["levels"].value is not None:
        entries += [child for name, child in asked["levels"].mapping("levels").items() if name != "*"]
    for entry in entries:
        name = entry.value if isinstance(entry.value, str) else entry.path[-1]
        try:
            find_names(model, name, spared)
        except UserError as error:
            raise entry.error(error) from error


def _check_modes(built: list[tuple[PolicySpec, Any]]) -> None:
    """Refuse two policies that replace the loss in one epoch, and one that would drop what another added."""
    modal = [
        (policy, instance)
        for policy, instance in built
        if getattr(instance, "mode", None) in ("replace", "add")
    ]
    for index, (later, instance) in enumerate(modal):
        if instance.mode != "replace":
            continue
        for earlier, other in modal[:index]:
            shared = sorted(set(earlier.active) & set(later.active))
            if not shared:
                continue
            first, second = earlier.instance.name, later.instance.name
            if other.mode == "replace":
                problem = (
                    f"Expected at most one policy that replaces the loss in an epoch, got {first!r} and "
                    f"{second!r} in epoch {shared[0]}. Set 'mode: add' in one of them, or give them other "
                    "epochs."
                )
            else:
                problem = (
                    f"Expected {second!r}, which replaces the loss, before {first!r}, which adds to it: in "
                    f"epoch {shared[0]} it would drop what {first!r} added. Swap the two policies."
                )
            raise later.node.error(problem)


def read_schedule(filename: str | Path) -> Schedule:
    """Return the schedule of a YAML file.

    Raises:
        ScheduleError: If the file cannot be read, or there is a mistake in it that shows without a model.
    """
    root, text = read_file(filename)
    return Schedule(root, text)


def file_config(
    model: nn.Module,
    optimizer: Optimizer | None,
    filename: str | Path,
    scheduler: CompressionScheduler | None = None,
    resumed_epoch: int | None = None,
) -> CompressionScheduler:
    """Read a schedule file and build it; see `Schedule.build`.

    Raises:
        ScheduleError: If there is a mistake in it.
    """
    return read_schedule(filename).build(model, optimizer, scheduler, resumed_epoch)


def dict_config(
    model: nn.Module,
    optimizer: Optimizer | None,
    schedule: Mapping[str, Any],
    scheduler: CompressionScheduler | None = None,
    resumed_epoch: int | None = None,
) -> CompressionScheduler:
    """Build a schedule given as a dictionary, which is not changed; see `Schedule.build`.

    Raises:
        ScheduleError: If there is a mistake in it.
    """
    return Schedule.from_dict(schedule).build(model, optimizer, scheduler, resumed_epoch)
