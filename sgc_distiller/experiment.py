"""What the command line does: train a GAN, compress its generator, measure one.

Everything here works without a terminal; `Options` in, result record and run folder out.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from sgc_distiller import checkpoints, yaml_source
from sgc_distiller.assembly import Run, resumable
from sgc_distiller.errors import UserError
from sgc_distiller.experiment_spec import GanSpec
from sgc_distiller.finished import build_generator, open_finished
from sgc_distiller.masks import sparsity_table
from sgc_distiller.names import prunable_names
from sgc_distiller.recording import Console
from sgc_distiller.runs import RunFolder
from sgc_distiller.schedule import Schedule
from sgc_distiller.schedule_plan import decided_late
from sgc_distiller.session import Session
from sgc_distiller.settings import Options, resolve
from sgc_distiller.student_sizes import build_as_begun
from sgc_distiller.supervision import Supervision

__all__ = ["Options", "compress", "evaluate", "plan", "resolve", "train", "warm_up"]

Record = dict[str, Any]


def train(options: Options, console: Console | None = None) -> Record:
    """Train a dense GAN and return its result record; checkpoint and report are in the run folder.

    A schedule may say how long and at which learning rate, such as ``table1/a_none``, and nothing else.

    Raises:
        UserError: If the options ask for what only compressing does, or cannot be used.
    """
    _refuse_compression(options, may_have_schedule=True)
    run = Run(options, console)
    if run.schedule is not None:
        _refuse_what_needs_a_dense_gan(run.schedule)
    generator, discriminator = _starting_generator(run), run.build("discriminator")
    if options.weights_from:
        _load_start(run, generator, discriminator, options.weights_from, needs_judge=False)
    supervision = Supervision(run.task, generator, discriminator)
    return Session(run, supervision).execute()


def warm_up(options: Options, console: Console | None = None) -> Record:
    """Train a discriminator against a trained generator that stays as it is; return the result record.

    For those who have a public generator but not its discriminator. The paper's discriminator is the one that
    the generator was trained with; one that is trained afterwards stands in for it.

    Raises:
        UserError: If the options name no trained generator.
    """
    _refuse_compression(options)
    if not options.weights_from and not options.resume_from:
        raise UserError(
            "warming up a discriminator needs a trained generator: --exp-load-weights-from CHECKPOINT (a run "
            "folder of `sgc train`, or a generator's weights)"
        )
    run = Run(dataclasses.replace(options, warm_up=True, method=options.method or "warm-up"), console)
    if not run.task.judges:
        raise UserError(f"task {run.task.name!r} trains without a discriminator with these options")
    generator, discriminator = _starting_generator(run), run.build("discriminator")
    if options.weights_from:
        other = discriminator if options.discriminator_from else None
        _load_start(run, generator, other, options.weights_from)
    return Session(run, Supervision(run.task, generator, discriminator)).execute()


def compress(options: Options, console: Console | None = None) -> Record:
    """Compress a trained generator by a schedule and return the result record.

    Raises:
        UserError: If the options name no schedule or no trained generator.
    """
    run, supervision, teacher_hash = _compression(options, console)
    return Session(run, supervision, teacher_hash if options.continues else None).execute()


def _compression(options: Options, console: Console | None) -> tuple[Run, Supervision, str | None]:
    """Return a run, its networks with their weights, and the hash of its teacher's file, if resumed."""
    _require_schedule(options)
    run = Run(options, console)
    teacher = run.build("generator")
    discriminator = run.build("discriminator")
    teacher_hash = None
    if options.resume_from:
        teacher_hash = _load_kept_teacher(run, teacher)
        content = checkpoints.load_checkpoint(options.resume_from, run.device)
        student = _resumed_student(run, teacher, content)
    else:
        source = _trained_generator(options)
        wanted = discriminator if run.gan.discriminator.init == "pretrained" else None
        content = checkpoints.load_checkpoint(source, run.device)
        if content.get("thinned"):
            student = _load_thinned(run, teacher, wanted, source, content)
        else:
            _load_start(run, teacher, wanted, source)
            student = _build_student(run, teacher)
    supervision = Supervision(
        run.task,
        student,
        discriminator,
        teacher,
        objective=run.gan.objective,
        discriminator_spec=run.gan.discriminator,
    )
    return run, supervision, teacher_hash


def evaluate(options: Options, console: Console | None = None) -> Record:
    """Measure the generator of a checkpoint and return a result record; nothing is trained or written.

    Raises:
        UserError: If the options name no checkpoint.
    """
    if not options.resume_from and not options.weights_from:
        raise UserError("evaluating needs a checkpoint: --resume-from or --exp-load-weights-from CHECKPOINT")
    opened = open_finished(options, console)
    method = options.method or opened.content.get("method") or "checkpoint"
    steps = opened.content.get("step", 0)
    return opened.run.result(opened.generator, method, [], seconds=0.0, steps=steps, checkpoint=opened.source)


def plan(options: Options) -> Record:
    """Return what `compress` would do, without doing it; a trained generator need not be there yet.

    Returns:
        ``schedule`` (YAML, with names for patterns, all settings and what the options replace), ``epochs``,
        ``steps_per_epoch``, ``settings`` beside the schedule, ``layers`` (rows of the sparsity table) and
        ``asked``: for each epoch, the sparsity asked of each layer.
    """
    if options.weights_from or options.resume_from:
        run, supervision, _ = _compression(options, None)
    else:
        _require_schedule(options)
        run = Run(options)
        networks = run.build("generator", run.gan.student.width), run.build("discriminator")
        supervision = Supervision(run.task, *networks, run.build("generator"))
    session = Session(run, supervision)
    rates = [
        optimizer.param_groups[0]["lr"]
        for optimizer in (session.generator_optimizer, session.discriminator_optimizer)
    ]
    session.build_scheduler()  # finds the mistakes that show with a model only
    student = supervision.generator
    assert run.schedule is not None
    resolved = run.schedule.resolved(
        student,
        run.epochs,
        run.steps_per_epoch,
        rates[0] if rates[0] == rates[1] else options.lr,
        supervision.discriminator,
    )
    return {
        "schedule": yaml_source.write(resolved),
        "epochs": run.epochs,
        "steps_per_epoch": run.steps_per_epoch,
        "settings": _beside_schedule(run, student, resolved, rates),
        "layers": [row for row in sparsity_table(student) if row["name"] in set(prunable_names(student))],
        "asked": session.plan,
    }


def _beside_schedule(run: Run, student: nn.Module, resolved: Record, rates: list[float]) -> Record:
    """Return the settings of a run that its resolved schedule does not hold, by names for a person."""
    options = run.options
    settings: Record = {
        "task": f"{run.task.name}, {', '.join(f'{key} {value}' for key, value in run.task.options.items())}",
        "data": run.data.name,
        "batch size": run.batch_size,
        "weight decay": options.weight_decay,
        "seed": options.seed,
        "device": run.device,
    }
    if run.epochs != resolved.get("gan", {}).get("epochs"):
        settings["epochs"] = f"0 to {run.epochs - 1} are trained (--epochs {run.epochs})"
    if "gan" not in resolved:
        settings["generator updates in an epoch"] = run.steps_per_epoch
        settings["learning rates of generator and discriminator"] = " and ".join(map(str, rates))
    assert run.schedule is not None
    late = decided_late(run.schedule.pruners(student))
    if late:
        settings["decided by the weights, so not shown for each layer"] = ", ".join(late)
    if options.distill_weight is not None:
        settings["distillation"] = (
            f"added by --kd-distill-wt {options.distill_weight:g} --kd-student-wt {options.student_weight:g}"
        )
    return settings


def _refuse_what_needs_a_dense_gan(schedule: Schedule) -> None:
    gan = schedule.gan or GanSpec()
    from_scratch = gan.student.init == gan.discriminator.init == "random" and gan.student.width == 1.0
    if schedule.policies or not from_scratch:
        raise UserError(
            f"{schedule.source}: expected a schedule without policies, in which student and discriminator "
            "begin with 'init: random', since a dense GAN is trained here; to prune a trained one, `sgc "
            "compress` it with --exp-load-weights-from"
        )


def _refuse_compression(options: Options, may_have_schedule: bool = False) -> None:
    for name, flag in (
        (options.schedule and not may_have_schedule, "--compress"),
        (options.prune_only, "--prune-only"),
        (options.distill_weight is not None, "--kd-distill-wt"),
    ):
        if name:
            raise UserError(
                f"training a dense GAN has no use for {flag}: to prune a trained one, give --compress and "
                "--exp-load-weights-from (or --resume-from); `sgc` calls it `sgc compress`"
            )


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


def _starting_generator(run: Run) -> nn.Module:
    """Return an untrained generator, as thin as the one whose weights it is to take."""
    source = run.options.resume_from or run.options.weights_from
    content = checkpoints.load_checkpoint(source, run.device) if source else {}
    return build_generator(run, content) if content.get("thinned") else run.build("generator")


def _resumed_student(run: Run, teacher: nn.Module, content: Record) -> nn.Module:
    """Return the generator that a run goes on with: as it was when the run began, or is begun anew."""
    if run.options.continues and "thinned_from" in content:
        return build_as_begun(_build_student(run, teacher), content["thinned_from"])
    return build_generator(run, content) if content.get("thinned") else _build_student(run, teacher)


def _build_student(run: Run, teacher: nn.Module) -> nn.Module:
    spec = run.gan.student
    student = run.build("generator", spec.width)
    if spec.init == "dense":
        student.load_state_dict(teacher.state_dict())
    return student


def _load_start(
    run: Run, generator: nn.Module, discriminator: nn.Module | None, source: str, needs_judge: bool = True
) -> None:
    """Load a dense generator and, unless ``None``, its discriminator, which may be missing if not needed."""
    content = checkpoints.load_checkpoint(source, run.device)
    checkpoints.load_weights(generator, run.task.adapted(content["state_dict"]), f"{source}, generator")
    if discriminator is not None:
        _load_judge(run, discriminator, source, content, needs_judge)


def _load_thinned(
    run: Run, teacher: nn.Module, discriminator: nn.Module | None, source: str, content: Record
) -> nn.Module:
    """Return a thinned generator to go on with; its teacher is the dense one that lies beside it."""
    if run.gan.student != GanSpec().student:
        raise UserError(
            f"{source}: holds a thinned generator, which is trained as it is; expected a schedule whose "
            "gan.student is left out, got one that asks for another student"
        )
    file = RunFolder(checkpoints.find_checkpoint(source).parent, create=False).teacher_file
    if not file.is_file():
        raise UserError(
            f"{file}: expected the dense generator that supervises the thinned one of this folder, got no "
            "such file; put it back, or name the dense run to begin anew"
        )
    _load_start(run, teacher, None, str(file))
    if discriminator is not None:
        _load_judge(run, discriminator, source, content)
    student = build_generator(run, content)
    checkpoints.load_weights(student, content["state_dict"], f"{source}, generator")
    return student


def _load_judge(
    run: Run, discriminator: nn.Module, source: str, content: Record, needs_judge: bool = True
) -> None:
    other = run.options.discriminator_from
    if other:
        found = checkpoints.load_checkpoint(other, run.device)
        state = found.get("discriminator_state_dict", found["state_dict"])
    elif "discriminator_state_dict" in content:
        state = content["discriminator_state_dict"]
    elif not needs_judge:
        run.console.note(f"{source} holds no discriminator: it starts untrained")
        return
    else:
        raise UserError(
            f"{source}: holds a generator but no discriminator, which supervises the pruning; add "
            "--discriminator-from CHECKPOINT (`sgc warm-up-discriminator` trains one), or set "
            "gan.discriminator.init: random in the schedule"
        )
    checkpoints.load_weights(discriminator, state, f"{other or source}, discriminator")


def _load_kept_teacher(run: Run, teacher: nn.Module) -> str:
    """Load the teacher that the run began with; another one is refused."""
    checkpoint = checkpoints.find_checkpoint(str(run.options.resume_from))
    wanted = resumable(run)["teacher_sha256"]
    if wanted is None:
        raise UserError(
            f"{checkpoint}: is of a run that trained a dense GAN; to prune its generator, begin a run with "
            "--exp-load-weights-from in the place of --resume-from"
        )
    file = RunFolder(checkpoint.parent, create=False).teacher_file
    if not file.is_file() or checkpoints.sha256(file) != wanted:
        raise UserError(
            f"{file}: expected the dense generator that this run began with (SHA-256 {wanted[:12]}...), got "
            f"{'another file' if file.is_file() else 'no such file'}; put it back, or begin a new run"
        )
    checkpoints.load_weights(teacher, checkpoints.load_checkpoint(file, run.device)["state_dict"], str(file))
    return str(wanted)
