"""What a dense GAN must reach before a table about pruning it means anything."""

from __future__ import annotations

from collections.abc import Iterable

from sgc_distiller.studies.runner import Outcome

__all__ = ["GATES", "failures"]

GATES: dict[str, tuple[tuple[str, str, float], ...]] = {
    "stargan": (("attribute accuracy", "at least", 0.8), ("reconstruction L1", "at most", 0.1)),
}
"""By task: the start of a metric's name, and the bound that its value keeps in every dense run."""


def failures(dense: Iterable[Outcome]) -> list[str]:
    """Return sentences about dense trainings that did not reach their gate; none if all did."""
    found = []
    for outcome in dense:
        if outcome.result is None:
            continue
        for start, kind, bound in GATES.get(outcome.experiment.setting.task, ()):
            for metric in outcome.result["metrics"]:
                value = metric["value"]
                if not metric["name"].startswith(start):
                    continue
                if value is None or (value < bound if kind == "at least" else value > bound):
                    found.append(
                        f"NOT TO BE PUBLISHED: the dense training of seed {outcome.experiment.seed} has not "
                        f"learned its task: {start} {value if value is None else f'{value:.3f}'}, expected "
                        f"{kind} {bound:g}. Train longer, or make the task smaller."
                    )
    return found
