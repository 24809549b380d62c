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
from sgc_distiller.lr_schedulers import settings_kept_on_error
from sgc_distiller.names import prunable_names, spell_out
from sgc_distiller.plain_schedule import plain_schedule
from sgc_distiller.pruning_policy import PruningPolicy
from sgc_distiller.remover_checks import check_removers, removal_epochs
from sgc_distiller.removers import StructureRemover
from sgc_distiller.schedule_builder import PolicyBuilder
from sgc_distiller.schedule_plan import Row, overall_plan, sparsity_plan
from sgc_distiller.schedule_reader import CLASSES, PolicySpec, read_spec
from sgc_distiller.scheduler import CompressionScheduler
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
_NAMING_SECTIONS = ("pruners", "regularizers")


class Schedule:
    """A schedule that was read and checked; it can be built for any number of models.

    Args:
        root: The schedule's values and their places.
        text: The file's text, or an empty text.
        part_of: The experiment of the file in which this is the discriminator's own schedule.

    Attributes:
        source: File name, or ``<dict>``.
        text: The file's text, or an empty text.
        gan: The ``gan:`` section, or None where there is none.
        discriminator: The discriminator's own schedule, or None.
        epochs: How many epochs the schedule needs.

    Raises:
        ScheduleError: If there is a mistake in it.
    """

    def __init__(self, root: Node, text: str = "", part_of: GanSpec | None = None) -> None:
        spec = read_spec(root, is_part=part_of is not None)
        self._root = root
        self.source = root.source
        self.text = text
        self.gan: GanSpec | None = spec.gan
        self._experiment = part_of or spec.gan
        self._is_part = part_of is not None
        self.policies = spec.policies
        self.discriminator: Schedule | None = None
        if spec.discriminator is not None:
            self.discriminator = Schedule(spec.discriminator, part_of=spec.gan)
        needed: int = max((policy.meta["ending_epoch"] for policy in spec.policies), default=0)
        needed = max(needed, self.discriminator.epochs if self.discriminator else 0)
        self.epochs: int = self.gan.epochs if self.gan and self.gan.epochs else needed
        self._needed_epochs = needed
        if self.epochs < needed:
            raise (
                root.child("gan")
                .child("epochs")
                .error(f"Expected at least {needed} epochs, which the policies need, got {self.epochs}.")
            )
        check_removers(spec.policies, self.source, self._is_part)
        for name in spec.unused:
            log.warning("%s: %s is declared, but no policy uses it.", self.source, name)
        if not spec.policies and self.gan is None:
            log.warning("%s: the list of policies is empty, so nothing will happen.", self.source)

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
        seed: int | None = None,
    ) -> CompressionScheduler:
        """Return a scheduler with this schedule's policies for a model.

        Build it before the optimizer's state is loaded, and load both states afterwards; or, as Distiller's
        loops do, load both states first and say with ``resumed_epoch`` which epoch was trained last.

        Args:
            model: The model that is compressed.
            optimizer: The optimizer of its parameters; only learning-rate schedules need it.
            scheduler: A scheduler to add the policies to, in place of a new one; its model counts.
            resumed_epoch: The last epoch that was trained, None for a new run.
            seed: Seed of what pruners draw at random; None to go on from the global generators of Python,
                NumPy and torch as Distiller does.

        Raises:
            ScheduleError: If a name or a pattern fits no parameter, an object cannot be made, or policies
                contradict each other. Model, optimizer and scheduler are as they were then.
        """
        added = scheduler if scheduler is not None else CompressionScheduler(model)
        builder = self._builder(added.model, seed)
        with added.all_or_none(), settings_kept_on_error(optimizer):
            built = builder.build(self.policies, optimizer, resumed_epoch)
            for policy, instance, epochs in built:
                try:
                    if isinstance(instance, StructureRemover):
                        instance.check_model(added.model)
                    added.add_policy(instance, **epochs)
                except UserError as error:
                    raise (self._root if policy is None else policy.node).error(error) from error
        for _, instance, _ in built:
            if isinstance(instance, PruningPolicy):
                instance.watch()
        log.info("The schedule %s runs in sgc_distiller's own runtime.", self.source)
        return added

    def _builder(self, model: nn.Module, seed: int | None = None) -> PolicyBuilder:
        place = self._root.child("gan") if self.gan is not None else self._root
        return PolicyBuilder(model, self._experiment, not self._is_part, place, seed)

    def pruners(self, model: nn.Module | None = None) -> list[tuple[PolicySpec, Any]]:
        """Return the entries about pruners, each with its pruner.

        Args:
            model: The model whose parameters they are to find; None to leave names and patterns as they are.
        """
        entries = [policy for policy in self.policies if policy.section == "pruners"]
        if model is None:
            return [(p, p.instance.make(name=p.instance.name)) for p in entries if not p.instance.needs_model]
        builder = self._builder(model)
        return [(policy, builder.make(policy).pruner) for policy in entries]

    def plain(self, model: nn.Module) -> dict[str, Any]:
        """Return this schedule as Intel's Distiller reads it; see `plain_schedule`.

        Args:
            model: The model that is to be compressed.

        Raises:
            ScheduleError: If something cannot be expressed in Distiller.
        """
        return plain_schedule(self.policies, self._builder(model))

    def sparsity_plan(self, model: nn.Module, epochs: int | None = None, overall: bool = False) -> list[Row]:
        """Return the sparsity that is asked of each pruned parameter in each epoch; see `sparsity_plan`.

        Args:
            model: The model that is to be compressed.
            epochs: How many epochs to plan; by default as many as the schedule needs.
            overall: Whether the numbers are meant for all weights together.
        """
        builder = self._builder(model)
        making = [policy for policy in self.policies if policy.section in _NAMING_SECTIONS]
        entries = [(policy, builder.make(policy)) for policy in making]
        names = [name for name, _ in model.named_parameters()]
        count = self.epochs if epochs is None else epochs
        return sparsity_plan(entries, names, count, overall, removal_epochs(self.policies))

    def asked_overall(self, model: nn.Module, epochs: int | None = None) -> list[float | None]:
        """Return the sparsity that is asked of all prunable weights together in each epoch.

        Args:
            model: The model that is to be compressed.
            epochs: How many epochs to plan; by default as many as the schedule needs.

        Returns:
            Sparsities in [0, 1]; None where only the run tells.
        """
        wanted = prunable_names(model)
        sizes = {name: param.numel() for name, param in model.named_parameters() if name in wanted}
        return overall_plan(self.sparsity_plan(model, epochs, overall=True), sizes)

    def resolved(
        self,
        model: nn.Module,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        lr: float | None = None,
        discriminator: nn.Module | None = None,
    ) -> dict[str, Any]:
        """Return the schedule that says of this model in full what this one leaves open; it means the same.

        Patterns of the pruners and regularizers in use are replaced by names, and the ``gan:`` section has
        every setting. A schedule without that section stays without it.

        Args:
            model: The model that is to be compressed.
            epochs: Replaces ``gan.epochs``; never below what the policies need, which the file must have.
            steps_per_epoch: Replaces ``gan.steps_per_epoch``.
            lr: Replaces ``gan.lr``.
            discriminator: The one that a schedule of its own is about; None leaves that schedule as it is.

        Raises:
            ScheduleError: If a name or a pattern fits no parameter.
        """
        builder = self._builder(model)
        spared = builder.spared
        found: dict[str, Any] = deepcopy(self._root.value)
        for policy, entry in zip(self.policies, found["policies"], strict=True):
            for kind in entry.keys() & set(_NAMING):
                builder.make(policy)  # shows mistakes at their places
                named = found[policy.section]
                named[policy.instance.name] = spell_out(model, named[policy.instance.name], spared)
                if "args" in entry[kind]:
                    entry[kind]["args"] = spell_out(model, entry[kind]["args"], spared)
        if self.gan is not None:
            given = {"steps_per_epoch": steps_per_epoch, "lr": lr}
            settings = asdict(self.gan)
            if self.discriminator is not None:
                own = found["gan"]["discriminator"]["schedule"]
                settings["discriminator"]["schedule"] = (
                    own if discriminator is None else self.discriminator.resolved(discriminator)
                )
            found["gan"] = {
                **settings,
                **{key: value for key, value in given.items() if value is not None},
                "epochs": self.epochs if epochs is None else max(epochs, self._needed_epochs),
            }
        return found


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
