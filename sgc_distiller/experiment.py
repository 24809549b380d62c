"""What the command line does: train a GAN, compress its generator, measure one.

Everything here works without a terminal; `Options` in, result record and run folder out.
"""

from __future__ import annotations

import dataclasses
import math
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from sgc_distiller import checkpoints
from sgc_distiller.data import ImageSet, batches, open_images
from sgc_distiller.errors import UserError
from sgc_distiller.experiment_spec import GanSpec
from sgc_distiller.extractors import Extractor, GeneratorMetric, load_extractor
from sgc_distiller.loss_policies import OutputDistillationPolicy
from sgc_distiller.masks import sparsity_table
from sgc_distiller.metrics import MetricResult
from sgc_distiller.names import prunable_names
from sgc_distiller.recording import Console, Quiet, Recorder, metric_record
from sgc_distiller.report import write_report
from sgc_distiller.runs import RunFolder
from sgc_distiller.schedule import Schedule, read_schedule
from sgc_distiller.scheduler import CompressionScheduler
from sgc_distiller.seeding import seed_for
from sgc_distiller.settings import Options, pick_device, resolve
from sgc_distiller.supervision import Supervision
from sgc_distiller.tasks import build_task
from sgc_distiller.tasks.base import GANTask, Role
from sgc_distiller.training import Trainer

__all__ = ["Options", "Run", "compress", "evaluate", "plan", "resolve", "train"]

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
        self.console: Console = console or Quiet()
        self.device = pick_device(options.device)
        if options.deterministic:
            torch.use_deterministic_algorithms(True)
            torch.backends.cudnn.benchmark = False
        self.schedule: Schedule | None = read_schedule(options.schedule) if options.schedule else None
        self.gan: GanSpec = (self.schedule.gan if self.schedule else None) or GanSpec()
        self.task: GANTask = build_task(options.task or "dcgan", **options.task_options)
        self.images = self._images("train")

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

    def optimizer(self, role: Role, network: nn.Module) -> torch.optim.Optimizer:
        """Return the task's optimiser with this run's learning rate and weight decay."""
        optimizer = self.task.optimizer(role, network, self.options.lr)
        for group in optimizer.param_groups:
            group["weight_decay"] = self.options.weight_decay
        return optimizer

    @cached_property
    def extractor(self) -> Extractor:
        """The features' extractor that the options name; says aloud if it is a stand-in."""
        weights = self.options.extractor_weights
        extractor = load_extractor(self.options.extractor, Path(weights) if weights else None, self.device)
        if extractor.note:
            self.console.note(extractor.note)
        return extractor

    def metric(self, split: Literal["train", "test"]) -> GeneratorMetric:
        """Return the metric against the training or the test pictures."""
        return GeneratorMetric(self.extractor, self._images(split), Path(self.options.folder) / "reference")

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
        count = max(1, round(self.options.test_images * self.options.test_size))
        return {
            "kind": "result",
            "task": self.task.name,
            "method": method,
            "sparsity_asked": sum(last.get(row["name"], 0.0) * row["dense"] for row in rows) / dense,
            "sparsity": 1.0 - sum(row["nonzero"] for row in rows) / dense,
            "metrics": [metric_record(item) for item in self.measure(self.metric("test"), generator, count)],
            "seed": self.options.seed,
            "nonzero": sum(row["nonzero"] for row in rows),
            "weights": dense,
            **known,
        }


def train(options: Options, console: Console | None = None) -> Record:
    """Train a dense GAN and return its result record; checkpoint and report are in the run folder."""
    run = Run(options, console)
    generator, discriminator = run.build("generator"), run.build("discriminator")
    if options.weights_from:
        _load_start(run, generator, discriminator, options.weights_from)
    supervision = Supervision(run.task, generator, discriminator)
    return _Session(run, supervision, teacher_hash=None).execute()


def compress(options: Options, console: Console | None = None) -> Record:
    """Compress a trained generator by a schedule and return the result record.

    Raises:
        UserError: If the options name no schedule or no trained generator.
    """
    _require_schedule(options)
    run = Run(options, console)
    teacher = run.build("generator")
    discriminator = run.build("discriminator")
    if options.resume_from:
        teacher_hash = _load_kept_teacher(run, teacher)
    else:
        wanted = discriminator if run.gan.discriminator.init == "pretrained" else None
        _load_start(run, teacher, wanted, _trained_generator(options))
        teacher_hash = _keep_teacher(run, teacher)
    student = _build_student(run, teacher)
    supervision = Supervision(
        run.task,
        student,
        discriminator,
        teacher,
        objective=run.gan.objective,
        discriminator_spec=run.gan.discriminator,
    )
    return _Session(run, supervision, teacher_hash).execute()


def evaluate(options: Options, console: Console | None = None) -> Record:
    """Measure the generator of a checkpoint and return a result record; nothing is trained or written.

    Raises:
        UserError: If the options name no checkpoint.
    """
    source = options.resume_from or options.weights_from
    if not source:
        raise UserError("evaluating needs a checkpoint: --resume-from or --exp-load-weights-from CHECKPOINT")
    run = Run(dataclasses.replace(options, schedule=None), console)
    content = checkpoints.load_checkpoint(source, run.device)
    generator = run.build("generator", float(content.get("student_width", 1.0)))
    checkpoints.load_weights(generator, content["state_dict"], f"{source}, generator")
    method = options.method or content.get("method") or "checkpoint"
    return run.result(generator, method, [], seconds=0.0, steps=content.get("step", 0), checkpoint=source)


def plan(options: Options) -> Record:
    """Return what `compress` would do, without doing it.

    Returns:
        ``schedule`` (its text), ``epochs``, ``steps_per_epoch``, ``layers`` (rows of the sparsity table) and
        ``asked``: for each epoch, the sparsity asked of each layer.
    """
    _require_schedule(options)
    run = Run(options)
    student = run.build("generator", run.gan.student.width)
    supervision = Supervision(run.task, student, run.build("discriminator"))
    assert run.schedule is not None and supervision.generator is student
    return {
        "schedule": run.schedule.text,
        "epochs": run.epochs,
        "steps_per_epoch": run.steps_per_epoch,
        "layers": [row for row in sparsity_table(student) if row["name"] in set(prunable_names(student))],
        "asked": run.schedule.sparsity_plan(student),
    }


def _require_schedule(options: Options) -> None:
    if not options.schedule:
        raise UserError("compressing needs a schedule: --compress FILE, such as dcgan/recommended_75")


def _trained_generator(options: Options) -> str:
    if not options.weights_from:
        raise UserError(
            "compressing needs a trained generator: --exp-load-weights-from CHECKPOINT (a run folder of "
            "`sgc train`, or a generator's weights), or --resume-from to continue a run"
        )
    return options.weights_from


def _build_student(run: Run, teacher: nn.Module) -> nn.Module:
    spec = run.gan.student
    student = run.build("generator", spec.width)
    if spec.init == "dense":
        student.load_state_dict(teacher.state_dict())
    return student


def _load_start(run: Run, generator: nn.Module, discriminator: nn.Module | None, source: str) -> None:
    """Load a dense generator and, unless ``None``, its discriminator."""
    content = checkpoints.load_checkpoint(source, run.device)
    checkpoints.load_weights(generator, content["state_dict"], f"{source}, generator")
    if discriminator is None:
        return
    other = run.options.discriminator_from
    if other:
        content = checkpoints.load_checkpoint(other, run.device)
        state = content.get("discriminator_state_dict", content["state_dict"])
    elif "discriminator_state_dict" in content:
        state = content["discriminator_state_dict"]
    else:
        raise UserError(
            f"{source}: holds a generator but no discriminator, which supervises the pruning; add "
            "--discriminator-from CHECKPOINT, or set gan.discriminator.init: random in the schedule"
        )
    checkpoints.load_weights(discriminator, state, f"{other or source}, discriminator")


def _keep_teacher(run: Run, teacher: nn.Module) -> str:
    """Copy the teacher into the run folder, once, and return the file's SHA-256."""
    file = RunFolder(run.options.folder).teacher_file
    content = {"arch": run.task.name, "task_options": run.task.options, "state_dict": teacher.state_dict()}
    checkpoints.save_checkpoint(file, content)
    return checkpoints.sha256(file)


def _load_kept_teacher(run: Run, teacher: nn.Module) -> str:
    """Load the teacher that the run began with; another one is refused."""
    file = RunFolder(run.options.folder, create=False).teacher_file
    wanted = str(_resumable(run)["teacher_sha256"])
    if not file.is_file() or checkpoints.sha256(file) != wanted:
        raise UserError(
            f"{file}: expected the dense generator that this run began with (SHA-256 {wanted[:12]}...), got "
            f"{'another file' if file.is_file() else 'no such file'}; put it back, or begin a new run"
        )
    checkpoints.load_weights(teacher, checkpoints.load_checkpoint(file, run.device)["state_dict"], str(file))
    return wanted


def _resumable(run: Run) -> Record:
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
    return content


class _Session:
    """One run from its networks to its report."""

    def __init__(self, run: Run, supervision: Supervision, teacher_hash: str | None) -> None:
        self.run = run
        self.supervision = supervision
        self.teacher_hash = teacher_hash
        options = run.options
        self.method = options.method or (Path(options.schedule).stem if options.schedule else "dense")
        self.generator_optimizer = run.optimizer("generator", supervision.generator)
        self.discriminator_optimizer = run.optimizer("discriminator", supervision.discriminator)
        self.plan: list[dict[str, float]] = []
        if run.schedule:
            self.plan = run.schedule.sparsity_plan(supervision.generator)
        self.folder = RunFolder(options.folder)

    def execute(self) -> Record:
        """Train, measure and report; return the result record."""
        run, folder = self.run, self.folder
        resumed = _resumable(run) if run.options.resume_from else None
        self._refuse_used_folder(resumed)
        scheduler = self._build_scheduler()
        first_epoch = self._restore(resumed, scheduler) if resumed else 0
        folder.rewind(first_epoch * run.steps_per_epoch)
        self._write_header()
        recorder = self._recorder(resumed)
        trainer = self._trainer(recorder, scheduler, first_epoch)
        if run.options.save_untrained and first_epoch == 0:
            checkpoints.save_checkpoint(folder.path / "untrained.pth.tar", recorder.checkpoint(trainer))
        self._log_dense_result()
        if run.options.prune_only:
            self._prune_only(scheduler)
        else:
            run.console.start(run.epochs, run.steps_per_epoch, first_epoch)
            trainer.run()
            run.console.finish()
        checkpoints.save_checkpoint(folder.checkpoint_file, recorder.checkpoint(trainer))
        seconds = sum(record["seconds"] for record in folder.records("epoch"))
        result = run.result(
            self.supervision.generator,
            self.method,
            self.plan,
            seconds=seconds,
            steps=trainer.step,
            checkpoint=str(folder.checkpoint_file),
        )
        folder.log(result)
        folder.close()
        write_report(folder.path)
        return result

    def _build_scheduler(self) -> CompressionScheduler | None:
        run, options = self.run, self.run.options
        if run.schedule is None:
            return None
        generator = self.supervision.generator
        scheduler = run.schedule.build(generator, self.generator_optimizer)
        if options.distill_weight is not None:
            policy = OutputDistillationPolicy(
                generator, "kd", options.distill_weight, options.student_weight, mode="add"
            )
            scheduler.add_policy(policy, starting_epoch=0, ending_epoch=run.epochs, frequency=1)
        return scheduler

    def _restore(self, checkpoint: Record, scheduler: CompressionScheduler | None) -> int:
        """Load the checkpoint's networks, optimisers and masks; return the epoch to go on with."""
        path = str(self.run.options.resume_from)
        supervision = self.supervision
        judge = checkpoint["discriminator_state_dict"]
        checkpoints.load_weights(supervision.generator, checkpoint["state_dict"], f"{path}, generator")
        checkpoints.load_weights(supervision.discriminator, judge, f"{path}, discriminator")
        state = checkpoint["compression_sched"]
        if self.run.options.reset_optimizer:
            if scheduler and state:
                scheduler.load_state_dict({"masks_dict": state["masks_dict"]})
            return 0
        if scheduler and state:
            scheduler.load_state_dict(state)
        self.generator_optimizer.load_state_dict(checkpoint["optimizer_state_dict"])
        self.discriminator_optimizer.load_state_dict(checkpoint["discriminator_optimizer_state_dict"])
        return int(checkpoint["epoch"]) + 1

    def _refuse_used_folder(self, resumed: Record | None) -> None:
        if resumed is None and self.folder.checkpoint_file.exists():
            raise UserError(
                f"{self.folder.path}: holds a run already; continue it with --resume-from "
                f"{self.folder.path}, or name another folder with -o or -n"
            )

    def _write_header(self) -> None:
        run = self.run
        config = {
            **dataclasses.asdict(run.options),
            "method": self.method,
            "steps_per_epoch": run.steps_per_epoch,
            "epochs": run.epochs,
            "task_options": run.task.options,
        }
        self.config = config
        self.folder.write_config(config)
        self.folder.write_environment(run.device)
        if run.schedule:
            self.folder.write_schedule(run.schedule.text)

    def _recorder(self, resumed: Record | None) -> Recorder:
        run, options = self.run, self.run.options
        count = round(options.epoch_images * options.valid_size)
        metric = run.metric("train") if count else None
        return Recorder(
            folder=self.folder,
            console=run.console,
            evaluate=(lambda generator: run.measure(metric, generator, count)) if metric else None,
            prunable=set(prunable_names(self.supervision.generator)),
            plan=self.plan,
            state=self._state,
            sample_seed=seed_for(options.seed, "pictures"),
            best_count=options.best_count,
            masks_sparsity=options.masks_sparsity,
            param_hist=options.param_hist,
            scores=list(resumed["extras"]["scores"]) if resumed and not options.reset_optimizer else [],
        )

    def _state(self, trainer: Trainer) -> Record:
        """Return what a checkpoint holds of the run itself."""
        return {
            "config": {**self.config, "task_options": dict(self.config["task_options"])},
            "task_options": dict(self.run.task.options),
            "student_width": self.run.gan.student.width,
            "method": self.method,
            "schedule": self.run.schedule.text if self.run.schedule else "",
            "teacher_sha256": self.teacher_hash,
        }

    def _trainer(
        self, recorder: Recorder, scheduler: CompressionScheduler | None, first_epoch: int
    ) -> Trainer:
        run, options = self.run, self.run.options
        return Trainer(
            task=run.task,
            supervision=self.supervision,
            generator_optimizer=self.generator_optimizer,
            discriminator_optimizer=self.discriminator_optimizer,
            batches=lambda start: batches(
                run.images, options.batch_size, options.seed, start, options.workers, run.device
            ),
            steps_per_epoch=run.steps_per_epoch,
            epochs=run.epochs,
            seed=options.seed,
            observer=recorder,
            scheduler=scheduler,
            report_every=options.report_every,
            epoch=first_epoch,
        )

    def _log_dense_result(self) -> None:
        """Measure the teacher, for the report's comparison; a resumed run has it already."""
        teacher = self.supervision.teacher
        if teacher is not None and not self.folder.records("result"):
            known = {"seconds": 0.0, "steps": 0, "checkpoint": str(self.folder.teacher_file)}
            self.folder.log(self.run.result(teacher, "dense", [], **known))

    def _prune_only(self, scheduler: CompressionScheduler | None) -> None:
        """Let the schedule set its masks, epoch by epoch, with no training between them."""
        if scheduler is None:
            raise UserError("--prune-only needs a schedule: --compress FILE")
        for epoch in range(self.run.epochs):
            scheduler.on_epoch_begin(epoch, self.generator_optimizer)
            scheduler.mask_all_weights()
