"""Numbers over seeds: means with their spread, paired differences, rank correlations."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["ENOUGH", "Difference", "mean_and_spread", "paired_difference", "rank_correlation"]

ENOUGH = 5
"""Paired differences that a claim needs, and points that a correlation does."""


@dataclass(frozen=True)
class Difference:
    """How much one row differs from another over the seeds that both have.

    Attributes:
        mean: Mean of the paired differences.
        low: Lower end of their 95 % t-interval; ``-inf`` of a single pair.
        high: Upper end.
        pairs: How many there are.
    """

    mean: float
    low: float
    high: float
    pairs: int

    @property
    def is_claim(self) -> bool:
        """Whether there are at least `ENOUGH` pairs and the interval leaves 0 out."""
        return self.pairs >= ENOUGH and (self.low > 0 or self.high < 0)


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the sample standard deviation (0 for a single value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def paired_difference(one: Mapping[int, float], other: Mapping[int, float]) -> Difference | None:
    """Return ``one - other`` over the seeds that both have, ``None`` if they have none in common.

    The interval is Student's for paired samples: mean ± t(0.975, n - 1) * sd / sqrt(n).

    Args:
        one: Values by seed.
        other: Values by seed.
    """
    seeds = sorted(one.keys() & other.keys())
    differences = [one[seed] - other[seed] for seed in seeds]
    if not differences:
        return None
    mean, spread = mean_and_spread(differences)
    if len(differences) == 1:
        return Difference(mean, -math.inf, math.inf, 1)
    from scipy import stats  # here, since it takes as long to import as all of ours

    half = float(stats.t.ppf(0.975, len(differences) - 1)) * spread / math.sqrt(len(differences))
    return Difference(mean, mean - half, mean + half, len(differences))


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation; ``None`` for fewer than five points, or ties only."""
    if len(x) < ENOUGH or len(set(x)) == 1 or len(set(y)) == 1:
        return None
    from scipy import stats

    return float(stats.spearmanr(x, y).statistic)
