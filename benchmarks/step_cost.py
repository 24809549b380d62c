"""Cost of one training step: plain, with masks, supervised, distilled; and the arithmetic of each.

All cases run in one process and take turns, so that whatever else the machine does hits all of them alike::

    python benchmarks/step_cost.py --device cpu --rounds 9

A ratio is the median over the rounds of a case's time to the plain step's time in the same round, with the
smallest and the largest one; beside wall time stands the process's processor time, which other processes
disturb less. FLOPs are those of convolutions and products of matrices, forward and backward, of one whole
step (discriminator's phase and generator's), counted by `torch.utils.flop_counter`; norms, activations, masks
and the optimiser's arithmetic are not in them. Writes every number to
``benchmarks/results/step_cost_<device>.json`` and prints Markdown.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import platform
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sgc_distiller.experiment_spec import GanSpec
from sgc_distiller.resources import find_schedule
from sgc_distiller.schedule import read_schedule
from sgc_distiller.supervision import Supervision
from sgc_distiller.tasks.dcgan import DCGAN
from sgc_distiller.training import StepReport, Trainer

SETTINGS = {"64x64": (64, 64, 64), "32x32": (32, 32, 64)}
"""Image size, width and batch size."""

CASES = {
    "plain GAN step": None,
    "AGP, plain GAN loss": "dcgan/agp_75",
    "supervised, as in the paper": "dcgan/paper_75",
    "supervised, recommended": "dcgan/recommended_75",
    "distillation of pixels, no discriminator": "dcgan/distillation_75",
}
"""Shipped schedules; the first case has none."""

EPOCH = 10
"""Of the schedules, when pruners are at work for the last time and have reached their target."""

PLAIN = next(iter(CASES))
RESULTS = Path(__file__).resolve().parent / "results"


class Silent:
    """An observer that does nothing."""

    def on_step(self, report: StepReport) -> None:
        """Hear of a step."""

    def on_epoch(self, trainer: Trainer, report: StepReport) -> dict[str, float]:
        """Hear of an epoch."""
        return {}

    def on_epoch_closed(self, trainer: Trainer, report: StepReport) -> None:
        """Hear that an epoch is over."""


class Case:
    """One way to train, ready to take steps inside epoch `EPOCH`.

    Args:
        name: A key of `CASES`.
        setting: Image size, width and batch size.
        device: Where it runs.
    """

    def __init__(self, name: str, setting: tuple[int, int, int], device: torch.device) -> None:
        size, width, batch_size = setting
        path = CASES[name]
        schedule = read_schedule(find_schedule(path)) if path else None
        gan = (schedule.gan if schedule else None) or GanSpec()
        torch.manual_seed(0)
        task = DCGAN(size, width=width)
        student, judge, teacher = (
            task.build(role).to(device) for role in ("generator", "discriminator", "generator")
        )
        self._raw: Iterator[dict[str, Tensor]] = itertools.repeat(
            {"real": torch.rand(batch_size, 1, size, size, device=device) * 2 - 1}
        )
        optimizer = task.optimizer("generator", student)
        self._trainer = Trainer(
            task=task,
            supervision=Supervision(
                task,
                student,
                judge,
                teacher if schedule else None,
                objective=gan.objective,
                discriminator_spec=gan.discriminator,
            ),
            generator_optimizer=optimizer,
            discriminator_optimizer=task.optimizer("discriminator", judge),
            batches=lambda start: self._raw,
            steps_per_epoch=gan.steps_per_epoch,
            epochs=EPOCH + 1,
            seed=0,
            observer=Silent(),
            epoch=EPOCH,
        )
        if schedule:
            self._trainer.scheduler = schedule.build(student, optimizer)
            self._trainer.scheduler.on_epoch_begin(EPOCH, optimizer)
        self._steps = itertools.count()

    def run(self, steps: int) -> None:
        """Take some steps."""
        for minibatch in itertools.islice(self._steps, steps):
            self._trainer._step(self._raw, minibatch)


def flops_per_image(name: str, size: int, width: int) -> float:
    """Return the floating-point operations of one step of a case for one picture of its batch.

    A multiplication with its addition counts as two. They grow with the batch in proportion, so two pictures
    are enough.
    """
    case = Case(name, (size, width, 2), torch.device("cpu"))
    with FlopCounterMode(display=False) as counter:
        case.run(1)
    return float(counter.get_total_flops()) / 2


def peak_memory(name: str, setting: tuple[int, int, int], device: torch.device) -> int | None:
    """Return the bytes that a case alone needs at most on a CUDA device, elsewhere None."""
    if device.type != "cuda":
        return None
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    case = Case(name, setting, device)
    case.run(3)
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


@dataclass
class Times:
    """Seconds a step of one case, one entry a round."""

    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)


def measure(
    setting: tuple[int, int, int], device: torch.device, rounds: int, steps: int, warm_up: int
) -> dict[str, Times]:
    """Return the times of all cases, which take turns for ``rounds`` rounds of ``steps`` steps each."""
    cases = {name: Case(name, setting, device) for name in CASES}
    times = {name: Times() for name in cases}
    for case in cases.values():
        case.run(warm_up)
    names = list(cases)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:  # nobody always comes after the same case
            wait(device)
            wall, processor = time.perf_counter(), time.process_time()
            cases[name].run(steps)
            wait(device)
            times[name].wall.append((time.perf_counter() - wall) / steps)
            times[name].processor.append((time.process_time() - processor) / steps)
    return times


def wait(device: torch.device) -> None:
    """Let the host wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ratio(times: Sequence[float], plain: Sequence[float]) -> dict[str, float]:
    """Return median, smallest and largest of the ratios of two cases over the rounds."""
    ratios = [a / b for a, b in zip(times, plain, strict=True)]
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def rows(
    setting: tuple[int, int, int], device: torch.device, rounds: int, steps: int, warm_up: int
) -> list[dict[str, Any]]:
    """Return one row a case: milliseconds, ratios to the plain step, FLOPs and their ratio, peak memory."""
    flops = {name: flops_per_image(name, *setting[:2]) for name in CASES}
    memory = {name: peak_memory(name, setting, device) for name in CASES}
    times = measure(setting, device, rounds, steps, warm_up)
    return [
        {
            "case": name,
            "milliseconds": 1000 * statistics.median(times[name].wall),
            "ratio": ratio(times[name].wall, times[PLAIN].wall),
            "processor_ratio": ratio(times[name].processor, times[PLAIN].processor),
            "gflops_per_image": flops[name] / 1e9,
            "flop_ratio": flops[name] / flops[PLAIN],
            "peak_bytes": memory[name],
            "rounds": {"wall": times[name].wall, "processor": times[name].processor},
        }
        for name in CASES
    ]


def table(found: dict[str, Any]) -> str:
    """Return the results as Markdown, one table a setting."""
    load = "unknown" if found["load"] is None else f"{found['load']:.1f}"
    lines = [
        f"{found['machine']}, {found['threads']} CPU threads, torch {found['torch']}; load before: {load}; "
        f"rounds: {found['rounds']}, steps in each: {found['steps']}",
        "Ratios to the plain step: median (smallest to largest)",
        "",
    ]
    columns = ("step", "ms", "time", "processor time", "FLOPs", "GFLOP an image", "peak MiB")
    for name, setting in found["settings"].items():
        lines += [f"DCGAN {name}, width {setting['width']}, batch {setting['batch_size']}:", ""]
        lines += [_line(columns), "|---" * len(columns) + "|"]
        lines += [_line(_cells(row)) for row in setting["rows"]]
        lines.append("")
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cells(row: dict[str, Any]) -> list[str]:
    """Return a row's cells in the order of the table's columns."""
    ratios = [
        "{median:.2f} ({low:.2f} to {high:.2f})".format(**row[key]) for key in ("ratio", "processor_ratio")
    ]
    flops = [f"{row['flop_ratio']:.3f}", f"{row['gflops_per_image']:.3f}"]
    peak = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.0f}"
    return [row["case"], f"{row['milliseconds']:.1f}", *ratios, *flops, peak]


def machine(device: torch.device) -> str:
    """Return the name of the processor or of the GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    usual = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=torch.device, default=usual)
    parser.add_argument("--threads", type=int, help="of torch on the CPU; all cores by default")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, help="of each case in a round; 1 on a CPU, 50 on a GPU")
    parser.add_argument("--warm-up", type=int, help="steps before; 2 on a CPU, 20 on a GPU")
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--width", type=int, help="in place of the setting's own")
    parser.add_argument("--batch-size", type=int, help="in place of the setting's own")
    parser.add_argument("--results", type=Path, help="JSON file in place of results/step_cost_<device>.json")
    options = parser.parse_args(arguments)
    on_gpu = options.device.type == "cuda"
    options.steps = options.steps or (50 if on_gpu else 1)
    options.warm_up = options.warm_up or (20 if on_gpu else 2)
    options.results = options.results or RESULTS / f"step_cost_{options.device.type}.json"
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write the JSON file and print the tables."""
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    settings: dict[str, Any] = {}
    for name in options.settings:
        size, width, batch_size = SETTINGS[name]
        setting = (size, options.width or width, options.batch_size or batch_size)
        measured = rows(setting, options.device, options.rounds, options.steps, options.warm_up)
        settings[name] = {"width": setting[1], "batch_size": setting[2], "rows": measured}
    found = {
        "machine": machine(options.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load": load,
        "rounds": options.rounds,
        "steps": options.steps,
        "settings": settings,
    }
    options.results.parent.mkdir(parents=True, exist_ok=True)
    options.results.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
