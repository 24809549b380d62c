"""The scheduler: order of calls, losses, states, resumed runs, cost of a step."""

from __future__ import annotations

import copy
import io
import warnings
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode

from sgc_distiller.element_pruners import AutomatedGradualPruner, SparsityLevelParameterPruner
from sgc_distiller.errors import UserError
from sgc_distiller.masks import ParameterMasker
from sgc_distiller.policies import LossComponent, PolicyLoss, ScheduledTrainingPolicy
from sgc_distiller.pruning_policy import PruningPolicy
from sgc_distiller.schedule import dict_config
from sgc_distiller.scheduler import CompressionScheduler

STEPS = 3
EPOCHS = 8


def network(device: torch.device, seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3)).to(device)


class Run:
    """A small training run that can be stopped and started again anywhere between two steps."""

    def __init__(
        self,
        make: Callable[[nn.Module, Any], CompressionScheduler],
        device: torch.device,
        optimizer: str = "sgd",
    ) -> None:
        self.device = device
        self.model = network(device)
        if optimizer == "sgd":
            self.optimizer: Any = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        else:
            self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.05, betas=(0.5, 0.999))
        self.scheduler = make(self.model, self.optimizer)

    def begin_epoch(self, epoch: int) -> None:
        self.scheduler.on_epoch_begin(epoch, self.optimizer)

    def step(self, epoch: int, step: int) -> None:
        where = (epoch, step, STEPS)
        stream = torch.Generator().manual_seed(epoch * STEPS + step)
        inputs = torch.randn(8, 6, generator=stream).to(self.device)
        self.scheduler.on_minibatch_begin(*where, self.optimizer)
        loss = self.model(inputs).sub(inputs[:, :3]).pow(2).mean()
        loss = self.scheduler.before_backward_pass(*where, loss, self.optimizer)
        self.optimizer.zero_grad()
        loss.backward()
        self.scheduler.before_parameter_optimization(*where, self.optimizer)
        self.optimizer.step()
        self.scheduler.on_minibatch_end(*where, self.optimizer)

    def end_epoch(self, epoch: int) -> None:
        self.scheduler.on_epoch_end(
            epoch, self.optimizer, metrics={"min": 1.0 / (1 + epoch // 3), "max": 0.0}
        )

    def play(self, first: int = 0, last: int = EPOCHS) -> Run:
        for epoch in range(first, last):
            self.begin_epoch(epoch)
            for step in range(STEPS):
                self.step(epoch, step)
            self.end_epoch(epoch)
        return self

    def save(self) -> bytes:
        file = io.BytesIO()
        states = [self.model.state_dict(), self.optimizer.state_dict(), self.scheduler.state_dict()]
        torch.save(states, file)
        return file.getvalue()

    def load(self, saved: bytes) -> None:
        model, optimizer, scheduler = torch.load(io.BytesIO(saved), weights_only=True)
        self.model.load_state_dict(model)
        self.optimizer.load_state_dict(optimizer)
        self.scheduler.load_state_dict(scheduler)

    def outcome(self) -> list[Tensor]:
        weights = [param.detach().clone() for param in self.model.parameters()]
        with self.scheduler.masked_weights():
            masked = [param.detach().clone() for param in self.model.parameters()]
        rates = torch.tensor([group["lr"] for group in self.optimizer.param_groups], dtype=torch.float64)
        return [*weights, *masked, rates]


def assert_same(found: Run, expected: Run) -> None:
    for ours, theirs in zip(found.outcome(), expected.outcome(), strict=True):
        assert torch.equal(ours, theirs)


def gradual(args: dict[str, Any] | None = None, **epochs: int) -> dict[str, Any]:
    epochs = epochs or {"starting_epoch": 0, "ending_epoch": 6, "frequency": 1}
    return {
        "pruners": {
            "p": {
                "class": "AutomatedGradualPruner",
                "initial_sparsity": 0.1,
                "final_sparsity": 0.8,
                "weights": ["*.weight"],
            }
        },
        "policies": [{"pruner": {"instance_name": "p", "args": args or {}}, **epochs}],
    }


def rate(kind: str, **arguments: Any) -> dict[str, Any]:
    return {
        "lr_schedulers": {"r": {"class": kind, **arguments}},
        "policies": [
            {"lr_scheduler": {"instance_name": "r"}, "starting_epoch": 1, "ending_epoch": 7, "frequency": 1}
        ],
    }


def leveled(**args: Any) -> dict[str, Any]:
    """One pruner for two policies, the second of which changes its levels for good."""
    return {
        "pruners": {"p": {"class": "SparsityLevelParameterPruner", "levels": {"*": 0.3}}},
        "policies": [
            {"pruner": {"instance_name": "p"}, "epochs": [0, 3, 5]},
            {"pruner": {"instance_name": "p", "args": {"levels": {"0.weight": 0.6}, **args}}, "epochs": [2]},
        ],
    }


def twice() -> dict[str, Any]:
    both = gradual({"mask_on_forward_only": True, "use_double_copies": True})
    both["pruners"]["q"] = {"class": "SparsityLevelParameterPruner", "levels": {"2.weight": 0.5}}
    both["policies"].append(
        {"pruner": {"instance_name": "q", "args": {"mask_on_forward_only": True}}, "epochs": [3]}
    )
    return both


FORWARD = {"mask_on_forward_only": True}
SCHEDULES: dict[str, dict[str, Any]] = {
    "plain": gradual(),
    "every second epoch": gradual(starting_epoch=1, ending_epoch=8, frequency=2),
    "forward only": gradual(FORWARD),
    "forward only, kept": gradual(
        {**FORWARD, "keep_mask": True}, starting_epoch=0, ending_epoch=6, frequency=2
    ),
    "double copies": gradual({**FORWARD, "use_double_copies": True, "keep_mask": True}),
    "masked gradients": gradual({**FORWARD, "mask_gradients": True}),
    "masked gradients in idle epochs": gradual(
        {**FORWARD, "mask_gradients": True}, starting_epoch=0, ending_epoch=7, frequency=3
    ),
    "pruned between epochs": gradual({"mini_batch_pruning_frequency": 2}),
    "pruned between epochs from dense copies": gradual(
        {**FORWARD, "mini_batch_pruning_frequency": 2, "use_double_copies": True}
    ),
    "masks discarded": gradual({"discard_masks_at_minibatch_end": True}),
    "first step skipped": gradual({"skip_first_minibatch": True}),
    "levels of a policy": leveled(),
    "levels of a policy, forward only": leveled(mask_on_forward_only=True),
    "two policies": twice(),
    "no policies": {"policies": []},
    "StepLR": rate("StepLR", step_size=2, gamma=0.5),
    "MultiStepLR": rate("MultiStepLR", milestones=[2, 3, 5], gamma=0.3),
    "ExponentialLR": rate("ExponentialLR", gamma=0.9),
    "CosineAnnealingLR": rate("CosineAnnealingLR", T_max=5),
    "CosineAnnealingWarmRestarts": rate("CosineAnnealingWarmRestarts", T_0=2, T_mult=2),
    "LinearLR": rate("LinearLR", start_factor=0.25, total_iters=4),
    "OneCycleLR": rate("OneCycleLR", max_lr=0.2, total_steps=12),
    "PolynomialLR": rate("PolynomialLR", T_max=9, power=2),
    "MultiStepMultiGammaLR": rate("MultiStepMultiGammaLR", milestones=[2, 4], gammas=[0.5, 3.0]),
    "ReduceLROnPlateau": rate("ReduceLROnPlateau", patience=0, factor=0.5),
}


@contextmanager
def errors_for_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


class TestResuming:
    """A run that is interrupted ends bit for bit like one that is not."""

    @pytest.mark.parametrize(
        ("name", "optimizer"),
        [(name, "sgd") for name in SCHEDULES]
        + [(name, "adam") for name in ("plain", "double copies", "OneCycleLR", "ReduceLROnPlateau")],
    )
    def test_after_any_epoch(self, name: str, optimizer: str, device: torch.device):
        def make(model: nn.Module, optimizer: Any) -> CompressionScheduler:
            return dict_config(model, optimizer, SCHEDULES[name])

        with errors_for_warnings():
            whole = Run(make, device, optimizer).play()
            interrupted = Run(make, device, optimizer)
            for epoch in range(EPOCHS):
                interrupted.play(epoch, epoch + 1)
                saved = interrupted.save()
                interrupted = Run(make, device, optimizer)
                interrupted.load(saved)
        assert_same(interrupted, whole)

    @pytest.mark.parametrize("name", SCHEDULES)
    def test_in_the_middle_of_any_epoch(self, name: str, device: torch.device):
        def make(model: nn.Module, optimizer: Any) -> CompressionScheduler:
            return dict_config(model, optimizer, SCHEDULES[name])

        whole = Run(make, device).play()
        run = Run(make, device)
        for epoch in range(EPOCHS):
            run.begin_epoch(epoch)
            for step in range(STEPS):
                run.step(epoch, step)
                saved = run.save()
                run = Run(make, device)
                run.load(saved)
            run.end_epoch(epoch)
        assert_same(run, whole)

    @pytest.mark.parametrize("name", SCHEDULES)
    @pytest.mark.parametrize("at", [3, 4])
    def test_as_loops_written_for_distiller_do(self, name: str, at: int, device: torch.device):
        """States first, then the schedule with ``resumed_epoch``."""
        schedule = SCHEDULES[name]
        whole = Run(lambda model, optimizer: dict_config(model, optimizer, schedule), device).play()
        saved = (
            Run(lambda model, optimizer: dict_config(model, optimizer, schedule), device).play(0, at).save()
        )
        run = Run(lambda model, optimizer: CompressionScheduler(model), device)
        run.load(saved)
        dict_config(run.model, run.optimizer, schedule, run.scheduler, resumed_epoch=at - 1)
        assert_same(run.play(at), whole)

    def test_a_rate_resumed_on_the_epoch_of_its_decay_is_decayed_once(self, device: torch.device):
        schedule = rate("StepLR", step_size=2, gamma=0.5)
        run = Run(lambda model, optimizer: dict_config(model, optimizer, schedule), device).play(0, 4)
        assert run.optimizer.param_groups[0]["lr"] == 0.1 * 0.25  # epochs 2 and 4 are decayed
        resumed = torch.optim.SGD(run.model.parameters(), lr=0.1, momentum=0.9)
        resumed.load_state_dict(run.optimizer.state_dict())
        dict_config(run.model, resumed, schedule, resumed_epoch=3)
        assert resumed.param_groups[0]["lr"] == 0.1 * 0.25

    def test_an_argument_changed_in_the_schedule_counts_after_resuming(self, device: torch.device):
        saved = Run(
            lambda model, optimizer: dict_config(model, optimizer, rate("ExponentialLR", gamma=0.5)), device
        )
        run = Run(
            lambda model, optimizer: dict_config(model, optimizer, rate("ExponentialLR", gamma=0.1)), device
        )
        run.load(saved.play(0, 3).save())
        run.play(3, 4)
        assert run.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.1**4)

    def test_masks_alone_are_enough_to_go_on_sparse(self, device: torch.device):
        before = Run(lambda model, optimizer: dict_config(model, optimizer, gradual()), device).play(0, 6)
        run = Run(lambda model, optimizer: CompressionScheduler(model), device)
        run.model.load_state_dict(before.model.state_dict())
        run.scheduler.load_state_dict({"masks_dict": before.scheduler.state_dict()["masks_dict"]})
        run.play(6)
        weight = run.model[0].weight
        assert int((weight == 0).sum()) == int(0.8 * weight.numel())


class TestCopies:
    @pytest.mark.parametrize("name", SCHEDULES)
    def test_a_deep_copy_goes_on_alone_and_alike(self, name: str, device: torch.device):
        run = Run(lambda model, optimizer: dict_config(model, optimizer, SCHEDULES[name]), device).play(0, 3)
        run.begin_epoch(3)
        run.step(3, 0)
        copied = copy.deepcopy(run)
        before = run.outcome()
        for each in (copied, run):
            if each is run:  # nothing that the copy did is seen here
                assert all(torch.equal(ours, then) for ours, then in zip(run.outcome(), before, strict=True))
            for step in range(1, STEPS):
                each.step(3, step)
            each.end_epoch(3)
            each.play(4)
        assert_same(copied, run)

    def test_a_moving_average_is_masked_as_the_model_is(self, device: torch.device):
        run = Run(lambda model, optimizer: dict_config(model, optimizer, gradual()), device)
        average = AveragedModel(run.model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        for epoch in range(6):
            run.begin_epoch(epoch)
            for step in range(STEPS):
                run.step(epoch, step)
                average.update_parameters(run.model)
            run.end_epoch(epoch)
        zeros = run.model[0].weight == 0
        assert int(zeros.sum()) == int(0.8 * zeros.numel())
        assert average.module[0].weight[zeros].any()  # it remembers what was pruned lately
        run.scheduler.mask_copy(average)
        assert torch.equal(average.module[0].weight == 0, zeros)

    def test_a_copy_of_another_network_is_refused(self, device: torch.device):
        scheduler = CompressionScheduler(network(device))
        with pytest.raises(UserError, match="Expected a copy of the model, got one without '0.weight'"):
            scheduler.mask_copy(nn.Identity())


@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True),
        lambda parameters: torch.optim.Adam(parameters, lr=0.05, weight_decay=0.1),
        lambda parameters: torch.optim.AdamW(parameters, lr=0.05, weight_decay=0.1),
    ],
    ids=["momentum", "nesterov", "Adam", "AdamW"],
)
def test_pruned_weights_are_zero_after_every_step(make: Callable[[Any], Any], device: torch.device):
    run = Run(lambda model, optimizer: dict_config(model, optimizer, gradual()), device)
    run.optimizer = make(run.model.parameters())
    for epoch in range(EPOCHS):
        run.begin_epoch(epoch)
        target = 0.8 + (0.1 - 0.8) * (1 - min(epoch, 5) / 5) ** 3
        pruned = {index: run.scheduler.zeros_mask_dict[f"{index}.weight"].mask == 0 for index in (0, 2)}
        for gone in pruned.values():
            assert int(gone.sum()) == int(target * gone.numel())
        for step in range(STEPS):
            run.step(epoch, step)
            for index, gone in pruned.items():
                weight = run.model[index].weight
                assert not weight[gone].any()
                assert weight[~gone].all()
        run.end_epoch(epoch)


class TestLoadingStates:
    def test_takes_no_part_in_later_changes(self, device: torch.device):
        first, second = (CompressionScheduler(network(device)) for _ in range(2))
        first.zeros_mask_dict["0.bias"].mask = torch.ones(7, device=device)
        second.load_state_dict(first.state_dict())
        first.zeros_mask_dict["0.bias"].mask.zero_()
        assert second.zeros_mask_dict["0.bias"].mask.sum() == 7

    @pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module."])
    def test_names_of_wrapped_models_are_the_same(self, prefix: str, device: torch.device):
        scheduler = CompressionScheduler(network(device))
        masks = {f"{prefix}{name}": None for name in scheduler.zeros_mask_dict}
        masks[f"{prefix}0.bias"] = torch.zeros(7, device=device)
        scheduler.load_state_dict({"masks_dict": masks}, normalize_dataparallel_keys=True)
        assert scheduler.zeros_mask_dict["0.bias"].mask.sum() == 0

    def test_data_parallel_model(self, device: torch.device):
        first, second = (CompressionScheduler(nn.DataParallel(network(device))) for _ in range(2))
        first.zeros_mask_dict["module.0.bias"].mask = torch.zeros(7, device=device)
        second.load_state_dict(first.state_dict())
        assert second.zeros_mask_dict["module.0.bias"].mask.sum() == 0

    @pytest.mark.parametrize(
        ("masks", "message"),
        [
            ({"0.weight": None}, "'0.bias' is missing. Load the checkpoint of the same network"),
            (
                {"9.bias": torch.ones(1)},
                r"got one of '9.bias', which it does not have. Did you mean '2.bias'\?",
            ),
            ({"0.bias": torch.ones(2)}, r"shape \(7,\) for '0.bias', got \(2,\)"),
        ],
    )
    def test_of_another_network_is_refused(self, masks: dict[str, Any], message: str):
        scheduler = CompressionScheduler(network(torch.device("cpu")))
        scheduler.zeros_mask_dict["2.bias"].mask = torch.zeros(3)
        if "0.weight" not in masks:
            masks = {**dict.fromkeys(scheduler.zeros_mask_dict), **masks}
        with pytest.raises(UserError, match=message):
            scheduler.load_state_dict({"masks_dict": masks})
        assert scheduler.zeros_mask_dict["2.bias"].mask.sum() == 0
        assert scheduler.zeros_mask_dict["0.bias"].mask is None

    def test_without_masks_is_refused(self):
        with pytest.raises(UserError, match="Expected a scheduler's state with 'masks_dict', got one with"):
            CompressionScheduler(network(torch.device("cpu"))).load_state_dict({"epoch": 3})

    def test_of_another_schedule_is_refused(self):
        model = network(torch.device("cpu"))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        pruning, stepping = gradual(), rate("StepLR", step_size=2)
        state = dict_config(model, optimizer, pruning).state_dict()
        with pytest.raises(UserError, match="policy number 1 is a PruningPolicy, got a LRPolicy"):
            dict_config(model, optimizer, stepping).load_state_dict(state)
        later = CompressionScheduler(model)
        later.load_state_dict(state)
        with pytest.raises(
            UserError, match="policy number 1 is a PruningPolicy, got a LRPolicy. Resume with"
        ):
            dict_config(model, optimizer, stepping, later)
        both = {**pruning, **stepping, "policies": pruning["policies"] + stepping["policies"]}
        with pytest.raises(UserError, match="which has 1 policies, got one with 2"):
            dict_config(model, optimizer, both).load_state_dict(state)

    def test_policies_that_are_not_added_are_said(self, caplog: pytest.LogCaptureFixture):
        model = network(torch.device("cpu"))
        scheduler = CompressionScheduler(model)
        scheduler.load_state_dict(dict_config(model, None, gradual()).state_dict())
        scheduler.on_epoch_begin(0)
        assert "1 more policies than were added" in caplog.text

    def test_masks_can_be_handed_over(self):
        model = network(torch.device("cpu"))
        masker = ParameterMasker("0.bias")
        masker.mask = torch.zeros(7)
        scheduler = CompressionScheduler(model, {"0.bias": masker}, device=torch.device("cpu"))
        scheduler.mask_all_weights()
        assert (model[0].bias == 0).all()
        with pytest.raises(UserError, match="got one of '0.bais'. Did you mean '0.bias'"):
            CompressionScheduler(model, {"0.bais": masker})


Theirs = namedtuple("Theirs", ["overall_loss", "loss_components"])
TheirComponent = namedtuple("TheirComponent", ["name", "value"])


class Foreign:
    """A policy as users wrote them for Distiller: six callbacks, nothing of ours."""

    def __init__(self, calls: list[Any], answer: Any = None) -> None:
        self.calls = calls
        self.answer = answer

    def on_epoch_begin(self, model, zeros_mask_dict, meta, **kwargs):
        self.calls.append(("on_epoch_begin", meta["current_epoch"], kwargs))

    def on_minibatch_begin(
        self, model, epoch, minibatch_id, minibatches_per_epoch, zeros_mask_dict, meta, optimizer=None
    ):
        self.calls.append(("on_minibatch_begin", epoch, minibatch_id, minibatches_per_epoch))

    def before_backward_pass(
        self, model, epoch, minibatch_id, minibatches_per_epoch, loss, zeros_mask_dict, optimizer=None
    ):
        self.calls.append(("before_backward_pass", loss))
        return self.answer(loss) if self.answer else None

    def before_parameter_optimization(
        self, model, epoch, minibatch_id, minibatches_per_epoch, zeros_mask_dict, meta, optimizer
    ):
        self.calls.append(("before_parameter_optimization", optimizer))

    def on_minibatch_end(self, model, epoch, minibatch_id, minibatches_per_epoch, zeros_mask_dict, optimizer):
        self.calls.append(("on_minibatch_end",))

    def on_epoch_end(self, model, zeros_mask_dict, meta, **kwargs):
        self.calls.append(("on_epoch_end", meta["optimizer"], kwargs))


class TestPolicies:
    def test_one_written_for_distiller_runs_unchanged(self):
        calls: list[Any] = []
        scheduler = CompressionScheduler(network(torch.device("cpu")))
        scheduler.add_policy(Foreign(calls), epochs=[1])
        for epoch in range(3):
            scheduler.on_epoch_begin(epoch, "optimizer", note=4)
            scheduler.on_minibatch_begin(epoch, 0, 5, "optimizer")
            assert scheduler.before_backward_pass(epoch, 0, 5, 2.0) == 2.0
            scheduler.before_parameter_optimization(epoch, 0, 5, "optimizer")
            scheduler.on_minibatch_end(epoch, 0, 5, "optimizer")
            scheduler.on_epoch_end(epoch, "optimizer", metrics={"min": 1})
        assert calls == [
            ("on_epoch_begin", 1, {"note": 4}),
            ("on_minibatch_begin", 1, 0, 5),
            ("before_backward_pass", 2.0),
            ("before_parameter_optimization", "optimizer"),
            ("on_minibatch_end",),
            ("on_epoch_end", "optimizer", {"metrics": {"min": 1}}),
        ]
        scheduler.load_state_dict(scheduler.state_dict())

    def test_losses_are_chained_and_their_terms_collected(self):
        def plus(amount: float, kind: Any = list) -> Callable[[Any], Any]:
            term = TheirComponent(f"plus {amount}", amount)
            return lambda loss: Theirs(loss + amount, [term] if kind is list else term)

        scheduler = CompressionScheduler(network(torch.device("cpu")))
        for answer in (
            plus(1.0),
            None,
            plus(10.0, tuple),
            lambda loss: PolicyLoss(2 * loss, [LossComponent("twice", 0)]),
        ):
            scheduler.add_policy(Foreign([], answer), starting_epoch=0, ending_epoch=1)
        loss, terms = scheduler.before_backward_pass(0, 0, 1, 100.0, return_loss_components=True)
        assert loss == 222.0
        assert [term.name for term in terms] == ["plus 1.0", "plus 10.0", "twice"]
        assert scheduler.before_backward_pass(0, 0, 1, 100.0) == 222.0
        assert scheduler.before_backward_pass(7, 0, 1, 100.0, return_loss_components=True) == (100.0, [])

    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            (lambda loss: loss, "Expected None or a PolicyLoss from Foreign.before_backward_pass, got float"),
            (
                lambda loss: PolicyLoss(loss, [3]),
                "Expected LossComponents .* of Foreign.before_backward_pass, got int",
            ),
        ],
    )
    def test_other_answers_are_refused(self, answer: Any, message: str):
        scheduler = CompressionScheduler(network(torch.device("cpu")))
        scheduler.add_policy(Foreign([], answer))
        with pytest.raises(TypeError, match=message):
            scheduler.before_backward_pass(0, 0, 1, 1.0)

    def test_epochs_are_kept_for_each_time_a_policy_is_added(self):
        seen = []

        class Watching(ScheduledTrainingPolicy):
            def on_epoch_begin(self, model, zeros_mask_dict, meta, **kwargs):
                seen.append(
                    (meta["current_epoch"], meta["starting_epoch"], meta["ending_epoch"], meta["frequency"])
                )

        scheduler = CompressionScheduler(network(torch.device("cpu")))
        policy = Watching()
        scheduler.add_policy(policy, starting_epoch=0, ending_epoch=4, frequency=2)
        scheduler.add_policy(policy, epochs=[3, 5])
        for epoch in range(6):
            scheduler.on_epoch_begin(epoch)
        assert seen == [(0, 0, 4, 2), (2, 0, 4, 2), (3, 3, 6, None), (5, 3, 6, None)]
        assert {epoch: len(found) for epoch, found in scheduler.policies.items()} == {0: 1, 2: 1, 3: 1, 5: 1}
        assert scheduler.sched_metadata[policy]["starting_epoch"] == 3

    def test_by_default_acts_in_the_first_epoch(self):
        scheduler = CompressionScheduler(network(torch.device("cpu")))
        scheduler.add_policy(ScheduledTrainingPolicy())
        assert list(scheduler.policies) == [0]

    @pytest.mark.parametrize(
        ("epochs", "message"),
        [
            ({"epochs": []}, "epochs: Expected a list of increasing epochs"),
            ({"epochs": [3, 1]}, "epochs: Expected a list of increasing epochs"),
            ({"epochs": [1], "starting_epoch": 0}, "got both. Leave one out"),
            (
                {"starting_epoch": -1, "ending_epoch": 2},
                "starting_epoch: Expected a whole number of at least 0, got -1",
            ),
            (
                {"starting_epoch": 2, "ending_epoch": 2},
                "ending_epoch: Expected a whole number greater than .* got 2",
            ),
            ({"ending_epoch": 3, "frequency": 4}, "frequency: Expected a whole number from 1 to 3 .* got 4"),
        ],
    )
    def test_impossible_epochs_are_refused(self, epochs: dict[str, Any], message: str):
        scheduler = CompressionScheduler(network(torch.device("cpu")))
        with pytest.raises(UserError, match=message):
            scheduler.add_policy(ScheduledTrainingPolicy(), **epochs)
        assert scheduler.policies == {}

    def test_an_object_without_the_callbacks_is_refused(self):
        scheduler = CompressionScheduler(network(torch.device("cpu")))
        with pytest.raises(
            UserError, match="SparsityLevelParameterPruner has no on_epoch_begin, on_minibatch_begin"
        ):
            scheduler.add_policy(SparsityLevelParameterPruner("p", {"*": 0.5}))


class TestMasking:
    def test_evaluation_sees_masks_that_are_used_on_the_forward_pass_only(self, device: torch.device):
        run = Run(lambda model, optimizer: dict_config(model, optimizer, gradual(FORWARD)), device).play(0, 6)
        weight = run.model[0].weight
        before = weight.detach().clone()
        assert (weight != 0).all()
        with run.scheduler.masked_weights():
            assert int((weight == 0).sum()) == int(0.8 * weight.numel())
        assert torch.equal(weight, before)

    @pytest.mark.parametrize("args", [FORWARD, {}, {**FORWARD, "use_double_copies": True}])
    def test_every_forward_between_begin_and_end_of_a_step_sees_masks(
        self, args: dict[str, bool], device: torch.device
    ):
        run = Run(lambda model, optimizer: dict_config(model, optimizer, gradual(args)), device)
        weight = run.model[0].weight
        run.begin_epoch(0)
        for step in range(STEPS):
            run.scheduler.on_minibatch_begin(0, step, STEPS, run.optimizer)
            for _ in range(5):  # forwards for the discriminator's updates
                assert int((weight == 0).sum()) == int(0.1 * weight.numel())
            run.model(torch.ones(1, 6, device=device)).sum().backward()
            run.scheduler.before_parameter_optimization(0, step, STEPS, run.optimizer)
            run.optimizer.step()
            run.scheduler.on_minibatch_end(0, step, STEPS, run.optimizer)

    def test_dense_copies_do_not_survive_a_step_that_forgot_them(self, device: torch.device):
        """A loop that never calls before_parameter_optimization must not be thrown back to old weights."""
        args = {**FORWARD, "use_double_copies": True}
        run = Run(lambda model, optimizer: dict_config(model, optimizer, gradual(args)), device)
        run.begin_epoch(0)
        run.scheduler.on_minibatch_begin(0, 0, STEPS)
        with torch.no_grad():
            run.model[0].weight.fill_(2.0)  # the optimizer's step
        run.scheduler.on_minibatch_end(0, 0, STEPS)
        run.scheduler.on_minibatch_begin(0, 1, STEPS)
        assert set(run.model[0].weight.unique().tolist()) == {0.0, 2.0}
        run.scheduler.before_parameter_optimization(0, 1, STEPS, None)
        assert (run.model[0].weight == 2).all()

    def test_masking_by_hand_between_steps_loses_no_dense_weights(self, device: torch.device):
        args = {**FORWARD, "use_double_copies": True}
        run = Run(lambda model, optimizer: dict_config(model, optimizer, gradual(args)), device).play(0, 7)
        before = run.model[0].weight.detach().clone()
        run.scheduler.zeros_mask_dict.apply()
        run.scheduler.on_epoch_begin(7)
        run.scheduler.on_minibatch_begin(7, 0, STEPS)  # no policy is active any more
        assert torch.equal(run.model[0].weight, before)

    def test_masking_by_hand_during_training_loses_no_dense_weights(self, device: torch.device):
        args = {**FORWARD, "use_double_copies": True}
        run = Run(lambda model, optimizer: dict_config(model, optimizer, gradual(args)), device).play(0, 2)
        before = run.model[0].weight.detach().clone()
        run.begin_epoch(2)
        run.scheduler.on_minibatch_begin(2, 0, STEPS)
        run.scheduler.on_minibatch_begin(2, 0, STEPS)  # begun twice: nothing is copied that is masked already
        run.scheduler.before_parameter_optimization(2, 0, STEPS, None)
        assert torch.equal(run.model[0].weight, before)


class Watch(TorchDispatchMode):
    """Counts tensor operations, and those that read a value on the host."""

    READING = ("_local_scalar_dense", "is_nonzero", "item", "nonzero", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))

    @property
    def readings(self) -> list[str]:
        return [name for name in self.operations if name in self.READING]


def test_watch_notices_readings():
    with Watch() as watch:
        float(torch.ones(()))
        bool(torch.ones(()) > 0)
    assert len(watch.readings) == 2


HOT = [
    "plain",
    "forward only",
    "double copies",
    "masked gradients",
    "pruned between epochs",
    "masks discarded",
]


@pytest.mark.parametrize("name", HOT)
def test_no_callback_of_a_step_reads_a_value_on_the_host(name: str, device: torch.device):
    run = Run(lambda model, optimizer: dict_config(model, optimizer, SCHEDULES[name]), device)
    with Watch() as watch:
        for epoch in range(3):
            run.begin_epoch(epoch)
            for step in range(STEPS):
                run.scheduler.on_minibatch_begin(epoch, step, STEPS)
                run.model(torch.ones(2, 6, device=device)).sum().backward()
                run.scheduler.before_parameter_optimization(epoch, step, STEPS, run.optimizer)
                run.scheduler.on_minibatch_end(epoch, step, STEPS)
    assert watch.readings == []


def test_a_step_costs_one_multiplication(device: torch.device):
    scheduler = dict_config(network(device), None, gradual())
    scheduler.on_epoch_begin(0)
    scheduler.on_minibatch_begin(0, 0, STEPS)
    scheduler.on_minibatch_end(0, 0, STEPS)
    with Watch() as watch:
        scheduler.on_minibatch_begin(0, 1, STEPS)  # weights that nobody moved are masked still
        scheduler.before_parameter_optimization(0, 1, STEPS, None)
        scheduler.on_minibatch_end(0, 1, STEPS)
    assert watch.operations == ["_foreach_mul_"]


@pytest.mark.gpu
@pytest.mark.parametrize("name", HOT)
def test_twenty_steps_of_hooks_alone_never_wait_for_the_gpu(name: str):
    model = network(torch.device("cuda"))
    scheduler = dict_config(model, None, SCHEDULES[name])
    loss = torch.ones((), device="cuda")
    scheduler.on_epoch_begin(0)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(20):
            scheduler.on_minibatch_begin(0, step, 20)
            scheduler.before_backward_pass(0, step, 20, loss)
            scheduler.before_parameter_optimization(0, step, 20, None)
            with torch.no_grad():
                torch._foreach_add_(list(model.parameters()), 0.1)
            scheduler.on_minibatch_end(0, step, 20)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("name", HOT)
def test_no_step_waits_for_the_gpu(name: str):
    device = torch.device("cuda")
    run = Run(lambda model, optimizer: dict_config(model, optimizer, SCHEDULES[name]), device)
    inputs = torch.ones(2, 6, device=device)
    run.model(inputs).sum().backward()  # loads kernels
    run.optimizer.step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for epoch in range(3):
            run.begin_epoch(epoch)
            for step in range(STEPS):
                run.scheduler.on_minibatch_begin(epoch, step, STEPS)
                run.model(inputs).sum().backward()
                run.scheduler.before_parameter_optimization(epoch, step, STEPS, run.optimizer)
                run.scheduler.on_minibatch_end(epoch, step, STEPS)
            run.scheduler.on_epoch_end(epoch, run.optimizer)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_pruners_can_be_used_without_a_schedule(device: torch.device):
    model = network(device)
    scheduler = CompressionScheduler(model)
    pruner = AutomatedGradualPruner("p", 0.0, 0.5, weights=["*.weight"])
    scheduler.add_policy(PruningPolicy(pruner), starting_epoch=0, ending_epoch=2, frequency=1)
    for epoch in range(2):
        scheduler.on_epoch_begin(epoch)
    assert int(scheduler.zeros_mask_dict["0.weight"].mask.sum()) == 42 - 21
    assert scheduler.zeros_mask_dict["0.bias"].mask is None
