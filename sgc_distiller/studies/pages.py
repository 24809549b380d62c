"""The page of a study: its tables, a sheet of pictures a row, and the loss curves of all rows in one grid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from sgc_distiller.charts import Line, line_chart
from sgc_distiller.report import embedded, linked, render
from sgc_distiller.runs import RunFolder, atomic_write
from sgc_distiller.studies.runner import Outcome
from sgc_distiller.studies.tables import Table

__all__ = ["write_page"]


def write_page(path: Path, name: str, tables: Sequence[Table], outcomes: Sequence[Outcome]) -> Path:
    """Write one self-contained page of a study.

    Args:
        path: The HTML file.
        name: Of the study.
        tables: Its tables.
        outcomes: What became of its experiments; pictures and curves are of the first seed.
    """
    first = min((item.experiment.seed for item in outcomes), default=0)
    shown = [item for item in outcomes if item.experiment.seed == first and item.result is not None]
    content = {
        "title": tables[0].title if len(tables) == 1 else f"Study: {name}",
        "tables": [
            {"title": item.title, "columns": item.columns, "rows": item.rows, "notes": item.notes}
            for item in tables
        ],
        "seed": first,
        "sheets": [sheet for item in shown for sheet in [_sheet(path, item)] if sheet],
        "curves": [curve for item in shown for curve in [_curve(item)] if curve],
        "yardstick": _panels(path.parent / "two_dense"),
    }
    return atomic_write(path, render("study.html", content))


def _label(outcome: Outcome) -> str:
    item = outcome.experiment
    key = f"({item.row}) " if len(item.row) <= 2 else ""
    return f"{key}{item.name}"


def _sheet(page: Path, outcome: Outcome) -> dict[str, Any] | None:
    samples = outcome.experiment.folder / "samples"
    file = samples / ("dense.png" if outcome.experiment.trains_dense else "sparse.png")
    if not file.is_file():
        return None
    return {
        "label": _label(outcome),
        "data": embedded(file),
        "residual": "" if outcome.experiment.trains_dense else _maybe_embedded(samples / "residual.png"),
        "link": linked(page, outcome.experiment.folder / "report.html"),
    }


def _maybe_embedded(file: Path) -> str:
    return embedded(file) if file.is_file() else ""


def _panels(folder: Path) -> list[dict[str, str]]:
    titles = {"dense": "one seed", "sparse": "another seed", "residual": "residual"}
    return [
        {"title": title, "data": embedded(folder / f"{name}.png")}
        for name, title in titles.items()
        if (folder / f"{name}.png").is_file()
    ]


def _curve(outcome: Outcome) -> dict[str, Any] | None:
    """Return the chart of what generator and discriminator minimised, over the steps."""
    folder = outcome.experiment.folder
    steps = RunFolder(folder, create=False).records("step") if folder.is_dir() else []
    if not steps:
        return None
    x = [item["step"] for item in steps]
    generator = [item["terms"].get("generator.loss") for item in steps]
    lines = [Line("generator", x, generator, "sparse")]
    terms = sorted({name for item in steps for name in item["terms"] if name.startswith("discriminator.dis")})
    for name, colour in zip(terms, ("dense", "third"), strict=False):
        lines.append(Line(name, x, [item["terms"].get(name) for item in steps], colour))
    drawn = line_chart(lines, "step")
    return {"title": _label(outcome), "svg": Markup(drawn)}  # noqa: S704 - our own chart, labels escaped by it
