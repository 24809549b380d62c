"""Pruners: how much goes in which epoch, and which parameters they mean."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sgc_distiller.element_pruners import AutomatedGradualPruner, SparsityLevelParameterPruner
from sgc_distiller.errors import UserError
from sgc_distiller.masks import MaskSet
from sgc_distiller.names import find_names


class Generator(nn.Module):
    """A little of everything that a generator holds."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4))
        self.up = nn.Sequential(nn.ConvTranspose2d(4, 2, 3), nn.InstanceNorm2d(2, affine=True))
        self.label = nn.Embedding(5, 4)
        self.out = nn.Linear(4, 3)


def meta(epoch: int, start: int = 0, end: int = 10, frequency: int | None = 1) -> dict[str, Any]:
    return {"starting_epoch": start, "ending_epoch": end, "frequency": frequency, "current_epoch": epoch}


class TestAutomatedGradualPruner:
    @pytest.mark.parametrize(
        ("epoch", "expected"), [(1, 0.1), (3, 0.47578125), (5, 0.66875), (7, 0.73984375), (9, 0.75)]
    )
    def test_target_by_hand(self, epoch: int, expected: float):
        # active in 1, 3, 5, 7, 9; 0.75 - 0.65 * (1 - share)^3 with shares 0, 1/4, 1/2, 3/4, 1
        pruner = AutomatedGradualPruner("p", 0.1, 0.75, ["w"])
        assert pruner.target("w", meta(epoch, 1, 11, 2)) == pytest.approx(expected, abs=1e-15)

    @settings(deadline=None)
    @given(
        initial=st.floats(0, 0.9),
        gain=st.floats(0.01, 1),
        start=st.integers(0, 5),
        frequency=st.integers(1, 4),
        active=st.integers(2, 12),
        rest=st.integers(0, 3),
    )
    def test_rises_from_the_first_to_exactly_the_final_sparsity(
        self, initial: float, gain: float, start: int, frequency: int, active: int, rest: int
    ):
        final = min(1.0, initial + gain)
        end = start + (active - 1) * frequency + 1 + min(rest, frequency - 1)
        pruner = AutomatedGradualPruner("p", initial, final, ["w"])
        targets = [
            pruner.target("w", meta(epoch, start, end, frequency)) for epoch in range(start, end, frequency)
        ]
        assert len(targets) == active
        assert targets[0] == pytest.approx(initial, abs=1e-12)
        assert targets[-1] == final
        assert targets == sorted(targets)

    def test_other_parameters_are_left_alone(self, device: torch.device):
        model = Generator().to(device)
        masks = MaskSet(model)
        pruner = AutomatedGradualPruner("p", 0.0, 0.5, ["up.*"])
        pruner.bind(model)
        for name, param in model.named_parameters():
            pruner.set_param_mask(param, name, masks, meta(9))
        assert [name for name, masker in masks.items() if masker.mask is not None] == ["up.0.weight"]
        assert int(masks["up.0.weight"].mask.sum()) == 36

    def test_nothing_is_pruned_where_the_share_is_below_one_element(self, device: torch.device):
        model = nn.Linear(3, 3).to(device)
        masks = MaskSet(model)
        pruner = AutomatedGradualPruner("p", 0.0, 0.1, ["weight"])
        for epoch in (0, 9):  # int(0 * 9) and int(0.1 * 9)
            pruner.set_param_mask(model.weight, "weight", masks, meta(epoch))
        assert masks["weight"].mask is None

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (
                (0.5, 0.5, ["w"]),
                r"final_sparsity: Expected a sparsity greater than 'initial_sparsity' \(0.5\), got 0.5",
            ),
            ((0.5, 0.1, ["w"]), "final_sparsity: Expected a sparsity greater"),
            ((-0.1, 0.1, ["w"]), "initial_sparsity: Expected a number between 0 and 1, got -0.1"),
            ((0.1, 75, ["w"]), "final_sparsity: Expected a number between 0 and 1, got 75"),
            ((0.1, "0.5", ["w"]), "final_sparsity: Expected a number between 0 and 1, got '0.5'"),
            ((0.1, True, ["w"]), "final_sparsity: Expected a number between 0 and 1, got True"),
            ((0.1, float("nan"), ["w"]), "final_sparsity: Expected a number between 0 and 1, got nan"),
            ((0.1, 0.5, "w"), r"weights: Expected a list .* got the text 'w'. Write \[w\]"),
            ((0.1, 0.5, []), "weights: Expected a list .* got an empty list"),
            ((0.1, 0.5, None), "weights: Expected a list .* got None"),
            ((0.1, 0.5, ["w", 3]), r"weights\.\[1\]: Expected a name or a pattern, got 3"),
        ],
    )
    def test_arguments_that_mean_nothing_are_refused(self, arguments: tuple[Any, ...], message: str):
        with pytest.raises(UserError, match=message):
            AutomatedGradualPruner("p", *arguments)

    @pytest.mark.parametrize(
        ("epochs", "message"),
        [
            (meta(0, 0, 3, None), "epochs: Expected 'starting_epoch', .* got a list of epochs"),
            (
                meta(0, 0, 3, 3),
                "ending_epoch: Expected at least two active epochs .* got only epoch 0: epochs 0 to 2",
            ),
            (meta(4, 4, 5, 1), "ending_epoch: Expected at least two active epochs .* got only epoch 4"),
        ],
    )
    def test_epochs_with_which_it_cannot_rise_are_refused(self, epochs: dict[str, Any], message: str):
        pruner = AutomatedGradualPruner("p", 0.1, 0.5, ["w"])
        with pytest.raises(UserError, match=message):
            pruner.check_epochs(epochs)
        with pytest.raises(UserError, match=message):
            pruner.target("w", epochs)


class TestSparsityLevelParameterPruner:
    def levels(self, asked: dict[str, float]) -> dict[str, float]:
        model = Generator()
        pruner = SparsityLevelParameterPruner("p", asked)
        pruner.bind(model)
        return {
            name: pruner.target(name, {}) for name, _ in model.named_parameters() if pruner.target(name, {})
        }

    def test_a_star_means_every_other_parameter(self):
        found = self.levels({"*": 0.5, "out.weight": 0.75, "up.1.bias": 0.0})
        assert found.pop("out.weight") == 0.75
        assert set(found.values()) == {0.5}
        assert set(found) == {
            "down.0.weight",
            "down.0.bias",
            "down.1.weight",
            "down.1.bias",
            "up.0.weight",
            "up.0.bias",
            "up.1.weight",
            "label.weight",
            "out.bias",
        }

    def test_patterns_mean_weights_of_convolutions_and_linear_layers(self):
        assert self.levels({"*.*": 0.5, "up.*": 0.5}) == {
            "down.0.weight": 0.5,
            "up.0.weight": 0.5,
            "out.weight": 0.5,
        }

    def test_a_name_in_full_wins_over_patterns(self):
        assert self.levels({"out.weight": 0.25, "o*": 0.5, "up.?.weight": 0.1}) == {
            "out.weight": 0.25,
            "up.0.weight": 0.1,
        }

    def test_two_levels_for_one_parameter_are_refused(self):
        with pytest.raises(
            UserError, match=r"levels\.\*.weight: Expected one value for 'up.0.weight', got 0.2 and, from"
        ):
            self.levels({"up.*": 0.1, "*.weight": 0.2})

    def test_exactly_the_share_goes_rounded_down(self, device: torch.device):
        weight = nn.Parameter(torch.randn(100, device=device))
        model = nn.ParameterDict({"w": weight})
        masks = MaskSet(model)
        SparsityLevelParameterPruner("p", {"w": 0.29}).set_param_mask(weight, "w", masks, {})
        assert int((masks["w"].mask == 0).sum()) == 28  # 0.29 * 100 is 28.999999999999996

    @pytest.mark.parametrize(("level", "left"), [(1.0, 0), (0.0, None), (0.05, None)])
    def test_extremes(self, level: float, left: int | None, device: torch.device):
        weight = nn.Parameter(torch.ones(10, device=device))
        masks = MaskSet(nn.ParameterDict({"w": weight}))
        SparsityLevelParameterPruner("p", {"w": level}).set_param_mask(weight, "w", masks, {})
        mask = masks["w"].mask
        assert (None if mask is None else int(mask.sum())) == left

    @pytest.mark.parametrize(
        ("levels", "message"),
        [
            ({}, "levels: Expected at least one entry by the name of a weight, .* got {}"),
            ([0.5], r"levels: Expected at least one entry by the name of a weight, .* got \[0.5\]"),
            ({"w": 1.5}, r"levels\.w: Expected a number between 0 and 1, got 1.5"),
            ({"w": -0.5}, r"levels\.w: Expected a number between 0 and 1, got -0.5"),
            ({"w": None}, r"levels\.w: Expected a number between 0 and 1, got None"),
        ],
    )
    def test_levels_that_mean_nothing_are_refused(self, levels: Any, message: str):
        with pytest.raises(UserError, match=message):
            SparsityLevelParameterPruner("p", levels)

    def test_the_callers_levels_are_not_changed_nor_followed(self):
        levels = {"out.weight": 0.5}
        pruner = SparsityLevelParameterPruner("p", levels)
        levels["out.weight"] = 0.9
        assert pruner.target("out.weight", {}) == 0.5
        pruner.bind(Generator())
        assert levels == {"out.weight": 0.9}


class TestNames:
    def test_full_names_mean_any_parameter(self):
        assert find_names(Generator(), "down.1.bias") == ["down.1.bias"]
        assert find_names(Generator(), "label.weight") == ["label.weight"]

    @pytest.mark.parametrize("asked", ["module.up.0.weight", "_orig_mod.up.0.weight", "up.module.0.weight"])
    def test_what_wraps_a_model_is_ignored_in_what_is_asked(self, asked: str):
        assert find_names(Generator(), asked) == ["up.0.weight"]

    @pytest.mark.parametrize("asked", ["up.0.weight", "module.up.0.weight", "up.*", "module.up.*"])
    def test_what_wraps_a_model_is_ignored_in_the_model(self, asked: str):
        model = nn.DataParallel(Generator())
        assert find_names(model, asked) == ["module.up.0.weight"]

    def test_a_part_of_that_name_is_no_wrapper_where_it_is_asked_for(self):
        model = nn.Linear(2, 2)
        model.module = nn.Linear(2, 2)
        assert find_names(model, "module.weight") == ["module.weight"]
        assert find_names(model, "weight") == ["weight"]

    @pytest.mark.parametrize(
        ("asked", "message"),
        [
            (
                "up.0.wieght",
                "the name of a parameter of the model, got 'up.0.wieght'. Did you mean 'up.0.weight'",
            ),
            (
                "upp.*.weight",
                r"a pattern that matches a weight of .* 'upp.\*.weight'. Did you mean 'up.\*.weight'\?",
            ),
            ("*.bias", "The model has down.0.weight, up.0.weight, out.weight"),
            ("*.1.*", "The model has down.0.weight, up.0.weight, out.weight"),
            ("label.*", "a pattern that matches a weight of the model, got 'label"),
        ],
    )
    def test_no_match_shows_the_nearest_names(self, asked: str, message: str):
        with pytest.raises(UserError, match=message):
            find_names(Generator(), asked)
