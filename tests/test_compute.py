"""Multiply-adds against torch's own counter, formulas by hand, and a count of every single product."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gans import GANS, make_batch, samples
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sgc_distiller.compute import CONVENTION, multiply_adds
from sgc_distiller.deployment import example_inputs
from sgc_distiller.module_state import parts_of


def torch_macs(network: nn.Module, *inputs: torch.Tensor) -> int:
    """Return what torch counts, which is two operations a multiply-add."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network(*inputs)
    assert counter.get_total_flops() % 2 == 0
    return counter.get_total_flops() // 2


def products_of_transposed(layer: nn.ConvTranspose2d, height: int, width: int) -> tuple[int, int]:
    """Return all products of a transposed convolution one by one: made, and kept after the crop."""
    (kernel_y, kernel_x), (stride_y, stride_x) = layer.kernel_size, layer.stride
    padding, extra = layer.padding[0], layer.output_padding[0]
    rows = (height - 1) * stride_y - 2 * padding + kernel_y + extra
    columns = (width - 1) * stride_x - 2 * padding + kernel_x + extra
    made = kept = 0
    for _ in range(layer.in_channels * layer.out_channels // layer.groups):
        for y, x in np.ndindex(height, width):
            for v, u in np.ndindex(kernel_y, kernel_x):
                made += 1
                row, column = y * stride_y + v - padding, x * stride_x + u - padding
                kept += 0 <= row < rows and 0 <= column < columns
    return made, kept


def test_a_convolution_by_hand_by_torch_and_one_by_one():
    layer = nn.Conv2d(3, 8, (3, 5), stride=(2, 1), padding=(1, 2))
    picture = torch.randn(2, 3, 9, 7)
    (call,) = multiply_adds(layer, [picture])
    output = ((9 + 2 - 3) // 2 + 1, (7 + 4 - 5) // 1 + 1)
    assert call.output_shape == (2, 8, *output)
    assert call.macs == 2 * output[0] * output[1] * 8 * 3 * 15 == torch_macs(layer, picture)
    one_by_one = sum(3 * 3 * 5 for _ in np.ndindex(2, 8, *output))
    assert call.macs == one_by_one
    assert (call.name, call.kind, call.kernel, call.stride, call.padding, call.groups) == (
        *("", "Conv2d", (3, 5), (2, 1), (1, 2)),
        1,
    )
    assert call.weights == call.nonzero == 8 * 3 * 15


@pytest.mark.parametrize("padding", [0, 1])
def test_a_transposed_convolution_multiplies_every_input_with_every_kernel_element(padding: int):
    layer = nn.ConvTranspose2d(4, 6, 4, stride=2, padding=padding, groups=2, bias=False)
    (call,) = multiply_adds(layer, [torch.randn(1, 4, 3, 5)])
    made, kept = products_of_transposed(layer, 3, 5)
    assert call.macs == made == 3 * 5 * 4 * (6 // 2) * 16
    assert (kept == made) == (padding == 0)  # what is cropped was multiplied all the same
    assert call.input_shape == (1, 4, 3, 5)
    assert call.output_shape == (1, 6, 8 - 2 * padding, 12 - 2 * padding)


@settings(max_examples=40, deadline=None)
@given(
    groups=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    size=st.tuples(st.integers(4, 7), st.integers(4, 7)),
    is_transposed=st.booleans(),
    dims=st.integers(1, 2),
)
def test_torch_counts_the_same(
    groups: int, channels: Any, kernel: int, stride: int, size: Any, is_transposed: bool, dims: int
):
    kinds: list[list[Any]] = [[nn.Conv1d, nn.Conv2d], [nn.ConvTranspose1d, nn.ConvTranspose2d]]
    made = kinds[is_transposed][dims - 1](
        channels[0] * groups, channels[1] * groups, kernel, stride=stride, padding=kernel // 2, groups=groups
    )
    given_input = torch.randn(2, channels[0] * groups, *size[:dims])
    try:
        made(given_input)
    except RuntimeError:
        return  # nothing would be left of the picture
    (call,) = multiply_adds(made, [given_input])
    assert call.macs == torch_macs(made, given_input)
    kernels = channels[0] * channels[1] * groups * kernel**dims
    spatial = given_input.shape[2:] if is_transposed else made(given_input).shape[2:]
    assert call.macs == 2 * kernels * int(np.prod(spatial))


def test_a_linear_layer_counts_every_row():
    layer = nn.Linear(5, 7)
    (call,) = multiply_adds(layer, [torch.randn(2, 3, 5)])
    assert call.macs == 2 * 3 * 5 * 7 == torch_macs(layer, torch.randn(2, 3, 5))
    assert (call.kernel, call.stride, call.groups, call.positions) == ((), (), 1, 6)


def test_zeros_multiply_nothing():
    layer = nn.Conv2d(2, 3, 3, padding=1, bias=False)
    layer.weight.data[0] = 0
    layer.weight.data[1, 1, 2] = 0
    (call,) = multiply_adds(layer, [torch.randn(1, 2, 4, 4)])
    assert call.nonzero == 54 - 18 - 3
    smaller = [(w, p) for w in layer.weight.detach().flatten() for p in range(16) if w != 0]
    assert call.macs_nonzero == len(smaller) == 33 * 16
    layer.weight.data.zero_()
    assert multiply_adds(layer, [torch.randn(1, 2, 4, 4)])[0].macs_nonzero == 0


def test_calls_come_in_their_order_with_their_names_and_a_shared_layer_twice():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Conv2d(4, 1, 1)
            self.first = nn.Sequential(nn.Conv2d(1, 4, 3, padding="same"), nn.BatchNorm2d(4), nn.ReLU())
            self.unused = nn.Linear(3, 3)

        def forward(self, picture: torch.Tensor) -> torch.Tensor:
            return self.last(input=self.last(self.first(picture)).expand(-1, 4, -1, -1))

    calls = multiply_adds(Odd(), [torch.randn(1, 1, 6, 6)])
    assert [call.name for call in calls] == ["first.0", "last", "last"]
    assert calls[0].padding == "same"
    assert sum(call.macs for call in calls) == 36 * (9 * 4 + 4 + 4)


def test_the_network_stays_as_it_was():
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Dropout(0.5))
    network.train()
    network[2].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    multiply_adds(network, [torch.randn(1, 1, 1, 1)])  # one value a channel: an error in training mode
    assert [module.training for module in network] == [True, True, False]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())
    with pytest.raises(RuntimeError):
        multiply_adds(network, [torch.randn(1, 3, 1, 1)])
    assert not any(module._forward_hooks for module in network.modules())
    assert network.training


def test_spectral_norm_counts_the_weight_that_multiplies():
    plain = nn.Conv2d(2, 3, 3)
    normed = torch.nn.utils.parametrizations.spectral_norm(nn.Conv2d(2, 3, 3))
    picture = [torch.randn(1, 2, 5, 5)]
    (one,), (other,) = multiply_adds(plain, picture), multiply_adds(normed, picture)
    assert (other.macs, other.weights, other.nonzero) == (one.macs, one.weights, one.nonzero)


@pytest.mark.parametrize("name", GANS)
def test_every_gan_of_ours_as_torch_counts_it(name: str):
    task = GANS[name]()
    generator = task.deploy(task.build("generator"))
    given_inputs = example_inputs(task, generator, samples(task), 1)
    found, expected = 0, 0
    for part in parts_of(generator):
        inputs = given_inputs[part.name]
        assert all(len(item) == 1 for item in inputs)
        calls = multiply_adds(part.network, inputs)
        layers = [
            m for m in part.network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
        ]
        assert len(calls) == len(layers)
        found += sum(call.macs for call in calls)
        expected += torch_macs(part.network, *inputs)
    assert found == expected > 0


def test_twice_the_batch_is_twice_the_work():
    task = GANS["dcgan"]()
    generator = task.deploy(task.build("generator"))
    sums = [
        sum(c.macs for c in multiply_adds(generator, [make_batch(task, torch.device("cpu"), count)["z"]]))
        for count in (1, 2)
    ]
    assert sums[1] == 2 * sums[0]


def test_the_convention_says_what_is_counted():
    for words in ("one multiplication and one addition", "biases", "padded zeros", "crops", "not zero"):
        assert words in CONVENTION
