"""What a sensitivity analysis comes to: a table, a CSV file, a plot, and a schedule to start from."""

from __future__ import annotations

import copy
import csv
import io
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, PercentFormatter

from sgc_distiller import wording
from sgc_distiller.names import prunable_names
from sgc_distiller.runs import atomic_file, atomic_write
from sgc_distiller.schedule import Schedule, read_schedule
from sgc_distiller.sensitivity import Analysis, Point
from sgc_distiller.studies.comparing import rank_correlation
from sgc_distiller.studies.tables import Table
from sgc_distiller.supervision import Supervision
from sgc_distiller.yaml_source import write

__all__ = [
    "Agreement",
    "Files",
    "agreement",
    "closing_notes",
    "points_as_csv",
    "plot_points",
    "sensitivity_table",
    "starting_schedule",
    "write_outcome",
]

Record = dict[str, Any]
_EPOCHS = 20
_RAMP = 11  # epochs in which pruning becomes more; the target is reached half-way
_SHARE = 0.1  # of the dense training's steps
_SHOWN_LEVELS = 6
_GROUPS = {"filter": "Filters", "channel": "Channels"}
_TITLES = {"fid": "FID", "kid": "KID", "loss": "supervised loss"}


@dataclass(frozen=True)
class Files:
    """What `write_outcome` wrote.

    Attributes:
        csv: Every point.
        plot: One curve a layer.
        schedule: The schedule, ``None`` where no layer tolerates anything.
    """

    csv: Path
    plot: Path
    schedule: Path | None


@dataclass(frozen=True)
class Agreement:
    """How far two metrics agree.

    Attributes:
        spearman: Rank correlation over all points, which both rise with the level; ``None`` of fewer than
            five points, or ties only.
        points: How many points that is of.
        alike: Pairs of layers, at one level, that both metrics put in the same order.
        pairs: How many pairs there are.
    """

    spearman: float | None
    points: int
    alike: int
    pairs: int


def write_outcome(analysis: Analysis, folder: str | Path) -> Files:
    """Write the files of an analysis, ``STRUCTURE.csv``, ``.png`` and ``.yaml``, into a folder.

    The schedule is read back and built for the generator before this returns.

    Args:
        analysis: What was measured.
        folder: Where to; it is made if it is missing.
    """
    target = Path(folder) / analysis.request.structure
    table = atomic_write(target.with_suffix(".csv"), points_as_csv(analysis))
    plot = target.with_suffix(".png")
    plot_points(analysis, plot)
    schedule = target.with_suffix(".yaml")
    text = starting_schedule(analysis, schedule)
    if not text:
        schedule.unlink(missing_ok=True)  # of an earlier tolerance
        return Files(table, plot, None)
    atomic_write(schedule, text)
    _check_schedule(analysis, read_schedule(schedule))
    return Files(table, plot, schedule)


def points_as_csv(analysis: Analysis) -> str:
    """Return every point as comma-separated values: shares in [0, 1], an empty field for what is not finite.

    ``damage`` is by the deciding metric, see `Analysis.damage`.
    """
    metrics = analysis.request.metrics
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(["weight", "output_layer", "level", "sparsity", *metrics, "damage"])
    for point in analysis.points:
        values = ["" if point.values[name] is None else point.values[name] for name in metrics]
        is_output = int(point.weight in analysis.outputs)
        row = [point.weight, is_output, point.level, point.sparsity]
        writer.writerow([*row, *values, analysis.damage(point)])
    return written.getvalue()


def sensitivity_table(analysis: Analysis, metric: str) -> Table:
    """Return a metric at a few levels, a row a layer, and the level that the layer tolerates."""
    levels = analysis.request.levels
    step = max(1, -(-len(levels) // _SHOWN_LEVELS))
    shown = [*levels[::-1][::step]][::-1]
    lines = []
    for weight in analysis.weights:
        values = {point.level: point.values[metric] for point in analysis.points if point.weight == weight}
        is_output = weight in analysis.outputs
        tolerated = wording.percent(analysis.tolerated(weight))
        lines.append(
            (
                f"{weight} (output)" if is_output else weight,
                wording.count(analysis.opened.generator.get_parameter(weight).numel()),
                *(wording.number(values[level]) for level in shown),
                f"{tolerated}, left dense" if is_output else tolerated,
            )
        )
    columns = ("weight", "weights", *map(wording.percent, shown), "tolerated")
    title = (
        f"Sensitivity to pruning {analysis.request.structure}s of one layer: {_TITLES[metric]}, dense "
        f"{wording.number(analysis.dense[metric])}"
    )
    return Table(title, columns, lines, [f"{_TITLES[metric]} is {analysis.names[metric]}"])


def agreement(analysis: Analysis) -> Agreement | None:
    """Return how far the supervised loss and FID agree; ``None`` where only one of them was measured.

    The generator as it was opened counts as one point.
    """
    metrics = analysis.request.metrics
    if len(metrics) < 2:
        return None
    rows: list[Mapping[str, float | None]] = [analysis.dense]
    rows += [point.values for point in analysis.points if not point.is_dense]
    pairs = [(row[metrics[0]], row[metrics[1]]) for row in rows]
    finite = [(one, other) for one, other in dict.fromkeys(pairs) if one is not None and other is not None]
    correlation = rank_correlation([one for one, _ in finite], [other for _, other in finite])
    alike = [
        _ordered(first, second, metrics[0]) == _ordered(first, second, metrics[1])
        for first, second in itertools.combinations(analysis.points, 2)
        if first.level == second.level and not (first.is_dense or second.is_dense)
    ]
    return Agreement(correlation, len(finite), sum(alike), len(alike))


def _ordered(first: Point, second: Point, metric: str) -> int:
    """Return -1, 0 or 1: which of two layers a metric finds worse; what is no finite number is worst."""
    one, other = (
        math.inf if point.values[metric] is None else float(point.values[metric] or 0.0)
        for point in (first, second)
    )
    return (one > other) - (one < other)


def closing_notes(analysis: Analysis) -> list[str]:
    """Return sentences about what was left out, how long it took, and whether the metrics agree."""
    told = []
    if analysis.skipped:
        kind = f"{analysis.request.structure}s"
        told.append(f"without {kind} that could be told apart: {', '.join(analysis.skipped)}")
    times = [
        f"{_TITLES[name]} {wording.duration(analysis.seconds.get(name, 0.0))}"
        for name in analysis.request.metrics
    ]
    told.append(f"measuring took, with what earlier calls measured: {', '.join(times)}")
    found = agreement(analysis)
    if found is not None:
        value = "none, of fewer than five or ties" if found.spearman is None else f"{found.spearman:.3f}"
        told.append(
            f"rank agreement of the supervised loss with FID (Spearman) over {found.points} points: {value}; "
            f"of {found.pairs} pairs of layers at one level, {found.alike} are ordered alike"
        )
    return told


def plot_points(analysis: Analysis, path: str | Path) -> None:
    """Draw every metric over the sparsity asked, one curve a layer; output layers are dashed.

    Args:
        analysis: What was measured.
        path: A PNG file.
    """
    metrics = analysis.request.metrics
    weights = analysis.weights
    columns = -(-len(weights) // 24)
    height = max(3.6 * len(metrics), 0.19 * min(24, len(weights)) + 1)
    figure = Figure(figsize=(6.4 + 2.2 * columns, height), layout="constrained")
    panels = figure.subplots(len(metrics), 1, sharex=True, squeeze=False)[:, 0]
    for panel, metric in zip(panels, metrics, strict=True):
        _draw(panel, analysis, metric)
    panels[-1].set_xlabel(f"{analysis.request.structure}s pruned of one layer alone")
    panels[-1].xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=7, ncols=columns)
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=130)


def _draw(panel: Axes, analysis: Analysis, metric: str) -> None:
    weights = analysis.weights
    colours = mpl.colormaps["viridis"]
    highest = 0.0
    for index, weight in enumerate(weights):
        own = [(p.level, p.values[metric]) for p in analysis.points if p.weight == weight]
        known = [(level, value) for level, value in own if value is not None]
        highest = max([highest, *(value for _, value in known)])
        panel.plot(
            [level for level, _ in known],
            [value for _, value in known],
            label=f"{weight} (output)" if weight in analysis.outputs else weight,
            color=colours(0.9 * index / max(1, len(weights) - 1)),
            linestyle="--" if weight in analysis.outputs else "-",
            marker="o",
            markersize=2.5,
            linewidth=1.3,
        )
    dense = analysis.dense[metric] or 0.0
    tolerance = analysis.request.tolerance
    if metric == analysis.request.metrics[0]:
        limit = dense + tolerance if metric == "loss" else dense * (1 + tolerance)
        panel.axhline(limit, color="0.4", linewidth=0.8, linestyle=":", label="tolerated")
    if metric != "loss" and highest > 5 * dense > 0:
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter(LogFormatter())  # none where there are many
    elif metric == "loss" and highest > 1:  # it begins at 0
        panel.set_yscale("symlog", linthresh=0.1)
        panel.yaxis.set_major_formatter("{x:g}")
    panel.set_ylabel(_TITLES[metric])
    panel.grid(visible=True, linewidth=0.4, alpha=0.5)
    panel.spines[["top", "right"]].set_visible(False)


def starting_schedule(analysis: Analysis, path: str | Path) -> str:
    """Return a schedule that prunes every layer to what it tolerates alone, gradually and supervised.

    The output layers are left dense. Its epochs are together a tenth of the dense training's steps where
    the checkpoint knows them, else as long as `sgc_distiller.GanSpec` has them.

    Args:
        analysis: What was measured.
        path: Where it will lie, for the command in its header.

    Returns:
        YAML; an empty text where no layer tolerates anything.
    """
    by_level: dict[float, list[str]] = {}
    for weight in analysis.weights:
        level = analysis.tolerated(weight)
        if level > 0 and weight not in analysis.outputs:
            by_level.setdefault(level, []).append(weight)
    if not by_level:
        return ""
    pruners = {_title(level): _pruner(analysis, level, names) for level, names in sorted(by_level.items())}
    span = {"starting_epoch": 0, "ending_epoch": _RAMP, "frequency": 1}
    whole = {**span, "ending_epoch": _EPOCHS}
    judges = analysis.opened.run.task.judges
    supervision: Record = {"class": "SelfSupervisedPolicy", "lambda_dc": 0.5, "distance": "sample"}
    if not judges:
        supervision = {"class": "OutputDistillationPolicy"}
    content = {
        "version": 1,
        "pruners": pruners,
        "extensions": {"supervision": supervision},
        "policies": [
            *({"pruner": {"instance_name": name}, **span} for name in pruners),
            {"extension": {"instance_name": "supervision"}, **whole},
        ],
        "gan": {**_length(analysis), "epochs": _EPOCHS, "output_layer": "dense"},
    }
    return _header(analysis, path) + write(content)


def _title(level: float) -> str:
    return f"prune_{100 * level:g}".replace(".", "_")


def _pruner(analysis: Analysis, level: float, names: list[str]) -> Record:
    share = {"initial_sparsity": 0.0, "final_sparsity": level, "weights": names}
    structure = analysis.request.structure
    if structure == "element":
        return {"class": "AutomatedGradualPruner", **share}
    kind = "L1RankedStructureParameterPruner_AGP"
    return {"class": kind, "group_type": _GROUPS[structure], **share}


def _length(analysis: Analysis) -> Record:
    steps = int(analysis.opened.content.get("step", 0))
    if not steps:
        return {}
    return {"steps_per_epoch": max(1, round(_SHARE * steps / _EPOCHS)), "dense_steps": steps}


def _header(analysis: Analysis, path: str | Path) -> str:
    opened, metric = analysis.opened, analysis.request.metrics[0]
    unit = "" if metric == "loss" else " of the dense value"
    lines = [
        f"# Purpose: prune every layer's {analysis.request.structure}s to the level up to which, pruned "
        "alone and not trained,",
        f"#   they let the metric rise by at most {analysis.request.tolerance:g}{unit}. Together "
        "they do more damage, which training mends.",
        f"# Metric: {analysis.names[metric]}",
        f"# Command: sgc compress {opened.run.options.task} --compress {path} "
        f"--exp-load-weights-from {opened.source}",
        f"# Tolerated by each layer (dense: {wording.number(analysis.dense[metric])}):",
    ]
    for weight in analysis.weights:
        level = analysis.tolerated(weight)
        note = ", an output layer, left dense" if weight in analysis.outputs else ""
        lines.append(f"#   {weight}: {wording.percent(level)}{note}")
    return "\n".join(lines) + "\n"


def _check_schedule(analysis: Analysis, schedule: Schedule) -> None:
    """Build the schedule for copies of the networks, and compare what it asks for with what was found."""
    run = analysis.opened.run
    student = copy.deepcopy(analysis.opened.generator)
    supervision = Supervision(run.task, student, run.build("discriminator"), copy.deepcopy(student))
    schedule.build(student, run.task.optimizer("generator", student), seed=0)
    asked = schedule.sparsity_plan(student)[-1]
    for weight in set(prunable_names(student)) & set(analysis.weights):
        wanted = 0.0 if weight in analysis.outputs else analysis.tolerated(weight)
        assert asked.get(weight, 0.0) == wanted, f"{weight}: {asked.get(weight)} is asked, {wanted} was meant"
    assert supervision.generator is student
