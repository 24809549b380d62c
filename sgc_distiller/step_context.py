"""What one training step computes of dense teacher and pruned student, each value once and on demand."""

from __future__ import annotations

import contextlib
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

from sgc_distiller.experiment_spec import DiscriminatorSpec
from sgc_distiller.module_state import captured, frozen_statistics, trainable, without_graph
from sgc_distiller.tasks.base import Batch, GANTask, Judgement, Outputs, Terms

__all__ = ["StepContext"]


class _Networks(Protocol):
    """Whose step it is; `sgc_distiller.Supervision`."""

    task: GANTask
    generator: nn.Module
    discriminator: nn.Module
    spec: DiscriminatorSpec

    @property
    def judges_next(self) -> bool: ...

    def require_teacher(self) -> nn.Module: ...

    def generate(self, batch: Batch) -> Outputs: ...

    def generate_dense(self, batch: Batch) -> Outputs: ...

    def randomness(self, batch: Batch, purpose: str = ...) -> contextlib.AbstractContextManager[None]: ...


class StepContext:
    """What one generator step computes. Every property is computed on first use and then kept.

    Teacher's values are constants (no graph). Student's values carry the graph to the generator only: the
    discriminator's parameters are not trained by a generator step.
    """

    def __init__(self, supervision: _Networks, batch: Batch, outputs: Outputs | None) -> None:
        self._supervision = supervision
        self.batch = batch
        self._given_outputs = outputs
        self.real_judgement_with_graph: Judgement | None = None
        self.readers: set[int] = set()

    @cached_property
    def student_outputs(self) -> Outputs:
        """Pictures of the pruned generator."""
        if self._given_outputs is not None:
            return self._given_outputs
        return self._supervision.generate(self.batch)

    @cached_property
    def teacher_outputs(self) -> Outputs:
        """Pictures of the dense generator from the same noise and the same dropout masks."""
        return self._supervision.generate_dense(self.batch)

    @cached_property
    def teacher_activations(self) -> list[tuple[Tensor, Tensor]]:
        """What goes into and comes out of each of the dense generator's sections; see `GANTask.sections`."""
        own = self._supervision
        with captured(own.task.sections(own.require_teacher())) as found:
            if "teacher_outputs" in self.__dict__:
                own.generate_dense(self.batch)
            else:
                self.teacher_outputs  # noqa: B018 - computes them
        return found

    @cached_property
    def student_judgement(self) -> Judgement:
        """The discriminator on the student's pictures; one that is not trained keeps its statistics too."""
        own = self._supervision
        if not own.task.judges:
            return {}
        still = contextlib.nullcontext() if own.spec.train else frozen_statistics(own.discriminator)
        with still:
            return own.task.judge_fake(own.discriminator, self.batch, self.student_outputs)

    @cached_property
    def teacher_judgement(self) -> Judgement:
        """The discriminator on the teacher's pictures."""
        own = self._supervision
        if not own.task.judges:
            return {}
        with torch.no_grad(), frozen_statistics(own.discriminator):
            return own.task.judge_fake(own.discriminator, self.batch, self.teacher_outputs)

    @cached_property
    def real_judgement(self) -> Judgement:
        """The discriminator on the batch's real pictures, shared by teacher and student."""
        own = self._supervision
        if own.judges_next:
            with trainable(own.discriminator):
                self.real_judgement_with_graph = own.task.judge_real(own.discriminator, self.batch)
            shared: Judgement = without_graph(self.real_judgement_with_graph)
            return shared
        with torch.no_grad(), frozen_statistics(own.discriminator):
            return own.task.judge_real(own.discriminator, self.batch)

    @cached_property
    def student_generator_terms(self) -> Terms:
        """The terms of l-G_C (paper, eq. 2)."""
        own = self._supervision
        outputs, judgement = self.student_outputs, self.student_judgement
        with own.randomness(self.batch, "terms"):
            return own.task.generator_terms(own.generator, self.batch, outputs, judgement)

    @cached_property
    def teacher_generator_terms(self) -> Terms:
        """The terms of l-G_O (paper, eq. 1)."""
        own = self._supervision
        teacher = own.require_teacher()
        outputs, judgement = self.teacher_outputs, self.teacher_judgement
        with (
            torch.no_grad(),
            frozen_statistics(own.discriminator, teacher),
            own.randomness(self.batch, "terms"),
        ):
            return own.task.generator_terms(teacher, self.batch, outputs, judgement)

    @cached_property
    def student_discriminator_terms(self) -> Terms:
        """The terms of l-D_C (paper, eq. 5)."""
        own = self._supervision
        return own.task.discriminator_terms(
            own.discriminator, self.batch, self.student_outputs, self.real_judgement, self.student_judgement
        )

    @cached_property
    def teacher_discriminator_terms(self) -> Terms:
        """The terms of l-D_O (paper, eq. 4)."""
        own = self._supervision
        with torch.no_grad(), frozen_statistics(own.discriminator):
            return own.task.discriminator_terms(
                own.discriminator,
                self.batch,
                self.teacher_outputs,
                self.real_judgement,
                self.teacher_judgement,
            )

    def logged(self) -> dict[str, Tensor]:
        """Return the mean of every term computed so far: ``student.gen``, ``teacher.dis``, ... (no graph)."""
        values = {}
        for who in ("student", "teacher"):
            for kind in ("generator", "discriminator"):
                terms: Terms = self.__dict__.get(f"{who}_{kind}_terms", {})
                values.update({f"{who}.{name}": term.detach().mean() for name, term in terms.items()})
        return values
