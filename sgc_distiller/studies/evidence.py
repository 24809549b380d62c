"""What a study shows beside its tables: the residual's yardstick, and what the supervised loss tells."""

from __future__ import annotations

from collections.abc import Sequence

from sgc_distiller.studies.comparing import rank_correlation
from sgc_distiller.studies.experiments import Setting
from sgc_distiller.studies.measures import residual_of_dense
from sgc_distiller.studies.runner import Outcome, exclusive
from sgc_distiller.studies.tables import distances, spread, values_of
from sgc_distiller.wording import number

__all__ = ["correlations", "yardstick"]


def yardstick(setting: Setting, dense: Sequence[Outcome]) -> list[str]:
    """Return what a residual amounts to between two dense generators of different seeds."""
    trained = [item.experiment.folder for item in dense if item.result is not None]
    if len(trained) < 2:
        return []
    pictures = setting.root / "two_dense"
    with exclusive(setting.root):
        value = residual_of_dense(trained[0], trained[1], pictures, setting.device)
    return [f"Residual of two dense generators with different seeds, the yardstick: {number(value)}."]


def correlations(outcomes: Sequence[Outcome]) -> list[str]:
    """Return how the supervised loss of pruned generators goes with their distances.

    Each seed is ranked by itself, since generators of different dense ones are not comparable, and the
    correlations are averaged.
    """
    pruned = [
        item
        for item in outcomes
        if item.result is not None
        and item.result.get("supervised_loss") is not None
        and item.experiment.gan.student.width == 1.0
        and not item.experiment.trains_dense
    ]
    found = []
    for metric in [*distances(pruned, "KID"), *distances(pruned)]:
        by_seed: dict[int, list[tuple[float, float]]] = {}
        for item in pruned:
            for seed, value in values_of([item], metric).items():
                loss = float((item.result or {})["supervised_loss"])
                by_seed.setdefault(seed, []).append((loss, value))
        ranked = {
            seed: rho
            for seed, pairs in by_seed.items()
            if (rho := rank_correlation([x for x, _ in pairs], [y for _, y in pairs])) is not None
        }
        if ranked:
            count = sum(map(len, by_seed.values()))
            name = metric.partition("[")[0].strip()
            found.append(
                "Rank correlation (Spearman) of the supervised loss under the original discriminator with "
                f"{name}, within each seed: {spread(ranked)}; {count} pruned generators."
            )
    return found
