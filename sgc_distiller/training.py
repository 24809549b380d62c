"""The one training loop: plain GAN training and supervised compression alike."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from sgc_distiller.errors import UserError
from sgc_distiller.seeding import generator_for, seed_for
from sgc_distiller.supervision import Supervision
from sgc_distiller.tasks.base import Batch, GANTask, Outputs
from sgc_distiller.term_meter import TermMeter

__all__ = ["Observer", "Scheduler", "StepReport", "Trainer"]


class Scheduler(Protocol):
    """Distiller's six hooks; ours and Distiller's own scheduler both have them.

    One that also has ``masked_weights(epoch)``, as `sgc_distiller.CompressionScheduler` has, is asked to show
    the masks of the forward pass outside of steps too.
    """

    def on_epoch_begin(self, epoch: int, optimizer: Any = None, **kwargs: Any) -> None:
        """Fire before an epoch's first step."""

    def on_minibatch_begin(
        self, epoch: int, minibatch_id: int, minibatches_per_epoch: int, optimizer: Any
    ) -> None:
        """Fire before a step's first forward pass."""

    def before_backward_pass(
        self,
        epoch: int,
        minibatch_id: int,
        minibatches_per_epoch: int,
        loss: Tensor,
        optimizer: Any = None,
        return_loss_components: bool = False,
    ) -> Any:
        """Return the loss that the policies make of ``loss``."""

    def before_parameter_optimization(
        self, epoch: int, minibatch_id: int, minibatches_per_epoch: int, optimizer: Any
    ) -> None:
        """Fire after the backward pass."""

    def on_minibatch_end(
        self, epoch: int, minibatch_id: int, minibatches_per_epoch: int, optimizer: Any
    ) -> None:
        """Fire after the optimiser's step."""

    def on_epoch_end(self, epoch: int, optimizer: Any = None, **kwargs: Any) -> None:
        """Fire after an epoch's last step."""


@dataclass(frozen=True)
class StepReport:
    """What an `Observer` is told while an epoch runs.

    Attributes:
        epoch: Epoch, from 0.
        minibatch: Steps done in this epoch.
        minibatches: Steps in an epoch.
        step: Generator updates done since training began.
        terms: The last step's values by name.
        means: Means over the epoch so far.
        lr: The generator's learning rate.
        seconds: Since this epoch began.
    """

    epoch: int
    minibatch: int
    minibatches: int
    step: int
    terms: dict[str, float]
    means: dict[str, float]
    lr: float
    seconds: float


class Observer(Protocol):
    """Is told of progress; the trainer itself neither prints nor writes."""

    def on_step(self, report: StepReport) -> None:
        """Hear of every ``report_every``-th step and of an epoch's last one."""

    def on_epoch(self, trainer: Trainer, report: StepReport) -> dict[str, float]:
        """Evaluate and record after an epoch's last step, before ``on_epoch_end``.

        Returns:
            The metrics for schedulers that follow one, ``{"min": ..., "max": ...}``.
        """
        ...

    def on_epoch_closed(self, trainer: Trainer, report: StepReport) -> None:
        """Write the checkpoint, after ``on_epoch_end``."""


@dataclass
class Trainer:
    """Runs the task's phases step by step, with the scheduler's hooks at their places.

    Attributes:
        task: The GAN.
        supervision: Student, discriminator and teacher of this run.
        generator_optimizer: Moves the generator.
        discriminator_optimizer: Moves the discriminator.
        batches: Called with a batch number, returns an endless iterator of raw batches from there on, a
            function of that number alone.
        steps_per_epoch: Generator updates in one epoch.
        epochs: Where to stop, counted from 0.
        seed: Of noise and dropout.
        scheduler: Gets the six hooks; ``None`` for none.
        discriminator_scheduler: Gets the hooks of the discriminator's updates, its steps; ``None`` for none.
        trains_generator: Whether the generator's phase updates it; without, a step is the discriminator's
            phase alone.
        observer: Is told of progress.
        report_every: Steps between two reports; values are read from the device only then.
        epoch: The next epoch to run, more than 0 after a resume.
    """

    task: GANTask
    supervision: Supervision
    generator_optimizer: torch.optim.Optimizer
    discriminator_optimizer: torch.optim.Optimizer
    batches: Callable[[int], Iterator[dict[str, Tensor]]]
    steps_per_epoch: int
    epochs: int
    seed: int
    observer: Observer
    scheduler: Scheduler | None = None
    discriminator_scheduler: Scheduler | None = None
    trains_generator: bool = True
    report_every: int = 50
    epoch: int = 0
    meter: TermMeter = field(default_factory=TermMeter)

    def __post_init__(self) -> None:
        """Refuse phases that are no step."""
        updates = [phase.repeats for phase in self.task.phases if phase.role == "generator"]
        if updates != [1]:
            raise UserError(
                f"task {self.task.name!r}: expected phases with exactly one generator update, since steps "
                f"are counted by them, got {sum(updates)}; repeat the discriminator's phase instead"
            )

    @property
    def step(self) -> int:
        """Generator updates done when the next epoch begins."""
        return self.epoch * self.steps_per_epoch

    def run(self) -> None:
        """Train from `epoch` to `epochs`.

        Raises:
            NotANumberError: If a loss stopped being finite.
        """
        raw = self.batches(self.step * self.task.batches_per_step)
        self.supervision.generator.train()
        self.supervision.discriminator.train()
        try:
            while self.epoch < self.epochs:
                report = self._run_epoch(raw)
                with self.weights_as_seen(self.epoch):
                    metrics = self.observer.on_epoch(self, report)
                for scheduler, optimizer in self._schedulers():
                    scheduler.on_epoch_end(self.epoch, optimizer, metrics=metrics)
                self.epoch += 1
                self.observer.on_epoch_closed(self, report)
        finally:
            close = getattr(raw, "close", None)  # a generator's: ends the processes that read for it
            if close is not None:
                close()

    @contextlib.contextmanager
    def weights_as_seen(self, epoch: int) -> Iterator[None]:
        """Show the generator inside the block as an epoch's steps see it.

        Masks that act on the forward pass only are applied, and the weights beneath them come back.
        """
        with _masked(self.scheduler, epoch):
            yield

    def judge_as_seen(self, epoch: int) -> contextlib.AbstractContextManager[None]:
        """Return a block in which the discriminator is seen as an epoch's steps see it."""
        return _masked(self.discriminator_scheduler, epoch)

    def _schedulers(self) -> Iterator[tuple[Scheduler, torch.optim.Optimizer]]:
        if self.scheduler:
            yield self.scheduler, self.generator_optimizer
        if self.discriminator_scheduler:
            yield self.discriminator_scheduler, self.discriminator_optimizer

    def _run_epoch(self, raw: Iterator[dict[str, Tensor]]) -> StepReport:
        started = time.perf_counter()
        self.meter.reset()
        self._set_learning_rates()
        for scheduler, optimizer in self._schedulers():
            scheduler.on_epoch_begin(self.epoch, optimizer)
        for minibatch in range(self.steps_per_epoch):
            self._step(raw, minibatch)
            done = minibatch + 1
            if done % self.report_every == 0 or done == self.steps_per_epoch:
                terms, means = self.meter.read()
                report = StepReport(
                    epoch=self.epoch,
                    minibatch=done,
                    minibatches=self.steps_per_epoch,
                    step=self.step + done,
                    terms=terms,
                    means=means,
                    lr=float(self.generator_optimizer.param_groups[0]["lr"]),
                    seconds=time.perf_counter() - started,
                )
                self.observer.on_step(report)
        return report

    def _set_learning_rates(self) -> None:
        """Give the optimisers the task's own learning rates for this epoch, unless a schedule sets them."""
        factor = self.task.lr_factor(self.epoch, self.epochs)
        for scheduler, optimizer in (
            (self.scheduler, self.generator_optimizer),
            (self.discriminator_scheduler, self.discriminator_optimizer),
        ):
            for group in [] if _sets_learning_rate(scheduler) else optimizer.param_groups:
                group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor

    def _step(self, raw: Iterator[dict[str, Tensor]], minibatch: int) -> None:
        """One step: the discriminator's phases and the generator's update."""
        where = (self.epoch, minibatch, self.steps_per_epoch)
        if self.scheduler:
            self.scheduler.on_minibatch_begin(*where, self.generator_optimizer)
        logged: dict[str, Tensor] = {}
        batch: Batch | None = None
        outputs: Outputs | None = None
        draw = judged = 0
        updated = False
        for phase in self.task.phases:
            for repeat in range(phase.repeats):
                if batch is None or repeat > 0:
                    batch, outputs = self._batch(next(raw), self.step + minibatch, draw), None
                    draw += 1
                if phase.role == "generator" and not self.trains_generator:
                    continue
                if phase.role == "generator":
                    with self.judge_as_seen(self.epoch):
                        logged.update(self._generator_phase(batch, outputs, where))
                    outputs, updated = self.supervision.current_outputs, True
                elif self.supervision.spec.train:
                    outputs = outputs or self._generate(batch, updated, repeat == phase.repeats - 1)
                    logged.update(self._discriminator_phase(batch, outputs, minibatch, judged))
                    judged += 1
        self.meter.add(logged, self.step + minibatch + 1)

    def _batch(self, raw: dict[str, Tensor], step: int, draw: int) -> Batch:
        batch = self.task.prepare(raw, generator_for(self.seed, "batch", step, draw))
        seeds = {name: seed_for(self.seed, name, step, draw) for name in ("dropout", "pool")}
        return {"dropout_seed": seeds["dropout"], "pool_seed": seeds["pool"], **batch}

    def _generate(self, batch: Batch, updated: bool, is_last: bool) -> Outputs:
        """Return the student's pictures, with a graph where the generator's phase uses them again.

        Before the step's generator update `on_minibatch_begin` has masked the weights; after it they may be
        dense again.
        """
        if not updated:
            with torch.set_grad_enabled(is_last and self.trains_generator):
                return self.supervision.generate(batch)
        with self.weights_as_seen(self.epoch), torch.no_grad():
            return self.supervision.generate(batch)

    def _discriminator_phase(
        self, batch: Batch, outputs: Outputs, minibatch: int, number: int
    ) -> dict[str, Tensor]:
        """Update the discriminator; ``number`` counts its updates within the step."""
        scheduler, optimizer = self.discriminator_scheduler, self.discriminator_optimizer
        updates = sum(phase.repeats for phase in self.task.phases if phase.role == "discriminator")
        where = (self.epoch, minibatch * updates + number, self.steps_per_epoch * updates)
        self.supervision.discriminator.requires_grad_(True)
        if scheduler:
            scheduler.on_minibatch_begin(*where, optimizer)
        loss, logged = self.supervision.discriminator_loss(batch, outputs)
        if scheduler:
            policy_loss = scheduler.before_backward_pass(*where, loss, optimizer, return_loss_components=True)
            loss = policy_loss.overall_loss
            parts = {f"discriminator.{part.name}": part.value for part in policy_loss.loss_components}
            logged = {**logged, **parts}
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if scheduler:
            scheduler.before_parameter_optimization(*where, optimizer)
        optimizer.step()
        if scheduler:
            scheduler.on_minibatch_end(*where, optimizer)
        return logged

    def _generator_phase(
        self, batch: Batch, outputs: Outputs | None, where: tuple[int, int, int]
    ) -> dict[str, Tensor]:
        supervision, optimizer = self.supervision, self.generator_optimizer
        supervision.discriminator.requires_grad_(False)
        loss = supervision.step(batch, outputs)
        logged: dict[str, Tensor] = {}
        if self.scheduler:
            policy_loss = self.scheduler.before_backward_pass(
                *where, loss, optimizer, return_loss_components=True
            )
            loss = policy_loss.overall_loss
            for part in policy_loss.loss_components:  # regularizers of one class share a name
                so_far = logged.get(part.name)
                logged[part.name] = part.value if so_far is None else so_far + part.value
        if not loss.requires_grad:
            raise UserError(
                "nothing trains the generator: with `objective: none` a policy of the schedule must add a "
                "loss in every epoch, such as SelfSupervisedPolicy; add one or take `objective: task`"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.scheduler:
            self.scheduler.before_parameter_optimization(*where, optimizer)
        optimizer.step()
        if self.scheduler:
            self.scheduler.on_minibatch_end(*where, optimizer)
        return {**supervision.logged(), **logged, "generator.loss": loss}


def _sets_learning_rate(scheduler: Scheduler | None) -> bool:
    """Return whether a scheduler, ours or Distiller's, has a policy with a learning-rate schedule."""
    by_epoch = getattr(scheduler, "policies", None)
    if not isinstance(by_epoch, Mapping):  # one that only has the six hooks
        return False
    return any(hasattr(policy, "lr_scheduler") for policies in by_epoch.values() for policy in policies)


def _masked(scheduler: Scheduler | None, epoch: int) -> contextlib.AbstractContextManager[None]:
    """Return a block in which a network is seen as its steps in an epoch see it."""
    show = getattr(scheduler, "masked_weights", None)
    return contextlib.nullcontext() if show is None else show(epoch)
