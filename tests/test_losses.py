"""Losses against formulas worked out in float64 NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sgc_distiller import losses


def _numbers(seed: int, *shape: int) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal(shape)


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_binary_cross_entropy_is_the_formula_per_sample(target: float, device: torch.device) -> None:
    probability = 1 / (1 + np.exp(-_numbers(0, 7)))
    expected = -(target * np.log(probability) + (1 - target) * np.log(1 - probability))
    got = losses.binary_cross_entropy(torch.tensor(probability, device=device), target)
    np.testing.assert_allclose(got.cpu().numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_binary_cross_entropy_hands_not_a_number_on(target: float, device: torch.device) -> None:
    """torch's own raises, on a GPU for good; what is a number comes out the same bit for bit."""
    values = [0.0, 1e-30, 0.25, 1.0]
    probability = torch.tensor([*values, float("nan")], device=device, requires_grad=True)
    got = losses.binary_cross_entropy(probability, target)
    got.sum().backward()
    assert got.isnan().tolist() == [False] * 4 + [True]
    plain = torch.tensor(values, device=device, requires_grad=True)
    expected = torch.nn.functional.binary_cross_entropy(
        plain, torch.full_like(plain, target), reduction="none"
    )
    expected.sum().backward()
    assert torch.equal(got[:4], expected)
    assert torch.equal(probability.grad[:4], plain.grad)


def test_binary_cross_entropy_averages_a_samples_own_patches() -> None:
    probability = 1 / (1 + np.exp(-_numbers(1, 3, 1, 2, 2)))
    expected = -np.log(probability).reshape(3, 4).mean(1)
    got = losses.binary_cross_entropy(torch.tensor(probability), 1.0)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12)


@given(seed=st.integers(0, 10_000), count=st.integers(1, 9))
def test_consistency_of_means_never_exceeds_the_mean_of_distances(seed: int, count: int) -> None:
    teacher, student = torch.tensor(_numbers(seed, 2, count))
    batch = losses.consistency(teacher, student, "batch")
    sample = losses.consistency(teacher, student, "sample")
    assert batch.item() == pytest.approx(abs(teacher.numpy().mean() - student.numpy().mean()))
    assert sample.item() == pytest.approx(np.abs(teacher.numpy() - student.numpy()).mean())
    assert batch <= sample + 1e-12


@pytest.mark.parametrize("distance", ["batch", "sample"])
def test_consistency_of_equals_is_zero_with_zero_gradient(distance: losses.Distance) -> None:
    teacher = torch.tensor(_numbers(2, 5))
    student = teacher.clone().requires_grad_()
    value = losses.consistency(teacher, student, distance)
    value.backward()
    assert value.item() == 0.0
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_normalized_divides_by_the_magnitude_and_not_by_less_than_epsilon() -> None:
    scale = torch.tensor(-4.0, dtype=torch.float64, requires_grad=True)
    value = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    result = losses.normalized(value, scale, 1e-8)
    result.backward()
    assert result.item() == 0.5
    assert value.grad.item() == 0.25
    assert scale.grad is None
    assert losses.normalized(torch.tensor(3.0), torch.tensor(0.0), 0.5).item() == 6.0


def test_feature_distance_is_relative_and_averaged_over_layers() -> None:
    teacher = [_numbers(3, 2, 4), _numbers(4, 2, 3, 2, 2)]
    student = [_numbers(5, 2, 4), _numbers(6, 2, 3, 2, 2)]
    expected = np.mean(
        [np.abs(t - s).mean() / np.abs(t).mean() for t, s in zip(teacher, student, strict=True)]
    )
    got = losses.feature_distance(
        [torch.tensor(t) for t in teacher], [torch.tensor(s) for s in student], 1e-8
    )
    assert got.item() == pytest.approx(expected, rel=1e-12)


def test_picture_distances() -> None:
    teacher, student = torch.tensor([[1.0, -1.0]]), torch.tensor([[0.0, 1.0]])
    assert losses.picture_distance(teacher, student, "l1").item() == 1.5
    assert losses.picture_distance(teacher, student, "mse").item() == 2.5


def test_distances_of_pictures_have_the_gradient_of_a_mean() -> None:
    teacher, student = torch.tensor(_numbers(7, 3, 5)), torch.tensor(_numbers(8, 3, 5), requires_grad=True)
    losses.picture_distance(teacher, student).backward()
    expected = np.sign(student.detach().numpy() - teacher.numpy()) / 15
    np.testing.assert_array_equal(student.grad.numpy(), expected)


def test_distances_of_many_halves_stay_finite() -> None:
    """Their sum, 131072, is more than a half can hold."""
    half = torch.ones(2**17, dtype=torch.float16)
    assert losses.picture_distance(half, torch.zeros_like(half)).item() == 1.0
    assert losses.feature_distance([half], [0.5 * half], 1e-3).item() == pytest.approx(0.5)
