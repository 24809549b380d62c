"""Tables: views of the outcomes of a study, for terminal, Markdown, CSV and HTML alike."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import yaml

from sgc_distiller.resources import asset
from sgc_distiller.studies.comparing import ENOUGH, Difference, mean_and_spread, paired_difference
from sgc_distiller.studies.runner import Outcome
from sgc_distiller.wording import MISSING, duration, number, percent, short_name

__all__ = [
    "Table",
    "by_sparsity",
    "distances",
    "label",
    "paper_tables",
    "reached",
    "spread",
    "table1",
    "values_of",
]

Record = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        title: Its heading.
        columns: What stands above the columns.
        rows: Texts, one a column.
        notes: Sentences that a reader must know.
        narrow: Columns that a terminal shows; empty for all.
    """

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    notes: list[str] = field(default_factory=list)
    narrow: tuple[str, ...] = ()

    def markdown(self) -> str:
        """Return the table in Markdown, with its heading and notes."""
        lines = [f"## {self.title}", "", "| " + " | ".join(self.columns) + " |"]
        lines.append("|" + "---|" * len(self.columns))
        lines += ["| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in self.rows]
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes), ""])

    def csv(self) -> str:
        """Return the table as comma-separated values."""
        written = io.StringIO()
        writer = csv.writer(written, lineterminator="\n")
        writer.writerows([self.columns, *self.rows])
        return written.getvalue()

    def narrowed(self) -> Table:
        """Return the table with the columns for a terminal."""
        if not self.narrow:
            return self
        places = [self.columns.index(name) for name in self.narrow]
        rows = [tuple(row[place] for place in places) for row in self.rows]
        return Table(self.title, self.narrow, rows, self.notes)


@cache
def paper_tables() -> dict[str, Any]:
    """Return what the paper prints in its tables."""
    read: dict[str, Any] = yaml.safe_load(asset("paper_tables.yaml").read_text(encoding="utf-8"))
    return read


def distances(outcomes: Iterable[Outcome], start: str = "FID") -> list[str]:
    """Return the full names of the metrics of outcomes that begin so, in their order."""
    names: dict[str, None] = {}
    for outcome in outcomes:
        for metric in (outcome.result or {}).get("metrics", []):
            if metric["name"].startswith(start):
                names[metric["name"]] = None
    return list(names)


def values_of(outcomes: Iterable[Outcome], name: str) -> dict[int, float]:
    """Return a metric's values, or those of another key of the result, by seed."""
    found: dict[int, float] = {}
    for outcome in outcomes:
        result = outcome.result or {}
        value = result.get(name)
        for metric in result.get("metrics", []):
            if metric["name"] == name:
                value = metric["value"]
        if isinstance(value, (int, float)):
            found[outcome.experiment.seed] = float(value)
    return found


def spread(values: Mapping[int, float]) -> str:
    """Return mean and standard deviation over seeds."""
    if not values:
        return MISSING
    mean, deviation = mean_and_spread(list(values.values()))
    return number(mean) + (f" ± {number(deviation)}" if len(values) > 1 else "")


def table1(outcomes: Sequence[Outcome], reference: str = "b", gate: Sequence[str] = ()) -> Table:
    """Return Table 1: the paper's columns as printed, and what was measured beside them.

    Args:
        outcomes: Of the dense trainings and the rows, of one sparsity.
        reference: Key of the row that all others are compared with, at the first of its learning rates.
        gate: Why the table is not to be believed, if so.
    """
    printed = paper_tables()["table1"]
    rows: dict[tuple[str, float], list[Outcome]] = {}
    for outcome in outcomes:
        item = outcome.experiment
        rows.setdefault(("a" if item.trains_dense else item.row, item.lr_factor), []).append(outcome)
    other = next((own for (key, _), own in rows.items() if key == reference), [])
    names = distances(outcomes)
    measured = tuple(
        text
        for name in names
        for text in (_short(name), f"{_short(name)} / dense", f"{_short(name)} against ({reference})")
    )
    kernel = distances(outcomes, "KID")
    columns = (
        *("row", "technique", "FID in the paper", *measured, *map(_short, kernel)),
        *("sparsity", "residual", "supervised loss", "time"),
        *(f"paper: {name}" for name in printed["columns"][1:-1]),
    )
    lines = []
    for (key, factor), own in sorted(rows.items(), key=lambda row: (len(row[0][0]) > 2, row[0])):
        known = [str(text) for text in printed["rows"].get(key[0], [])] if len(key) <= 2 else []
        file = own[0].experiment.file.stem
        technique = known[0] if len(key) == 1 else f"variant: {file}" if known else file
        line = [
            label(f"({key})" if known else key, factor),
            technique,
            known[-1] if len(key) == 1 else MISSING,
        ]
        for name in names:
            values, dense = values_of(own, name), values_of(rows.get(("a", 1.0), []), name)
            line.append(_or_reason(own, spread(values)))
            line.append(spread({s: v / dense[s] for s, v in values.items() if dense.get(s)}))
            rival = paired_difference(values, values_of(other, name))
            line.append(MISSING if own is other else _against(rival))
        line += [spread(values_of(own, name)) for name in kernel]
        line += _closing(own)
        line += known[1:-1] if len(key) == 1 else [MISSING] * (len(printed["columns"]) - 2)
        lines.append(tuple(line))
    notes = [*gate, *_notes([*names, *kernel], outcomes), _claims(reference)]
    narrow = ("row", "technique", "FID in the paper", *measured, *map(_short, kernel), "sparsity", "time")
    return Table("Table 1", columns, lines, notes, narrow)


def by_sparsity(
    title: str, outcomes: Sequence[Outcome], name: str, column: str = "sparsity", reference: str = ""
) -> Table:
    """Return a table with a row a schedule and a column a sparsity (or share of the steps).

    Args:
        title: The heading.
        outcomes: Of dense trainings and others.
        name: The metric's full name.
        column: ``sparsity``, or ``share`` of the schedule's steps.
        reference: `label` of the row that all others are compared with; empty for none.
    """
    dense = [item for item in outcomes if item.experiment.trains_dense]
    others = [item for item in outcomes if not item.experiment.trains_dense]
    heads = list(dict.fromkeys(_at(item, column) for item in others))
    keys = list(dict.fromkeys(_label(item) for item in others))
    lines = []
    base = values_of(dense, name)
    for key in keys:
        line = [key, spread(base)]
        for head in heads:
            own = [item for item in others if _label(item) == key and _at(item, column) == head]
            rival = [item for item in others if _label(item) == reference and _at(item, column) == head]
            values = values_of(own, name)
            mark = ""
            if rival and key != reference:
                found = paired_difference(values, values_of(rival, name))
                mark = _mark(found)
            text = spread(values)
            if values and name.startswith("FID"):  # an unbiased kernel distance may be 0
                text += f" (× {spread({s: v / base[s] for s, v in values.items() if base.get(s)})})"
            line.append(_or_reason(own, text + mark))
        lines.append(tuple(line))
    columns = ("schedule", "dense", *heads)
    notes = _notes([name], outcomes)
    if reference:
        notes.append(_claims(reference))
    return Table(f"{title}: {_short(name)}", columns, lines, notes)


def reached(title: str, outcomes: Sequence[Outcome], column: str = "sparsity") -> Table:
    """Return a table of what else is known of each row of `by_sparsity`: sparsity, residual, loss, time."""
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for item in outcomes:
        if not item.experiment.trains_dense:
            groups.setdefault((_label(item), _at(item, column)), []).append(item)
    columns = ("schedule", "at", "sparsity", "residual", "supervised loss", "time")
    rows: list[tuple[str, ...]] = [(*key, *_closing(own)) for key, own in groups.items()]
    return Table(title, columns, rows)


def _label(outcome: Outcome) -> str:
    return label(outcome.experiment.row, outcome.experiment.lr_factor)


def label(key: str, lr_factor: float) -> str:
    """Return what a row is called in tables."""
    return key if lr_factor == 1.0 else f"{key}, learning rate × {lr_factor:g}"


def _at(outcome: Outcome, column: str) -> str:
    item = outcome.experiment
    if column == "share":
        steps = item.steps_per_epoch * item.epochs
        return f"{100 * steps / item.setting.scale.dense_steps:g} % of the dense training"
    return "as scheduled" if item.sparsity is None else f"{100 * item.sparsity:g} %"


def _short(name: str) -> str:
    return short_name({"name": name})


def _closing(own: Sequence[Outcome]) -> list[str]:
    sparsity = values_of(own, "sparsity")
    seconds = values_of(own, "seconds")
    return [
        percent(mean_and_spread(list(sparsity.values()))[0]) if sparsity else MISSING,
        spread(values_of(own, "residual")),
        spread(values_of(own, "supervised_loss")),
        duration(mean_and_spread(list(seconds.values()))[0]) if seconds else MISSING,
    ]


def _or_reason(own: Sequence[Outcome], text: str) -> str:
    """Return a cell's text, with the reason of what failed in it."""
    failed = [f"seed {item.experiment.seed} failed: {item.reason}" for item in own if item.result is None]
    return "; ".join([text, *failed] if text != MISSING else failed) or text


def _against(difference: Difference | None) -> str:
    if difference is None:
        return MISSING
    text = f"{_signed(difference.mean)}"
    if difference.pairs > 1:
        text += f" [{_signed(difference.low)}, {_signed(difference.high)}]"
    return text + _mark(difference)


def _mark(difference: Difference | None) -> str:
    if difference is None or not difference.is_claim:
        return ""
    return " ▼" if difference.high < 0 else " ▲"


def _signed(value: float) -> str:
    return ("+" if value > 0 else "−" if value < 0 else "") + number(abs(value))


def _claims(reference: str) -> str:
    return (
        f"▼ below and ▲ above {reference!r} in at least {ENOUGH} paired seeds, the 95 % t-interval of the "
        "differences leaving 0 out; without a mark nothing is claimed."
    )


def _notes(names: Sequence[str], outcomes: Sequence[Outcome]) -> list[str]:
    seeds = sorted({item.experiment.seed for item in outcomes if item.result})
    notes = [f"{_short(name)} is {name}." for name in names]
    if seeds:
        listed = ", ".join(map(str, seeds))
        notes.append(f"Seeds {listed}; mean ± standard deviation. Lower distances are better.")
    scales = {item.experiment.setting.scale.note for item in outcomes} - {""}
    return [*notes, *(f"{note[0].upper()}{note[1:]}." for note in sorted(scales))]
