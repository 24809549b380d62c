"""A schedule as Intel's own Distiller reads it: names in full, stored axes, nothing that Distiller lacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sgc_distiller.dependent_masks import DependentMasksPolicy
from sgc_distiller.distiller_limits import check_distiller, lacking
from sgc_distiller.element_pruners import (
    AutomatedGradualPruner,
    NMPruner,
    SparsityLevelParameterPruner,
)
from sgc_distiller.epochs import last_active_epoch
from sgc_distiller.names import spell_out
from sgc_distiller.pruners import Pruner
from sgc_distiller.pruning_policy import PruningPolicy
from sgc_distiller.ranked_pruners import RankedPruner
from sgc_distiller.regularizers import GroupVarianceRegularizer
from sgc_distiller.schedule_builder import BuiltPolicy, PolicyBuilder
from sgc_distiller.schedule_reader import InstanceSpec, PolicySpec
from sgc_distiller.structure_pruners import StructurePruner

__all__ = ["own_classes", "plain_schedule"]

Plain = dict[str, Any]

_SWAPPED = {"Filters": "Channels", "3D": "Channels", "Channels": "Filters", "Rows": "Filters"}
_OURS = ("scope", "prune_output", "group_size", "rounding_fn")
_NEVER_GROW = (AutomatedGradualPruner, NMPruner, RankedPruner, SparsityLevelParameterPruner)
_KINDS = {"pruners": "pruner", "regularizers": "regularizer", "extensions": "extension"}


def plain_schedule(policies: Sequence[PolicySpec], builder: PolicyBuilder) -> Plain:
    """Return a schedule that gives the same masks in Intel's Distiller.

    Patterns become names. Where a schedule with a ``gan:`` section means a layer's true outputs and inputs,
    the group types of transposed convolutions are swapped, since Distiller counts stored dimensions; what
    belongs to pruned filters is masked by a `DependentMasksPolicy`. That class and ours under
    ``extensions:`` are known to Distiller after ``sgc_distiller.register(distiller)``. The ``gan:`` section
    is left out: it is the loop's.

    Args:
        policies: Entries of a schedule.
        builder: For the model that is compressed.

    Raises:
        ScheduleError: If something cannot be expressed in Distiller.
    """
    return _Writer(builder).write(policies)


def own_classes(policies: Sequence[PolicySpec]) -> dict[str, tuple[str, type]]:
    """Return the section and the class of each class of a user's own that policies name by its dotted path.

    A plain schedule names them without the path, as Distiller does after ``distiller.config.NAME = NAME``.

    Args:
        policies: Entries of a schedule.
    """
    return {
        policy.instance.kind.__name__: (policy.section, policy.instance.kind)
        for policy in policies
        if "." in policy.instance.node.value["class"]
    }


class _Writer:
    def __init__(self, builder: PolicyBuilder) -> None:
        self.builder = builder
        self.model = builder.model
        self.sections: dict[str, dict[str, Any]] = {}
        self.policies: list[Plain] = []

    def write(self, policies: Sequence[PolicySpec]) -> Plain:
        others = [policy for policy in policies if policy.section != "lr_schedulers"]
        built = self.builder.build(others, None, None)
        check_distiller([(policy, made) for policy, made, _ in built if policy is not None], self.model)
        for policy, made, epochs in built:
            if policy is None:
                self._write_dependent(made, epochs, built)
                continue
            if isinstance(made, PruningPolicy) and isinstance(made.pruner, StructurePruner):
                self._write_structures(policy, made.pruner)
            else:
                self._write(policy, self._arguments(policy.instance))
        for policy in policies:
            if policy.section == "lr_schedulers":
                spec = policy.instance
                self._add("lr_schedulers", spec.name, spec, dict(spec.arguments))
                self._use("lr_scheduler", spec.name, policy, {})
        return {"version": 1, **self.sections, "policies": self.policies}

    def _arguments(self, spec: InstanceSpec) -> Plain:
        arguments = spell_out(self.model, spec.arguments, self.builder.spared)
        regims = arguments.get("reg_regims")
        if isinstance(regims, Mapping):
            arguments["reg_regims"] = {
                name: [value[0], self._group(value[1], name)] if isinstance(value, Sequence) else value
                for name, value in regims.items()
            }
            if issubclass(spec.kind, GroupVarianceRegularizer):
                for name, (_, group) in arguments["reg_regims"].items():
                    if group != "Channels":
                        raise lacking(
                            spec,
                            f"the variance of the inputs of the transposed convolution {name!r}",
                            "Distiller knows that of dimension 1 only: take the weight off the list.",
                        )
        return arguments

    def _group(self, group: str, name: str) -> str:
        """Return Distiller's name of the groups of one weight."""
        group = "2D" if group == "Kernels" else group
        is_swapped = self.builder.convention == "module" and self.builder.axes.get(name) == "inputs_first"
        return _SWAPPED.get(group, group) if is_swapped else group

    def _write(self, policy: PolicySpec, arguments: Plain, suffix: str = "") -> None:
        name = policy.instance.name + suffix
        self._add(policy.section, name, policy.instance, arguments)
        options = spell_out(self.model, policy.arguments, self.builder.spared)
        self._use(_KINDS[policy.section], name, policy, options)

    def _add(self, section: str, name: str, spec: InstanceSpec, arguments: Plain) -> None:
        self.sections.setdefault(section, {})[name] = {"class": spec.kind.__name__, **arguments}

    def _use(self, kind: str, name: str, policy: PolicySpec, options: Plain) -> None:
        entry: Plain = {"instance_name": name, **({"args": options} if options else {})}
        if policy.meta["frequency"] is None:
            epochs: Plain = {"epochs": list(policy.active)}
        else:
            epochs = dict(policy.meta)
            if options.get("keep_mask") or options.get("mask_gradients"):
                # so that Distiller, too, knows the last active epoch for the last one
                epochs["ending_epoch"] = last_active_epoch(policy.meta) + 1
        self.policies.append({kind: entry, **epochs})

    def _write_structures(self, policy: PolicySpec, pruner: StructurePruner) -> None:
        """Write a pruner of structures: twice where its weights lie on different axes."""
        spec = policy.instance
        arguments = {k: v for k, v in self._arguments(spec).items() if k not in _OURS}
        swapped = [name for name in pruner.weights if pruner.axes_of(name) == "inputs_first"]
        others = [name for name in pruner.weights if name not in swapped]
        if pruner.kind not in ("Filters", "Channels") or not swapped:
            self._write(policy, arguments)
            return
        if not isinstance(pruner, RankedPruner):
            raise lacking(
                spec,
                f"{spec.kind.__name__} on the outputs of the transposed convolution {swapped[0]!r}",
                "Distiller's prunes stored filters only: use L1RankedStructureParameterPruner.",
            )
        if others and pruner.follows_leader:
            raise lacking(
                spec,
                f"a leader for convolutions and transposed ones ({others[0]!r}, {swapped[0]!r})",
                "Give each kind a pruner of its own.",
            )
        for option in ("use_double_copies", "mask_gradients"):
            if others and policy.arguments.get(option):
                raise lacking(
                    spec,
                    f"{option!r} for convolutions and transposed ones ({others[0]!r}, {swapped[0]!r})",
                    "They become two pruners there, which do not go with it: leave out one kind.",
                )
        if others:
            self._write(policy, {**arguments, "weights": others})
        group = self._group(str(arguments["group_type"]), swapped[0])
        suffix = "_transposed" if others else ""
        self._write(policy, {**arguments, "group_type": group, "weights": swapped}, suffix)

    def _write_dependent(
        self, made: DependentMasksPolicy, epochs: Mapping[str, Any], built: Sequence[BuiltPolicy]
    ) -> None:
        """Write the policy that completes masks, unless it has nothing to do."""
        pruning = [instance for _, instance, _ in built if isinstance(instance, PruningPolicy)]
        if not made.filters and not _brings_elements_back(pruning, list(dict(self.model.named_parameters()))):
            return
        settings = {"class": type(made).__name__, "filters": list(made.filters)}
        self.sections.setdefault("extensions", {})[made.name] = settings
        self.policies.append({"extension": {"instance_name": made.name}, "epochs": list(epochs["epochs"])})


def _brings_elements_back(pruning: Sequence[PruningPolicy], names: Sequence[str]) -> bool:
    """Return whether elements that were masked for good may learn again, so that moments of theirs matter."""
    if any(not isinstance(item.pruner, _NEVER_GROW) for item in pruning if isinstance(item.pruner, Pruner)):
        return True
    if any(item.discard_masks_at_minibatch_end for item in pruning):
        return True
    if len(pruning) > 1 and any(item.mask_on_forward_only for item in pruning):
        return True  # options of one policy count for the masks of the others
    pruners = {id(item.pruner): item for item in pruning}.values()
    return any(sum(item.prunes(name) for item in pruners) > 1 for name in names)
