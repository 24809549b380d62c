"""Which elements go: against stable sorts in numpy, on ties, zeros, masks and all floating types."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sgc_distiller import selection
from sgc_distiller.selection import drop_smallest, keep_largest

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
WAYS = [drop_smallest, selection._drop_on_device]  # the second one is that of a GPU, wherever it runs


def few_values(**sizes: int) -> st.SearchStrategy[list[float]]:
    """Return lists with many ties, both zeros, and signs."""
    return st.lists(st.sampled_from([-0.0, 0.0, 0.25, -0.25, 0.5, -3.0, 1e-4, float("inf")]), **sizes)


def first_in_order(scores: Tensor, count: int) -> list[bool]:
    """Return the elements that a stable sort of float64 puts first; -0.0 and 0.0 are equal there."""
    dropped = np.zeros(scores.numel(), dtype=bool)
    dropped[np.argsort(scores.cpu().double().numpy(), kind="stable")[:count]] = True
    return list(dropped)


class TestDropSmallest:
    @pytest.mark.parametrize("way", WAYS)
    @settings(deadline=None, max_examples=80)
    @given(
        values=few_values(min_size=1, max_size=60) | st.lists(st.floats(-9, 9), min_size=1, max_size=30),
        share=st.floats(0, 1),
        dtype=st.sampled_from(FLOATS),
    )
    def test_as_many_as_asked_in_order_of_a_stable_sort(
        self,
        device: torch.device,
        way: Callable[[Tensor, int], Tensor],
        values: list[float],
        share: float,
        dtype: torch.dtype,
    ):
        scores = torch.tensor(values, dtype=dtype, device=device)
        count = max(1, round(share * len(values)))
        before = scores.clone()
        dropped = way(scores, count)
        assert dropped.dtype == torch.bool
        assert dropped.tolist() == first_in_order(scores, count)
        assert torch.equal(scores, before)

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("values", ["distinct", "few", "half the smallest", "a 30th zeros", "sorted"])
    def test_of_large_tensors(
        self, way: Callable[[Tensor, int], Tensor], values: str, device: torch.device
    ) -> None:
        scores = torch.randn(60_000, generator=torch.Generator().manual_seed(0)).to(device)
        if values == "few":
            scores = scores.mul(2).round()
        elif values == "half the smallest":
            scores[::2] = -9.0
        elif values == "a 30th zeros":
            scores.abs_()[::30] = -0.0
        elif values == "sorted":
            scores = scores.sort(descending=True).values
        for count in (1, 29_999, 30_000, 30_001, 54_000, 60_000):
            assert way(scores, count).tolist() == first_in_order(scores, count)

    def test_none_and_nothing(self, device: torch.device):
        assert drop_smallest(torch.tensor([-1.0, 0.0], device=device), 0).tolist() == [False, False]
        assert drop_smallest(torch.empty(0, device=device), 0).tolist() == []

    def test_reaches_scores_that_learn_and_that_lie_apart(self, device: torch.device):
        scores = torch.arange(8.0, device=device, requires_grad=True)[::2]
        assert drop_smallest(-scores, 1).tolist() == [False, False, False, True]

    @pytest.mark.gpu
    def test_never_waits_for_the_gpu(self):
        weight = torch.randn(64, 3, device="cuda")
        mask = keep_largest(weight, 50)
        torch.cuda.set_sync_debug_mode("error")
        try:
            keep_largest(weight, 60, mask)
            drop_smallest(weight.flatten(), 10)
        finally:
            torch.cuda.set_sync_debug_mode("default")


class TestKeepLargest:
    def test_by_hand(self, device: torch.device):
        weight = torch.tensor([[0.5, -0.1, 0.0], [-2.0, 0.1, 0.3]], device=device)
        assert keep_largest(weight, 3).tolist() == [[1, 0, 0], [1, 0, 1]]

    @pytest.mark.parametrize("count", [1, 5, 8])
    def test_of_equal_elements_the_first_go(self, count: int, device: torch.device):
        mask = keep_largest(torch.full((2, 2, 2), -0.7, device=device), count)
        assert mask.flatten().tolist() == [0] * count + [1] * (8 - count)

    @settings(deadline=None, max_examples=150)
    @given(
        elements=st.lists(
            st.tuples(st.sampled_from([-0.0, 0.0, 0.5, -0.5, 2.0]), st.none() | st.booleans()),
            min_size=1,
            max_size=40,
        ),
        has_mask=st.booleans(),
        share=st.floats(0, 1),
        dtype=st.sampled_from(FLOATS),
        mask_dtype=st.sampled_from([*FLOATS, torch.bool]),
    )
    def test_what_is_pruned_goes_first_then_the_smallest_then_the_lowest_index(
        self,
        device: torch.device,
        elements: list[tuple[float, bool | None]],
        has_mask: bool,
        share: float,
        dtype: torch.dtype,
        mask_dtype: torch.dtype,
    ):
        values, kept = zip(*elements, strict=True)
        weight = torch.tensor(values, dtype=dtype, device=device).view(1, -1)
        mask = torch.tensor([keep is not False for keep in kept], device=device).to(mask_dtype).view(1, -1)
        count = max(1, round(share * len(values)))
        found = keep_largest(weight, count, mask if has_mask else None)
        gone = np.array([has_mask and keep is False and value == 0 for value, keep in elements])
        dropped = gone.copy()
        dropped[np.lexsort((np.abs(values), ~gone))[:count]] = True  # the last key counts most
        assert found.flatten().tolist() == (~dropped).astype(float).tolist()
        assert (found.dtype, found.shape, found.device) == (weight.dtype, weight.shape, weight.device)

    def test_what_is_pruned_never_comes_back(self, device: torch.device):
        # 0 and 2 were pruned; 1 is 0 by chance: it has not been pruned, so it goes after them
        weight = torch.tensor([0.0, 0.0, 0.0, 0.5, 0.4], device=device)
        mask = torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0], device=device)
        assert keep_largest(weight, 1, mask).tolist() == [0, 1, 0, 1, 1]
        assert keep_largest(weight, 2, mask).tolist() == [0, 1, 0, 1, 1]
        assert keep_largest(weight, 3, mask).tolist() == [0, 0, 0, 1, 1]
        assert keep_largest(weight, 4, mask).tolist() == [0, 0, 0, 1, 0]
        assert keep_largest(weight, 1).tolist() == [0, 1, 1, 1, 1]

    def test_what_was_masked_but_lives_may_come_back(self, device: torch.device):
        weight = torch.tensor([3.0, 0.1, 2.0], device=device)
        mask = torch.tensor([0.0, 1.0, 1.0], device=device)
        assert keep_largest(weight, 1, mask).tolist() == [1, 0, 1]

    def test_order_is_that_of_indices_not_of_memory(self, device: torch.device):
        weight = torch.ones(2, 3, 2, 2, device=device).to(memory_format=torch.channels_last)
        mask = keep_largest(weight, 4)
        assert mask.flatten().tolist() == [0] * 4 + [1] * 20
        assert mask.is_contiguous(memory_format=torch.channels_last)

    def test_works_where_only_deterministic_kernels_are_allowed(self, device: torch.device):
        torch.use_deterministic_algorithms(True)
        try:
            assert keep_largest(torch.arange(6.0, device=device), 2).sum() == 4
        finally:
            torch.use_deterministic_algorithms(False)

    def test_reaches_a_parameter_that_learns_and_leaves_it_alone(self, device: torch.device):
        weight = nn.Parameter(torch.arange(4.0, device=device))
        mask = keep_largest(weight, 1)
        assert not mask.requires_grad
        assert mask.tolist() == [0, 1, 1, 1]
        assert weight.tolist() == [0, 1, 2, 3]
