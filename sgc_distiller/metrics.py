"""Distances between two sets of pictures, computed from their features in float64.

The Fréchet distance (Heusel et al. 2017, https://arxiv.org/abs/1706.08500) equals pytorch-fid's, without
``scipy.linalg.sqrtm``: the trace of the root of a product of covariances is taken from the eigenvalues of a
symmetric matrix, which is exact for singular covariances too. It is biased upwards for small sets (features
of the same distribution: 19 for 2,000 pictures and 2,048 features); the kernel distance (KID, Binkowski et
al. 2018, https://arxiv.org/abs/1801.01401) is not, and comes with an interval.
"""

from __future__ import annotations

import io
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sgc_distiller.errors import NotANumberError, UserError

__all__ = [
    "FeatureStatistics",
    "MetricResult",
    "frechet_distance",
    "kernel_distance",
    "load_statistics",
    "matrix_root",
    "save_statistics",
]

Array = Tensor | np.ndarray

_REPLICATES = 400
_ROWS = 1024  # rows of a kernel matrix that are held at once


@dataclass(frozen=True)
class MetricResult:
    """One measured number.

    Args:
        name: The metric's full name with extractor, reference and number of pictures.
        value: The number.
        low: Lower end of the 95 % interval, where there is one.
        high: Upper end of the 95 % interval, where there is one.
        higher_is_better: Direction of improvement.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    higher_is_better: bool = False


class FeatureStatistics:
    """Mean and covariance of features that arrive in batches, accumulated in float64 on their device.

    Batches are merged by their means and centred sums of products (Chan et al. 1979), so that a mean which
    is large beside the spread costs no accuracy.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean: Tensor | None = None
        self._centred: Tensor | None = None

    def update(self, features: Tensor) -> None:
        """Add features of shape (B, d)."""
        if features.ndim != 2:
            raise ValueError(f"Expected features of shape (B, d), got {tuple(features.shape)}.")
        batch = features.detach().to(torch.float64)
        if len(batch) == 0:
            return
        mean = batch.mean(dim=0)
        centred = (batch - mean).T @ (batch - mean)
        if self._mean is None or self._centred is None:
            self.count, self._mean, self._centred = len(batch), mean, centred
            return
        total = self.count + len(batch)
        shift = mean - self._mean
        between = torch.outer(shift, shift) * (self.count * len(batch) / total)
        self._centred = self._centred + centred + between
        self._mean = self._mean + shift * (len(batch) / total)
        self.count = total

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return the mean (d,) and the unbiased covariance (d, d) in float64.

        Raises:
            UserError: Fewer than two pictures were added.
        """
        if self._mean is None or self._centred is None or self.count < 2:
            raise UserError(f"Expected at least 2 pictures for their statistics, got {self.count}.")
        return self._mean, self._centred / (self.count - 1)


def frechet_distance(
    mu1: Array, sigma1: Array, mu2: Array, sigma2: Array, root2: Array | None = None
) -> float:
    """Return the squared Fréchet distance of two Gaussians.

    It is ``|mu1 - mu2|^2 + tr(sigma1 + sigma2 - 2 (sigma1 sigma2)^(1/2))``.

    Args:
        mu1: Mean (d,).
        sigma1: Covariance (d, d), symmetric and positive semi-definite, also singular.
        mu2: Mean (d,).
        sigma2: Covariance (d, d).
        root2: `matrix_root` of ``sigma2`` where it is known already; saves half of the time or more.

    Returns:
        The distance in squared units of the features, computed in float64 on the device of ``mu1``.

    Raises:
        ValueError: The shapes do not fit each other.
        NotANumberError: A value is not finite.
    """
    mean1 = torch.as_tensor(mu1, dtype=torch.float64)
    mean2, cov1, cov2 = (_like(mean1, item) for item in (mu2, sigma1, sigma2))
    if mean1.ndim != 1 or mean2.shape != mean1.shape or not cov1.shape == cov2.shape == (len(mean1),) * 2:
        raise ValueError(
            "Expected means (d,) and covariances (d, d) of one d, got "
            f"{tuple(mean1.shape)}, {tuple(cov1.shape)} and {tuple(mean2.shape)}, {tuple(cov2.shape)}."
        )
    difference = mean1 - mean2
    total = difference @ difference + cov1.trace() + cov2.trace()
    if not bool(torch.isfinite(total + cov1.sum() + cov2.sum())):
        raise NotANumberError("The features are not finite numbers. Look at the pictures they come from.")
    # S1 S2 has the eigenvalues of the symmetric R S1 R with R R = S2, and their roots sum to the trace.
    root = matrix_root(cov2) if root2 is None else _like(mean1, root2)
    eigenvalues = torch.linalg.eigvalsh(_symmetric(root @ cov1 @ root))
    return float(total - 2 * eigenvalues.clamp(min=0).sqrt().sum())


def matrix_root(matrix: Tensor) -> Tensor:
    """Return the symmetric root of a symmetric positive semi-definite matrix (d, d) in float64."""
    eigenvalues, vectors = torch.linalg.eigh(_symmetric(matrix.to(torch.float64)))
    root: Tensor = (vectors * eigenvalues.clamp(min=0).sqrt()) @ vectors.T
    return root


def kernel_distance(
    x: Tensor, y: Tensor, generator: torch.Generator, replicates: int = _REPLICATES
) -> tuple[float, float, float]:
    """Return the kernel distance (KID) of two sets of features and its 95 % interval.

    The value is the unbiased estimate of the squared maximum mean discrepancy under ``(a.b / d + 1)^3`` over
    all pictures: what the usual mean over random subsets estimates too, without their noise. The interval is
    a percentile bootstrap over the pictures of both sets, in which no picture is paired with itself.

    Args:
        x: Features (n, d), n >= 2.
        y: Features (m, d), m >= 2.
        generator: CPU generator of the bootstrap.
        replicates: Bootstrap samples.

    Returns:
        Value, lower end, upper end.

    Raises:
        ValueError: The shapes do not fit each other.
        NotANumberError: A feature is not finite.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(
            f"Expected features (n, d) and (m, d) of at least 2 pictures each, "
            f"got {tuple(x.shape)} and {tuple(y.shape)}."
        )
    x, y = x.detach().to(torch.float64), y.detach().to(x.device, torch.float64)
    if not bool(torch.isfinite(x.sum() + y.sum())):
        raise NotANumberError("The features are not finite numbers. Look at the pictures they come from.")
    weights_x, weights_y = (_resampling_counts(len(item), replicates, generator).to(x) for item in (x, y))
    within_x, within_y = _pair_means(x, weights_x), _pair_means(y, weights_y)
    between = _kernel_sums(x, y, weights_x, weights_y) / (len(x) * len(y))
    estimates = within_x + within_y - 2 * between
    ends = torch.quantile(estimates[1:], torch.tensor([0.025, 0.975]).to(estimates))
    value, low, high = torch.cat([estimates[:1], ends]).tolist()
    return value, low, high


def save_statistics(path: Path, mu: Tensor, sigma: Tensor, **more: Tensor) -> None:
    """Write statistics as an .npz file that pytorch-fid can read, whole or not at all.

    Args:
        path: The file; missing folders are made.
        mu: Mean (d,), key ``mu``.
        sigma: Covariance (d, d), key ``sigma``.
        more: Further tensors under their own keys, which pytorch-fid passes over.
    """
    arrays: dict[str, Any] = {key: item.cpu().numpy() for key, item in more.items()}
    buffer = io.BytesIO()
    np.savez(buffer, mu=mu.cpu().numpy(), sigma=sigma.cpu().numpy(), **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(buffer.getvalue())
    partial.replace(path)


def load_statistics(path: Path, keys: tuple[str, ...] = ("mu", "sigma")) -> dict[str, Tensor]:
    """Read an .npz file of statistics, ours or pytorch-fid's.

    Args:
        path: The file.
        keys: What it must hold; pytorch-fid's files hold ``mu`` and ``sigma`` only.

    Raises:
        UserError: The file is missing or damaged, or lacks a key.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as content:
            arrays = {key: torch.from_numpy(content[key]) for key in content.files}
    except (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f"Cannot read the statistics {path}: {error}. Remove the file.") from error
    if not arrays.keys() >= set(keys):
        raise UserError(
            f"Expected the keys {', '.join(keys)} in {path}, got {sorted(arrays)}. Remove the file."
        )
    return arrays


def _like(reference: Tensor, item: Array) -> Tensor:
    return torch.as_tensor(item, dtype=torch.float64, device=reference.device)


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.T) / 2


def _resampling_counts(count: int, replicates: int, generator: torch.Generator) -> Tensor:
    """Return how often each picture is drawn, (1 + replicates, count); row 0 draws each once."""
    drawn = torch.randint(count, (replicates, count), generator=generator)
    counts = torch.zeros(replicates, count).scatter_add_(1, drawn, torch.ones(replicates, count))
    return torch.cat([torch.ones(1, count), counts])


def _pair_means(x: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean kernel over pairs of different pictures, for each row of weights."""
    squares = weights.square()
    own = squares @ _kernel_diagonal(x)
    pairs = weights.sum(dim=1).square() - squares.sum(dim=1)
    return (_kernel_sums(x, x, weights, weights) - own) / pairs


def _kernel_sums(x: Tensor, y: Tensor, weights_x: Tensor, weights_y: Tensor) -> Tensor:
    """Return ``sum_ij u_i v_j k(x_i, y_j)`` for each pair of rows u, v of the weights."""
    total = torch.zeros(len(weights_x)).to(x)
    for first in range(0, len(x), _ROWS):
        rows = slice(first, first + _ROWS)
        kernel = (x[rows] @ y.T / x.shape[1] + 1) ** 3
        total += ((weights_x[:, rows] @ kernel) * weights_y).sum(dim=1)
    return total


def _kernel_diagonal(x: Tensor) -> Tensor:
    return (x.square().sum(dim=1) / x.shape[1] + 1) ** 3
