"""What belongs to a pruned filter goes with it, and the optimizer forgets what is pruned."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from sgc_distiller.dependent_masks import DependentMasksPolicy
from sgc_distiller.errors import ScheduleError, UserError
from sgc_distiller.schedule import Schedule, dict_config
from sgc_distiller.scheduler import CompressionScheduler
from sgc_distiller.supervision import Supervision
from sgc_distiller.tasks.dcgan import DCGAN


def network() -> nn.Sequential:
    """A convolution with bias and norm, a transposed one with bias, a layer of the output."""
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 2, 3),
    )


def schedule(group: str = "Filters", gan: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    weights = more.pop("weights", ["0.weight", "3.weight"])
    pruner = {"class": "L1RankedStructureParameterPruner", "group_type": group, "desired_sparsity": 0.5}
    policy = {"pruner": {"instance_name": "p"}, "starting_epoch": 0, "ending_epoch": 2, "frequency": 1}
    made = {"pruners": {"p": {**pruner, "weights": weights, **more}}, "policies": [policy]}
    return made if gan is None else {**made, "gan": gan}


def run(scheduler: CompressionScheduler, optimizer: torch.optim.Optimizer, epochs: range) -> None:
    model, steps = scheduler.model, 2
    for epoch in epochs:
        scheduler.on_epoch_begin(epoch, optimizer)
        for step in range(steps):
            scheduler.on_minibatch_begin(epoch, step, steps, optimizer)
            inputs = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(10 * epoch + step))
            optimizer.zero_grad()
            (model(inputs) - 1).pow(2).mean().backward()
            scheduler.before_parameter_optimization(epoch, step, steps, optimizer)
            optimizer.step()
            scheduler.on_minibatch_end(epoch, step, steps, optimizer)
        scheduler.on_epoch_end(epoch, optimizer)


def dropped_outputs(weight: torch.Tensor, dim: int) -> torch.Tensor:
    return weight.abs().transpose(0, dim).flatten(1).sum(1) == 0


def test_a_filter_takes_its_bias_and_its_norm_along():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    run(dict_config(model, optimizer, schedule(gan={})), optimizer, range(2))
    values = {name: param.detach() for name, param in model.named_parameters()}
    gone = dropped_outputs(values["0.weight"], 0)
    assert gone.sum() == 4
    for name in ("0.bias", "1.weight", "1.bias"):
        assert ((values[name] == 0) == gone).all(), name
    transposed = dropped_outputs(values["3.weight"], 1)  # its outputs are dimension 1
    assert transposed.sum() == 3
    assert ((values["3.bias"] == 0) == transposed).all()
    assert (values["5.bias"] != 0).all()


def test_a_dropped_filter_gives_nothing():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    run(dict_config(model, optimizer, schedule(gan={})), optimizer, range(2))
    outputs = model[:2].eval()(torch.randn(2, 3, 8, 8))
    gone = dropped_outputs(model[0].weight.detach(), 0)
    assert (outputs[:, gone] == 0).all()
    assert (outputs[:, ~gone] != 0).any(dim=3).any(dim=2).any(dim=0).all()


@pytest.mark.parametrize("given", [schedule(), schedule(gan={"filter_axis": "stored"})])
def test_stored_filters_take_nothing_along(given: dict[str, Any]):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scheduler = dict_config(model, optimizer, given)
    run(scheduler, optimizer, range(2))
    assert dropped_outputs(model[3].weight.detach(), 0).sum() == 4  # dimension 0, which are inputs
    masked = {name for name, masker in scheduler.zeros_mask_dict.items() if masker.mask is not None}
    assert masked == {"0.weight", "3.weight"}


def test_masks_that_others_set_stay_in_force():
    model = network()
    scheduler = CompressionScheduler(model)
    masks = scheduler.zeros_mask_dict
    policy = DependentMasksPolicy(model, filters=["0.weight"])
    masks["0.bias"].mask = torch.tensor([0.0, 1, 1, 1, 1, 1, 1, 1])
    weight_mask = torch.ones_like(model[0].weight)
    weight_mask[3:5] = 0
    masks["0.weight"].mask = weight_mask
    policy.on_epoch_begin(model, masks, {})
    assert masks["0.bias"].mask.tolist() == [0, 1, 1, 0, 0, 1, 1, 1]
    masks["0.weight"].mask = None
    policy.on_epoch_begin(model, masks, {})
    assert masks["1.weight"].mask is None


def test_a_mask_of_a_companion_that_was_replaced_is_completed_again():
    model = network()
    masks = CompressionScheduler(model).zeros_mask_dict
    policy = DependentMasksPolicy(model, filters=["0.weight"])
    weight_mask = torch.ones_like(model[0].weight)
    weight_mask[3:5] = 0
    masks["0.weight"].mask = weight_mask
    policy.on_epoch_begin(model, masks, {})
    masks["0.bias"].mask = torch.tensor([0.0, 1, 1, 1, 1, 1, 1, 1])
    policy.on_epoch_begin(model, masks, {})
    assert masks["0.bias"].mask.tolist() == [0, 1, 1, 0, 0, 1, 1, 1]


def test_groups_that_a_regularizer_drops_for_good_take_theirs_along():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    size = model[3].weight.detach().abs().mean(dim=(0, 2, 3)).median().item()
    lasso = {
        "class": "GroupLassoRegularizer",
        "reg_regims": {"3.weight": [size, "Filters"]},
        "threshold_criteria": "Mean_Abs",
    }
    entry = {"instance_name": "r", "args": {"keep_mask": True}}
    given = {
        "regularizers": {"r": lasso},
        "policies": [{"regularizer": entry, "starting_epoch": 0, "ending_epoch": 2, "frequency": 1}],
        "gan": {},
    }
    run(dict_config(model, optimizer, given), optimizer, range(2))
    gone = dropped_outputs(model[3].weight.detach(), 1)
    assert 0 < gone.sum() < 6
    assert ((model[3].bias == 0) == gone).all()


@pytest.mark.parametrize("has_gan", [False, True])
def test_moments_of_pruned_weights_are_cleared_in_files_with_gan(has_gan: bool):
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    (model(torch.randn(2, 3, 8, 8)) - 1).pow(2).mean().backward()
    optimizer.step()
    scheduler = dict_config(model, optimizer, schedule(gan={} if has_gan else None))
    scheduler.on_epoch_begin(0, optimizer)
    scheduler.on_minibatch_begin(0, 0, 1, optimizer)
    mask = scheduler.zeros_mask_dict["0.weight"].mask
    for key in ("exp_avg", "exp_avg_sq"):
        moments = optimizer.state[model[0].weight][key]
        assert (moments[mask != 0] != 0).all()
        assert (moments[mask == 0] == 0).all() == has_gan


def test_soft_masks_leave_moments_alone():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    given = schedule("Kernels", gan={})
    given["policies"][0]["pruner"]["args"] = {"mask_on_forward_only": True}
    run(dict_config(model, optimizer, given), optimizer, range(2))
    assert (optimizer.state[model[0].weight]["momentum_buffer"] != 0).float().mean() > 0.9


def test_masks_of_the_middle_of_an_epoch_are_completed_before_the_forward_pass():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    given = schedule(gan={})
    given["policies"][0]["pruner"]["args"] = {"mini_batch_pruning_frequency": 1}
    scheduler = dict_config(model, optimizer, given)
    scheduler.on_epoch_begin(0, optimizer)
    scheduler.on_minibatch_begin(0, 0, 3, optimizer)
    with torch.no_grad():  # now other filters are the smallest
        for masker in scheduler.zeros_mask_dict.values():
            masker.mask = None
        model[0].weight.copy_(torch.arange(8.0).reshape(8, 1, 1, 1).expand(8, 3, 3, 3) + 1)
    scheduler.on_minibatch_begin(0, 1, 3, optimizer)
    assert (model[1].bias[:4] == 0).all()
    assert scheduler.zeros_mask_dict["0.bias"].mask.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("middle", [False, True])
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(middle: bool):
    def fresh() -> tuple[Any, Any, Any]:
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        return model, optimizer, dict_config(model, optimizer, schedule(gan={}))

    def step(scheduler: Any, optimizer: Any, epoch: int, step: int) -> None:
        scheduler.on_minibatch_begin(epoch, step, 4, optimizer)
        inputs = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(10 * epoch + step))
        optimizer.zero_grad()
        (scheduler.model(inputs) - 1).pow(2).mean().backward()
        optimizer.step()
        scheduler.on_minibatch_end(epoch, step, 4, optimizer)

    def part(scheduler: Any, optimizer: Any, epoch: int, steps: range) -> None:
        if steps.start == 0:
            scheduler.on_epoch_begin(epoch, optimizer)
        for number in steps:
            step(scheduler, optimizer, epoch, number)

    cut = 2 if middle else 4
    model, optimizer, scheduler = fresh()
    part(scheduler, optimizer, 0, range(cut))
    states = copy.deepcopy((model.state_dict(), optimizer.state_dict(), scheduler.state_dict()))
    other, other_optimizer, other_scheduler = fresh()
    for target, state in zip((other, other_optimizer, other_scheduler), states, strict=True):
        target.load_state_dict(state)
    for parts in ((scheduler, optimizer), (other_scheduler, other_optimizer)):
        part(*parts, 0, range(cut, 4)) if middle else None
        part(*parts, 1, range(4))
    for left, right in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(left, right)
    for left, right in zip(optimizer.state.values(), other_optimizer.state.values(), strict=True):
        assert torch.equal(left["exp_avg"], right["exp_avg"])


def test_a_resumed_run_clears_no_moments_that_were_cleared_before():
    """One mask is of epoch 0, one is computed in each epoch: only the latter's moments are cleared again."""

    def fresh() -> tuple[Any, Any, Any]:
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        given = schedule("Kernels", gan={}, weights=["0.weight"])
        agp = {"class": "AutomatedGradualPruner", "initial_sparsity": 0.1, "final_sparsity": 0.6}
        given["pruners"]["a"] = {**agp, "weights": ["3.weight"]}
        given["policies"] = [
            {"pruner": {"instance_name": "p"}, "epochs": [0]},
            {"pruner": {"instance_name": "a"}, "starting_epoch": 0, "ending_epoch": 4, "frequency": 1},
        ]
        return model, optimizer, dict_config(model, optimizer, given)

    model, optimizer, scheduler = fresh()
    run(scheduler, optimizer, range(2))
    states = copy.deepcopy((model.state_dict(), optimizer.state_dict(), scheduler.state_dict()))
    others = fresh()
    for target, state in zip(others, states, strict=True):
        target.load_state_dict(state)
    run(scheduler, optimizer, range(2, 4))
    run(others[2], others[1], range(2, 4))
    assert (model[0].weight == 0).any()
    for left, right in zip(optimizer.state.values(), others[1].state.values(), strict=True):
        assert torch.equal(left["exp_avg_sq"], right["exp_avg_sq"])
    moments = optimizer.state[model[0].weight]["exp_avg_sq"]
    assert (moments[model[0].weight == 0] != 0).any()  # gradients of pruned weights go on being seen


def test_filters_that_come_back_after_a_resume_bring_theirs_back():
    model = network()
    policy = DependentMasksPolicy(model, filters=["0.weight"])
    scheduler = CompressionScheduler(model)
    scheduler.add_policy(policy, epochs=[0, 1])
    weight_mask = torch.ones_like(model[0].weight)
    weight_mask[3:5] = 0
    scheduler.zeros_mask_dict["0.weight"].mask = weight_mask
    scheduler.on_epoch_begin(0)
    other = CompressionScheduler(model)
    other.add_policy(DependentMasksPolicy(model, filters=["0.weight"]), epochs=[0, 1])
    other.load_state_dict(scheduler.state_dict())
    other.zeros_mask_dict["0.weight"].mask = torch.ones_like(model[0].weight)
    other.on_epoch_begin(1)
    assert other.zeros_mask_dict["0.bias"].mask.tolist() == [1] * 8


def test_a_weight_without_filters_is_refused():
    with pytest.raises(
        UserError, match="filters: Expected weights of convolutions or linear layers, got '1.weight'"
    ):
        DependentMasksPolicy(network(), filters=["1.weight"])


class TestOutputLayers:
    """Structures of the layer that makes the pictures go only where that is clearly meant."""

    def generator(self) -> tuple[nn.Module, Supervision]:
        task = DCGAN(image_size=16, width=4)
        networks = [task.build(role) for role in ("generator", "discriminator", "generator")]
        return networks[0], Supervision(task, *networks)

    @pytest.mark.parametrize(
        ("weights", "more"),
        [
            (["main.*.weight"], {}),
            (["main.*.weight"], {"prune_output": True}),
            (["main.6.weight"], {}),
        ],
    )
    def test_is_refused(self, weights: list[str], more: dict[str, Any]):
        generator, supervision = self.generator()
        given = schedule("Kernels", {}, weights=weights, **more)
        with pytest.raises(
            ScheduleError,
            match=r"pruners\.p\.weights: Expected no structures of 'main.6.weight', the generator's output "
            r"layer, got Kernels.*'output_layer: dense'.*'prune_output: true'",
        ):
            dict_config(supervision.generator, None, given)
        assert generator is supervision.generator

    def test_is_done_where_it_is_named_in_full(self):
        generator, supervision = self.generator()
        given = schedule("Kernels", {}, weights=["main.6.weight"], prune_output=True)
        scheduler = dict_config(supervision.generator, None, given)
        scheduler.on_epoch_begin(0)
        kept = scheduler.zeros_mask_dict["main.6.weight"].mask
        assert int((kept == 0).sum()) == kept.numel() // 2
        assert generator is supervision.generator

    def test_patterns_leave_it_out_where_it_stays_dense(self):
        generator, _supervision = self.generator()
        scheduler = dict_config(
            generator, None, schedule("Filters", {"output_layer": "dense"}, weights=["main.*.weight"])
        )
        scheduler.on_epoch_begin(0)
        masked = {name for name, masker in scheduler.zeros_mask_dict.items() if masker.mask is not None}
        assert masked == {
            "main.0.weight",
            "main.1.weight",
            "main.1.bias",
            "main.3.weight",
            "main.4.weight",
            "main.4.bias",
        }

    def test_plain_schedules_know_no_output_layer(self):
        generator, _supervision = self.generator()
        dict_config(generator, None, schedule("Filters", None, weights=["main.6.weight"])).on_epoch_begin(0)

    def test_single_elements_of_it_may_go(self):
        generator, _supervision = self.generator()
        Schedule.from_dict(schedule("Elements", {}, weights=["main.*.weight"])).build(generator)


CHANGING: dict[str, dict[str, Any]] = {
    "random": {"class": "RandomRankedFilterPruner"},
    "bernoulli": {"class": "BernoulliFilterPruner"},
    "gradient": {"class": "GradientRankedFilterPruner"},
    "mean": {"class": "ActivationMeanRankedFilterPruner"},
    "noise": {"class": "L1RankedStructureParameterPruner", "noise": 0.5},
}


class TestFiltersThatComeBack:
    """Where other filters go each time, those that return need their norms."""

    def given(self, kind: str, gan: dict[str, Any] | None, **args: Any) -> dict[str, Any]:
        found = schedule(gan=gan, weights=["0.weight"])
        found["pruners"]["p"] |= CHANGING[kind]
        found["policies"][0] |= {"ending_epoch": 6, "pruner": {"instance_name": "p", "args": args}}
        return found

    @pytest.mark.parametrize("kind", CHANGING)
    def test_lasting_masks_are_refused(self, kind: str):
        with pytest.raises(
            ScheduleError, match=r"pruners\.p.*mask_on_forward_only: true, use_double_copies: true"
        ):
            dict_config(network(), None, self.given(kind, {}))

    @pytest.mark.parametrize("kind", CHANGING)
    @pytest.mark.parametrize("gan", [None, {"filter_axis": "stored"}])
    def test_stored_axes_are_distillers(self, kind: str, gan: dict[str, Any] | None):
        dict_config(network(), None, self.given(kind, gan))

    @pytest.mark.parametrize("kind", CHANGING)
    def test_masks_that_are_set_once_may_last(self, kind: str):
        given = self.given(kind, {})
        given["policies"] = [{"pruner": {"instance_name": "p"}, "epochs": [0]}]
        dict_config(network(), None, given)

    @pytest.mark.parametrize("kind", ["random", "noise"])
    @pytest.mark.parametrize("every", [0, 1])
    def test_no_filter_is_lost_under_soft_masks(self, kind: str, every: int):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        soft = {
            "mask_on_forward_only": True,
            "use_double_copies": True,
            "mini_batch_pruning_frequency": every,
        }
        scheduler = dict_config(model, optimizer, self.given(kind, {}, **soft))
        seen: list[int] = []

        def look(*_: Any) -> None:
            gone = dropped_outputs(model[0].weight.detach(), 0)
            seen.append(int(gone.sum()))
            assert ((model[1].weight == 0) == gone).all()

        model.register_forward_pre_hook(look)
        run(scheduler, optimizer, range(6))
        assert seen == [4] * 12
        assert (model[0].weight != 0).all()
        assert (model[1].weight != 0).all()
