"""A schedule's sections, read and checked as far as that goes without a model."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from sgc_distiller import checks
from sgc_distiller.class_lookup import construct, find_class
from sgc_distiller.dependent_masks import DependentMasksPolicy
from sgc_distiller.element_pruners import ELEMENT_PRUNERS
from sgc_distiller.epochs import active_epochs
from sgc_distiller.errors import UserError
from sgc_distiller.experiment_spec import DiscriminatorSpec, GanSpec, StudentSpec
from sgc_distiller.filter_pruners import FILTER_PRUNERS
from sgc_distiller.loss_policies import LOSS_POLICIES
from sgc_distiller.lr_schedulers import LR_SCHEDULERS, rehearse
from sgc_distiller.pruning_policy import PruningPolicy
from sgc_distiller.ranked_pruners import STRUCTURE_PRUNERS
from sgc_distiller.regularizers import REGULARIZERS, ParameterRegularizer
from sgc_distiller.removers import REMOVERS, is_remover
from sgc_distiller.yaml_source import Node

log = logging.getLogger(__name__)

__all__ = ["CLASSES", "InstanceSpec", "PolicySpec", "ScheduleSpec", "read_spec"]

CLASSES: dict[str, dict[str, type]] = {
    "pruners": {cls.__name__: cls for cls in (*ELEMENT_PRUNERS, *STRUCTURE_PRUNERS, *FILTER_PRUNERS)},
    "regularizers": REGULARIZERS,
    "lr_schedulers": LR_SCHEDULERS,
    "extensions": {**LOSS_POLICIES, "DependentMasksPolicy": DependentMasksPolicy, **REMOVERS},
}
"""The classes that each section of a schedule can name. Add a class of your own to the section it is for."""

_SECTION_OF = {
    "pruner": "pruners",
    "regularizer": "regularizers",
    "lr_scheduler": "lr_schedulers",
    "extension": "extensions",
}
_KINDS = ", ".join(map(repr, _SECTION_OF))
_UNSUPPORTED = {"quantizers": "quantizer"}
_TOP_LEVEL = ("version", *CLASSES, "policies", "gan")
_RANGE = ("starting_epoch", "ending_epoch", "frequency")
_GIVEN = ("self", "name", "model", "optimizer", "last_epoch")  # what the loader itself passes on


@dataclass(frozen=True)
class InstanceSpec:
    """One named object of a section: its class and arguments."""

    name: str
    kind: type
    arguments: Mapping[str, Any]
    node: Node = field(repr=False)

    @property
    def needs_model(self) -> bool:
        """Whether the object cannot be made without a model."""
        return "model" in inspect.signature(self.kind).parameters

    def complete(self, **given: Any) -> dict[str, Any]:
        """Return the arguments, and those of ``given`` that the constructor takes."""
        takes = inspect.signature(self.kind).parameters
        return {**{key: value for key, value in given.items() if key in takes}, **self.arguments}

    def make(self, **given: Any) -> Any:
        """Return the object; ``given`` is passed on where its constructor takes it.

        Raises:
            ScheduleError: If the constructor refuses its arguments.
        """
        return construct(self.node, self.kind, self.complete(**given))


@dataclass(frozen=True)
class PolicySpec:
    """One entry of ``policies``: which object acts in which epochs."""

    section: str
    instance: InstanceSpec
    arguments: Mapping[str, Any]
    active: tuple[int, ...]
    meta: Mapping[str, Any]
    epochs: Mapping[str, Any]
    node: Node = field(repr=False)


@dataclass(frozen=True)
class ScheduleSpec:
    """A schedule without mistakes that could be found without a model."""

    policies: tuple[PolicySpec, ...]
    unused: tuple[str, ...]
    gan: GanSpec | None
    discriminator: Node | None


def read_spec(root: Node, is_part: bool = False) -> ScheduleSpec:
    """Return the checked schedule.

    Args:
        root: The schedule's values and their places.
        is_part: Whether it stands inside of another schedule and has no ``gan:`` section of its own.

    Raises:
        ScheduleError: At the first mistake, with its place.
    """
    top = root.mapping("sections of a schedule")
    for section in _UNSUPPORTED.keys() & top.keys():
        raise top[section].error(
            f"Expected no section {section!r}: this tool prunes, {section} are not supported. Remove the "
            f"section and the policies with {_UNSUPPORTED[section]!r}."
        )
    allowed = [section for section in _TOP_LEVEL if not (is_part and section == "gan")]
    top = root.mapping("a section of a schedule", allowed)
    if "version" in top and top["version"].value != 1:
        raise top["version"].error(f"Expected version 1, got {top['version'].value!r}.")
    instances = {section: _read_section(section, top[section]) for section in CLASSES if section in top}
    if "policies" not in top:
        raise root.error("Expected a list of 'policies', which may be empty ([]), got none.")
    entries = top["policies"].sequence("a list of policies, which may be empty ([])")
    policies = tuple(_read_policy(entry, instances) for entry in entries)
    used = {(policy.section, policy.instance.name) for policy in policies}
    unused = [
        f"{section}.{name}"
        for section, found in instances.items()
        for name in found
        if (section, name) not in used
    ]
    if "gan" not in top:
        return ScheduleSpec(policies, tuple(unused), None, None)
    return ScheduleSpec(policies, tuple(unused), *_read_gan(top["gan"]))


def _read_section(section: str, node: Node) -> dict[str, InstanceSpec]:
    entries = node.mapping("instances by name; leave the section out if there are none")
    return {name: _read_instance(section, name, entry) for name, entry in entries.items()}


def _read_instance(section: str, name: str, node: Node) -> InstanceSpec:
    values = node.mapping("'class' and its arguments")
    if "class" not in values:
        raise node.error(f"Expected 'class', one of {', '.join(sorted(CLASSES[section]))}, got none.")
    kind = find_class(values["class"], section, CLASSES)
    kind_name = values["class"].value
    parameters = {
        key: parameter
        for key, parameter in inspect.signature(kind).parameters.items()
        if key not in _GIVEN and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    node.mapping(f"an argument of {kind_name}", ["class", *parameters])
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in values:
            raise node.error(f"Expected argument {key!r} of {kind_name}, got none.")
    arguments = {key: child.value for key, child in values.items() if key != "class"}
    if isinstance(arguments.get("weights"), str):
        where = values["weights"]
        place = where.source if where.line is None else f"{where.source}:{where.line}"
        log.warning("%s: %s: a text is read as a list with that one name.", place, where.key)
        arguments["weights"] = [arguments["weights"]]
    spec = InstanceSpec(name, kind, arguments, node)
    if (section == "pruners" and not spec.needs_model) or is_remover(kind):
        spec.make(name=name)
    elif issubclass(kind, ParameterRegularizer):
        spec.make(name=name, model=None)
    return spec


def _refuse_other_kind(kind: str, name: Node, instances: Mapping[str, Mapping[str, InstanceSpec]]) -> None:
    """Refuse the name of an instance that another kind of policy applies."""
    for other, section in _SECTION_OF.items():
        if name.value in instances.get(section, {}):
            raise name.error(
                f"{name.value!r} is declared under {section!r}: expected '{other}:' in the place of "
                f"'{kind}:', or the name of an instance under {_SECTION_OF[kind]!r}."
            )


def _read_policy(node: Node, instances: Mapping[str, Mapping[str, InstanceSpec]]) -> PolicySpec:
    entry = node.mapping(f"one of {_KINDS}, and its epochs")
    for kind in _UNSUPPORTED.values():
        if kind in entry:
            raise entry[kind].error(
                f"Expected one of {_KINDS} in a policy; {kind} policies are not supported."
            )
    node.mapping("a key of a policy", [*_SECTION_OF, "epochs", *_RANGE])
    kinds = [kind for kind in _SECTION_OF if kind in entry]
    if len(kinds) != 1:
        found = " and ".join(kinds) or "none"
        raise node.error(f"Expected exactly one of {_KINDS} in a policy, got {found}.")
    kind = kinds[0]
    what = entry[kind].mapping("'instance_name', and options under 'args'", ["instance_name", "args"])
    if "instance_name" not in what:
        raise entry[kind].error("Expected 'instance_name', got none.")
    section = _SECTION_OF[kind]
    known = instances.get(section, {})
    name = _text(what["instance_name"])
    if isinstance(name.value, str) and name.value not in known:
        _refuse_other_kind(kind, name, instances)
    instance = known[name.name(f"an instance declared under {section!r}", list(known))]
    active, meta = _read_epochs(node, entry)
    arguments = _read_arguments(kind, what)
    epochs = {key: child.value for key, child in entry.items() if key != kind}
    policy = PolicySpec(section, instance, arguments, tuple(active), meta, epochs, node)
    _check_together(policy, what.get("args"))
    return policy


def _text(node: Node) -> Node:
    """Return an instance's name as a text: a key ``1:`` is read as ``'1'``, so a value ``1`` is too."""
    is_number = isinstance(node.value, (int, float)) and not isinstance(node.value, bool)
    return Node(str(node.value), node.path, node.source, node.lines) if is_number else node


def _read_arguments(kind: str, what: Mapping[str, Node]) -> Mapping[str, Any]:
    if "args" not in what:
        return {}
    if kind == "regularizer":
        return _read_regularization(what["args"])
    if kind != "pruner":
        raise what["args"].error(
            f"Expected no 'args' for {kind} policies; they take arguments under {_SECTION_OF[kind]!r}."
        )
    return {key: child.value for key, child in what["args"].mapping("options by name").items()}


def _read_regularization(node: Node) -> Mapping[str, Any]:
    options = node.mapping("an option of a regularization policy", ["keep_mask"])
    for option in options.values():
        try:
            checks.boolean(option.value)
        except UserError as error:
            raise option.error(error) from error
    return {name: option.value for name, option in options.items()}


def _read_epochs(node: Node, entry: Mapping[str, Node]) -> tuple[list[int], dict[str, Any]]:
    if "epochs" in entry:
        for key in _RANGE:
            if key in entry:
                raise entry[key].error(f"Expected either 'epochs' or {key!r}, got both. Leave one out.")
        entry["epochs"].sequence("a list of increasing epochs, such as [0, 2, 5]")
    wanted = () if "epochs" in entry else _RANGE
    for key in wanted:
        if key not in entry:
            raise node.error(
                f"Expected 'epochs', or all of {', '.join(map(repr, _RANGE))}; {key!r} is missing."
            )
        if entry[key].value is None:
            raise entry[key].error("Expected a whole number, got nothing.")
    try:
        if "epochs" in entry:
            return active_epochs(entry["epochs"].value, None, None, 1)
        return active_epochs(None, *(entry[key].value for key in wanted))
    except UserError as error:
        raise node.error(error) from error


def _check_together(policy: PolicySpec, arguments: Node | None) -> None:
    """Check what an instance and the policy that uses it mean together."""
    instance = policy.instance
    try:
        if policy.section == "lr_schedulers" and not instance.complete(name=0, model=0).keys() & {
            "name",
            "model",
        }:
            rehearse(instance.kind, instance.arguments, policy.active)
    except UserError as error:
        raise instance.node.error(error) from error
    if policy.section != "pruners" or instance.needs_model:
        return
    pruner = instance.make(name=instance.name)
    try:
        PruningPolicy(pruner, policy.arguments)
    except UserError as error:
        raise (arguments or policy.node).error(error) from error
    try:
        if hasattr(pruner, "check_epochs"):
            pruner.check_epochs(policy.meta)
    except UserError as error:
        raise policy.node.error(error) from error


def _read_gan(node: Node) -> tuple[GanSpec, Node | None]:
    """Return the experiment, and the place of the discriminator's own schedule."""
    parts: dict[str, Any] = {"student": StudentSpec, "discriminator": DiscriminatorSpec}
    values: dict[str, Any] = {}
    own = None
    for key, child in node.mapping("a setting of the experiment", _fields(GanSpec)).items():
        if key in parts:
            more = ["schedule"] if key == "discriminator" else []
            given = child.mapping(f"a setting of the {key}", [*_fields(parts[key]), *more])
            own = given.pop("schedule", own)
            values[key] = _make(parts[key], child, {name: item.value for name, item in given.items()})
        else:
            values[key] = child.value
    made: GanSpec = _make(GanSpec, node, values)
    if own is not None and not made.discriminator.train:
        raise own.error("Expected 'train: true' beside a schedule of the discriminator, got false.")
    return made, own


def _fields(kind: Any) -> list[str]:
    return [item.name for item in fields(kind)]


def _make(kind: Any, node: Node, values: Mapping[str, Any]) -> Any:
    try:
        return kind(**values)
    except UserError as error:
        raise node.error(error) from error
