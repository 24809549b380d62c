"""What the command line does: train a GAN, compress its generator, measure one.

Everything here works without a terminal; `Options` in, result record and run folder out.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from sgc_distiller import checkpoints
from sgc_distiller.assembly import Run
from sgc_distiller.errors import UserError
from sgc_distiller.masks import sparsity_table
from sgc_distiller.names import prunable_names
from sgc_distiller.recording import Console
from sgc_distiller.runs import RunFolder
from sgc_distiller.session import Session, resumable
from sgc_distiller.settings import Options, resolve
from sgc_distiller.supervision import Supervision

__all__ = ["Options", "compress", "evaluate", "plan", "resolve", "train"]

Record = dict[str, Any]


def train(options: Options, console: Console | None = None) -> Record:
    """Train a dense GAN and return its result record; checkpoint and report are in the run folder."""
    run = Run(options, console)
    generator, discriminator = run.build("generator"), run.build("discriminator")
    if options.weights_from:
        _load_start(run, generator, discriminator, options.weights_from)
    supervision = Supervision(run.task, generator, discriminator)
    return Session(run, supervision, teacher_hash=None).execute()


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
    return Session(run, supervision, teacher_hash).execute()


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
    assert run.schedule is not None
    assert supervision.generator is student
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
    wanted = str(resumable(run)["teacher_sha256"])
    if not file.is_file() or checkpoints.sha256(file) != wanted:
        raise UserError(
            f"{file}: expected the dense generator that this run began with (SHA-256 {wanted[:12]}...), got "
            f"{'another file' if file.is_file() else 'no such file'}; put it back, or begin a new run"
        )
    checkpoints.load_weights(teacher, checkpoints.load_checkpoint(file, run.device)["state_dict"], str(file))
    return wanted
