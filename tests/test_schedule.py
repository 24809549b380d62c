"""Schedules: what can be written, what it means, and how each mistake is refused."""
# ruff: noqa: E501  (messages stand on one line)

from __future__ import annotations

import copy
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sgc_distiller.errors import ScheduleError, UserError
from sgc_distiller.experiment_spec import DiscriminatorSpec, GanSpec, StudentSpec
from sgc_distiller.lr_schedulers import PolynomialLR
from sgc_distiller.policies import LRPolicy, ScheduledTrainingPolicy
from sgc_distiller.pruning_policy import PruningPolicy
from sgc_distiller.schedule import CLASSES, Schedule, dict_config, file_config, read_schedule
from sgc_distiller.scheduler import CompressionScheduler
from sgc_distiller.supervision import Supervision
from sgc_distiller.tasks.dcgan import DCGAN

GOOD = """\
version: 1
pruners:
  fine: {class: AutomatedGradualPruner, initial_sparsity: 0.1, final_sparsity: 0.5, weights: [conv.weight]}
  level: {class: SparsityLevelParameterPruner, levels: {fc.weight: 0.25}}
lr_schedulers:
  decay: {class: StepLR, step_size: 2, gamma: 1e-1}
policies:
- lr_scheduler: {instance_name: decay}
  epochs: [0, 3]
- pruner: {instance_name: fine}
  starting_epoch: 1
  ending_epoch: 5
  frequency: 1
- pruner:
    instance_name: level
    args: {keep_mask: true}
  epochs: [2]
"""


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 3)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)


def write(folder: Path, text: str) -> Path:
    path = folder / "schedule.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def replaced(old: str, new: str) -> str:
    """Return the good schedule with one mistake in it."""
    assert GOOD.count(old) >= 1
    return GOOD.replace(old, new, 1)


class TestReading:
    def test_a_good_schedule(self, tmp_path: Path):
        model = Network()
        path = write(tmp_path, GOOD)
        schedule = read_schedule(path)
        assert (schedule.source, schedule.text, schedule.epochs, schedule.gan) == (str(path), GOOD, 5, None)
        scheduler = schedule.build(model, sgd(model))
        kinds = {epoch: [type(policy) for policy in found] for epoch, found in scheduler.policies.items()}
        assert kinds == {
            0: [LRPolicy],
            1: [PruningPolicy],
            2: [PruningPolicy, PruningPolicy],
            3: [PruningPolicy, LRPolicy],  # learning rates come last, wherever they stand
            4: [PruningPolicy],
        }
        decay = scheduler.policies[0][0].lr_scheduler
        assert (decay.step_size, decay.gamma) == (2, 0.1)
        assert scheduler.policies[2][1].keep_mask

    def test_can_be_built_again_and_for_other_models(self, tmp_path: Path):
        schedule = read_schedule(write(tmp_path, GOOD))
        first, second = Network(), nn.DataParallel(Network())
        for model in (first, second, first):
            scheduler = schedule.build(model, sgd(model))
            scheduler.on_epoch_begin(2)
            assert sum(masker.mask is not None for masker in scheduler.zeros_mask_dict.values()) == 2

    def test_a_dictionary_is_not_changed(self):
        given = {
            "pruners": {"p": {"class": "SparsityLevelParameterPruner", "levels": {"*": 0.5}}},
            "policies": [{"pruner": {"instance_name": "p"}, "epochs": (0, 1)}],
        }
        before = copy.deepcopy(given)
        for _ in range(2):
            scheduler = dict_config(Network(), None, given)
            scheduler.on_epoch_begin(0)
        assert given == before
        schedule = Schedule.from_dict(given)
        given["pruners"]["p"]["levels"]["*"] = 0.9
        assert schedule.sparsity_plan(Network())[0]["fc.weight"] == 0.5
        assert Schedule.from_dict(given).source == "<dict>"
        assert Schedule.from_dict(given).text == ""

    def test_policies_are_added_to_a_given_scheduler(self, tmp_path: Path):
        model = Network()
        scheduler = CompressionScheduler(model)
        scheduler.add_policy(ScheduledTrainingPolicy(), ending_epoch=6)
        assert file_config(model, sgd(model), str(write(tmp_path, GOOD)), scheduler) is scheduler
        assert len(scheduler.policies[1]) == 2

    def test_merge_keys(self, tmp_path: Path):
        text = """\
        pruners:
          base: &base {class: AutomatedGradualPruner, initial_sparsity: 0.1, final_sparsity: 0.5, weights: [conv.weight]}
          other:
            <<: *base
            final_sparsity: 0.9
            weights: [fc.weight]
        policies:
        - &when {pruner: {instance_name: base}, starting_epoch: 0, ending_epoch: 3, frequency: 2}
        - {<<: [{frequency: 1}, *when], pruner: {instance_name: other}}
        """
        scheduler = file_config(Network(), None, write(tmp_path, text))
        assert [len(scheduler.policies[epoch]) for epoch in range(3)] == [
            2,
            1,
            2,
        ]  # the first of the list counts
        first, second = (policy.pruner for policy in scheduler.policies[2])
        assert (first.rate.initial_sparsity, first.rate.final_sparsity, first.weights) == (
            0.1,
            0.5,
            ["conv.weight"],
        )
        assert (second.rate.initial_sparsity, second.rate.final_sparsity, second.weights) == (
            0.1,
            0.9,
            ["fc.weight"],
        )

    @pytest.mark.parametrize(
        ("written", "value"),
        [("1e-1", 0.1), ("1.e-1", 0.1), ("1E-1", 0.1), (".5e0", 0.5), ("5e-1", 0.5), ("+0.5", 0.5)],
    )
    def test_numbers(self, written: str, value: float, tmp_path: Path):
        model = Network()
        scheduler = file_config(model, sgd(model), write(tmp_path, GOOD.replace("1e-1", written)))
        assert scheduler.policies[0][0].lr_scheduler.gamma == value

    def test_our_polynomial_decay_takes_the_place_of_torchs(self, tmp_path: Path):
        model = Network()
        text = replaced("StepLR, step_size: 2, gamma: 1e-1", "PolynomialLR, T_max: 4, power: 2")
        scheduler = file_config(model, sgd(model), write(tmp_path, text))
        assert isinstance(scheduler.policies[0][0].lr_scheduler, PolynomialLR)

    def test_an_instance_that_no_policy_uses_is_said(self, caplog: pytest.LogCaptureFixture):
        pruners = {"p": {"class": "SparsityLevelParameterPruner", "levels": {"*": 0.5}}}
        Schedule.from_dict({"pruners": pruners, "policies": []})
        assert "<dict>: pruners.p is declared, but no policy uses it" in caplog.text

    def test_a_file_of_another_system_is_the_same(self, tmp_path: Path):
        path = tmp_path / "schedule.yaml"
        path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
        assert read_schedule(path).epochs == 5

    def test_a_pruner_of_a_users_own(self, monkeypatch: pytest.MonkeyPatch):
        class First:
            def __init__(self, name: str, model: nn.Module, left: int) -> None:
                self.name, self.model, self.left = name, model, left

            def set_param_mask(self, param, param_name, zeros_mask_dict, meta):
                zeros_mask_dict[param_name].mask = torch.zeros_like(param)

        monkeypatch.setitem(CLASSES["pruners"], "First", First)
        pruners = {"p": {"class": "First", "left": 3}}
        policies = [{"pruner": {"instance_name": "p"}, "epochs": [0, 1]}]
        schedule = Schedule.from_dict({"pruners": pruners, "policies": policies})
        model = Network()
        scheduler = schedule.build(model)
        assert scheduler.policies[0][0].pruner.left == 3
        scheduler.on_epoch_begin(0)
        scheduler.mask_all_weights()
        assert all((param == 0).all() for param in model.parameters())
        assert schedule.sparsity_plan(model) == [dict.fromkeys(dict(model.named_parameters()))] * 2

    def test_one_name_in_place_of_a_list_is_read_as_such_and_said(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ):
        path = write(tmp_path, replaced("[conv.weight]", "conv.weight"))
        scheduler = file_config(model := Network(), sgd(model), path)
        assert caplog.text.count("pruners.fine.weights: a text is read as a list with that one name") == 1
        assert f"{path}:3: " in caplog.text
        pruners = [policy.pruner for policy in scheduler.sched_metadata if hasattr(policy, "pruner")]
        assert ["conv.weight"] in [getattr(pruner, "weights", None) for pruner in pruners]

    def test_the_runtime_is_said(self, caplog: pytest.LogCaptureFixture):
        with caplog.at_level(logging.INFO):
            dict_config(Network(), None, {"policies": []})
        assert "runs in sgc_distiller's own runtime" in caplog.text


MISTAKES: dict[str, tuple[str, str]] = {
    "unknown section": (GOOD + "prunerz: {}\n", "18: prunerz: Expected a section .* Did you mean 'pruners'"),
    "unknown class": (
        replaced("AutomatedGradualPruner", "AutomaticGradualPruner"),
        "3: pruners.fine.class: Expected a class .* Did you mean 'AutomatedGradualPruner'",
    ),
    "class of another section": (
        replaced("StepLR, step_size: 2, gamma: 1e-1", "AutomatedGradualPruner"),
        "6: lr_schedulers.decay.class: Expected a class for 'lr_schedulers'; AutomatedGradualPruner belongs under 'pruners'",
    ),
    "class is a list": (
        replaced("StepLR", "[StepLR]"),
        r"6: lr_schedulers.decay.class: Expected a class, got \['StepLR'\]",
    ),
    "a date that is none": (
        replaced("gamma: 1e-1", "gamma: 2020-13-45"),
        "6: lr_schedulers.decay.gamma: Expected a value of YAML, got '2020-13-45'",
    ),
    "a date": (
        replaced("gamma: 1e-1", "gamma: 2020-12-24"),
        "6: lr_schedulers.decay: Expected arguments that StepLR can use",
    ),
    "nested too deeply": (
        "policies: " + 3000 * "[" + 3000 * "]",
        "Expected a schedule, got one that is nested too deeply",
    ),
    "no class": (
        replaced("class: StepLR, ", ""),
        "6: lr_schedulers.decay: Expected 'class', one of .* got none",
    ),
    "class is a number": (replaced("StepLR", "3"), "6: lr_schedulers.decay.class: Expected a class, got 3"),
    "unknown argument": (
        replaced("weights:", "weigths:"),
        r"3: pruners.fine.weigths: Expected an argument of AutomatedGradualPruner \(.*Did you mean 'weights'",
    ),
    "argument that the loader gives": (
        replaced("step_size: 2", "step_size: 2, last_epoch: 3"),
        "6: lr_schedulers.decay.last_epoch: Expected an argument of StepLR",
    ),
    "argument missing": (
        replaced("initial_sparsity: 0.1, ", ""),
        "3: pruners.fine: Expected argument 'initial_sparsity' of AutomatedGradualPruner, got none",
    ),
    "level outside": (
        replaced("fc.weight: 0.25", "fc.weight: 25"),
        "4: pruners.level.levels.fc.weight: Expected a number between 0 and 1, got 25",
    ),
    "level is a text": (
        replaced("fc.weight: 0.25", "fc.weight: '0.25'"),
        "4: pruners.level.levels.fc.weight: Expected a number between 0 and 1, got '0.25'",
    ),
    "no levels": (
        replaced("{fc.weight: 0.25}", "{}"),
        "4: pruners.level.levels: Expected at least one entry by the name of a weight",
    ),
    "weights are nothing": (replaced("[conv.weight]", "[]"), "3: pruners.fine.weights: .* got an empty list"),
    "final below initial": (
        replaced("final_sparsity: 0.5", "final_sparsity: 0.05"),
        "3: pruners.fine.final_sparsity: Expected a sparsity greater than 'initial_sparsity'",
    ),
    "gradual pruning in a list of epochs": (
        replaced("instance_name: level", "instance_name: fine"),
        "17: policies.2..epochs: Expected 'starting_epoch', .* for gradual pruning, got a list of epochs",
    ),
    "gradual pruning in one epoch": (
        replaced("ending_epoch: 5", "ending_epoch: 2"),
        "12: policies.1..ending_epoch: Expected at least two active epochs .* got only epoch 1",
    ),
    "section is nothing": (
        replaced("lr_schedulers:\n  decay: {class: StepLR, step_size: 2, gamma: 1e-1}", "lr_schedulers:"),
        "5: lr_schedulers: Expected a mapping with instances by name; leave the section out .* got nothing",
    ),
    "instance is a text": (
        replaced("{class: StepLR, step_size: 2, gamma: 1e-1}", "StepLR"),
        "6: lr_schedulers.decay: Expected a mapping with 'class' and its arguments, got 'StepLR'",
    ),
    "policies missing": (GOOD[: GOOD.index("policies")], "1: Expected a list of 'policies', .* got none"),
    "policies are nothing": (
        GOOD[: GOOD.index("- lr")],
        "7: policies: Expected a list of policies, .* got nothing",
    ),
    "policies are a mapping": (
        "policies: {a: 1}\n",
        "1: policies: Expected a list of policies, .* got {'a': 1}",
    ),
    "policy is a text": (
        "policies: [prune]\n",
        r"1: policies\[0\]: Expected a mapping with one of 'pruner', .* got 'prune'",
    ),
    "unknown key of a policy": (
        replaced("  frequency: 1", "  frequenzy: 1"),
        r"13: policies\[1\].frequenzy: Expected a key of a policy .* Did you mean 'frequency'",
    ),
    "no kind of policy": (
        replaced("- lr_scheduler: {instance_name: decay}\n  epochs: [0, 3]", "- epochs: [0, 3]"),
        r"8: policies\[0\]: Expected exactly one of 'pruner', 'regularizer', 'lr_scheduler', 'extension' in a policy, got none",
    ),
    "two kinds of policy": (
        replaced("  epochs: [0, 3]", "  pruner: {instance_name: fine}\n  epochs: [0, 3]"),
        r"8: policies\[0\]: Expected exactly one of .* got pruner and lr_scheduler",
    ),
    "policy of nothing": (
        replaced("{instance_name: decay}", "null"),
        r"8: policies\[0\].lr_scheduler: Expected a mapping with 'instance_name', and options under 'args', got nothing",
    ),
    "no instance": (
        replaced("{instance_name: decay}", "{}"),
        r"8: policies\[0\].lr_scheduler: Expected 'instance_name', got none",
    ),
    "unknown instance": (
        replaced("instance_name: decay", "instance_name: deacy"),
        r"8: policies\[0\].lr_scheduler.instance_name: .* under 'lr_schedulers' \(decay\), got 'deacy'. Did you mean 'decay'",
    ),
    "instance of another section": (
        replaced("instance_name: decay", "instance_name: fine"),
        r"8: policies\[0\].lr_scheduler.instance_name: 'fine' is declared under 'pruners': expected 'pruner:' in the place of 'lr_scheduler:'",
    ),
    "arguments of a learning-rate policy": (
        replaced("{instance_name: decay}", "{instance_name: decay, args: {a: 1}}"),
        r"8: policies\[0\].lr_scheduler.args: Expected no 'args' for lr_scheduler policies",
    ),
    "unknown option": (
        replaced("keep_mask", "keep_masks"),
        r"16: policies\[2\].pruner.args.keep_masks: Expected an option .* Did you mean 'keep_mask'",
    ),
    "options that do not go together": (
        replaced("keep_mask: true", "mask_gradients: true"),
        r"16: policies\[2\].pruner.args.mask_gradients: Expected 'mask_on_forward_only: true' beside",
    ),
    "levels for a pruner without": (
        replaced(
            "pruner: {instance_name: fine}", "pruner: {instance_name: fine, args: {levels: {fc.weight: 0.1}}}"
        ),
        r"10: policies\[1\].pruner.args.levels: Expected a pruner with levels, .* got AutomatedGradualPruner",
    ),
    "epochs are a number": (
        replaced("[0, 3]", "3"),
        r"9: policies\[0\].epochs: Expected a list of increasing epochs",
    ),
    "epochs are nothing": (replaced("[0, 3]", "[]"), r"9: policies\[0\].epochs: Expected a list .* got \[\]"),
    "epochs out of order": (
        replaced("[0, 3]", "[3, 0]"),
        r"9: policies\[0\].epochs: Expected a list .* got \[3, 0\]",
    ),
    "epochs are fractions": (
        replaced("[0, 3]", "[0.5]"),
        r"9: policies\[0\].epochs: Expected a list .* got \[0.5\]",
    ),
    "epochs twice": (
        replaced("  epochs: [0, 3]", "  epochs: [0, 3]\n  frequency: 1"),
        r"10: policies\[0\].frequency: Expected either 'epochs' or 'frequency', got both",
    ),
    "part of a range missing": (
        replaced("  frequency: 1\n", ""),
        r"10: policies\[1\]: Expected 'epochs', or all of .* 'frequency' is missing",
    ),
    "part of a range is nothing": (
        replaced("frequency: 1", "frequency:"),
        r"13: policies\[1\].frequency: Expected a whole number, got nothing",
    ),
    "range backwards": (
        replaced("ending_epoch: 5", "ending_epoch: 1"),
        r"12: policies\[1\].ending_epoch: Expected a whole number greater than 'starting_epoch' \(1\)",
    ),
    "range below zero": (
        replaced("starting_epoch: 1", "starting_epoch: -1"),
        r"11: policies\[1\].starting_epoch: Expected a whole number of at least 0, got -1",
    ),
    "frequency too large": (
        replaced("frequency: 1", "frequency: 5"),
        r"13: policies\[1\].frequency: Expected a whole number from 1 to 4",
    ),
    "rate that fails later": (
        replaced("gamma: 1e-1", "gamma: ten"),
        "6: lr_schedulers.decay.gamma: Expected a number, got the text 'ten'",
    ),
    "rate below zero": (
        replaced("step_size: 2, gamma: 1e-1", "step_size: 1, gamma: -0.5"),
        "6: lr_schedulers.decay: Expected a learning rate of at least 0",
    ),
    "key twice": (
        replaced("  level:", "  fine:"),
        "4: pruners.fine: Expected each key once, got 'fine' on line 3 too",
    ),
    "argument twice": (
        replaced("step_size: 2", "step_size: 2, step_size: 3"),
        "6: lr_schedulers.decay.step_size: Expected each key once",
    ),
    "other version": (replaced("version: 1", "version: 2"), "1: version: Expected version 1, got 2"),
    "quantizers": (
        "quantizers: {}\npolicies: []\n",
        "1: quantizers: Expected no section 'quantizers': this tool prunes, quantizers are not supported. Remove the "
        "section and the policies with 'quantizer'",
    ),
    "regularizer policy": (
        "policies:\n- regularizer: {instance_name: r}\n  epochs: [0]\n",
        r"2: policies\[0\].regularizer.instance_name: Expected an instance declared under 'regularizers' \(there is none\), got 'r'",
    ),
    "not a mapping": ("- a\n- b\n", r"1: Expected a mapping with sections of a schedule, got \['a', 'b'\]"),
    "empty": ("# nothing\n", "Expected a schedule, but the file is empty"),
    "not YAML": ("version: 1\npruners: [unclosed\n", "3: Expected plain YAML: .* expected ',' or ']'"),
    "tab": ("pruners:\n\tp: 1\n", "2: Expected plain YAML: .* found character"),
    "two documents": (
        "policies: []\n---\npolicies: []\n",
        "2: Expected plain YAML: expected a single document",
    ),
    "objects": (
        "policies: !!python/object/apply:os.getcwd []\n",
        "1: Expected plain YAML: could not determine a constructor",
    ),
    "alias of its own parent": (
        "policies: &a [*a]\n",
        r"1: policies\[0\]: Expected a value, got an alias of what it is part of",
    ),
    "merge of its own parent": (
        "pruners: &a {<<: *a}\npolicies: []\n",
        "1: pruners: Expected a mapping, or a list of them, to merge",
    ),
    "merge of a text": (
        "pruners: {<<: a}\npolicies: []\n",
        "1: pruners: Expected a mapping, or a list of them, to merge",
    ),
    "key that is a list": ("? [a]\n: 1\n", "1: Expected a name as key"),
    "unknown setting": (
        "policies: []\ngan: {step_per_epoch: 3}\n",
        "2: gan.step_per_epoch: Expected a setting of the experiment .* Did you mean 'steps_per_epoch'",
    ),
    "gan is nothing": (
        "policies: []\ngan:\n",
        "2: gan: Expected a mapping with a setting of the experiment, got nothing",
    ),
    "unknown setting of the student": (
        "policies: []\ngan:\n  student: {wdth: 1}\n",
        r"3: gan.student.wdth: Expected a setting of the student \(init, width\), got 'wdth'. Did you mean 'width'",
    ),
    "choice that is none": (
        "policies: []\ngan:\n  discriminator:\n    real: teachers\n",
        "4: gan.discriminator.real: Expected one of data, teacher, got 'teachers'. Did you mean 'teacher'",
    ),
    "switch that is none": (
        "policies: []\ngan: {discriminator: {train: 'yes'}}\n",
        "2: gan.discriminator.train: Expected true or false, got 'yes'",
    ),
    "narrow and dense": (
        "policies: []\ngan: {student: {width: 0.5}}\n",
        "2: gan.student: Expected 'width: 1.0' beside 'init: dense', got 0.5",
    ),
    "no steps": (
        "policies: []\ngan: {steps_per_epoch: 0}\n",
        "2: gan.steps_per_epoch: Expected a whole number of at least 1",
    ),
    "fewer epochs than needed": (
        GOOD + "gan: {epochs: 4}\n",
        "18: gan.epochs: Expected at least 5 epochs, .* got 4",
    ),
}


class TestMistakes:
    @pytest.mark.parametrize("name", MISTAKES)
    def test_are_refused_when_the_file_is_read(self, name: str, tmp_path: Path):
        text, message = MISTAKES[name]
        path = write(tmp_path, text)
        with pytest.raises(ScheduleError, match=f"^{re.escape(str(path))}:? ?{message}") as caught:
            read_schedule(path)
        assert isinstance(caught.value, UserError)
        assert caught.value.source == str(path)

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            (
                "[conv.weight]",
                "[conv.wieght]",
                r"3: pruners.fine.weights\[0\]: .* got 'conv.wieght'. Did you mean 'conv.weight'",
            ),
            (
                "[conv.weight]",
                "[conv.weight, 'c?nv2.*']",
                r"3: pruners.fine.weights\[1\]: Expected a pattern that matches a weight",
            ),
            (
                "[conv.weight]",
                "['norm.*']",
                r"3: pruners.fine.weights\[0\]: .* The model has conv.weight, fc.weight",
            ),
            (
                "{fc.weight: 0.25}",
                "{'*': 0.1, fc.weigth: 0.25}",
                "4: pruners.level.levels.fc.weigth: .* Did you mean 'fc.weight'",
            ),
            (
                "{fc.weight: 0.25}",
                "{'fc.*': 0.1, '*.weight': 0.25}",
                "4: pruners.level.levels.*: Expected one value for 'fc.weight'",
            ),
            (
                "keep_mask: true",
                "levels: {fd.weight: 0.5}",
                r"16: policies\[2\].pruner.args.levels.fd.weight: .* Did you mean 'fc",
            ),
        ],
    )
    def test_of_names_are_refused_when_it_is_built(self, old: str, new: str, message: str, tmp_path: Path):
        model = Network()
        path = write(tmp_path, replaced(old, new))
        schedule = read_schedule(path)
        with pytest.raises(ScheduleError, match=f"^{re.escape(str(path))}:{message}"):
            schedule.build(model, sgd(model))
        with pytest.raises(ScheduleError, match=message):
            schedule.sparsity_plan(model)

    def test_a_rate_needs_an_optimizer(self, tmp_path: Path):
        with pytest.raises(
            ScheduleError, match="6: lr_schedulers.decay: Expected an optimizer for a learning-rate"
        ):
            file_config(Network(), None, write(tmp_path, GOOD))

    def test_a_resumed_rate_needs_an_optimizer_that_was_loaded(self, tmp_path: Path):
        model = Network()
        with pytest.raises(
            ScheduleError, match="6: lr_schedulers.decay: .*'initial_lr' in its groups.* epoch 3. Load"
        ):
            file_config(model, sgd(model), write(tmp_path, GOOD), resumed_epoch=3)

    def test_files_that_cannot_be_read(self, tmp_path: Path):
        write(tmp_path, GOOD)
        with pytest.raises(
            ScheduleError, match="shedule.yaml: Expected a schedule file, .* Did you mean '.*schedule.yaml'"
        ):
            read_schedule(tmp_path / "shedule.yaml")
        with pytest.raises(
            ScheduleError, match="Expected a schedule file, .* The folder '.*none' is missing too"
        ):
            read_schedule(tmp_path / "none" / "schedule.yaml")
        with pytest.raises(ScheduleError, match="Expected a schedule file that can be read: Is a directory"):
            read_schedule(tmp_path)
        (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(
            ScheduleError, match="Expected a text file in UTF-8, but invalid start byte at byte 0"
        ):
            read_schedule(tmp_path / "bytes.yaml")
        (tmp_path / "control.yaml").write_bytes(b"a: \x00")
        with pytest.raises(ScheduleError, match="Expected plain YAML"):
            read_schedule(tmp_path / "control.yaml")

    def test_in_a_dictionary_have_keys_and_no_lines(self):
        with pytest.raises(ScheduleError, match="^<dict>: policies.0.: Expected exactly one of") as caught:
            Schedule.from_dict({"policies": [{"epochs": [0]}]})
        assert (caught.value.source, caught.value.line, caught.value.key) == ("<dict>", None, "policies[0]")
        with pytest.raises(ScheduleError, match="^<dict>: Expected a schedule as a dictionary, got 3"):
            Schedule.from_dict(3)  # type: ignore[arg-type]


class Loss(ScheduledTrainingPolicy):
    """A policy of a user's own, with arguments."""

    def __init__(self, model: nn.Module, name: str, mode: str = "add", weight: float = 1.0) -> None:
        super().__init__()
        if weight < 0:
            raise UserError("weight: Expected a number of at least 0")
        self.model, self.name, self.mode, self.weight = model, name, mode, weight


@pytest.fixture
def own_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CLASSES["extensions"], "Loss", Loss)


def with_losses(*modes: tuple[str, list[int]]) -> dict[str, Any]:
    return {
        "extensions": {f"x{index}": {"class": "Loss", "mode": mode} for index, (mode, _) in enumerate(modes)},
        "policies": [
            {"extension": {"instance_name": f"x{index}"}, "epochs": epochs}
            for index, (_, epochs) in enumerate(modes)
        ],
    }


@pytest.mark.usefixtures("own_classes")
class TestExtensions:
    def test_get_model_and_name(self):
        model = Network()
        scheduler = dict_config(model, None, with_losses(("add", [0])))
        policy = scheduler.policies[0][0]
        assert (policy.model, policy.name, policy.weight) == (model, "x0", 1.0)

    def test_one_used_by_two_policies_is_one_object(self):
        schedule = with_losses(("add", [0]))
        schedule["policies"].append({"extension": {"instance_name": "x0"}, "epochs": [1]})
        scheduler = dict_config(Network(), None, schedule)
        assert scheduler.policies[0] == scheduler.policies[1]

    def test_mistakes_of_a_constructor_are_placed(self, tmp_path: Path):
        text = "extensions:\n  x:\n    class: Loss\n    weight: -1\npolicies: [{extension: {instance_name: x}, epochs: [0]}]\n"
        schedule = read_schedule(write(tmp_path, text))
        with pytest.raises(
            ScheduleError, match="schedule.yaml:2: extensions.x: weight: Expected a number of at least 0"
        ):
            schedule.build(Network())

    @pytest.mark.parametrize("given", ["model", "name", "kwargs"])
    def test_what_the_loader_gives_cannot_be_written(self, given: str):
        schedule = with_losses(("add", [0]))
        schedule["extensions"]["x0"][given] = 1
        with pytest.raises(
            ScheduleError,
            match=rf"extensions.x0.{given}: Expected an argument of Loss \(class, mode, weight\)",
        ):
            Schedule.from_dict(schedule)

    @pytest.mark.parametrize(
        "modes",
        [
            [("replace", [0, 1]), ("add", [0, 1]), ("add", [2])],
            [("replace", [0, 1]), ("replace", [2, 3])],
            [("add", [0, 1]), ("replace", [2, 3])],
        ],
    )
    def test_losses_that_go_together(self, modes: list[tuple[str, list[int]]]):
        dict_config(Network(), None, with_losses(*modes))

    @pytest.mark.parametrize(
        ("modes", "message"),
        [
            (
                [("replace", [0, 2]), ("replace", [1, 2])],
                r"policies\[1\]: Expected at most one policy that replaces the loss in an epoch, got 'x0' and 'x1' in epoch 2",
            ),
            (
                [("add", [0, 1]), ("replace", [1])],
                r"policies\[1\]: Expected 'x1', which replaces the loss, before 'x0', which adds to it: in epoch 1",
            ),
        ],
    )
    def test_losses_that_contradict_each_other(self, modes: list[tuple[str, list[int]]], message: str):
        with pytest.raises(ScheduleError, match=message):
            dict_config(Network(), None, with_losses(*modes))


class TestExperiment:
    def test_settings(self):
        schedule = Schedule.from_dict(
            {
                "policies": [],
                "gan": {
                    "objective": "none",
                    "student": {"init": "random", "width": 0.5},
                    "discriminator": {"init": "random", "train": False, "real": "teacher", "fake": "teacher"},
                    "steps_per_epoch": 50,
                    "epochs": 7,
                },
            }
        )
        assert schedule.gan == GanSpec(
            "none",
            StudentSpec("random", 0.5),
            DiscriminatorSpec("random", False, "teacher", "teacher", "adversarial"),
            50,
            7,
        )
        assert schedule.epochs == 7

    def test_defaults(self):
        gan = Schedule.from_dict({"policies": [], "gan": {}}).gan
        assert gan == GanSpec()
        assert (gan.objective, gan.steps_per_epoch) == ("task", 200)
        assert gan.student == StudentSpec("dense", 1.0)
        assert gan.discriminator == DiscriminatorSpec("pretrained", True, "data", "student", "adversarial")

    def test_a_schedule_without_it_has_none(self):
        assert Schedule.from_dict({"policies": []}).gan is None


class TestSparsityPlan:
    def plan(self, *policies: dict[str, Any]) -> list[dict[str, float]]:
        return Schedule.from_dict(
            {
                "pruners": {
                    "rise": {
                        "class": "AutomatedGradualPruner",
                        "initial_sparsity": 0.0,
                        "final_sparsity": 0.8,
                        "weights": ["conv.*"],
                    },
                    "level": {"class": "SparsityLevelParameterPruner", "levels": {"fc.weight": 0.5}},
                },
                "policies": list(policies),
            }
        ).sparsity_plan(Network())

    def test_masks_stay(self):
        rise = {"pruner": {"instance_name": "rise"}, "starting_epoch": 1, "ending_epoch": 4, "frequency": 1}
        plan = self.plan(rise, {"pruner": {"instance_name": "level"}, "epochs": [2, 5]})
        conv = [row["conv.weight"] for row in plan]
        assert conv == pytest.approx([0, 0, 0.7, 0.8, 0.8, 0.8])  # 0.8 * (1 - (1/2)^3)
        assert [row["fc.weight"] for row in plan] == [0, 0, 0.5, 0.5, 0.5, 0.5]
        assert {name for row in plan for name in row} == {"conv.weight", "fc.weight"}

    def test_epochs_without_masks_are_dense(self):
        args = {"mask_on_forward_only": True, "keep_mask": True}
        rise = {
            "pruner": {"instance_name": "rise", "args": args},
            "starting_epoch": 0,
            "ending_epoch": 5,
            "frequency": 2,
        }
        plan = self.plan(rise)
        assert [row["conv.weight"] for row in plan] == pytest.approx([0, 0, 0.7, 0, 0.8])

    def test_discarded_masks_do_not_stay(self):
        args = {"discard_masks_at_minibatch_end": True}
        first = {"pruner": {"instance_name": "level", "args": args}, "epochs": [0, 3]}
        assert [row["fc.weight"] for row in self.plan(first)] == [0.5, 0, 0, 0.5]

    def test_levels_of_a_policy(self):
        first = {"pruner": {"instance_name": "level"}, "epochs": [0, 2]}
        other = {"pruner": {"instance_name": "level", "args": {"levels": {"fc.weight": 0.9}}}, "epochs": [1]}
        assert [row["fc.weight"] for row in self.plan(first, other)] == [0.5, 0.9, 0.9]

    @pytest.mark.parametrize(
        "args", [{}, {"mask_on_forward_only": True}, {"mask_on_forward_only": True, "keep_mask": True}]
    )
    @pytest.mark.parametrize("frequency", [1, 2, 3])
    def test_is_what_forward_passes_see(self, args: dict[str, bool], frequency: int):
        model = Network()
        schedule = Schedule.from_dict(
            {
                "pruners": {
                    "p": {
                        "class": "AutomatedGradualPruner",
                        "initial_sparsity": 0.1,
                        "final_sparsity": 0.8,
                        "weights": ["*"],
                    }
                },
                "lr_schedulers": {"l": {"class": "StepLR", "step_size": 1}},
                "policies": [
                    {
                        "pruner": {"instance_name": "p", "args": args},
                        "starting_epoch": 1,
                        "ending_epoch": 6,
                        "frequency": frequency,
                    },
                    {"lr_scheduler": {"instance_name": "l"}, "epochs": [7]},
                ],
            }
        )
        scheduler = schedule.build(model, sgd(model))
        for epoch, asked in enumerate(schedule.sparsity_plan(model)):
            scheduler.on_epoch_begin(epoch)
            scheduler.on_minibatch_begin(epoch, 0, 1)
            seen = {
                name: int((param == 0).sum()) for name, param in model.named_parameters() if name in asked
            }
            assert seen == {
                name: int(level * model.get_parameter(name).numel()) for name, level in asked.items()
            }
            with torch.no_grad():
                for param in model.parameters():
                    param += torch.rand_like(param) + 0.01
            scheduler.on_minibatch_end(epoch, 0, 1)
            scheduler.on_epoch_end(epoch)


DOCUMENTS = Path(__file__).resolve().parents[1] / "docs"


def examples() -> list[str]:
    """Return the YAML examples of docs/schedule.md."""
    return re.findall(
        r"```yaml\n(.*?)```", (DOCUMENTS / "schedule.md").read_text(encoding="utf-8"), re.DOTALL
    )


class TestDocumentation:
    def test_every_example_can_be_built_and_runs(self, tmp_path: Path):
        assert len(examples()) >= 5
        for text in examples():
            task = DCGAN(image_size=16, width=4)
            student, teacher, judge = (
                task.build("generator"),
                task.build("generator"),
                task.build("discriminator"),
            )
            supervision = Supervision(task, student, judge, teacher)
            optimizer = sgd(student)
            schedule = read_schedule(write(tmp_path, text))
            scheduler = schedule.build(supervision.generator, optimizer)
            for epoch in range(schedule.epochs):
                scheduler.on_epoch_begin(epoch, optimizer)
                scheduler.on_epoch_end(epoch, optimizer, metrics={"min": 1.0, "max": 1.0})

    def test_every_key_and_class_is_named(self):
        text = (DOCUMENTS / "schedule.md").read_text(encoding="utf-8")
        words = {"version", "policies", *CLASSES, *(name for found in CLASSES.values() for name in found)}
        words |= {"instance_name", "args", "epochs", "starting_epoch", "ending_epoch", "frequency"}
        for spec in (GanSpec, StudentSpec, DiscriminatorSpec):
            words |= set(spec.__dataclass_fields__)
        words |= options_of_a_pruning_policy()
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        named = {word for span in re.findall(r"`([^`]+)`", prose) for word in re.findall(r"\w+", span)}
        assert words - named == set()


def options_of_a_pruning_policy() -> set[str]:
    with pytest.raises(UserError) as caught:
        PruningPolicy(object(), {"?": 1})
    return set(re.findall(r"\w+", str(caught.value).split("(")[1].split(")")[0]))
