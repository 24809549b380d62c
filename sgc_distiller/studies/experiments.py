"""Experiments: schedule files at a size, a sparsity and a seed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sgc_distiller.experiment_spec import GanSpec
from sgc_distiller.schedule import Schedule, read_schedule
from sgc_distiller.studies.retarget import retargeted
from sgc_distiller.studies.scales import DENSE_STEPS, Scale
from sgc_distiller.tasks import find_task

__all__ = ["Experiment", "Setting"]


@dataclass(frozen=True)
class Setting:
    """What all experiments of a task in a study share.

    Attributes:
        task: The GAN's name.
        data: Folder of its data, or ``None`` for the set that comes with the package.
        scale: The size.
        root: Folder of the study's runs of this task.
        device: See `sgc_distiller.settings.Options`.
        judged_on: ``test`` or ``train``: the pictures that results are measured against.
    """

    task: str
    data: str | None
    scale: Scale
    root: Path
    device: str | None = None
    judged_on: str = "test"


@dataclass(frozen=True)
class Experiment:
    """One run of a study.

    Attributes:
        setting: What it shares with the others.
        name: Of the run, unique within a seed; the folder's name.
        row: What it is called in tables.
        file: The schedule.
        seed: Of everything random.
        sparsity: In (0, 1), replaces the schedule's own target; ``None`` keeps it.
        trains_dense: Whether this is the dense training, which others start from.
        lr_factor: Multiplies the learning rate.
        share: Multiplies the steps.
    """

    setting: Setting
    name: str
    row: str
    file: Path
    seed: int
    sparsity: float | None = None
    trains_dense: bool = False
    lr_factor: float = 1.0
    share: float = 1.0

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.setting.root / f"seed{self.seed}" / self.name

    @property
    def dense_folder(self) -> Path:
        """The run folder of the dense training of the same seed."""
        return self.setting.root / f"seed{self.seed}" / "dense"

    @cached_property
    def schedule(self) -> Schedule:
        """The schedule as its file has it."""
        return read_schedule(self.file)

    @property
    def gan(self) -> GanSpec:
        """The schedule's experiment."""
        return self.schedule.gan or GanSpec()

    @property
    def steps_per_epoch(self) -> int:
        """Generator updates in an epoch at this size."""
        meant_for = self.gan.dense_steps or DENSE_STEPS[self.setting.task]
        steps = self.setting.scale.steps_per_epoch(self.gan.steps_per_epoch, meant_for)
        return max(1, round(steps * self.share))

    @property
    def epochs(self) -> int:
        """Epochs of the schedule."""
        return self.schedule.epochs

    def text(self) -> str:
        """Return the schedule's text at this sparsity."""
        if self.sparsity is None:
            return self.schedule.text
        return retargeted(self.file, self.sparsity)

    @property
    def schedule_file(self) -> Path:
        """Where the schedule at this sparsity lies once it has been written."""
        if self.sparsity is None:
            return self.file
        percent = f"{100 * self.sparsity:g}"
        return self.setting.root / "schedules" / f"{self.file.parent.name}_{self.file.stem}_at_{percent}.yaml"

    def settings(self) -> dict[str, Any]:
        """Return what `sgc_distiller.settings.resolve` is given for this run."""
        setting, scale = self.setting, self.setting.scale
        given: dict[str, Any] = {
            "folder": str(self.folder),
            "schedule": str(self.schedule_file),
            "steps_per_epoch": self.steps_per_epoch,
            "seed": self.seed,
            "test_images": scale.test_images,
            "epoch_images": 0,
            "judged_on": setting.judged_on,
            "method": "dense" if self.trains_dense else self.name,
            "report_every": max(1, self.steps_per_epoch // 10),
        }
        if scale.batch_size:
            given["batch_size"] = scale.batch_size
        if self.lr_factor != 1.0:
            given["lr"] = self.lr_factor * (self.gan.lr or scale.lr or find_task(setting.task).lr)
        elif self.gan.lr is None and scale.lr:
            given["lr"] = scale.lr
        if setting.device:
            given["device"] = setting.device
        if self.trains_dense:
            given |= {"task": setting.task, "task_options": dict(scale.sizes)}
            if setting.data:
                given["data"] = setting.data
        else:
            given["weights_from"] = str(self.dense_folder)
        return given
