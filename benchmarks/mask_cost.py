"""Cost of masks: the hooks of each step, and computing the masks of an epoch, against Distiller's way.

Both sides of a comparison run in one process and take turns, so that whatever else the machine does hits both
alike::

    python benchmarks/mask_cost.py --device cpu --threads 1 --rounds 11

Hooks: one step of `CompressionScheduler` on the parameters of StarGAN's generator (8.4 million weights) with
a gradual pruning policy at 50 %, against the same schedule in the real Distiller where it can be imported,
else against loops over all parameters as Distiller has them. What stands for the optimizer's step, a change
of all parameters in place, is the same on both sides and its time is left out. Refresh: all masks of
pix2pix's generator (54 million weights), `keep_largest` against the threshold that `torch.topk` finds; dense
weights, and weights that are pruned already to 5 % less, as in the middle of a gradual schedule.

A ratio is the other side's time to ours in the same round; beside wall time stands the process's processor
time, which other processes disturb less. On a GPU the time until the calls return is measured too. Writes
every number to ``benchmarks/results/mask_cost_<device>.json`` and prints Markdown.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from step_cost import RESULTS, machine, ratio, wait
from torch import Tensor, nn

from sgc_distiller.masks import MaskSet, keep_largest
from sgc_distiller.schedule import dict_config

STARGAN = [(64, 8, 7, 7), (128, 64, 4, 4), (256, 128, 4, 4), *12 * [(256, 256, 3, 3)]]
STARGAN += [(256, 128, 4, 4), (128, 64, 4, 4), (3, 64, 7, 7)]
"""Weights of StarGAN's generator for 128x128 and 5 labels."""

PIX2PIX_DOWN = [(64, 3), (128, 64), (256, 128), (512, 256), *4 * [(512, 512)]]
PIX2PIX_UP = [(512, 512), *3 * [(1024, 512)], (1024, 256), (512, 128), (256, 64), (128, 3)]
PIX2PIX = [(*sizes, 4, 4) for sizes in PIX2PIX_DOWN + PIX2PIX_UP]
"""Weights of pix2pix's generator, a U-Net for 256x256."""

SPARSITIES = (0.5, 0.9)
STEPS_PER_EPOCH = 1_000_000

Way = Callable[[], "Cost"]


@dataclass
class Cost:
    """Seconds that something took: by the clock, until the calls returned, of the processor."""

    wall: float = 0.0
    host: float = 0.0
    processor: float = 0.0

    def add(self, call: Callable[[], Any], device: torch.device) -> None:
        """Add what ``call`` takes."""
        wait(device)
        started, processor = time.perf_counter(), time.process_time()
        call()
        self.host += time.perf_counter() - started
        wait(device)
        self.wall += time.perf_counter() - started
        self.processor += time.process_time() - processor


@dataclass
class Costs:
    """What one side took, in one entry a round."""

    wall: list[float] = field(default_factory=list)
    host: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    def append(self, costs: Sequence[Cost]) -> None:
        """Append the median over the calls of a round."""
        for name in ("wall", "host", "processor"):
            getattr(self, name).append(statistics.median(getattr(cost, name) for cost in costs))


class Weights(nn.Module):
    """Parameters of a generator, without what it does with them.

    Args:
        convolutions: Shapes of the weights.
        norms: Numbers of channels of the norms, each with a weight and a bias.
    """

    def __init__(self, convolutions: Sequence[tuple[int, ...]], norms: Sequence[int] = ()) -> None:
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(shape)) for shape in convolutions])
        self.norms = nn.ParameterList([nn.Parameter(torch.ones(size)) for size in norms for _ in range(2)])


def stargan() -> Weights:
    """Return the parameters of StarGAN's generator."""
    return Weights(STARGAN, [shape[0] for shape in STARGAN[:15]] + [shape[1] for shape in STARGAN[15:17]])


def topk_mask(weight: Tensor, drop_count: int) -> Tensor:
    """Return the mask of all elements above the ``drop_count``-th smallest magnitude."""
    with torch.no_grad():
        limit = weight.abs().view(-1).topk(drop_count, largest=False, sorted=True).values[-1]
        return torch.gt(weight.abs(), limit).to(weight.dtype)


def refreshing(sparsity: float, pruned: bool, device: torch.device) -> dict[str, Way]:
    """Return both ways to compute the masks of all weights of pix2pix's generator."""
    weights = list(Weights(PIX2PIX).to(device).weights)
    counts = [int(sparsity * weight.numel()) for weight in weights]
    masks: list[Tensor | None] = [None for _ in weights]
    if pruned:
        with torch.no_grad():
            for index, weight in enumerate(weights):
                mask = masks[index] = keep_largest(weight, int((sparsity - 0.05) * weight.numel()))
                weight.mul_(mask)

    def timed(compute: Callable[[Tensor, int, Tensor | None], Tensor]) -> Way:
        def way() -> Cost:
            cost = Cost()
            cost.add(lambda: [compute(*each) for each in zip(weights, counts, masks, strict=True)], device)
            return cost

        return way

    return {
        "exact number": timed(keep_largest),
        "topk and threshold": timed(lambda weight, count, _: topk_mask(weight, count)),
    }


class Loops:
    """Hooks that walk over all parameters as Distiller's do, for where it cannot be imported.

    Args:
        model: The network.
        masks: Its masks, ready.
    """

    def __init__(self, model: nn.Module, masks: MaskSet) -> None:
        self.model = model
        self.masks = {name: masker.mask for name, masker in masks.items()}
        self.copies: dict[str, Tensor] = {}

    def _multiply(self) -> None:
        for name, parameter in self.model.named_parameters():
            mask = self.masks[name]
            if mask is not None:
                parameter.data.mul_(mask)

    def on_minibatch_begin(self, *where: Any) -> None:
        """Mask all weights."""
        self._multiply()

    def before_backward_pass(self, epoch: int, step: int, steps: int, loss: Tensor, optimizer: Any) -> Tensor:
        """Return the loss."""
        return loss

    def before_parameter_optimization(self, *where: Any) -> None:
        """Look for dense copies."""
        for name, parameter in self.model.named_parameters():
            if name in self.copies:
                parameter.data.copy_(self.copies[name])

    def on_minibatch_end(self, *where: Any) -> None:
        """Mask all weights again."""
        self._multiply()


def ours(model: Weights) -> Any:
    """Return our scheduler in an epoch at 50 %, all convolutions pruned."""
    names = [name for name, parameter in model.named_parameters() if parameter.dim() == 4]
    pruner = {"class": "AutomatedGradualPruner", "initial_sparsity": 0.05, "final_sparsity": 0.5}
    epochs = {"starting_epoch": 0, "ending_epoch": 2, "frequency": 1}
    schedule = {
        "pruners": {"p": {**pruner, "weights": names}},
        "policies": [{"pruner": {"instance_name": "p"}, **epochs}],
    }
    scheduler = dict_config(model, None, schedule)
    scheduler.on_epoch_begin(1)
    return scheduler


def distillers(model: Weights) -> Any:
    """Return the real Distiller's scheduler in the same state, or None where there is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is written for an older Python
            distiller = importlib.import_module("distiller")
            pruning = importlib.import_module("distiller.pruning")
    except ImportError:  # there is none, or the other project of this name
        return None
    names = [name for name, parameter in model.named_parameters() if parameter.dim() == 4]
    scheduler = distiller.CompressionScheduler(model, device=next(model.parameters()).device)
    pruner = pruning.AutomatedGradualPruner("p", 0.05, 0.5, names)
    scheduler.add_policy(distiller.PruningPolicy(pruner, {}), starting_epoch=0, ending_epoch=2, frequency=1)
    scheduler.on_epoch_begin(1)
    return scheduler


def hooks_of(scheduler: Any, device: torch.device) -> Way:
    """Return a way to take one step with a scheduler's hooks; the change of the weights costs nothing."""
    parameters = list(scheduler.model.parameters())
    loss = torch.zeros((), device=device)
    where = (1, 1, STEPS_PER_EPOCH)  # step 1 of epoch 1

    def before() -> None:
        scheduler.on_minibatch_begin(*where, None)
        scheduler.before_backward_pass(*where, loss, None)
        scheduler.before_parameter_optimization(*where, None)

    def way() -> Cost:
        cost = Cost()
        cost.add(before, device)
        with torch.no_grad():
            torch._foreach_add_(parameters, 1e-3)
        cost.add(lambda: scheduler.on_minibatch_end(*where, None), device)
        return cost

    return way


def hooks(device: torch.device) -> dict[str, Way]:
    """Return both schedulers' ways to take a step, each with a generator of its own."""
    model = stargan().to(device)
    scheduler = ours(model)
    other = stargan().to(device)
    theirs, label = distillers(other), "Distiller"
    if theirs is None:
        theirs, label = Loops(other, ours(other).zeros_mask_dict), "loops like Distiller's"
    return {"CompressionScheduler": hooks_of(scheduler, device), label: hooks_of(theirs, device)}


def measure(ways: dict[str, Way], rounds: int, calls: int, warm_up: int = 1) -> dict[str, Any]:
    """Return milliseconds of both sides, which take turns, and the second one's ratios to the first."""
    times = {name: Costs() for name in ways}
    for turn in range(-warm_up, rounds):
        costs: dict[str, list[Cost]] = {name: [] for name in ways}
        for call in range(calls):
            for name in list(ways)[:: 1 if (turn + call) % 2 else -1]:
                costs[name].append(ways[name]())
        if turn >= 0:
            for name, one_side in times.items():
                one_side.append(costs[name])
    first, second = times.values()
    kinds = ("wall", "host", "processor")
    return {
        "milliseconds": {
            name: {kind: spread([1000 * value for value in getattr(costs, kind)]) for kind in kinds}
            for name, costs in times.items()
        },
        "times_faster": {kind: ratio(getattr(second, kind), getattr(first, kind)) for kind in kinds},
        "calls_per_round": calls,
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, smallest and largest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def table(found: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    load = "unknown" if found["load"] is None else "{:.1f} before, {:.1f} after".format(*found["load"])
    lines = [
        f"{found['machine']}, {found['threads']} CPU threads, torch {found['torch']}; load: {load}; "
        f"{found['rounds']} rounds; median (smallest to largest)",
        "",
        "| | ours, ms | other, ms | times faster | in processor time | host time, times less |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in found["rows"].items():
        sides = list(row["milliseconds"])
        cells = [f"{name}: {sides[0]} against {sides[1]}"]
        cells += [_cell(row["milliseconds"][side]["wall"]) for side in sides]
        faster = row["times_faster"]
        host = _cell(faster["host"]) if found["device"] == "cuda" else "-"
        cells += [_cell(faster["wall"]), _cell(faster["processor"]), host]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: dict[str, float]) -> str:
    return "{median:.2f} ({low:.2f} to {high:.2f})".format(**values)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    usual = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=torch.device, default=usual)
    parser.add_argument("--threads", type=int, help="of torch on the CPU; all cores by default")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--steps", type=int, default=50, help="steps with hooks in a round")
    parser.add_argument("--results", type=Path, help="JSON file in place of results/mask_cost_<device>.json")
    options = parser.parse_args(arguments)
    options.results = options.results or RESULTS / f"mask_cost_{options.device.type}.json"
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write the JSON file and print the table."""
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    device: torch.device = options.device
    torch.manual_seed(0)
    before = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    rows = {"hooks of a step": measure(hooks(device), options.rounds, options.steps)}
    for pruned, of_what in ((False, "of dense weights"), (True, "of pruned weights")):
        for sparsity in SPARSITIES:
            ways = refreshing(sparsity, pruned, device)
            rows[f"refresh {of_what}, {sparsity:.0%}"] = measure(ways, options.rounds, 1)
    found = {
        "machine": machine(device),
        "device": device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load": None if before is None else [before, os.getloadavg()[0]],
        "rounds": options.rounds,
        "rows": rows,
    }
    options.results.parent.mkdir(parents=True, exist_ok=True)
    options.results.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
