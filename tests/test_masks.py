"""Masks: how they are applied together, to the model and to copies of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils._python_dispatch import TorchDispatchMode

from sgc_distiller.errors import UserError
from sgc_distiller.masks import MaskSet, ParameterMasker, sparsity_table


def small_network(device: torch.device) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(4, 5)).to(device)


class TestMaskSet:
    def test_only_parameters_with_a_mask_are_touched(self, device: torch.device):
        model = small_network(device)
        masks = MaskSet(model)
        versions = {name: param._version for name, param in model.named_parameters()}
        masks["2.weight"].mask = torch.zeros(5, 4, device=device)
        masks.apply()
        changed = [name for name, param in model.named_parameters() if param._version != versions[name]]
        assert changed == ["2.weight"]
        assert (model[2].weight == 0).all()

    def test_a_mask_set_later_counts(self, device: torch.device):
        model = small_network(device)
        masks = MaskSet(model)
        masks.apply()
        masks["0.bias"].mask = torch.tensor([1.0, 0.0, 1.0], device=device)
        masks.apply()
        assert (model[0].bias == 0).tolist() == [False, True, False]
        masks["0.bias"].mask = None
        nn.init.ones_(model[0].bias)
        masks.apply()
        assert model[0].bias.tolist() == [1, 1, 1]

    def test_masks_of_other_types_and_shapes_are_fitted(self, device: torch.device):
        model = small_network(device)
        masks = MaskSet(model)
        masks["2.weight"].mask = torch.tensor([True, False, True, True])  # one row, on the CPU
        masks.apply()
        assert (model[2].weight == 0).all(dim=0).tolist() == [False, True, False, False]

    def test_forward_only_masks_are_not_lasting(self, device: torch.device):
        model = small_network(device)
        masks = MaskSet(model)
        for name in ("0.bias", "1.weight"):
            masks[name].mask = torch.zeros(3, device=device)
        masks["1.weight"].mask_on_forward_only = True
        masks.mask_weights(is_forward=False)
        assert model[0].bias.tolist() == [0, 0, 0]
        assert model[1].weight.tolist() == [1, 1, 1]
        masks.mask_weights()
        assert model[1].weight.tolist() == [0, 0, 0]

    def test_dense_copies_are_taken_once_and_come_back(self, device: torch.device):
        model = small_network(device)
        masks = MaskSet(model)
        masks["1.weight"].use_double_copies = True
        masks["1.weight"].mask = torch.tensor([0.0, 1.0, 0.0], device=device)
        masks.apply()
        masks.apply()
        assert model[1].weight.tolist() == [0, 1, 0]
        masks["1.weight"].mask = None
        masks.revert()
        assert model[1].weight.tolist() == [1, 1, 1]
        assert masks["1.weight"].unmasked_copy is None

    def test_masked_shows_masks_and_brings_dense_weights_back(self, device: torch.device):
        model = small_network(device)
        masks = MaskSet(model)
        masks["1.weight"].mask = torch.zeros(3, device=device)
        masks["1.weight"].mask_on_forward_only = True
        masks["0.bias"].mask = torch.zeros(3, device=device)
        seen = []

        def evaluate() -> None:
            with masks.masked():
                seen.extend(model[1].weight.tolist())
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            evaluate()
        assert seen == [0, 0, 0]
        assert model[1].weight.tolist() == [1, 1, 1]
        assert model[0].bias.tolist() == [0, 0, 0]

    def test_a_masker_put_in_place_of_another_counts(self, device: torch.device):
        model = small_network(device)
        masks = MaskSet(model)
        masks.apply()
        masks["0.bias"] = ParameterMasker("0.bias")
        masks["0.bias"].mask = torch.zeros(3, device=device)
        masks.apply()
        assert model[0].bias.tolist() == [0, 0, 0]

    def test_no_graph_is_made(self, device: torch.device):
        model = small_network(device)
        masks = MaskSet(model)
        masks["2.weight"].mask = torch.ones(5, 4, device=device)
        masks.apply()
        assert model[2].weight.is_leaf
        assert model[2].weight.requires_grad


class Multiplied(TorchDispatchMode):
    """Notes how many parameters each multiplication masks."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ == "_foreach_mul_":
            self.counts.append(len(args[0]))
        return func(*args, **(kwargs or {}))


class TestApplyingAgain:
    """What is masked already is left out; what may have changed is not."""

    @pytest.fixture
    def model(self, device: torch.device) -> nn.Module:
        return small_network(device)

    @pytest.fixture
    def masks(self, model: nn.Module, device: torch.device) -> MaskSet:
        masks = MaskSet(model)
        masks["0.bias"].mask = torch.tensor([0.0, 1.0, 0.0], device=device)
        masks["1.weight"].mask = torch.tensor([1.0, 1.0, 0.0], device=device)
        masks["1.weight"].mask_on_forward_only = True
        masks["2.bias"].mask = torch.zeros(5, device=device)
        masks.apply()
        return masks

    def multiplied(self, masks: MaskSet) -> list[int]:
        """Apply the masks; return how many parameters were multiplied, and see that all are masked."""
        with Multiplied() as seen:
            masks.apply()
        named = dict(masks._model.named_parameters())
        for name, masker in masks.items():
            if masker.mask is not None:
                assert not named[name][masker.mask == 0].any(), name
        return seen.counts

    def test_costs_nothing(self, masks: MaskSet):
        assert self.multiplied(masks) == []

    def test_after_a_change_masks_what_was_changed(self, model: nn.Module, masks: MaskSet):
        nn.init.ones_(model[2].bias)
        assert self.multiplied(masks) == [1]
        model.load_state_dict({name: torch.ones_like(value) for name, value in model.state_dict().items()})
        assert self.multiplied(masks) == [3]
        assert self.multiplied(masks) == []

    def test_after_an_optimizer_masks_what_it_moved(self, model: nn.Module, masks: MaskSet):
        optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
        model[2].bias.grad = torch.ones(5, device=model[2].bias.device)
        optimizer.step()
        assert self.multiplied(masks) == [1]

    @pytest.mark.parametrize("moves", ["foreach", "fused", "data"])
    def test_the_end_of_a_step_trusts_no_optimizer(self, moves: str, model: nn.Module, masks: MaskSet):
        """Torch counts neither the changes of its fused optimizers nor those through ``.data``."""
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1, fused=moves == "fused")
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
            if moves == "data":
                parameter.data.add_(1)
        if moves != "data":
            optimizer.step()
        with Multiplied() as seen:
            masks.mask_weights(is_forward=False)
        assert seen.counts == [2]
        assert model[0].bias[[0, 2]].tolist() == [0, 0]
        assert model[2].bias.tolist() == [0] * 5
        assert model[1].weight[2] != 0
        assert self.multiplied(masks) == [1]  # the one that is masked on the forward pass only

    def test_other_writes_through_data_are_seen_after_forget_plan(self, model: nn.Module, masks: MaskSet):
        model[2].bias.data.fill_(1)
        masks.forget_plan()
        assert self.multiplied(masks) == [3]

    def test_weights_in_another_place_are_masked(self, model: nn.Module, masks: MaskSet):
        model[0].bias.data = torch.ones(3, device=model[0].bias.device)
        assert self.multiplied(masks) == [1]

    def test_a_mask_changed_in_place_counts(self, model: nn.Module, masks: MaskSet):
        masks["0.bias"].mask[1] = 0
        assert self.multiplied(masks) == [1]

    def test_a_mask_set_anew_counts(self, masks: MaskSet, device: torch.device):
        masks["0.bias"].mask = torch.zeros(3, device=device)
        assert self.multiplied(masks) == [3]

    def test_dense_weights_that_came_back_are_masked(self, model: nn.Module, masks: MaskSet):
        nn.init.ones_(model[2].bias)
        masks["2.bias"].use_double_copies = True
        masks.apply()
        masks.revert()
        assert model[2].bias.tolist() == [1] * 5
        assert self.multiplied(masks) == [1]
        masks["2.bias"].revert_weights(model[2].bias)  # as policies written for Distiller do
        assert model[2].bias.tolist() == [1] * 5
        assert self.multiplied(masks) == [1]

    def test_after_a_look_at_masked_weights_the_dense_ones_are_masked(self, model: nn.Module, masks: MaskSet):
        nn.init.ones_(model[1].weight)
        with masks.masked():
            pass
        assert model[1].weight.tolist() == [1, 1, 1]
        assert self.multiplied(masks) == [1]

    def test_in_inference_mode(self, model: nn.Module, masks: MaskSet):
        with torch.inference_mode():
            model[2].bias.add_(1)
            assert self.multiplied(masks) == [1]
        assert self.multiplied(masks) == []


class TestMaskCopy:
    @pytest.fixture
    def model(self, device: torch.device) -> nn.Module:
        model = small_network(device)
        for parameter in model.parameters():
            nn.init.ones_(parameter)
        return model

    @pytest.fixture
    def masks(self, model: nn.Module, device: torch.device) -> MaskSet:
        masks = MaskSet(model)
        masks["0.bias"].mask = torch.tensor([0.0, 1.0, 0.0], device=device)
        masks["2.bias"].mask = torch.tensor([False, True, True, True, False], device=device)
        masks["2.bias"].mask_on_forward_only = True
        return masks

    def test_masks_a_moving_average_and_not_the_model(self, model: nn.Module, masks: MaskSet):
        average = AveragedModel(model)
        masks.mask_copy(average)
        assert average.module[0].bias.tolist() == [0, 1, 0]
        assert average.module[2].bias.tolist() == [0, 1, 1, 1, 0]
        assert all((parameter == 1).all() for parameter in model.parameters())
        assert (average.module[0].weight == 1).all()

    def test_of_a_wrapped_model_into_a_plain_copy_of_another_type(
        self, model: nn.Module, device: torch.device
    ):
        masks = MaskSet(nn.DataParallel(model))
        masks["module.0.bias"].mask = torch.tensor([0.0, 1.0, 0.0], device=device)
        other = copy.deepcopy(model).double().cpu()
        masks.mask_copy(other)
        assert other[0].bias.tolist() == [0, 1, 0]
        assert other[0].bias.dtype == torch.float64

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                lambda layers: layers.append(nn.Linear(1, 1)),
                "got a parameter '3.weight', which the model does not have",
            ),
            (lambda layers: layers.pop(-1), "got one without '2.weight'. Mask a copy of the network that"),
            (
                lambda layers: layers.__setitem__(2, nn.Linear(4, 6)),
                r"Expected '2.weight' of shape \(5, 4\) in a copy of the model, got \(6, 4\)",
            ),
        ],
    )
    def test_of_another_network_is_refused_and_nothing_is_masked(
        self, change: Callable[[nn.Sequential], Any], message: str, model: nn.Sequential, masks: MaskSet
    ):
        other = copy.deepcopy(model)
        change(other)
        with pytest.raises(UserError, match=message):
            masks.mask_copy(other)
        assert other[0].bias.tolist() == [1, 1, 1]


class TestDeepCopies:
    def test_go_on_alone(self, device: torch.device):
        model = small_network(device)
        masks = MaskSet(model)
        masks["1.weight"].mask = torch.tensor([0.0, 1.0, 1.0], device=device)
        masks["1.weight"].use_double_copies = True
        masks.apply()
        copied_model, copied = copy.deepcopy((model, masks))
        copied["1.weight"].mask[1] = 0
        copied.apply()
        copied.revert()
        assert copied_model[1].weight.tolist() == [1, 1, 1]
        assert model[1].weight.tolist() == [0, 1, 1]
        assert masks["1.weight"].mask.tolist() == [0, 1, 1]
        copied["0.bias"].mask = torch.zeros(3, device=device)
        copied.apply()
        assert copied_model[0].bias.tolist() == [0, 0, 0]
        assert masks["0.bias"].mask is None

    def test_mask_the_gradients_of_the_copy(self, device: torch.device):
        model = small_network(device)
        masks = MaskSet(model)
        masks["1.weight"].mask = torch.tensor([0.0, 1.0, 1.0], device=device)
        masks["1.weight"].hold_gradient(model[1].weight)
        copied_model, copied = copy.deepcopy((model, masks))
        masks["1.weight"].release_gradient()
        copied_model[1].weight.sum().backward()
        assert copied_model[1].weight.grad.tolist() == [0, 1, 1]
        copied["1.weight"].release_gradient()
        copied_model[1].weight.sum().backward()
        assert copied_model[1].weight.grad.tolist() == [1, 2, 2]


class TestParameterMasker:
    def test_has_the_calls_that_policies_written_for_distiller_use(self, device: torch.device):
        weight = torch.ones(3, device=device)
        masker = ParameterMasker("w")
        assert masker.apply_mask(weight).tolist() == [1, 1, 1]
        assert masker.mask_gradient(weight) is None
        masker.use_double_copies = True
        masker.mask = torch.tensor([0.0, 1.0, 1.0], device=device)
        masker.apply_mask(weight)
        assert weight.tolist() == [0, 1, 1]
        assert masker.mask_gradient(torch.full_like(weight, 2)).tolist() == [0, 2, 2]
        masker.revert_weights(weight)
        assert weight.tolist() == [1, 1, 1]
        masker.mask_tensor(weight)
        assert weight.tolist() == [0, 1, 1]

    def test_gradients_are_masked_until_the_last_holder_lets_go(self, device: torch.device):
        weight = nn.Parameter(torch.ones(2, device=device))
        masker = ParameterMasker("w")
        masker.mask = torch.tensor([0.0, 1.0], device=device)
        seen = []
        for change in (masker.hold_gradient, masker.hold_gradient, None, None):
            if change is None:
                masker.release_gradient()
            else:
                change(weight)
            weight.grad = None
            weight.sum().backward()
            seen.append(weight.grad.tolist())
        assert seen == [[0, 1], [0, 1], [0, 1], [1, 1]]

    def test_a_parameter_frozen_at_first_has_its_gradients_masked_later(self, device: torch.device):
        weight = nn.Parameter(torch.ones(2, device=device), requires_grad=False)
        masker = ParameterMasker("w")
        masker.mask = torch.tensor([0.0, 1.0], device=device)
        masker.hold_gradient(weight)
        assert not weight.requires_grad
        weight.requires_grad_(True).sum().backward()
        assert weight.grad.tolist() == [0, 1]


class TestSparsityTable:
    def test_same_as_numpy(self, device: torch.device):
        model = small_network(device)
        with torch.no_grad():
            model[2].weight[:2] = 0
        rows = sparsity_table(model)
        assert [row["name"] for row in rows] == ["0.weight", "2.weight"]
        weight = model[2].weight.detach().cpu().numpy().astype(np.float64)
        row = rows[1]
        assert (row["shape"], row["dense"], row["nonzero"]) == ([5, 4], 20, 12)
        assert row["sparsity"] == pytest.approx(0.4)
        assert row["std"] == pytest.approx(weight.std(ddof=1))
        assert row["mean"] == pytest.approx(weight.mean())
        assert row["abs_mean"] == pytest.approx(np.abs(weight).mean())

    def test_of_a_model_without_weights_is_empty(self):
        assert sparsity_table(nn.BatchNorm2d(3)) == []
