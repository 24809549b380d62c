"""How fast a generator is in the forms in which it can be deployed, measured side by side on this machine.

A round runs every form once; a form is compared with the dense generator of the same round, so that a machine
that is busy for a while slows both. Nothing is claimed that was not measured.
"""

from __future__ import annotations

import contextlib
import gc
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sgc_distiller import checkpoints
from sgc_distiller.compute import multiply_adds
from sgc_distiller.deployed_forms import Form, deployed_forms
from sgc_distiller.deployment import Inputs, example_inputs
from sgc_distiller.errors import UserError
from sgc_distiller.finished import Finished, open_finished
from sgc_distiller.module_state import parts_of
from sgc_distiller.recording import Console, metric_record
from sgc_distiller.runs import RunFolder
from sgc_distiller.settings import Options
from sgc_distiller.studies.tables import Table
from sgc_distiller.wording import MISSING, number, short_name

__all__ = ["side_by_side", "speed_report", "speed_table"]

Record = dict[str, Any]

_FEWEST_ROUNDS = 5
_MOST_ROUNDS = 30
_WARM_UPS = 2


def speed_report(
    options: Options,
    dense: str | None = None,
    batches: Sequence[int] = (1, 16),
    seconds: float = 60.0,
    images: int = 0,
    console: Console | None = None,
) -> Record:
    """Time a generator dense, masked and thinned, by PyTorch and by ONNX Runtime.

    Args:
        options: Name its checkpoint by ``resume_from`` or ``weights_from``.
        dense: Checkpoint of the dense generator; by default ``teacher.pth`` beside the checkpoint.
        batches: Batch sizes.
        seconds: Time for each batch size; 5 rounds are run in any case, and at most 30.
        images: Pictures drawn for the metric of each form; 0 for none.
        console: Where a person follows.

    Returns:
        ``rows``, one a form and batch size; ``machine``; ``notes``, why forms are missing.

    Raises:
        UserError: If there is no dense generator to compare with, or a setting is out of range.
    """
    if any(size < 1 for size in batches) or not batches:
        raise UserError(
            f"--batch: expected sizes of at least 1, got {', '.join(map(str, batches)) or 'none'}"
        )
    opened = open_finished(options, console)
    notes: list[str] = []
    forms = deployed_forms(opened, _dense(opened, dense), notes)
    metrics = _metrics(opened, forms, images)
    rows = []
    for size in batches:
        inputs = example_inputs(opened.run.task, forms[0].generator, opened.run.data, size)
        one = {name: tuple(item[:1] for item in given) for name, given in inputs.items()}
        calls = {form.name: partial(form.call, form.prepare(inputs)) for form in forms}
        times = side_by_side(calls, seconds, opened.run.device)
        rows += [_row(form, size, times, forms[0].name, one, metrics.get(form.name)) for form in forms]
    return {"rows": rows, "machine": _machine(opened.run.device), "notes": notes, "checkpoint": opened.source}


def side_by_side(
    calls: Mapping[str, Callable[[], Any]], seconds: float, device: torch.device
) -> dict[str, list[float]]:
    """Return how long each call took in each round, in seconds.

    Args:
        calls: What is run, once a round, in an order that turns by one every round.
        seconds: Time for all rounds; at least 5 are run, and at most 30.
        device: What to wait for after each call.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    with torch.no_grad(), _no_collection():
        for _ in range(_WARM_UPS):
            for call in calls.values():
                call()
        _wait(device)
        start = time.perf_counter()
        for index in range(_MOST_ROUNDS):
            if index >= _FEWEST_ROUNDS and time.perf_counter() - start > seconds:
                break
            turn = index % len(names)
            for name in names[turn:] + names[:turn]:
                begin = time.perf_counter()
                calls[name]()
                _wait(device)
                times[name].append(time.perf_counter() - begin)
    return times


@contextlib.contextmanager
def _no_collection() -> Any:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _dense(opened: Finished, named: str | None) -> nn.Module:
    """Return the dense generator that a checkpoint's was made of."""
    run = opened.run
    if named is None:
        file = RunFolder(checkpoints.find_checkpoint(opened.source).parent, create=False).teacher_file
        if not file.is_file():
            raise UserError(
                f"{file}: expected the dense generator to compare with, got no such file; name it with "
                "--dense CHECKPOINT"
            )
        named = str(file)
    content = checkpoints.load_checkpoint(named, run.device)
    generator = run.build("generator")
    checkpoints.load_weights(generator, run.task.adapted(content["state_dict"]), f"{named}, generator")
    return generator


def _metrics(opened: Finished, forms: Sequence[Form], images: int) -> dict[str, list[Record]]:
    """Return the metrics of the test protocol by form, drawn as deployed."""
    if not images:
        return {}
    found = {}
    for form in forms:
        if form.draws is not None:
            opened.run.console.note(f"measuring {images} pictures: {form.name}")
            results = opened.run.measure("test", form.draws, images)
            found[form.name] = [_as_deployed(metric_record(item)) for item in results]
    return found


def _as_deployed(record: Record) -> Record:
    """Return a metric with a name that no metric of a generator in training mode has."""
    return {**record, "name": f"{record['name'].removesuffix(']')}; as deployed]"}


def _row(
    form: Form,
    size: int,
    times: Mapping[str, list[float]],
    reference: str,
    one: Mapping[str, Inputs],
    metrics: list[Record] | None,
) -> Record:
    own, dense = np.array(times[form.name]), np.array(times[reference])
    ratios = dense / own
    layers = [
        layer for part in parts_of(form.generator) for layer in multiply_adds(part.network, one[part.name])
    ]
    return {
        "form": form.name,
        "batch": size,
        "rounds": len(own),
        "milliseconds": 1e3 * float(np.median(own)),
        "milliseconds_quartiles": [1e3 * float(value) for value in np.quantile(own, (0.25, 0.75))],
        "times_faster": float(np.median(ratios)),
        "times_faster_quartiles": [float(value) for value in np.quantile(ratios, (0.25, 0.75))],
        "macs": sum(layer.macs for layer in layers),
        "macs_nonzero": sum(layer.macs_nonzero for layer in layers),
        "parameters": sum(item.numel() for item in form.generator.parameters()),
        "bytes": form.bytes,
        "metrics": metrics,
    }


def _machine(device: torch.device) -> Record:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def speed_table(report: Record) -> Table:
    """Return what `speed_report` found as a table for a person."""
    measured = [row["metrics"] for row in report["rows"] if row["metrics"]]
    first = measured[0][:1] if measured else []
    heads = [short_name(item) for item in first]
    rows: list[tuple[str, ...]] = []
    for row in report["rows"]:
        low, high = row["milliseconds_quartiles"]
        slow, fast = row["times_faster_quartiles"]
        values = [number(item["value"]) for item in (row["metrics"] or [])[:1]] or [MISSING] * len(heads)
        rows.append(
            (
                row["form"],
                str(row["batch"]),
                f"{row['milliseconds']:.1f} ({low:.1f} to {high:.1f})",
                f"{row['times_faster']:.2f} ({slow:.2f} to {fast:.2f})",
                number(row["macs"] / 1e6),
                f"{row['parameters']:,}",
                f"{row['bytes'] / 1e6:.2f}",
                *values,
            )
        )
    machine = report["machine"]
    rounds = sorted({row["rounds"] for row in report["rows"]})
    notes = [
        f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}; medians and quartiles "
        f"of {' and '.join(map(str, rounds))} rounds, in each of which every form ran once.",
        "Multiply-adds are of one sample, dense ones: zeros that stay in place are multiplied too.",
        *report["notes"],
        *(f"{short_name(item)} is {item['name']}." for item in first),
    ]
    columns = ("form", "batch", "ms", "times faster", "million MACs", "parameters", "MB", *heads)
    return Table("Speed", columns, rows, list(dict.fromkeys(notes)))
