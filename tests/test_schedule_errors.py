"""Mistakes whose fate in Intel's Distiller was recorded: here each is refused at its place, or works."""
# ruff: noqa: E501  (messages stand on one line)

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sgc_distiller.errors import ScheduleError, UserError
from sgc_distiller.schedule import Schedule, read_schedule
from sgc_distiller.scheduler import CompressionScheduler
from tests.pruning import kept, largest, numbers
from tests.test_golden import GOLDEN, golden_models

RECORDED: dict[str, dict[str, Any]] = {
    entry["what"]: entry for entry in json.loads((GOLDEN / "errors.json").read_text(encoding="utf-8"))
}

# Line, key and text of what is refused when the schedule is read.
WHEN_READ: dict[str, tuple[int, str, str]] = {
    "unknown class": (4, "pruners.p.class", r"Expected a class \(.*AutomatedGradualPruner.*got 'NoSuchPruner'"),
    "class key missing": (3, "pruners.p", "Expected 'class', one of .*SparsityLevelParameterPruner.*, got none"),
    "unknown constructor argument": (6, "pruners.p.foo", r"Expected an argument of SparsityLevelParameterPruner \(class, levels\), got 'foo'"),
    "extra argument although the class takes **kwargs": (6, "pruners.p.sensitivity", r"Expected an argument of SparsityLevelParameterPruner \(class, levels\), got 'sensitivity'"),
    "required constructor argument missing": (3, "pruners.p", "Expected argument 'weights' of AutomatedGradualPruner, got none"),
    "policy names an undefined pruner": (7, "policies[0].pruner.instance_name", r"Expected an instance declared under 'pruners' \(p\), got 'q'"),
    "policy names an undefined lr_scheduler": (7, "policies[0].lr_scheduler.instance_name", r"Expected an instance declared under 'lr_schedulers' \(there is none\), got 'q'"),
    "policy pruner is null": (7, "policies[0].pruner", "Expected a mapping with 'instance_name', and options under 'args', got nothing"),
    "instance_name missing": (7, "policies[0].pruner", "Expected 'instance_name', got none"),
    "policy without any known kind": (7, "policies[0].foo", r"Expected a key of a policy \(pruner, .*got 'foo'"),
    "policies section missing": (1, "", r"Expected a list of 'policies', which may be empty \(\[\]\), got none"),
    "policies section is null": (6, "policies", r"Expected a list of policies, which may be empty \(\[\]\), got nothing"),
    "pruners section is null": (2, "pruners", "Expected a mapping with instances by name; leave the section out if there are none, got nothing"),
    "unknown section": (6, "prunerz", "Expected a section of a schedule .*got 'prunerz'. Did you mean 'pruners'"),
    "version 99": (1, "version", "Expected version 1, got 99"),
    "starting_epoch missing": (7, "policies[0]", "Expected 'epochs', or all of .*; 'starting_epoch' is missing"),
    "frequency missing": (7, "policies[0]", "Expected 'epochs', or all of .*; 'frequency' is missing"),
    "ending_epoch == starting_epoch": (9, "policies[0].ending_epoch", r"Expected a whole number greater than 'starting_epoch' \(3\), .*got 3"),
    "ending_epoch < starting_epoch": (9, "policies[0].ending_epoch", r"Expected a whole number greater than 'starting_epoch' \(3\), .*got 1"),
    "negative starting_epoch": (8, "policies[0].starting_epoch", "Expected a whole number of at least 0, got -1"),
    "frequency 0": (10, "policies[0].frequency", r"Expected a whole number from 1 to 3 \(ending_epoch - starting_epoch\), got 0"),
    "frequency > ending - starting": (10, "policies[0].frequency", r"Expected a whole number from 1 to 3 \(ending_epoch - starting_epoch\), got 4"),
    "epochs is empty list": (8, "policies[0].epochs", r"Expected a list of increasing epochs, .*got \[\]"),
    "epochs together with starting_epoch (ignored)": (9, "policies[0].starting_epoch", "Expected either 'epochs' or 'starting_epoch', got both. Leave one out"),
    "unsorted epochs": (8, "policies[0].epochs", r"Expected a list of increasing epochs, .*got \[3, 1\]"),
    "unknown pruner policy argument (ignored)": (9, "policies[0].pruner.args.no_such", r"Expected an option of a pruning policy \(.*keep_mask.*got 'no_such'"),
    "unknown regularizer policy argument": (9, "policies[0].regularizer.args.no_such", r"Expected an option of a regularization policy \(keep_mask\), got 'no_such'"),
    "mask_gradients without mask_on_forward_only": (9, "policies[0].pruner.args.mask_gradients", "Expected 'mask_on_forward_only: true' beside 'mask_gradients: true'"),
    "two quantizers": (2, "quantizers", "Expected no section 'quantizers': .*quantizers are not supported. Remove the section"),
    "empty weights list": (7, "pruners.p.weights", "Expected a list of names or patterns of weights, got an empty list"),
    "empty levels": (5, "pruners.p.levels", "Expected at least one entry by the name of a weight, .*got {}"),
    "AGP final < initial": (6, "pruners.p.final_sparsity", r"Expected a sparsity greater than 'initial_sparsity' \(0.5\), got 0.1"),
    "AGP final == initial": (6, "pruners.p.final_sparsity", r"Expected a sparsity greater than 'initial_sparsity' \(0.5\), got 0.5"),
    "AGP with epochs list": (10, "policies[0].epochs", "Expected 'starting_epoch', .* for gradual pruning, got a list of epochs"),
    "AGP span 0 (ending - starting - 1 < frequency)": (11, "policies[0].ending_epoch", "Expected at least two active epochs .*got only epoch 0: epochs 0 to 2 at a frequency of 3. Increase 'ending_epoch'"),
    "AGP one-epoch policy": (11, "policies[0].ending_epoch", "Expected at least two active epochs .*got only epoch 0"),
    "level > 1": (5, "pruners.p.levels.fc1.weight", "Expected a number between 0 and 1, got 1.5"),
    "negative level": (5, "pruners.p.levels.fc1.weight", "Expected a number between 0 and 1, got -0.5"),
    "magnitude without '*'": (5, "pruners.p.thresholds", r"Expected a threshold under '\*' for all other parameters, got none. To spare them, write '\*': -1"),
    "structure pruner with criterion L1": (7, "pruners.p.threshold_criteria", "Expected one of Max, Mean_Abs, got 'L1'"),
    "structure pruner with group 4D": (6, "pruners.p.reg_regims.conv2.weight", "Expected a group type .*got '4D'. Did you mean '3D'"),
    "ranked Cols": (5, "pruners.p.group_type", "Expected a group type .*got 'Cols'. Did you mean 'Rows'"),
    "ranked Blocks without block_shape": (8, "pruners.p.kwargs", r"Expected 'block_shape: \[repetitions, depth, 1, 1\]' for Blocks, got None"),
    "ranked Blocks, no kwargs at all": (3, "pruners.p.kwargs", r"Expected 'block_shape: \[repetitions, depth, 1, 1\]' for Blocks, got None"),
    "ranked group_dependency unknown value (ignored)": (8, "pruners.p.group_dependency", "Expected one of Leader, Coupled, got 'Sum'"),
    "random ranked with Leader": (8, "pruners.p.group_dependency", "Expected no 'group_dependency' for RandomRankedFilterPruner, .*got 'Leader'. To follow a leader, use L1Ranked"),
    "group lasso unknown group": (6, "regularizers.r.reg_regims.conv2.weight[1]", r"Expected a group type \(.*Channels\+4D.*got 'Foo'"),
    "group lasso 4D with threshold": (6, "regularizers.r.reg_regims.conv2.weight[1]", "Expected a group type that can have a threshold .*got '4D'. Leave out 'threshold_criteria'"),
    "group lasso bad threshold_criteria": (7, "regularizers.r.threshold_criteria", "Expected one of Max, Mean_Abs, got 'L2'"),
    "multi-gamma lengths differ": (6, "lr_schedulers.l.gammas", "Expected one factor for each of the 2 milestones, got 1"),
    "multi-gamma milestones not increasing": (5, "lr_schedulers.l.milestones", r"Expected increasing epochs, got \[3, 2\]"),
    "pruner class under regularizers": (4, "regularizers.r.class", "Expected a class for 'regularizers'; SparsityLevelParameterPruner belongs under 'pruners'"),
    "duplicate instance name (last wins)": (4, "pruners.p", "Expected each key once, got 'p' on line 3 too"),
    "not YAML": (3, "", "Expected plain YAML: while parsing a flow sequence, expected ',' or ']'"),
    "extension class unknown thinning function": (3, "extensions.x.thinning_func_str", "Expected one of remove_filters, remove_channels, .*got 'nope'"),
}  # fmt: skip

# The same of what needs the model.
WHEN_BUILT: dict[str, tuple[int, str, str]] = {
    "mask_gradients with a frozen parameter": (9, "policies[0].pruner.args.mask_gradients", r"Expected parameters that learn, but 'fc2.bias' does not \(requires_grad is False\). Leave the option out"),
    "weight name that does not exist (ignored)": (7, "pruners.p.weights[0]", "Expected the name of a parameter of the model, got 'nope.weight'. Did you mean 'conv2.weight'"),
    "ranked Filters on a Linear weight": (7, "pruners.p.weights", r"fc1.weight: Expected the weight of a convolution for the group type Filters, got one of shape \(12, 32\). Group types that fit it: Elements, Channels, Rows"),
    "ranked Channels on a bias": (7, "pruners.p.weights", r"fc1.bias: Expected a weight with at least two dimensions .*got one of shape \(12,\). Group types that fit it: Elements"),
    "ranked Blocks shape does not divide": (7, "pruners.p.weights", r"conv2.weight: Expected a block shape that divides the weight of shape \(8, 6, 3, 3\) exactly, got \[1, 7, 1, 1\]"),
    "Leader over tensors of different filter counts": (7, "pruners.p.weights", "Expected weights with as many filters as their leader 'conv1.weight' has: conv1.weight with 6, conv2.weight with 8"),
    "group lasso Filters on a Linear weight": (6, "regularizers.r.reg_regims.fc1.weight[1]", r"Expected a group type that 'fc1.weight' of shape \(12, 32\) has \(Channels, Rows, .*got '3D'"),
    "resumed without initial_lr in the optimizer": (3, "lr_schedulers.l", r"Expected an optimizer that knows its initial rates \('initial_lr' in its groups\) to resume from epoch 2"),
}  # fmt: skip


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def network(what: str) -> nn.Module:
    torch.manual_seed(0)
    model = golden_models.PlainTiny()
    if what == "mask_gradients with a frozen parameter":
        model.fc2.bias.requires_grad_(False)
    return model


@pytest.fixture
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The schedule file of the test's parameter ``what``."""
    file = tmp_path / "schedule.yaml"
    file.write_text(RECORDED[request.node.callspec.params["what"]]["yaml"], encoding="utf-8")
    return file


def assert_placed(error: ScheduleError, path: Path, line: int, key: str, text: str):
    assert (error.source, error.line, error.key) == (str(path), line, key)
    start = ": ".join(part for part in (f"{path}:{line}", key) if part)
    assert re.match(f"{re.escape(start)}: {text}", str(error)), str(error)
    assert isinstance(error, UserError)


def test_every_mistake_that_was_recorded_is_here():
    lists = [WHEN_READ, WHEN_BUILT, WORKS]
    assert sorted(name for part in lists for name in part) == sorted(RECORDED)


@pytest.mark.parametrize("what", WHEN_READ)
def test_is_refused_when_it_is_read(what: str, path: Path):
    with pytest.raises(ScheduleError, match="Expected") as caught:
        read_schedule(path)
    assert_placed(caught.value, path, *WHEN_READ[what])


@pytest.mark.parametrize("what", WHEN_BUILT)
def test_is_refused_when_it_is_built(what: str, path: Path):
    model = network(what)
    schedule = read_schedule(path)
    resumed_epoch = 2 if what.startswith("resumed") else None
    with pytest.raises(ScheduleError, match="Expected") as caught:
        schedule.build(model, sgd(model), resumed_epoch=resumed_epoch)
    assert_placed(caught.value, path, *WHEN_BUILT[what])


class Run:
    """A schedule that works, trained for its epochs; masks of each epoch's beginning are noted."""

    def __init__(self, path: Path) -> None:
        self.schedule: Schedule = read_schedule(path)
        self.model = network("")
        self.initial = {name: numbers(self.model, name) for name, _ in self.model.named_parameters()}
        self.optimizer = sgd(self.model)
        self.scheduler: CompressionScheduler = self.schedule.build(self.model, self.optimizer)
        self.masks: list[dict[str, np.ndarray]] = []
        self.losses: list[float] = []
        self.rates = [0.1]
        for epoch in range(self.schedule.epochs):
            self.epoch(epoch)

    def epoch(self, epoch: int) -> None:
        self.scheduler.on_epoch_begin(epoch, self.optimizer)
        masks = {name: masker.mask for name, masker in self.scheduler.zeros_mask_dict.items()}
        self.masks.append({name: mask.numpy().copy() for name, mask in masks.items() if mask is not None})
        self.scheduler.on_minibatch_begin(epoch, 0, 1, self.optimizer)
        loss = self.model(torch.ones(2, 2, 6, 6)).pow(2).mean()
        answer = self.scheduler.before_backward_pass(epoch, 0, 1, loss, return_loss_components=True)
        self.losses += [component.value.item() for component in answer.loss_components]
        self.optimizer.zero_grad()
        answer.overall_loss.backward()
        self.scheduler.before_parameter_optimization(epoch, 0, 1, self.optimizer)
        self.optimizer.step()
        self.scheduler.on_minibatch_end(epoch, 0, 1, self.optimizer)
        self.scheduler.on_epoch_end(epoch, self.optimizer)
        self.rates.append(self.optimizer.param_groups[0]["lr"])

    def filters(self, dim: int = 0) -> list[list[int]]:
        """Return which slices of conv2.weight stay in each epoch."""
        return [kept(masks["conv2.weight"], dim) for masks in self.masks]

    def ranked(self, drop_count: int, dim: int = 0) -> list[int]:
        """Return which slices of conv2.weight stay at first, without so many of the smallest."""
        inside = tuple({0, 1, 2, 3} - {dim})
        return largest(np.abs(self.initial["conv2.weight"]).sum(inside), drop_count)


def empty_list(run: Run, log: str):
    assert "the list of policies is empty, so nothing will happen" in log
    assert (run.schedule.epochs, run.scheduler.policies) == (0, {})


def one_text(run: Run, log: str):
    assert ":7: pruners.p.weights" not in log  # the entry stands on line 3
    assert ":3: pruners.p.weights: a text is read as a list with that one name" in log
    assert [set(masks) for masks in run.masks] == [{"fc1.weight"}] * 4


def gradual_from_nothing(run: Run, log: str):
    # 0.5 - 0.5 * (1 - e / 3)^3 of 384: 0, 135.1, 184.8, 192
    assert [int((masks["fc1.weight"] == 0).sum()) if masks else 0 for masks in run.masks] == [
        0,
        135,
        184,
        192,
    ]


def below_one(run: Run, log: str):
    assert run.masks == [{}] * 4


def all_go(run: Run, log: str):
    assert [masks["fc1.weight"].sum() for masks in run.masks] == [0] * 4
    assert (run.model.fc1.weight == 0).all()


def rows(run: Run, log: str):
    assert run.filters(1) == [run.ranked(3, 1)] * 4


def pairs(run: Run, log: str):
    sizes = np.abs(run.initial["conv2.weight"]).reshape(4, -1).sum(1)
    assert run.filters() == [[2 * pair + i for pair in largest(sizes, 2) for i in (0, 1)]] * 4


def rounded_up(run: Run, log: str):
    assert run.filters() == [run.ranked(4)] * 4  # ceil(0.5 * 8); below, with a share that is no whole number


def leader_from_nothing(run: Run, log: str):
    # 0.5 - 0.5 * (1 - e / 3)^3 of 8: 0, 2.8, 3.85, 4
    assert [8 - len(kept(masks["conv2.weight"], 0)) if masks else 0 for masks in run.masks] == [0, 2, 3, 4]


def random_filters(run: Run, log: str):
    assert [len(stays) for stays in run.filters()] == [4] * 4
    assert len({tuple(stays) for stays in run.filters()}) > 1


def bernoulli(run: Run, log: str):
    for masks in run.masks:
        mask = masks["conv2.weight"]
        stay = kept(mask, 0)
        np.testing.assert_allclose(mask[stay], 8 / len(stay), rtol=1e-6)
    assert len({tuple(kept(masks["conv2.weight"], 0)) for masks in run.masks}) > 1
    assert "BernoulliFilterPruner makes the weights that stay larger in every step" in log


def channels_and_whole(run: Run, log: str):
    weight = run.initial["conv2.weight"]
    channels = np.sqrt((weight**2).sum((0, 2, 3)) + 1e-8).sum()
    assert run.losses[0] == pytest.approx(0.1 * (channels + np.sqrt((weight**2).sum())), rel=1e-5)
    assert len(run.losses) == 2


def a_number(run: Run, log: str):
    assert run.rates == pytest.approx([0.1, 0.01, 0.001])


WORKS: dict[str, Any] = {
    "policies section is empty list": empty_list,
    "weights given as a string (substring match)": one_text,
    "AGP initial_sparsity 0": gradual_from_nothing,
    "level so small that int(level * n) == 0": below_one,
    "level 1.0": all_go,
    "ranked Rows on a conv weight (acts as Channels)": rows,
    "ranked group_size 2": pairs,
    "ranked rounding_fn string (ignored)": rounded_up,
    "Leader with AGP initial_sparsity 0": leader_from_nothing,
    "Leader with too few filters to prune one": below_one,
    "random ranked on a machine without CUDA": random_filters,
    "Bernoulli pruner (in-place division of an expanded mask)": bernoulli,
    "group lasso Channels+4D": channels_and_whole,
    "gamma written 1e-1 (YAML 1.1 string)": a_number,
}


@pytest.mark.parametrize("what", WORKS)
def test_works(what: str, path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        run = Run(path)
    WORKS[what](run, caplog.text)


@pytest.mark.parametrize("what", ["ranked rounding_fn string (ignored)"])
def test_rounding_is_not_ignored(what: str, path: Path):
    path.write_text(path.read_text().replace("desired_sparsity: 0.5", "desired_sparsity: 0.3"))
    run = Run(path)
    assert run.filters() == [run.ranked(3)] * 4  # 2.4 rounded up


UNHASHABLE = {
    "the name of an instance": (
        {"pruner": {"instance_name": ["p"]}, "epochs": [0]},
        r"policies\[0\].pruner.instance_name: Expected an instance declared under 'pruners', got \['p'\]",
    ),
    "the name of an instance, a mapping": (
        {"pruner": {"instance_name": {"p": 1}}, "epochs": [0]},
        r"policies\[0\].pruner.instance_name: Expected an instance declared under 'pruners', got {'p': 1}",
    ),
    "the group of a threshold": (
        {"regularizer": {"instance_name": "r"}, "epochs": [0]},
        r"regularizers.r.reg_regims.conv2.weight\[1\]: Expected a group type \(.*got {'a': 1}",
    ),
}


@pytest.mark.parametrize(("policy", "message"), UNHASHABLE.values(), ids=UNHASHABLE)
def test_lists_and_mappings_in_the_place_of_names_are_refused(policy: dict[str, Any], message: str):
    group: Any = "3D" if "pruner" in policy else {"a": 1}
    lasso = {
        "class": "GroupLassoRegularizer",
        "reg_regims": {"conv2.weight": [0.1, group]},
        "threshold_criteria": "Max",
    }
    levels = {"class": "SparsityLevelParameterPruner", "levels": {"fc1.weight": 0.5}}
    with pytest.raises(ScheduleError, match=message):
        Schedule.from_dict({"pruners": {"p": levels}, "regularizers": {"r": lasso}, "policies": [policy]})


def entry(section: str, name: str, epochs: list[int]) -> dict[str, Any]:
    return {section: {"instance_name": name}, "epochs": epochs}


class TestNothingIsLeftOfWhatIsRefused:
    def test_of_rates_that_were_made_before_one_that_fails(self):
        model = network("")
        optimizer = torch.optim.Adagrad(model.parameters())  # has no momentum, which the second one changes
        before = [dict(group) for group in optimizer.param_groups], set(vars(optimizer))
        schedule = {
            "lr_schedulers": {
                "first": {"class": "LinearLR", "start_factor": 0.5},
                "second": {"class": "CyclicLR", "base_lr": 0.02, "max_lr": 0.1},
            },
            "policies": [entry("lr_scheduler", name, [0]) for name in ("first", "second")],
        }
        with pytest.raises(ScheduleError, match="lr_schedulers.second: optimizer must support momentum"):
            Schedule.from_dict(schedule).build(model, optimizer)
        assert ([dict(group) for group in optimizer.param_groups], set(vars(optimizer))) == before

    def test_of_policies_that_were_added_before_one_that_fails(self):
        levels = {"class": "SparsityLevelParameterPruner", "levels": {"fc1.weight": 0.5}}
        pruning = {"pruners": {"p": levels}, "policies": [entry("pruner", "p", [0])]}
        rate = {"lr_schedulers": {"l": {"class": "StepLR", "step_size": 1}}}
        other = {**pruning, **rate, "policies": [*pruning["policies"], entry("lr_scheduler", "l", [0])]}
        twice = {**pruning, "policies": [entry("pruner", "p", [0]), entry("pruner", "p", [1])]}
        model = network("")
        saved = Schedule.from_dict(twice).build(model).state_dict()
        scheduler = CompressionScheduler(model)
        scheduler.load_state_dict(saved)  # two pruning policies are to come
        with pytest.raises(ScheduleError, match="policy number 2 is a PruningPolicy, got a LRPolicy"):
            Schedule.from_dict(other).build(model, sgd(model), scheduler)
        assert (scheduler.policies, scheduler.sched_metadata) == ({}, {})
        Schedule.from_dict(twice).build(model, None, scheduler)
        assert [len(scheduler.policies[epoch]) for epoch in (0, 1)] == [1, 1]
