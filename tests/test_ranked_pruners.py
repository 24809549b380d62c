"""Structures that are ranked by their norm: how many go, which ones, over one layer or over all."""
# ruff: noqa: E501  (messages stand on one line)

from __future__ import annotations

import copy
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

from sgc_distiller.errors import UserError
from sgc_distiller.ranked_pruners import (
    L1RankedStructureParameterPruner as L1,
)
from sgc_distiller.ranked_pruners import (
    L1RankedStructureParameterPruner_AGP as L1Gradual,
)
from sgc_distiller.ranked_pruners import (
    L2RankedStructureParameterPruner as L2,
)
from sgc_distiller.ranked_pruners import (
    L2RankedStructureParameterPruner_AGP as L2Gradual,
)
from sgc_distiller.ranked_pruners import (
    RandomLevelStructureParameterPruner as RandomLevel,
)
from tests.pruning import Layers, Pruning, fill, kept, largest, numbers

INSIDE = {"Elements": (), "Vectors": (3,), "Kernels": (2, 3), "Filters": (1, 2, 3), "Channels": (0, 2, 3)}


class TestCounts:
    @pytest.mark.parametrize(("kind", "order"), [(L1, 1), (L2, 2)])
    @pytest.mark.parametrize("group_type", INSIDE)
    def test_the_smallest_norms_go(self, kind: Any, order: int, group_type: str, device: torch.device):
        model = Layers().to(device)
        mask = Pruning(kind("p", group_type, 0.4, ["conv.weight"]), model).set()["conv.weight"]
        sizes = (np.abs(numbers(model, "conv.weight")) ** order).sum(INSIDE[group_type], keepdims=True)
        count = int(0.4 * sizes.size)
        limit = np.sort(sizes.ravel())[count - 1]
        np.testing.assert_array_equal(mask, np.broadcast_to(sizes > limit, mask.shape))

    @pytest.mark.parametrize(("kind", "order"), [(L1, 1), (L2, 2)])
    @pytest.mark.parametrize(("group_type", "dim"), [("Filters", 0), ("Channels", 1)])
    def test_they_are_those_that_torch_prunes(self, kind: Any, order: int, group_type: str, dim: int):
        model, other = nn.Conv2d(9, 11, 3), nn.Conv2d(9, 11, 3)
        other.load_state_dict(model.state_dict())
        prune.ln_structured(other, "weight", amount=4, n=order, dim=dim)
        mask = Pruning(kind("p", group_type, 4.5 / model.weight.shape[dim], ["weight"]), model).set()[
            "weight"
        ]
        np.testing.assert_array_equal(mask, other.weight_mask.numpy())

    @pytest.mark.parametrize(
        ("share", "left"), [(0.0, None), (0.16, None), (0.17, 5), (0.5, 3), (0.999, 1), (1.0, 0)]
    )
    def test_one_stays_unless_all_are_asked_for(self, share: float, left: int | None):
        masks = Pruning(L1("p", "Filters", share, ["conv.weight"]), Layers()).set()
        assert (len(kept(masks["conv.weight"], 0)) if masks else None) == left

    def test_of_equal_norms_the_first_go(self, device: torch.device):
        model = Layers().to(device)
        fill(model, "conv.weight", [2, 1, 2, 1, 1, 2], 0)
        for share, left in ((0.34, [0, 2, 4, 5]), (0.5, [0, 2, 5]), (0.67, [2, 5])):
            assert (
                kept(Pruning(L1("p", "Filters", share, ["conv.weight"]), model).set()["conv.weight"], 0)
                == left
            )

    def test_of_equal_weights_not_all_go(self):
        model = Layers()
        fill(model, "conv.weight", [1.0] * 6, 0)
        for group_type, dim in (("Filters", 0), ("Channels", 1)):
            mask = Pruning(L2("p", group_type, 0.5, ["conv.weight"]), model).set()["conv.weight"]
            assert len(kept(mask, dim)) == mask.shape[dim] // 2

    def test_what_is_pruned_stays_so_and_zeros_do_not_count_as_pruned(self):
        model = Layers()
        fill(model, "conv.weight", [0, 3, 0, 1, 2, 0], 0)
        pruning = Pruning(L1("p", "Filters", 0.34, ["conv.weight"]), model)
        pruning.masks["conv.weight"].mask = torch.ones(6, 8, 3, 3)
        pruning.masks["conv.weight"].mask[5] = 0  # pruned before, by whomever
        assert kept(pruning.prune()["conv.weight"], 0) == [1, 2, 3, 4]
        fewer = Pruning(L1("p", "Filters", 0.17, ["conv.weight"]), model)
        fewer.masks["conv.weight"].mask = pruning.masks["conv.weight"].mask
        assert kept(fewer.prune()["conv.weight"], 0) == [1, 2, 3, 4]  # a lower share brings nothing back
        fill(model, "conv.weight", [1, 3, 0, 1, 2, 4], 0)  # as with masks on the forward pass only
        assert kept(fewer.set()["conv.weight"], 0) == [0, 1, 3, 4, 5]

    def test_a_mask_of_single_elements_does_not_make_a_structure_pruned(self):
        model = Layers()
        pruning = Pruning(L1("p", "Filters", 0.34, ["conv.weight"]), model)
        pruning.masks["conv.weight"].mask = (model.conv.weight.detach().abs() > 0.05).float()
        pruning.masks.mask_weights()
        sizes = np.abs(numbers(model, "conv.weight")).sum((1, 2, 3))
        assert kept(pruning.set()["conv.weight"], 0) == largest(sizes, 2)

    def test_a_mask_that_is_stretched_counts(self):
        model = Layers()
        fill(model, "conv.weight", [0, 3, 4, 1, 2, 5], 0)
        pruning = Pruning(L1("p", "Filters", 0.17, ["conv.weight"]), model)
        pruning.masks["conv.weight"].mask = torch.tensor([0.0, 1, 1, 1, 1, 1]).reshape(6, 1, 1, 1)
        assert kept(pruning.set()["conv.weight"], 0) == [1, 2, 3, 4, 5]

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_weights_of_other_types(self, dtype: torch.dtype):
        model = Layers().to(dtype)
        pruning = Pruning(L1("p", "Filters", 0.5, ["conv.weight"]), model)
        for _ in range(2):
            sizes = np.abs(numbers(model, "conv.weight")).sum((1, 2, 3))
            assert kept(pruning.prune()["conv.weight"], 0) == largest(sizes, 3)
            assert pruning.masks["conv.weight"].mask.dtype == dtype

    def test_a_structure_that_is_not_a_number_stays(self):
        model = Layers()
        with torch.no_grad():
            model.conv.weight[0, 0, 0, 0] = torch.nan
        assert 0 in kept(Pruning(L1("p", "Filters", 0.9, ["conv.weight"]), model).set()["conv.weight"], 0)

    @pytest.mark.parametrize("kind", [L1Gradual, L2Gradual])
    def test_gradually_more(self, kind: Any):
        pruning = Pruning(kind("p", 0.2, 0.8, "Channels", ["fc.weight"]), Layers())
        seen: list[set[int]] = []
        for epoch in range(5):
            seen.append(set(kept(pruning.prune(epoch, end=5)["fc.weight"], 1)))
            target = 0.8 - 0.6 * (1 - epoch / 4) ** 3
            assert len(seen[-1]) == 12 - int(target * 12)
            assert all(seen[-1] <= earlier for earlier in seen)

    def test_of_a_pattern_and_of_a_name_twice(self):
        pruner = L1("p", "Channels", 0.5, ["c*", "conv.weight", "fc.weight"])
        assert set(Pruning(pruner, Layers()).set()) == {"conv.weight", "fc.weight"}
        assert (pruner.target("fc.weight", {}), pruner.target("up.weight", {})) == (0.5, 0)


class TestRounding:
    @settings(deadline=None, max_examples=100)
    @given(
        size=st.integers(1, 4),
        many=st.integers(1, 12),
        share=st.floats(0, 1),
        rounding=st.sampled_from(["floor", "ceil", "round"]),
        group_type=st.sampled_from(["Filters", "Channels"]),
    )
    def test_whole_groups_of_neighbours_go_by_the_rule(
        self, size: int, many: int, share: float, rounding: str, group_type: str
    ):
        count, dim = size * many, 0 if group_type == "Filters" else 1
        model = nn.ParameterDict({"w": nn.Parameter(torch.zeros(count, count, 1, 1))})
        sizes = np.random.RandomState(count).permutation(count) + 1.0
        fill(model, "w", list(sizes), dim)
        pruner = L1("p", group_type, share, ["w"], group_size=size, rounding_fn=rounding)
        masks = Pruning(pruner, model).set()
        rule: Any = {"floor": math.floor, "ceil": math.ceil, "round": round}[rounding]
        groups = rule(rule(share * count) / size)
        if groups >= many and share != 1:
            groups = many - 1
        if min(groups, many) == 0:
            assert masks == {}
            return
        together = largest(sizes.reshape(many, size).sum(1), min(groups, many))
        assert kept(masks["w"], dim) == [size * group + i for group in together for i in range(size)]

    @pytest.mark.parametrize(
        ("group_size", "rounding", "left"),
        [(1, "floor", 4), (1, "ceil", 3), (1, "round", 4), (2, "floor", 4), (2, "ceil", 2), (3, "floor", 6), (3, "ceil", 3), (3, "round", 3)],
    )  # fmt: skip
    def test_by_hand(self, group_size: int, rounding: str, left: int):
        # 0.41 of 6 filters are 2.46: 2, 3 or 2; in pairs 2 or 4 (of 3); in threes 0 or 3 (of 2), 3 (of 2)
        pruner = L1("p", "Filters", 0.41, ["conv.weight"], group_size=group_size, rounding_fn=rounding)
        masks = Pruning(pruner, Layers()).set()
        assert (len(kept(masks["conv.weight"], 0)) if masks else 6) == left

    def test_a_group_of_all_structures_never_goes_in_part(self):
        pruner = L1("p", "Filters", 0.9, ["conv.weight"], group_size=6, rounding_fn="ceil")
        assert Pruning(pruner, Layers()).set() == {}
        pruner = L1("p", "Filters", 1.0, ["conv.weight"], group_size=6)
        assert kept(Pruning(pruner, Layers()).set()["conv.weight"], 0) == []

    def test_groups_that_do_not_divide_are_refused(self):
        pruner = L1("p", "Filters", 0.5, ["conv.weight"], group_size=4)
        message = r"weights: conv.weight: Expected a number of filters that is a multiple of 'group_size' \(4\), got 6"
        with pytest.raises(UserError, match=message):
            pruner.bind(Layers())


class TestBlocks:
    @pytest.mark.parametrize("block", [[1, 8, 1, 1], [3, 8, 1, 1], [2, 1, 1, 1], [1, 1, 1, 1], [2, 2, 1, 1]])
    @pytest.mark.parametrize("rounding", ["floor", "ceil"])
    def test_the_smallest_go(self, block: list[int], rounding: str):
        model = Layers()
        pruner = L1("p", "Blocks", 0.3, ["conv.weight"], kwargs={"block_shape": block}, rounding_fn=rounding)
        mask = Pruning(pruner, model).set()["conv.weight"]
        depth = block[0] * block[1]
        view = (6 // block[0], block[0], -1) if block[1] == 1 else (48 // depth, depth, 9)
        sizes = np.abs(numbers(model, "conv.weight")).reshape(view).sum(1)
        rule: Any = math.floor if rounding == "floor" else math.ceil
        stays = np.ones(sizes.size)
        stays[np.argsort(sizes.ravel(), kind="stable")[: rule(0.3 * sizes.size)]] = 0
        expected = np.broadcast_to(stays.reshape(sizes.shape)[:, None], np.empty(432).reshape(view).shape)
        np.testing.assert_array_equal(mask, expected.reshape(mask.shape))

    def test_one_stays_unless_all_are_asked_for(self):
        for share, left in ((0.99, 1), (1.0, 0)):
            kwargs = {"block_shape": [6, 8, 1, 1]}
            pruner = L1("p", "Blocks", share, ["conv.weight"], kwargs=kwargs, rounding_fn="ceil")
            mask = Pruning(pruner, Layers()).set()["conv.weight"]
            assert mask.reshape(48, 9)[0].sum() == left

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            (None, r"kwargs: Expected 'block_shape: \[repetitions, depth, 1, 1\]' for Blocks, got None"),
            ({}, "kwargs: Expected 'block_shape: .* got None"),
            ({"block_shape": [1, 8]}, r"kwargs: Expected 'block_shape: .* got \[1, 8\]"),
            ({"block_shape": [1, 8, 3, 3]}, "kwargs: Expected 'block_shape: "),
            ({"block_shape": "18"}, "kwargs: Expected 'block_shape: .* got '18'"),
            ({"block_shape": 8}, "kwargs: Expected 'block_shape: .* got 8"),
            ({"block_shape": {"a": 1}}, "kwargs: Expected 'block_shape: .* got {'a': 1}"),
            ({"block_shape": ["1", "8", 1, 1]}, r"kwargs: Expected 'block_shape: .* got \['1'"),
            ({"blockshape": [1, 8, 1, 1]}, "kwargs: Expected one of block_shape, got 'blockshape'. Did you mean 'block_shape'"),
            ([1, 8, 1, 1], r"kwargs: Expected {block_shape: \[...\]}, got \[1, 8, 1, 1\]"),
        ],
    )  # fmt: skip
    def test_that_are_none(self, kwargs: Any, message: str):
        with pytest.raises(UserError, match=message):
            L1("p", "Blocks", 0.5, ["conv.weight"], kwargs=kwargs)

    def test_that_do_not_divide(self):
        message = r"weights: conv.weight: Expected a block shape that divides the weight of shape \(6, 8, 3, 3\) exactly, got \[1, 7, 1, 1\]"
        with pytest.raises(UserError, match=message):
            L1("p", "Blocks", 0.5, ["conv.weight"], kwargs={"block_shape": [1, 7, 1, 1]}).bind(Layers())

    def test_a_block_shape_of_other_groups(self):
        with pytest.raises(
            UserError, match="kwargs.block_shape: Expected 'group_type: Blocks' beside a block shape"
        ):
            L1("p", "Filters", 0.5, ["w"], kwargs={"block_shape": [1, 8, 1, 1]})


class TestGlobal:
    WEIGHTS = ["conv.weight", "up.weight", "fc.weight"]

    def rows(self, name: str, array: np.ndarray, group_type: str) -> np.ndarray:
        """Return the groups as rows; outputs of the transposed convolution lie on dimension 1."""
        if group_type == "Elements":
            return array.reshape(-1, 1)
        dim = 0 if (group_type == "Filters") == (name != "up.weight") else 1
        return np.moveaxis(array, dim, 0).reshape(array.shape[dim], -1)

    def brute(self, arrays: dict[str, np.ndarray], order: int, budget: int) -> dict[str, set[int]]:
        """Return which groups stay: drop one after the other, by mean magnitude or root mean square."""
        entries: list[Any] = []
        stays: dict[str, set[int]] = {}
        for name, rows in arrays.items():
            scores = np.abs(rows).mean(1) if order == 1 else np.sqrt((rows**2).mean(1))
            stays[name] = {int(scores.argmax())}  # whatever the budget is
            entries += [
                (score, name, index, rows.shape[1])
                for index, score in enumerate(scores)
                if index not in stays[name]
            ]
        for position, (*_, size) in enumerate(sorted(entries)):
            budget -= size
            if budget < 0:
                for _, other, left, _ in sorted(entries)[position:]:
                    stays[other].add(left)
                break
        return stays

    @pytest.mark.parametrize(("kind", "order"), [(L1, 1), (L2, 2)])
    @pytest.mark.parametrize("group_type", ["Elements", "Filters", "Channels"])
    @pytest.mark.parametrize("share", [0.1, 0.5, 0.8, 0.99])
    def test_one_ranking_over_all_layers(self, kind: Any, order: int, group_type: str, share: float):
        model = Layers()
        with torch.no_grad():  # all layers come into it
            for name in self.WEIGHTS:
                model.get_parameter(name).normal_()
        pruning = Pruning(kind("p", group_type, share, self.WEIGHTS, scope="global"), model, "module")
        masks = pruning.set()
        arrays = {name: self.rows(name, numbers(model, name), group_type) for name in self.WEIGHTS}
        budget = int(share * sum(rows.size for rows in arrays.values()))
        for name, left in self.brute(arrays, order, budget).items():
            rows = self.rows(name, masks[name], group_type)
            assert set(np.flatnonzero(rows.all(1)).tolist()) == left
            assert ((rows == 0).all(1) | (rows == 1).all(1)).all()
        assert sum((mask == 0).sum() for mask in masks.values()) <= budget

    def test_by_hand(self, device: torch.device):
        model = nn.ModuleDict({"a": nn.Conv2d(1, 4, 1), "b": nn.Conv2d(4, 3, 1), "c": nn.Conv2d(2, 2, 1)}).to(
            device
        )
        fill(model, "a.weight", [1.0, 6.0, 3.0, 9.0], 0)  # filters of 1 element
        fill(model, "b.weight", [2.0, 5.0, 7.0], 0)  # of 4
        fill(model, "c.weight", [0.1, 0.2], 0)  # of 2; its largest stays in any case
        names = [f"{name}.weight" for name in "abc"]
        left = {}
        for share in (0.1, 0.2, 0.4, 0.5, 0.99):
            masks = Pruning(L1("p", "Filters", share, names, scope="global"), model).set()
            left[share] = [kept(masks[name], 0) for name in names]
        # of 20 elements: c0 (2); then a0 (3 of 4) and b0 does not fit; c0 a0 b0 a2 (8); the same and b1 does
        # not fit (10); at last b1 (12) and a1 (13)
        assert left[0.1] == [[0, 1, 2, 3], [0, 1, 2], [1]]
        assert left[0.2] == [[1, 2, 3], [0, 1, 2], [1]]
        assert left[0.4] == [[1, 3], [1, 2], [1]]
        assert left[0.5] == [[1, 3], [1, 2], [1]]
        assert left[0.99] == [[3], [2], [1]]

    def test_all_go_where_the_share_is_one(self):
        masks = Pruning(L1("p", "Kernels", 1.0, ["conv.weight", "up.weight"], scope="global"), Layers()).set()
        assert [mask.sum() for mask in masks.values()] == [0, 0]

    def test_nothing_goes_where_it_is_nothing(self):
        assert Pruning(L1Gradual("p", 0, 0.5, "Kernels", ["c*"], scope="global"), Layers()).set() == {}

    def test_what_is_pruned_stays_so(self):
        pruning = Pruning(L1Gradual("p", 0.3, 0.9, "Elements", self.WEIGHTS, scope="global"), Layers())
        total = sum(numbers(pruning.model, name).size for name in self.WEIGHTS)
        earlier: dict[str, np.ndarray] = {}
        for epoch in range(4):
            masks = pruning.prune(epoch, end=4)
            share = pruning.pruner.target(
                "fc.weight", {"starting_epoch": 0, "ending_epoch": 4, "frequency": 1, "current_epoch": epoch}
            )
            assert sum((mask == 0).sum() for mask in masks.values()) == int(share * total)
            assert all((masks[name] <= mask).all() for name, mask in earlier.items())
            earlier = masks

    def test_a_layer_of_zeros_keeps_one_that_is_not_pruned_yet(self):
        model = Layers()
        fill(model, "conv.weight", [0.0] * 6, 0)
        pruning = Pruning(L1("p", "Filters", 0.9, ["conv.weight", "up.weight"], scope="global"), model)
        pruning.masks["conv.weight"].mask = torch.ones(6, 8, 3, 3)
        pruning.masks["conv.weight"].mask[0] = 0
        assert kept(pruning.set()["conv.weight"], 0) == [1]
        pruning.masks["conv.weight"].mask = torch.zeros(6, 8, 3, 3)
        assert kept(pruning.set()["conv.weight"], 0) == []

    @pytest.mark.parametrize("others", [{"group_dependency": "Leader"}, {"noise": 0.1}, {"group_size": 2}])
    def test_with_what_it_does_not_go(self, others: dict[str, Any]):
        with pytest.raises(
            UserError,
            match="scope: Expected 'scope: layer' beside 'group_dependency', 'noise' or 'group_size', got 'global'",
        ):
            L1("p", "Filters", 0.5, ["w"], scope="global", **others)


class TestNoise:
    def test_is_drawn_from_the_pruners_own_stream_as_distiller_draws_it(self):
        random.seed(5)
        torch.manual_seed(6)
        model = nn.Conv2d(3, 20, 3)
        random.seed(5)
        torch.manual_seed(6)
        pruning = Pruning(L1("p", "Filters", 0.5, ["weight"], noise=0.6), model)
        sizes = np.abs(numbers(model, "weight")).sum((1, 2, 3))
        noisy = 0
        state = torch.random.get_rng_state()
        for _ in range(8):
            if random.uniform(0, 1) <= 0.6:
                factors = torch.randn(20).numpy()
                noisy += 1
            else:
                factors = np.ones(20)
            assert kept(pruning.set()["weight"], 0) == largest(sizes * factors, 10)
            pruning.masks["weight"].mask = None
        assert 0 < noisy < 8
        assert not torch.equal(state, torch.random.get_rng_state())

    def test_leaves_the_global_streams_alone(self):
        pruning = Pruning(L1("p", "Filters", 0.5, ["conv.weight"], noise=1), Layers())
        before = random.getstate(), torch.random.get_rng_state()
        pruning.set()
        assert random.getstate() == before[0]
        assert torch.equal(torch.random.get_rng_state(), before[1])

    def test_goes_on_where_it_was_saved(self):
        model = nn.Conv2d(3, 20, 3)
        first, second = (Pruning(L1("p", "Filters", 0.5, ["weight"], noise=0.5), model) for _ in range(2))
        for _ in range(3):
            first.set()
        second.pruner.load_state_dict(first.pruner.state_dict())
        for _ in range(5):
            np.testing.assert_array_equal(first.set()["weight"], second.set()["weight"])

    def test_a_copy_draws_the_same(self):
        first = Pruning(L1("p", "Filters", 0.5, ["weight"], noise=1), nn.Conv2d(3, 20, 3))
        second = copy.deepcopy(first)
        assert second.pruner._bound_to is second.model
        for _ in range(3):
            np.testing.assert_array_equal(first.set()["weight"], second.set()["weight"])


class TestRandomLevel:
    def test_draws_a_share_for_each_weight(self):
        random.seed(3)
        pruning = Pruning(RandomLevel("p", "Channels", [0.2, 0.8], ["conv.weight", "fc.weight"]), Layers())
        for _ in range(5):
            masks = pruning.set()
            for name, count in (("conv.weight", 8), ("fc.weight", 12)):
                asked = random.uniform(0.2, 0.8)
                sizes = np.abs(numbers(pruning.model, name)).sum((0, 2, 3) if count == 8 else 0)
                assert kept(masks[name], 1) == largest(sizes, int(asked * count))
                pruning.masks[name].mask = None

    def test_a_leader_has_the_last_word(self):
        model = nn.Sequential(nn.Conv2d(2, 9, 1), nn.Conv2d(2, 9, 1))
        names = ["0.weight", "1.weight"]
        masks = Pruning(RandomLevel("p", "Filters", [0.4, 0.6], names, "Leader"), model).set()
        sizes = np.abs(numbers(model, "0.weight")).sum((1, 2, 3))
        for name in names:
            assert kept(masks[name], 0) == largest(sizes, 9 - len(kept(masks[name], 0)))

    def test_goes_on_where_it_was_saved(self):
        model = Layers()
        first, second = (
            Pruning(RandomLevel("p", "Elements", [0, 1], ["fc.weight"]), model) for _ in range(2)
        )
        first.set()
        second.pruner.load_state_dict(first.pruner.state_dict())
        for _ in range(3):
            assert first.set()["fc.weight"].sum() == second.set()["fc.weight"].sum()

    @pytest.mark.parametrize(
        ("asked", "message"),
        [
            (0.5, r"sparsity_range: Expected two numbers between 0 and 1, such as \[0.2, 0.8\], got 0.5"),
            ("05", "sparsity_range: Expected two numbers .* got '05'"),
            ([0.5], "sparsity_range: Expected two numbers"),
            ([0.5, 0.2], r"sparsity_range: Expected the smaller share first, got \[0.5, 0.2\]"),
            ([0.5, 2], "sparsity_range: Expected a number between 0 and 1, got 2"),
            ([None, 1], "sparsity_range: Expected a number between 0 and 1, got None"),
        ],
    )
    def test_ranges_that_are_none(self, asked: Any, message: str):
        with pytest.raises(UserError, match=message):
            RandomLevel("p", "Filters", asked, ["w"])


class TestMistakes:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"noise": 2}, "noise: Expected a number between 0 and 1, got 2"),
            ({"group_size": 0}, "group_size: Expected a whole number of at least 1, got 0"),
            ({"group_size": 1.5}, "group_size: Expected a whole number of at least 1, got 1.5"),
            ({"rounding_fn": "up"}, "rounding_fn: Expected one of floor, ceil, round, got 'up'"),
            (
                {"rounding_fn": "math.ceil"},
                "rounding_fn: Expected one of floor, ceil, round, got 'math.ceil'",
            ),
            ({"scope": "model"}, "scope: Expected one of layer, global, got 'model'"),
            ({"prune_output": 1}, "prune_output: Expected true or false, got 1"),
        ],
    )
    @pytest.mark.parametrize("kind", [L1, L2Gradual])
    def test_of_options(self, kind: Any, options: dict[str, Any], message: str):
        arguments = ("Filters", 0.5, ["w"]) if kind is L1 else (0.1, 0.5, "Filters", ["w"])
        with pytest.raises(UserError, match=message):
            kind("p", *arguments, **options)
