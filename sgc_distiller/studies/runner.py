"""Runs the experiments of a study, several at once; what has finished is never run again."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sgc_distiller import yaml_source
from sgc_distiller.errors import UserError
from sgc_distiller.recording import Console
from sgc_distiller.runs import RunFolder, atomic_write
from sgc_distiller.settings import resolve
from sgc_distiller.studies.experiments import Experiment
from sgc_distiller.studies.measures import read_measures
from sgc_distiller.studies.workers import Workers
from sgc_distiller.wording import duration, number, short_name

__all__ = ["Outcome", "exclusive", "finished", "run_all"]

Record = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What became of an experiment.

    Attributes:
        experiment: The experiment.
        result: Its result record, with what `sgc_distiller.studies.measures` adds; ``None`` if it failed.
        reason: Why it failed.
    """

    experiment: Experiment
    result: Record | None
    reason: str = ""


@dataclass
class _Study:
    workers: Workers
    console: Console
    total: int
    said: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


def run_all(
    experiments: Sequence[Experiment], jobs: int, console: Console | None = None, threads: int = 1
) -> list[Outcome]:
    """Run experiments, dense trainings first, and return their outcomes in the order of the experiments.

    They run in processes beside this one. One that fails is an outcome with its reason, and the others go
    on; one whose dense training failed is not begun. Finished ones are read; interrupted ones go on where
    their last checkpoint is.

    Args:
        experiments: What to run.
        jobs: How many at once.
        console: Where a person follows.
        threads: Threads of each process.

    Raises:
        UserError: If a schedule cannot be read, or a folder holds a run with other settings.
    """
    experiments = _distinct(experiments)
    for experiment in experiments:
        experiment.text()  # finds mistakes in schedules before anything is trained
        _refuse_other_run(experiment)
    if not experiments:
        return []
    workers = Workers(threads, experiments[0].setting.root / "workers.log")
    study = _Study(workers, console or Console(), len(experiments))
    for file, experiment in {item.schedule_file: item for item in experiments}.items():
        if experiment.sparsity is not None:
            atomic_write(file, experiment.text())
    dense = [item for item in experiments if item.trains_dense]
    others = [item for item in experiments if not item.trains_dense]
    outcomes: dict[int, Outcome] = {}
    pool = ThreadPoolExecutor(jobs)
    try:
        trained = {item.seed: pool.submit(_outcome, study, item) for item in dense}

        def after_dense(item: Experiment) -> Outcome:
            before = trained[item.seed].result() if item.seed in trained else None
            if before is not None and before.result is None:
                return _say(study, Outcome(item, None, f"its dense training failed: {before.reason}"))
            return _outcome(study, item)

        waiting = [(id(item), pool.submit(after_dense, item)) for item in others]
        for item in dense:
            outcomes[id(item)] = trained[item.seed].result()
        for key, future in waiting:
            outcomes[key] = future.result()
    except BaseException:
        workers.stop()
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    pool.shutdown()
    workers.stop()
    return [outcomes[id(item)] for item in experiments]


def _distinct(experiments: Sequence[Experiment]) -> list[Experiment]:
    """Return experiments without repetitions.

    Raises:
        UserError: If two different ones would have the same folder or file.
    """
    kept: dict[Path, Experiment] = {}
    for item in experiments:
        for place in (item.folder, item.schedule_file if item.sparsity is not None else item.folder):
            other = kept.setdefault(place, item)
            if other.file != item.file:
                raise UserError(
                    f"{item.file} and {other.file} have the same name and would share {place}; rename one of "
                    "them, or compare them in two studies with -o"
                )
    return list({item.folder: item for item in experiments}.values())


def finished(experiment: Experiment) -> Record | None:
    """Return the result record of a finished run with its measures, or ``None``."""
    result, measures = _result(experiment.folder), read_measures(experiment.folder)
    return None if result is None or measures is None else {**result, **measures}


def _result(folder: Path) -> Record | None:
    """Return the result of a run that has ended, also where it has not been measured."""
    if not folder.is_dir():
        return None
    own = RunFolder(folder, create=False).own_results()
    return own[-1] if own else None


def _outcome(study: _Study, experiment: Experiment) -> Outcome:
    known = finished(experiment)
    if known is not None:
        return _say(study, Outcome(experiment, known), "finished before")
    reason = study.workers.perform(_job(experiment))
    known = finished(experiment)
    if study.workers.stopped:
        return Outcome(experiment, None, reason)  # nobody hears of it: the same command goes on
    if reason or known is None:
        return _say(study, Outcome(experiment, None, reason or "it left no result"))
    return _say(study, Outcome(experiment, known))


def _job(experiment: Experiment) -> Record:
    """Return what a worker is told."""
    return {
        "given": experiment.settings(),
        "folder": str(experiment.folder),
        "dense": str(experiment.dense_folder),
        "trains_dense": experiment.trains_dense,
        "is_trained": _result(experiment.folder) is not None,
    }


def _say(study: _Study, outcome: Outcome, note: str = "") -> Outcome:
    """Tell a person what became of an experiment."""
    with study.lock:
        study.said += 1
        place = f"[{study.said}/{study.total}]"
    experiment, result = outcome.experiment, outcome.result
    about = f"{experiment.setting.task}, seed {experiment.seed}, {experiment.name}"
    if result is None:
        study.console.note(f"{place} {about}: failed: {outcome.reason}")
    else:
        first = result["metrics"][0] if result["metrics"] else None
        named = "no metric" if first is None else f"{short_name(first)} {number(first['value'])}"
        study.console.note(f"{place} {about}: {named}; {note or duration(result['seconds'])}")
    return outcome


_COMPARED = ("steps_per_epoch", "seed", "lr", "batch_size", "test_images", "judged_on")


def _refuse_other_run(experiment: Experiment) -> None:
    """Refuse a folder in which a run with other settings lies, so that no table mixes them."""
    if not (experiment.folder / "checkpoint.pth.tar").is_file():
        return
    if not (experiment.dense_folder / "checkpoint.pth.tar").is_file():
        raise UserError(
            f"{experiment.folder}: was pruned from a dense GAN that is no longer in "
            f"{experiment.dense_folder}; put it back, or remove {experiment.folder.parent}, since its runs "
            "belong together"
        )
    folder = RunFolder(experiment.folder, create=False)
    config, given = folder.config(), experiment.settings()
    asked = {name: given.get(name) for name in _COMPARED}
    asked |= {"task": experiment.setting.task, "epochs": experiment.epochs}
    differing = [
        f"{name} {config.get(name)!r} there, {value!r} asked"
        for name, value in asked.items()
        if config.get(name) != value
    ]
    setting, known = experiment.setting, config.get("task_options", {})
    differing += [
        f"{name} {known.get(name)!r} there, {value!r} asked"
        for name, value in setting.scale.sizes.items()
        if known.get(name) != value
    ]
    data = resolve({"task": setting.task, **({"data": setting.data} if setting.data else {})}).data
    if data != config["data"]:
        differing.append(f"data {config['data']} there, {data} asked")
    if yaml_source.scalar(folder.schedule()) != yaml_source.scalar(experiment.text()):
        differing.append(f"another schedule than {experiment.file} is now")
    if differing:
        raise UserError(
            f"{experiment.folder}: holds a run with other settings ({'; '.join(differing)}); name another "
            f"folder with -o, or remove {experiment.folder.parent}, since its runs belong together"
        )


@contextmanager
def exclusive(root: Path) -> Iterator[None]:
    """Let no other study work in the same folder inside the block.

    Raises:
        UserError: If another one does.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{root}: expected a folder for the study, which cannot be made: {error.strerror}"
        ) from error
    with (root / ".lock").open("a") as file:
        try:
            import fcntl
        except ImportError:  # Windows: nothing is locked there
            yield
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"{root}: another study works in this folder now; wait for it, or name another with -o"
            ) from None
        yield
