"""Filters that can only go together: who they are, how they are ranked, and what is refused."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from gans import SIZES
from torch import Tensor, nn

from sgc_distiller.channel_tracing import trace
from sgc_distiller.coupled_filters import find_coupled
from sgc_distiller.errors import UserError
from sgc_distiller.module_state import parts_of
from sgc_distiller.names import prunable_names
from sgc_distiller.ranked_pruners import (
    L1RankedStructureParameterPruner,
    RandomLevelStructureParameterPruner,
)
from sgc_distiller.schedule import Schedule
from sgc_distiller.tasks import build_task
from sgc_distiller.tasks.base import GANTask
from sgc_distiller.thinning import thin


def hidden(task: GANTask, generator: nn.Module) -> list[str]:
    return [name for name in prunable_names(generator) if name not in task.output_layers(generator)]


def prune(generator: nn.Module, weights: list[str], share: float, **more: Any) -> Any:
    """Set the masks of a schedule's only epoch and return them."""
    pruner = {
        "class": "L1RankedStructureParameterPruner",
        "group_type": "Filters",
        "group_dependency": "Coupled",
        "desired_sparsity": share,
        "weights": weights,
        **more,
    }
    policy = {"pruner": {"instance_name": "filters"}, "epochs": [0]}
    schedule = Schedule.from_dict({"pruners": {"filters": pruner}, "policies": [policy], "gan": {}})
    scheduler = schedule.build(generator, torch.optim.Adam(generator.parameters()), seed=0)
    scheduler.on_epoch_begin(0)
    scheduler.mask_all_weights()
    return scheduler.zeros_mask_dict


def groups(name: str) -> list[set[str]]:
    task = build_task(name, SIZES[name])
    generator = task.build("generator")
    return [set(item.units) for item in find_coupled(generator, hidden(task, generator))]


def test_residual_blocks_share_their_filters():
    assert groups("stargan") == [
        {"main.0.weight"},
        {"main.3.weight"},
        {"main.6.weight", "main.9.main.3.weight", "main.10.main.3.weight"},
        *({"main.9.main.0.weight"}, {"main.10.main.0.weight"}, {"main.11.weight"}, {"main.14.weight"}),
    ]
    assert groups("dcgan") == [{"main.0.weight"}, {"main.3.weight"}, {"main.6.weight"}]
    assert {"conv_first.weight", "body.0.conv2.weight", "body.1.conv2.weight"} in groups("srgan")
    assert all(len(item) == 1 for item in groups("pix2pix"))
    assert {"G_B.model.7.weight", *(f"G_B.model.{n}.conv_block.5.weight" for n in (10, 11))} in groups(
        "cyclegan"
    )


def test_four_filters_are_one_channel_behind_a_pixel_shuffle():
    task = build_task("srgan", SIZES["srgan"])
    found = {
        next(iter(item.units)): item for item in find_coupled(task.build("generator"), ["upconv1.weight"])
    }
    assert found["upconv1.weight"].count == 8
    assert found["upconv1.weight"].units["upconv1.weight"].tolist() == np.repeat(range(8), 4).tolist()


@pytest.mark.parametrize("name", ["dcgan", "cyclegan"])
def test_another_library_finds_the_same(name: str):
    """Torch-Pruning, which follows the gradient's graph; it does not know the other three generators."""
    pruning = pytest.importorskip("torch_pruning")
    task = build_task(name, SIZES[name])
    part = parts_of(task.build("generator"))[0]
    inputs = torch.randn(1, 100, 1, 1) if name == "dcgan" else torch.randn(1, 3, 32, 32)
    graph = pruning.DependencyGraph().build_dependency(part.network, example_inputs=inputs)
    flow, modules = trace(part.network), dict(part.network.named_modules())
    for layer in list(flow.layers.values())[:-1]:
        found = graph.get_pruning_group(layer.module, pruning.prune_conv_out_channels, idxs=[1])
        theirs = {
            (dependency.target.module, kind)
            for dependency, _ in found
            for kind in ("out", "in")
            if dependency.target.module in modules.values()
            and dependency.handler.__name__ == f"prune_{kind}_channels"
            and isinstance(dependency.target.module, (nn.Conv2d, nn.ConvTranspose2d))
        }
        root = flow.channels.root(int(layer.outputs[1]))
        ours = {
            (item.module, kind)
            for item in flow.layers.values()
            for kind, numbers in (("out", item.outputs), ("in", item.inputs))
            if root in flow.channels.roots(numbers)
        }
        assert ours == theirs, layer.path


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(3, 4, 3, 1, 1)
        self.end = nn.Conv2d(4, 2, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.one(x) + self.other(x))


def test_the_smallest_sums_of_norms_go():
    torch.manual_seed(3)
    network = Sum()
    network.one.weight.data *= 100  # another scale: norms count relative to their layer's mean
    first = network.one.weight.detach().double().numpy().reshape(4, -1)
    second = network.other.weight.detach().double().numpy().transpose(1, 0, 2, 3).reshape(4, -1)
    sizes = [np.abs(item).sum(1) for item in (first, second)]
    order = np.argsort(sum(size / size.mean() for size in sizes))
    masks = prune(network, ["one.weight", "other.weight"], 0.5)
    kept = np.zeros(4)
    kept[order[2:]] = 1
    np.testing.assert_array_equal(masks["one.weight"].mask[:, 0, 0, 0], kept)
    np.testing.assert_array_equal(masks["other.weight"].mask[0, :, 0, 0], kept)
    np.testing.assert_array_equal(masks["one.bias"].mask, kept)
    assert masks["end.weight"].mask is None


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("name", list(SIZES))
def test_what_is_pruned_can_be_taken_out(name: str, share: float):
    torch.manual_seed(0)
    task = build_task(name, SIZES[name])
    generator = task.build("generator")
    weights = hidden(task, generator)
    masks = prune(generator, weights, share)
    for item in find_coupled(generator, weights):
        gone = item.gone(
            {n: generator.get_parameter(n) for n in item.units},
            {n: L1Filters.of(generator, n) for n in item.units},
            {n: masks[n].mask for n in item.units},
        )
        assert int(gone.sum()) == min(int(share * item.count), item.count - 1)
    deployed = task.deploy(generator)
    for part, thinner in zip(parts_of(generator), parts_of(deployed), strict=True):
        thin(part.network, thinner.network)
        for layer in trace(part.network).layers.values():
            assert not (layer.kernels() == 0).flatten(1).all(1).any(), layer.path


class L1Filters:
    """The filters of a generator's weights, as the pruner groups them."""

    @staticmethod
    def of(generator: nn.Module, name: str) -> Any:
        pruner = L1RankedStructureParameterPruner("x", "Filters", 0.5, [name])
        pruner.bind(generator, convention="module")
        return pruner.grouping(name, generator.get_parameter(name))


def test_every_layer_keeps_a_filter_unless_all_go():
    network = Sum()
    assert prune(network, ["one.weight", "other.weight"], 0.99)["one.weight"].mask.sum() == 3
    assert prune(network, ["one.weight", "other.weight"], 1.0)["one.weight"].mask.sum() == 0


@pytest.mark.parametrize(
    ("weights", "more", "message"),
    [
        (["one.weight"], {}, "got 'one.weight' without 'other.weight'; name both"),
        (["end.weight"], {}, "got 'end.weight': it is a channel of the output. Leave it out"),
        (
            ["one.weight"],
            {"group_type": "Channels"},
            "'group_type: Filters' .* got it beside 'group_type: Chan",
        ),
        (["one.weight"], {"noise": 0.5}, "got it beside 'noise: 0.5'"),
        (["one.weight"], {"group_size": 2}, "got it beside 'group_size: 2'"),
        (["one.weight"], {"scope": "global"}, "got 'global'|got it beside 'scope: global'"),
        (["one.weight"], {"group_dependency": "Couple"}, "Did you mean 'Coupled'"),
    ],
)
def test_mistakes_are_named(weights: list[str], more: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        prune(Sum(), weights, 0.5, **more)


def test_a_plain_schedule_cannot_couple_filters():
    pruner = {
        "class": "L1RankedStructureParameterPruner",
        "group_type": "Filters",
        "group_dependency": "Coupled",
        "desired_sparsity": 0.5,
        "weights": ["one.weight", "other.weight"],
    }
    policy = {"pruner": {"instance_name": "filters"}, "epochs": [0]}
    schedule = Schedule.from_dict({"pruners": {"filters": pruner}, "policies": [policy]})
    network = Sum()
    with pytest.raises(UserError, match="Expected a schedule with a 'gan' section"):
        schedule.build(network, torch.optim.Adam(network.parameters()))


def test_distiller_is_not_asked_for_coupled_filters():
    network = Sum()
    pruner = {
        "class": "L1RankedStructureParameterPruner",
        "group_type": "Filters",
        "group_dependency": "Coupled",
        "desired_sparsity": 0.5,
        "weights": ["one.weight", "other.weight"],
    }
    policy = {"pruner": {"instance_name": "filters"}, "epochs": [0]}
    schedule = Schedule.from_dict({"pruners": {"filters": pruner}, "policies": [policy], "gan": {}})
    with pytest.raises(UserError, match="'group_dependency: Coupled'.*Distiller knows 'Leader' only"):
        schedule.plain(network)


def test_patterns_leave_alone_what_cannot_be_taken_out(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        masks = prune(Sum(), ["*.weight"], 0.5)
    assert masks["one.weight"].mask.sum() == 2 * 3
    assert masks["end.weight"].mask is None
    assert "filters leaves alone what cannot be taken out: end.weight: it is a channel" in caplog.text
    with pytest.raises(UserError, match=r"got none \(end\.weight: it is a channel of the output\)"):
        prune(Sum(), ["end*"], 0.5)


def test_random_shares_are_not_coupled():
    with pytest.raises(UserError, match="every weight's share is drawn by itself"):
        RandomLevelStructureParameterPruner("x", "Filters", [0.1, 0.2], ["a"], group_dependency="Coupled")


def test_a_layer_that_is_never_called_is_named():
    network = Sum()
    network.unused = nn.Conv2d(3, 3, 1)
    with pytest.raises(UserError, match=r"layers that the network calls, got 'unused\.weight'"):
        prune(network, ["unused.weight"], 0.5)
