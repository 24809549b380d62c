"""The script that compares Distiller's own schedules: its stand-in model, and what it sees."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

import sgc_distiller
from sgc_distiller.scheduler import CompressionScheduler

TOOLS = Path(__file__).resolve().parents[1] / "tools"
SCHEDULE: dict[str, Any] = {
    "version": 1,
    "pruners": {
        "fine": {
            "class": "AutomatedGradualPruner",
            "initial_sparsity": 0.1,
            "final_sparsity": 0.6,
            "weights": ["module.layer1.0.conv1.weight", "module.fc.weight"],
        },
        "level": {
            "class": "SparsityLevelParameterPruner",
            "levels": {"rnn.weight_ih_l0": 0.5, "module.layer1.0.bn1.weight": 0.25},
        },
    },
    "lr_schedulers": {"rate": {"class": "ExponentialLR", "gamma": 0.9}},
    "policies": [
        {"pruner": {"instance_name": "fine"}, "starting_epoch": 1, "ending_epoch": 9, "frequency": 2},
        {"pruner": {"instance_name": "level"}, "epochs": [0, 3, 4]},
        {"lr_scheduler": {"instance_name": "rate"}, "starting_epoch": 2, "ending_epoch": 9, "frequency": 1},
    ],
}
THINNER = {
    "class": "FilterRemover",
    "thinning_func_str": "remove_filters",
    "arch": "resnet20_cifar",
    "dataset": "cifar10",
}
THINNED = {
    **SCHEDULE,
    "extensions": {"thinner": THINNER},
    "policies": [{"extension": {"instance_name": "thinner"}, "epochs": [20]}, *SCHEDULE["policies"]],
}


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(TOOLS)
    return importlib.import_module("compare_upstream_schedules")


def other_side(change: Callable[[CompressionScheduler, str, int], None] | None = None) -> SimpleNamespace:
    """Return our own runtime in Distiller's place; ``change`` is called after each callback."""

    def file_config(model: Any, optimizer: Any, filename: str) -> CompressionScheduler:
        scheduler = sgc_distiller.file_config(model, optimizer, filename)
        for hook in ("on_epoch_begin", "on_minibatch_begin", "on_minibatch_end", "on_epoch_end"):
            scheduler.__dict__[hook] = changed(scheduler, hook)
        return scheduler

    def changed(scheduler: CompressionScheduler, hook: str) -> Callable[..., None]:
        callback = getattr(scheduler, hook)

        def call(epoch: int, *args: Any, **kwargs: Any) -> None:
            callback(epoch, *args, **kwargs)
            if change is not None:
                change(scheduler, hook, epoch)

        return call

    expand = SimpleNamespace(expand_binary_map=lambda *_: None)
    return SimpleNamespace(file_config=file_config, thresholding=expand, SummaryGraph=None)


def compared(tool: ModuleType, folder: Path, schedule: Any, other: SimpleNamespace) -> tuple[str, str]:
    path = folder / "schedule.yaml"
    path.write_text(schedule if isinstance(schedule, str) else yaml.safe_dump(schedule), encoding="utf-8")
    verdict = tool.compare(other, path, folder)
    return verdict.kind, verdict.note


class TestStandIn:
    def test_has_the_names_with_shapes_that_fit(self, tool: ModuleType):
        model = tool.stand_in(SCHEDULE)
        ranks = {name: param.dim() for name, param in model.named_parameters()}
        assert ranks == {
            "module.layer1.0.conv1.weight": 4,
            "module.layer1.0.bn1.weight": 1,
            "module.layer1.0.bn1.bias": 1,
            "module.fc.weight": 2,
            "rnn.weight_ih_l0": 2,
            "bystander.weight": 4,
            "bystander.bias": 1,
        }

    def test_weights_have_no_ties(self, tool: ModuleType):
        for name, param in tool.stand_in(SCHEDULE).named_parameters():
            if name != "module.layer1.0.bn1.bias":  # torch's own, zeros; nothing prunes it
                assert param.abs().unique().numel() == param.numel(), name

    def test_leaders_have_equal_counts_and_rows_are_matrices(self, tool: ModuleType):
        weights = [f"layer{index}.conv1.weight" for index in range(8)]
        leader = {"class": "L1", "group_type": "Filters", "group_dependency": "Leader", "weights": weights}
        rows = {"class": "L1", "group_type": "Rows", "weights": ["rows.weight"]}
        model = tool.stand_in({"pruners": {"a": leader, "b": rows}, "policies": []})
        assert {model.get_parameter(name).shape for name in weights} == {(16, 16, 3, 3)}
        assert model.get_parameter("rows.weight").dim() == 2

    def test_thresholds_fall_between_the_channels_of_regularizers(self, tool: ModuleType):
        regimes = {f"layer{index}.conv2.weight": [0.004, "Channels"] for index in range(4)}
        regularizer = {"class": "GroupLassoRegularizer", "reg_regims": regimes}
        model = tool.stand_in({"regularizers": {"a": regularizer}, "policies": []})
        for name in regimes:
            means = model.get_parameter(name).abs().mean(dim=(0, 2, 3))
            assert means.min() < 0.004 < means.max()

    def test_has_statistics_where_activations_are_ranked(self, tool: ModuleType):
        pruner = {"class": "ActivationAPoZRankedFilterPruner", "weights": ["layer1.0.conv2.weight"]}
        model = tool.stand_in({"pruners": {"a": pruner}, "policies": []})
        values, spread = model.get_submodule("layer1.0.relu2").apoz_channels.value()
        assert values.shape == spread.shape == (model.get_parameter("layer1.0.conv2.weight").shape[0],)

    def test_has_the_batch_norms_that_are_folded(self, tool: ModuleType):
        pruner = {"class": "L1", "weights": ["conv1.weight", "downsample.0.weight"]}
        policy = {"pruner": {"instance_name": "a", "args": {"fold_batchnorm": True}}, "epochs": [0]}
        model = tool.stand_in({"pruners": {"a": pruner}, "policies": [policy]})
        graph = tool.KnownGraph(model, torch.zeros(model.input_shape))
        assert graph.successors_f("conv1", []) == ["bn1"]
        assert graph.successors_f("downsample.0", []) == ["downsample.1"]
        assert graph.successors_f("bystander", []) == []


class TestRun:
    def test_plays_the_first_and_the_last_active_epoch_of_each_policy(self, tool: ModuleType, tmp_path: Path):
        epochs: list[int] = []

        def note(scheduler: CompressionScheduler, hook: str, epoch: int) -> None:
            if hook == "on_epoch_begin":
                epochs.append(epoch)

        assert compared(tool, tmp_path, SCHEDULE, other_side(note))[0] == "equal"
        assert epochs == [0, 1, 2, 4, 7, 8]

    def test_has_steps_enough_for_masks_in_the_middle_of_an_epoch(self, tool: ModuleType):
        assert tool.minibatches(SCHEDULE) == 3
        policy = {"pruner": {"instance_name": "a", "args": {"mini_batch_pruning_frequency": 16}}}
        assert tool.minibatches({"policies": [policy]}) == 17


class TestVerdicts:
    def test_equal(self, tool: ModuleType, tmp_path: Path):
        kind, note = compared(tool, tmp_path, SCHEDULE, other_side())
        assert (kind, note.split(", ")[1]) == ("equal", "4 parameters pruned")

    def test_removers_are_taken_out_of_both_sides(self, tool: ModuleType, tmp_path: Path):
        epochs: list[int] = []
        note = lambda scheduler, hook, epoch: epochs.append(epoch)  # noqa: E731
        assert compared(tool, tmp_path, THINNED, other_side(note))[0] == "equal"
        assert max(epochs) == 8
        broken = {**THINNED, "extensions": {"thinner": {**THINNER, "thinning_func_str": "none"}}}
        kind, note = compared(tool, tmp_path, broken, other_side())
        assert kind == "mended"
        assert "thinning_func_str" in note

    @pytest.mark.parametrize(
        ("hook", "epoch", "what", "message"),
        [
            ("on_minibatch_end", 8, "weight", "epoch 8, step 0, end: weights of module.fc.weight: 1 of"),
            ("on_minibatch_begin", 4, "mask", "epoch 4, step 0, forward: mask of module.fc.weight: 1 of"),
            (
                "on_minibatch_begin",
                0,
                "no mask",
                "epoch 0, step 0, forward: mask of rnn.weight_ih_l0: a mask",
            ),
        ],
    )
    def test_every_difference_is_seen(
        self, tool: ModuleType, tmp_path: Path, hook: str, epoch: int, what: str, message: str
    ):
        def change(scheduler: CompressionScheduler, called: str, now: int) -> None:
            if (called, now) != (hook, epoch):
                return
            if what == "weight":
                with torch.no_grad():
                    scheduler.model.get_parameter("module.fc.weight").view(-1)[0] += 3e-6
            elif what == "mask":
                masker = scheduler.zeros_mask_dict["module.fc.weight"]
                masker.mask = masker.mask.clone()
                masker.mask.view(-1)[0] = 1 - masker.mask.view(-1)[0]
            else:
                scheduler.zeros_mask_dict["rnn.weight_ih_l0"].mask = None

        kind, note = compared(tool, tmp_path, SCHEDULE, other_side(change))
        assert kind == "different"
        assert note.startswith(message)

    def test_rates_are_compared(self, tool: ModuleType, tmp_path: Path):
        other = other_side()
        config = other.file_config

        def slower(model: Any, optimizer: Any, filename: str) -> Any:
            scheduler = config(model, optimizer, filename)
            scheduler.policies[8][-1].lr_scheduler.gamma = 0.9 + 1e-9
            return scheduler

        other.file_config = slower
        kind, note = compared(tool, tmp_path, SCHEDULE, other)
        assert kind == "different"
        assert note.startswith("end of epoch 2: learning rate: 0.0729")

    def test_text_under_weights_and_keys_that_stand_twice_are_mended(self, tool: ModuleType, tmp_path: Path):
        text = yaml.safe_dump(SCHEDULE) + "version: 1\n"
        other = other_side()
        other.file_config = lambda model, optimizer, filename: sgc_distiller.dict_config(
            model, optimizer, SCHEDULE
        )
        kind, note = compared(tool, tmp_path, text, other)
        assert kind == "mended"
        assert "Expected each key once, got 'version'" in note

    def test_quantizers_are_refused_in_one_line(self, tool: ModuleType, tmp_path: Path):
        schedule = {"quantizers": {"q": {"class": "DorefaQuantizer"}}, "policies": []}
        assert compared(tool, tmp_path, schedule, other_side())[0] == "quantizer"

    def test_a_class_that_does_not_exist_here(self, tool: ModuleType, tmp_path: Path):
        schedule = {"pruners": {"p": {"class": "Own", "weights": ["fc.weight"]}}, "policies": []}
        assert compared(tool, tmp_path, schedule, other_side()) == ("missing", "Own")

    @pytest.mark.parametrize("is_cured", [False, True])
    def test_errors_of_the_other_side(self, tool: ModuleType, tmp_path: Path, is_cured: bool):
        def fail(scheduler: CompressionScheduler, hook: str, epoch: int) -> None:
            if epoch == 7 and hook == "on_epoch_begin":
                if is_cured:
                    torch.zeros(1).cuda()
                else:
                    raise IndexError("index -1 is out of bounds")

        if is_cured and torch.cuda.is_available():
            pytest.skip("requires: no GPU")
        kind, note = compared(tool, tmp_path, SCHEDULE, other_side(fail))
        assert kind == ("helped" if is_cured else "stopped")
        assert ("Distiller alone: " if is_cured else "Distiller: IndexError: index -1 is out") in note


@pytest.mark.parametrize(("change", "status"), [(None, 0), ("weights", 1)])
def test_exit_status_and_counts(
    tool: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: str | None,
    status: int,
):
    def spoil(scheduler: CompressionScheduler, hook: str, epoch: int) -> None:
        if change and hook == "on_minibatch_end":
            with torch.no_grad():
                scheduler.model.get_parameter("bystander.bias").add_(1e-3)

    (tmp_path / "examples").mkdir()
    for name, text in {
        "a.yaml": yaml.safe_dump(SCHEDULE),
        "b.yaml": yaml.safe_dump(THINNED),
        "statistics.yaml": "conv1: {min: 0}\n",
    }.items():
        (tmp_path / "examples" / name).write_text(text, encoding="utf-8")
    monkeypatch.setitem(importlib.sys.modules, "distiller", other_side(spoil))
    monkeypatch.setattr(tool.logging, "disable", lambda level: None)
    monkeypatch.setattr(tool.warnings, "simplefilter", lambda action: None)
    assert tool.main([str(tmp_path)]) == status
    lines = capsys.readouterr().out.splitlines()
    kind = "different" if change else "equal"
    assert lines[0].split()[:2] == [kind, "examples/a.yaml"]
    assert lines[1].split()[:2] == [kind, "examples/b.yaml"]
    assert lines[3] == "2 schedules with policies, 1 of them with removers"
    assert any(line.strip().startswith(f"2 {kind}:") for line in lines)
