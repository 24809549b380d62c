"""Which norm takes a layer's outputs, and weights with that norm folded in."""
# ruff: noqa: E501  (messages stand on one line)

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from sgc_distiller.checks import ArgumentError
from sgc_distiller.element_pruners import AutomatedGradualPruner
from sgc_distiller.errors import ScheduleError
from sgc_distiller.masks import MaskSet
from sgc_distiller.neighbours import folded_weights, norms_after
from sgc_distiller.pruning_policy import PruningPolicy
from sgc_distiller.ranked_pruners import L1RankedStructureParameterPruner
from sgc_distiller.schedule import dict_config
from sgc_distiller.tasks.dcgan import DCGAN
from tests.pruning import fill, kept


def paths(model: nn.Module) -> dict[str, str]:
    return {name: norm.path for name, norm in norms_after(model).items()}


def block(inputs: int = 2, outputs: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3), nn.BatchNorm2d(outputs), nn.ReLU())


class Branch(nn.Module):
    """Python code decides in the middle; the parts around it can be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = block(), block(3, 4)
        self.third = nn.Conv2d(4, 4, 1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if x.mean() > 0:
            x = self.second(x)
        return self.norm(self.third(x))


class Shared(nn.Module):
    """Two layers that are used twice: one before the same norm, one before two."""

    def __init__(self, decides: bool = False) -> None:
        super().__init__()
        self.decides = decides
        self.same = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))
        conv = nn.Conv2d(2, 2, 1)
        self.left = nn.Sequential(conv, nn.BatchNorm2d(2))
        self.right = nn.Sequential(conv, nn.InstanceNorm2d(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.same(self.same(x))
        if self.decides and x.sum() > 0:
            return x
        return self.left(x) + self.right(x)


class Nosy(nn.Module):
    """Keeps what it saw, counts, and draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = block()
        self.register_buffer("calls", torch.zeros(1))
        self.seen: Any = None

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        self.calls = self.calls + 1
        self.new = torch.randn(3)
        return self.body(x + torch.rand(1))


class MyConv(nn.Conv2d):
    """A user's own layer."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class TestNormsAfter:
    @pytest.mark.parametrize(("wrap", "prefix"), [(lambda model: model, ""), (nn.DataParallel, "module.")])
    def test_of_dcgan(self, wrap: Any, prefix: str):
        generator = wrap(DCGAN(image_size=16, width=4).build("generator"))
        found = norms_after(generator)
        assert {name: norm.path for name, norm in found.items()} == {
            f"{prefix}main.0.weight": f"{prefix}main.1",
            f"{prefix}main.3.weight": f"{prefix}main.4",
        }
        assert all(norm.module is generator.get_submodule(norm.path) for norm in found.values())

    def test_of_resnet18(self):
        found = paths(torchvision.models.resnet18(weights=None))
        expected = {"conv1.weight": "bn1"}
        for stage in (1, 2, 3, 4):
            for index in (0, 1):
                place = f"layer{stage}.{index}"
                expected |= {f"{place}.conv{number}.weight": f"{place}.bn{number}" for number in (1, 2)}
            if stage > 1:
                expected[f"layer{stage}.0.downsample.0.weight"] = f"layer{stage}.0.downsample.1"
        assert found == expected

    def test_where_python_decides_its_parts_are_looked_at(self):
        assert paths(Branch()) == {"first.0.weight": "first.1", "second.0.weight": "second.1"}

    @pytest.mark.parametrize("decides", [False, True])
    def test_a_shared_layer_has_a_norm_only_if_it_is_always_the_same(self, decides: bool):
        assert paths(Shared(decides)) == {"same.0.weight": "same.1"}

    def test_outputs_that_go_elsewhere_too_have_none(self):
        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.norm = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

            def forward(self, x: Tensor) -> Tensor:
                x = self.conv(x)
                return x + self.norm(x)

        assert paths(Twice()) == {}

    def test_other_norms_and_other_layers(self):
        model = nn.Sequential(
            nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Unflatten(1, (6, 1, 1)), nn.ConvTranspose2d(6, 4, 3), nn.GroupNorm(2, 4),
            nn.Conv2d(4, 2, 1), nn.InstanceNorm2d(2), nn.Conv2d(2, 2, 1), nn.ReLU(), nn.BatchNorm2d(2),
        )  # fmt: skip
        assert paths(model) == {"0.weight": "1", "3.weight": "4", "5.weight": "6"}

    def test_a_users_own_layers_are_layers(self):
        class MyNorm(nn.BatchNorm2d):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x) + 1

        assert paths(nn.Sequential(MyConv(2, 3, 1), MyNorm(3))) == {"0.weight": "1"}

    @pytest.mark.parametrize(
        "model", [nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.ModuleList([block()])]
    )
    def test_single_layers_and_lists(self, model: nn.Module):
        found = paths(model)
        assert found == ({"0.0.weight": "0.1"} if isinstance(model, nn.ModuleList) else {})

    def test_leaves_models_and_random_numbers_alone(self):
        model = Nosy()
        state = torch.random.get_rng_state(), random.getstate()
        assert paths(model) == {"body.0.weight": "body.1"}
        assert model.seen is None
        assert not hasattr(model, "new")
        assert model.calls.item() == 0
        assert torch.equal(torch.random.get_rng_state(), state[0])
        assert random.getstate() == state[1]
        assert not any(part.training is False for part in model.modules())


def trained(norm: nn.Module) -> nn.Module:
    """Give a norm statistics and parameters as training leaves them."""
    stream = np.random.RandomState(0)
    with torch.no_grad():
        for name, tensor in [*norm.named_parameters(), *norm.named_buffers()]:
            if tensor.is_floating_point():
                values = (
                    stream.uniform(0.2, 3, tuple(tensor.shape))
                    if "var" in name
                    else stream.standard_normal(tuple(tensor.shape))
                )
                tensor.copy_(torch.from_numpy(values))
    return norm.eval()


LAYERS: dict[str, tuple[nn.Module, nn.Module, tuple[int, ...]]] = {
    "convolution": (nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), (2, 4, 5, 5)),
    "convolution with groups": (nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), (2, 4, 5, 5)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, 2), nn.BatchNorm2d(6), (2, 4, 5, 5)),
    "transposed with groups": (nn.ConvTranspose2d(4, 6, 3, 2, groups=2), nn.BatchNorm2d(6), (2, 4, 5, 5)),
    "linear": (nn.Linear(4, 6), nn.BatchNorm1d(6), (3, 4)),
    "one-dimensional": (nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6, eps=0.1), (2, 4, 7)),
    "no gamma": (nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False), (2, 4, 5, 5)),
}


class TestFolding:
    @pytest.mark.parametrize("name", LAYERS)
    def test_is_the_norm_of_what_the_layer_does(self, name: str, device: torch.device):
        layer, norm, shape = (
            item if isinstance(item, tuple) else item.to(device).double() for item in LAYERS[name]
        )
        trained(norm)
        model = nn.Sequential(layer, norm)
        weights = dict(model.named_parameters())
        folded = folded_weights(weights, model, norms_after(model))
        x = torch.randn(shape, device=device, dtype=torch.float64)
        with torch.no_grad():
            zero = model(torch.zeros_like(x))  # what does not depend on the weight
            expected = F.batch_norm(
                layer(x), norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
            )
            layer.weight.copy_(folded["0.weight"])
            layer.bias.zero_()
            torch.testing.assert_close(layer(x) + zero, expected, rtol=0, atol=1e-6)
        assert not folded["0.weight"].requires_grad
        assert folded["0.bias"] is weights["0.bias"]

    def test_only_batch_norms_with_running_statistics(self):
        model = nn.Sequential(
            nn.Conv2d(2, 2, 1), nn.InstanceNorm2d(2, affine=True), nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2, track_running_stats=False)
        )  # fmt: skip
        weights = dict(model.named_parameters())
        folded = folded_weights(weights, model, norms_after(model))
        assert all(folded[name] is weights[name] for name in weights)

    def test_has_the_weights_type(self):
        model = nn.Sequential(nn.Conv2d(2, 2, 1).to(torch.bfloat16), trained(nn.BatchNorm2d(2)))
        assert (
            folded_weights(dict(model.named_parameters()), model, norms_after(model))["0.weight"].dtype
            == torch.bfloat16
        )


class TestRanking:
    def model(self) -> nn.Module:
        """Filters of size 1, 2, 3 and norms that make them 10, 2, 0.3."""
        model = nn.Sequential(nn.Conv2d(1, 3, 1, bias=False), nn.BatchNorm2d(3, eps=0), nn.Conv2d(3, 3, 1))
        fill(model, "0.weight", [1.0, 2.0, 3.0], 0)
        fill(model, "2.weight", [1.0, 2.0, 3.0], 0)
        with torch.no_grad():
            model[1].weight.copy_(torch.tensor([10.0, -1.0, 0.2]))
            model[1].running_var.copy_(torch.tensor([1.0, 1.0, 4.0]))
        return model

    def masks(self, policy: PruningPolicy, model: nn.Module) -> MaskSet:
        masks = MaskSet(model)
        epochs = {"starting_epoch": 0, "ending_epoch": 2, "frequency": 1, "current_epoch": 1}
        policy.on_epoch_begin(model, masks, epochs)
        return masks

    @pytest.mark.parametrize(("folds", "left"), [(False, [1, 2]), (True, [0, 1])])
    def test_folding_changes_which_filter_goes(self, folds: bool, left: list[int]):
        pruner = L1RankedStructureParameterPruner("p", "Filters", 0.4, ["0.weight", "2.weight"])
        model = self.model()
        masks = self.masks(PruningPolicy(pruner, {"fold_batchnorm": folds}), model)
        assert kept(masks["0.weight"].mask.numpy(), 0) == left
        assert kept(masks["2.weight"].mask.numpy(), 0) == [1, 2]
        assert model[0].weight.flatten().tolist() == [1, 2, 3]  # the weights themselves are not touched

    def test_folding_changes_which_element_goes(self):
        policy = PruningPolicy(AutomatedGradualPruner("p", 0.1, 0.4, ["*"]), {"fold_batchnorm": True})
        masks = self.masks(policy, self.model())
        assert masks["0.weight"].mask.flatten().tolist() == [1, 1, 0]
        assert masks["2.weight"].mask.flatten().tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1]

    def test_statistics_are_those_of_the_moment(self):
        model = self.model()
        policy = PruningPolicy(
            L1RankedStructureParameterPruner("p", "Filters", 0.4, ["0.weight"]), {"fold_batchnorm": True}
        )
        self.masks(policy, model)
        with torch.no_grad():
            model[1].running_var.copy_(torch.tensor([1e6, 1.0, 1e-4]))
        assert kept(self.masks(policy, model)["0.weight"].mask.numpy(), 0) == [1, 2]

    @pytest.mark.parametrize(
        ("model", "convention"),
        [
            (nn.Sequential(nn.Conv2d(1, 3, 1)), "module"),
            (nn.Sequential(nn.Conv2d(1, 3, 1), nn.InstanceNorm2d(3)), "module"),
            (
                nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), *block(3, 3)),
                "module",
            ),  # its norm is another layer's
            (
                nn.Sequential(nn.ConvTranspose2d(1, 3, 1), nn.BatchNorm2d(3)),
                "stored",
            ),  # Distiller folds Conv2d only
        ],
    )
    def test_nothing_to_fold_is_refused(self, model: nn.Module, convention: Any):
        pruner = L1RankedStructureParameterPruner("p", "Channels", 0.5, ["0.weight"])
        message = "fold_batchnorm: Expected a convolution with a batch norm behind it .* found none among the layers that are pruned"
        with pytest.raises(ArgumentError, match=message):
            PruningPolicy(pruner, {"fold_batchnorm": True}).bind(model, (), convention)

    def test_transposed_convolutions_by_module(self):
        model = nn.Sequential(nn.ConvTranspose2d(1, 3, 1), nn.BatchNorm2d(3, eps=0))
        fill(model, "0.weight", [1.0, 2.0, 3.0], 1)
        with torch.no_grad():
            model[1].weight.copy_(torch.tensor([10.0, -1.0, 0.2]))
        policy = PruningPolicy(
            L1RankedStructureParameterPruner("p", "Filters", 0.4, ["0.weight"]), {"fold_batchnorm": True}
        )
        policy.bind(model, (), "module")
        assert kept(self.masks(policy, model)["0.weight"].mask.numpy(), 1) == [0, 1]

    def test_the_mistake_is_placed_at_the_policy(self):
        pruner = {
            "class": "AutomatedGradualPruner",
            "initial_sparsity": 0,
            "final_sparsity": 0.5,
            "weights": ["0.weight"],
        }
        policy = {
            "pruner": {"instance_name": "p", "args": {"fold_batchnorm": True}},
            "starting_epoch": 0,
            "ending_epoch": 2,
            "frequency": 1,
        }
        with pytest.raises(
            ScheduleError, match=r"policies\[0\].pruner.args.fold_batchnorm: Expected a convolution with"
        ):
            dict_config(
                nn.Sequential(nn.Conv2d(1, 3, 1)), None, {"pruners": {"p": pruner}, "policies": [policy]}
            )
