"""Pruners of single elements by thresholds and by N of M; levels and gradual pruning are in test_pruners."""
# ruff: noqa: E501  (messages stand on one line)

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from sgc_distiller.element_pruners import (
    AutomatedGradualPruner,
    BaiduRNNPruner,
    MagnitudeParameterPruner,
    NMPruner,
    SensitivityPruner,
    SparsityLevelParameterPruner,
    SplicingPruner,
)
from sgc_distiller.errors import UserError
from sgc_distiller.masks import MaskSet
from sgc_distiller.pruners import Pruner


class Network(nn.Module):
    """One layer of each kind, whose inputs and outputs differ in number."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 6, 3)
        self.up = nn.ConvTranspose2d(4, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.fc = nn.Linear(12, 5)
        self.image = nn.Conv2d(3, 4, 3)
        self.grouped = nn.ConvTranspose2d(4, 4, 3, groups=2)


def meta(epoch: int = 0, start: int = 0, end: int = 10, frequency: int | None = 1) -> dict[str, Any]:
    return {"starting_epoch": start, "ending_epoch": end, "frequency": frequency, "current_epoch": epoch}


def masks_of(pruner: Pruner, model: nn.Module, epochs: dict[str, Any] | None = None) -> dict[str, np.ndarray]:
    """Return the masks that a pruner sets on a dense model, by name."""
    masks = MaskSet(model)
    pruner.bind(model)
    pruner.set_masks(dict(model.named_parameters()), masks, epochs or meta())
    return {
        name: masker.mask.float().cpu().numpy() for name, masker in masks.items() if masker.mask is not None
    }


def numbers(model: nn.Module, name: str) -> np.ndarray:
    return model.get_parameter(name).detach().cpu().double().numpy()


class TestThresholds:
    def test_magnitude_is_strict_and_hits_every_parameter(self, device: torch.device):
        model = Network().to(device)
        with torch.no_grad():
            model.fc.weight[0, :3] = torch.tensor([0.1, -0.1, 0.100001])
        masks = masks_of(MagnitudeParameterPruner("p", {"*": -1, "fc.weight": 0.1, "c*": 0.05}), model)
        assert set(masks) == {name for name, _ in model.named_parameters()}
        assert masks["fc.weight"][0, :3].tolist() == [0, 0, 1]  # 0.1 is no float32, and is compared as one
        np.testing.assert_array_equal(
            masks["fc.weight"], np.abs(numbers(model, "fc.weight")) > np.float32(0.1)
        )
        np.testing.assert_array_equal(
            masks["conv.weight"], np.abs(numbers(model, "conv.weight")) > np.float32(0.05)
        )
        assert all(masks[name].all() for name in masks if name not in ("fc.weight", "conv.weight"))

    def test_sensitivity_is_a_factor_of_the_first_spread(self, device: torch.device):
        model = Network().to(device)
        pruner = SensitivityPruner("p", {"fc.weight": 0.7})
        limit = 0.7 * numbers(model, "fc.weight").std(ddof=1)
        masks = MaskSet(model)
        pruner.bind(model)
        weights = dict(model.named_parameters())
        pruner.set_masks(weights, masks, meta(0))
        first = np.abs(numbers(model, "fc.weight")) > limit
        np.testing.assert_array_equal(masks["fc.weight"].mask.cpu().numpy(), first)
        assert [name for name in masks if masks[name].mask is not None] == ["fc.weight"]
        masks.mask_weights()  # the spread of what is left is smaller; it does not count
        pruner.set_masks(weights, masks, meta(1))
        np.testing.assert_array_equal(masks["fc.weight"].mask.cpu().numpy(), first)

    def test_two_sensitivity_pruners_share_the_first_spread(self):
        model = nn.Linear(50, 4)
        masks = MaskSet(model)
        limit = model.weight.detach().std().item()
        for factor in (0.5, 1.0):
            pruner = SensitivityPruner("p", {"weight": factor})
            pruner.bind(model)
            pruner.set_masks(dict(model.named_parameters()), masks, meta())
            assert (
                masks["weight"].mask.tolist()
                == (model.weight.detach().abs() > factor * limit).float().tolist()
            )
            masks.mask_weights()

    def test_one_element_has_no_spread_and_goes(self):
        assert masks_of(SensitivityPruner("p", {"*": 0.0}), nn.Linear(1, 1))["weight"].tolist() == [[0]]

    def test_splicing_by_hand(self, device: torch.device):
        # magnitudes 1 to 5: mean 3, unbiased deviation sqrt(2.5) = 1.5811; with s = 1 the middle is 4.5811
        model = nn.ParameterDict(
            {"w": nn.Parameter(torch.tensor([1.0, -2.0, 3.0, -4.0, 5.0], device=device))}
        )
        masks = MaskSet(model)
        pruner = SplicingPruner("p", {"w": 1}, 0.5, 0.8)  # below 2.2906 go, from 3.6649 on come back
        pruner.bind(model)

        def mask() -> list[float]:
            pruner.set_masks(dict(model.items()), masks, meta())
            return masks["w"].mask.tolist()

        assert mask() == [0, 0, 1, 1, 1]
        with torch.no_grad():
            model["w"].copy_(torch.tensor([3.0, -3.7, 2.0, -4.0, 3.0]))
        assert mask() == [0, 1, 0, 1, 1]  # between the limits all stay as they were; the limits do not move

    def test_splicing_grows_with_the_epochs(self):
        model = nn.ParameterDict({"w": nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))})
        for epoch, left in ((4, [0, 0, 0, 1, 1]), (6, [0, 0, 0, 0, 1])):
            # sensitivities 1 and 1 + 2 * 0.5: middles 4.5811 and 6.1623, times 0.7: 3.2068 and 4.3136
            pruner = SplicingPruner("p", {"w": 1}, 0.7, 0.7, sensitivity_multiplier=0.5)
            assert masks_of(pruner, model, meta(epoch, start=4))["w"].tolist() == left

    @pytest.mark.parametrize(
        ("epoch", "expected"),
        [
            # q 0.8, start 2, end 12, ramp at 2 + 3 = 5, frequency 2: slope 2 * 0.8 * 2 / (6 + 3 * 7) = 3.2 / 27
            (2, 3.2 / 27 * 1 / 2),
            (4, 3.2 / 27 * 3 / 2),
            (6, (3.2 / 27 * 4 + 1.5 * 3.2 / 27 * 2) / 2),  # 1.5 times as steep
            (10, (3.2 / 27 * 4 + 1.5 * 3.2 / 27 * 6) / 2),
        ],
    )
    def test_baidus_threshold_by_hand(self, epoch: int, expected: float):
        pruner = BaiduRNNPruner("p", 0.8, 3, 1.5, ["weight"])
        epochs = meta(epoch, 2, 12, 2)
        assert pruner.threshold(epochs) == pytest.approx(expected, rel=1e-12)
        model = nn.Linear(40, 3)
        masks = masks_of(pruner, model, epochs)
        assert list(masks) == ["weight"]
        np.testing.assert_array_equal(masks["weight"], np.abs(numbers(model, "weight")) > expected)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_masks_have_the_weights_type(self, dtype: torch.dtype):
        model = nn.Linear(16, 16).to(dtype)
        pruners: list[Pruner] = [
            MagnitudeParameterPruner("p", {"*": 0.1}),
            SensitivityPruner("p", {"*": 0.5}),
            SplicingPruner("p", {"*": 0.5}, 0.5, 1.0),
            BaiduRNNPruner("p", 0.3, 1, 1, ["*"]),
            NMPruner("p", 2, 4, ["*"]),
            AutomatedGradualPruner("p", 0.3, 0.5, ["*"]),
            SparsityLevelParameterPruner("p", {"*": 0.5}),
        ]
        for pruner in pruners:
            masks = MaskSet(model)
            pruner.bind(model)
            pruner.set_masks(dict(model.named_parameters()), masks, meta())
            mask = masks["weight"].mask
            assert (mask.dtype, mask.shape) == (dtype, (16, 16))
            assert set(mask.flatten().tolist()) == {0, 1}


class TestShares:
    def test_gradual_pruning_is_what_torch_prunes(self):
        model, other = nn.Linear(30, 7), nn.Linear(30, 7)
        other.load_state_dict(model.state_dict())
        prune.l1_unstructured(other, "weight", amount=int(0.4 * 210))
        masks = masks_of(AutomatedGradualPruner("p", 0.1, 0.4, ["weight"]), model, meta(9))
        np.testing.assert_array_equal(masks["weight"], other.weight_mask.numpy())

    def test_a_mask_of_another_pruner_counts(self):
        model = nn.ParameterDict({"w": nn.Parameter(torch.tensor([9.0, 8.0, 1.0, 2.0, 3.0, 4.0]))})
        masks = MaskSet(model)
        masks["w"].mask = torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0, 1.0])
        masks.mask_weights()
        pruner = SparsityLevelParameterPruner("p", {"w": 0.5})
        pruner.bind(model)
        pruner.set_masks(dict(model.items()), masks, meta())
        assert masks["w"].mask.tolist() == [0, 0, 0, 1, 1, 1]

    def test_one_pruner_of_two_policies_has_the_epochs_of_each(self):
        model = nn.Linear(10, 10)
        pruner = AutomatedGradualPruner("p", 0.0, 0.8, ["weight"])
        asked = [
            masks_of(pruner, model, meta(4, start, end))["weight"].sum() for start, end in ((0, 5), (2, 7))
        ]
        # 0.8 at the end; 0.8 - 0.8 / 8 in the middle
        assert asked == [20, 30]


class TestBinding:
    def test_twice_is_once(self, monkeypatch: pytest.MonkeyPatch):
        model, found = Network(), []
        pruner = NMPruner("p", 2, 4, ["conv.weight"])
        find = pruner._find
        monkeypatch.setattr(pruner, "_find", lambda *args: found.append(1) or find(*args))
        for other in (model, model, Network(), model):
            pruner.bind(other)
        assert len(found) == 3

    def test_for_another_model_names_are_found_anew(self):
        pruner = AutomatedGradualPruner("p", 0.1, 0.5, ["*.weight"])
        pruner.bind(Network())
        pruner.bind(nn.DataParallel(nn.Sequential(nn.Linear(2, 2))))
        assert pruner.weights == ["module.0.weight"]

    def test_what_failed_can_be_tried_again(self):
        pruner = NMPruner("p", 2, 4, ["*.weight"])
        with pytest.raises(UserError, match="got 'conv.weight'|got 'up.weight'|got 'image.weight'"):
            pruner.bind(nn.ModuleDict({"conv": nn.Conv2d(3, 4, 1)}))
        pruner.bind(nn.ModuleDict({"conv": nn.Conv2d(4, 4, 1)}))
        assert pruner.weights == ["conv.weight"]

    def test_a_copy_is_independent(self):
        model = Network()
        pruner = SparsityLevelParameterPruner("p", {"*": 0.5})
        pruner.bind(model)
        other = copy.deepcopy(pruner)
        other.levels["*"] = 0.9
        assert pruner.target("conv.weight", {}) == 0.5
        assert other.target("conv.weight", {}) == 0.9
        assert pruner.streams.numpy.rand() == other.streams.numpy.rand()


class TestNMPruner:
    @pytest.mark.parametrize(
        ("weight", "dim", "n", "m"),
        [("conv.weight", 1, 2, 4), ("conv.weight", 1, 1, 8), ("up.weight", 0, 1, 4), ("fc.weight", 1, 2, 3)],
    )
    def test_keeps_the_largest_along_the_inputs(
        self, weight: str, dim: int, n: int, m: int, device: torch.device
    ):
        model = Network().to(device)
        masks = masks_of(NMPruner("p", n, m, [weight]), model)
        assert list(masks) == [weight]
        size = np.moveaxis(np.abs(numbers(model, weight)), dim, -1).reshape(-1, m)
        kept = np.moveaxis(masks[weight], dim, -1).reshape(-1, m)
        assert (kept.sum(1) == n).all()
        smallest_kept = np.where(kept == 1, size, np.inf).min(1)
        largest_gone = np.where(kept == 0, size, -np.inf).max(1)
        assert (smallest_kept > largest_gone).all()

    @pytest.mark.parametrize("wrap", [lambda model: model, nn.DataParallel])
    def test_by_patterns_and_in_wrapped_models(self, wrap: Any):
        model = wrap(nn.Sequential(nn.Conv2d(4, 8, 3), nn.ConvTranspose2d(8, 2, 3)))
        masks = masks_of(NMPruner("p", 2, 4, ["*"]), model)
        assert [mask.mean() for mask in masks.values()] == [0.5, 0.5]

    def test_target(self):
        pruner = NMPruner("p", 1, 4, ["fc.weight"])
        assert (pruner.target("fc.weight", {}), pruner.target("conv.weight", {})) == (0.75, 0)

    def test_a_group_of_zeros_and_ties_keeps_the_last(self):
        model = nn.Linear(4, 2, bias=False)
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[0.0, 0, 0, 0], [1, -1, 1, -1]]))
        assert masks_of(NMPruner("p", 2, 4, ["weight"]), model)["weight"].tolist() == [[0, 0, 1, 1]] * 2

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((2, 1, ["w"]), "m: Expected a whole number of at least 2, got 1"),
            ((0, 4, ["w"]), "n: Expected a whole number of at least 1, got 0"),
            ((4, 4, ["w"]), r"n: Expected a number below 'm' \(4\), got 4"),
            ((2.0, 4, ["w"]), "n: Expected a whole number of at least 1, got 2.0"),
            ((True, 4, ["w"]), "n: Expected a whole number of at least 1, got True"),
            ((2, 4, "w"), r"weights: Expected a list .* got the text 'w'. Write \[w\]"),
        ],
    )
    def test_numbers_that_mean_nothing_are_refused(self, arguments: tuple[Any, ...], message: str):
        with pytest.raises(UserError, match=message):
            NMPruner("p", *arguments)

    @pytest.mark.parametrize(
        ("weights", "message"),
        [
            (["conv.weight", "image.weight"], r"whose number of inputs is a multiple of 4, got 'image.weight' of shape \(4, 3, 3, 3\)"),
            (["norm.weight"], r"weights: Expected weights of convolutions, .* got 'norm.weight'"),
            (["fc.bias"], r"weights: Expected weights of convolutions, .* got 'fc.bias'"),
            (["grouped.weight"], r"weights: Expected weights of .* transposed convolutions without groups .* got 'grouped.weight'"),
            (["*.wieght"], "a pattern that matches a weight of the model, got"),
        ],
    )  # fmt: skip
    def test_weights_that_do_not_fit_are_refused(self, weights: list[str], message: str):
        with pytest.raises(UserError, match=message):
            NMPruner("p", 2, 4, weights).bind(Network())


class TestMistakes:
    @pytest.mark.parametrize(
        ("kind", "arguments", "message"),
        [
            (MagnitudeParameterPruner, ({"w": 0.1},), r"thresholds: Expected a threshold under '\*' for all other parameters, got none. .* write '\*': -1"),
            (MagnitudeParameterPruner, ({},), "thresholds: Expected at least one entry by the name of a weight"),
            (MagnitudeParameterPruner, (0.1,), "thresholds: Expected at least one entry .* got 0.1"),
            (MagnitudeParameterPruner, ({"*": "a"},), r"thresholds\.\*: Expected a number, got 'a'"),
            (MagnitudeParameterPruner, ({"*": math.inf},), r"thresholds\.\*: Expected a number, got inf"),
            (SensitivityPruner, ({"w": -1},), r"sensitivities\.w: Expected a number of at least 0, got -1"),
            (SensitivityPruner, ({},), "sensitivities: Expected at least one entry"),
            (SplicingPruner, ({"w": 1}, -1, 1), "low_thresh_mult: Expected a number of at least 0, got -1"),
            (SplicingPruner, ({"w": 1}, 0.9, 0.8), "hi_thresh_mult: Expected a number of at least 0.9, got 0.8"),
            (SplicingPruner, ({"w": 1}, 0.9, 0.9, -1), "sensitivity_multiplier: Expected a number of at least 0"),
            (SplicingPruner, ([], 0.9, 0.9), r"sensitivities: Expected at least one entry .* got \[\]"),
            (BaiduRNNPruner, (-1, 0, 1, ["w"]), "q: Expected a number of at least 0, got -1"),
            (BaiduRNNPruner, (1, 0.5, 1, ["w"]), "ramp_epoch_offset: Expected a whole number of at least 0"),
            (BaiduRNNPruner, (1, 1, -2, ["w"]), "ramp_slope_mult: Expected a number of at least 0, got -2"),
            (BaiduRNNPruner, (1, 1, 1, []), "weights: Expected a list .* got an empty list"),
        ],
    )  # fmt: skip
    def test_of_arguments(self, kind: type[Pruner], arguments: tuple[Any, ...], message: str):
        with pytest.raises(UserError, match=message):
            kind("p", *arguments)

    @pytest.mark.parametrize(
        ("epochs", "message"),
        [
            (meta(frequency=None), "epochs: Expected 'starting_epoch', .* for BaiduRNNPruner, got a list of epochs"),
            (meta(start=1, end=3), r"ending_epoch: Expected epochs that last beyond 'ramp_epoch_offset' \(8\), got 1 to 2"),
        ],
    )  # fmt: skip
    def test_of_epochs(self, epochs: dict[str, Any], message: str):
        with pytest.raises(UserError, match=message):
            BaiduRNNPruner("p", 1, 8, 1, ["w"]).check_epochs(epochs)

    @pytest.mark.parametrize("kind", [MagnitudeParameterPruner, SensitivityPruner])
    def test_of_names(self, kind: Any):
        argument = "thresholds" if kind is MagnitudeParameterPruner else "sensitivities"
        with pytest.raises(
            UserError, match="the name of a parameter of the model, got 'fc.wieght'. Did you mean 'fc.weight'"
        ):
            kind("p", {"*": 1, "fc.wieght": 2}).bind(Network())
        with pytest.raises(
            UserError,
            match=rf"{argument}\.\*.weight: Expected one value for 'fc.weight', got 2.0 and, from 'f\*', 1.0",
        ):
            kind("p", {"*": 1, "f*": 1, "*.weight": 2}).bind(Network())
