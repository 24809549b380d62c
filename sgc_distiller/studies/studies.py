"""The paper's evidence, one function a study: experiments in, tables and a page out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sgc_distiller.errors import UserError
from sgc_distiller.recording import Console
from sgc_distiller.resources import find_schedule
from sgc_distiller.runs import atomic_write
from sgc_distiller.studies import presets
from sgc_distiller.studies.evidence import correlations, yardstick
from sgc_distiller.studies.experiments import Experiment, Setting
from sgc_distiller.studies.gates import failures
from sgc_distiller.studies.pages import write_page
from sgc_distiller.studies.presets import Row
from sgc_distiller.studies.runner import Outcome, exclusive, run_all
from sgc_distiller.studies.scales import SCALES, scale_of
from sgc_distiller.studies.tables import (
    Table,
    by_sparsity,
    distances,
    label,
    paper_tables,
    reached,
    spread,
    table1,
    values_of,
)
from sgc_distiller.tasks import build_task, find_task

__all__ = [
    "OWN_TASKS",
    "STUDIES",
    "Request",
    "compare",
    "effort",
    "granularity",
    "table1_study",
    "table2",
    "table3",
]

Record = dict[str, Any]

OWN_TASKS: dict[str, tuple[str, ...]] = {
    "table1": ("stargan",),
    "table2": tuple(SCALES["tiny"]),
    "table3": ("srgan",),
    "granularity": ("stargan",),
    "effort": ("stargan",),
    "compare": ("dcgan",),
}
"""The GANs of a study whose request names none."""

_SPARSITIES = (0.25, 0.5, 0.75, 0.9)
_SHARES = (0.1, 0.2, 0.5, 1.0)  # of a schedule that takes 10 % of the dense training


@dataclass(frozen=True)
class Request:
    """What a person asks of a study.

    Attributes:
        out: Folder of the study; each task has one of its own in it.
        tasks: Names of the GANs; empty for the study's own choice.
        data: Folders of data by task; those not named use the set that comes with the package.
        scale: A key of `sgc_distiller.studies.scales.SCALES`.
        sparsities: In (0, 1); empty for the study's own.
        rows: Letters of Table 1, or schedules; empty for the study's own.
        seeds: The seeds.
        jobs: Runs at once.
        threads: Threads of each.
        device: See `sgc_distiller.settings.Options`.
        judged_on: ``test`` or ``train`` pictures.
        lr_factors: Learning rates that every row is run at, relative to its own.
        shares: Of the schedules' steps.
        options: Options of the task in the place of the scale's; of a single task.
        dense_steps: Generator updates of the dense training in the place of the scale's.
    """

    out: Path
    tasks: tuple[str, ...] = ()
    data: Mapping[str, str] = field(default_factory=dict)
    scale: str = "small"
    sparsities: tuple[float, ...] = ()
    rows: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    jobs: int = 1
    threads: int = 1
    device: str | None = None
    judged_on: str = "test"
    lr_factors: tuple[float, ...] = (1.0,)
    shares: tuple[float, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    dense_steps: int | None = None

    def setting(self, task: str) -> Setting:
        """Return what the runs of a task share."""
        scale = scale_of(self.scale, task)
        scale = dataclasses.replace(
            scale,
            sizes={**scale.sizes, **self.options},
            dense_steps=self.dense_steps or scale.dense_steps,
        )
        build_task(task, scale.sizes)  # finds what cannot be before anything is trained
        if self.scale == "paper" and task not in self.data:
            raise UserError(
                f"--scale paper: expected the baseline's data for {task}, got none; give --data {task}=DIR"
            )
        data = self.data.get(task)
        if data not in (None, find_task(task).built_in) and not Path(str(data)).expanduser().is_dir():
            raise UserError(f"--data {data}: expected a folder, got none; leave it out for the bundled data")
        return Setting(task, data, scale, self.out / task, self.device, self.judged_on)

    def tried(self, rows: Sequence[Row]) -> list[Row]:
        """Return rows at every learning rate that is asked for, but those that name their own."""
        rated = [
            row if row.lr_factor else dataclasses.replace(row, lr_factor=factor)
            for factor in self.lr_factors
            for row in rows
        ]
        return list(dict.fromkeys(rated))


@dataclass
class Evidence:
    """What a study came to.

    Attributes:
        tables: Its tables, all of them written.
        failed: How many runs failed; their reasons stand in the tables.
    """

    tables: list[Table] = field(default_factory=list)
    failed: int = 0


def table1_study(request: Request, console: Console) -> Evidence:
    """Run the rows of Table 1 and return it: by default all fourteen, of StarGAN, at 50 %."""
    sparsities = request.sparsities or (0.5,)
    rows = request.tried(presets.table1_rows(list(request.rows) or None))
    evidence = Evidence()
    for setting in [request.setting(task) for task in request.tasks or OWN_TASKS["table1"]]:
        outcomes = _run(request, setting, presets.pruning(setting, rows, request.seeds, sparsities), console)
        dense = [item for item in outcomes if item.experiment.trains_dense]
        made = []
        for sparsity in sparsities:
            own = [item for item in outcomes if item.experiment.sparsity == sparsity]
            one = table1([*dense, *own], gate=failures(dense))
            title = f"Table 1: {setting.task}, {100 * sparsity:g} %, {request.scale}"
            made.append(dataclasses.replace(one, title=title))
        made[-1].notes.extend([*yardstick(setting, dense), *correlations(outcomes)])
        evidence.failed += _write(setting.root, "table1", made, outcomes)
        evidence.tables += made
    return evidence


def table2(request: Request, console: Console) -> Evidence:
    """Run the paper's schedules of every task at 25, 50, 75 and 90 % and return Table 2."""
    rows = request.rows or ("paper",)
    sparsities = request.sparsities or _SPARSITIES

    def experiments(setting: Setting) -> list[Experiment]:
        return [
            item
            for sparsity in sparsities
            for item in presets.pruning(
                setting,
                request.tried(
                    presets.schedule_rows(f"{setting.task}/{row}_{100 * sparsity:g}" for row in rows)
                ),
                request.seeds,
                (sparsity,),
            )
        ]

    renamed = {f"{row}_{100 * sparsity:g}": row for row in rows for sparsity in sparsities}
    return _grid(request, console, "table2", "Table 2", experiments, renamed)


def granularity(request: Request, console: Console) -> Evidence:
    """Prune elements, vectors, kernels and filters to 25, 50, 75 and 90 % and return a table a task."""
    sparsities = request.sparsities or _SPARSITIES
    names = [row.key for row in presets.granularity_rows()]
    unknown = [name for name in request.rows if name not in names]
    if unknown:
        raise UserError(f"--rows: expected granularities out of {', '.join(names)}, got {unknown[0]!r}")
    rows = [row for row in presets.granularity_rows() if not request.rows or row.key in request.rows]

    def experiments(setting: Setting) -> list[Experiment]:
        return presets.pruning(setting, request.tried(rows), request.seeds, sparsities)

    return _grid(request, console, "granularity", "Granularity", experiments)


def compare(request: Request, console: Console) -> Evidence:
    """Run any schedules side by side, over sparsities and learning rates, and return a table a task."""
    if not request.rows:
        raise UserError("expected schedules to compare: files, or shipped ones' names such as dcgan/agp_75")
    rows = request.tried(presets.schedule_rows(request.rows))
    sparsities = request.sparsities or (None,)

    def experiments(setting: Setting) -> list[Experiment]:
        return presets.pruning(setting, rows, request.seeds, sparsities)

    reference = label(rows[0].key, rows[0].lr_factor or 1.0)
    return _grid(request, console, "compare", "Comparison", experiments, reference=reference)


def effort(request: Request, console: Console) -> Evidence:
    """Prune with 1, 2, 5 and 10 % of the dense training's steps and return a table a task."""
    rows = presets.schedule_rows(request.rows) if request.rows else presets.table1_rows(["b"])
    sparsities = request.sparsities or (0.5,)
    shares = request.shares or _SHARES

    def experiments(setting: Setting) -> list[Experiment]:
        planned = presets.pruning(setting, request.tried(rows), request.seeds, sparsities, shares)
        different = {
            (item.row, item.lr_factor, item.seed, item.sparsity, item.steps_per_epoch): item
            for item in planned  # of shares that come to the same whole number of steps the last one counts
        }
        return list(different.values())

    return _grid(request, console, "effort", "Effort", experiments, column="share")


def table3(request: Request, console: Console) -> Evidence:
    """Prune SRGAN's filters and elements to 50 % and return Table 3: PSNR, SSIM and FID by test set."""
    if request.tasks not in ((), ("srgan",)):
        raise UserError(f"--task: expected srgan, whose table this is, got {', '.join(request.tasks)}")
    if request.lr_factors != (1.0,):
        raise UserError("--lr-factors: Table 3 has one learning rate; compare others with `sgc compare`")
    setting = request.setting("srgan")
    sparsities = request.sparsities or (0.5,)
    rows = [
        Row("filter", find_schedule("granularity/filter")),
        Row("element", find_schedule("srgan/paper_50")),
    ]
    outcomes = _run(request, setting, presets.pruning(setting, rows, request.seeds, sparsities), console)
    dense = [item for item in outcomes if item.experiment.trains_dense]
    made = []
    for sparsity in sparsities:
        own = [item for item in outcomes if item.experiment.sparsity == sparsity]
        made.append(_table3(f"Table 3: super-resolution, {100 * sparsity:g} %", [*dense, *own]))
    made.append(reached("Table 3: what else is known", outcomes))
    made[-1].notes.extend([*yardstick(setting, dense), *correlations(outcomes)])
    return Evidence(made, _write(setting.root, "table3", made, outcomes))


STUDIES: dict[str, Callable[[Request, Console], Evidence]] = {
    "table1": table1_study,
    "table2": table2,
    "table3": table3,
    "granularity": granularity,
    "effort": effort,
    "compare": compare,
}


def _table3(title: str, outcomes: Sequence[Outcome]) -> Table:
    printed = paper_tables()["table3"]
    names = [
        name for start in ("PSNR", "SSIM", "FID") for name in distances(outcomes, start) if "RGB" not in name
    ]
    columns = ("generator", *(_titled(name) for name in names), "in the paper (PSNR, SSIM, FID)")
    lines = []
    for key in ("dense", "filter", "element"):
        own = [item for item in outcomes if item.experiment.row == key]
        failed = [item.reason for item in own if item.result is None]
        known = "; ".join(
            f"{title}: {dB:.2f}, {ssim:.3f}, {fid:.2f}" for title, (dB, ssim, fid) in printed[key].items()
        )
        lines.append((key, *(spread(values_of(own, name)) if own else "–" for name in names), known))
        if failed:
            lines.append((f"{key} failed", *[""] * len(names), "; ".join(failed)))
    notes = [f"{_titled(name)} is {name}." for name in names]
    return Table(title, columns, lines, notes)


def _titled(name: str) -> str:
    return name.partition("[")[0].strip()


def _grid(
    request: Request,
    console: Console,
    name: str,
    title: str,
    experiments: Callable[[Setting], list[Experiment]],
    renamed: Mapping[str, str] | None = None,
    reference: str = "",
    column: str = "sparsity",
) -> Evidence:
    """Run the experiments of each task and return a table a task and metric."""
    settings = [request.setting(task) for task in request.tasks or OWN_TASKS[name]]
    plans = [
        (setting, experiments(setting)) for setting in settings
    ]  # finds all mistakes before anything runs
    evidence = Evidence()
    for setting, planned in plans:
        planned = [dataclasses.replace(item, row=(renamed or {}).get(item.row, item.row)) for item in planned]
        outcomes = _run(request, setting, planned, console)
        dense = [item for item in outcomes if item.experiment.trains_dense]
        made = []
        for text, shown in _groups(f"{title}, {setting.task}", outcomes, column):
            for metric in [*distances(shown), *distances(shown, "KID")]:
                one = by_sparsity(text, shown, metric, column, reference)
                one.notes[:0] = failures(dense)
                if name == "table2":
                    one.rows.extend(_printed(setting, metric, one))
                made.append(one)
            made.append(reached(f"{text}: what else is known", shown, column))
        made[-1].notes.extend([*yardstick(setting, dense), *correlations(outcomes)])
        if not distances(outcomes):
            made = [_only_failures(title, outcomes)]
        evidence.failed += _write(setting.root, name, made, outcomes)
        evidence.tables += made
    return evidence


def _groups(title: str, outcomes: Sequence[Outcome], column: str) -> list[tuple[str, list[Outcome]]]:
    """Return what stands in tables of its own: all, or, where columns are shares, each sparsity."""
    if column == "sparsity":
        return [(title, list(outcomes))]
    dense = [item for item in outcomes if item.experiment.trains_dense]
    others = [item for item in outcomes if not item.experiment.trains_dense]
    asked = list(dict.fromkeys(item.experiment.sparsity for item in others))
    return [
        (
            title if sparsity is None else f"{title}, {100 * sparsity:g} %",
            [*dense, *(item for item in others if item.experiment.sparsity == sparsity)],
        )
        for sparsity in asked
    ]


def _only_failures(title: str, outcomes: Sequence[Outcome]) -> Table:
    rows: list[tuple[str, ...]] = [
        (item.experiment.name, str(item.experiment.seed), item.reason) for item in outcomes
    ]
    return Table(title, ("run", "seed", "failed"), rows)


def _printed(setting: Setting, metric: str, table: Table) -> list[tuple[str, ...]]:
    """Return the paper's row of Table 2 for a metric, by the sparsities of the columns."""
    turned = " BtoA" if setting.scale.sizes.get("direction") == "BtoA" else ""
    known = paper_tables()["table2"].get(setting.task + turned, {}).get(_titled(metric))
    if known is None:
        return []
    by_column = {
        f"{100 * sparsity:g} %": value for sparsity, value in zip(_SPARSITIES, known[1:], strict=True)
    }
    cells = [by_column.get(column) for column in table.columns[2:]]
    return [("the paper", f"{known[0]:g}", *("–" if cell is None else f"{cell:g}" for cell in cells))]


def _run(
    request: Request, setting: Setting, planned: Sequence[Experiment], console: Console
) -> list[Outcome]:
    with exclusive(setting.root):
        dense = presets.dense(setting, request.seeds)
        return run_all([*dense, *planned], request.jobs, console, request.threads)


def _write(root: Path, name: str, tables: Sequence[Table], outcomes: Sequence[Outcome]) -> int:
    """Write Markdown, CSV, the page, and every single number; return how many runs failed."""
    atomic_write(root / f"{name}.md", "\n".join(table.markdown() for table in tables))
    for index, table in enumerate(tables):
        suffix = f"_{index + 1}" if len(tables) > 1 else ""
        atomic_write(root / f"{name}{suffix}.csv", table.csv())
    records = [
        {
            "run": str(item.experiment.folder.relative_to(root)),
            "row": item.experiment.row,
            "seed": item.experiment.seed,
            "sparsity": item.experiment.sparsity,
            "lr_factor": item.experiment.lr_factor,
            "share": item.experiment.share,
            "failed": item.reason,
            "result": _without_paths(item.result),
        }
        for item in outcomes
    ]
    atomic_write(root / f"{name}.json", json.dumps(records, indent=1) + "\n")
    write_page(root / f"{name}.html", name, tables, outcomes)
    return sum(item.result is None for item in outcomes)


def _without_paths(result: Record | None) -> Record | None:
    return None if result is None else {key: value for key, value in result.items() if key != "checkpoint"}
