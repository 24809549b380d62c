"""Building a schedule's policies for a model: names found, objects made, policies checked together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from sgc_distiller import checks
from sgc_distiller.dependent_masks import DependentMasksPolicy
from sgc_distiller.errors import UserError
from sgc_distiller.experiment_spec import GanSpec
from sgc_distiller.lr_schedulers import make_lr_scheduler
from sgc_distiller.module_state import unwrapped
from sgc_distiller.names import canonical, find_names, layer_axes, prunable_names
from sgc_distiller.policies import LRPolicy
from sgc_distiller.pruners import Convention, Pruner
from sgc_distiller.pruning_policy import PruningPolicy
from sgc_distiller.regularization_policy import RegularizationPolicy
from sgc_distiller.removers import StructureRemover
from sgc_distiller.returning_filters import check_returning_filters, keeps_groups, structures_of
from sgc_distiller.schedule_reader import InstanceSpec, PolicySpec
from sgc_distiller.seeding import RandomStreams
from sgc_distiller.supervision import Supervision
from sgc_distiller.yaml_source import Node

__all__ = ["BuiltPolicy", "PolicyBuilder"]

BuiltPolicy = tuple[PolicySpec | None, Any, dict[str, Any]]
"""A policy's entry in the file, None for one that the ``gan:`` section brings; the policy; its epochs."""


class PolicyBuilder:
    """Makes the policies of one schedule for one model.

    Args:
        model: The model that is compressed.
        gan: The experiment that the schedule is part of, None for a plain Distiller schedule.
        prunes_generator: Whether ``model`` is the generator, whose output layer makes the pictures.
        place: The schedule's ``gan:`` section, for messages.
        seed: Seed of what pruners draw; None to go on from the global generators as Distiller does.

    Raises:
        ScheduleError: If output layers are to be left dense and nobody knows which they are.
    """

    def __init__(
        self,
        model: nn.Module,
        gan: GanSpec | None,
        prunes_generator: bool,
        place: Node,
        seed: int | None = None,
    ) -> None:
        self.model = model
        self.gan = gan
        self.outputs = self._output_layers(place) if gan is not None and prunes_generator else set()
        self.spared = self.outputs if gan is not None and gan.output_layer == "dense" else set()
        self.convention: Convention = (
            "module" if gan is not None and gan.filter_axis == "module" else "stored"
        )
        self.axes = layer_axes(model)
        self._streams = RandomStreams(seed)
        self._made: dict[int, Any] = {}

    def _output_layers(self, place: Node) -> set[str]:
        """Return the weights of the layers that make the pictures."""
        assert self.gan is not None
        try:
            supervision = Supervision.of(self.model)
        except UserError as error:
            if self.gan.output_layer == "dense":
                raise place.child("output_layer").error(str(error)) from error
            return set(prunable_names(self.model)[-1:])
        layers = set(supervision.task.output_layers(unwrapped(self.model)))
        return {name for name, _ in self.model.named_parameters() if canonical(name) in layers}

    def build(
        self, policies: Sequence[PolicySpec], optimizer: Optimizer | None, resumed_epoch: int | None
    ) -> list[BuiltPolicy]:
        """Return the policies in the order in which they are called: learning rates last.

        Raises:
            ScheduleError: If a name fits nothing, an object cannot be made, or policies contradict each
                other.
        """
        built: list[BuiltPolicy] = []
        for policy in policies:
            if policy.section != "lr_schedulers":
                built.append((policy, self.make(policy), dict(policy.epochs)))
        if self.gan is not None:
            if self.convention == "module":
                check_returning_filters([(policy, made) for policy, made, _ in built if policy is not None])
            self._add_dependent_masks(built)
        built.sort(key=lambda entry: isinstance(entry[1], StructureRemover))  # when all masks are set
        for policy in policies:
            if policy.section == "lr_schedulers":
                made = self._make_lr_policy(policy, optimizer, resumed_epoch)
                built.append((policy, made, dict(policy.epochs)))
        _check_modes([(policy, made) for policy, made, _ in built if policy is not None])
        return built

    def make(self, policy: PolicySpec) -> Any:
        """Return the policy of an entry that is not about learning rates."""
        instance = policy.instance
        if policy.section == "extensions":
            return self._instance(instance)
        if policy.section == "regularizers":
            return self._make_regularization(policy)
        if id(instance) not in self._made:
            _check_names(instance.node, self.model, self.spared)
        pruning = PruningPolicy(self._instance(instance), policy.arguments)
        if pruning.levels is not None:
            _check_names(policy.node.child("pruner").child("args"), self.model, self.spared)
        try:
            pruning.check_gradients(self.model)
            pruning.bind(self.model, self.spared, self.convention)
            self._check_output(pruning.pruner)
        except UserError as error:
            path = error.path[:1] if isinstance(error, checks.ArgumentError) else ()
            is_option = path in (("fold_batchnorm",), ("mask_gradients",))
            place = policy.node.child("pruner").child("args") if is_option else instance.node
            raise place.error(error) from error
        return pruning

    def _make_regularization(self, policy: PolicySpec) -> RegularizationPolicy:
        try:
            regularizing = RegularizationPolicy(self._instance(policy.instance), **policy.arguments)
            regularizing.bind(self.model, self.spared, self.convention)
        except UserError as error:
            raise policy.instance.node.error(error) from error
        return regularizing

    def _instance(self, spec: InstanceSpec) -> Any:
        if id(spec) not in self._made:
            made = self._made[id(spec)] = spec.make(name=spec.name, model=self.model)
            if isinstance(made, Pruner):
                made.streams = self._streams
        return self._made[id(spec)]

    def _check_output(self, pruner: Any) -> None:
        """Refuse to prune structures of the layer that makes the pictures unless that is clearly meant."""
        found = pruner.structures() if isinstance(pruner, Pruner) else {}
        for name in self.outputs & found.keys():
            if not (getattr(pruner, "prune_output", False) and pruner.named_in_full(name)):
                raise checks.ArgumentError(
                    f"Expected no structures of {name!r}, the generator's output layer, got {found[name]}: "
                    "pruned pictures lose whole colours or go dark. Write 'output_layer: dense' under 'gan', "
                    "or name the weight in full and add 'prune_output: true' to the pruner.",
                    "weights",
                )

    def _add_dependent_masks(self, built: list[BuiltPolicy]) -> None:
        """Put the policy that completes the masks behind those that prune, in all of their epochs."""
        pruning = [
            (place, policy, made)
            for place, (policy, made, _) in enumerate(built)
            if policy is not None and (policy.section == "pruners" or keeps_groups(made))
        ]
        if not pruning or any(isinstance(made, DependentMasksPolicy) for _, made, _ in built):
            return
        filters = [
            name
            for _, _, made in pruning
            if self.convention == "module"
            for name, kind in structures_of(made).items()
            if kind == "Filters"
        ]
        epochs = sorted({epoch for _, policy, _ in pruning for epoch in policy.active})
        completing = DependentMasksPolicy(self.model, filters=list(dict.fromkeys(filters)))
        built.insert(pruning[-1][0] + 1, (None, completing, {"epochs": epochs}))

    def _make_lr_policy(
        self, policy: PolicySpec, optimizer: Optimizer | None, resumed_epoch: int | None
    ) -> LRPolicy:
        instance = policy.instance
        if optimizer is None:
            raise instance.node.error("Expected an optimizer for a learning-rate schedule, got none.")
        if id(instance) not in self._made:
            arguments = instance.complete(name=instance.name, model=self.model)
            try:
                self._made[id(instance)] = make_lr_scheduler(
                    instance.kind, optimizer, arguments, resumed_epoch
                )
            except (TypeError, ValueError) as error:
                raise instance.node.error(error if isinstance(error, UserError) else str(error)) from error
        return LRPolicy(self._made[id(instance)])


def _check_names(node: Node, model: nn.Module, spared: set[str]) -> None:
    """Refuse names and patterns under ``weights`` and ``levels`` that fit no parameter, each at its place."""
    asked = node.mapping("arguments")
    entries = []
    if "weights" in asked and isinstance(asked["weights"].value, list):
        entries = asked["weights"].sequence("a list")
    if "levels" in asked and isinstance(asked["levels"].value, dict):
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
