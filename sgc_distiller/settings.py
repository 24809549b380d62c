"""Settings of a run: what was asked, completed by what its checkpoint knows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sgc_distiller import checks
from sgc_distiller.checkpoints import find_checkpoint, load_checkpoint, plain_names
from sgc_distiller.errors import UserError
from sgc_distiller.runs import RunFolder
from sgc_distiller.tasks import TASKS, find_task

__all__ = ["Options", "pick_device", "resolve"]

_OF_THE_CALL = (
    "resume_from",
    "weights_from",
    "discriminator_from",
    "reset_optimizer",
    "device",
    "workers",
    "folder",
)
"""Settings that a resumed run does not take over: they belong to the call, not to the run."""


@dataclass(frozen=True)
class Options:
    """Settings of one run; ``config.json`` in the run folder holds them. ``None`` means "as usual".

    Attributes:
        task: Name in `sgc_distiller.tasks.TASKS`, or the dotted path of a `GANTask`; as usual: the
            checkpoint's, else ``dcgan``.
        data: Folder of the data set, or the name of the one that comes with the package, ``digits`` for
            DCGAN; as usual: what the checkpoint was trained on, else the latter.
        task_options: Arguments of the task, such as ``image_size``, ``channels`` and ``width``; those not
            named are the checkpoint's, else the baseline's.
        epochs: Where to stop, counted from 0; as usual: the schedule's last epoch, else the baseline's.
        steps_per_epoch: Generator updates in an epoch; as usual: the schedule's, else a pass over the data.
        batch_size: Samples in a batch; as usual: the baseline's.
        lr: Learning rate of both networks; as usual: the schedule's, else the baseline's.
        weight_decay: Of both networks.
        seed: Of everything random.
        device: ``cuda``, ``cuda:1``, ``cpu``; as usual: the GPU where there is one.
        workers: Processes that decode pictures which do not fit into memory.
        report_every: Steps between two lines of progress and looks at the losses.
        folder: The run folder.
        schedule: Path of the schedule.
        resume_from: Checkpoint to continue.
        weights_from: Checkpoint or generator's weights to start from.
        discriminator_from: Discriminator's weights, where ``weights_from`` holds none.
        reset_optimizer: With ``resume_from``: a new run in a folder of its own, which takes over weights and
            masks; fresh optimisers, and the epochs count from 0.
        deterministic: Let torch refuse operations that are not deterministic.
        train_size: Share of the training pictures used, in (0, 1].
        valid_size: Share of ``epoch_images``, in (0, 1].
        test_size: Share of ``test_images``, in (0, 1].
        extractor: ``auto``, ``inception``, ``digits`` or ``folder``.
        extractor_weights: Path of the extractor's weights.
        epoch_images: Pictures drawn for the metric after each epoch, at least 2; 0 for none.
        test_images: Pictures drawn for the result, at least 2.
        judged_on: Which pictures the result is measured against: ``test``, or ``train`` for choices that must
            not see the test pictures.
        best_count: How many best epochs to name.
        save_untrained: Write a checkpoint before the first step.
        masks_sparsity: Show every mask's sparsity after an epoch.
        param_hist: Histograms of the weights for TensorBoard.
        distill_weight: Adds distillation of the pictures with this weight; ``None`` for none.
        student_weight: Weight of the loss so far beside it.
        runtime: What drives the schedule: ``builtin``, or Intel's ``distiller`` where it is installed.
        warm_up: Train the discriminator alone, against a generator that stays as it is.
        prune_only: Apply the schedule's masks without any training.
        method: What a result is called; as usual: the schedule's file name.
    """

    task: str | None = None
    data: str | None = None
    task_options: Mapping[str, Any] = field(default_factory=dict)
    epochs: int | None = None
    steps_per_epoch: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    weight_decay: float = 0.0
    seed: int = 0
    device: str | None = None
    workers: int = 2
    report_every: int = 50
    folder: str = "logs/run"
    schedule: str | None = None
    resume_from: str | None = None
    weights_from: str | None = None
    discriminator_from: str | None = None
    reset_optimizer: bool = False
    deterministic: bool = False
    train_size: float = 1.0
    valid_size: float = 1.0
    test_size: float = 1.0
    extractor: str = "auto"
    extractor_weights: str | None = None
    epoch_images: int = 512
    test_images: int = 5000
    judged_on: str = "test"
    best_count: int = 1
    save_untrained: bool = False
    masks_sparsity: bool = False
    param_hist: bool = False
    distill_weight: float | None = None
    student_weight: float = 1.0
    runtime: str = "builtin"
    warm_up: bool = False
    prune_only: bool = False
    method: str | None = None

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        for name in ("epochs", "steps_per_epoch", "batch_size"):
            if getattr(self, name) is not None:
                checks.integer(getattr(self, name), _flag(name), low=1)
        for name, low in (("workers", 0), ("report_every", 1), ("epoch_images", 0)):
            checks.integer(getattr(self, name), _flag(name), low=low)
        checks.integer(self.test_images, _flag("test_images"), low=2)
        if self.epoch_images == 1:
            raise UserError(
                "--epoch-images: expected 0 or at least 2, since a metric compares pictures; got 1"
            )
        checks.one_of(self.runtime, ("builtin", "distiller"), "--runtime")
        checks.one_of(self.judged_on, ("test", "train"), "--judged-on")
        checks.integer(self.best_count, "--num-best-scores", low=1)
        for name in ("train_size", "valid_size", "test_size"):
            checks.number(getattr(self, name), _flag(name), low=0.0, high=1.0, open_low=True)
        if self.lr is not None:
            checks.number(self.lr, "--lr", low=0.0, open_low=True)
        for name in ("weight_decay", "student_weight"):
            checks.number(getattr(self, name), _flag(name), low=0.0)
        if self.distill_weight is not None:
            checks.number(self.distill_weight, "--kd-distill-wt", low=0.0)
        if self.resume_from and self.weights_from:
            raise UserError(
                "--resume-from and --exp-load-weights-from exclude each other: the first continues a run, "
                "the second begins one from trained weights; give one of them"
            )

    def refuse_flags_without_partner(self) -> None:
        """Refuse what would change nothing, since the flag that it belongs to is missing.

        Raises:
            UserError: Names both flags.
        """
        for name, partner, is_lonely in (
            ("--reset-optimizer", "--resume-from", self.reset_optimizer and not self.resume_from),
            (
                "--discriminator-from",
                "--exp-load-weights-from",
                self.discriminator_from and not self.weights_from,
            ),
            (
                "--kd-student-wt",
                "--kd-distill-wt",
                self.student_weight != 1.0 and self.distill_weight is None,
            ),
        ):
            if is_lonely:
                raise UserError(f"{name} means nothing without {partner}; give both, or leave it out")

    @property
    def continues(self) -> bool:
        """Whether the run goes on in the folder of the checkpoint that it resumes."""
        return self.resume_from is not None and not self.reset_optimizer

    @property
    def images_an_epoch(self) -> int:
        """Pictures drawn for the metric after each epoch."""
        return max(2, round(self.epoch_images * self.valid_size)) if self.epoch_images else 0

    @property
    def images_for_result(self) -> int:
        """Pictures drawn for the result."""
        return max(2, round(self.test_images * self.test_size))


_FLAGS = {
    "weight_decay": "--wd",
    "student_weight": "--kd-student-wt",
    "train_size": "--effective-train-size",
    "valid_size": "--effective-valid-size",
    "test_size": "--effective-test-size",
    "report_every": "--print-freq",
}


def _flag(name: str) -> str:
    return _FLAGS.get(name, "--" + name.replace("_", "-"))


def pick_device(name: str | None) -> torch.device:
    """Return the device called ``name``, or the GPU where there is one.

    Raises:
        UserError: If this machine has no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device {name!r}; expected cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device {name!r} is not there: this machine has {torch.cuda.device_count()} GPUs that torch can "
            "use; take --cpu or another number"
        )
    return device


def resolve(given: Mapping[str, Any]) -> Options:
    """Return complete settings from what a person gave and what the checkpoint they name knows.

    A run that is resumed keeps the settings it began with, and the schedule as it was then; what is given
    goes first. A run that starts from a checkpoint takes over its task, sizes and data.

    Args:
        given: Options by the names of `Options`, only those that were given.

    Raises:
        UserError: If the checkpoint cannot be read or a value cannot be used.
    """
    asked = Options(**given)
    known: dict[str, Any] = {}
    if asked.resume_from:
        known = _known_of_run(asked)
    elif asked.weights_from:
        known = _known_of_weights(asked.weights_from, asked.task)
    if asked.task and known.get("task") not in (None, asked.task):
        raise UserError(
            f"{asked.resume_from or asked.weights_from}: is of a run of {known['task']!r}, expected "
            f"{asked.task!r}; name its own task, or another checkpoint"
        )
    names = {item.name for item in dataclasses.fields(Options)}
    merged = {name: value for name, value in known.items() if name in names}
    merged.update(given)
    if asked.resume_from:
        merged["resume_from"] = str(find_checkpoint(asked.resume_from))
    merged["task"] = merged.get("task") or "dcgan"
    task = find_task(merged["task"])
    merged["data"] = merged.get("data") or task.built_in
    for name in ("data", "extractor_weights"):
        if merged.get(name) not in (None, task.built_in):  # so that the run can be resumed from elsewhere
            merged[name] = str(Path(merged[name]).expanduser().absolute())
    named = known.get("task_options", {}) | dict(asked.task_options)
    told = {} if named.keys() >= task.data_options else task.options_for(merged["data"])
    merged["task_options"] = {**task.usual_options(), **told, **named}
    options = Options(**merged)
    options.refuse_flags_without_partner()
    return options


def _known_of_run(asked: Options) -> dict[str, Any]:
    """Return the settings of the run that a checkpoint belongs to."""
    file = find_checkpoint(str(asked.resume_from))
    config = dict(load_checkpoint(file).get("config", {}))
    for name in _OF_THE_CALL:
        config.pop(name, None)
    kept = RunFolder(file.parent, create=False).schedule_file
    if kept.is_file():
        config["schedule"] = str(kept)
    if asked.schedule:  # another one: the old one's name and length are not its own
        for name in ("method", "epochs"):
            config.pop(name, None)
    if asked.continues:
        config["folder"] = str(file.parent)
    elif asked.schedule:
        config.pop("steps_per_epoch", None)
    return config


def _known_of_weights(path: str, task: str | None) -> dict[str, Any]:
    """Return task, sizes and data of a checkpoint; a plain state dictionary tells sizes only."""
    content = load_checkpoint(path)
    if "task_options" in content:
        data = content.get("config", {}).get("data")
        return {"task": content.get("arch"), "data": data, "task_options": content["task_options"]}
    state = plain_names(content["state_dict"])
    candidates = TASKS if task is None else {task: find_task(task)}
    for name, cls in candidates.items():
        found = cls.options_of(state)
        if found is not None:
            return {"task": name, "task_options": found}
    return {}
