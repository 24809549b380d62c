"""The smallest GAN, data and runs that the tests of training, checkpoints and the command line share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from sgc_distiller.supervision import Supervision
from sgc_distiller.tasks.base import Batch, GANTask, Judgement, Outputs, Role, Terms
from sgc_distiller.training import StepReport, Trainer


class TinyTask(GANTask):
    """Two linear networks; every batch knows its number, and ``spoil`` adds not-a-number to a term.

    Args:
        spoil: The term and the batch number whose value is not a number.
    """

    name = "tiny"
    image_size, channels = 2, 1

    def __init__(self, phases: Any = None, spoil: tuple[str, int] | None = None) -> None:
        self.phases = phases or GANTask.phases
        self.spoil = spoil
        self.seen: list[tuple[str, int]] = []
        self.noise: list[bytes] = []

    def build(self, role: Role, width: float = 1.0) -> nn.Module:
        sizes = (3, 4) if role == "generator" else (4, 1)
        return nn.Sequential(nn.Linear(sizes[0], 8), nn.Tanh(), nn.Linear(8, sizes[1]))

    def prepare(self, raw: dict[str, Tensor], rng: torch.Generator) -> Batch:
        real = raw["real"]
        noise = torch.randn(len(real), 3, generator=rng)
        self.noise.append(noise.numpy().tobytes())
        if real.is_cuda:
            noise = noise.pin_memory().to(real.device, non_blocking=True)
        return {"real": real, "z": noise, "number": raw["number"]}

    def generate(self, generator: nn.Module, batch: Batch) -> Outputs:
        return {"fake": generator(batch["z"])}

    def generator_terms(self, generator: nn.Module, batch: Batch, outputs: Outputs, fake: Judgement) -> Terms:
        return {"gen": self._spoilt("gen", batch, F.softplus(-fake["score"]).flatten())}

    def discriminator_terms(
        self, discriminator: nn.Module, batch: Batch, outputs: Outputs, real: Judgement, fake: Judgement
    ) -> Terms:
        value = F.softplus(-real["score"]) + F.softplus(fake["score"])
        return {"dis": self._spoilt("dis", batch, value.flatten())}

    def _spoilt(self, term: str, batch: Batch, value: Tensor) -> Tensor:
        self.seen.append((term, batch["number"]))
        return value * float("nan") if self.spoil == (term, batch["number"]) else value

    def optimizer(self, role: Role, network: nn.Module, lr: float | None = None) -> torch.optim.Optimizer:
        return torch.optim.SGD(network.parameters(), lr=lr or 0.05, momentum=0.9)

    def sample(
        self, generator: nn.Module, count: int, seed: int, device: torch.device, batch_size: Any = None
    ) -> Iterator[Tensor]:
        raise NotImplementedError

    def protocol(self, batch_size: int | None = None) -> str:
        raise NotImplementedError


def tiny_batches(device: torch.device, start: int = 0) -> Iterator[dict[str, Any]]:
    """Yield batches of four pictures, each a function of its number."""
    number = start
    while True:
        rng = torch.Generator().manual_seed(number)
        yield {"real": torch.randn(4, 4, generator=rng).to(device), "number": number}
        number += 1


class Silent:
    """An observer that keeps what it hears."""

    def __init__(self) -> None:
        self.reports: list[StepReport] = []

    def on_step(self, report: StepReport) -> None:
        self.reports.append(report)

    def on_epoch(self, trainer: Trainer, report: StepReport) -> dict[str, float]:
        return {"min": report.means["generator.loss"]}

    def on_epoch_closed(self, trainer: Trainer, report: StepReport) -> None:
        pass


def tiny_supervision(task: GANTask, device: torch.device, **settings: Any) -> Supervision:
    """Return student, judge and another teacher, the same for every call."""
    torch.manual_seed(3)
    roles: tuple[Role, ...] = ("generator", "discriminator", "generator")
    return Supervision(task, *(task.build(role).to(device) for role in roles), **settings)


def tiny_trainer(supervision: Supervision, observer: Any = None, **settings: Any) -> Trainer:
    """Return a trainer of two epochs with three steps each."""
    device = supervision.device
    usual: dict[str, Any] = {
        "generator_optimizer": supervision.task.optimizer("generator", supervision.generator),
        "discriminator_optimizer": supervision.task.optimizer("discriminator", supervision.discriminator),
        "batches": lambda start: tiny_batches(device, start),
        "steps_per_epoch": 3,
        "epochs": 2,
        "seed": 0,
        "observer": observer or Silent(),
    }
    return Trainer(supervision.task, supervision, **{**usual, **settings})


def picture_folder(folder: Path, count: int = 24, size: int = 16) -> Path:
    """Write grey PNG pictures of bright spots, and return their folder."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    grid = np.arange(size)
    for index in range(count):
        row, column = rng.uniform(4, size - 4, 2)
        distance = (grid[:, None] - row) ** 2 + (grid[None, :] - column) ** 2
        spot = 255 * np.exp(-distance / rng.uniform(4, 12))
        Image.fromarray(spot.astype(np.uint8)).save(folder / f"{index:02}.png")
    return folder
