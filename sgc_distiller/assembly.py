"""What a run consists of: task, data, networks, metrics, put together from its settings."""

from __future__ import annotations

import math
import os
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from sgc_distiller.data import ImageSet, open_images
from sgc_distiller.experiment_spec import GanSpec
from sgc_distiller.extractors import Extractor, GeneratorMetric, load_extractor
from sgc_distiller.masks import sparsity_table
from sgc_distiller.metrics import MetricResult
from sgc_distiller.names import prunable_names
from sgc_distiller.recording import Console, metric_record
from sgc_distiller.resources import cache_folder
from sgc_distiller.schedule import Schedule, read_schedule
from sgc_distiller.seeding import seed_for
from sgc_distiller.settings import Options, pick_device
from sgc_distiller.tasks import build_task
from sgc_distiller.tasks.base import GANTask, Role

__all__ = ["Run"]

Record = dict[str, Any]

USUAL_EPOCHS = 25
"""Passes over the data that DCGAN's baseline trains for."""


class Run:
    """Networks, data, metrics and folder of one run, built from `Options`.

    Args:
        options: The settings.
        console: Where a person follows.

    Raises:
        UserError: If anything in the options cannot be used; nothing is written then.
    """

    def __init__(self, options: Options, console: Console | None = None) -> None:
        self.options = options
        self.console: Console = console or Console()
        self.device = pick_device(options.device)
        if options.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch asks for it on a GPU
            torch.use_deterministic_algorithms(True)
            torch.backends.cudnn.benchmark = False
        self.schedule: Schedule | None = read_schedule(options.schedule) if options.schedule else None
        self.gan: GanSpec = (self.schedule.gan if self.schedule else None) or GanSpec()
        self.task: GANTask = build_task(options.task or "dcgan", **options.task_options)
        self.images = self._images("train")
        self._metrics: dict[str, GeneratorMetric] = {}

    def _images(self, split: Literal["train", "test"]) -> ImageSet:
        share = self.options.train_size if split == "train" else 1.0
        return open_images(self.options.data, self.task.image_size, self.task.channels, split, fraction=share)

    @property
    def steps_per_epoch(self) -> int:
        """Generator updates in an epoch: as asked, as the schedule says, or a pass over the data."""
        if self.options.steps_per_epoch:
            return self.options.steps_per_epoch
        if self.schedule and self.schedule.gan:
            return self.gan.steps_per_epoch
        return math.ceil(len(self.images) / self.options.batch_size)

    @property
    def epochs(self) -> int:
        """Where training stops."""
        if self.options.epochs:
            return self.options.epochs
        return self.schedule.epochs if self.schedule else USUAL_EPOCHS

    def build(self, role: Role, width: float = 1.0) -> nn.Module:
        """Return an untrained network whose weights depend on the seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(self.options.seed, "initialise", role))
            return self.task.build(role, width).to(self.device)

    def optimizer(self, role: Role, network: nn.Module, lr: float | None) -> torch.optim.Optimizer:
        """Return the task's optimiser with this run's weight decay.

        Args:
            role: Which network it is for.
            network: The network.
            lr: Learning rate that the options name, ``None`` for the schedule's, else the baseline's.
        """
        optimizer = self.task.optimizer(role, network, self.gan.lr if lr is None else lr)
        for group in optimizer.param_groups:
            group["weight_decay"] = self.options.weight_decay
        return optimizer

    @cached_property
    def extractor(self) -> Extractor:
        """The features' extractor that the options name; says aloud if it is a stand-in."""
        weights = self.options.extractor_weights
        extractor = load_extractor(self.options.extractor, Path(weights) if weights else None, self.device)
        if extractor.note:
            self.console.note(extractor.note, once=True)
        return extractor

    def metric(self, split: Literal["train", "test"]) -> GeneratorMetric:
        """Return the metric against the training or the test pictures."""
        if split not in self._metrics:
            images = self.images if split == "train" else self._images(split)
            self._metrics[split] = GeneratorMetric(self.extractor, images, cache_folder())
        return self._metrics[split]

    def measure(self, metric: GeneratorMetric, generator: nn.Module, count: int) -> list[MetricResult]:
        """Return the metrics of ``count`` pictures drawn by the task's test protocol."""
        seed = seed_for(self.options.seed, "metric")
        pictures = self.task.sample(generator, count, seed, self.device)
        return metric.evaluate(pictures, self.task.protocol(), seed)

    def result(self, generator: nn.Module, method: str, plan: list[dict[str, float]], **known: Any) -> Record:
        """Measure a generator on the test pictures and return its result record."""
        rows = [row for row in sparsity_table(generator) if row["name"] in set(prunable_names(generator))]
        dense = sum(row["dense"] for row in rows)
        last = plan[-1] if plan else {}
        metrics = self.measure(self.metric("test"), generator, self.options.images_for_result)
        return {
            "kind": "result",
            "task": self.task.name,
            "method": method,
            "sparsity_asked": sum(last.get(row["name"], 0.0) * row["dense"] for row in rows) / dense,
            "sparsity": 1.0 - sum(row["nonzero"] for row in rows) / dense,
            "metrics": [metric_record(item) for item in metrics],
            "seed": self.options.seed,
            "nonzero": sum(row["nonzero"] for row in rows),
            "weights": dense,
            **known,
        }
