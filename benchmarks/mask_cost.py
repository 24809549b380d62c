"""Cost of masks on a generator of StarGAN's size: applying them in each step, computing them in an epoch.

Applying: `MaskSet.apply`, all masked parameters in one call, against a loop over all parameters that
multiplies each one that has a mask, as Distiller's scheduler does. Computing: `keep_largest`, the exact
number, lowest index first among equals, against the threshold that `torch.topk` finds, as Distiller's pruners
do. Both sides take turns in one process::

    python benchmarks/mask_cost.py --device cpu --rounds 15

Writes every number to ``benchmarks/results/mask_cost_<device>.json`` and prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from step_cost import RESULTS, machine, ratio, wait
from torch import Tensor, nn

from sgc_distiller.masks import MaskSet, keep_largest

CONVOLUTIONS = [(64, 8, 7, 7), (128, 64, 4, 4), (256, 128, 4, 4), *12 * [(256, 256, 3, 3)]]
CONVOLUTIONS += [(256, 128, 4, 4), (128, 64, 4, 4), (3, 64, 7, 7)]
"""Weights of StarGAN's generator for 128x128 and 5 labels."""

SPARSITIES = (0.5, 0.9)


class Weights(nn.Module):
    """The parameters of StarGAN's generator, without what it does with them."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(shape)) for shape in CONVOLUTIONS])
        norms = [shape[0] for shape in CONVOLUTIONS[:15]] + [128, 64]
        self.norms = nn.ParameterList([nn.Parameter(torch.ones(size)) for size in norms for _ in range(2)])


def topk_mask(weight: Tensor, drop_count: int) -> Tensor:
    """Return the mask of all elements above the ``drop_count``-th smallest magnitude."""
    size = weight.detach().abs()
    limit = size.flatten().topk(drop_count, largest=False).values[-1]
    return (size > limit).to(weight.dtype)


def applying(model: Weights) -> dict[str, Callable[[], None]]:
    """Return both ways to apply masks; 75 % of each convolution is masked."""
    masks = MaskSet(model)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 4:
            masks[name].mask = keep_largest(parameter, int(0.75 * parameter.numel()))

    def loop() -> None:
        for name, parameter in model.named_parameters():
            mask = masks[name].mask
            if mask is not None:
                parameter.data.mul_(mask)

    return {"together": masks.apply, "loop over all parameters": loop}


def computing(model: Weights, sparsity: float) -> dict[str, Callable[[], None]]:
    """Return both ways to compute the masks of all convolutions."""

    def each(mask: Callable[[Tensor, int], Tensor]) -> Callable[[], None]:
        def compute() -> None:
            for weight in model.weights:
                mask(weight, int(sparsity * weight.numel()))

        return compute

    return {"exact number": each(keep_largest), "topk and threshold": each(topk_mask)}


def measure(ways: dict[str, Callable[[], None]], device: torch.device, rounds: int, calls: int) -> Any:
    """Return milliseconds a call of both ways, which take turns, and the first one's ratio to the second."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(-2, rounds):
        for name in list(ways)[:: 1 if turn % 2 else -1]:
            wait(device)
            started = time.perf_counter()
            for _ in range(calls):
                ways[name]()
            wait(device)
            if turn >= 0:  # the first two rounds warm up
                times[name].append((time.perf_counter() - started) / calls)
    ours, other = times
    return {
        "milliseconds": {name: 1000 * statistics.median(values) for name, values in times.items()},
        "ratio": ratio(times[ours], times[other]),
    }


def table(found: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = [
        f"{found['machine']}, {found['threads']} threads, torch {found['torch']}, {found['rounds']} rounds",
        "",
    ]
    lines += ["| | ours, ms | other, ms | ratio (smallest to largest) |", "|---|---|---|---|"]
    for name, row in found["rows"].items():
        ours, other = (f"{value:.2f}" for value in row["milliseconds"].values())
        spread = "{median:.2f} ({low:.2f} to {high:.2f})".format(**row["ratio"])
        lines.append(f"| {name} | {ours} | {other} | {spread} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write the JSON file and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    usual = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=torch.device, default=usual)
    parser.add_argument("--threads", type=int, help="of torch on the CPU; all cores by default")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--results", type=Path, help="JSON file in place of results/mask_cost_<device>.json")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    device: torch.device = options.device
    torch.manual_seed(0)
    model = Weights().to(device)
    rows = {"apply in a step": measure(applying(model), device, options.rounds, 10)}
    model = Weights().to(device)
    for sparsity in SPARSITIES:
        rows[f"compute, {sparsity:.0%}"] = measure(computing(model, sparsity), device, options.rounds, 1)
    found = {
        "machine": machine(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rounds": options.rounds,
        "rows": rows,
    }
    results = options.results or RESULTS / f"mask_cost_{device.type}.json"
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
