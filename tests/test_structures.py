"""Structures of weights: how they are told apart, how large they are, which ones go."""
# ruff: noqa: E501  (messages stand on one line)

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgc_distiller.errors import UserError
from sgc_distiller.structures import (
    GROUP_TYPES,
    find_grouping,
    group_name,
    keep_n_of_m,
    threshold_groups,
)

CONV = (4, 6, 3, 2)

# Group type, axes, block shape, number of groups; and what the groups of an array of that shape hold, by slicing.
PARTS: list[tuple[str, str, Any, int, Any]] = [
    ("Elements", "stored", None, 144, lambda a: list(a.reshape(-1, 1))),
    ("Vectors", "stored", None, 72, lambda a: list(a.reshape(-1, 2))),
    ("Kernels", "stored", None, 24, lambda a: [a[i, j].ravel() for i in range(4) for j in range(6)]),
    ("Filters", "stored", None, 4, lambda a: [a[i].ravel() for i in range(4)]),
    ("Filters", "outputs_first", None, 4, lambda a: [a[i].ravel() for i in range(4)]),
    ("Filters", "inputs_first", None, 6, lambda a: [a[:, i].ravel() for i in range(6)]),
    ("Channels", "stored", None, 6, lambda a: [a[:, i].ravel() for i in range(6)]),
    ("Channels", "outputs_first", None, 6, lambda a: [a[:, i].ravel() for i in range(6)]),
    ("Channels", "inputs_first", None, 4, lambda a: [a[i].ravel() for i in range(4)]),
    ("4D", "stored", None, 1, lambda a: [a.ravel()]),
    # two filters of two kernels each: 8 kernels that follow each other, one place of them is a group
    (
        "Blocks",
        "stored",
        [2, 4, 1, 1],
        18,
        lambda a: [a.reshape(24, 6)[8 * b : 8 * b + 8, place] for b in range(3) for place in range(6)],
    ),
    ("Blocks", "stored", [1, 1, 1, 1], 144, lambda a: list(a.reshape(-1, 1))),
    # depth 1: one place of two filters that follow each other
    (
        "Blocks",
        "stored",
        [2, 1, 1, 1],
        72,
        lambda a: [a.reshape(4, 36)[2 * b : 2 * b + 2, place] for b in range(2) for place in range(36)],
    ),
]
NAMES = [f"{kind} {axes} {block or ''}" for kind, axes, block, *_ in PARTS]


@pytest.mark.parametrize(("kind", "axes", "block", "count", "parts"), PARTS, ids=NAMES)
class TestGrouping:
    def test_groups_hold_what_slices_hold(self, kind, axes, block, count, parts):
        array = np.arange(144, dtype=np.float64).reshape(CONV)
        grouping = find_grouping(kind, CONV, axes, block)
        assert (grouping.count, grouping.size) == (count, 144 // count)
        rows = grouping.gather(torch.from_numpy(array)).numpy()
        np.testing.assert_array_equal(rows, np.stack(parts(array)))

    def test_one_value_a_group_lies_at_each_of_its_elements(self, kind, axes, block, count, parts):
        grouping = find_grouping(kind, CONV, axes, block)
        expanded = grouping.expand(torch.arange(count))
        assert tuple(expanded.shape) == CONV
        rows = grouping.gather(expanded)
        assert (rows == torch.arange(count)[:, None]).all()

    @pytest.mark.parametrize("order", [1, 2, np.inf])
    def test_norms(self, kind, axes, block, count, parts, order: float, device: torch.device):
        array = np.random.RandomState(0).standard_normal(CONV)
        grouping = find_grouping(kind, CONV, axes, block)
        found = grouping.norms(torch.from_numpy(array).to(device), order).cpu().numpy()
        expected = [np.linalg.norm(part, order) for part in parts(array)]
        np.testing.assert_allclose(found, expected, rtol=1e-12)


class TestGroupingOfOtherShapes:
    def test_of_a_matrix(self):
        weight = torch.arange(6.0).reshape(2, 3)
        rows = {
            kind: find_grouping(kind, (2, 3)).gather(weight).tolist() for kind in ("Rows", "Cols", "Channels")
        }
        assert rows["Rows"] == [[0, 1, 2], [3, 4, 5]]
        assert rows["Cols"] == rows["Channels"] == [[0, 3], [1, 4], [2, 5]]
        assert find_grouping("Filters", (2, 3), "outputs_first").gather(weight).tolist() == rows["Rows"]

    def test_of_one_and_three_dimensional_convolutions(self):
        assert find_grouping("Filters", (4, 2, 5)).count == 4
        assert find_grouping("Channels", (4, 2, 5, 5, 5)).count == 2

    def test_neighbours_can_have_one_norm(self):
        weight = torch.tensor([[3.0, 0.0], [4.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
        grouping = find_grouping("Rows", (4, 2))
        assert grouping.norms(weight, 2, together=2).tolist() == [5, 1]
        assert grouping.norms(weight, 1, together=4).tolist() == [8]

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_norms_of_short_numbers_are_not_rounded_to_ties(self, dtype: torch.dtype):
        weight = torch.ones(3, 4096, dtype=dtype)
        weight[1, 0] = 1.5  # 4096.5 is no number of either type
        weight[2, 0] = 0.5
        assert find_grouping("Rows", (3, 4096)).norms(weight, 1).tolist() == [4096, 4096.5, 4095.5]
        large = torch.full((2, 4), 60000.0).to(torch.float16)  # their sum is infinite in half precision
        assert find_grouping("Rows", (2, 4)).norms(large, 1).isfinite().all()

    @pytest.mark.parametrize(
        ("kind", "shape", "axes", "message"),
        [
            ("Filters", (3, 4), "stored", r"the weight of a convolution for the group type Filters, got one of shape \(3, 4\)"),
            ("Filters", (3,), "outputs_first", r"Expected the weight of a convolution .* Group types that fit it: Elements\."),
            ("Channels", (3,), "stored", r"Expected a weight with at least two dimensions for .* Channels, got one of shape \(3,\)"),
            ("Rows", (3, 4, 1, 1), "stored", "Expected a weight with two dimensions for the group type Rows"),
            ("Cols", (3, 4, 1, 1), "stored", "Expected a weight with two dimensions for the group type Cols"),
            ("Kernels", (3, 4), "stored", "Expected a weight with four dimensions for the group type Kernels"),
            ("Vectors", (3, 4, 2), "stored", "Expected a weight with four dimensions for the group type Vectors"),
            ("4D", (3, 4), "stored", "Expected a weight with four dimensions for the group type 4D"),
        ],
    )  # fmt: skip
    def test_weights_without_such_groups(self, kind: str, shape: tuple[int, ...], axes: Any, message: str):
        with pytest.raises(UserError, match=message):
            find_grouping(kind, shape, axes)

    def test_only_what_may_be_asked_for_is_proposed(self):
        with pytest.raises(UserError, match=r"Group types that fit it: Elements, Channels\.$"):
            find_grouping("Filters", (3, 4), among=("Elements", "Channels", "Filters", "Kernels"))
        with pytest.raises(UserError, match=r"got one of shape \(3, 4\)\.$"):
            find_grouping("Filters", (3, 4), among=("Filters",))

    @pytest.mark.parametrize(
        ("block", "shape", "message"),
        [
            (None, CONV, r"Expected 'block_shape: \[repetitions, depth, 1, 1\]' for Blocks, got None"),
            ("1811", CONV, "Expected 'block_shape: .* got '1811'"),
            ([1, 8], CONV, r"Expected 'block_shape: .* got \[1, 8\]"),
            ([1, 8, 3, 3], CONV, r"Expected 'block_shape: .* got \[1, 8, 3, 3\]"),
            ([0, 8, 1, 1], CONV, "Expected 'block_shape: "),
            ([1, 2.0, 1, 1], CONV, "Expected 'block_shape: "),
            ([1, 5, 1, 1], CONV, r"a block shape that divides the weight of shape \(4, 6, 3, 2\) exactly, got \[1, 5, 1, 1\]"),
            ([1, 48, 1, 1], CONV, "a block shape that divides"),  # 144 elements, but 24 kernels
            ([3, 1, 1, 1], CONV, "a block shape that divides"),
            ([1, 2, 1, 1], (4, 6), r"Expected a weight with four dimensions for Blocks, got one of shape \(4, 6\)"),
        ],
    )  # fmt: skip
    def test_blocks_that_are_none(self, block: Any, shape: tuple[int, ...], message: str):
        with pytest.raises(UserError, match=message):
            find_grouping("Blocks", shape, block_shape=block)


class TestNames:
    def test_distillers_names_and_ours(self):
        assert group_name("3D", ["Filters"]) == group_name("Filters", ["Filters"]) == "Filters"
        assert [group_name(f"{n}D", tuple(GROUP_TYPES.values())) for n in range(5)] == [
            "Elements",
            "Vectors",
            "Kernels",
            "Filters",
            "4D",
        ]

    @pytest.mark.parametrize(
        ("asked", "message"),
        [
            (
                "Filter",
                r"Expected a group type \(Filters, 3D, Channels\), got 'Filter'. Did you mean 'Filters'",
            ),
            ("Rows", r"Expected a group type \(Filters, 3D, Channels\), got 'Rows'"),
            (3, "Expected a group type .* got 3"),
            (None, "Expected a group type .* got None"),
            (["3D"], r"Expected a group type .* got \['3D'\]"),
        ],
    )
    def test_others_are_refused(self, asked: Any, message: str):
        with pytest.raises(UserError, match=message):
            group_name(asked, ("Filters", "Channels"))


class TestThresholdGroups:
    WEIGHT = torch.tensor([[1.0, -2.0, 3.0], [0.5, 0.5, -0.5]])

    @pytest.mark.parametrize(
        ("kind", "criterion", "threshold", "kept"),
        [
            ("Rows", "Max", 0.5, [[1, 1, 1], [0, 0, 0]]),  # 3 and 0.5, which is not greater
            ("Rows", "Max", 0.4999, [[1, 1, 1], [1, 1, 1]]),
            ("Rows", "Mean_Abs", 1.9, [[1, 1, 1], [0, 0, 0]]),  # 6 / 3 and 1.5 / 3
            ("Rows", "Mean_Abs", 2.0, [[0, 0, 0], [0, 0, 0]]),
            ("Cols", "Mean_Abs", 1.0, [[0, 1, 1], [0, 1, 1]]),  # 0.75, 1.25, 1.75
            ("Cols", "Max", 2.0, [[0, 0, 1], [0, 0, 1]]),
            ("Channels", "Max", 2.0, [[0, 0, 1], [0, 0, 1]]),
            ("Elements", "Max", 0.5, [[1, 1, 1], [0, 0, 0]]),
        ],
    )
    def test_by_hand(self, kind: str, criterion: Any, threshold: float, kept: Any, device: torch.device):
        mask = threshold_groups(self.WEIGHT.to(device), kind, threshold, criterion)
        assert mask.tolist() == kept
        assert mask.dtype == torch.float32

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
    def test_has_the_weights_type(self, dtype: torch.dtype):
        mask = threshold_groups(self.WEIGHT.to(dtype), "Rows", 0.5, "Max")
        assert mask.dtype == dtype
        assert mask.tolist() == [[1, 1, 1], [0, 0, 0]]

    @pytest.mark.parametrize("kind", ["Kernels", "Filters", "Channels"])
    @pytest.mark.parametrize("axes", ["stored", "inputs_first"])
    def test_of_a_convolution(self, kind: str, axes: Any):
        weight = np.random.RandomState(1).standard_normal(CONV)
        inside = {
            "Kernels": (2, 3),
            "Filters": (0, 2, 3) if axes == "inputs_first" else (1, 2, 3),
            "Channels": (1, 2, 3) if axes == "inputs_first" else (0, 2, 3),
        }[kind]
        for criterion, sizes in (
            ("Max", np.abs(weight).max(inside, keepdims=True)),
            ("Mean_Abs", np.abs(weight).mean(inside, keepdims=True)),
        ):
            threshold = float(np.median(sizes))
            mask = threshold_groups(torch.from_numpy(weight), kind, threshold, criterion, axes)  # type: ignore[arg-type]
            np.testing.assert_array_equal(mask.numpy(), np.broadcast_to(sizes > threshold, CONV))

    def test_a_criterion_that_is_none(self):
        with pytest.raises(UserError, match="Expected one of Max, Mean_Abs, got 'L1'"):
            threshold_groups(self.WEIGHT, "Rows", 0.5, "L1")  # type: ignore[arg-type]


class TestKeepNOfM:
    def test_by_hand(self, device: torch.device):
        weight = torch.tensor([[1.0, -3.0, 2.0, 0.0, 5.0, 5.0, 5.0, 5.0]], device=device)
        assert keep_n_of_m(weight, 2, 4, 1).tolist() == [
            [0, 1, 1, 0, 0, 0, 1, 1]
        ]  # of equal ones the first go
        assert keep_n_of_m(weight.T, 1, 2, 0).flatten().tolist() == [0, 1, 1, 0, 0, 1, 0, 1]

    @settings(deadline=None, max_examples=60)
    @given(data=st.data())
    def test_exactly_n_of_each_m_stay_the_largest(self, data: st.DataObject):
        m = data.draw(st.integers(1, 6))
        n = data.draw(st.integers(0, m))
        rank = data.draw(st.integers(1, 4))
        dim = data.draw(st.integers(0, rank - 1))
        shape = data.draw(st.lists(st.integers(1, 4), min_size=rank, max_size=rank))
        shape[dim] *= m
        seed = data.draw(st.integers(0, 2**16))
        dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
        values = np.random.RandomState(seed).randint(-3, 4, shape)  # many ties
        mask = keep_n_of_m(torch.from_numpy(values).to(dtype), n, m, dim)
        assert (mask.shape, mask.dtype) == (tuple(shape), dtype)
        sizes = np.moveaxis(np.abs(values), dim, -1).reshape(-1, m)
        kept = np.moveaxis(mask.float().numpy(), dim, -1).reshape(-1, m)
        for size, keep in zip(sizes, kept, strict=True):
            assert keep.sum() == n
            order = sorted(range(m), key=lambda index: (size[index], index))
            assert np.flatnonzero(keep).tolist() == sorted(order[m - n :])
