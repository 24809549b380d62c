"""Pruners of structures: which structures, leaders, thresholds, and what is refused."""
# ruff: noqa: E501  (messages stand on one line)

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sgc_distiller.errors import UserError
from sgc_distiller.ranked_pruners import (
    L1RankedStructureParameterPruner as L1,
)
from sgc_distiller.ranked_pruners import (
    L1RankedStructureParameterPruner_AGP as L1Gradual,
)
from sgc_distiller.structure_pruners import StructureParameterPruner
from tests.pruning import Layers, Pruning, fill, kept, largest, meta, numbers


class TestAxes:
    """Filters and Channels of a transposed convolution: (inputs 4, outputs 10, 3, 3)."""

    @pytest.mark.parametrize(
        ("group_type", "convention", "dim"),
        [
            ("Filters", "stored", 0),
            ("Filters", "module", 1),
            ("Channels", "stored", 1),
            ("Channels", "module", 0),
        ],
    )
    @pytest.mark.parametrize("wrap", [lambda model: model, nn.DataParallel])
    def test_of_a_transposed_convolution(self, group_type: str, convention: Any, dim: int, wrap: Any):
        model = wrap(Layers())
        (name,) = (name for name, _ in model.named_parameters() if name.endswith("up.weight"))
        masks = Pruning(L1("p", group_type, 0.5, ["up.weight"]), model, convention).set()
        sizes = np.abs(numbers(model, name)).sum(tuple({0, 1, 2, 3} - {dim}))
        assert list(masks) == [name]
        assert kept(masks[name], dim) == largest(sizes, len(sizes) // 2)

    @pytest.mark.parametrize("convention", ["stored", "module"])
    @pytest.mark.parametrize(("group_type", "dim"), [("Filters", 0), ("3D", 0), ("Channels", 1), ("Rows", 1)])
    def test_of_a_convolution_they_are_the_same(self, group_type: str, dim: int, convention: Any):
        model = Layers()
        masks = Pruning(L1("p", group_type, 0.5, ["conv.weight"]), model, convention).set()
        sizes = np.abs(numbers(model, "conv.weight")).sum(tuple({0, 1, 2, 3} - {dim}))
        assert kept(masks["conv.weight"], dim) == largest(sizes, len(sizes) // 2)

    def test_filters_of_a_linear_layer_are_its_outputs_by_module(self):
        model = Layers()
        masks = Pruning(L1("p", "Filters", 0.4, ["fc.weight", "line.weight"]), model, "module").set()
        sizes = np.abs(numbers(model, "fc.weight")).sum(1)
        assert kept(masks["fc.weight"], 0) == largest(sizes, 2)
        assert len(kept(masks["line.weight"], 0)) == 5

    def test_rows_of_a_linear_layer_are_its_inputs_as_in_distiller(self):
        model = Layers()
        for convention in ("stored", "module"):
            masks = Pruning(L1("p", "Rows", 0.5, ["fc.weight"]), model, convention).set()
            assert kept(masks["fc.weight"], 1) == largest(np.abs(numbers(model, "fc.weight")).sum(0), 6)

    def test_a_layer_whose_outputs_lie_on_no_dimension_is_refused(self):
        pruner = L1("p", "Filters", 0.5, ["grouped.weight"])
        message = "weights: Expected weights of .* transposed convolutions without groups .* for Filters, got 'grouped.weight'"
        with pytest.raises(UserError, match=message):
            pruner.bind(Layers(), (), "module")
        for group_type in ("Kernels", "Vectors", "Elements"):
            Pruning(L1("p", group_type, 0.5, ["grouped.weight"]), Layers(), "module").set()
        Pruning(pruner, Layers()).set()  # by storage it is dimension 0


class TestLeader:
    WEIGHTS = ["b", "a", "c"]

    def model(self) -> nn.Module:
        model = nn.ParameterDict({name: nn.Parameter(torch.zeros(4, 2, 1, 1)) for name in self.WEIGHTS})
        for name, sizes in {"a": [1, 2, 3, 4], "b": [4, 3, 2, 1], "c": [1, 9, 1, 9]}.items():
            fill(model, name, [float(size) for size in sizes], 0)
        return model

    def test_its_structures_go_in_all_of_them(self, device: torch.device):
        pruning = Pruning(L1("p", "Filters", 0.5, self.WEIGHTS, "Leader"), self.model().to(device))
        assert {name: kept(mask, 0) for name, mask in pruning.set().items()} == dict.fromkeys("abc", [0, 1])

    def test_without_one_each_is_ranked_for_itself(self):
        found = Pruning(L1("p", "Filters", 0.5, self.WEIGHTS), self.model()).set()
        assert {name: kept(mask, 0) for name, mask in found.items()} == {
            "a": [2, 3],
            "b": [0, 1],
            "c": [1, 3],
        }

    def test_a_constant_share_is_ranked_once(self):
        pruning = Pruning(L1("p", "Filters", 0.5, self.WEIGHTS, "Leader"), self.model())
        pruning.set()
        fill(pruning.model, "b", [1.0, 2.0, 3.0, 4.0], 0)
        assert kept(pruning.set(1)["a"], 0) == [0, 1]

    def test_a_growing_share_is_ranked_where_it_grows(self):
        pruning = Pruning(L1Gradual("p", 0.25, 0.75, "Filters", self.WEIGHTS, "Leader"), self.model())
        assert kept(pruning.prune(0, end=3)["c"], 0) == [0, 1, 2]
        with torch.no_grad():
            pruning.model["b"].copy_(torch.tensor([1.0, 2, 3, 0]).reshape(4, 1, 1, 1).expand(4, 2, 1, 1))
        assert kept(pruning.prune(0, end=3)["c"], 0) == [0, 1, 2]
        assert kept(pruning.prune(1, end=3)["c"], 0) == [1, 2]  # 0.6875: two; the one that is pruned stays so
        assert kept(pruning.prune(2, end=3)["a"], 0) == [2]

    @pytest.mark.parametrize(
        "pruner",
        [
            L1Gradual("p", 0, 0.5, "Filters", WEIGHTS, "Leader"),
            L1("p", "Filters", 0.2, WEIGHTS, "Leader"),
            L1("p", "Filters", 0, WEIGHTS, "Leader"),
        ],
    )
    def test_nothing_goes_where_the_share_is_below_one_structure(self, pruner: Any):
        assert Pruning(pruner, self.model()).set(end=4) == {}

    def test_from_nothing_on(self):
        pruning = Pruning(L1Gradual("p", 0, 0.5, "Filters", self.WEIGHTS, "Leader"), self.model())
        counts = [len(pruning.prune(epoch, end=5).get("c", [])) for epoch in range(5)]
        assert counts == [0, 4, 4, 4, 4]  # masks from 0.5 - 0.5 * (3/4)^3 = 0.289 on
        assert kept(pruning.set(4, end=5)["c"], 0) == [0, 1]

    def test_goes_on_where_it_was_saved(self):
        first, second = (
            Pruning(L1("p", "Filters", 0.5, self.WEIGHTS, "Leader"), self.model()) for _ in range(2)
        )
        first.set()
        second.pruner.load_state_dict(first.pruner.state_dict())
        fill(second.model, "b", [1.0, 2.0, 3.0, 4.0], 0)
        assert kept(second.set(1)["a"], 0) == [0, 1]

    def test_what_is_pruned_of_it_goes_before_other_zeros(self):
        pruning = Pruning(L1("p", "Filters", 0.25, self.WEIGHTS, "Leader"), self.model())
        fill(pruning.model, "b", [0.0, 1.0, 2.0, 0.0], 0)
        pruning.masks["b"].mask = torch.tensor([1.0, 1, 1, 0]).reshape(4, 1, 1, 1).expand(4, 2, 1, 1)
        assert kept(pruning.set()["a"], 0) == [0, 1, 2]

    def test_in_a_wrapped_model(self):
        model = nn.DataParallel(nn.Sequential(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1)))
        masks = Pruning(L1("p", "Filters", 0.5, ["1.weight", "0.weight"], "Leader"), model).set()
        first, second = (kept(masks[f"module.{index}.weight"], 0) for index in (0, 1))
        assert first == second == largest(np.abs(numbers(model, "module.1.weight")).sum((1, 2, 3)), 2)

    def test_weights_of_other_counts_are_refused(self):
        message = "weights: Expected weights with as many filters as their leader 'conv.weight' has: conv.weight with 6, up.weight with 4"
        with pytest.raises(UserError, match=message):
            L1("p", "Filters", 0.5, ["conv.weight", "up.weight"], "Leader").bind(Layers())
        Pruning(L1("p", "Filters", 0.5, ["conv.weight", "up.weight"]), Layers()).set()

    def test_counts_are_those_of_the_modules_axes(self):
        model = nn.Sequential(nn.ConvTranspose2d(4, 6, 3), nn.Conv2d(6, 6, 3))
        with pytest.raises(UserError, match="0.weight with 4, 1.weight with 6"):
            L1("p", "Filters", 0.5, ["0.weight", "1.weight"], "Leader").bind(model)
        masks = Pruning(L1("p", "Filters", 0.5, ["0.weight", "1.weight"], "Leader"), model, "module").set()
        assert kept(masks["0.weight"], 1) == kept(masks["1.weight"], 0)

    def test_another_dependency_is_refused(self):
        with pytest.raises(
            UserError,
            match="group_dependency: Expected one of Leader, Coupled, got 'Leaders'. Did you mean 'Leader'",
        ):
            L1("p", "Filters", 0.5, ["w"], "Leaders")


class TestStructureParameterPruner:
    def test_by_hand(self, device: torch.device):
        model = Layers().to(device)
        fill(model, "fc.weight", [0.1, 0.2, 0.3, 0.4, 0.5], 0)
        fill(model, "conv.weight", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 0)
        asked = {"fc.weight": [0.25, "Rows"], "c*": [0.35, "3D"]}
        for criterion in ("Max", "Mean_Abs"):
            masks = Pruning(StructureParameterPruner("p", asked, criterion), model).set()
            assert kept(masks["fc.weight"], 0) == [2, 3, 4]
            assert kept(masks["conv.weight"], 0) == [3, 4, 5]
            assert len(masks) == 2

    def test_a_star_is_a_pattern(self):
        model = nn.ModuleDict({"a": nn.Conv2d(2, 3, 1), "b": nn.Conv2d(3, 2, 1), "norm": nn.BatchNorm2d(2)})
        pruner = StructureParameterPruner("p", {"*": [9, "3D"], "b.weight": [0, "2D"]}, "Max")
        masks = Pruning(pruner, model).set()
        assert {name: mask.mean() for name, mask in masks.items()} == {"a.weight": 0, "b.weight": 1}

    @pytest.mark.parametrize(("convention", "dim"), [("stored", 0), ("module", 1)])
    def test_axes(self, convention: Any, dim: int):
        model = Layers()
        sizes = np.abs(numbers(model, "up.weight")).max(tuple({0, 1, 2, 3} - {dim}))
        threshold = float(np.median(sizes))
        pruner = StructureParameterPruner("p", {"up.weight": [threshold, "Filters"]}, "Max")
        assert (
            kept(Pruning(pruner, model, convention).set()["up.weight"], dim)
            == np.flatnonzero(sizes > threshold).tolist()
        )

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (({"w": [0.1, "3D"]}, "L1"), "threshold_criteria: Expected one of Max, Mean_Abs, got 'L1'"),
            (({}, "Max"), "reg_regims: Expected at least one entry by the name of a weight"),
            (({"w": 0.1}, "Max"), r"reg_regims\.w: Expected \[threshold, group type\], got 0.1"),
            (({"w": "0.1, 3D"}, "Max"), r"reg_regims\.w: Expected \[threshold, group type\], got '0.1, 3D'"),
            (({"w": [0.1]}, "Max"), r"reg_regims\.w: Expected \[threshold, group type\], got \[0.1\]"),
            (({"w": ["a", "3D"]}, "Max"), r"reg_regims\.w: Expected a number of at least 0, got 'a'"),
            (({"w": [-1, "3D"]}, "Max"), r"reg_regims\.w: Expected a number of at least 0, got -1"),
            (({"w": [0.1, "4D"]}, "Max"), r"reg_regims\.w: Expected a group type \(Kernels, 2D, Filters, 3D, Channels, Rows, Cols\), got '4D'"),
            (({"w": [0.1, "Colls"]}, "Max"), r"reg_regims\.w: .* Did you mean 'Cols'"),
        ],
    )  # fmt: skip
    def test_arguments_that_mean_nothing_are_refused(self, arguments: tuple[Any, ...], message: str):
        with pytest.raises(UserError, match=message):
            StructureParameterPruner("p", *arguments)

    @pytest.mark.parametrize(
        ("asked", "message"),
        [
            ({"fc.weight": [0.1, "3D"]}, r"reg_regims.fc.weight: fc.weight: Expected the weight of a convolution .* Group types that fit it: Channels, Rows, Cols\.$"),
            ({"conv.weight": [0.1, "Rows"]}, r"reg_regims.conv.weight: conv.weight: Expected a weight with two dimensions .* fit it: Kernels, Filters, Channels\.$"),
            ({"*": [0.1, "Rows"]}, r"reg_regims.\*: conv.weight: Expected a weight with two dimensions"),
            ({"conf.weight": [0.1, "Rows"]}, "the name of a parameter of the model, got 'conf.weight'. Did you mean 'conv.weight'"),
            ({"c*": [0.1, "3D"], "conv.*": [0.2, "3D"]}, "reg_regims.conv.*: Expected one value for 'conv.weight'"),
        ],
    )  # fmt: skip
    def test_weights_that_do_not_fit_are_refused(self, asked: Any, message: str):
        with pytest.raises(UserError, match=message):
            StructureParameterPruner("p", asked, "Max").bind(Layers())


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("Cols", 0.5, ["w"]), r"group_type: Expected a group type \(Elements, 0D, Vectors, 1D, Kernels, 2D, Filters, 3D, Channels, Rows, Blocks\), got 'Cols'"),
            (("4D", 0.5, ["w"]), "group_type: Expected a group type .* got '4D'"),
            (("filters", 0.5, ["w"]), "group_type: .* got 'filters'. Did you mean 'Filters'"),
            (("Filters", 1.5, ["w"]), "desired_sparsity: Expected a number between 0 and 1, got 1.5"),
            (("Filters", 0.5, []), "weights: Expected a list .* got an empty list"),
        ],
    )  # fmt: skip
    def test_of_arguments(self, arguments: tuple[Any, ...], message: str):
        with pytest.raises(UserError, match=message):
            L1("p", *arguments)

    @pytest.mark.parametrize(
        ("group_type", "weight", "message"),
        [
            ("Filters", "fc.weight", r"weights: fc.weight: Expected the weight of a convolution for the group type Filters, got one of shape \(5, 12\). Group types that fit it: Elements, Channels, Rows\.$"),
            ("Channels", "fc.bias", r"weights: fc.bias: Expected a weight with at least two dimensions .* Group types that fit it: Elements\.$"),
            ("Kernels", "line.weight", r"weights: line.weight: Expected a weight with four dimensions .* fit it: Elements, Filters, Channels\.$"),
        ],
    )  # fmt: skip
    def test_of_weights(self, group_type: str, weight: str, message: str):
        with pytest.raises(UserError, match=message):
            L1("p", group_type, 0.5, [weight]).bind(Layers())

    def test_of_epochs(self):
        with pytest.raises(
            UserError, match="epochs: Expected 'starting_epoch', .* for gradual pruning, got a list"
        ):
            L1Gradual("p", 0.1, 0.5, "Filters", ["w"]).check_epochs(meta(frequency=None))
        L1("p", "Filters", 0.5, ["w"]).check_epochs(meta(frequency=None))
