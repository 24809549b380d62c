"""Filters picked at random, by gradients, by activations."""
# ruff: noqa: E501  (messages stand on one line)

from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sgc_distiller.errors import UserError
from sgc_distiller.filter_pruners import (
    FILTER_PRUNERS,
    ActivationAPoZRankedFilterPruner,
    ActivationAPoZRankedFilterPruner_AGP,
    ActivationMeanRankedFilterPruner,
    BernoulliFilterPruner,
    BernoulliFilterPruner_AGP,
    GradientRankedFilterPruner,
    GradientRankedFilterPruner_AGP,
    RandomRankedFilterPruner,
    RandomRankedFilterPruner_AGP,
)
from sgc_distiller.masks import MaskSet
from sgc_distiller.pruning_policy import PruningPolicy
from sgc_distiller.schedule import dict_config
from tests.pruning import Layers, Pruning, fill, kept, largest, numbers

GRADUAL = [kind for kind in FILTER_PRUNERS if kind.__name__.endswith("_AGP")]
CONSTANT = [kind for kind in FILTER_PRUNERS if kind not in GRADUAL]


class Activated(nn.Module):
    """A convolution whose outputs go through the activation that ranks them."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Module()
        self.block.conv1 = nn.Conv2d(2, 6, 1)
        self.block.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.block.relu1(self.block.conv1(x)))


NAME = "block.conv1.weight"


class TestRandom:
    def test_permutes_as_numpy_does_from_where_it_was(self, device: torch.device):
        np.random.seed(7)
        pruning = Pruning(
            RandomRankedFilterPruner("p", "Filters", 0.5, ["conv.weight", "line.weight"]), Layers().to(device)
        )
        for _ in range(4):
            masks = pruning.set()
            for name, count in (("conv.weight", 6), ("line.weight", 7)):
                assert kept(masks[name], 0) == sorted(np.random.permutation(count)[: -(count // 2)])

    @pytest.mark.parametrize(("share", "left"), [(0.1, None), (0.5, 3), (0.99, 1), (1.0, 0)])
    def test_counts(self, share: float, left: int | None):
        masks = Pruning(RandomRankedFilterPruner("p", "3D", share, ["conv.weight"]), Layers()).set()
        assert (len(kept(masks["conv.weight"], 0)) if masks else None) == left

    def test_gradually_more(self):
        pruning = Pruning(RandomRankedFilterPruner_AGP("p", 0.0, 0.9, "Filters", ["conv.weight"]), Layers())
        counts = [pruning.set(epoch, end=4) for epoch in range(4)]
        # 0.9 - 0.9 * (1 - e / 3)^3 of 6: 0, 3.8, 5.2, 5.4
        assert [len(kept(masks["conv.weight"], 0)) if masks else 6 for masks in counts] == [6, 3, 1, 1]

    def test_outputs_by_module(self):
        pruner = RandomRankedFilterPruner("p", "Filters", 0.4, ["up.weight"])
        assert len(kept(Pruning(pruner, Layers(), "module").set()["up.weight"], 1)) == 6

    def test_pruners_of_a_schedule_draw_one_after_the_other(self):
        def schedule(*names: str) -> dict[str, Any]:
            kind = {"class": "RandomRankedFilterPruner", "group_type": "Filters", "desired_sparsity": 0.5}
            return {
                "pruners": {f"p{name}": {**kind, "weights": [f"{name}.weight"]} for name in names},
                "policies": [{"pruner": {"instance_name": f"p{name}"}, "epochs": [0, 1]} for name in names],
            }

        np.random.seed(3)
        model = nn.Sequential(nn.Conv2d(2, 20, 1), nn.Conv2d(20, 20, 1))
        scheduler = dict_config(model, None, schedule("0", "1"))
        for epoch in range(2):
            scheduler.on_epoch_begin(epoch)
            for name in ("0.weight", "1.weight"):
                expected = sorted(np.random.permutation(20)[:-10])
                assert kept(scheduler.zeros_mask_dict[name].mask.numpy(), 0) == expected


class TestBernoulli:
    def test_filters_that_stay_make_up_for_the_others(self, device: torch.device):
        model = Layers().to(device)
        pruning = Pruning(BernoulliFilterPruner("p", "Filters", 0.4, ["conv.weight"]), model)
        generator = copy.deepcopy(pruning.pruner.streams.torch)
        counts = []
        for _ in range(50):
            drawn = torch.bernoulli(torch.full((6,), 0.6), generator=generator).numpy()
            mask = pruning.set()["conv.weight"]
            assert (mask == mask[:, :1, :1, :1]).all()
            expected = drawn / drawn.mean() if drawn.any() else drawn
            np.testing.assert_allclose(mask[:, 0, 0, 0], expected, rtol=1e-6)
            counts.append(drawn.sum())
        assert 2.8 < np.mean(counts) < 4.4  # 3.6, give or take four deviations of the mean

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_all_can_go(self, dtype: torch.dtype):
        model = Layers().to(dtype)
        mask = Pruning(BernoulliFilterPruner("p", "Filters", 1.0, ["conv.weight"]), model).set()[
            "conv.weight"
        ]
        assert (mask == 0).all()
        dropped = [
            Pruning(BernoulliFilterPruner("p", "Filters", 0.9, ["up.weight"]), model).set()["up.weight"]
            for _ in range(30)
        ]
        assert all(np.isfinite(mask).all() for mask in dropped)

    def test_nothing_goes_where_the_share_is_nothing(self):
        pruner = BernoulliFilterPruner_AGP("p", 0.0, 0.5, "Filters", ["conv.weight"])
        assert Pruning(pruner, Layers()).set(0, end=3) == {}
        assert list(Pruning(pruner, Layers()).set(2, end=3)) == ["conv.weight"]

    def test_weights_stay_what_they_were_with_dense_copies(self, caplog: pytest.LogCaptureFixture):
        model = Layers()
        args = {"mask_on_forward_only": True, "use_double_copies": True, "mini_batch_pruning_frequency": 1}
        scheduler = dict_config(model, None, bernoulli(args))
        assert "larger" not in caplog.text
        before = model.conv.weight.detach().clone()
        scheduler.on_epoch_begin(0)
        for step in range(3):
            scheduler.on_minibatch_begin(0, step, 3)
            mask = scheduler.zeros_mask_dict["conv.weight"].mask
            torch.testing.assert_close(model.conv.weight.detach(), before * mask)
            scheduler.before_parameter_optimization(0, step, 3, None)
            scheduler.on_minibatch_end(0, step, 3)
            assert torch.equal(model.conv.weight, before)

    def test_weights_that_grow_are_warned_of(self, caplog: pytest.LogCaptureFixture):
        dict_config(Layers(), None, bernoulli({"mask_on_forward_only": True}))
        assert (
            "BernoulliFilterPruner makes the weights that stay larger in every step, for good. Set 'mask_on_forward_only: true' and 'use_double_copies: true'"
            in caplog.text
        )


def bernoulli(args: dict[str, Any]) -> dict[str, Any]:
    pruner = {
        "class": "BernoulliFilterPruner",
        "group_type": "Filters",
        "desired_sparsity": 0.5,
        "weights": ["conv.weight"],
    }
    return {
        "pruners": {"p": pruner},
        "policies": [{"pruner": {"instance_name": "p", "args": args}, "epochs": [0]}],
    }


class TestGradient:
    def test_the_smallest_signed_sums_go(self, device: torch.device):
        model = Layers().to(device)
        pruning = Pruning(
            GradientRankedFilterPruner("p", "Filters", 0.5, ["conv.weight", "up.weight"]), model
        )
        assert pruning.set() == {}  # there are no gradients yet
        model.conv.weight.grad = torch.randn_like(model.conv.weight)
        mask = pruning.set()["conv.weight"]
        sums = (numbers(model, "conv.weight") * model.conv.weight.grad.cpu().double().numpy()).sum((1, 2, 3))
        assert (sums < 0).any()
        assert kept(mask, 0) == largest(sums, 3)
        assert pruning.masks["up.weight"].mask is None

    def test_scores_survive_a_resume(self):
        model = Layers()
        first = Pruning(GradientRankedFilterPruner_AGP("p", 0.2, 0.8, "Filters", ["conv.weight"]), model)
        model.conv.weight.grad = torch.randn_like(model.conv.weight)
        other = Layers()
        other.load_state_dict(model.state_dict())
        second = Pruning(GradientRankedFilterPruner_AGP("p", 0.2, 0.8, "Filters", ["conv.weight"]), other)
        second.pruner.load_state_dict(saved(first.pruner.state_dict()))
        assert kept(first.set(1)["conv.weight"], 0) == kept(second.set(1)["conv.weight"], 0)
        other.conv.weight.grad = -model.conv.weight.grad  # new gradients count
        third = kept(second.set(2)["conv.weight"], 0)
        assert third == largest(
            (numbers(other, "conv.weight") * other.conv.weight.grad.double().numpy()).sum((1, 2, 3)),
            6 - len(third),
        )

    def test_nothing_to_save_before_it_is_bound(self):
        assert GradientRankedFilterPruner("p", "Filters", 0.5, ["w"]).state_dict()["scores"] == {}


def saved(state: Any) -> Any:
    """Return a state after it was written and read as checkpoints are."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


class Statistic:
    """What Distiller's collector leaves at a layer."""

    def __init__(self, *values: float) -> None:
        self.values = values

    def value(self) -> tuple[np.ndarray, np.ndarray]:
        return np.array(self.values), np.zeros(len(self.values))


class TestActivation:
    def pruning(self, kind: Any, model: nn.Module, share: float = 0.5) -> Pruning:
        pruning = Pruning(kind("p", "Filters", share, [NAME]), model)
        pruning.pruner.watch()
        return pruning

    @pytest.mark.parametrize("kind", [ActivationAPoZRankedFilterPruner, ActivationMeanRankedFilterPruner])
    def test_the_largest_statistic_goes(self, kind: Any, device: torch.device):
        model = Activated().to(device)
        pruning = self.pruning(kind, model)
        assert pruning.set() == {}  # nothing was measured yet
        inputs = [torch.randn(3, 2, 5, 5, device=device) for _ in range(4)]
        with torch.no_grad():
            for batch in inputs:
                model(batch)
            outputs = torch.cat([torch.relu(model.block.conv1(batch)) for batch in inputs]).cpu().numpy()
        values = (outputs == 0) if kind is ActivationAPoZRankedFilterPruner else outputs
        assert kept(pruning.set()[NAME], 0) == largest(-values.mean((0, 2, 3)), 3)

    def test_passes_count_once(self):
        model = Activated()
        pruning = self.pruning(ActivationMeanRankedFilterPruner, model)
        with torch.no_grad():
            model(torch.randn(2, 2, 3, 3) * 100)
            pruning.set()
            pruning.masks[NAME].mask = None
            assert pruning.set() == {}  # nothing new
            batch = torch.randn(2, 2, 3, 3)
            model(batch)
            means = torch.relu(model.block.conv1(batch)).mean((0, 2, 3)).numpy()
        assert kept(pruning.set()[NAME], 0) == largest(-means, 3)

    def test_what_distillers_collector_left_counts(self):
        model = Activated()
        model.block.relu1.apoz_channels = Statistic(10, 60, 20, 50, 30, 40)
        pruning = self.pruning(ActivationAPoZRankedFilterPruner, model)
        model(torch.randn(2, 2, 3, 3))
        assert not model.block.relu1._forward_hooks
        assert kept(pruning.set()[NAME], 0) == [0, 2, 4]
        del model.block.relu1.apoz_channels
        pruning.masks[NAME].mask = None
        assert pruning.set() == {}

    def test_a_layer_without_conv_in_its_name_is_measured_itself(self):
        model = nn.Sequential(nn.Conv2d(2, 6, 1))
        pruning = Pruning(ActivationMeanRankedFilterPruner("p", "Filters", 0.5, ["0.weight"]), model)
        pruning.pruner.watch()
        with torch.no_grad():
            means = model(torch.ones(1, 2, 4, 4)).mean((0, 2, 3)).numpy()
        assert kept(pruning.set()["0.weight"], 0) == largest(-means, 3)

    def test_a_linear_layers_activations(self):
        model = nn.Sequential(nn.Linear(3, 6))
        pruner = ActivationMeanRankedFilterPruner("p", "Filters", 0.5, ["0.weight"])
        pruning = Pruning(pruner, model, "module")
        pruner.watch()
        with torch.no_grad():
            means = model(torch.ones(2, 3)).mean(0).numpy()
        assert kept(pruning.set()["0.weight"], 0) == largest(-means, 3)

    @pytest.mark.parametrize("is_watched_first", [True, False])
    def test_what_was_measured_survives_a_resume(self, is_watched_first: bool):
        model = Activated()
        other = copy.deepcopy(model)
        first = self.pruning(ActivationAPoZRankedFilterPruner, model)
        second = Pruning(ActivationAPoZRankedFilterPruner("p", "Filters", 0.5, [NAME]), other)
        model(torch.randn(2, 2, 3, 3))
        if is_watched_first:
            second.pruner.watch()
        second.pruner.load_state_dict(saved(first.pruner.state_dict()))
        second.pruner.watch()
        last = torch.randn(2, 2, 3, 3)
        model(last)
        other(last)
        found = second.pruner._meters[NAME]
        assert found.passes == 2
        torch.testing.assert_close(found.value(), first.pruner._meters[NAME].value())
        np.testing.assert_array_equal(second.set()[NAME], first.set()[NAME])

    def test_a_state_can_be_loaded_before_the_pruner_is_bound(self):
        first = self.pruning(ActivationAPoZRankedFilterPruner, Activated())
        first.model(torch.randn(2, 2, 3, 3))
        pruner = ActivationAPoZRankedFilterPruner("p", "Filters", 0.5, [NAME])
        pruner.load_state_dict(first.pruner.state_dict())
        second = Pruning(pruner, first.model)
        np.testing.assert_array_equal(second.set()[NAME], first.set()[NAME])

    def test_binding_watches_nothing_and_watching_twice_is_once(self):
        model = Activated()
        pruner = ActivationAPoZRankedFilterPruner_AGP("p", 0.1, 0.5, "Filters", [NAME])
        pruner.bind(model)
        assert not model.block.relu1._forward_hooks
        for _ in range(2):
            pruner.bind(model)
            pruner.watch()
        assert len(model.block.relu1._forward_hooks) == 1

    def test_a_policy_of_ones_own_watches_from_its_first_epoch_on(self):
        model = Activated()
        pruner = ActivationMeanRankedFilterPruner("p", "Filters", 0.5, [NAME])
        policy, masks = PruningPolicy(pruner), MaskSet(model)
        epochs = {"starting_epoch": 0, "ending_epoch": 2, "frequency": 1}
        policy.on_epoch_begin(model, masks, {**epochs, "current_epoch": 0})
        assert masks[NAME].mask is None
        model(torch.randn(2, 2, 3, 3))
        policy.on_epoch_begin(model, masks, {**epochs, "current_epoch": 1})
        assert len(kept(masks[NAME].mask.numpy(), 0)) == 3

    def test_copies_of_the_model_measure_for_themselves(self):
        model = Activated()
        pruning = self.pruning(ActivationMeanRankedFilterPruner, model)
        average = copy.deepcopy(model)
        average(torch.randn(2, 2, 3, 3))
        assert pruning.set() == {}

    def test_layers_that_are_not_there_are_refused(self):
        model = Activated()
        model.block.conv3 = nn.Conv2d(2, 2, 1)
        message = "weights: Expected a layer 'block.relu3', whose activations rank the filters of 'block.conv3.weight', but the model has none"
        with pytest.raises(UserError, match=message):
            ActivationMeanRankedFilterPruner("p", "Filters", 0.5, ["block.conv3.weight"]).bind(model)

    def test_activations_of_another_number_of_channels_are_refused(self):
        model = Activated()
        model.block.relu1.mean_channels = Statistic(1, 2, 3)
        message = f"weights: Expected as many filters as there are channels of activations, got '{NAME}' with 6 and 3"
        with pytest.raises(UserError, match=message):
            self.pruning(ActivationMeanRankedFilterPruner, model).set()

    def test_inputs_of_a_transposed_convolution_have_no_activations(self):
        pruner = ActivationMeanRankedFilterPruner("p", "Filters", 0.5, ["up.weight"])
        with pytest.raises(
            UserError, match="got 'up.weight' with 4 and 10. Take it off the list; of transposed"
        ):
            pruner.bind(Layers())
        pruner.bind(Layers(), (), "module")


class TestAll:
    @pytest.mark.parametrize("kind", FILTER_PRUNERS)
    def test_refuse_leaders_and_other_groups(self, kind: Any):
        arguments = (0.1, 0.5) if kind in GRADUAL else (0.5,)

        def make(group_type: str, **options: Any) -> Any:
            first = (*arguments, group_type) if kind in GRADUAL else (group_type, *arguments)
            return kind("p", *first, ["conv.weight"], **options)

        message = f"group_dependency: Expected no 'group_dependency' for {kind.__name__}, .* got 'Leader'. .* use L1Ranked"
        with pytest.raises(UserError, match=message):
            make("Filters", group_dependency="Leader")
        with pytest.raises(
            UserError, match=r"group_type: Expected a group type \(Filters, 3D\), got 'Channels'"
        ):
            make("Channels")
        assert make("3D", group_dependency=None, prune_output=True).kind == "Filters"
        with pytest.raises(
            UserError, match="fold_batchnorm: Expected a pruner that ranks weights, got " + kind.__name__
        ):
            PruningPolicy(make("Filters"), {"fold_batchnorm": True})

    @pytest.mark.parametrize("kind", [kind for kind in CONSTANT if "Activation" not in kind.__name__])
    def test_refuse_weights_without_filters(self, kind: Any):
        with pytest.raises(
            UserError,
            match=r"weights: fc.weight: Expected the weight of a convolution .* got one of shape \(5, 12\)\.$",
        ):
            kind("p", "Filters", 0.5, ["fc.weight"]).bind(Layers())

    def test_random_numbers_go_on_where_they_were_saved(self):
        for kind in (RandomRankedFilterPruner, BernoulliFilterPruner):
            model = nn.Conv2d(2, 30, 1)
            first, second = (Pruning(kind("p", "Filters", 0.5, ["weight"]), model) for _ in range(2))
            for _ in range(3):
                first.set()
            second.pruner.load_state_dict(saved(first.pruner.state_dict()))
            for _ in range(3):
                np.testing.assert_array_equal(first.set()["weight"], second.set()["weight"])

    def test_of_equal_scores_the_first_filters_go(self):
        model = Layers()
        fill(model, "conv.weight", [1.0] * 6, 0)
        model.conv.weight.grad = torch.ones_like(model.conv.weight)
        masks = Pruning(GradientRankedFilterPruner("p", "Filters", 0.5, ["conv.weight"]), model).set()
        assert kept(masks["conv.weight"], 0) == [3, 4, 5]
