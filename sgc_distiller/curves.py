"""The charts of one run: sparsity and metrics over its epochs, loss terms over its steps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from sgc_distiller.charts import POINTS, Line, line_chart
from sgc_distiller.runs import Record
from sgc_distiller.wording import metrics_by_name, short_name

__all__ = ["run_charts"]

_Point = tuple[int, float | None]
_ROLES = {  # of a term such as student.gen: what the legend calls it, and its colour; in this order
    "student": ("sparse (student)", "sparse"),
    "teacher": ("dense (teacher)", "dense"),
    "discriminator": ("discriminator in training", "third"),
    "generator": ("generator in training", "fourth"),
}
_PLAIN_ROLES = {  # of a run that trains a dense generator
    **_ROLES,
    "student": ("generator", "dense"),
    "discriminator": ("discriminator", "third"),
}
_TRAINS = "generator.loss"  # what the generator's update minimised
_WHOLE = "generator's loss"  # and how its chart is called
_FAR = 30  # positive values that are so many times as large as others are shown on a logarithmic axis
_CYCLE = ("ink", "sparse", "third", "fourth", "dense")  # colours of the parts of a policy's loss


def run_charts(records: Sequence[Record], dense: Record | None) -> list[dict[str, Any]]:
    """Return the sections of charts of a run, each with a title, a text and its charts.

    Args:
        records: All records of the run, oldest first.
        dense: The result record of the dense generator, if there is one; metrics are drawn against it.

    Returns:
        Dictionaries with ``title``, ``text`` and ``charts``; a chart has ``title``, ``svg`` and ``text``.
        A section without anything to draw is left out.
    """
    epochs = [item for item in records if item["kind"] == "epoch"]
    steps = [item for item in records if item["kind"] == "step"]
    sparsity = _sparsity_chart(epochs)
    supervised = any("teacher." in name for item in steps for name in item.get("terms", {}))
    plain = not sparsity and not supervised
    asked = "Sparsity counts the weights of convolutions and linear layers; dashed is what was asked for. "
    judged = "The dense and the sparse generator are judged on the same batch by the same discriminator. "
    long = "Long runs are drawn as means of neighbouring steps, with their range as a shade. "
    sections = [
        (
            "Over the epochs",
            f"{asked + _thinned(records) if sparsity else ''}Epochs count from 0.",
            [*sparsity, *_metric_charts(epochs, None if plain else dense, "dense" if plain else "sparse")],
        ),
        (
            "Loss terms",
            "Terms go by their names in the GAN's task. "
            + (judged if supervised else "")
            + (long if len(steps) > POINTS else ""),
            _term_charts(steps, _PLAIN_ROLES if plain else _ROLES),
        ),
    ]
    return [{"title": title, "text": text, "charts": drawn} for title, text, drawn in sections if drawn]


def _thinned(records: Sequence[Record]) -> str:
    """Return a sentence about epochs in which filters were taken out, empty for none."""
    epochs = {item["step"]: item["epoch"] for item in records if item["kind"] == "epoch"}
    sizes = [
        (item["step"], sum(layer["dense"] for layer in item["layers"]))
        for item in records
        if item["kind"] == "layers"
    ]
    found = [
        str(epochs[step])
        for (_, before), (step, after) in itertools.pairwise(sizes)
        if after < before and step in epochs
    ]
    if not found:
        return ""
    return (
        f"Filters were taken out in epoch {' and '.join(found)}: from then on what is left counts, and "
        "nothing is asked of it in advance. "
    )


def _sparsity_chart(epochs: Sequence[Record]) -> list[dict[str, Any]]:
    shown = [item for item in epochs if item.get("sparsity") is not None]
    if not shown or not any(item["sparsity"] or item.get("sparsity_asked") for item in shown):
        return []
    x = [item["epoch"] for item in shown]
    lines = [Line("reached", x, [item["sparsity"] for item in shown], "sparse")]
    asked = [item.get("sparsity_asked") for item in shown]
    if any(value is not None for value in asked):
        lines.insert(0, Line("asked", x, asked, "ink", dashed=True))
    return [_chart("sparsity", line_chart(lines, "epoch", percent=True))]


def _metric_charts(epochs: Sequence[Record], dense: Record | None, colour: str) -> list[dict[str, Any]]:
    found: dict[str, list[tuple[int, Record]]] = {}
    for item in epochs:
        for metric in item.get("metrics", []):
            found.setdefault(metric["name"], []).append((item["epoch"], metric))
    known = {name: metric["value"] for name, metric in metrics_by_name(dense).items()}
    drawn = []
    for name, points in found.items():
        x = [epoch for epoch, _ in points]
        values = [metric["value"] for _, metric in points]
        intervals = all(metric.get("low") is not None for _, metric in points)
        low, high = ([metric[end] for _, metric in points] if intervals else [] for end in ("low", "high"))
        lines = [Line("this run", x, values, colour, low=low, high=high)]
        if known.get(name) is not None:
            lines.append(Line("dense", [x[0], x[-1]], [known[name]] * 2, "dense", dashed=True, stairs=True))
        drawn.append(_value_chart(short_name(points[0][1]), lines, "epoch", name))
    return drawn


def _term_charts(steps: Sequence[Record], roles: Mapping[str, tuple[str, str]]) -> list[dict[str, Any]]:
    """Return a chart a loss term, with a line a role, and one a policy, with its parts.

    What the generator's updates minimised has a chart of its own unless it is one of these lines already.
    """
    panels: dict[str, dict[str, list[_Point]]] = {}
    for item in steps:
        for name, value in item.get("terms", {}).items():
            first, _, rest = name.partition(".")
            if name == _TRAINS:
                panel = line = _WHOLE
            else:
                panel, line = (rest, first) if rest and first in roles else (first, rest or first)
            panels.setdefault(panel, {}).setdefault(line, []).append((item["step"], value))
    whole = panels.pop(_WHOLE, {})
    others = [points for lines in panels.values() for points in lines.values()]
    if whole and not any(_are_equal(whole[_WHOLE], points) for points in others):
        panels[_WHOLE] = whole
    drawn = []
    for panel, lines in panels.items():
        known = {role: lines[role] for role in roles if role in lines}
        series = []
        for order, (line, points) in enumerate({**known, **lines}.items()):
            label, colour = roles.get(line, (line, _CYCLE[order % len(_CYCLE)]))
            series.append(Line(label, [x for x, _ in points], [y for _, y in points], colour))
        alone = f": {series[0].label}" if len(series) == 1 and series[0].label != panel else ""
        drawn.append(_value_chart(f"{panel}{alone}", series, "step"))
    return drawn


def _are_equal(one: Sequence[_Point], other: Sequence[_Point]) -> bool:
    """Return whether two lines are the same for the eye."""
    if [step for step, _ in one] != [step for step, _ in other]:
        return False
    return all(
        math.isclose(a, b, rel_tol=1e-5) if a is not None and b is not None else a is b
        for (_, a), (_, b) in zip(one, other, strict=True)
    )


def _value_chart(title: str, lines: Sequence[Line], x_label: str, text: str = "") -> dict[str, Any]:
    """Return a chart of measured values, on a logarithmic axis where a plain one would hide some of them."""
    shown = [value for line in lines for value in line.y if value is not None]
    logarithmic = bool(shown) and min(shown) > 0 and max(shown) > _FAR * min(shown)
    said = "; ".join(part for part in (text, "logarithmic axis" if logarithmic else "") if part)
    return _chart(title, line_chart(lines, x_label, logarithmic=logarithmic), said)


def _chart(title: str, svg: str, text: str = "") -> dict[str, Any]:
    return {"title": title, "svg": Markup(svg), "text": text}  # noqa: S704 - our own chart, labels escaped by it
