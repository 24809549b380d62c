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
from sgc_distiller.studies.comparing import rank_correlation
from sgc_distiller.studies.experiments import Experiment, Setting
from sgc_distiller.studies.gates import failures
from sgc_distiller.studies.measures import residual_of_dense
from sgc_distiller.studies.pages import write_page
from sgc_distiller.studies.presets import Row
from sgc_distiller.studies.runner import Outcome, exclusive, run_all
from sgc_distiller.studies.scales import SCALES, scale_of
from sgc_distiller.studies.tables import (
    Table,
    by_sparsity,
    distances,
    paper_tables,
    spread,
    table1,
    values_of,
)
from sgc_distiller.tasks import build_task
from sgc_distiller.wording import number

__all__ = ["STUDIES", "Request", "compare", "effort", "granularity", "table1_study", "table2", "table3"]

Record = dict[str, Any]

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
        sparsities: In [0, 1); empty for the study's own.
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
        return Setting(task, self.data.get(task), scale, self.out / task, self.device, self.judged_on)

    def tried(self, rows: Sequence[Row]) -> list[Row]:
        """Return rows at every learning rate that is asked for."""
        return [dataclasses.replace(row, lr_factor=factor) for factor in self.lr_factors for row in rows]


def table1_study(request: Request, console: Console) -> list[Table]:
    """Run the rows of Table 1 and return it: by default all fourteen, of StarGAN, at 50 %."""
    tables = []
    for task in request.tasks or ("stargan",):
        setting = request.setting(task)
        sparsities = request.sparsities or (0.5,)
        rows = request.tried(presets.table1_rows(list(request.rows) or None))
        outcomes = _run(request, setting, presets.pruning(setting, rows, request.seeds, sparsities), console)
        dense = [item for item in outcomes if item.experiment.trains_dense]
        for sparsity in sparsities:
            own = [item for item in outcomes if item.experiment.sparsity == sparsity]
            made = table1([*dense, *own], gate=failures(dense))
            made = dataclasses.replace(made, title=f"Table 1: {task}, {100 * sparsity:g} %, {request.scale}")
            made.notes.extend(_yardstick(setting, dense))
            made.notes.extend(_correlations([*dense, *own]))
            tables.append(made)
        _write(setting.root, "table1", tables[-len(sparsities) :], outcomes)
    return tables


def table2(request: Request, console: Console) -> list[Table]:
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
    return _grid(
        request, console, "table2", "Table 2", experiments, renamed, request.tasks or tuple(SCALES["tiny"])
    )


def granularity(request: Request, console: Console) -> list[Table]:
    """Prune elements, vectors, kernels and filters to 25, 50, 75 and 90 % and return a table a task."""
    sparsities = request.sparsities or _SPARSITIES
    names = [row.key for row in presets.granularity_rows()]
    unknown = [name for name in request.rows if name not in names]
    if unknown:
        raise UserError(f"--rows: expected granularities out of {', '.join(names)}, got {unknown[0]!r}")
    rows = [row for row in presets.granularity_rows() if not request.rows or row.key in request.rows]

    def experiments(setting: Setting) -> list[Experiment]:
        return presets.pruning(setting, request.tried(rows), request.seeds, sparsities)

    return _grid(
        request, console, "granularity", "Granularity", experiments, {}, request.tasks or ("stargan",)
    )


def compare(request: Request, console: Console) -> list[Table]:
    """Run any schedules side by side, over sparsities and learning rates, and return a table a task."""
    if not request.rows:
        raise UserError("expected schedules to compare: files, or shipped ones' names such as dcgan/agp_75")
    rows = request.tried(presets.schedule_rows(request.rows))
    sparsities = request.sparsities or (None,)

    def experiments(setting: Setting) -> list[Experiment]:
        return presets.pruning(setting, rows, request.seeds, sparsities)

    reference = rows[0].key
    return _grid(
        request, console, "compare", "Comparison", experiments, {}, request.tasks or ("dcgan",), reference
    )


def effort(request: Request, console: Console) -> list[Table]:
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

    return _grid(
        request, console, "effort", "Effort", experiments, {}, request.tasks or ("stargan",), column="share"
    )


def table3(request: Request, console: Console) -> list[Table]:
    """Prune SRGAN's filters and elements to 50 % and return Table 3: PSNR, SSIM and FID by test set."""
    if request.tasks not in ((), ("srgan",)):
        raise UserError(f"--task: expected srgan, whose table this is, got {', '.join(request.tasks)}")
    setting = request.setting("srgan")
    sparsity = request.sparsities or (0.5,)
    rows = [
        Row("filter", find_schedule("granularity/filter")),
        Row("element", find_schedule("srgan/paper_50")),
    ]
    outcomes = _run(request, setting, presets.pruning(setting, rows, request.seeds, sparsity), console)
    made = _table3(outcomes)
    _write(setting.root, "table3", [made], outcomes)
    return [made]


STUDIES: dict[str, Callable[[Request, Console], list[Table]]] = {
    "table1": table1_study,
    "table2": table2,
    "table3": table3,
    "granularity": granularity,
    "effort": effort,
    "compare": compare,
}


def _table3(outcomes: Sequence[Outcome]) -> Table:
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
    return Table("Table 3: super-resolution", columns, lines, notes)


def _titled(name: str) -> str:
    return name.partition("[")[0].strip()


def _grid(
    request: Request,
    console: Console,
    name: str,
    title: str,
    experiments: Callable[[Setting], list[Experiment]],
    renamed: Mapping[str, str],
    tasks: Sequence[str],
    reference: str = "",
    column: str = "sparsity",
) -> list[Table]:
    """Run the experiments of each task and return a table a task and metric."""
    settings = [request.setting(task) for task in tasks]  # finds all mistakes before anything runs
    tables: list[Table] = []
    for setting in settings:
        planned = [
            dataclasses.replace(item, row=renamed.get(item.row, item.row)) for item in experiments(setting)
        ]
        outcomes = _run(request, setting, planned, console)
        dense = [item for item in outcomes if item.experiment.trains_dense]
        made = []
        for metric in [*distances(outcomes), *distances(outcomes, "KID")]:
            one = by_sparsity(f"{title}, {setting.task}", outcomes, metric, column, reference)
            one.notes[:0] = failures(dense)
            if name == "table2":
                one.rows.extend(_printed(setting.task, metric, one))
            made.append(one)
        if not made:
            made = [_only_failures(title, outcomes)]
        made[0].notes.extend([*_yardstick(setting, dense), *_correlations(outcomes)])
        _write(setting.root, name, made, outcomes)
        tables += made
    return tables


def _only_failures(title: str, outcomes: Sequence[Outcome]) -> Table:
    rows: list[tuple[str, ...]] = [
        (item.experiment.name, str(item.experiment.seed), item.reason) for item in outcomes
    ]
    return Table(title, ("run", "seed", "failed"), rows)


def _printed(task: str, metric: str, table: Table) -> list[tuple[str, ...]]:
    """Return the paper's row of Table 2 for a metric, where the columns are the paper's."""
    known = paper_tables()["table2"].get(task, {}).get(_titled(metric))
    if known is None or len(table.columns) != 2 + len(_SPARSITIES):
        return []
    return [("the paper", *(f"{value:g}" for value in known))]


def _run(
    request: Request, setting: Setting, planned: Sequence[Experiment], console: Console
) -> list[Outcome]:
    with exclusive(setting.root):
        dense = presets.dense(setting, request.seeds)
        return run_all([*dense, *planned], request.jobs, console, request.threads)


def _yardstick(setting: Setting, dense: Sequence[Outcome]) -> list[str]:
    """Return what a residual amounts to between two dense generators of different seeds."""
    trained = [item.experiment.folder for item in dense if item.result is not None]
    if len(trained) < 2:
        return []
    pictures = setting.root / "two_dense"
    value = residual_of_dense(trained[0], trained[1], pictures, setting.device)
    return [f"Residual of two dense generators with different seeds, the yardstick: {number(value)}."]


def _correlations(outcomes: Sequence[Outcome]) -> list[str]:
    """Return how the supervised loss of finished generators goes with their distances."""
    found = []
    for metric in [*distances(outcomes, "KID"), *distances(outcomes)]:
        pairs = [
            (float(item.result["supervised_loss"]), value)
            for item in outcomes
            if item.result is not None and item.result.get("supervised_loss") is not None
            for value in values_of([item], metric).values()
            if not item.experiment.trains_dense
        ]
        ranked = rank_correlation([x for x, _ in pairs], [y for _, y in pairs])
        if ranked is not None:
            rho, p = ranked
            found.append(
                f"Rank correlation of the supervised loss under the original discriminator with "
                f"{_titled(metric)}: {rho:.2f} over {len(pairs)} pruned generators (p = {p:.2g})."
            )
    return found


def _write(root: Path, name: str, tables: Sequence[Table], outcomes: Sequence[Outcome]) -> None:
    """Write Markdown, CSV, the page, and every single number."""
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


def _without_paths(result: Record | None) -> Record | None:
    return None if result is None else {key: value for key, value in result.items() if key != "checkpoint"}
