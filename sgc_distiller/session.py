"""One run from its networks to its report."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sgc_distiller import checkpoints, wording
from sgc_distiller.assembly import Run, resumable
from sgc_distiller.data import batches
from sgc_distiller.distiller_runtime import build_with_distiller, distiller_folder
from sgc_distiller.errors import UserError
from sgc_distiller.inspection import plain_text
from sgc_distiller.loss_policies import OutputDistillationPolicy
from sgc_distiller.masks import sparsity_table
from sgc_distiller.names import prunable_names
from sgc_distiller.recording import Recorder, generator_sparsity
from sgc_distiller.removal import make_as_thin
from sgc_distiller.remover_checks import removal_epochs
from sgc_distiller.report import write_report
from sgc_distiller.runs import RunFolder
from sgc_distiller.schedule import Schedule
from sgc_distiller.scheduler import CompressionScheduler
from sgc_distiller.seeding import seed_for
from sgc_distiller.student_sizes import StudentSizes
from sgc_distiller.supervision import Supervision
from sgc_distiller.tasks.base import Role
from sgc_distiller.training import Trainer

__all__ = ["Session"]

Record = dict[str, Any]


class Session:
    """Trains, measures and reports.

    Args:
        run: What the run consists of.
        supervision: Its networks.
        teacher_hash: SHA-256 of the teacher's file in the run folder, for a run that goes on.
    """

    folder: RunFolder

    def __init__(self, run: Run, supervision: Supervision, teacher_hash: str | None = None) -> None:
        self.run = run
        self.supervision = supervision
        self.teacher_hash = teacher_hash
        options = run.options
        prunes = options.schedule and supervision.teacher is not None
        self.method = options.method or (Path(str(options.schedule)).stem if prunes else "dense")
        self.generator_optimizer = run.optimizer("generator", supervision.generator, options.lr)
        self.discriminator_optimizer = run.optimizer("discriminator", supervision.discriminator, options.lr)
        self._sizes = StudentSizes(supervision.generator, run.build("generator", run.gan.student.width))
        self.plain_schedules: dict[str, Record] = {}
        self.plan: list[dict[str, float | None]] = []
        self.overall: list[float | None] = []
        if run.schedule:
            self.plan = run.schedule.sparsity_plan(supervision.generator, run.epochs)
            self.overall = run.schedule.asked_overall(supervision.generator, run.epochs)
        self.config = {
            **dataclasses.asdict(options),
            "method": self.method,
            "steps_per_epoch": run.steps_per_epoch,
            "epochs": run.epochs,
            "task_options": dict(run.task.options),
        }

    def execute(self) -> Record:
        """Train, measure and report; return the result record.

        Everything is checked before the first file is written. A run that has finished is left as it is.

        Raises:
            UserError: If the settings cannot be used, or the folder holds another run.
        """
        run, options = self.run, self.run.options
        if not options.continues:
            _refuse_used_folder(Path(options.folder))
        resumed = resumable(run) if options.resume_from else None
        scheduler = self.build_scheduler()
        self.discriminator_scheduler = self._build_discriminator_scheduler()
        first_epoch = self._restore(resumed, scheduler) if resumed else 0
        finished = self._finished(first_epoch) if options.continues else None
        if finished is not None:
            return finished
        run.measurement("train" if options.judged_on == "train" else "test")  # what it lacks shows now
        self.folder = RunFolder(options.folder)
        self._announce()
        try:
            return self._execute(resumed, scheduler, first_epoch)
        finally:
            run.console.finish()
            self.folder.close()

    def _announce(self) -> None:
        """Say where the run is written and what its schedule does not prune."""
        run, options = self.run, self.run.options
        drives = "built in" if options.runtime == "builtin" else f"Distiller at {distiller_folder()}"
        about = f"; schedule: {options.schedule}; runtime: {drives}" if run.schedule else ""
        run.console.note(f"run folder: {options.folder}{about}")
        if run.task.note:
            run.console.note(run.task.note, once=True)
        if not any(self.plan) or run.schedule is None:
            return
        generator = self.supervision.generator
        sizes = {n: p.numel() for n, p in generator.named_parameters() if n in prunable_names(generator)}
        dense = [name for name in sizes if self.plan[-1].get(name, 0.0) == 0.0]
        if dense:
            share = sum(sizes[name] for name in dense) / sum(sizes.values())
            run.console.note(
                f"left dense by the schedule: {', '.join(dense)}, {wording.percent(share)} of the weights; "
                "sparsity counts all"
            )
        if run.epochs < run.schedule.epochs and not options.prune_only:
            run.console.note(
                f"warning: the schedule has {run.schedule.epochs} epochs and only {run.epochs} are run; what "
                "it asks for later is not reached"
            )

    def build_scheduler(self) -> Any:
        """Return the schedule's scheduler for this run's networks, ``None`` where there is no schedule."""
        run, options = self.run, self.run.options
        if run.schedule is None:
            return None
        generator = self.supervision.generator
        scheduler = self._build(run.schedule, generator, self.generator_optimizer, "pruners")
        if options.distill_weight is not None:
            policy = OutputDistillationPolicy(
                generator, "kd", options.distill_weight, options.student_weight, mode="add"
            )
            scheduler.add_policy(policy, starting_epoch=0, ending_epoch=run.epochs, frequency=1)
        return scheduler

    def _build_discriminator_scheduler(self) -> Any:
        """Return the scheduler of the discriminator's own schedule, ``None`` where there is none."""
        own = self.run.schedule.discriminator if self.run.schedule else None
        if own is None:
            return None
        judge = self.supervision.discriminator
        return self._build(own, judge, self.discriminator_optimizer, "pruners of the discriminator")

    def _build(
        self, schedule: Schedule, model: nn.Module, optimizer: torch.optim.Optimizer, purpose: str
    ) -> Any:
        """Return the scheduler of the runtime that the options name."""
        options = self.run.options
        if options.runtime == "builtin":
            return schedule.build(model, optimizer, seed=seed_for(options.seed, purpose))
        scheduler, plain = build_with_distiller(schedule, model, optimizer)
        self.plain_schedules[purpose] = plain
        return scheduler

    def _execute(
        self, resumed: Record | None, scheduler: CompressionScheduler | None, first_epoch: int
    ) -> Record:
        run = self.run
        recorder = self._recorder(resumed)
        trainer = self._trainer(recorder, scheduler, first_epoch)
        self._open_folder(recorder, trainer)
        self._log_dense_result()
        if run.options.prune_only:
            self._prune_only(scheduler)
            recorder.on_pruned(trainer)
            checkpoints.save_checkpoint(self.folder.checkpoint_file, recorder.checkpoint(trainer))
        else:
            run.console.start(run.epochs, run.steps_per_epoch, first_epoch)
            trainer.run()
            run.console.finish()
        return self._conclude(recorder, trainer)

    def _open_folder(self, recorder: Recorder, trainer: Trainer) -> None:
        """Write what a run is resumed from; a folder that has the checkpoint, the last file, has it all."""
        run, folder = self.run, self.folder
        if self.supervision.teacher is not None and self.teacher_hash is None:
            self._keep_teacher(self.supervision.teacher)
        folder.rewind(trainer.step if run.options.continues else -1)
        folder.write_config(self.config)
        folder.write_environment(run.device)
        if run.schedule:
            folder.write_schedule(run.schedule.text)
        for purpose, plain in self.plain_schedules.items():
            name = "distiller_discriminator.yaml" if "discriminator" in purpose else "distiller.yaml"
            (folder.path / name).write_text(plain_text(plain, Path(str(run.options.schedule)).name), "utf-8")
        content = recorder.checkpoint(trainer)
        if run.options.save_untrained and not run.options.continues:
            checkpoints.save_checkpoint(folder.path / "untrained.pth.tar", content)
        checkpoints.save_checkpoint(folder.checkpoint_file, content)

    def _keep_teacher(self, teacher: nn.Module) -> None:
        """Copy the teacher into the run folder and note the file's SHA-256."""
        task = self.run.task
        content = {"arch": task.name, "task_options": task.options, "state_dict": teacher.state_dict()}
        checkpoints.save_checkpoint(self.folder.teacher_file, content)
        self.teacher_hash = checkpoints.sha256(self.folder.teacher_file)

    def _conclude(self, recorder: Recorder, trainer: Trainer) -> Record:
        """Draw and measure the result, record it and write the report."""
        run, folder = self.run, self.folder
        seconds = sum(record["seconds"] for record in folder.records("epoch"))
        with trainer.weights_as_seen(trainer.epoch - 1), trainer.judge_as_seen(trainer.epoch - 1):
            recorder.on_end(trainer)
            result = run.result(
                self.supervision.generator,
                self.method,
                self.overall,
                seconds=seconds,
                steps=trainer.step,
                checkpoint=str(folder.checkpoint_file),
                best_epochs=recorder.scores,
                columns=recorder.columns,
                **self._sizes.before_thinning(),
                **self._discriminator_sparsity(),
            )
        folder.log(result)
        folder.close()
        best = recorder.best_epochs()
        if best:
            run.console.note(best)
        write_report(folder.path)
        return result

    def _discriminator_sparsity(self) -> Record:
        """Return the discriminator's sparsity, where it is pruned too."""
        if not self.discriminator_scheduler:
            return {}
        judge = self.supervision.discriminator
        rows = sparsity_table(judge)
        return {"discriminator_sparsity": generator_sparsity(rows, set(prunable_names(judge)))}

    def _finished(self, first_epoch: int) -> Record | None:
        """Return the result of a run that has nothing left to do, ``None`` for another."""
        run = self.run
        folder = RunFolder(run.options.folder, create=False)
        steps = first_epoch * run.steps_per_epoch
        own = [record for record in folder.own_results() if record["steps"] == steps]
        if not own or (first_epoch < run.epochs and not run.options.prune_only):
            return None
        if not folder.report_file.is_file():
            write_report(folder.path)
        run.console.note(
            f"{folder.path}: this run has finished, nothing is changed. More --epochs would go on with it, "
            "--reset-optimizer begins a new run from its weights"
        )
        return own[-1]

    def _restore(self, checkpoint: Record, scheduler: CompressionScheduler | None) -> int:
        """Load the checkpoint's networks, optimisers and masks; return the epoch to go on with."""
        path = str(self.run.options.resume_from)
        supervision, goes_on = self.supervision, self.run.options.continues
        weights = {**checkpoint["state_dict"], **(checkpoint.get("dense_weights", {}) if goes_on else {})}
        judge = checkpoint["discriminator_state_dict"]
        if goes_on and "thinned_from" in checkpoint:
            make_as_thin(supervision.generator, checkpoint["thinned"], weights, self.generator_optimizer)
            if scheduler:
                scheduler.follow_thinning()
        checkpoints.load_weights(supervision.generator, weights, f"{path}, generator")
        checkpoints.load_weights(supervision.discriminator, judge, f"{path}, discriminator")
        state = checkpoint["compression_sched"]
        if not goes_on:
            if scheduler and state:
                scheduler.load_state_dict({"masks_dict": state["masks_dict"]})
            return 0
        if scheduler and state:
            scheduler.load_state_dict(state)
        if self.discriminator_scheduler:
            self.discriminator_scheduler.load_state_dict(checkpoint["discriminator_compression_sched"])
        self.generator_optimizer.load_state_dict(checkpoint["optimizer_state_dict"])
        self.discriminator_optimizer.load_state_dict(checkpoint["discriminator_optimizer_state_dict"])
        for name, pool in supervision.pools.items():
            pool.load_state_dict(checkpoint.get("pools", {}).get(name, {}), supervision.device)
        self._follow_options(checkpoint["config"], scheduler)
        return int(checkpoint["epoch"]) + 1

    def _follow_options(self, began: Record, scheduler: CompressionScheduler | None) -> None:
        """Let a learning rate or weight decay that is given now beat those of the optimisers' states."""
        run, lr = self.run, self.run.options.lr
        trained: tuple[tuple[Role, nn.Module, torch.optim.Optimizer], ...] = (
            ("generator", self.supervision.generator, self.generator_optimizer),
            ("discriminator", self.supervision.discriminator, self.discriminator_optimizer),
        )
        for role, network, optimizer in trained:
            before = run.optimizer(role, network, began.get("lr")).param_groups
            after = run.optimizer(role, network, lr).param_groups
            for group, old, new in zip(optimizer.param_groups, before, after, strict=True):
                group["weight_decay"] = new["weight_decay"]
                if lr != began.get("lr"):
                    for name in {"lr", "initial_lr"} & group.keys():
                        group[name] *= new["lr"] / old["lr"]
        if scheduler and lr != began.get("lr"):
            rates = [group.get("initial_lr") for group in self.generator_optimizer.param_groups]
            for policies in scheduler.policies.values():
                for policy in policies:
                    if hasattr(getattr(policy, "lr_scheduler", None), "base_lrs"):
                        policy.lr_scheduler.base_lrs = list(rates)

    def _recorder(self, resumed: Record | None) -> Recorder:
        run, options = self.run, self.run.options
        count = options.images_an_epoch
        if count:
            run.measurement("train")
        return Recorder(
            folder=self.folder,
            console=run.console,
            evaluate=(lambda generator: run.measure("train", generator, count)) if count else None,
            sheet=run.sheet,
            prunable=set(prunable_names(self.supervision.generator)),
            plan=self.plan,
            overall=self.overall,
            state=self._state,
            best_count=options.best_count,
            masks_sparsity=options.masks_sparsity,
            param_hist=options.param_hist,
            scores=list(resumed["extras"]["scores"]) if resumed and options.continues else [],
        )

    def _state(self, trainer: Trainer) -> Record:
        """Return what a checkpoint holds of the run itself."""
        return {
            "config": self.config,
            "task_options": dict(self.run.task.options),
            "student_width": self.run.gan.student.width,
            **self._sizes.record(),
            "method": self.method,
            "schedule": self.run.schedule.text if self.run.schedule else "",
            "teacher_sha256": self.teacher_hash,
            "discriminator_compression_sched": (
                self.discriminator_scheduler.state_dict() if self.discriminator_scheduler else None
            ),
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
                run.data, run.batch_size, options.seed, start, options.workers, run.device
            ),
            steps_per_epoch=run.steps_per_epoch,
            epochs=run.epochs,
            seed=options.seed,
            observer=recorder,
            scheduler=scheduler,
            discriminator_scheduler=self.discriminator_scheduler,
            trains_generator=not options.warm_up,
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
        assert scheduler is not None
        for epoch in range(self.run.epochs):
            scheduler.on_epoch_begin(epoch, self.generator_optimizer)
            scheduler.mask_all_weights()
            if self.run.schedule and epoch in removal_epochs(self.run.schedule.policies):
                scheduler.on_minibatch_begin(epoch, 0, self.run.steps_per_epoch, self.generator_optimizer)
            if self.discriminator_scheduler:
                self.discriminator_scheduler.on_epoch_begin(epoch, self.discriminator_optimizer)
                self.discriminator_scheduler.mask_all_weights()


def _refuse_used_folder(folder: Path) -> None:
    if (folder / "checkpoint.pth.tar").exists():
        raise UserError(
            f"{folder}: holds a run already; continue it with --resume-from {shlex.quote(str(folder))}, or "
            "name another folder with -o or -n"
        )
