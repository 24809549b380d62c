"""Policies that shape the generator's loss; a schedule declares them under ``extensions:``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from sgc_distiller import checks, losses
from sgc_distiller.errors import UserError
from sgc_distiller.masks import MaskSet
from sgc_distiller.policies import LossComponent, PolicyLoss, ScheduledTrainingPolicy
from sgc_distiller.step_context import StepContext
from sgc_distiller.supervision import EPSILON, Supervision
from sgc_distiller.tasks.base import Terms

__all__ = [
    "LOSS_POLICIES",
    "IntermediateDistillationPolicy",
    "OutputDistillationPolicy",
    "SelfSupervisedPolicy",
]

Mode = Literal["replace", "add"]


class _LossPolicy(ScheduledTrainingPolicy):
    """A policy that reads the step's context and replaces the loss or adds to it."""

    def __init__(self, model: nn.Module, name: str, mode: Mode) -> None:
        super().__init__()
        checks.one_of(mode, get_args(Mode), "mode")
        self.name = name
        self.mode = mode
        self.supervision = Supervision.of(model)
        self.supervision.require_teacher()

    def on_minibatch_begin(
        self,
        model: nn.Module,
        epoch: int,
        minibatch_id: int,
        minibatches_per_epoch: int,
        zeros_mask_dict: MaskSet,
        meta: dict[str, Any],
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        """Close the last step, so that no loss is computed from a stale one."""
        self.supervision.begin(minibatch_id)

    def before_backward_pass(
        self,
        model: nn.Module,
        epoch: int,
        minibatch_id: int,
        minibatches_per_epoch: int,
        loss: Tensor,
        zeros_mask_dict: MaskSet,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> PolicyLoss:
        """Return the step's loss and its named parts.

        Raises:
            UserError: If this policy replaces the loss and is not the first one to shape it.
        """
        context = self.supervision.context(self)
        if self.mode == "replace" and len(context.readers) > 1:
            raise UserError(
                f"Expected {self.name!r}, which replaces the loss, before all others that shape it: in epoch "
                f"{epoch} it would drop what another one added. Make it the first one, or set 'mode: add'."
            )
        return self._loss(context, loss)

    def _loss(self, context: StepContext, loss: Tensor) -> PolicyLoss:
        raise NotImplementedError


class SelfSupervisedPolicy(_LossPolicy):
    """Pull every loss term of the pruned generator to the dense generator's value.

    ``L = L_GC + lambda_dc * L_DC`` (Self-Supervised GAN Compression, eq. 3-9). For each term t,
    ``w_t * |l_t(dense) - l_t(sparse)| / max(|l_t(dense)|, epsilon)``: L_GC sums over the generator's terms
    (eq. 7), L_DC over the discriminator's (eq. 8), both judged by the same discriminator.

    Args:
        model: The generator; its `Supervision` must exist.
        name: The instance's name in the schedule.
        lambda_dc: Weight of L_DC, 0.5 in the paper.
        term_weights: Weights by term's name; terms not named keep the task's own weights, as in the paper.
        epsilon: Smallest denominator, > 0.
        distance: ``batch`` compares the terms' batch means, as printed; ``sample`` compares them picture by
            picture before the mean is taken.
        normalizer: The denominator: ``batch`` is this batch's |mean of the teacher's term|, as printed;
            ``ema`` its exponential moving average, which does not blow up where one mean is close to 0.
        ema_decay: Decay of that average per step, in [0, 1].
        features: Weight of a further distance, 0 for none as in the paper: the discriminator's activations
            for the dense and the sparse picture, relative to the dense one's (`losses.feature_distance`).
        mode: ``replace`` puts L in the place of the GAN's own generator loss, as in the paper; ``add`` adds
            it.

    Example:
        In a schedule::

            extensions:
              supervision: {class: SelfSupervisedPolicy, lambda_dc: 0.5}
            policies:
              - extension: {instance_name: supervision}
                starting_epoch: 0
                ending_epoch: 20
                frequency: 1

    Raises:
        UserError: If an argument is out of range, a term is unknown, or there is no supervision or teacher.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str = "self_supervised",
        lambda_dc: float = 0.5,
        term_weights: Mapping[str, float] | None = None,
        epsilon: float = EPSILON,
        distance: losses.Distance = "batch",
        normalizer: Literal["batch", "ema"] = "batch",
        ema_decay: float = 0.99,
        features: float = 0.0,
        mode: Mode = "replace",
    ) -> None:
        super().__init__(model, name, mode)
        checks.one_of(distance, get_args(losses.Distance), "distance")
        checks.one_of(normalizer, ("batch", "ema"), "normalizer")
        self.lambda_dc = checks.number(lambda_dc, "lambda_dc", low=0.0)
        self.epsilon = checks.number(epsilon, "epsilon", low=0.0, open_low=True)
        self.distance: losses.Distance = distance
        self.normalizer = normalizer
        self.ema_decay = checks.fraction(ema_decay, "ema_decay")
        self.feature_weight = checks.number(features, "features", low=0.0)
        task = self.supervision.task
        if not task.judges:
            raise UserError(
                f"task {task.name!r} trains without a discriminator here, by which SelfSupervisedPolicy "
                "compares; take a loss with one, or OutputDistillationPolicy"
            )
        weights = _checked_weights(term_weights, {**task.generator_weights, **task.discriminator_weights})
        self._gc_weights = {term: weights[term] for term in task.generator_weights}
        compared = [term for term in task.discriminator_weights if term not in task.own_term_names]
        self._dc_weights = {term: weights[term] for term in compared}
        self._scales: dict[str, Tensor] = {}

    def _loss(self, context: StepContext, loss: Tensor) -> PolicyLoss:
        parts: list[LossComponent] = []
        total = self._consistency(
            "gc", self._gc_weights, context.teacher_generator_terms, context.student_generator_terms, parts
        )
        if self.lambda_dc > 0:
            total = total + self.lambda_dc * self._consistency(
                "dc",
                self._dc_weights,
                context.teacher_discriminator_terms,
                context.student_discriminator_terms,
                parts,
            )
        if self.feature_weight > 0:
            task = self.supervision.task
            distance = losses.feature_distance(
                task.features(context.teacher_judgement),
                task.features(context.student_judgement),
                self.epsilon,
            )
            parts.append(LossComponent(f"{self.name}.features", (self.feature_weight * distance).detach()))
            total = total + self.feature_weight * distance
        overall = total if self.mode == "replace" else loss + total
        return PolicyLoss(overall, [LossComponent(f"{self.name}.total", total.detach()), *parts])

    def _consistency(
        self,
        group: str,
        weights: dict[str, float],
        teacher: Terms,
        student: Terms,
        parts: list[LossComponent],
    ) -> Tensor:
        """Return L_GC or L_DC and note each term's distance in ``parts``."""
        distances = []
        for term, weight in weights.items():
            scale = self._scale(f"{group}.{term}", teacher[term])
            distance = losses.normalized(
                losses.consistency(teacher[term], student[term], self.distance), scale, self.epsilon
            )
            parts.append(LossComponent(f"{self.name}.{group}.{term}", distance.detach()))
            distances.append(weight * distance)
        return torch.stack(distances).sum()

    def _scale(self, key: str, teacher: Tensor) -> Tensor:
        """Return the denominator of one term, before epsilon."""
        mean = teacher.detach().mean().abs()
        if self.normalizer == "batch":
            return mean
        if key in self._scales:
            average = self._scales[key].to(mean.device)
            mean = self.ema_decay * average + (1.0 - self.ema_decay) * mean
        self._scales[key] = mean
        return mean

    def state_dict(self) -> dict[str, Any]:
        """Return the moving averages of the denominators."""
        return {"scales": dict(self._scales)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the moving averages where `state_dict` left them."""
        self._scales = dict(state.get("scales", {}))


class OutputDistillationPolicy(_LossPolicy):
    """Pull the pruned generator's pictures to the dense generator's pictures from the same noise.

    The usual knowledge distillation of a generator: ``student_weight * loss + distill_weight *
    distance(G_O(z), G_C(z))``. The discriminator takes no part in the distance.

    Args:
        model: The generator; its `Supervision` must exist.
        name: The instance's name in the schedule.
        distill_weight: Weight of the pictures' distance, >= 0.
        student_weight: Weight of the loss so far in mode ``add``, >= 0.
        kind: ``l1`` is the mean absolute difference of pixels, ``mse`` the mean squared one.
        mode: ``add`` keeps the loss so far, ``replace`` drops it.

    Raises:
        UserError: If an argument is out of range, or there is no supervision or teacher.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str = "output_distillation",
        distill_weight: float = 10.0,
        student_weight: float = 1.0,
        kind: Literal["l1", "mse"] = "l1",
        mode: Mode = "add",
    ) -> None:
        super().__init__(model, name, mode)
        checks.one_of(kind, ("l1", "mse"), "kind")
        self.distill_weight = checks.number(distill_weight, "distill_weight", low=0.0)
        self.student_weight = checks.number(student_weight, "student_weight", low=0.0)
        self.kind: Literal["l1", "mse"] = kind

    def _loss(self, context: StepContext, loss: Tensor) -> PolicyLoss:
        teacher, student = context.teacher_outputs, context.student_outputs
        distances = [
            losses.picture_distance(teacher[name], student[name], self.kind)
            for name in self.supervision.task.imitates
        ]
        distance = torch.stack(distances).mean()
        overall = self.distill_weight * distance
        if self.mode == "add":
            overall = self.student_weight * loss + overall
        return PolicyLoss(overall, [LossComponent(f"{self.name}.{self.kind}", distance.detach())])


class IntermediateDistillationPolicy(_LossPolicy):
    """Pull every section of the pruned generator to what the dense generator's section makes of its input.

    Learned intermediate representation training (LIT, Koratana et al. 2019): with h_k the dense
    generator's activations, the loss is the sum over sections k of ``MSE(section_k^C(h_{k-1}), h_k)``. Each
    section learns by itself, from the dense generator's activations; no discriminator takes part. The
    sections are the task's (`GANTask.sections`), for StarGAN the way in, each residual block and the way out.

    Args:
        model: The generator; its `Supervision` must exist, with a dense generator of the same width.
        name: The instance's name in the schedule.
        weight: Weight of the sum, >= 0.
        mode: ``add`` keeps the loss so far, ``replace`` drops it.

    Raises:
        UserError: If an argument is out of range, there is no supervision or teacher, the task offers no
            sections, or the generators' sections do not fit.
    """

    needs_dense_sizes = True  # a remover must not act before or during its epochs

    def __init__(
        self,
        model: nn.Module,
        name: str = "intermediate_distillation",
        weight: float = 1.0,
        mode: Mode = "add",
    ) -> None:
        super().__init__(model, name, mode)
        self.weight = checks.number(weight, "weight", low=0.0)
        own = self.supervision
        self._sections = own.task.sections(own.generator)
        shapes = [
            [tuple(item.shape) for chain in chains for module in chain for item in module.parameters()]
            for chains in (self._sections, own.task.sections(own.require_teacher()))
        ]
        if shapes[0] != shapes[1]:
            raise UserError(
                "IntermediateDistillationPolicy compares activations of the same shape; expected a student "
                "as wide as the dense generator (gan.student.width: 1.0)"
            )

    def _loss(self, context: StepContext, loss: Tensor) -> PolicyLoss:
        distances = []
        with self.supervision.randomness(context.batch, "sections"):
            for chain, (given, wanted) in zip(self._sections, context.teacher_activations, strict=True):
                made = given.clone()  # a module may work in place
                for module in chain:
                    made = module(made)
                distances.append((made - wanted).square().mean())
        total = torch.stack(distances).sum()
        overall = self.weight * total
        if self.mode == "add":
            overall = loss + overall
        return PolicyLoss(overall, [LossComponent(f"{self.name}.mse", total.detach())])


def _checked_weights(given: Mapping[str, float] | None, own: dict[str, float]) -> dict[str, float]:
    """Return the task's weights with the given ones in their places."""
    weights = dict(own)
    for term, weight in (given or {}).items():
        checks.one_of(term, own, "term_weights")
        weights[term] = checks.number(weight, "term_weights", term, low=0.0)
    return weights


LOSS_POLICIES: dict[str, type] = {
    "SelfSupervisedPolicy": SelfSupervisedPolicy,
    "OutputDistillationPolicy": OutputDistillationPolicy,
    "IntermediateDistillationPolicy": IntermediateDistillationPolicy,
}
"""Classes that a schedule may name under ``extensions:``."""
