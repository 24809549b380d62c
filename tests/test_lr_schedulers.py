"""Learning-rate schedules: rates by hand, absolute epochs, mistakes found before training."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sgc_distiller.errors import UserError
from sgc_distiller.lr_schedulers import (
    LR_SCHEDULERS,
    MultiStepMultiGammaLR,
    PolynomialLR,
    make_lr_scheduler,
    rehearse,
    step_to,
)


def optimizer(*rates: float) -> torch.optim.Optimizer:
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": rate} for rate in rates]
    return torch.optim.SGD(groups, momentum=0.9)


def rates_of(kind: type, epochs: range, *rates: float, **arguments: Any) -> list[list[float]]:
    """Return the rates of the groups in each epoch of a schedule that is stepped after each."""
    groups = optimizer(*rates)
    schedule = make_lr_scheduler(kind, groups, arguments)
    found = []
    for epoch in epochs:
        found.append([group["lr"] for group in groups.param_groups])
        step_to(schedule, epoch + 1)
    return found


class TestPolynomialLR:
    def test_by_hand(self):
        # (1 - e/4)^2 = 1, 9/16, 1/4, 1/16, 0, and 1/16 again
        found = rates_of(PolynomialLR, range(6), 16.0, 1.6, T_max=4, power=2)
        assert [group[0] for group in found] == [16, 9, 4, 1, 0, 1]
        assert [group[1] for group in found] == pytest.approx([1.6, 0.9, 0.4, 0.1, 0, 0.1])

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"T_max": 0, "power": 1}, "T_max: Expected a whole number of at least 1, got 0"),
            ({"T_max": 3.5, "power": 1}, "T_max: Expected a whole number of at least 1, got 3.5"),
            ({"T_max": 3, "power": 0}, "power: Expected a number greater than 0, got 0"),
            ({"T_max": 3, "power": "x"}, "power: Expected a number"),
        ],
    )
    def test_arguments_that_mean_nothing_are_refused(self, arguments: dict[str, Any], message: str):
        with pytest.raises(UserError, match=message):
            PolynomialLR(optimizer(1.0), **arguments)


class TestMultiStepMultiGammaLR:
    def test_by_hand(self):
        found = rates_of(MultiStepMultiGammaLR, range(7), 8.0, milestones=[2, 4, 5], gammas=[0.5, 0.25, 4.0])
        assert [group[0] for group in found] == [8, 8, 4, 4, 1, 4, 4]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (
                {"milestones": [1, 2], "gammas": [0.1]},
                "gammas: Expected one factor for each of the 2 milestones, got 1",
            ),
            (
                {"milestones": [3, 2], "gammas": [0.1, 0.1]},
                r"milestones: Expected increasing epochs, got \[3, 2\]",
            ),
            ({"milestones": [2, 2], "gammas": [0.1, 0.1]}, "milestones: Expected increasing epochs"),
            (
                {"milestones": [0.5], "gammas": [0.1]},
                "milestones: Expected a whole number of at least 0, got 0.5",
            ),
            ({"milestones": 3, "gammas": [0.1]}, "milestones: Expected a list of numbers, got 3"),
            ({"milestones": [3], "gammas": ["a"]}, "gammas: Expected a number of at least 0, got 'a'"),
        ],
    )
    def test_arguments_that_mean_nothing_are_refused(self, arguments: dict[str, Any], message: str):
        with pytest.raises(UserError, match=message):
            MultiStepMultiGammaLR(optimizer(1.0), **arguments)


class TestSteps:
    def test_epochs_are_absolute(self):
        groups = optimizer(1.0)
        schedule = make_lr_scheduler(LR_SCHEDULERS["ExponentialLR"], groups, {"gamma": 0.5})
        step_to(schedule, 5)
        assert groups.param_groups[0]["lr"] == 0.5**5

    def test_each_schedule_starts_from_the_initial_rate(self):
        groups = optimizer(1.0)
        first = make_lr_scheduler(LR_SCHEDULERS["StepLR"], groups, {"step_size": 1, "gamma": 0.1})
        second = make_lr_scheduler(LR_SCHEDULERS["ExponentialLR"], groups, {"gamma": 0.5})
        step_to(first, 1)
        step_to(second, 2)
        assert groups.param_groups[0]["lr"] == 0.25

    def test_a_plateau_is_seen_in_the_metric_of_its_mode(self):
        groups = optimizer(1.0)
        schedule = make_lr_scheduler(
            LR_SCHEDULERS["ReduceLROnPlateau"], groups, {"mode": "max", "patience": 0, "factor": 0.5}
        )
        for epoch, value in enumerate([1.0, 2.0, 2.0, 3.0, 1.0]):
            step_to(schedule, epoch + 1, {"max": torch.tensor(value), "min": 0.0})
        assert groups.param_groups[0]["lr"] == 0.25

    @pytest.mark.parametrize("metrics", [None, {"max": 1.0}])
    def test_a_plateau_needs_its_metric(self, metrics: dict[str, float] | None):
        schedule = make_lr_scheduler(LR_SCHEDULERS["ReduceLROnPlateau"], optimizer(1.0), {})
        with pytest.raises(
            UserError, match=r"Expected on_epoch_end\(..., metrics=\{'min': value\}\) for ReduceLROnPlateau"
        ):
            step_to(schedule, 1, metrics)


class TestResuming:
    def test_needs_an_optimizer_that_was_loaded(self):
        with pytest.raises(
            UserError, match=r"'initial_lr' in its groups\) to resume from epoch 3. Load the optimizer's"
        ):
            make_lr_scheduler(LR_SCHEDULERS["StepLR"], optimizer(1.0), {"step_size": 2}, last_epoch=3)

    @pytest.mark.parametrize(
        "kind", ["StepLR", "LinearLR", "OneCycleLR", "PolynomialLR", "ReduceLROnPlateau"]
    )
    def test_leaves_the_optimizer_as_it_was(self, kind: str):
        arguments: dict[str, Any] = {
            "StepLR": {"step_size": 2},
            "OneCycleLR": {"max_lr": 1.0, "total_steps": 9},
            "PolynomialLR": {"T_max": 9, "power": 2},
        }.get(kind, {})
        groups = optimizer(1.0)
        make_lr_scheduler(LR_SCHEDULERS[kind], groups, arguments)
        groups.param_groups[0].update(initial_lr=1.0, lr=0.0123, momentum=0.77)
        make_lr_scheduler(LR_SCHEDULERS[kind], groups, arguments, last_epoch=3)
        assert groups.param_groups[0]["lr"] == 0.0123
        assert groups.param_groups[0]["momentum"] == 0.77


class TestRehearsal:
    @pytest.mark.parametrize(
        ("kind", "arguments", "message"),
        [
            ("ExponentialLR", {"gamma": "a tenth"}, "gamma: Expected a number, got the text 'a tenth'"),
            ("ExponentialLR", {"gamma": None}, "Expected arguments that ExponentialLR can use, but it says"),
            (
                "ExponentialLR",
                {"gamma": -1.0},
                "a learning rate of at least 0 .* in epoch 1 it would be -1 times",
            ),
            ("StepLR", {"step_size": 0}, "step_size: Expected a whole number of at least 1, got 0"),
            ("StepLR", {"step_size": -4}, "step_size: Expected a whole number of at least 1, got -4"),
            ("CosineAnnealingLR", {"T_max": 0.5}, "T_max: Expected a whole number of at least 1, got 0.5"),
            ("CyclicLR", {"base_lr": 0.1, "max_lr": "x"}, "max_lr: Expected a number, got the text 'x'"),
            (
                "OneCycleLR",
                {"max_lr": 1.0, "total_steps": 3},
                "Expected arguments that OneCycleLR can use, but it says",
            ),
            (
                "ReduceLROnPlateau",
                {"factor": 1.5},
                "Expected arguments that ReduceLROnPlateau can use, but it says",
            ),
            (
                "PolynomialLR",
                {"T_max": 5, "power": 3},
                "in epoch 6 it would be -0.008 times the initial one. End",
            ),
            ("PolynomialLR", {"T_max": 5, "power": 0.5}, "in epoch 6 it would be"),
        ],
    )
    def test_finds_mistakes(self, kind: str, arguments: dict[str, Any], message: str):
        with pytest.raises(UserError, match=message):
            rehearse(LR_SCHEDULERS[kind], arguments, range(8))

    @pytest.mark.parametrize(
        ("kind", "arguments"),
        [
            ("ReduceLROnPlateau", {"mode": "max", "min_lr": [0.1, 0.2]}),
            ("CyclicLR", {"base_lr": [0.1, 0.2, 0.3], "max_lr": [1.0, 1.0, 1.0], "mode": "triangular2"}),
            ("CosineAnnealingLR", {"T_max": 4, "eta_min": 0.01}),
            ("MultiStepLR", {"milestones": [2, 4, 6]}),
            ("PolynomialLR", {"T_max": 8, "power": 0.5}),
        ],
    )
    def test_lets_good_ones_pass(self, kind: str, arguments: dict[str, Any]):
        rehearse(LR_SCHEDULERS[kind], arguments, range(8))

    def test_what_yaml_cannot_say_is_no_choice(self):
        assert {"StepLR", "CosineAnnealingLR", "PolynomialLR", "MultiStepMultiGammaLR"} <= set(LR_SCHEDULERS)
        assert LR_SCHEDULERS["PolynomialLR"] is PolynomialLR
        assert not {"LambdaLR", "SequentialLR", "ChainedScheduler", "LRScheduler"} & set(LR_SCHEDULERS)
