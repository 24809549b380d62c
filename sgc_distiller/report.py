"""Reports that a person reads: one self-contained page for a run, one that compares several runs."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from sgc_distiller._version import __version__
from sgc_distiller.curves import run_charts
from sgc_distiller.resources import template_folder
from sgc_distiller.runs import Record, RunFolder, atomic_write
from sgc_distiller.wording import (
    MISSING,
    count,
    duration,
    higher_is_better,
    interval,
    metrics_by_name,
    number,
    percent,
    ratio,
    short_name,
)

__all__ = ["embedded", "linked", "render", "write_report", "write_summary"]

_T = TypeVar("_T")

_PICTURES = {
    "dense": ("dense", "the trained generator"),
    "sparse": ("sparse", "the pruned generator"),
    "residual": ("residual", "(sparse - dense) / 2; grey: no difference"),
    "residual_x10": ("residual × 10", "the same, amplified ten times"),
}
_STRIPS = 12  # epochs that are shown in pictures; of more, evenly spaced ones with the first and the last


def write_report(run_folder: str | Path) -> Path:
    """Write ``report.html`` of a run from what its folder holds so far, and return its path.

    The page needs no other file and no network: pictures and charts are part of it. What the run does not
    hold (it is not finished, it has no teacher) is left out or said.

    Args:
        run_folder: The folder of a run; see `sgc_distiller.runs`.

    Raises:
        UserError: If there is no such folder, or a file in it is damaged.
    """
    run = RunFolder(run_folder, create=False)
    return atomic_write(run.report_file, render("report.html", _report(run)))


def write_summary(
    path: str | Path, title: str, rows: Sequence[Mapping[str, Any]], notes: Sequence[str] = ()
) -> Path:
    """Write one page that compares several runs, and return its path.

    Args:
        path: The HTML file to write.
        title: The page's heading.
        rows: Result records (see `sgc_distiller.runs`), each with ``label`` and, if there are any,
            ``picture`` (a PNG file of the same noise or inputs in every row) and ``report`` (the run's page,
            linked relative to ``path``). A row is compared to the one whose ``method`` is ``dense`` and
            whose seed is its own, or to the first dense row.
        notes: Sentences that a reader must know to read the table rightly.
    """
    path = Path(path)
    return atomic_write(path, render("summary.html", _summary(path, title, rows, notes)))


def render(template: str, content: Mapping[str, Any]) -> str:
    """Return a page made of a template and its content."""
    loader = FileSystemLoader(template_folder())
    pages = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return pages.get_template(template).render(version=__version__, missing=MISSING, **content)


# The page of one run.


def _report(run: RunFolder) -> dict[str, Any]:
    config, records = run.config(), run.records()
    results = [item for item in records if item["kind"] == "result"]
    dense = _last(item for item in results if item.get("method") == "dense")
    sparse = _last(item for item in results if item.get("method") != "dense")
    epochs = [item for item in records if item["kind"] == "epoch"]
    layers = _last(item for item in records if item["kind"] == "layers")
    result = sparse or dense or {}
    return {
        "title": _title(config, result),
        "sentences": _sentences(sparse),
        "notes": _notes(config, result, epochs),
        "scores": _scores(dense, sparse),
        "facts": _facts(run, config, result, records),
        **_pictures(run),
        "pictures_text": _about_panels(result.get("columns"), sparse is not None),
        **_strips(run),
        "charts": run_charts(records, dense),
        **_layers(layers),
        "texts": _texts(run, config),
    }


def _last(records: Iterable[_T]) -> _T | None:
    found = list(records)
    return found[-1] if found else None


def _title(config: Record, result: Record) -> str:
    task = result.get("task") or config.get("task") or config.get("arch") or "run"
    method = result.get("method") or config.get("method") or "unfinished"
    sparsity = result.get("sparsity")
    return f"{task}, {method}" if not sparsity else f"{task}, {percent(sparsity)} sparse, {method}"


def _sentences(sparse: Record | None) -> list[str]:
    if sparse is None or not sparse.get("weights"):
        return []
    weights: int = sparse.get("weights_before_thinning") or sparse["weights"]
    gone = weights - sparse["weights"]
    taken = f" {count(gone)} were taken out of the network with whole filters." if gone else ""
    return [
        f"The pruned generator keeps {count(sparse['nonzero'])} of {count(weights)} weights of its "
        f"convolutions and linear layers ({percent(sparse['nonzero'] / weights)}).{taken}"
    ]


def _notes(config: Record, result: Record, epochs: Sequence[Record]) -> list[str]:
    if result:
        return []
    planned = config.get("epochs")
    done = len({item["epoch"] for item in epochs})
    of = f" of {planned}" if planned else ""
    return [f"This run has not finished: {done}{of} epochs are recorded here, and there is no result yet."]


def _scores(dense: Record | None, sparse: Record | None) -> list[dict[str, Any]]:
    """Return one entry a metric; two generators stand side by side only under the same full name."""
    scores: dict[str, dict[str, Any]] = {}
    for label, record in (("dense", dense), ("sparse", sparse)):
        for name, metric in metrics_by_name(record).items():
            entry = scores.setdefault(name, {**_named(metric), "sides": [], "ratio": ""})
            side = {"label": label, "value": number(metric["value"]), "interval": interval(metric)}
            entry["sides"].append(side)
            entry["ratio"] = ratio(metric, metrics_by_name(dense).get(name)) if label == "sparse" else ""
    return list(scores.values())


def _named(metric: Mapping[str, Any]) -> dict[str, Any]:
    name = metric["name"]
    return {
        "name": name,
        "short": short_name(metric),
        "protocol": name.partition("[")[2].rstrip("]"),
        "higher_is_better": higher_is_better(metric),
    }


def _facts(
    run: RunFolder, config: Record, result: Record, records: Sequence[Record]
) -> list[tuple[str, str]]:
    environment = run.environment()
    steps = result.get("steps") or max((item.get("step", 0) for item in records), default=0)
    seconds = result.get("seconds") or sum(
        item.get("seconds", 0) for item in records if item["kind"] == "epoch"
    )
    device = environment.get("device_name") or environment.get("device")
    threads = environment.get("torch_threads")
    schedule = config.get("schedule") or config.get("compress")
    is_pruned = result.get("sparsity") or result.get("sparsity_asked")
    facts = {
        "task": result.get("task") or config.get("task") or config.get("arch"),
        "method": result.get("method") or config.get("method"),
        "schedule": Path(str(schedule)).name if schedule else None,
        "sparsity asked": _maybe(percent, result.get("sparsity_asked")) if is_pruned else None,
        "sparsity measured": _maybe(percent, result.get("sparsity")) if is_pruned else None,
        "weights": _maybe(count, result.get("weights")),
        "weights not zero": _maybe(count, result.get("nonzero")) if is_pruned else None,
        "seed": _maybe(str, result.get("seed", config.get("seed"))),
        "steps (generator updates)": _steps(config, steps) if steps else None,
        "time": duration(seconds) if seconds else None,
        "device": f"{device}, {_plural(threads, 'thread')}" if device == "cpu" and threads else device,
        "torch": environment.get("torch"),
        "checkpoint": _maybe(lambda path: Path(str(path)).name, result.get("checkpoint")),
    }
    return [(name, str(value)) for name, value in facts.items() if value is not None]


def _steps(config: Record, steps: int) -> str:
    """Return how many steps were taken, and in which epochs where they were whole ones."""
    length = config.get("steps_per_epoch")
    if not length or steps % length:
        return count(steps)
    return f"{count(steps)} in {_plural(steps // length, 'epoch')}"


def _plural(number: int, thing: str) -> str:
    return f"{count(number)} {thing}{'' if number == 1 else 's'}"


def _about_panels(titles: Sequence[str] | None, are_compared: bool) -> str:
    """Return how to read the panels of pictures, whose columns have these titles."""
    same = "Pictures at the same place of two panels come from the same noise." if are_compared else ""
    if not titles:
        return same
    rows = " Rows are the same inputs in each panel; the residuals show what the generators made."
    return f"From left to right: {', '.join(titles)}.{rows if are_compared else ''}"


def _pictures(run: RunFolder) -> dict[str, Any]:
    """Return the panels, all at one scale: ``share`` is a panel's width in percent of the widest one's."""
    found, sizes = [], []
    for name, (title, text) in _PICTURES.items():
        file = run.samples / f"{name}.png"
        if file.is_file():
            found.append({"title": title, "text": text, "data": embedded(file)})
            with Image.open(file) as panel:
                sizes.append(panel.size)
    widest = max((width for width, _ in sizes), default=1)
    for panel_data, (width, _) in zip(found, sizes, strict=True):
        panel_data["share"] = f"{100 * width / widest:.1f}"
    needs_room = any(width > 1.3 * height or width < widest for width, height in sizes)
    return {"pictures": found, "panels_in_a_row": min(len(found), 2 if needs_room else 4)}


def _strips(run: RunFolder) -> dict[str, Any]:
    files = {int(file.stem.rpartition("_")[2]): file for file in run.samples.glob("epoch_[0-9]*.png")}
    epochs = sorted(files)
    are_many = len(epochs) > _STRIPS
    if are_many:
        places = {round(index * (len(epochs) - 1) / (_STRIPS - 1)) for index in range(_STRIPS)}
        epochs = [epochs[place] for place in sorted(places)]
    strips = [{"epoch": epoch, "data": embedded(files[epoch])} for epoch in epochs]
    return {"strips": strips, "strips_left_out": are_many}


def _layers(record: Record | None) -> dict[str, Any]:
    layers = (record or {}).get("layers", [])
    dense = sum(item["dense"] for item in layers)
    nonzero = sum(item["nonzero"] for item in layers)
    total = {
        "name": "",
        "shape": (),
        "dense": dense,
        "nonzero": nonzero,
        "sparsity": 1 - nonzero / max(dense, 1),
        "asked": None
        if any(item.get("asked", 0) is None for item in layers)
        else sum(item.get("asked", 0) * item["dense"] for item in layers) / max(dense, 1),
    }
    return {
        "layers": [_layer(item) for item in layers],
        "layers_step": (record or {}).get("step", 0),
        "is_pruned": any(item["sparsity"] or item.get("asked") for item in layers),
        "total": _layer(total),
    }


def _layer(item: Record) -> dict[str, Any]:
    return {
        "name": item["name"],
        "shape": " × ".join(str(size) for size in item["shape"]),
        "dense": count(item["dense"]),
        "nonzero": count(item["nonzero"]),
        "sparsity": percent(item["sparsity"]),
        "width": round(100 * item["sparsity"], 1),
        "asked": _maybe(percent, item.get("asked")) or MISSING,
    }


def _texts(run: RunFolder, config: Record) -> list[dict[str, Any]]:
    texts = [("Schedule", run.schedule(), True)]
    for title, content in (("Settings", config), ("Environment", run.environment())):
        texts.append((title, json.dumps(content, indent=2) if content else "", False))
    return [{"title": title, "text": text, "open": is_open} for title, text, is_open in texts if text.strip()]


# The page that compares runs.


def _summary(
    path: Path, title: str, rows: Sequence[Mapping[str, Any]], notes: Sequence[str]
) -> dict[str, Any]:
    metrics: dict[str, dict[str, Any]] = {}
    for row in rows:
        for name, metric in metrics_by_name(row).items():
            metrics.setdefault(name, _named(metric))
    dense = [row for row in rows if row.get("method") == "dense"]
    shown = [_summary_row(path, row, metrics, _reference(row, dense)) for row in rows]
    legend = "Small: 95 % interval over the drawn pictures."
    return {
        "title": title,
        "sentences": [],
        "notes": list(notes),
        "metrics": list(metrics.values()),
        "rows": shown,
        "legend": f"In brackets: how many times the dense generator's value. {legend}" if dense else legend,
        "pictured": any(row["picture"] for row in shown),
    }


def _reference(row: Mapping[str, Any], dense: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the dense row that a row is compared to, ``None`` for a dense row and where there is none."""
    if row.get("method") == "dense":
        return None
    same_seed = [item for item in dense if item.get("seed") == row.get("seed")]
    return next(iter(same_seed or dense), None)


def _summary_row(
    path: Path,
    row: Mapping[str, Any],
    metrics: Mapping[str, Mapping[str, Any]],
    dense: Mapping[str, Any] | None,
) -> dict[str, Any]:
    own, reference = metrics_by_name(row), metrics_by_name(dense)
    cells = [
        {
            "short": metric["short"],
            "value": number(own[name]["value"]) if name in own else MISSING,
            "interval": interval(own.get(name, {})),
            "ratio": ratio(own.get(name), reference.get(name)),
        }
        for name, metric in metrics.items()
    ]
    nonzero, weights = row.get("nonzero"), row.get("weights_before_thinning") or row.get("weights")
    return {
        "label": row["label"],
        "method": row.get("method") if row.get("method") != row["label"] else None,
        "link": linked(path, row.get("report")),
        "asked": _maybe(percent, row.get("sparsity_asked")) or MISSING,
        "sparsity": _maybe(percent, row.get("sparsity")) or MISSING,
        "cells": cells,
        "nonzero": _maybe(count, nonzero) or MISSING,
        "kept": f"{percent(nonzero / weights)} of {count(weights)} weights"
        if nonzero is not None and weights
        else "",
        "steps": _maybe(count, row.get("steps")) or MISSING,
        "time": _maybe(duration, row.get("seconds")) or MISSING,
        "picture": embedded(Path(row["picture"])) if row.get("picture") else "",
    }


def linked(page: Path, target: str | Path | None) -> str:
    """Return the address of a file relative to a page, empty for none."""
    return "" if target is None else quote(Path(os.path.relpath(target, page.parent)).as_posix())


def _maybe(wording: Callable[[Any], str], value: Any) -> str | None:
    return None if value is None else wording(value)


def embedded(file: Path) -> str:
    """Return a PNG file as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"
