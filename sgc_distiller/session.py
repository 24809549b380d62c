"""One run from its networks to its report."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from sgc_distiller import checkpoints
from sgc_distiller.assembly import Run
from sgc_distiller.data import batches
from sgc_distiller.errors import UserError
from sgc_distiller.loss_policies import OutputDistillationPolicy
from sgc_distiller.names import prunable_names
from sgc_distiller.recording import Recorder
from sgc_distiller.report import write_report
from sgc_distiller.runs import RunFolder
from sgc_distiller.scheduler import CompressionScheduler
from sgc_distiller.seeding import seed_for
from sgc_distiller.supervision import Supervision
from sgc_distiller.training import Trainer

__all__ = ["Session", "resumable"]

Record = dict[str, Any]


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
    return content


class Session:
    """Trains, measures and reports.

    Args:
        run: What the run consists of.
        supervision: Its networks.
        teacher_hash: SHA-256 of the teacher's file, for runs that have one.
    """

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
        resumed = resumable(run) if run.options.resume_from else None
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
