"""Which layers have N:M sparsity, compared with a count in plain loops."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sgc_distiller.nm_patterns import layer_patterns
from sgc_distiller.structures import keep_n_of_m


def only(layer: nn.Module, n: int = 2, m: int = 4) -> str:
    (found,) = layer_patterns(layer, n, m)
    assert found.holds == (found.reason == "")
    return found.reason


def holds_by_hand(weight: Tensor, n: int, m: int) -> bool:
    """Return whether no group of m inputs has more than n weights, element by element."""
    outputs, inputs, *kernel = weight.shape
    for output, *place in itertools.product(range(outputs), *map(range, kernel)):
        for first in range(0, inputs, m):
            group = [weight[(output, first + i, *place)].item() for i in range(m)]
            if sum(value != 0 for value in group) > n:
                return False
    return True


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 999),
    density=st.sampled_from([0.1, 0.3, 0.5]),
    kernel=st.sampled_from([None, 1, (2, 3)]),
    groups=st.integers(1, 3),
    pattern=st.sampled_from([(2, 4), (1, 2), (1, 4), (4, 8)]),
)
def test_agrees_with_plain_loops(seed, density, kernel, groups, pattern):
    n, m = pattern
    layer = nn.Linear(groups * m, 3) if kernel is None else nn.Conv2d(groups * m, 3, kernel)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.weight.mul_(torch.rand(layer.weight.shape, generator=rng) < density)
    assert (only(layer, n, m) == "") == holds_by_hand(layer.weight, n, m)


@pytest.mark.parametrize("layer", [nn.Conv2d(8, 5, 3), nn.Linear(12, 3)])
def test_what_the_pruner_leaves_qualifies_and_one_weight_more_does_not(layer):
    with torch.no_grad():
        layer.weight.mul_(keep_n_of_m(layer.weight, 2, 4, dim=1))
    assert only(layer) == ""
    with torch.no_grad():
        layer.weight[2, 4:8] = 1.0
    place = " at (0, 0)" if layer.weight.dim() == 4 else ""
    what = "filter" if place else "output"
    wrong, groups = (9, 90) if place else (1, 9)
    expected = f"{what} 2, inputs 4 to 7{place}: 4 not zero; {wrong} of {groups} groups have more than 2"
    assert only(layer) == expected


def test_the_first_violation_is_named():
    layer = nn.Conv2d(8, 6, 3)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[3, 4:7, 1, 2] = 1.0
    expected = "filter 3, inputs 4 to 7 at (1, 2): 3 not zero; 1 of 108 groups have more than 2"
    assert only(layer) == expected


def test_along_outputs_or_within_a_kernel_it_does_not_count():
    layer = nn.Conv2d(4, 4, 4)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.weight[:2] = 0.0
    assert only(layer).startswith("filter 2, inputs 0 to 3 at (0, 0): 4 not zero")
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.weight[..., :2] = 0.0
    assert only(layer).startswith("filter 0, inputs 0 to 3 at (0, 2): 4 not zero")


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.ConvTranspose2d(8, 4, 3), "a transposed convolution, for which there are no sparse kernels"),
        (nn.ConvTranspose1d(8, 4, 3), "a transposed convolution, for which there are no sparse kernels"),
        (nn.Conv3d(8, 4, 3), "neither a Conv2d nor a Linear"),
        (nn.Conv2d(3, 4, 3), "3 inputs, not a multiple of 4"),
        (nn.Linear(1, 4), "1 input, not a multiple of 4"),
        (nn.Conv2d(8, 8, 3, groups=8), "1 input of each group, not a multiple of 4"),
    ],
)
def test_other_layers_do_not_qualify_though_they_are_all_zeros(layer, reason):
    nn.init.zeros_(layer.weight)
    assert only(layer) == reason


def test_layers_of_a_network_are_named_in_its_order():
    network = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.Linear(4, 2)))
    found = layer_patterns(network)
    assert [(item.name, item.kind, item.shape) for item in found] == [
        ("0.weight", "Conv2d", (4, 4, 1, 1)),
        ("2.0.weight", "Linear", (2, 4)),
    ]
