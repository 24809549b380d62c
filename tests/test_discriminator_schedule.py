"""The discriminator is pruned by a schedule of its own, whose steps are its own updates."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from tiny import Silent, TinyTask, tiny_supervision, tiny_trainer

from sgc_distiller.errors import ScheduleError
from sgc_distiller.schedule import Schedule, dict_config
from sgc_distiller.tasks.base import Phase

PLAIN = (Phase("discriminator"), Phase("generator"))
CRITIC = (Phase("discriminator", 3), Phase("generator"))
FIRST = (Phase("generator"), Phase("discriminator"))


def own(**args: Any) -> dict[str, Any]:
    """Half of the first layer is pruned in epochs 0 and 1."""
    return {
        "pruners": {"half": {"class": "SparsityLevelParameterPruner", "levels": {"0.weight": 0.5}}},
        "policies": [{"pruner": {"instance_name": "half", "args": args}, "epochs": [0, 1]}],
    }


class Forwards(Silent):
    """Notes how many weights of the discriminator's first layer are 0 in each of its forwards, by epoch."""

    def __init__(self, judge: torch.nn.Module) -> None:
        super().__init__()
        self.weight = judge[0].weight
        self.seen: list[set[int]] = [set()]
        self.between: list[int] = []
        judge.register_forward_pre_hook(lambda *_: self.seen[-1].add(self.count()))

    def count(self) -> int:
        return int((self.weight == 0).sum())

    def on_epoch_closed(self, *_: Any) -> None:
        self.between.append(self.count())
        self.seen.append(set())


@pytest.mark.parametrize("phases", [PLAIN, CRITIC, FIRST])
def test_every_forward_of_the_discriminator_sees_its_masks(phases: Any, device: torch.device):
    """Those that judge for the generator's update, too; its gradients are those of the masked weights."""
    supervision = tiny_supervision(TinyTask(phases), device)
    forwards = Forwards(supervision.discriminator)
    trainer = tiny_trainer(supervision, forwards, epochs=3)
    trainer.discriminator_scheduler = dict_config(
        supervision.discriminator, trainer.discriminator_optimizer, own(mask_on_forward_only=True)
    )
    trainer.run()
    assert forwards.seen[:3] == [{16}, {16}, {0}]
    assert forwards.between == [0, 0, 0]


def test_lasting_masks_last(device: torch.device):
    supervision = tiny_supervision(TinyTask(CRITIC), device)
    forwards = Forwards(supervision.discriminator)
    trainer = tiny_trainer(supervision, forwards, epochs=3)
    trainer.discriminator_scheduler = dict_config(
        supervision.discriminator, trainer.discriminator_optimizer, own()
    )
    trainer.run()
    assert forwards.seen[:3] == [{16}] * 3
    assert forwards.between == [16, 16, 16]


class Diary:
    """A scheduler that writes down which hooks fire, and adds a term to the loss."""

    def __init__(self) -> None:
        self.lines: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        def hook(*where: Any, **_: Any) -> None:
            self.lines.append((name, *where[:-1]))

        return hook

    def before_backward_pass(self, epoch: int, step: int, steps: int, loss: Any, *_: Any, **__: Any) -> Any:
        self.lines.append(("before_backward_pass", epoch, step, steps))
        component = type("Component", (), {"name": "extra", "value": 0 * loss.detach()})
        return type("Loss", (), {"overall_loss": loss, "loss_components": [component]})

    def masked_weights(self, epoch: int) -> Any:
        return contextlib.nullcontext()


def test_its_steps_are_its_own_updates():
    supervision = tiny_supervision(TinyTask(CRITIC), torch.device("cpu"))
    trainer = tiny_trainer(supervision, steps_per_epoch=2, epochs=1)
    trainer.discriminator_scheduler = diary = Diary()
    trainer.run()
    updates = [
        (hook, 0, step, 6)
        for step in range(6)
        for hook in (
            "on_minibatch_begin",
            "before_backward_pass",
            "before_parameter_optimization",
            "on_minibatch_end",
        )
    ]
    assert diary.lines == [("on_epoch_begin", 0), *updates, ("on_epoch_end", 0)]


def with_own(schedule: Any, **discriminator: Any) -> dict[str, Any]:
    return {"policies": [], "gan": {"discriminator": {"schedule": schedule, **discriminator}}}


def test_stands_in_the_same_file_and_counts_for_the_epochs():
    schedule = Schedule.from_dict(with_own(own()))
    assert schedule.epochs == 2
    assert schedule.discriminator is not None
    assert [policy.instance.name for policy in schedule.discriminator.policies] == ["half"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (with_own({**own(), "gan": {}}), r"gan.discriminator.schedule.gan: Expected a section of a schedule"),
        (with_own({}), "gan.discriminator.schedule: Expected a list of 'policies'"),
        (with_own(None), "gan.discriminator.schedule: Expected a mapping with sections of a schedule"),
        (
            with_own({"policies": [{"pruner": {"instance_name": "x"}, "epochs": [0]}]}),
            r"gan.discriminator.schedule.policies\[0\].pruner.instance_name: Expected an instance",
        ),
        (
            with_own(own(), train=False),
            "gan.discriminator.schedule: Expected 'train: true' beside a schedule",
        ),
    ],
)
def test_mistakes_in_it_are_refused_at_their_place(given: dict[str, Any], message: str):
    with pytest.raises(ScheduleError, match=message):
        Schedule.from_dict(given)


class Rates(Silent):
    """Notes the learning rates of both networks in each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.rates: list[tuple[float, float]] = []

    def on_epoch(self, trainer: Any, report: Any) -> dict[str, float]:
        both = (trainer.generator_optimizer, trainer.discriminator_optimizer)
        self.rates.append(tuple(optimizer.param_groups[0]["lr"] for optimizer in both))
        return super().on_epoch(trainer, report)


class Fading(TinyTask):
    """A task whose own learning rate halves in every epoch."""

    def lr_factor(self, epoch: int, epochs: int) -> float:
        return 0.5**epoch


HALVING = {
    "lr_schedulers": {"rate": {"class": "StepLR", "step_size": 1, "gamma": 0.1}},
    "policies": [{"lr_scheduler": {"instance_name": "rate"}, "epochs": [0, 1, 2]}],
}


@pytest.mark.parametrize(
    ("scheduled", "expected"),
    [
        ((), [(0.05, 0.05), (0.025, 0.025), (0.0125, 0.0125)]),
        (("generator",), [(0.05, 0.05), (0.005, 0.025), (0.0005, 0.0125)]),
        (("discriminator",), [(0.05, 0.05), (0.025, 0.005), (0.0125, 0.0005)]),
        (("generator", "discriminator"), [(0.05, 0.05), (0.005, 0.005), (0.0005, 0.0005)]),
    ],
)
def test_a_schedule_that_sets_learning_rates_is_not_overruled_by_the_task(
    scheduled: Any, expected: Any, device: torch.device
):
    supervision, observer = tiny_supervision(Fading(), device), Rates()
    trainer = tiny_trainer(supervision, observer, epochs=3)
    if "generator" in scheduled:
        trainer.scheduler = dict_config(supervision.generator, trainer.generator_optimizer, HALVING)
    if "discriminator" in scheduled:
        trainer.discriminator_scheduler = dict_config(
            supervision.discriminator, trainer.discriminator_optimizer, HALVING
        )
    trainer.run()
    assert observer.rates == [pytest.approx(pair) for pair in expected]
