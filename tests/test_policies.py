"""Policies: when a pruning policy computes masks, and what its options do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from sgc_distiller.element_pruners import AutomatedGradualPruner, SparsityLevelParameterPruner
from sgc_distiller.errors import UserError
from sgc_distiller.policies import LRPolicy
from sgc_distiller.pruning_policy import PruningPolicy
from sgc_distiller.scheduler import CompressionScheduler


class Counting:
    """A pruner written for Distiller: keeps the first ``left`` elements, counts how often it is asked."""

    name = "counting"

    def __init__(self, left: int = 2) -> None:
        self.left = left
        self.asked: list[float] = []

    def set_param_mask(self, param, param_name, zeros_mask_dict, meta):
        self.asked.append(float(param.detach().sum()))
        kept = torch.arange(param.numel(), device=param.device) < self.left
        zeros_mask_dict[param_name].mask = kept.to(param.dtype)


class Loop:
    """Plays steps on one parameter of four ones; the optimizer adds one to each element."""

    def __init__(
        self,
        device: torch.device,
        *policies: tuple[Any, dict[str, Any]],
        epochs: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = nn.ParameterDict({"w": nn.Parameter(torch.ones(4, device=device))})
        self.scheduler = CompressionScheduler(self.model)
        for pruner, args in policies:
            self.scheduler.add_policy(PruningPolicy(pruner, args), **(epochs or {"epochs": [0, 1, 2]}))
        self.seen: list[list[float]] = []

    @property
    def weight(self) -> list[float]:
        return self.model["w"].tolist()

    @property
    def mask(self) -> list[float] | None:
        mask = self.scheduler.zeros_mask_dict["w"].mask
        return None if mask is None else mask.tolist()

    def epoch(self, epoch: int, steps: int = 2) -> Loop:
        self.scheduler.on_epoch_begin(epoch)
        for step in range(steps):
            self.scheduler.on_minibatch_begin(epoch, step, steps)
            self.seen.append(self.weight)
            self.scheduler.before_parameter_optimization(epoch, step, steps, None)
            with torch.no_grad():
                self.model["w"] += 1
            self.scheduler.on_minibatch_end(epoch, step, steps)
        self.scheduler.on_epoch_end(epoch)
        return self


class TestPruningPolicy:
    def test_masks_are_computed_when_an_epoch_begins_and_applied_when_a_step_does(self, device: torch.device):
        loop = Loop(device, (Counting(), {}))
        loop.scheduler.on_epoch_begin(0)
        assert loop.mask == [1, 1, 0, 0]
        assert loop.weight == [1, 1, 1, 1]
        loop.scheduler.on_minibatch_begin(0, 0, 1)
        assert loop.weight == [1, 1, 0, 0]

    def test_weights_are_masked_again_after_each_step(self, device: torch.device):
        loop = Loop(device, (Counting(), {})).epoch(0)
        assert loop.seen == [[1, 1, 0, 0], [2, 2, 0, 0]]
        assert loop.weight == [3, 3, 0, 0]

    def test_masks_stay_when_the_policy_is_over(self, device: torch.device):
        loop = Loop(device, (Counting(), {})).epoch(0).epoch(3)
        assert loop.weight == [5, 5, 0, 0]

    def test_forward_only(self, device: torch.device):
        loop = Loop(device, (Counting(), {"mask_on_forward_only": True})).epoch(0)
        assert loop.seen == [[1, 1, 0, 0], [2, 2, 0, 0]]
        assert loop.weight == [3, 3, 1, 1]
        loop.epoch(3)  # no policy is active, nothing is masked
        assert loop.seen[2:] == [[3, 3, 1, 1], [4, 4, 2, 2]]

    def test_keep_mask_at_the_last_active_epoch(self, device: torch.device):
        args = {"mask_on_forward_only": True, "keep_mask": True}
        epochs = {"starting_epoch": 0, "ending_epoch": 4, "frequency": 2}
        loop = Loop(device, (Counting(), args), epochs=epochs).epoch(0)
        assert loop.weight == [3, 3, 1, 1]
        loop.epoch(2)  # the last one, though ending_epoch - 1 is 3
        assert loop.weight == [5, 5, 0, 0]
        assert loop.epoch(3).weight == [7, 7, 0, 0]

    def test_double_copies_train_dense_weights(self, device: torch.device):
        loop = Loop(device, (Counting(), {"mask_on_forward_only": True, "use_double_copies": True})).epoch(0)
        assert loop.seen == [[1, 1, 0, 0], [2, 2, 0, 0]]
        assert loop.weight == [3, 3, 3, 3]

    def test_double_copies_with_two_policies(self, device: torch.device):
        args = {"mask_on_forward_only": True, "use_double_copies": True, "mini_batch_pruning_frequency": 1}
        first, second = Counting(2), Counting(3)
        loop = Loop(device, (first, args), (second, args)).epoch(0)
        assert loop.seen == [[1, 1, 1, 0], [2, 2, 2, 0]]  # the later one has the last word
        assert loop.weight == [3, 3, 3, 3]
        assert first.asked == second.asked == [4, 8]  # both look at dense weights

    def test_an_epoch_begins_and_ends_with_dense_weights_though_masks_were_applied(
        self, device: torch.device
    ):
        args = {"mask_on_forward_only": True, "use_double_copies": True, "keep_mask": True}
        pruner = Counting()
        loop = Loop(device, (pruner, args))
        for epoch in range(3):
            loop.scheduler.on_epoch_begin(epoch)
            loop.scheduler.zeros_mask_dict.apply()  # to look at something
        assert pruner.asked == [4, 4, 4]
        loop.scheduler.on_epoch_end(2)  # masks are lasting now: no copy may bring back the others
        loop.scheduler.before_parameter_optimization(2, 0, 1, None)
        assert loop.weight == [1, 1, 0, 0]

    def test_masks_between_epochs(self, device: torch.device):
        pruner = Counting()
        loop = Loop(device, (pruner, {"mini_batch_pruning_frequency": 3}))
        for epoch in range(3):
            loop.epoch(epoch, steps=4)
        # at the beginning of three epochs, and in steps 6 and 9 of 0...11; 0, 3 and 4 x 0 steps begin none
        assert len(pruner.asked) == 3 + 3

    def test_discarded_masks(self, device: torch.device):
        loop = Loop(device, (Counting(), {"discard_masks_at_minibatch_end": True})).epoch(0)
        assert loop.seen == [[1, 1, 0, 0], [2, 2, 0, 0]]  # masked after the first step, then the mask is gone
        assert loop.mask is None
        assert loop.weight == [3, 3, 1, 1]

    def test_skipped_first_step(self, device: torch.device):
        loop = Loop(device, (Counting(), {"skip_first_minibatch": True})).epoch(0)
        assert loop.seen == [[1, 1, 1, 1], [2, 2, 0, 0]]

    def test_masked_gradients_end_with_the_policy(self, device: torch.device):
        args = {"mask_on_forward_only": True, "mask_gradients": True}
        epochs = {"starting_epoch": 0, "ending_epoch": 3, "frequency": 2}  # active in 0 and 2
        loop = Loop(device, (Counting(), args), epochs=epochs)
        seen = []
        for epoch in range(4):
            loop.scheduler.on_epoch_begin(epoch)
            loop.model["w"].grad = None
            loop.model["w"].sum().backward()
            seen.append(loop.model["w"].grad.tolist())
            loop.scheduler.on_epoch_end(epoch)
        assert seen == [[1, 1, 0, 0]] * 3 + [[1, 1, 1, 1]]

    def test_masked_gradients_of_another_policy_go_on(self, device: torch.device):
        args = {"mask_on_forward_only": True, "mask_gradients": True}
        loop = Loop(device, (Counting(), args))
        loop.scheduler.add_policy(PruningPolicy(Counting(), args), epochs=[0])
        loop.epoch(0)
        loop.model["w"].sum().backward()
        assert loop.model["w"].grad.tolist() == [1, 1, 0, 0]

    def test_parameters_that_do_not_learn_are_no_obstacle(self, device: torch.device):
        loop = Loop(device, (Counting(), {"mask_on_forward_only": True, "mask_gradients": True}))
        loop.model["w"].requires_grad_(False)
        loop.epoch(0)
        assert not loop.model["w"].requires_grad

    def test_levels_replace_those_of_the_pruner_for_good(self, device: torch.device):
        pruner = SparsityLevelParameterPruner("p", {"w": 0.75})
        loop = Loop(device, (pruner, {"levels": {"w": 0.25}}))
        loop.scheduler.add_policy(PruningPolicy(pruner), epochs=[3])
        assert loop.epoch(0).mask == [0, 1, 1, 1]
        assert loop.epoch(3).mask == [0, 1, 1, 1]

    def test_a_lower_target_brings_nothing_back(self, device: torch.device):
        loop = Loop(device, (SparsityLevelParameterPruner("p", {"w": 0.75}), {}))
        loop.scheduler.add_policy(PruningPolicy(SparsityLevelParameterPruner("q", {"w": 0.25})), epochs=[3])
        assert loop.epoch(0).mask == [0, 0, 0, 1]
        assert loop.epoch(3).mask == [0, 0, 0, 1]

    def test_a_step_before_the_first_epoch_began_is_refused(self, device: torch.device):
        loop = Loop(device, (Counting(), {}))
        with pytest.raises(
            UserError, match=r"Expected on_epoch_begin\(1\) before on_minibatch_begin\(1, 0\)"
        ):
            loop.scheduler.on_minibatch_begin(1, 0, 5)

    def test_names_that_fit_nothing_are_refused_when_the_first_epoch_begins(self, device: torch.device):
        loop = Loop(device)
        loop.scheduler.add_policy(PruningPolicy(AutomatedGradualPruner("p", 0, 0.5, ["v"])), ending_epoch=3)
        with pytest.raises(UserError, match="the name of a parameter of the model, got 'v'"):
            loop.scheduler.on_epoch_begin(0)

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (
                {"keep_masks": True},
                "keep_masks: Expected an option of a pruning policy .* Did you mean 'keep_mask'",
            ),
            ({"keep_mask": "yes"}, "keep_mask: Expected true or false, got 'yes'"),
            ({"keep_mask": 1}, "keep_mask: Expected true or false, got 1"),
            (
                {"mini_batch_pruning_frequency": -1},
                "mini_batch_pruning_frequency: Expected a whole number of at least 0",
            ),
            ({"mini_batch_pruning_frequency": True}, "mini_batch_pruning_frequency: Expected a whole number"),
            ({"mask_gradients": True}, "mask_gradients: Expected 'mask_on_forward_only: true' beside"),
            ({"levels": {"w": 0.5}}, "levels: Expected a pruner with levels, .* got Counting"),
            ({"levels": {"w": 2}}, r"levels\.w: Expected a number between 0 and 1, got 2"),
            ([1], r"Expected options by name, got \[1\]"),
        ],
    )
    def test_options_that_mean_nothing_are_refused(self, args: Any, message: str):
        with pytest.raises(UserError, match=message):
            PruningPolicy(Counting(), args)

    def test_an_option_that_is_off_is_no_mistake(self):
        PruningPolicy(Counting(), {"fold_batchnorm": False, "levels": None, "mask_gradients": False})
        PruningPolicy(Counting(), None)


def test_rate_of_the_next_epoch_is_set_at_the_end_of_an_epoch():
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scheduler = CompressionScheduler(nn.ParameterDict({"w": nn.Parameter(weight)}))
    policy = LRPolicy(torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5))
    scheduler.add_policy(policy, starting_epoch=2, ending_epoch=4, frequency=1)
    rates = []
    for epoch in range(5):
        scheduler.on_epoch_begin(epoch, optimizer)
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.on_epoch_end(epoch, optimizer)
    assert rates == [1, 1, 1, 0.125, 0.0625]
