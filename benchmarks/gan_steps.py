"""What supervision costs a training step of each of the five GANs, in arithmetic and in time.

Arithmetic is counted at the baselines' own sizes without computing anything (torch's ``meta`` device): the
multiply-adds of convolutions and products of matrices, forward and backward, the gradient penalty's second
derivatives included, of one whole step for one picture. Time is measured at small sizes, plain and supervised
steps taking turns in one process::

    python benchmarks/gan_steps.py --rounds 7

Writes every number to ``benchmarks/results/gan_steps_<device>.json`` and prints Markdown.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from step_cost import RESULTS, Silent, machine, ratio, wait
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from sgc_distiller.experiment_spec import GanSpec
from sgc_distiller.networks.vgg import PerceptualNetwork
from sgc_distiller.resources import find_schedule
from sgc_distiller.schedule import read_schedule
from sgc_distiller.supervision import Supervision
from sgc_distiller.tasks.base import GANTask
from sgc_distiller.tasks.cyclegan import CycleGAN
from sgc_distiller.tasks.dcgan import DCGAN
from sgc_distiller.tasks.pix2pix import Pix2Pix
from sgc_distiller.tasks.srgan import SRGAN
from sgc_distiller.tasks.stargan import StarGAN
from sgc_distiller.training import Trainer

EPOCH = 10
"""Of the schedules, when pruners are at work for the last time and have reached their target."""


@dataclass(frozen=True)
class Setting:
    """One GAN.

    Attributes:
        full: Builds it at its baseline's size.
        small: Builds it at the size at which it is timed.
        batch_size: Samples in a timed batch.
        floor: The supervised step's arithmetic in terms of the plain one's that no sharing of passes can go
            below: from the passes that the losses ask for.
    """

    full: Callable[[], GANTask]
    small: Callable[[], GANTask]
    batch_size: int
    floor: str


def srgan_with_vgg() -> SRGAN:
    """Return the baseline's SRGAN, its VGG19 with random weights: counting does not see them."""
    task = SRGAN(perceptual="none")
    task.generator_weights = {**task.generator_weights, "vgg": 1.0}
    task._perceptual_network = PerceptualNetwork.random()
    return task


SETTINGS: dict[str, Setting] = {
    "dcgan": Setting(DCGAN, lambda: DCGAN(32, width=32), 64, "1.27"),
    "pix2pix": Setting(Pix2Pix, lambda: Pix2Pix(64, width=16), 1, "1.21 to 1.29"),
    "cyclegan": Setting(CycleGAN, lambda: CycleGAN(64, width=16, blocks=4), 1, "1.32"),
    "stargan": Setting(StarGAN, lambda: StarGAN(64, width=16, blocks=3), 4, "1.14"),
    "srgan": Setting(
        srgan_with_vgg,
        lambda: SRGAN(64, width=16, blocks=4, perceptual="none"),
        4,
        "1.25",
    ),
}
"""The floors are those of counting passes at the baselines' sizes."""


class MultiplyAdds(TorchDispatchMode):
    """Counts the multiply-adds of everything that torch knows the cost of, higher derivatives included."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Compute one operation and add its cost."""
        out = func(*args, **(kwargs or {}))
        cost = flop_registry.get(getattr(func, "overloadpacket", None))
        if cost is not None:
            self.total += int(cost(*args, **(kwargs or {}), out_val=out)) // 2
        return out


def raw_batch(task: GANTask, count: int, device: torch.device) -> dict[str, Tensor]:
    """Return random pictures in [-1, 1] as the task's data set would yield them."""
    size = task.image_size

    def pictures(side: int) -> Tensor:
        return torch.rand(count, task.channels, side, side, device=device) * 2 - 1

    if isinstance(task, SRGAN):
        return {"low": pictures(size // task.scale), "high": pictures(size)}
    if isinstance(task, StarGAN):
        labels = torch.ones(count, len(task.attributes), device=device)
        return {"real": pictures(size), "labels": labels}
    if isinstance(task, Pix2Pix | CycleGAN):
        return {"A": pictures(size), "B": pictures(size)}
    return {"real": pictures(size)}


class Case:
    """Plain or supervised training of one GAN, ready to take steps inside epoch `EPOCH`."""

    def __init__(self, name: str, task: GANTask, count: int, supervised: bool, device: torch.device) -> None:
        schedule = read_schedule(find_schedule(f"{name}/paper_50")) if supervised else None
        gan = (schedule.gan if schedule else None) or GanSpec()
        torch.manual_seed(0)
        with torch.device(device):
            student, judge = task.build("generator"), task.build("discriminator")
        teacher = copy.deepcopy(student) if supervised else None
        self._raw: Iterator[dict[str, Tensor]] = itertools.repeat(raw_batch(task, count, device))
        optimizer = task.optimizer("generator", student)
        self._trainer = Trainer(
            task=task,
            supervision=Supervision(task, student, judge, teacher),
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
            if device.type != "meta":  # masks cost no multiply-adds, and are no values there
                self._trainer.scheduler.on_epoch_begin(EPOCH, optimizer)
            else:
                self._trainer.scheduler = _SupervisionOnly(self._trainer.scheduler)
        self._steps = itertools.count()

    def run(self, steps: int) -> None:
        """Take some steps."""
        for minibatch in itertools.islice(self._steps, steps):
            self._trainer._step(self._raw, minibatch)


class _SupervisionOnly:
    """A scheduler that hands the loss to the supervising policy and does nothing else."""

    def __init__(self, scheduler: Any) -> None:
        self._policies = [policy for policy in scheduler.policies[EPOCH] if hasattr(policy, "supervision")]

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None

    def before_backward_pass(
        self,
        epoch: int,
        minibatch: int,
        steps: int,
        loss: Tensor,
        optimizer: Any = None,
        return_loss_components: bool = False,
    ) -> Any:
        """Return what the supervising policy makes of the loss."""
        (policy,) = self._policies
        policy.supervision._minibatch = minibatch
        return policy.before_backward_pass(
            policy.supervision.generator, epoch, minibatch, steps, loss, None, optimizer
        )


def multiply_adds(name: str, supervised: bool) -> float:
    """Return the multiply-adds of one step of a GAN at its baseline's size for one picture of the batch.

    A step is one update of the generator with the discriminator's that belong to it, divided by the batches
    that it consumes. They grow with the batch in proportion, so two pictures are enough.
    """
    task = SETTINGS[name].full()
    case = Case(name, task, 2, supervised, torch.device("meta"))
    with MultiplyAdds() as counter:
        case.run(1)
    return counter.total / 2 / task.batches_per_step


def measure(
    name: str, device: torch.device, rounds: int, steps: int
) -> dict[str, dict[str, float] | list[float]]:
    """Return the ratio of processor times (wall times on a GPU) of supervised to plain steps."""
    setting = SETTINGS[name]
    cases = [Case(name, setting.small(), setting.batch_size, kind, device) for kind in (False, True)]
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    times: list[list[float]] = [[], []]
    for case in cases:
        case.run(1)
    for turn in range(rounds):
        for which in (0, 1) if turn % 2 else (1, 0):
            wait(device)
            begun = clock()
            cases[which].run(steps)
            wait(device)
            times[which].append((clock() - begun) / steps)
    return {"ratio": ratio(times[1], times[0]), "plain": times[0], "supervised": times[1]}


def table(found: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    clock = "processor time" if found["device"] == "cpu" else "time"
    lines = [
        f"{found['machine']}, {found['threads']} CPU threads, torch {found['torch']}; load before: "
        f"{found['load']:.1f}; rounds: {found['rounds']}, steps in each: {found['steps']}",
        "",
        f"| GAN | GMAC a picture, plain | supervised | ratio | floor | {clock}, small: ratio | ms, plain |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in found["gans"].items():
        spread = "{median:.2f} ({low:.2f} to {high:.2f})".format(**row["times"]["ratio"])
        plain = 1000 * statistics.median(row["times"]["plain"])
        lines.append(
            f"| {name} | {row['plain_gmac']:.2f} | {row['supervised_gmac']:.2f} | {row['mac_ratio']:.3f} | "
            f"{SETTINGS[name].floor} | {spread} | {plain:.0f} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Count, measure, write the JSON file and print the table."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    usual = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=torch.device, default=usual)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=1, help="of each case in a round")
    parser.add_argument("--gans", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--results", type=Path, help="JSON file in place of results/gan_steps_<device>.json")
    options = parser.parse_args(arguments)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    gans: dict[str, Any] = {}
    for name in options.gans:
        plain, supervised = multiply_adds(name, False), multiply_adds(name, True)
        gans[name] = {
            "plain_gmac": plain / 1e9,
            "supervised_gmac": supervised / 1e9,
            "mac_ratio": supervised / plain,
            "times": measure(name, options.device, options.rounds, options.steps),
        }
    found = {
        "machine": machine(options.device),
        "device": options.device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load": load,
        "rounds": options.rounds,
        "steps": options.steps,
        "gans": gans,
    }
    results = options.results or RESULTS / f"gan_steps_{options.device.type}.json"
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
