"""What a run consists of: task, data, networks, metrics, put together from its settings."""

from __future__ import annotations

import math
import os
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from sgc_distiller import checkpoints
from sgc_distiller.data import Samples
from sgc_distiller.errors import UserError
from sgc_distiller.experiment_spec import GanSpec
from sgc_distiller.extractors import Extractor, load_extractor
from sgc_distiller.masks import sparsity_table
from sgc_distiller.measuring import Measurement
from sgc_distiller.metrics import MetricResult
from sgc_distiller.names import prunable_names
from sgc_distiller.recording import Console, metric_record
from sgc_distiller.resources import cache_folder
from sgc_distiller.schedule import Schedule, read_schedule
from sgc_distiller.seeding import seed_for
from sgc_distiller.settings import Options, pick_device
from sgc_distiller.tasks import build_task
from sgc_distiller.tasks.base import GANTask, Role
from sgc_distiller.tasks.evaluation import Sheet

__all__ = ["Run", "keep_data", "resumable"]

Record = dict[str, Any]

_kept: dict[str, Samples] | None = None


def keep_data() -> None:
    """Let the runs of this process share the data sets that they open.

    For processes that run many experiments on data that do not change meanwhile: preparing MNIST's pictures
    takes as long as pruning on them.
    """
    global _kept
    _kept = {} if _kept is None else _kept


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
        self.task: GANTask = build_task(options.task or "dcgan", options.task_options)
        self.data = self._open("train")
        self._test_data: Samples | None = None
        self._measurements: dict[str, Measurement] = {}

    def _open(self, split: Literal["train", "test"]) -> Samples:
        share = self.options.train_size if split == "train" else 1.0
        if _kept is None:
            return self.task.open_data(self.options.data, split, share)
        key = repr((self.task.name, self.task.options, self.options.data, split, share))
        if key not in _kept:
            _kept[key] = self.task.open_data(self.options.data, split, share)
        return _kept[key]

    @property
    def test_data(self) -> Samples:
        """The test split, opened when it is needed first."""
        if self._test_data is None:
            self._test_data = self._open("test")
        return self._test_data

    @property
    def batch_size(self) -> int:
        """Samples in a batch: as asked, or the baseline's."""
        return self.options.batch_size or self.task.batch_size

    @property
    def steps_per_epoch(self) -> int:
        """Generator updates in an epoch: as asked, as the schedule says, or a pass over the data."""
        if self.options.steps_per_epoch:
            return self.options.steps_per_epoch
        if self.schedule and self.schedule.gan:
            return self.gan.steps_per_epoch
        return math.ceil(len(self.data) / self.batch_size / self.task.batches_per_step)

    @property
    def epochs(self) -> int:
        """Where training stops."""
        if self.options.epochs:
            return self.options.epochs
        return self.schedule.epochs if self.schedule else self.task.epochs

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
        weights, task = self.options.extractor_weights, self.task
        extractor = load_extractor(
            self.options.extractor,
            Path(weights) if weights else None,
            self.device,
            source=self.options.data,
            image_size=task.image_size,
        )
        if extractor.note:
            self.console.note(extractor.note, once=True)
        return extractor

    def measurement(self, split: Literal["train", "test"]) -> Measurement:
        """Return the metrics against the training or the test pictures."""
        if split not in self._measurements:
            data = self.data if split == "train" else self.test_data
            evaluations = self.task.evaluations(data)
            self._measurements[split] = Measurement(evaluations, self.extractor, cache_folder())
        return self._measurements[split]

    def measure(
        self, split: Literal["train", "test"], generator: nn.Module, count: int
    ) -> list[MetricResult]:
        """Return the metrics of at most ``count`` pictures drawn by the task's test protocol."""
        return self.measurement(split).evaluate(
            generator, count, seed_for(self.options.seed, "metric"), self.device
        )

    def sheet(self, generator: nn.Module) -> Sheet:
        """Return pictures to look at, the same inputs every time."""
        seed = seed_for(self.options.seed, "pictures")
        return self.task.sheet(generator, self.test_data, seed, self.device).cpu()

    def result(self, generator: nn.Module, method: str, overall: list[float | None], **known: Any) -> Record:
        """Measure a generator on the test pictures and return its result record.

        Args:
            generator: What is measured.
            method: Its name in reports.
            overall: The sparsity asked of all prunable weights in each epoch; empty for a dense generator.
            **known: More of the record.
        """
        rows = [row for row in sparsity_table(generator) if row["name"] in set(prunable_names(generator))]
        dense = sum(row["dense"] for row in rows)
        split: Literal["train", "test"] = "train" if self.options.judged_on == "train" else "test"
        metrics = self.measure(split, generator, self.options.images_for_result)
        return {
            "kind": "result",
            "task": self.task.name,
            "method": method,
            "sparsity_asked": overall[-1] if overall else 0.0,
            "sparsity": 1.0 - sum(row["nonzero"] for row in rows) / dense,
            "metrics": [metric_record(item) for item in metrics],
            "seed": self.options.seed,
            "nonzero": sum(row["nonzero"] for row in rows),
            "weights": dense,
            "loss_weights": dict(self.task.generator_weights),
            **known,
        }


def resumable(run: Run) -> Record:
    """Return the checkpoint to resume from.

    Raises:
        UserError: If the file is no checkpoint of a run of this task.
    """
    path = str(run.options.resume_from)
    content = checkpoints.load_checkpoint(path, run.device)
    needed = ("epoch", "step", "optimizer_state_dict", "discriminator_state_dict", "config", "teacher_sha256")
    missing = [key for key in needed if key not in content]
    if missing:
        raise UserError(
            f"{path}: cannot be resumed, it lacks {', '.join(missing)}; expected a checkpoint that sgc "
            "wrote. To start from its weights alone: --exp-load-weights-from"
        )
    if content.get("arch") != run.task.name:
        raise UserError(
            f"{path}: is a checkpoint of {content.get('arch')!r}, expected {run.task.name!r}; set -a"
        )
    steps = (content["epoch"] + 1) * run.steps_per_epoch
    if run.options.continues and content["step"] != steps:
        raise UserError(
            f"{path}: was trained for {content['step']} steps in {content['epoch'] + 1} epochs, got "
            f"{run.steps_per_epoch} steps an epoch; a run that is resumed keeps its own, so leave "
            "--steps-per-epoch out, or begin a new run from its weights with --reset-optimizer"
        )
    return content
