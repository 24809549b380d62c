"""Taking channels out of networks: pictures stay what they were, of our generators and of made-up ones."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from gans import SIZES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from sgc_distiller.channel_tracing import trace
from sgc_distiller.deployment import example_inputs
from sgc_distiller.errors import UserError
from sgc_distiller.module_state import parts_of
from sgc_distiller.neighbours import norms_after
from sgc_distiller.tasks import build_task
from sgc_distiller.thinning import Thinning, fit, sizes_beside, thin


def moved(network: nn.Module, seed: int = 0) -> nn.Module:
    """Return a network whose norms do not begin at 0 and 1."""
    torch.manual_seed(seed)
    for module in network.modules():
        for name, low, high in (("weight", 0.5, 1.5), ("bias", -1.0, 1.0), ("running_mean", -1.0, 1.0)):
            if "Norm" in type(module).__name__ and isinstance(getattr(module, name, None), Tensor):
                getattr(module, name).data.uniform_(low, high)
        if isinstance(getattr(module, "running_var", None), Tensor):
            module.running_var.data.uniform_(0.5, 2.0)
    return network


def clear(layer: Any, filters: Any) -> None:
    """Set filters (true outputs) of a layer to 0."""
    weight = layer.weight.data
    if not isinstance(layer, nn.ConvTranspose2d):
        weight[filters] = 0
        return
    columns, rows = weight.shape[1], weight.shape[0] // layer.groups
    for number in filters:
        group, column = divmod(int(number), columns)
        weight[group * rows : (group + 1) * rows, column] = 0


def silence(network: nn.Module, share: float, seed: int = 0) -> int:
    """Set a share of the filters to 0, those that go together at once, with their biases and norms."""
    rng, flow, norms = np.random.default_rng(seed), trace(network), norms_after(network)
    channels = flow.channels
    roots = {root for layer in flow.layers.values() for root in channels.roots(layer.outputs).tolist()}
    gone = [root for root in sorted(roots) if not channels.fixed(root) and rng.random() < share]
    for layer in flow.layers.values():
        index = np.flatnonzero(np.isin(channels.roots(layer.outputs), gone))
        clear(layer.module, index)
        norm = norms.get(f"{layer.path}.weight")
        for owner in (layer.module, norm.module if norm else None):
            for name in ("bias",) if owner is layer.module else ("weight", "bias"):
                if isinstance(getattr(owner, name, None), Tensor):
                    getattr(owner, name).data[index] = 0
    return len(gone)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("name", list(SIZES))
def test_a_thinned_generator_draws_what_the_masked_one_draws(name: str, share: float):
    task = build_task(name, SIZES[name])
    generator = moved(task.build("generator"))
    for part in parts_of(generator):
        silence(part.network, share)
    deployed = task.deploy(generator)
    inputs = example_inputs(task, deployed, task.open_data(None, "train"), 2)
    own = {part.name: part for part in parts_of(generator)}
    fresh = task.build("generator")
    for part in parts_of(deployed):
        wanted = part.network(*inputs[part.name])
        found = thin(own[part.name].network, part.network)
        assert found.sizes
        assert not found.biases, "supervised filter pruning leaves nothing to fold"
        assert all(set(why) == {"the layer needs one filter"} for why in found.stays.values())
        torch.testing.assert_close(part.network(*inputs[part.name]), wanted, atol=2e-5, rtol=0)
        for layer in trace(part.network).layers.values():
            zero = (layer.kernels() == 0).flatten(1).all(1)
            assert not zero.any() or zero.all(), "a zero filter stays only where it is all that there is"
        other = {item.name: item.network for item in parts_of(fresh)}[part.name]
        told = sizes_beside(own[part.name].network, other)
        assert all(
            value == found.sizes[path][name] for path, had in told.items() for name, value in had.items()
        )
        fit(other, told, own[part.name].network.state_dict())
        other.load_state_dict(own[part.name].network.state_dict())
    again = task.deploy(fresh)
    for part, built in zip(parts_of(deployed), parts_of(again), strict=True):
        torch.testing.assert_close(built.network(*inputs[part.name]), part.network(*inputs[part.name]))
        own[part.name].network.train()(*inputs[part.name])  # statistics, which deployed norms lack, fit too


class Made(nn.Module):
    """A network that follows a plan of operations on pictures of 8x8 pixels."""

    def __init__(self, plan: list[tuple[str, int]], seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.plan = plan
        self.parts = nn.ModuleList()
        self.first = nn.Conv2d(3, 8, 3, 1, 1)
        self.widths = [8]
        for kind, choice in plan:
            self.parts.append(self._part(kind, choice))
        self.last = nn.Conv2d(self.widths[-1], 2, 3, 1, 1)

    def _part(self, kind: str, choice: int) -> nn.Module:
        width = self.widths[-1]
        made: nn.Module
        if kind == "conv":
            new = (4, 6, 8)[choice % 3]
            groups = 2 if choice % 5 == 0 and width % 2 == 0 else 1
            pad: dict[str, Any] = [{"padding": 1}, {"padding": 1, "padding_mode": "reflect"}][choice % 2]
            made = nn.Conv2d(width, new, 3, bias=choice % 4 != 0, groups=groups, **pad)
        elif kind == "transposed":
            new = (4, 6)[choice % 2]
            groups = 2 if choice % 3 == 0 and width % 2 == 0 else 1
            made = nn.ConvTranspose2d(width, new, 3, 1, 1, bias=choice % 4 != 0, groups=groups)
        elif kind == "depthwise":
            new = width * (1 + choice % 2)
            made = nn.Conv2d(width, new, 3, padding=1, groups=width)
        elif kind == "norm":
            new = width
            norms = [nn.BatchNorm2d, nn.InstanceNorm2d, lambda n: nn.InstanceNorm2d(n, affine=True)]
            norms += [lambda n: nn.GroupNorm(2 if n % 2 == 0 else 1, n), lambda n: nn.GroupNorm(n, n)]
            made = norms[choice % 5](width)
        elif kind == "activation":
            new = width
            kinds = (
                nn.ReLU(True),
                nn.LeakyReLU(0.2, True),
                nn.Tanh(),
                nn.Sigmoid(),
                nn.PReLU(width),
                nn.PReLU(),
            )
            made = kinds[choice % 6]
        elif kind == "residual":
            new = width
            made = nn.Sequential(nn.Conv2d(width, 6, 3, 1, 1), nn.ReLU(), nn.Conv2d(6, width, 1))
        elif kind == "gate":
            new = width
            made = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, width, 1), nn.Sigmoid())
        elif kind == "shuffle":
            new = 4
            made = nn.Sequential(nn.Conv2d(width, 16, 3, 1, 1), nn.PixelShuffle(2), nn.AvgPool2d(2))
        else:  # concatenation
            new = width + self.widths[0]
            made = nn.Identity()
        self.widths.append(new)
        return made

    def forward(self, x: Tensor) -> Tensor:
        x = first = self.first(x)
        for (kind, _), part in zip(self.plan, self.parts, strict=True):
            if kind == "residual":
                x = x + part(x)
            elif kind == "gate":
                x = x * part(x)
            elif kind == "join":
                x = torch.cat([x, first], 1)
            else:
                x = part(x)
        return self.last(x)


KINDS = ("conv", "transposed", "depthwise", "norm", "activation", "residual", "gate", "shuffle", "join")


def zero_some(network: nn.Module, seed: int, whole: bool) -> None:
    """Set filters to 0: those that go together at once, or any; some of them with their biases."""
    if whole:
        silence(network, 0.5, seed)
    rng = np.random.default_rng(seed)
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            index = np.flatnonzero(rng.random(module.out_channels) < (0.1 if whole else 0.5))
            clear(module, index)
            if module.bias is not None and rng.random() < 0.5:
                module.bias.data[index] = 0


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 59)), max_size=7),
    st.integers(0, 2**31),
    st.booleans(),
    st.booleans(),
)
def test_networks_of_any_make_draw_the_same(
    plan: list[tuple[str, int]], seed: int, whole: bool, may_add_biases: bool
):
    network = moved(Made(plan, seed % 1000), seed % 1000).double().eval()
    zero_some(network, seed, whole)
    pictures = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    wanted, built = network(pictures), copy.deepcopy(network)
    found = thin(network, may_add_biases=may_add_biases)
    torch.testing.assert_close(network(pictures), wanted, atol=1e-6, rtol=1e-6)
    fit(built, found.sizes, network.state_dict())
    built.load_state_dict(network.state_dict())
    torch.testing.assert_close(built(pictures), network(pictures), atol=0, rtol=0)


def chain(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers).eval()


def zeroed(layer: nn.Module, *filters: int) -> nn.Module:
    layer.weight.data[list(filters)] = 0  # type: ignore[union-attr, index]
    return layer


def sizes(network: nn.Module) -> list[int]:
    return [layer.weight.shape[0] for layer in network.modules() if isinstance(layer, nn.Conv2d)]


def thinned(network: nn.Module, **options: Any) -> Thinning:
    """Thin a network, and see that it computes what it did."""
    pictures = torch.randn(2, 3, 8, 8)
    wanted = network(pictures)
    found = thin(network, **options)
    torch.testing.assert_close(network(pictures), wanted, atol=1e-5, rtol=1e-5)
    return found


def test_a_constant_goes_into_the_next_bias_where_nothing_is_padded():
    network = chain(zeroed(nn.Conv2d(3, 4, 3), 1), nn.ReLU(), nn.Conv2d(4, 2, 3))
    network[0].bias.data[1] = 0.7
    shift = 0.7 * network[2].weight[:, 1].sum((1, 2)).detach()
    before = network[2].bias.detach().clone()
    found = thinned(network)
    assert sizes(network) == [3, 2]
    assert found.removed == {"0": 1, "2": 0}
    torch.testing.assert_close(network[2].bias.detach(), before + shift)


def test_a_layer_without_a_bias_is_given_one_only_if_it_may():
    def made() -> nn.Sequential:
        torch.manual_seed(0)
        network = chain(zeroed(nn.Conv2d(3, 4, 3), 1), nn.Conv2d(4, 2, 3, bias=False))
        network[0].bias.data[1] = 0.7
        return network

    network = made()
    thinned(network)
    assert sizes(network) == [3, 2]
    assert network[1].bias is not None
    network = made()
    found = thinned(network, may_add_biases=False)
    assert sizes(network) == [4, 2]
    assert found.stays == {"0": ["1 reads the constant 0.7 there, which no bias can replace exactly"]}


def test_a_constant_stays_where_zeros_are_padded_beside_it():
    network = chain(zeroed(nn.Conv2d(3, 4, 3), 1), nn.Conv2d(4, 2, 3, padding=1))
    network[0].bias.data[1] = 0.7
    found = thinned(network)
    assert sizes(network) == [4, 2]
    assert found.stays == {"0": ["1 reads the constant 0.7 there, which no bias can replace exactly"]}
    reflected = chain(zeroed(nn.Conv2d(3, 4, 3), 1), nn.ReflectionPad2d(1), nn.Conv2d(4, 2, 3))
    thinned(reflected)
    assert sizes(reflected) == [3, 2]


@pytest.mark.parametrize(("value", "kept"), [(-0.5, 3), (0.5, 4)])
def test_what_a_norm_leaves_of_a_zero_filter_decides(value: float, kept: int):
    """Behind the ReLU that is 0, or a constant beside padded zeros."""
    norm = nn.BatchNorm2d(4)
    network = moved(chain(zeroed(nn.Conv2d(3, 4, 3), 1), norm, nn.ReLU(), nn.Conv2d(4, 2, 3, 1, 1)))
    network[0].bias.data[1] = norm.running_mean[1]  # so that the norm's bias is all that comes out
    norm.bias.data[1] = value
    thinned(network)
    assert sizes(network) == [kept, 2]
    assert norm.num_features == len(norm.running_mean) == len(norm.weight) == kept


def test_filters_that_nobody_reads_go_too():
    network = chain(nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU(), nn.Conv2d(4, 2, 3, 1, 1))
    network[2].weight.data[:, [0, 3]] = 0
    thinned(network)
    assert sizes(network) == [2, 2]


def test_channels_that_are_normalised_together_stay_together():
    network = moved(chain(nn.Conv2d(3, 4, 3, 1, 1), nn.GroupNorm(2, 4), nn.Conv2d(4, 2, 3, 1, 1)))
    network[2].weight.data[:, 0] = 0
    thinned(network)
    assert sizes(network) == [4, 2]
    network[1] = nn.GroupNorm(4, 4)  # each by itself
    thinned(network)
    assert sizes(network) == [3, 2]
    assert (network[1].num_groups, network[1].num_channels) == (3, 3)


def test_what_only_a_removed_filter_read_goes_with_it():
    network = chain(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1), nn.Conv2d(3, 2, 1))
    network[1].weight.data[1:, 2] = 0  # filter 2 of the first layer is read by filter 0 of the second alone
    network[2].weight.data[:, 0] = 0
    thinned(network)
    assert sizes(network) == [3, 2, 2]


def test_every_layer_keeps_a_filter():
    network = chain(zeroed(nn.Conv2d(3, 4, 3, 1, 1, bias=False), 0, 1, 2, 3), nn.Conv2d(4, 2, 3, 1, 1))
    found = thinned(network)
    assert sizes(network) == [1, 2]
    assert found.stays == {"0": ["the layer needs one filter"]}


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.end = nn.Conv2d(4, 2, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.one(x) + self.other(x))


def test_a_sum_goes_when_both_sides_are_zero():
    network = Sum()
    for layer, filters in ((network.one, [0, 2]), (network.other, [2, 3])):
        layer.weight.data[filters] = 0
        layer.bias.data[filters] = 0
    found = thinned(network)
    assert sizes(network) == [3, 3, 2]
    assert found.stays == {
        "one": ["end reads something there that depends on the input, to which other adds"],
        "other": ["end reads something there that depends on the input, to which one adds"],
    }


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 4, 3, 1, 1), nn.Linear(4 * 64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.relu(self.conv(x)).flatten(1))


def test_a_channel_has_many_inputs_behind_a_flattening():
    network = Flat()
    network.conv.weight.data[1] = 0
    network.conv.bias.data[1] = 0.3
    thinned(network)
    assert (network.conv.out_channels, network.linear.in_features) == (3, 3 * 64)


class Strange(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.end = nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(torch.roll(self.conv(x), 1, 1))


def test_a_way_that_cannot_be_followed_is_named():
    network = Strange()
    network.conv.weight.data[1] = 0
    found = thinned(network)
    assert not found.sizes
    assert found.stays == {"conv": ["its way through roll (roll) cannot be followed"]}


class Deciding(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.mean() > 0 else -x


def test_code_that_looks_at_the_inputs_is_refused():
    with pytest.raises(UserError, match=r"Deciding: the way .* cannot be followed, .*@torch.fx.wrap"):
        thin(Deciding())
    inside = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(nn.ReLU(), Deciding()))
    with pytest.raises(UserError, match=r"1\.1 \(Deciding\): the way .* cannot be followed"):
        thin(inside)


class Functional(nn.Module):
    """The same operations as functions and methods."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(2, 4, 3, 1, 1)
        self.three, self.four = nn.Conv2d(4, 4, 3), nn.Conv2d(8, 2, 3, 1, 1)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        x = F.pixel_shuffle(F.leaky_relu(self.one(x), 0.1, inplace=True), 2)
        x = F.avg_pool2d(self.two(F.dropout(x, training=self.training)), 2)
        y = self.three(F.pad(x, (1, 1, 1, 1), mode="reflect")).tanh_() * 0.5
        y = torch.cat([x.clamp(-1, 1), F.interpolate(y, scale_factor=1.0) * self.scale], dim=1)
        gate = torch.sigmoid(y.mean((2, 3), keepdim=True))
        return self.four(y[:, :, 1:, :-1] * gate - 0.25)


def test_functions_are_followed_as_modules_are():
    network = moved(Functional()).eval()
    network.one.weight.data[:4] = 0  # the first of two channels behind the shuffle
    network.one.bias.data[:4] = 0
    network.three.weight.data[2] = 0
    network.three.bias.data[2] = 0
    thinned(network)
    assert (network.one.out_channels, network.two.in_channels) == (4, 1)
    assert (network.three.out_channels, network.four.in_channels) == (4, 8), "0 - 0.25 beside padded zeros"


def test_sizes_of_another_network_are_refused():
    with pytest.raises(UserError, match="expected a network with a layer 'conv9'"):
        fit(Flat(), {"conv9": {"out_channels": 3}}, {})
    for wrong in ({"out_channels": 0}, {"out_channels": "3"}, {"training": 1}):
        with pytest.raises(UserError, match="conv: expected a size such as out_channels: 12, got"):
            fit(Flat(), {"conv": wrong}, {})  # type: ignore[dict-item]
