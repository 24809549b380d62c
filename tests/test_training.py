"""The loop: hooks among phases, batches, masks in every forward, the baseline's steps, not-a-number."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import Silent, TinyTask, picture_folder, tiny_batches, tiny_supervision, tiny_trainer
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sgc_distiller.data import batches, open_images
from sgc_distiller.errors import NotANumberError, UserError
from sgc_distiller.experiment_spec import DiscriminatorSpec
from sgc_distiller.policies import LossComponent, PolicyLoss
from sgc_distiller.schedule import dict_config
from sgc_distiller.seeding import generator_for
from sgc_distiller.supervision import Supervision
from sgc_distiller.tasks.base import Phase
from sgc_distiller.tasks.dcgan import DCGAN
from sgc_distiller.term_meter import TermMeter
from sgc_distiller.training import StepReport, Trainer

D, G = Phase("discriminator"), Phase("generator")
PLAIN = (D, G)
CRITIC = (Phase("discriminator", 5), G)
GENERATOR_FIRST = (G, Phase("discriminator", 2))


class Diary:
    """Scheduler, observer and watch of networks and optimisers in one: writes down what happens when."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def watch(self, trainer: Trainer) -> None:
        supervision = trainer.supervision
        supervision.generator.register_forward_pre_hook(lambda *_: self.events.append("G forward"))
        for name, optimizer in (("G", trainer.generator_optimizer), ("D", trainer.discriminator_optimizer)):
            optimizer.register_step_post_hook(lambda *_, name=name: self.events.append(f"{name} step"))

    def on_epoch_begin(self, epoch: int, optimizer: Any = None, **kwargs: Any) -> None:
        self.events.append(f"epoch_begin {epoch}")

    def on_minibatch_begin(self, epoch: int, minibatch_id: int, minibatches: int, optimizer: Any) -> None:
        self.events.append(f"begin {epoch}.{minibatch_id}/{minibatches}")

    def before_backward_pass(
        self,
        epoch: int,
        minibatch_id: int,
        minibatches: int,
        loss: Tensor,
        optimizer: Any = None,
        return_loss_components: bool = False,
    ) -> Any:
        self.events.append("before_backward")
        assert return_loss_components
        return PolicyLoss(2 * loss, [LossComponent("double", loss.detach())])

    def before_parameter_optimization(
        self, epoch: int, minibatch_id: int, minibatches: int, optimizer: Any
    ) -> None:
        self.events.append("before_step")

    def on_minibatch_end(self, epoch: int, minibatch_id: int, minibatches: int, optimizer: Any) -> None:
        self.events.append(f"end {epoch}.{minibatch_id}/{minibatches}")

    def on_epoch_end(self, epoch: int, optimizer: Any = None, **kwargs: Any) -> None:
        self.events.append(f"epoch_end {epoch} {kwargs['metrics']}")

    def on_step(self, report: StepReport) -> None:
        self.events.append(f"report {report.step}")

    def on_epoch(self, trainer: Trainer, report: StepReport) -> dict[str, float]:
        self.events.append(f"measure {trainer.epoch}")
        return {"min": 7.0}

    def on_epoch_closed(self, trainer: Trainer, report: StepReport) -> None:
        self.events.append(f"closed, next {trainer.epoch}, step {trainer.step}")


GENERATOR_UPDATE = ["before_backward", "before_step", "G step"]


@pytest.mark.parametrize(
    ("phases", "step"),
    [
        (PLAIN, ["begin", "G forward", "D step", *GENERATOR_UPDATE, "end"]),
        (CRITIC, ["begin", *["G forward", "D step"] * 5, *GENERATOR_UPDATE, "end"]),
        (
            GENERATOR_FIRST,
            ["begin", "G forward", *GENERATOR_UPDATE, "end", "D step", "G forward", "D step"],
        ),
    ],
)
def test_hooks_stand_at_their_places_among_the_phases(phases: Any, step: list[str]) -> None:
    diary = Diary()
    trainer = tiny_trainer(
        tiny_supervision(TinyTask(phases), torch.device("cpu")),
        diary,
        scheduler=diary,
        steps_per_epoch=2,
        report_every=2,
    )
    diary.watch(trainer)
    trainer.run()
    expected = []
    for epoch in range(2):
        expected.append(f"epoch_begin {epoch}")
        for minibatch in range(2):
            here = f" {epoch}.{minibatch}/2"
            expected += [event + here if event in ("begin", "end") else event for event in step]
        expected += [
            f"report {2 * epoch + 2}",
            f"measure {epoch}",
            f"epoch_end {epoch} {{'min': 7.0}}",
            f"closed, next {epoch + 1}, step {2 * epoch + 2}",
        ]
    assert diary.events == expected


def test_policies_loss_moves_the_generator_and_its_parts_are_reported() -> None:
    """A scheduler that doubles the loss doubles the first step of gradient descent."""
    moved = []
    for scheduler in (None, Diary()):
        observer = Silent()
        trainer = tiny_trainer(
            tiny_supervision(TinyTask(), torch.device("cpu")),
            observer,
            scheduler=scheduler,
            steps_per_epoch=1,
            epochs=1,
        )
        before = trainer.supervision.generator[0].weight.detach().clone()
        trainer.run()
        moved.append(trainer.supervision.generator[0].weight.detach() - before)
    torch.testing.assert_close(moved[1], 2 * moved[0], rtol=1e-4, atol=1e-6)
    terms = observer.reports[0].terms
    assert set(terms) == {"discriminator.dis", "student.gen", "double", "generator.loss"}
    assert terms["generator.loss"] == pytest.approx(2 * terms["double"])
    assert terms["double"] == pytest.approx(terms["student.gen"])


@pytest.mark.parametrize(
    ("phases", "expected"),
    [
        (PLAIN, [[("dis", 0), ("gen", 0)], [("dis", 1), ("gen", 1)]]),
        (
            CRITIC,
            [[*(("dis", n) for n in range(first, first + 5)), ("gen", first + 4)] for first in (0, 5)],
        ),
        (GENERATOR_FIRST, [[("gen", n), ("dis", n), ("dis", n + 1)] for n in (0, 2)]),
    ],
)
def test_each_phase_gets_its_batches_also_after_a_resume(phases: Any, expected: Any) -> None:
    task = TinyTask(phases)
    tiny_trainer(tiny_supervision(task, torch.device("cpu")), steps_per_epoch=1).run()
    assert task.seen == expected[0] + expected[1]
    assert len(set(task.noise)) == len(task.noise) == len({number for _, number in task.seen})
    resumed = TinyTask(phases)
    tiny_trainer(tiny_supervision(resumed, torch.device("cpu")), steps_per_epoch=1, epoch=1).run()
    assert resumed.seen == expected[1]
    assert resumed.noise == task.noise[len(task.noise) // 2 :]


def test_an_untrained_discriminator_takes_its_batches_and_stays_as_it_was() -> None:
    task = TinyTask(CRITIC)
    supervision = tiny_supervision(
        task, torch.device("cpu"), discriminator_spec=DiscriminatorSpec(train=False)
    )
    before = [p.detach().clone() for p in supervision.discriminator.parameters()]
    trainer = tiny_trainer(supervision, steps_per_epoch=1)
    trainer.run()
    assert task.seen == [("gen", 4), ("gen", 9)]
    assert all(torch.equal(a, b) for a, b in zip(before, supervision.discriminator.parameters(), strict=True))
    assert not trainer.discriminator_optimizer.state


@pytest.mark.parametrize("phases", [(D,), (D, Phase("generator", 2)), (G, D, G)])
def test_phases_without_exactly_one_generator_update_are_refused(phases: Any) -> None:
    with pytest.raises(UserError, match="'tiny': expected phases with exactly one generator update"):
        tiny_trainer(tiny_supervision(TinyTask(phases), torch.device("cpu")))


def _schedule(**args: bool) -> dict[str, Any]:
    """Half of the first layer is pruned in epochs 0 and 1, and no policy acts in epoch 2."""
    return {
        "pruners": {"half": {"class": "SparsityLevelParameterPruner", "levels": {"0.weight": 0.5}}},
        "policies": [{"pruner": {"instance_name": "half", "args": args}, "epochs": [0, 1]}],
    }


class Zeros(Silent):
    """Notes how many weights of the first layer are 0 in every forward of the generator, and in between."""

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.weight = generator[0].weight
        self.forwards: dict[int, list[int]] = {}
        self.between: list[int] = []
        self.evaluated: list[int] = []
        self.epoch = 0
        generator.register_forward_pre_hook(self._note)

    def _count(self) -> int:
        return int((self.weight == 0).sum())

    def _note(self, *_: Any) -> None:
        self.forwards.setdefault(self.epoch, []).append(self._count())

    def on_epoch(self, trainer: Trainer, report: StepReport) -> dict[str, float]:
        with torch.no_grad():
            trainer.supervision.generator(torch.ones(1, 3, device=self.weight.device))
        self.evaluated.append(self._count())
        return super().on_epoch(trainer, report)

    def on_epoch_closed(self, trainer: Trainer, report: StepReport) -> None:
        self.between.append(self._count())
        self.epoch = trainer.epoch


@pytest.mark.parametrize("phases", [PLAIN, CRITIC, GENERATOR_FIRST])
@pytest.mark.parametrize("double_copies", [False, True])
def test_every_forward_sees_masks_of_the_forward_pass(
    phases: Any, double_copies: bool, device: torch.device
) -> None:
    """Also those for the discriminator after the generator's update, and evaluation."""
    supervision = tiny_supervision(TinyTask(phases), device)
    zeros = Zeros(supervision.generator)
    trainer = tiny_trainer(supervision, zeros, epochs=3)
    schedule = _schedule(mask_on_forward_only=True, use_double_copies=double_copies)
    trainer.scheduler = dict_config(supervision.generator, trainer.generator_optimizer, schedule)
    trainer.run()
    forwards = 3 * max(1, sum(phase.repeats for phase in phases) - 1) + 1  # the phases share one
    assert {epoch: len(counts) for epoch, counts in zeros.forwards.items()} == dict.fromkeys(
        range(3), forwards
    )
    assert set(zeros.forwards[0]) == set(zeros.forwards[1]) == {12}
    assert zeros.evaluated == [12, 12, 0]
    assert zeros.between == [0, 0, 0]  # momentum moved what the masks hide; training goes on with it
    assert set(zeros.forwards[2]) == {0}  # no policy acts: Distiller's loop uses the dense weights


@pytest.mark.parametrize("args", [{}, {"mask_on_forward_only": True, "keep_mask": True}])
def test_lasting_masks_are_seen_in_epochs_without_a_policy_too(
    args: dict[str, bool], device: torch.device
) -> None:
    supervision = tiny_supervision(TinyTask(CRITIC), device)
    zeros = Zeros(supervision.generator)
    trainer = tiny_trainer(supervision, zeros, epochs=3)
    trainer.scheduler = dict_config(supervision.generator, trainer.generator_optimizer, _schedule(**args))
    trainer.run()
    assert {count for counts in zeros.forwards.values() for count in counts} == {12}
    assert zeros.evaluated == [12, 12, 12]
    assert zeros.between[1:] == [12, 12]


def test_what_the_discriminators_late_forwards_mask_does_not_change_the_training() -> None:
    """Generator first: the weights after a step are the same whether D was trained after it or not."""
    after = []
    for phases in ((G,), (G, Phase("discriminator", 3))):
        supervision = tiny_supervision(TinyTask(phases), torch.device("cpu"))
        trainer = tiny_trainer(supervision, steps_per_epoch=1, epochs=1)
        trainer.scheduler = dict_config(
            supervision.generator, trainer.generator_optimizer, _schedule(mask_on_forward_only=True)
        )
        trainer.run()
        after.append([p.detach().clone() for p in supervision.generator.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*after, strict=True))


def _baseline(
    generator: nn.Module, discriminator: nn.Module, real_batches: Iterator[dict[str, Tensor]], steps: int
) -> None:
    """The loop of PyTorch's DCGAN example, written down anew."""
    criterion = nn.BCELoss()
    optimizers = [
        torch.optim.Adam(network.parameters(), lr=0.0002, betas=(0.5, 0.999))
        for network in (discriminator, generator)
    ]
    for step in range(steps):
        real = next(real_batches)["real"]
        ones, zeros = torch.ones(len(real)), torch.zeros(len(real))
        discriminator.zero_grad()
        criterion(discriminator(real), ones).backward()
        noise = torch.randn(len(real), 100, 1, 1, generator=generator_for(11, "batch", step, 0))
        fake = generator(noise)
        criterion(discriminator(fake.detach()), zeros).backward()
        optimizers[0].step()
        generator.zero_grad()
        criterion(discriminator(fake), ones).backward()
        optimizers[1].step()


def test_plain_training_is_the_baselines_loop(tmp_path: Path) -> None:
    task = DCGAN(16, width=4)
    images = open_images(picture_folder(tmp_path / "pictures", 36), 16, 1)

    def networks() -> list[nn.Module]:
        torch.manual_seed(5)
        return [task.build("generator"), task.build("discriminator")]

    ours, theirs = networks(), networks()
    Trainer(
        task,
        Supervision(task, *ours),
        task.optimizer("generator", ours[0]),
        task.optimizer("discriminator", ours[1]),
        batches=lambda start: batches(images, 16, 11, start),
        steps_per_epoch=3,  # 36 pictures: the third batch has only four
        epochs=1,
        seed=11,
        observer=Silent(),
    ).run()
    _baseline(*theirs, batches(images, 16, 11), steps=3)
    for own, expected in zip(ours, theirs, strict=True):
        for name, value in expected.state_dict().items():
            torch.testing.assert_close(own.state_dict()[name], value, rtol=1e-6, atol=1e-7, msg=name)


def test_objective_none_without_a_loss_policy_is_refused() -> None:
    trainer = tiny_trainer(tiny_supervision(TinyTask(), torch.device("cpu"), objective="none"))
    with pytest.raises(UserError, match="nothing trains the generator: with `objective: none` a policy"):
        trainer.run()


@pytest.mark.parametrize("spoil", [None, ("gen", 3)])
def test_what_reads_the_batches_is_closed_at_the_end_and_at_an_error(spoil: Any) -> None:
    """Worker processes end with it, and not when the last traceback is forgotten."""
    log = []

    def noted(start: int) -> Iterator[dict[str, Any]]:
        try:
            yield from tiny_batches(torch.device("cpu"), start)
        finally:
            log.append("closed")

    trainer = tiny_trainer(tiny_supervision(TinyTask(PLAIN, spoil), torch.device("cpu")), batches=noted)
    if spoil:
        with pytest.raises(NotANumberError, match=r"student\.gen") as caught:
            trainer.run()
        assert caught.tb is not None, "the traceback is still there"
    else:
        trainer.run()
    assert log == ["closed"]


class TestNotANumber:
    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (("gen", 3), r"student\.gen is not a finite number since step 4, in the generator phase"),
            (("dis", 3), r"discriminator\.dis is not a finite number since step 4, in the discriminator"),
        ],
    )
    @pytest.mark.parametrize("phases", [PLAIN, (G, D)])
    def test_error_names_step_phase_and_term_at_the_next_report(
        self, spoil: tuple[str, int], message: str, phases: Any
    ) -> None:
        observer = Silent()
        task = TinyTask(phases, spoil)
        trainer = tiny_trainer(
            tiny_supervision(task, torch.device("cpu")), observer, steps_per_epoch=12, report_every=5
        )
        with pytest.raises(NotANumberError, match=message) as error:
            trainer.run()
        assert "(steps 1 to 5 were looked at; not finite: discriminator.dis, generator.loss" in str(
            error.value
        )
        assert max(number for _, number in task.seen) == 4  # five steps, and not one more
        assert observer.reports == []

    def test_values_are_read_at_reports_and_at_the_end_of_an_epoch_only(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        task = TinyTask()
        reads = []
        read = TermMeter.read
        monkeypatch.setattr(
            TermMeter, "read", lambda self: (reads.append(task.seen[-1][1] + 1), read(self))[1]
        )
        observer = Silent()
        supervision = tiny_supervision(task, torch.device("cpu"))
        tiny_trainer(supervision, observer, steps_per_epoch=8, report_every=3).run()
        assert reads == [3, 6, 8, 11, 14, 16]
        assert [report.step for report in observer.reports] == reads
        assert [report.minibatch for report in observer.reports] == [3, 6, 8] * 2
        assert [report.epoch for report in observer.reports] == [0] * 3 + [1] * 3

    def test_a_bad_last_step_of_an_epoch_is_seen_before_anything_is_saved(self) -> None:
        class Saved(Silent):
            def on_epoch(self, trainer: Trainer, report: StepReport) -> dict[str, float]:
                raise AssertionError("the epoch must not be measured or saved")

        trainer = tiny_trainer(
            tiny_supervision(TinyTask(spoil=("gen", 2)), torch.device("cpu")), Saved(), report_every=50
        )
        with pytest.raises(NotANumberError, match="since step 3"):
            trainer.run()


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["a", "b", "discriminator.c"]), st.floats(-1e3, 1e3, width=32), min_size=1
        ),
        min_size=1,
        max_size=12,
    )
)
def test_meter_is_the_last_value_and_the_mean_of_each_name(rows: list[dict[str, float]]) -> None:
    meter = TermMeter()
    for step, row in enumerate(rows, 1):
        meter.add({name: torch.tensor(value, requires_grad=True) for name, value in row.items()}, step)
    last, mean = meter.read()
    for name in {name for row in rows for name in row}:
        values = np.array([row[name] for row in rows if name in row], dtype=np.float64)
        assert last[name] == values[-1]
        assert mean[name] == pytest.approx(values.mean(), rel=1e-12, abs=1e-12)
    assert set(last) == set(mean) == {name for row in rows for name in row}
    meter.reset()
    assert meter.read() == ({}, {})


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_meter_remembers_the_first_bad_step_of_each_name(bad: float) -> None:
    meter = TermMeter()
    for step in range(1, 8):
        meter.add({"a": torch.tensor(bad if step in (4, 6) else 1.0), "b": torch.tensor(2.0)}, step)
        meter.add({"c": torch.tensor(bad if step >= 5 else 1.0)}, step)
    with pytest.raises(NotANumberError, match=r"a is not a finite number since step 4.*steps 1 to 7.*a, c\)"):
        meter.read()


class Reads(TorchDispatchMode):
    """Lists operations that read a tensor's value on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__.partition(".")[0] in (
            "_local_scalar_dense",
            "item",
            "is_nonzero",
            "equal",
            "nonzero",
        ):
            self.found.append(func.__name__)
        return func(*args, **(kwargs or {}))


def _supervised(device: torch.device, phases: Any) -> Trainer:
    """Return a trainer with masks, a moving average of the denominators and a learning rate that changes."""
    supervision = tiny_supervision(TinyTask(phases), device)
    trainer = tiny_trainer(supervision, epochs=4, report_every=1000)
    schedule = _schedule(mask_on_forward_only=True)
    schedule["extensions"] = {"self": {"class": "SelfSupervisedPolicy", "normalizer": "ema"}}
    schedule["lr_schedulers"] = {"rate": {"class": "StepLR", "step_size": 1}}
    whole = {"starting_epoch": 0, "ending_epoch": 4, "frequency": 1}
    schedule["policies"] += [
        {"extension": {"instance_name": "self"}, **whole},
        {"lr_scheduler": {"instance_name": "rate"}, **whole},
    ]
    trainer.scheduler = dict_config(supervision.generator, trainer.generator_optimizer, schedule)
    trainer.scheduler.on_epoch_begin(0, trainer.generator_optimizer)
    return trainer


@pytest.mark.parametrize("phases", [PLAIN, CRITIC, GENERATOR_FIRST])
def test_a_step_reads_no_value_on_the_host(phases: Any, device: torch.device) -> None:
    trainer = _supervised(device, phases)
    raw = tiny_batches(device)
    with Reads() as reads:
        for minibatch in range(3):
            trainer._step(raw, minibatch)
    assert reads.found == []
    with Reads() as reads:
        float(torch.ones((), device=device))  # the watch sees what it is for
    assert len(reads.found) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("task", ["tiny", "dcgan"])
def test_a_step_never_waits_for_the_gpu(task: str) -> None:
    device = torch.device("cuda")
    if task == "tiny":
        trainer = _supervised(device, CRITIC)
        ready = [next(tiny_batches(device, number)) for number in range(40)]
        raw: Iterator[dict[str, Tensor]] = iter(ready)
    else:
        dcgan = DCGAN(16, width=4)
        supervision = tiny_supervision(dcgan, device)
        images = open_images("digits", 16, 1, fraction=0.1)
        trainer = tiny_trainer(supervision)
        trainer.scheduler = dict_config(
            supervision.generator,
            trainer.generator_optimizer,
            {
                "pruners": {"p": {"class": "SparsityLevelParameterPruner", "levels": {"main.*.weight": 0.5}}},
                "extensions": {"s": {"class": "SelfSupervisedPolicy", "features": 1.0, "distance": "sample"}},
                "policies": [
                    {"pruner": {"instance_name": "p"}, "epochs": [0]},
                    {"extension": {"instance_name": "s"}, "epochs": [0]},
                ],
            },
        )
        trainer.scheduler.on_epoch_begin(0, trainer.generator_optimizer)
        raw = batches(images, 16, 0, device=device)
    trainer._step(raw, 0)  # optimisers allocate their state in the first step
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for minibatch in range(1, 4):
            trainer._step(raw, minibatch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    last, _ = trainer.meter.read()
    assert all(np.isfinite(value) for value in last.values())
