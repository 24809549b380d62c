"""What a generator consists of: its sparsity in every structure, its computation, its modules."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from sgc_distiller import wording
from sgc_distiller.assembly import Run
from sgc_distiller.compute import CONVENTION, LayerCompute, multiply_adds
from sgc_distiller.deployment import example_inputs
from sgc_distiller.errors import UserError
from sgc_distiller.finished import open_finished
from sgc_distiller.masks import sparsity_table
from sgc_distiller.module_state import parts_of, unwrapped
from sgc_distiller.names import layer_axes
from sgc_distiller.recording import Console
from sgc_distiller.settings import Options
from sgc_distiller.structures import Axes, find_grouping
from sgc_distiller.studies.tables import Table
from sgc_distiller.tasks.base import GANTask

__all__ = [
    "KINDS",
    "compute_rows",
    "compute_table",
    "inspected",
    "module_rows",
    "module_table",
    "rows_as_csv",
    "sparsity_rows",
    "sparsity_table_of",
    "summary_of",
]

Record = dict[str, Any]
KINDS = ("sparsity", "compute", "model", "modules")
"""What can be summed up, by the names of Distiller's ``--summary``."""

_STRUCTURES: dict[str, tuple[str, Axes]] = {
    "rows": ("Rows", "stored"),
    "cols": ("Cols", "stored"),
    "channels": ("Channels", "stored"),
    "filters": ("Filters", "stored"),
    "2-D": ("Kernels", "stored"),
    "3-D": ("Filters", "stored"),
}
_BY_MODULE = ("channels", "filters")  # those that lie on the layer's true inputs and outputs


def inspected(options: Options, console: Console | None = None) -> tuple[Run, nn.Module, str]:
    """Return a run, its generator, and where that comes from; untrained where no checkpoint is named.

    Args:
        options: Name a checkpoint by ``resume_from`` or ``weights_from``, or the task alone.
        console: Where a person follows.

    Raises:
        UserError: If the checkpoint or the task cannot be used.
    """
    if options.resume_from or options.weights_from:
        found = open_finished(options, console)
        return found.run, found.generator, found.source
    run = Run(options, console)
    return run, run.build("generator"), f"{run.task.name}, untrained"


def summary_of(kind: str, run: Run, generator: nn.Module, source: str) -> tuple[list[Record], Table, int]:
    """Return a summary's rows, its table, and how many of the table's columns, from the left, are texts.

    Args:
        kind: One of `KINDS`, except ``model``, which has no rows.
        run: The generator's run.
        generator: The generator.
        source: Where it comes from.
    """
    if kind == "sparsity":
        rows = sparsity_rows(generator)
        return rows, sparsity_table_of(rows, source), 2
    if kind == "compute":
        rows = compute_rows(run.task, generator, run.data)
        return rows, compute_table(rows, source), 5
    rows = module_rows(generator)
    return rows, module_table(rows, source), 2


def sparsity_rows(generator: nn.Module) -> list[Record]:
    """Return the sparsity of every parameter with two or more dimensions, in the order of the model.

    Returns:
        Rows of `sparsity_table` with more shares of zeros in [0, 1], ``None`` where a weight has no such
        structure: ``rows`` and ``cols`` of a matrix as it is stored, ``channels`` and ``filters`` (a
        layer's true inputs and outputs, by its type), ``2-D`` kernels, and ``3-D``: what Distiller calls a
        filter, dimension 0 of the stored weight, which for a transposed convolution are its inputs.
    """
    parameters = dict(generator.named_parameters())
    axes = layer_axes(generator)
    return [
        {**row, **_structure_sparsity(parameters[row["name"]].detach(), axes.get(row["name"]))}
        for row in sparsity_table(generator)
    ]


def _structure_sparsity(weight: Tensor, axes: Axes | None) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for title, (kind, stored) in _STRUCTURES.items():
        found[title] = None
        if title in _BY_MODULE and axes is None:
            continue
        try:
            grouping = find_grouping(kind, weight.shape, (axes or stored) if title in _BY_MODULE else stored)
        except UserError:  # a weight without such structures
            continue
        found[title] = float((grouping.norms(weight, math.inf) == 0).double().mean())
    return found


def sparsity_table_of(rows: Sequence[Record], source: str) -> Table:
    """Return rows of `sparsity_rows` as a table, with a line for all of them together."""
    shown = [title for title in _STRUCTURES if any(row[title] is not None for row in rows)]
    columns = (
        "weight",
        "shape",
        "weights",
        "not zero",
        *(f"{title}, %" for title in shown),
        "elements, %",
        "std",
        "mean",
        "abs mean",
    )
    lines = [
        (
            row["name"],
            _shape(row["shape"]),
            wording.count(row["dense"]),
            wording.count(row["nonzero"]),
            *(_percent(row[title]) for title in shown),
            _percent(row["sparsity"]),
            *(f"{row[name]:.5f}" for name in ("std", "mean", "abs_mean")),
        )
        for row in rows
    ]
    dense, nonzero = (sum(row[name] for row in rows) for name in ("dense", "nonzero"))
    share = 1.0 - nonzero / dense if dense else 0.0
    blank = ("",) * len(shown)
    totals = (wording.count(dense), wording.count(nonzero))
    lines.append(("all", "", *totals, *blank, _percent(share), "", "", ""))
    notes = [
        f"Total sparsity: {wording.percent(share)} ({wording.count(nonzero)} of {wording.count(dense)} "
        "weights are not zero).",
        "Percentages: how many of such structures are zero as a whole. Channels are a layer's inputs "
        "and filters its outputs, whatever its type; 3-D is dimension 0 of the stored weight, what Distiller "
        "calls filters.",
    ]
    return Table(f"Sparsity of {source}", columns, lines, notes)


def compute_rows(task: GANTask, generator: nn.Module, data: Any) -> list[Record]:
    """Return what every layer computes for one sample of the task's data, in the order of the calls.

    Args:
        task: Says how the generator is deployed and called.
        generator: The generator.
        data: What the task's `GANTask.open_data` returned.

    Returns:
        One row a call: the fields of `LayerCompute`, ``macs`` and ``macs_nonzero``; ``name`` begins with
        the network's own where there are several.

    Raises:
        UserError: If the task's `GANTask.generate` does not call a network with tensors.
    """
    network = task.deploy(generator)
    inputs = example_inputs(task, network, data, count=1)
    return [
        _compute_row(part.prefix, call)
        for part in parts_of(network)
        for call in multiply_adds(part.network, inputs[part.name])
    ]


def _compute_row(prefix: str, call: LayerCompute) -> Record:
    return {
        "name": f"{prefix}{call.name}" or call.kind,
        "kind": call.kind,
        "kernel": list(call.kernel),
        "stride": list(call.stride),
        "padding": call.padding if isinstance(call.padding, str) else list(call.padding),
        "groups": call.groups,
        "input_shape": list(call.input_shape),
        "output_shape": list(call.output_shape),
        "weights": call.weights,
        "nonzero": call.nonzero,
        "macs": call.macs,
        "macs_nonzero": call.macs_nonzero,
    }


def compute_table(rows: Sequence[Record], source: str) -> Table:
    """Return rows of `compute_rows` as a table, with a line for all of them together."""
    columns = (
        "layer",
        "type",
        "attributes",
        "input",
        "output",
        "weights",
        "MACs",
        "after pruning",
        "left, %",
    )
    lines = [
        (
            row["name"],
            row["kind"],
            _attributes(row),
            _shape(row["input_shape"]),
            _shape(row["output_shape"]),
            *map(wording.count, (row["weights"], row["macs"], row["macs_nonzero"])),
            _percent(row["macs_nonzero"] / max(1, row["macs"])),
        )
        for row in rows
    ]
    weights = sum({row["name"]: row["weights"] for row in rows}.values())
    macs, left = (sum(row[name] for row in rows) for name in ("macs", "macs_nonzero"))
    totals = map(wording.count, (weights, macs, left))
    lines.append(("all", "", "", "", "", *totals, _percent(left / max(1, macs))))
    less = f"{macs / left:.2f} times fewer" if 0 < left < macs else "none is left" if macs > left else "all"
    notes = [
        f"Total MACs for one sample: {wording.count(macs)}; after pruning {wording.count(left)} ({less}).",
        CONVENTION,
        "Dense kernels multiply zeros too: what is left after pruning is what sparse ones, or a generator "
        "whose zero structures were removed, have to do.",
    ]
    return Table(f"Computation of {source}, one sample", columns, lines, notes)


def _attributes(row: Record) -> str:
    if not row["kernel"]:
        return ""
    padding = row["padding"] if isinstance(row["padding"], str) else _short(row["padding"])
    groups = f" g={row['groups']}" if row["groups"] > 1 else ""
    return f"k={_short(row['kernel'])} s={_short(row['stride'])} p={padding}{groups}"


def module_rows(generator: nn.Module) -> list[Record]:
    """Return ``name`` and ``kind`` of every module that holds no others, in the order of the model."""
    network = unwrapped(generator)
    return [
        {"name": name, "kind": type(module).__name__}
        for name, module in network.named_modules()
        if not any(True for _ in module.children())
    ]


def module_table(rows: Sequence[Record], source: str) -> Table:
    """Return rows of `module_rows` as a table."""
    return Table(f"Modules of {source}", ("name", "type"), [(row["name"], row["kind"]) for row in rows])


def rows_as_csv(rows: Sequence[Record]) -> str:
    """Return rows with the same keys as comma-separated values: plain numbers, shares in [0, 1]."""
    written = io.StringIO()
    writer = csv.DictWriter(written, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _shape(item) if isinstance(item, list) else item for key, item in row.items()})
    return written.getvalue()


def _percent(share: float | None) -> str:
    return wording.MISSING if share is None else wording.percent(share).removesuffix(" %")


def _shape(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


def _short(sizes: Sequence[int]) -> str:
    """Return equal sizes as one number."""
    return str(sizes[0]) if len(set(sizes)) == 1 else _shape(sizes)
