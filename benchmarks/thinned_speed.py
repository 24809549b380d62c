"""Time thinned generators against dense ones and against networks that were built at their width.

Filters that belong together (``group_dependency: Coupled``) are pruned without training, since values do not
change how long a network takes, and taken out::

    python benchmarks/thinned_speed.py --threads 2 --results benchmarks/results/thinned_speed_cpu.json

Prints a Markdown table of medians and quartiles over rounds, in each of which every network runs once.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sgc_distiller.compute import multiply_adds
from sgc_distiller.module_state import parts_of
from sgc_distiller.names import prunable_names
from sgc_distiller.schedule import Schedule
from sgc_distiller.speed import side_by_side
from sgc_distiller.tasks import build_task
from sgc_distiller.tasks.base import GANTask
from sgc_distiller.thinning import thin

SIZES: dict[str, dict[str, Any]] = {
    "cyclegan": {"image_size": 256},
    "stargan": {"image_size": 128},
    "pix2pix": {"image_size": 256},
    "dcgan": {"image_size": 64},
    "srgan": {"image_size": 128},
}


def masked(task: GANTask, share: float) -> nn.Module:
    """Return a generator with random weights of which a share of the coupled filters is 0."""
    torch.manual_seed(0)
    generator = task.build("generator")
    hidden = [name for name in prunable_names(generator) if name not in task.output_layers(generator)]
    pruner = {
        "class": "L1RankedStructureParameterPruner",
        "group_type": "Filters",
        "group_dependency": "Coupled",
        "desired_sparsity": share,
        "weights": hidden,
    }
    policy = {"pruner": {"instance_name": "filters"}, "epochs": [0]}
    schedule = Schedule.from_dict({"pruners": {"filters": pruner}, "policies": [policy], "gan": {}})
    scheduler = schedule.build(generator, torch.optim.Adam(generator.parameters()), seed=0)
    scheduler.on_epoch_begin(0)
    scheduler.mask_all_weights()
    return generator


def inputs_of(name: str, task: GANTask, batch: int) -> tuple[torch.Tensor, ...]:
    """Return random inputs of one network of a generator."""
    size = task.image_size
    if name == "dcgan":
        return (torch.randn(batch, task.options["noise"], 1, 1),)
    if name == "srgan":
        return (torch.rand(batch, 3, size // 4, size // 4),)
    pictures = torch.rand(batch, 3, size, size) * 2 - 1
    if name == "stargan":
        return pictures, torch.randint(0, 2, (batch, len(task.options["attributes"]))).float()
    return (pictures,)


def first_network(task: GANTask, generator: nn.Module) -> nn.Module:
    """Return a generator's only network, or the first of CycleGAN's two, as deployed."""
    return parts_of(task.deploy(generator))[0].network


def measured(name: str, share: float, batch: int, seconds: float) -> list[dict[str, Any]]:
    """Return a record a network: dense, masked, thinned, and built at the same width."""
    task = build_task(name, SIZES[name])
    generator = masked(task, share)
    thinned = first_network(task, generator)
    thin(thinned)
    networks = {
        "dense": first_network(task, task.build("generator")),
        "masked": first_network(task, generator),
        "thinned": thinned,
        "built at that width": first_network(task, task.build("generator", 1.0 - share)),
    }
    inputs = inputs_of(name, task, batch)
    calls = {key: partial(network, *inputs) for key, network in networks.items()}
    times = side_by_side(calls, seconds, torch.device("cpu"))
    dense, built = np.array(times["dense"]), np.array(times["built at that width"])
    records = []
    for key, network in networks.items():
        own = np.array(times[key])
        work = multiply_adds(network, tuple(item[:1] for item in inputs))
        records.append(
            {
                "gan": name,
                "size": task.image_size,
                "channels_pruned": share,
                "batch": batch,
                "network": key,
                "rounds": len(own),
                "macs": sum(layer.macs for layer in work),
                "parameters": sum(item.numel() for item in network.parameters()),
                "milliseconds": quartiles(1e3 * own),
                "times_faster_than_dense": quartiles(dense / own),
                "time_over_built": quartiles(own / built),
            }
        )
    return records


def quartiles(values: Any) -> list[float]:
    """Return the median and both quartiles."""
    return [float(value) for value in np.quantile(values, (0.5, 0.25, 0.75))]


def table(records: Sequence[dict[str, Any]]) -> str:
    """Return the records in Markdown."""
    head = ("GAN", "pruned", "batch", "network", "million MACs", "ms", "times faster", "time / built so")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for item in records:
        spans = [
            f"{median:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
            for (median, low, high), digits in (
                (item["milliseconds"], 1),
                (item["times_faster_than_dense"], 2),
                (item["time_over_built"], 2),
            )
        ]
        name = f"{item['gan']}, {item['size']} pixels"
        share = f"{100 * item['channels_pruned']:g} %"
        cells = (name, share, str(item["batch"]), item["network"], f"{item['macs'] / 1e6:,.0f}", *spans)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write every number."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--gans", nargs="+", default=["cyclegan", "stargan"], choices=list(SIZES))
    parser.add_argument("--shares", nargs="+", type=float, default=[0.5, 0.75], help="of the channels")
    parser.add_argument("--batches", nargs="+", type=int, default=[1])
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--seconds", type=float, default=60.0, help="for each GAN, share and batch size")
    parser.add_argument("--results", type=Path, default=None)
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    records = [
        record
        for gan in options.gans
        for batch in options.batches
        for share in options.shares
        for record in measured(gan, share, batch, options.seconds)
    ]
    print(table(records))
    if options.results:
        found = {"torch": torch.__version__, "threads": torch.get_num_threads(), "records": records}
        options.results.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
