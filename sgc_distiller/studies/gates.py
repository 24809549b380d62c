"""What a dense GAN must reach before a table about pruning it means anything."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from sgc_distiller.studies.runner import Outcome

__all__ = ["failures"]

_ACCURACY = 0.8  # of the attributes that translations change, by the extractor's classifier; the mean
_LOST = 0.1  # L1 after translating back, of pictures in [-1, 1]


def failures(dense: Iterable[Outcome]) -> list[str]:
    """Return sentences about dense trainings that have not learned their task; none if all have.

    StarGAN's translations must have the attributes that were asked of them, each counted where it is the one
    that changes, and lead back to the input.
    """
    found = []
    for outcome in dense:
        if outcome.result is None or outcome.experiment.setting.task != "stargan":
            continue
        wrong = list(_wrong(outcome.result["metrics"]))
        if wrong:
            found.append(
                f"NOT TO BE PUBLISHED: the dense training of seed {outcome.experiment.seed} has not shown "
                f"that it learned its task: {'; '.join(wrong)}. Train longer (--dense-steps), make the task "
                "smaller (-O, --width), or measure with an extractor that knows the attributes."
            )
    return found


def _wrong(metrics: list[dict[str, Any]]) -> Iterable[str]:
    changed = [item["value"] for item in metrics if item["name"].startswith("accuracy of ")]
    lost = [item["value"] for item in metrics if item["name"].startswith("reconstruction L1")]
    if not changed or None in changed:
        yield "accuracy of the changed attributes not measured"
    elif statistics.fmean(changed) < _ACCURACY:
        mean = statistics.fmean(changed)
        yield f"accuracy of the changed attributes {mean:.3f}, expected at least {_ACCURACY}"
    if not lost or None in lost:
        yield "reconstruction L1 not measured"
    elif max(lost) > _LOST:
        yield f"reconstruction L1 {max(lost):.3f}, expected at most {_LOST}"
