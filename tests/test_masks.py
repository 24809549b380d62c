"""Masks: how they are applied together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

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
