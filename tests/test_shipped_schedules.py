"""Every shipped schedule runs to its end and reaches the sparsity that its name says."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch

from sgc_distiller.data import batches, open_images
from sgc_distiller.names import prunable_names
from sgc_distiller.resources import shipped_schedules
from sgc_distiller.schedule import read_schedule
from sgc_distiller.supervision import Supervision
from sgc_distiller.tasks.dcgan import DCGAN
from sgc_distiller.training import StepReport, Trainer

FILES = sorted((shipped_schedules() / "dcgan").glob("*.yaml"))


class _Watch:
    """Notes each epoch's zeros after the hooks of its last step."""

    def __init__(self, generator: torch.nn.Module) -> None:
        self.generator = generator
        self.zeros: list[dict[str, int]] = []

    def on_step(self, report: StepReport) -> None:
        pass

    def on_epoch(self, trainer: Trainer, report: StepReport) -> dict[str, float]:
        named = dict(self.generator.named_parameters())
        self.zeros.append({n: int((named[n] == 0).sum()) for n in prunable_names(self.generator)})
        return {}

    def on_epoch_closed(self, trainer: Trainer, report: StepReport) -> None:
        pass


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_schedule_trains_prunes_and_leaves_alone_what_it_says(path: Path, device: torch.device) -> None:
    task = DCGAN(16, width=4)
    teacher = task.build("generator").to(device)
    student, judge = copy.deepcopy(teacher), task.build("discriminator").to(device)
    judge_before = copy.deepcopy(judge.state_dict())
    schedule = read_schedule(path)
    gan = schedule.gan
    assert gan is not None
    supervision = Supervision(
        task, student, judge, teacher, objective=gan.objective, discriminator_spec=gan.discriminator
    )
    optimizers = [
        task.optimizer(role, net) for role, net in (("generator", student), ("discriminator", judge))
    ]
    images = open_images("digits", 16, 1)
    watch = _Watch(student)
    Trainer(
        task,
        supervision,
        *optimizers,
        batches=lambda start: batches(images, 8, 0, start, device=device),
        steps_per_epoch=1,
        epochs=schedule.epochs,
        seed=0,
        observer=watch,
        scheduler=schedule.build(student, optimizers[0]),
    ).run()

    wanted = int(re.search(r"_(\d+)$", path.stem)[1]) / 100
    named = dict(student.named_parameters())
    *hidden, output = prunable_names(student)
    assert len(watch.zeros) == 20
    for name in hidden:
        reached = [zeros[name] for zeros in watch.zeros]
        assert reached[-1] == int(wanted * named[name].numel())
        assert reached == sorted(reached)
        if not path.stem.startswith("oneshot"):
            assert int(0.05 * named[name].numel()) - reached[0] in (0, 1)  # AGP's formula rounds 0.05 down
            assert reached[8] < reached[10] == reached[-1]
    prunes_output = re.fullmatch(r"paper_\d+", path.stem) is not None
    assert (watch.zeros[-1][output] > 0) == prunes_output
    judge_moved = any(not torch.equal(judge_before[n], t) for n, t in judge.state_dict().items())
    assert judge_moved == gan.discriminator.train
    moved = dict(teacher.named_parameters())
    assert all(not torch.equal(moved[name], named[name]) for name in hidden)
