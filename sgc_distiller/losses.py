"""Losses as pure functions of tensors.

Adversarial losses give one value a sample, shape (B,); the mean over the batch is the baseline's scalar.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "Distance",
    "attribute_cross_entropy",
    "binary_cross_entropy",
    "consistency",
    "cross_entropy_with_logits",
    "feature_distance",
    "gradient_penalty",
    "least_squares",
    "mean_absolute",
    "normalized",
    "picture_distance",
    "sample_means",
]

Distance = Literal["batch", "sample"]


def binary_cross_entropy(probability: Tensor, target: float) -> Tensor:
    """Return the binary cross-entropy of each sample against one label.

    Args:
        probability: What a discriminator with a sigmoid says, in [0, 1], shape (B, ...).
        target: The label, 1 for real and 0 for fake.

    Returns:
        Shape (B,): the mean over a sample's own elements (patches), as in DCGAN's and pix2pix' baselines.
        Not-a-number stays so; torch itself would stop there, on a GPU for good.
    """
    bad = probability.isnan()
    known = probability.masked_fill(bad, 0.5)
    loss = F.binary_cross_entropy(known, torch.full_like(known, target), reduction="none")
    loss = loss.masked_fill(bad, torch.nan)
    return sample_means(loss)


def cross_entropy_with_logits(logits: Tensor, target: float) -> Tensor:
    """Return the binary cross-entropy of each sample's logits against one label.

    Args:
        logits: What a discriminator without a sigmoid says, shape (B, ...).
        target: The label, 1 for real and 0 for fake.

    Returns:
        Shape (B,): the mean over a sample's own elements (patches), as in the baselines of pix2pix and SRGAN.
    """
    labels = torch.full_like(logits, target)
    return sample_means(F.binary_cross_entropy_with_logits(logits, labels, reduction="none"))


def attribute_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the binary cross-entropy of each sample's attributes, summed over them, shape (B,).

    Args:
        logits: Shape (B, attributes).
        labels: The same shape, values in {0, 1}.
    """
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(1)


def least_squares(score: Tensor, target: float) -> Tensor:
    """Return the mean squared distance of each sample's scores from one label (LSGAN), shape (B,)."""
    return sample_means((score - target).square())


def mean_absolute(made: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean absolute difference of each sample, shape (B,)."""
    return sample_means((made - wanted).abs())


def gradient_penalty(judge: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, alpha: Tensor) -> Tensor:
    """Return how far the gradient's length is from 1 between real and generated pictures (WGAN-GP).

    It is ``(|d sum(judge(x)) / dx|_2 - 1)^2`` of each sample at ``x = alpha * real + (1 - alpha) * fake``
    (https://arxiv.org/abs/1704.00028, eq. 3); the length is taken over all of a sample's pixels.

    Args:
        judge: Maps pictures to scores, shape (B, ...), which are summed.
        real: Real pictures, shape (B, C, H, W); no gradient flows into them.
        fake: Generated pictures of the same shape; no gradient flows into them.
        alpha: Shape (B, 1, 1, 1), uniform in [0, 1].

    Returns:
        Shape (B,), with a graph to the parameters of ``judge``.
    """
    between = (alpha * real.detach() + (1 - alpha) * fake.detach()).requires_grad_()
    scores = judge(between)
    (gradient,) = torch.autograd.grad(scores, between, torch.ones_like(scores), create_graph=True)
    length: Tensor = gradient.flatten(1).norm(dim=1)
    return (length - 1).square()


def sample_means(values: Tensor) -> Tensor:
    """Return each sample's mean, shape (B,), of values (B, ...)."""
    return values.flatten(1).mean(1) if values.dim() > 1 else values


def consistency(teacher: Tensor, student: Tensor, distance: Distance = "batch") -> Tensor:
    """Return how far a loss term of the student is from the teacher's, a scalar >= 0.

    Args:
        teacher: The term's value for the dense generator, shape (B,), a constant.
        student: The term's value for the pruned generator, shape (B,).
        distance: ``batch`` is ``|mean(teacher) - mean(student)|``, the numerator of eq. 7 and 8 of
            "Self-Supervised GAN Compression" as printed; ``sample`` is ``mean(|teacher - student|)``,
            which asks of each picture what the former asks of the batch.

    The gradient is exactly zero where both are equal (the subgradient of ``|x|`` at 0).
    """
    if distance == "batch":
        return (teacher.mean() - student.mean()).abs()
    return (teacher - student).abs().mean()


def normalized(value: Tensor, scale: Tensor, epsilon: float) -> Tensor:
    """Return ``value / max(|scale|, epsilon)`` with the denominator detached (eq. 7 and 8)."""
    return value / scale.detach().abs().clamp(min=epsilon)


def feature_distance(teacher: Sequence[Tensor], student: Sequence[Tensor], epsilon: float) -> Tensor:
    """Return the mean over layers of ``mean|t - s| / max(mean|t|, epsilon)``, a scalar >= 0.

    Args:
        teacher: The discriminator's activations for the dense generator's pictures, one tensor a layer.
        student: The same layers for the pruned generator's pictures, of the same shapes.
        epsilon: Smallest denominator.
    """
    layers = [
        normalized(_mean_distance(t, s), t.detach().abs().mean(), epsilon)
        for t, s in zip(teacher, student, strict=True)
    ]
    return torch.stack(layers).mean()


def picture_distance(teacher: Tensor, student: Tensor, kind: Literal["l1", "mse"] = "l1") -> Tensor:
    """Return the mean absolute (``l1``) or squared (``mse``) difference of two batches of pictures."""
    if kind == "l1":
        return _mean_distance(teacher, student)
    return (teacher.detach() - student).square().mean()


def _mean_distance(teacher: Tensor, student: Tensor) -> Tensor:
    """Return the mean of ``|teacher - student|``.

    The sum is divided, not the elements: the backward pass of `Tensor.mean` would divide every element's
    gradient by their number, and that of ``teacher - student`` negate it, two more passes over the features.
    """
    wide = torch.promote_types(student.dtype, torch.float32)  # the sum of many halves would overflow
    return (student - teacher.detach()).abs().sum(dtype=wide) / student.numel()
