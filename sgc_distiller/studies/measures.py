"""What a study measures of every finished run beside its metrics, with one yardstick for all of them."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sgc_distiller import checkpoints
from sgc_distiller.assembly import Run
from sgc_distiller.data import batches
from sgc_distiller.finished import build_generator
from sgc_distiller.loss_policies import SelfSupervisedPolicy
from sgc_distiller.masks import MaskSet
from sgc_distiller.pictures import save_comparison
from sgc_distiller.runs import atomic_write
from sgc_distiller.seeding import generator_for, seed_for
from sgc_distiller.settings import resolve
from sgc_distiller.supervision import Supervision

__all__ = ["FILE", "measure", "read_measures", "residual_of_dense", "supervised_loss"]

Record = dict[str, Any]

FILE = "measures.json"
_BATCHES = 16  # that the supervised loss is averaged over
_PICTURES = 128  # that the residual is averaged over


def measure(folder: Path, dense: Path, device: str | None = None) -> Record:
    """Measure the generator of a finished run against the dense one it belongs to, and keep the numbers.

    Args:
        folder: The run.
        dense: The run of the dense training.
        device: See `sgc_distiller.settings.Options`.

    Returns:
        ``residual``, the mean of |sparse - dense| / 2 over pictures from the same noise or inputs, in [0, 1];
        and ``supervised_loss``, the paper's L_GC + 0.5 L_DC of the finished generator under the dense
        training's own discriminator, a mean over batches, ``None`` where no discriminator judges.
    """
    run = _run(dense, device)
    teacher, judge = _networks(run, dense)
    content = checkpoints.load_checkpoint(folder, run.device)
    student = build_generator(run, content)
    checkpoints.load_weights(student, content["state_dict"], f"{folder}, generator")
    found = {
        "residual": _residual(run, student, teacher),
        "supervised_loss": supervised_loss(run, student, judge, teacher),
    }
    atomic_write(folder / FILE, json.dumps(found) + "\n")
    return found


def read_measures(folder: Path) -> Record | None:
    """Return what `measure` kept, or ``None``."""
    file = folder / FILE
    if not file.is_file():
        return None
    read: Record = json.loads(file.read_text(encoding="utf-8"))
    return read


def residual_of_dense(one: Path, other: Path, pictures: Path, device: str | None = None) -> float:
    """Return the residual of two dense generators that were trained with different seeds.

    It is the yardstick of the paper's Figures 16 and 18: what a residual amounts to between two generators
    of which neither is pruned.

    Args:
        one: Run folder of the first.
        other: Run folder of the second.
        pictures: Folder that is given ``dense.png``, ``sparse.png`` (here: the other one) and residuals.
        device: See `sgc_distiller.settings.Options`.
    """
    run = _run(one, device)
    first, _ = _networks(run, one)
    second, _ = _networks(run, other)
    sheets = [run.sheet(generator) for generator in (first, second)]
    drawn = [sheet.made.flatten(0, 1) for sheet in sheets]
    save_comparison(drawn[0], drawn[1], pictures, sheets[0].made.shape[1], sheets[0].given)
    return _residual(run, first, second)


def _run(folder: Path, device: str | None) -> Run:
    given = {"resume_from": str(folder), **({"device": device} if device else {})}
    return Run(dataclasses.replace(resolve(given), schedule=None))


def _networks(run: Run, folder: Path) -> tuple[nn.Module, nn.Module]:
    content = checkpoints.load_checkpoint(folder, run.device)
    generator, judge = run.build("generator"), run.build("discriminator")
    checkpoints.load_weights(generator, content["state_dict"], f"{folder}, generator")
    state = content["discriminator_state_dict"]
    checkpoints.load_weights(judge, state, f"{folder}, discriminator")
    return generator, judge


def _residual(run: Run, sparse: nn.Module, dense: nn.Module) -> float:
    data = run.data if run.options.judged_on == "train" else run.test_data
    evaluation = run.task.evaluations(data)[0]
    seed = seed_for(run.options.seed, "residual")
    drawn = [
        _first((item.pictures for item in evaluation.draw(generator, _PICTURES, seed, run.device)), _PICTURES)
        for generator in (sparse, dense)
    ]
    return float((drawn[0] - drawn[1]).abs().mean() / 2)


def _first(batches_of_pictures: Any, count: int) -> Tensor:
    taken: list[Tensor] = []
    for pictures in batches_of_pictures:
        taken.append(pictures.cpu())
        if sum(map(len, taken)) >= count or pictures.shape[1:] != taken[0].shape[1:]:
            break
    alike = [item for item in taken if item.shape[1:] == taken[0].shape[1:]]
    return torch.cat(alike)[:count]


def supervised_loss(run: Run, student: nn.Module, judge: nn.Module, teacher: nn.Module) -> float | None:
    """Return the paper's L_GC + 0.5 L_DC of a generator, a mean over batches of the training data.

    Args:
        run: Its task, data and seed.
        student: The generator that is judged; its running statistics move.
        judge: The discriminator that both are judged by.
        teacher: The dense generator; another module than ``student``.

    Returns:
        0 for a student that equals its teacher, ``None`` where no discriminator judges.
    """
    if not run.task.judges:
        return None
    supervision = Supervision(run.task, student, judge, teacher)
    policy = SelfSupervisedPolicy(student)
    masks = MaskSet(student)
    raw = batches(run.data, run.batch_size, seed_for(run.options.seed, "measures"), device=run.device)
    total = 0.0
    for network in (student, judge, teacher):
        network.train()
    for index, item in enumerate(itertools.islice(raw, _BATCHES)):
        batch = run.task.prepare(item, generator_for(run.options.seed, "measures", index))
        batch = {"dropout_seed": index, "pool_seed": index, **batch}
        with torch.no_grad():
            supervision.begin(index)
            loss = supervision.step(batch)
            shaped = policy.before_backward_pass(student, 0, index, _BATCHES, loss, masks)
        total += float(shaped.overall_loss)
    return total / _BATCHES
