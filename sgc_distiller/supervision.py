"""The heart: one training step seen by dense teacher, pruned student and their discriminator.

`Supervision` computes what a step needs, each value once and on demand. Loss policies
(`sgc_distiller.loss_policies`) read it through the model that a schedule's hooks carry, so the same policy
runs under any scheduler with Distiller's six hooks.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sgc_distiller import losses
from sgc_distiller.errors import UserError
from sgc_distiller.experiment_spec import DiscriminatorSpec
from sgc_distiller.image_pool import ImagePool
from sgc_distiller.module_state import (
    frozen_statistics,
    same_randomness,
    unwrapped,
    without_graph,
)
from sgc_distiller.seeding import seed_for
from sgc_distiller.step_context import StepContext
from sgc_distiller.tasks.base import (
    Batch,
    GANTask,
    Judgement,
    Outputs,
    Terms,
)

__all__ = ["StepContext", "Supervision"]

_registry: weakref.WeakKeyDictionary[nn.Module, weakref.ref[Supervision]] = weakref.WeakKeyDictionary()

EPSILON = 1e-8
"""Smallest denominator of a normalised distance; the paper names none."""


class Supervision:
    """Teacher, student and discriminator of one run; build it before the schedule is read.

    It registers itself under the unwrapped generator, where policies find it with `of`. Keep a reference to
    it for as long as the schedule runs: the register holds it weakly.

    Args:
        task: Names the loss terms and knows how the networks are called.
        generator: The student, the network that the schedule prunes.
        discriminator: The judge, usually the one that the dense generator was trained with.
        teacher: The dense generator. It is never trained: its gradients are switched off here. ``None``
            for plain training; policies that need it say so.
        objective: ``task`` lets `step` return the GAN's own generator loss; ``none`` returns 0, and the loss
            is what the schedule's policies add.
        discriminator_spec: How the discriminator is trained; see the ``gan:`` section of a schedule.
    """

    def __init__(
        self,
        task: GANTask,
        generator: nn.Module,
        discriminator: nn.Module,
        teacher: nn.Module | None = None,
        *,
        objective: str = "task",
        discriminator_spec: DiscriminatorSpec | None = None,
    ) -> None:
        if objective not in ("task", "none"):
            raise UserError(f"expected objective 'task' or 'none', got {objective!r}")
        if teacher is not None and unwrapped(teacher) is unwrapped(generator):
            raise UserError(
                "teacher and student are the same module; expected two, such as copy.deepcopy(generator) "
                "of the trained dense generator"
            )
        self.task = task
        self.generator = generator
        self.discriminator = discriminator
        self.teacher = teacher
        self.objective = objective
        self.spec = discriminator_spec or DiscriminatorSpec()
        if teacher is not None:
            teacher.requires_grad_(False)
        self._has_dropout = any(isinstance(m, nn.modules.dropout._DropoutNd) for m in generator.modules())
        self.pools = {name: ImagePool(size) for name, size in task.pools.items()}
        self._context: StepContext | None = None
        self._minibatch: int | None = None
        _registry[unwrapped(generator)] = weakref.ref(self)

    @staticmethod
    def of(model: nn.Module) -> Supervision:
        """Return the supervision registered under a generator, wrapped or not.

        Raises:
            UserError: If there is none.
        """
        reference = _registry.get(unwrapped(model))
        found = reference() if reference is not None else None
        if found is None:
            raise UserError(
                "no supervision is registered for this model: build "
                "`supervision = Supervision(task, generator, discriminator, teacher)` before the schedule is "
                "read, and keep it alive while the schedule runs"
            )
        return found

    def require_teacher(self) -> nn.Module:
        """Return the teacher.

        Raises:
            UserError: If this run has none.
        """
        if self.teacher is None:
            raise UserError(
                "this run has no teacher, but a policy of the schedule compares with one: pass the dense "
                "generator, Supervision(task, generator, discriminator, teacher=dense_generator)"
            )
        return self.teacher

    def generate(self, batch: Batch) -> Outputs:
        """Return the student's pictures with their graph."""
        with self.randomness(batch):
            return self.task.generate(self.generator, batch)

    def generate_dense(self, batch: Batch) -> Outputs:
        """Return the teacher's pictures: same noise, same dropout masks, no graph, buffers unmoved."""
        teacher = self.require_teacher()
        with torch.no_grad(), frozen_statistics(teacher), self.randomness(batch):
            return self.task.generate(teacher, batch)

    def begin(self, minibatch_id: int) -> None:
        """Forget the last step's context; policies call it in ``on_minibatch_begin``."""
        self._context = None
        self._minibatch = minibatch_id

    def step(self, batch: Batch, outputs: Outputs | None = None) -> Tensor:
        """Open a generator step and return its loss, a scalar.

        Call it once a generator update, after ``on_minibatch_begin`` and before ``before_backward_pass``.

        Args:
            batch: What `GANTask.prepare` returned.
            outputs: The student's pictures with their graph where the discriminator's phase made them
                already; else they are made here.

        Returns:
            The GAN's own generator loss, or 0 where the objective is ``none``.
        """
        self._context = StepContext(self, batch, outputs)
        if self.objective == "none":
            return torch.zeros((), device=self.device)
        return self.task.total(self._context.student_generator_terms)

    def context(self, reader: object) -> StepContext:
        """Return the current step's context to a policy, once a step.

        Raises:
            UserError: If no step was opened since the minibatch began, or ``reader`` has had this one.
        """
        context = self._context
        if context is None:
            where = "" if self._minibatch is None else f" of minibatch {self._minibatch}"
            raise UserError(
                f"no step context{where}: expected `loss = supervision.step(batch)` between "
                "scheduler.on_minibatch_begin and scheduler.before_backward_pass"
            )
        if id(reader) in context.readers:
            raise UserError(
                "this step's context was used before: call `loss = supervision.step(batch)` once for every "
                "scheduler.before_backward_pass, and on_minibatch_begin before each step"
            )
        context.readers.add(id(reader))
        return context

    @property
    def current_outputs(self) -> Outputs | None:
        """The student's pictures of the current step, where there is one."""
        return None if self._context is None else self._context.student_outputs

    def logged(self) -> dict[str, Tensor]:
        """Return the means of the loss terms of the current step by name, without graph."""
        return {} if self._context is None else self._context.logged()

    def discriminator_loss(self, batch: Batch, outputs: Outputs) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of one discriminator update and its terms' means by name.

        Args:
            batch: What `GANTask.prepare` returned.
            outputs: The student's pictures; their graph is cut here.

        The discriminator spec decides what is real (the data or the teacher's pictures), what is fake (the
        student's or the teacher's), and the objective: ``adversarial`` is the baseline's own loss,
        ``consistency`` is eq. 8 with the discriminator as the variable, ``both`` is their sum.
        """
        task, judge, spec = self.task, self.discriminator, self.spec
        fakes = self.generate_dense(batch) if spec.fake == "teacher" else without_graph(outputs)
        kept = self._judged_real(batch)
        if spec.real == "teacher":
            batch = task.as_real(batch, self.generate_dense(batch))
        real = task.judge_real(judge, batch) if kept is None else kept
        shown = self._from_pools(fakes, batch)
        terms = self._discriminator_terms(batch, shown, real)
        logged = {f"discriminator.{name}": term.detach().mean() for name, term in terms.items()}
        loss = task.total(terms, "discriminator") if spec.objective != "consistency" else None
        if spec.objective != "adversarial":
            student = self._discriminator_terms(batch, fakes, real) if self.pools else terms
            distance = self._discriminator_consistency(batch, real, student)
            logged["discriminator.consistency"] = distance.detach()
            loss = distance if loss is None else loss + distance
        assert loss is not None
        return loss, logged

    @property
    def judges_next(self) -> bool:
        """Whether an update of the discriminator follows a generator's on the same pictures.

        What it says of the real ones is then computed once, with the graph that its own update needs.
        """
        roles = [phase.role for phase in self.task.phases]
        return self.spec.train and self.spec.real == "data" and roles[-1:] == ["discriminator"]

    def _judged_real(self, batch: Batch) -> Judgement | None:
        """Return what a generator's step has kept of the real pictures of the same batch, once."""
        context = self._context
        if context is None or context.batch is not batch:
            return None
        kept, context.real_judgement_with_graph = context.real_judgement_with_graph, None
        return kept

    def _from_pools(self, fakes: Outputs, batch: Batch) -> Outputs:
        """Return the pictures that the discriminator is shown: new ones, or earlier ones of their pool."""
        if not self.pools:
            return fakes
        if "pool_seed" not in batch:
            raise UserError(
                "the discriminator is shown pictures out of pools, but the batch names no 'pool_seed': put "
                "an integer that depends on the step alone under that key"
            )
        drawn = {
            name: pool.query(fakes[name], seed_for(batch["pool_seed"], name))
            for name, pool in self.pools.items()
        }
        return {**fakes, **drawn}

    def _discriminator_terms(self, batch: Batch, fakes: Outputs, real: Judgement) -> Terms:
        """Return all terms of the discriminator's loss, its own ones too."""
        task, judge = self.task, self.discriminator
        fake = task.judge_fake(judge, batch, fakes)
        terms = task.discriminator_terms(judge, batch, fakes, real, fake)
        return {**terms, **task.own_terms(judge, batch, fakes, real)}

    def _discriminator_consistency(self, batch: Batch, real: Judgement, student: Terms) -> Tensor:
        """L_DC of eq. 8 as a function of the discriminator."""
        with frozen_statistics(self.discriminator):
            teacher = self._discriminator_terms(batch, self.generate_dense(batch), real)
        parts = [
            weight
            * losses.normalized(
                losses.consistency(teacher[name], student[name]), teacher[name].mean(), EPSILON
            )
            for name, weight in self.task.discriminator_weights.items()
        ]
        return torch.stack(parts).sum()

    @property
    def device(self) -> torch.device:
        """Where the generator lives."""
        return next(self.generator.parameters()).device

    @contextlib.contextmanager
    def randomness(self, batch: Batch, purpose: str = "pictures") -> Iterator[None]:
        """Let a generator inside the block drop the units that the batch, and nothing else, decides.

        Args:
            batch: Names ``dropout_seed`` where the generator has dropout.
            purpose: Blocks of one purpose draw the same masks.
        """
        seed = batch.get("dropout_seed") if self._has_dropout else None
        if self._has_dropout and seed is None:
            raise UserError(
                "the generator has dropout, but the batch names no 'dropout_seed': put an integer that "
                "depends on the step alone under that key, so that teacher and student drop the same units"
            )
        if seed is not None and purpose != "pictures":
            seed = seed_for(seed, purpose)
        with same_randomness(seed, self.device):
            yield
