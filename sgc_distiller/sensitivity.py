"""How sensitive each layer of a generator is: pruned alone, level by level, on a copy, and judged."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from sgc_distiller import checks, wording
from sgc_distiller.errors import UserError
from sgc_distiller.finished import Finished, open_finished
from sgc_distiller.names import layer_axes, prunable_names
from sgc_distiller.recording import Console
from sgc_distiller.schedule import Schedule
from sgc_distiller.sensitivity_journal import Journal
from sgc_distiller.sensitivity_judge import Judge, fingerprint
from sgc_distiller.settings import Options

__all__ = [
    "METRICS",
    "STRUCTURES",
    "Analysis",
    "Point",
    "Request",
    "levels_between",
    "measure_sensitivity",
    "pruned_copy",
]

Record = dict[str, Any]
STRUCTURES = ("element", "filter", "channel")
"""What a layer loses, by the names of Distiller's ``--sense``."""
METRICS = ("fid", "kid", "loss", "both")
"""What judges it; ``both`` is the supervised loss and FID."""

_GROUPS = {"filter": "Filters", "channel": "Channels"}
_MOST_LEVELS = 1000


@dataclass(frozen=True)
class Request:
    """What is asked of an analysis.

    Attributes:
        structure: One of `STRUCTURES`: elements by magnitude, or a layer's true output filters or input
            channels by their L1 norm.
        levels: Shares of each layer to prune, in [0, 1], increasing; see `levels_between`.
        metric: One of `METRICS`.
        tolerance: How much worse a layer alone may make the metric in the schedule that is written: relative
            to the dense generator's for FID and KID, absolute for the supervised loss, which is 0 for it.
    """

    structure: str
    levels: tuple[float, ...]
    metric: str = "fid"
    tolerance: float = 0.1

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        checks.one_of(self.structure, STRUCTURES, "--sense")
        checks.one_of(self.metric, METRICS, "--sense-metric")
        checks.number(self.tolerance, "--sense-tolerance", low=0.0)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that are measured, the one that decides first."""
        return ("fid", "loss") if self.metric == "both" else (self.metric,)


def levels_between(start: float, stop: float, step: float) -> tuple[float, ...]:
    """Return levels from ``start`` in distances of ``step``; ``stop`` is left out, as in Distiller.

    Raises:
        UserError: If that is no range inside [0, 1].
    """
    values = (start, stop, step)
    is_range = all(map(math.isfinite, values)) and 0 <= start < stop <= 1 and step > 0
    count = math.ceil((stop - start) / step - 1e-9) if is_range else 0
    if not 0 < count <= _MOST_LEVELS:
        raise UserError(
            f"--sense-range: expected START STOP STEP with 0 <= START < STOP <= 1 and at most {_MOST_LEVELS} "
            f"levels, got {' '.join(f'{value:g}' for value in values)}; Distiller's is 0 0.95 0.05"
        )
    return tuple(round(start + index * step, 10) for index in range(count))


@dataclass(frozen=True)
class Point:
    """What pruning one layer to one level does.

    Attributes:
        weight: Name of the layer's weight.
        level: Share that was asked, in [0, 1].
        sparsity: Share of the weight's elements that are 0 then.
        values: Measured values by metric, ``None`` where the pictures or the loss were no finite numbers.
        is_dense: Whether the generator is still the one that was opened.
    """

    weight: str
    level: float
    sparsity: float
    values: Mapping[str, float | None]
    is_dense: bool


@dataclass(frozen=True)
class Analysis:
    """A finished analysis.

    Attributes:
        request: What was asked.
        opened: The generator, which is as it was.
        points: One for each layer and level, layer by layer.
        dense: The opened generator's own values by metric.
        names: Full names of the metrics.
        outputs: Names of the weights of the output layers.
        seconds: Time by metric of what was measured, also by earlier calls.
        skipped: Weights that have no such structures.
    """

    request: Request
    opened: Finished
    points: list[Point]
    dense: dict[str, float | None]
    names: dict[str, str]
    outputs: list[str]
    seconds: dict[str, float]
    skipped: list[str]

    def damage(self, point: Point, metric: str | None = None) -> float:
        """Return how much worse a point is than the dense generator, by default by the deciding metric.

        Returns:
            The rise relative to the dense value for FID and KID, the rise itself for the loss; infinity
            where nothing could be measured.
        """
        metric = metric or self.request.metrics[0]
        value, dense = point.values[metric], self.dense[metric]
        if value is None or dense is None:
            return math.inf
        return value - dense if metric == "loss" else (value - dense) / dense

    def tolerated(self, weight: str) -> float:
        """Return the highest level of a layer up to which no level does more damage than is tolerated."""
        found = 0.0
        for point in self.points:
            if point.weight == weight:
                if self.damage(point) > self.request.tolerance:
                    break
                found = point.level
        return found

    @property
    def weights(self) -> list[str]:
        """The layers, in the generator's order."""
        return list(dict.fromkeys(point.weight for point in self.points))


def measure_sensitivity(
    options: Options, request: Request, journal: str | Path, console: Console | None = None
) -> Analysis:
    """Prune every layer of a generator alone to every level, and judge each on a copy.

    What is measured is written as it goes; called again, this goes on where it stopped, also after having
    been killed. Points are known by what was pruned: other levels or another metric go into the same file.

    Args:
        options: Name the checkpoint and how it is measured.
        request: What is asked.
        journal: File of JSON lines, made if it is missing.
        console: Where a person follows.

    Raises:
        UserError: If the checkpoint cannot be used, there is no such metric for it, or the file is of another
            checkpoint or other settings.
    """
    console = console or Console()
    opened = open_finished(options, console)
    generator = opened.generator
    names, skipped = _layers(generator, request.structure)
    judge = Judge(opened, request.metrics)
    with Journal(Path(journal), _settings(opened, request)) as kept:
        if judge.loss_name:
            kept.check_name("loss", judge.loss_name)
        bench = _Bench(kept, judge, request.metrics, console)
        dense = bench.values("", 0.0, generator)
        _refuse_without_ratio(request, dense)
        bench.expected = len(names) * len(request.levels)
        points = [
            _point(bench, generator, request.structure, weight, level, dense)
            for weight in names
            for level in request.levels
        ]
        full_names, seconds = kept.names(), kept.seconds()
    outputs = opened.run.task.output_layers(generator)
    return Analysis(request, opened, points, dense, full_names, outputs, seconds, skipped)


def _point(
    bench: _Bench,
    generator: nn.Module,
    structure: str,
    weight: str,
    level: float,
    dense: Mapping[str, float | None],
) -> Point:
    """Return one layer's point, measured or known already."""
    pruned = pruned_copy(generator, structure, weight, level)
    is_dense = _total(pruned) == _total(generator)
    values = dense if is_dense else bench.values(weight, level, pruned)
    bench.passed += 1
    share = 1.0 - int(pruned.get_parameter(weight).count_nonzero()) / pruned.get_parameter(weight).numel()
    return Point(weight, level, share, values, is_dense)


class _Bench:
    """Looks up what a journal knows, measures the rest, and says how long it will take."""

    def __init__(self, journal: Journal, judge: Judge, metrics: tuple[str, ...], console: Console) -> None:
        self.journal = journal
        self.judge = judge
        self.metrics = metrics
        self.console = console
        self.expected = 0
        self.passed = 0
        self._layer = ""

    def values(self, weight: str, level: float, generator: nn.Module) -> dict[str, float | None]:
        """Return the values of all metrics of a generator with one layer pruned; of none if it is empty."""
        nonzero, spent = _total(generator), 0.0
        for metric in self.metrics:
            if self.journal.find(weight, nonzero, metric) is None:
                began = time.perf_counter()
                found = self.judge.measure(metric, generator)
                seconds = time.perf_counter() - began
                spent += seconds
                for kind, (name, value) in found.items():
                    record = {"weight": weight, "level": level, "nonzero": nonzero, "metric": kind}
                    took = seconds if kind == metric else 0.0
                    self.journal.add({**record, "name": name, "value": value, "seconds": took})
        if spent and weight and weight != self._layer:
            self._tell(weight, spent)
        known = {metric: self.journal.find(weight, nonzero, metric) for metric in self.metrics}
        return {metric: record["value"] for metric, record in known.items() if record is not None}

    def _tell(self, weight: str, spent: float) -> None:
        """Say what is pruned next, and how long the rest takes at most."""
        self._layer = weight
        left = self.expected - self.passed - 1
        self.console.note(
            f"{weight}: {spent:.2g} s a point, {left} left, about {wording.duration(left * spent)}"
        )


def pruned_copy(generator: nn.Module, structure: str, weight: str, level: float) -> nn.Module:
    """Return a copy of a generator with one layer pruned, as a schedule with a ``gan:`` section does it.

    Args:
        generator: The generator; it is left as it was.
        structure: One of `STRUCTURES`.
        weight: Name of the layer's weight.
        level: Share that goes, in [0, 1]: ``int(level * number)`` of the elements or structures. A filter's
            bias and norm go with it.
    """
    made = copy.deepcopy(generator)
    if structure == "element":
        pruner: Record = {"class": "SparsityLevelParameterPruner", "levels": {weight: level}}
    else:
        pruner = {
            "class": "L1RankedStructureParameterPruner",
            "group_type": _GROUPS[structure],
            "desired_sparsity": level,
            "weights": [weight],
            "prune_output": True,
        }
    policies = [{"pruner": {"instance_name": "alone"}, "epochs": [0]}]
    schedule = Schedule.from_dict(
        {"version": 1, "pruners": {"alone": pruner}, "policies": policies, "gan": {}}
    )
    scheduler = schedule.build(made, seed=0)
    scheduler.on_epoch_begin(0)
    scheduler.mask_all_weights()
    return made


def _layers(generator: nn.Module, structure: str) -> tuple[list[str], list[str]]:
    """Return the weights that have such structures, and those that have none."""
    names = prunable_names(generator)
    known = names if structure == "element" else list(layer_axes(generator))
    found = [name for name in names if name in known]
    if not found:
        raise UserError(
            f"--sense {structure}: expected a generator with convolutions or linear layers, got "
            f"{len(names)} layers of which none has such structures; try --sense element"
        )
    return found, [name for name in names if name not in known]


def _total(generator: nn.Module) -> int:
    """Return how many numbers of all parameters are not zero: another one means another generator."""
    return sum(int(parameter.count_nonzero()) for parameter in generator.parameters())


def _refuse_without_ratio(request: Request, dense: Mapping[str, float | None]) -> None:
    metric = request.metrics[0]
    value = dense[metric]
    if value is None or (metric != "loss" and value <= 0):
        raise UserError(
            f"--sense-metric {metric}: the dense generator's own value is {wording.number(value)}, which "
            "nothing can be compared with; expected a positive number: take --sense-metric loss, or more "
            "pictures with --test-images"
        )


def _settings(opened: Finished, request: Request) -> Record:
    """Return what all points of a file have in common."""
    options = opened.run.options
    kept = ("data", "seed", "extractor", "extractor_weights", "judged_on", "batch_size", "train_size")
    given = asdict(options)
    return {
        "kind": "settings",
        "structure": request.structure,
        "task": opened.run.task.name,
        "generator": fingerprint(opened.generator),
        "test_images": options.images_for_result,
        **{name: given[name] for name in kept},
    }
