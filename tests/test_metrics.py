"""Distances: hand-worked cases, independent formulas, and other implementations on the same features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgc_distiller.errors import NotANumberError, UserError
from sgc_distiller.metrics import (
    FeatureStatistics,
    MetricResult,
    frechet_distance,
    kernel_distance,
    load_statistics,
    matrix_root,
    save_statistics,
)

# pytorch_fid.fid_score.calculate_frechet_distance (0.3.0, SciPy 1.17.1) on the 2048 features below: it takes
# a minute. The eigenvalues of the product give 2386.609136.
RECORDED = 2386.6090543180767


def statistics(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return features.mean(axis=0), np.cov(features, rowvar=False)


def formula(mu1, sigma1, mu2, sigma2) -> float:
    """pytorch-fid's formula, with the trace of the root from the eigenvalues of the product itself."""
    eigenvalues = np.linalg.eigvals(sigma1 @ sigma2)
    root_trace = np.sqrt(eigenvalues.real.clip(0)).sum()
    return ((mu1 - mu2) ** 2).sum() + np.trace(sigma1) + np.trace(sigma2) - 2 * root_trace


def correlated(seed: int, count: int, dim: int, shift: float, noise: float = 0.3) -> np.ndarray:
    """Return features with 64 strong directions; numpy promises that these numbers never change."""
    random = np.random.RandomState(seed)
    basis = random.standard_normal((64, dim))
    return (
        random.standard_normal((count, 64)) @ basis * 0.1
        + noise * random.standard_normal((count, dim))
        + shift
    )


class TestFrechetDistance:
    def test_in_one_dimension_it_is_worked_out_by_hand(self):
        # (1 - 4)^2 + (2 - 5)^2, with standard deviations 2 and 5
        assert frechet_distance([1.0], [[4.0]], [4.0], [[25.0]]) == pytest.approx(18)

    def test_commuting_covariances_are_worked_out_by_hand(self):
        turn = np.array([[0.6, -0.8], [0.8, 0.6]])
        sigma1, sigma2 = turn @ np.diag([9.0, 1.0]) @ turn.T, turn @ np.diag([4.0, 16.0]) @ turn.T
        # (3 - 2)^2 + (1 - 4)^2 + 1^2
        assert frechet_distance([0, 0], sigma1, [0, 1], sigma2) == pytest.approx(11)

    def test_a_covariance_of_zero_is_no_obstacle(self):
        assert frechet_distance([0, 0], np.zeros((2, 2)), [1, 1], np.diag([2.0, 3.0])) == pytest.approx(7)

    @pytest.mark.parametrize(("count1", "count2"), [(500, 700), (40, 700), (700, 40), (30, 20), (2, 2)])
    @pytest.mark.parametrize("seed", [0, 1])
    def test_64_features_agree_with_the_formula(
        self, count1: int, count2: int, seed: int, device: torch.device
    ):
        one = statistics(correlated(seed, count1, 64, 0.0))
        two = statistics(correlated(seed + 10, count2, 64, 0.05))
        on_device = [torch.from_numpy(item).to(device) for item in (*one, *two)]
        assert frechet_distance(*on_device) == pytest.approx(formula(*one, *two), abs=1e-3)
        assert frechet_distance(*two, *one) == pytest.approx(formula(*one, *two), abs=1e-3)

    def test_2048_features_agree_with_pytorch_fid(self, device: torch.device):
        one, two = statistics(correlated(1, 300, 2048, 0.0)), statistics(correlated(2, 400, 2048, 0.05))
        root = matrix_root(torch.from_numpy(two[1]).to(device))
        on_device = [torch.from_numpy(item).to(device) for item in (*one, *two)]
        assert frechet_distance(*on_device, root2=root) == pytest.approx(RECORDED, abs=1e-3)

    def test_a_known_root_changes_nothing(self):
        one, two = statistics(correlated(1, 50, 64, 0.0)), statistics(correlated(2, 60, 64, 0.1))
        root = matrix_root(torch.from_numpy(two[1]))
        torch.testing.assert_close(root @ root, torch.from_numpy(two[1]), atol=1e-12, rtol=0)
        assert frechet_distance(*one, *two, root2=root) == frechet_distance(*one, *two)

    def test_equal_distributions_have_distance_zero(self):
        one = statistics(correlated(3, 200, 64, 0.0))
        assert frechet_distance(*one, *one) == pytest.approx(0, abs=1e-6)

    def test_shapes_must_fit(self):
        with pytest.raises(
            ValueError, match=r"Expected means \(d,\) .* got \(2,\), \(2, 2\) and \(3,\), \(3, 3\)"
        ):
            frechet_distance(np.zeros(2), np.eye(2), np.zeros(3), np.eye(3))

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_what_is_not_finite_is_refused(self, value: float):
        for mu, sigma in (
            (np.array([0, value]), np.eye(2)),
            (np.zeros(2), np.array([[1, value], [value, 1]])),
        ):
            with pytest.raises(NotANumberError, match="not finite numbers. Look at the pictures"):
                frechet_distance(mu, sigma, np.zeros(2), np.eye(2))


class TestFeatureStatistics:
    @settings(deadline=None, max_examples=30)
    @given(st.lists(st.integers(0, 9), min_size=2, max_size=6), st.integers(0, 1000))
    def test_batches_of_any_size_agree_with_numpy(self, sizes: list[int], seed: int):
        sizes = [*sizes, 2]
        features = np.random.RandomState(seed).standard_normal((sum(sizes), 5)).astype(np.float32)
        streamed = FeatureStatistics()
        for batch in torch.from_numpy(features).split(sizes):
            streamed.update(batch)
        mu, sigma = streamed.compute()
        assert streamed.count == len(features)
        np.testing.assert_allclose(mu.numpy(), features.astype(np.float64).mean(0), atol=1e-12)
        np.testing.assert_allclose(
            sigma.numpy(), np.cov(features.astype(np.float64), rowvar=False), atol=1e-12
        )

    def test_a_large_mean_costs_no_accuracy(self, device: torch.device):
        features = torch.randn(1000, 4, dtype=torch.float64) + 1e7
        streamed = FeatureStatistics()
        for batch in features.split(33):
            streamed.update(batch.to(device))
        _, sigma = streamed.compute()
        np.testing.assert_allclose(sigma.cpu().numpy(), np.cov(features.numpy(), rowvar=False), atol=1e-7)

    def test_results_do_not_move_with_later_batches(self):
        streamed = FeatureStatistics()
        streamed.update(torch.randn(5, 3))
        mu, sigma = (item.clone() for item in streamed.compute())
        kept = streamed.compute()
        streamed.update(torch.randn(5, 3) + 9)
        assert torch.equal(kept[0], mu)
        assert torch.equal(kept[1], sigma)

    @pytest.mark.parametrize("count", [0, 1])
    def test_two_pictures_are_the_least(self, count: int):
        streamed = FeatureStatistics()
        streamed.update(torch.zeros(count, 3))
        with pytest.raises(
            UserError, match=f"Expected at least 2 pictures for their statistics, got {count}"
        ):
            streamed.compute()

    def test_features_are_rows(self):
        with pytest.raises(ValueError, match=r"Expected features of shape \(B, d\), got \(2, 3, 4\)"):
            FeatureStatistics().update(torch.zeros(2, 3, 4))


class TestFiles:
    def test_pytorch_fid_reads_them(self, tmp_path: Path):
        fid_score = pytest.importorskip("pytorch_fid.fid_score")
        mu, sigma = torch.randn(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
        path = tmp_path / "new" / "reference.npz"
        save_statistics(path, mu, sigma, features=torch.ones(2, 4))
        read_mu, read_sigma = fid_score.compute_statistics_of_path(str(path), None, 1, 4, "cpu")
        assert np.array_equal(read_mu, mu.numpy())
        assert np.array_equal(read_sigma, sigma.numpy())
        assert [item.name for item in path.parent.iterdir()] == ["reference.npz"]

    def test_what_was_written_comes_back(self, tmp_path: Path):
        path = tmp_path / "reference.npz"
        save_statistics(path, torch.zeros(2), torch.eye(2), root=torch.ones(2, 2))
        read = load_statistics(path, ("mu", "sigma", "root"))
        assert set(read) == {"mu", "sigma", "root"}
        assert torch.equal(read["root"], torch.ones(2, 2))
        with pytest.raises(UserError, match=r"Expected the keys features in .*got \['mu', 'root', 'sigma'\]"):
            load_statistics(path, ("features",))

    @pytest.mark.parametrize("damage", ["missing", "empty", "text", "cut", "pickle"])
    def test_a_damaged_file_is_explained(self, tmp_path: Path, damage: str):
        path = tmp_path / "reference.npz"
        save_statistics(path, torch.zeros(2), torch.eye(2))
        whole = path.read_bytes()
        if damage == "pickle":
            np.savez(path, mu=np.array([{}], dtype=object), sigma=np.eye(2))
        else:
            path.write_bytes({"empty": b"", "text": b"mu sigma", "cut": whole[:-30], "missing": b""}[damage])
        if damage == "missing":
            path.unlink()
        with pytest.raises(
            UserError, match=r"Cannot read the statistics .*reference\.npz: .* Remove the file"
        ):
            load_statistics(path)


class TestKernelDistance:
    def test_it_equals_the_definition(self, device: torch.device):
        x, y = np.random.standard_normal((6, 3)), np.random.standard_normal((4, 3)) + 0.5

        def mean(a: np.ndarray, b: np.ndarray, skip: bool) -> float:
            values = [
                (p @ q / 3 + 1) ** 3
                for i, p in enumerate(a)
                for j, q in enumerate(b)
                if not (skip and i == j)
            ]
            return sum(values) / len(values)

        expected = mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)
        on_device = (torch.from_numpy(item).to(device) for item in (x, y))
        assert kernel_distance(*on_device, torch.Generator())[0] == pytest.approx(expected, rel=1e-12)

    @pytest.mark.parametrize("rows", [7, 1024])
    def test_it_equals_torchmetrics_on_one_full_subset(self, monkeypatch, rows: int):
        kid = pytest.importorskip("torchmetrics.image.kid")
        monkeypatch.setattr("sgc_distiller.metrics._ROWS", rows)  # the number of chunks changes nothing
        x, y = (torch.from_numpy(correlated(seed, 90, 64, seed / 10)) for seed in (0, 1))
        expected = float(kid.poly_mmd(x, y))
        assert kernel_distance(x, y, torch.Generator())[0] == pytest.approx(expected, rel=1e-10)

    def test_it_is_unbiased_where_the_frechet_distance_is_not(self):
        values, distances = [], []
        for seed in range(40):
            x, y = (np.random.RandomState(2 * seed + i).standard_normal((50, 16)) for i in (0, 1))
            value, *_ = kernel_distance(
                torch.from_numpy(x), torch.from_numpy(y), torch.Generator(), replicates=1
            )
            values.append(value)
            distances.append(frechet_distance(*statistics(x), *statistics(y)))
        assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values))
        assert min(distances) > 1

    def test_the_interval_holds_the_truth_as_often_as_it_says(self):
        def draw(count: int, shift: float, generator: torch.Generator) -> torch.Tensor:
            return torch.randn(count, 8, generator=generator) + shift

        everything = torch.Generator().manual_seed(0)
        truth, *_ = kernel_distance(draw(6000, 0, everything), draw(6000, 0.5, everything), everything, 1)
        hits = 0
        for seed in range(100):
            generator = torch.Generator().manual_seed(seed)
            _, low, high = kernel_distance(draw(150, 0, generator), draw(150, 0.5, generator), generator, 200)
            hits += low <= truth <= high
        assert 85 <= hits <= 100  # 95 % intervals

    def test_the_interval_surrounds_the_value_and_narrows_with_more_pictures(self):
        widths = []
        for count in (50, 800):
            x, y = (torch.from_numpy(correlated(seed, count, 64, seed / 5)) for seed in (0, 1))
            value, low, high = kernel_distance(x, y, torch.Generator().manual_seed(0))
            assert low < value < high
            widths.append(high - low)
        assert widths[1] < widths[0] / 2

    def test_the_same_generator_gives_the_same_interval(self, device: torch.device):
        x, y = torch.randn(30, 4, device=device), torch.randn(20, 4, device=device)
        one, two, other = (kernel_distance(x, y, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
        assert one == two
        assert one[0] == other[0]
        assert one[1:] != other[1:]

    @pytest.mark.parametrize("shapes", [((1, 3), (5, 3)), ((5, 3), (5, 4)), ((5,), (5, 3))])
    def test_shapes_must_fit(self, shapes: tuple[tuple[int, ...], tuple[int, ...]]):
        with pytest.raises(ValueError, match=r"Expected features \(n, d\) and \(m, d\) of at least 2"):
            kernel_distance(torch.zeros(shapes[0]), torch.zeros(shapes[1]), torch.Generator())

    def test_what_is_not_finite_is_refused(self):
        with pytest.raises(NotANumberError, match="not finite numbers"):
            kernel_distance(torch.full((3, 2), float("nan")), torch.zeros(3, 2), torch.Generator())


def test_a_result_is_better_when_lower_unless_it_says_otherwise():
    assert MetricResult("FID[x]", 1.0) == MetricResult("FID[x]", 1.0, None, None, False)
