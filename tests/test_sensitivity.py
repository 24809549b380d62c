"""Sensitivity: layers pruned alone on copies, never measured twice, and a schedule that can be run."""

from __future__ import annotations

import copy
import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from gans import GANS
from hypothesis import given
from hypothesis import strategies as st
from tiny import picture_folder
from torch import nn

from sgc_distiller.app import compress_gan, main
from sgc_distiller.checkpoints import load_checkpoint
from sgc_distiller.errors import NotANumberError, UserError
from sgc_distiller.metrics import MetricResult
from sgc_distiller.names import prunable_names
from sgc_distiller.schedule import read_schedule
from sgc_distiller.sensitivity import (
    Analysis,
    Point,
    Request,
    levels_between,
    measure_sensitivity,
    pruned_copy,
)
from sgc_distiller.sensitivity_judge import Judge
from sgc_distiller.sensitivity_outcome import (
    agreement,
    closing_notes,
    points_as_csv,
    sensitivity_table,
    starting_schedule,
    write_outcome,
)
from sgc_distiller.settings import Options, resolve

LEVELS = (0.0, 0.25, 0.5)
SMALL = "-b 8 --image-size 16 --width 4 --epochs 1 --steps-per-epoch 2 --epoch-images 0 --test-images 16"


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run folder of a small DCGAN; it is only read."""
    folder = tmp_path_factory.mktemp("sensitivity")
    picture_folder(folder / "pictures")
    flags = f"--data {folder / 'pictures'} --extractor digits --cpu {SMALL} -o {folder} -n dense"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sgc_distiller.session.write_report", lambda path: path)
        assert main(["train", "dcgan", *flags.split()]) == 0
    return folder / "dense"


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sgc_distiller.session.write_report", lambda path: path)
    monkeypatch.setattr("sgc_distiller.studies.measures._BATCHES", 2)


def options_of(dense: Path, **given: Any) -> Options:
    usual = {"weights_from": str(dense), "device": "cpu", "batch_size": 8, "test_images": 16}
    return resolve({**usual, "extractor": "digits", **given})


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the judge measure as before, and note what."""
    noted: list[str] = []
    measure = Judge.measure

    def noting(self: Judge, metric: str, generator: nn.Module) -> Any:
        noted.append(metric)
        return measure(self, metric, generator)

    monkeypatch.setattr(Judge, "measure", noting)
    return noted


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the judge return the share of zeros, which rises with the level, at once."""

    def share(self: Judge, metric: str, generator: nn.Module) -> Any:
        weights = torch.cat([item.flatten() for item in generator.parameters() if item.dim() > 1])
        value = float((weights == 0).double().mean())
        return {metric: (f"{metric} of zeros", value if metric == "loss" else 1 + value)}

    monkeypatch.setattr(Judge, "measure", share)


# --- what is pruned ---


def test_levels_are_distillers():
    assert levels_between(0.0, 0.95, 0.05) == pytest.approx(np.arange(0.0, 0.95, 0.05))
    assert levels_between(0.5, 0.6, 0.1) == (0.5,)
    assert levels_between(0.0, 1.0, 0.1)[-1] == 0.9


@given(start=st.floats(0, 0.9), width=st.floats(0.01, 0.1), step=st.floats(0.001, 0.2))
def test_levels_rise_and_leave_out_the_end(start: float, width: float, step: float):
    found = levels_between(start, start + width, step)
    assert found[0] == pytest.approx(start, abs=1e-9)
    assert all(left < right for left, right in zip(found, found[1:], strict=False))
    assert found[-1] < start + width + 1e-9
    assert found[-1] + step >= start + width - 1e-9


@pytest.mark.parametrize(
    "values", [(0.5, 0.5, 0.1), (0, 1.1, 0.1), (-0.1, 0.5, 0.1), (0, 1, 0), (0, 1, 1e-5), (0, math.nan, 0.1)]
)
def test_a_range_that_is_none_is_refused(values: Any):
    with pytest.raises(
        UserError, match=r"--sense-range: expected START STOP STEP with 0 <= START < STOP <= 1"
    ):
        levels_between(*values)


@pytest.mark.parametrize("name", GANS)
def test_elements_go_by_magnitude_in_one_layer_alone(name: str):
    generator = GANS[name]().build("generator")
    weight = prunable_names(generator)[1]
    before = copy.deepcopy(generator.state_dict())
    pruned = pruned_copy(generator, "element", weight, 0.3)
    for key, value in pruned.state_dict().items():
        assert torch.equal(generator.state_dict()[key], before[key])
        if key != weight:
            assert torch.equal(value, before[key])
    flat = before[weight].numpy().ravel()
    gone = np.argsort(np.abs(flat), kind="stable")[: int(0.3 * flat.size)]
    expected = flat.copy()
    expected[gone] = 0
    assert np.array_equal(pruned.state_dict()[weight].numpy().ravel(), expected)


@pytest.mark.parametrize("name", ["dcgan", "srgan"])
def test_filters_are_true_outputs_and_take_bias_and_norm_along(name: str):
    generator = GANS[name]().build("generator")
    for key, value in generator.named_parameters():
        if key.endswith("bias"):
            value.data.normal_()
    layers = {f"{path}.weight": m for path, m in generator.named_modules() if hasattr(m, "kernel_size")}
    weight = next(key for key, m in layers.items() if m.out_channels == 4)  # not the output layer
    outputs = 1 if isinstance(layers[weight], nn.ConvTranspose2d) else 0
    stored = generator.get_parameter(weight).detach().numpy()
    sums = np.abs(stored).sum(axis=tuple(axis for axis in range(4) if axis != outputs))
    gone = sorted(np.argsort(sums)[:2])
    pruned = pruned_copy(generator, "filter", weight, 0.5)
    kept = np.abs(pruned.get_parameter(weight).detach().numpy()).sum(
        axis=tuple(axis for axis in range(4) if axis != outputs)
    )
    assert sorted(np.flatnonzero(kept == 0)) == gone
    changed = {
        key
        for key, value in pruned.named_parameters()
        if not torch.equal(value, generator.get_parameter(key)) and key != weight
    }
    assert changed, "the bias of the layer or of its norm"
    for key in changed:
        value = pruned.get_parameter(key)
        assert value.shape == (4,)
        assert sorted(np.flatnonzero(value.detach().numpy() == 0)) == gone


def test_channels_are_true_inputs_and_the_output_layer_can_be_pruned_too():
    generator = GANS["dcgan"]().build("generator")
    weight = prunable_names(generator)[-1]
    stored = generator.get_parameter(weight).detach().numpy()  # (4 inputs, 1 output, 4, 4)
    gone = np.argsort(np.abs(stored).sum(axis=(1, 2, 3)))[:2]
    pruned = pruned_copy(generator, "channel", weight, 0.5).get_parameter(weight).detach().numpy()
    assert sorted(np.flatnonzero(np.abs(pruned).sum(axis=(1, 2, 3)) == 0)) == sorted(gone)


# --- what is measured ---


def test_the_loss_of_the_dense_generator_is_zero_and_nothing_is_changed(dense: Path, judged: list[str]):
    before = (dense / "checkpoint.pth.tar").read_bytes()
    found = measure_sensitivity(options_of(dense), Request("element", LEVELS, "loss"), "x/element.jsonl")
    assert found.dense == {"loss": 0.0}
    assert found.weights == ["main.0.weight", "main.3.weight", "main.6.weight"]
    assert found.outputs == ["main.6.weight"]
    state = load_checkpoint(dense)["state_dict"]
    for name, value in found.opened.generator.state_dict().items():
        assert torch.equal(value, state[name])
    assert (dense / "checkpoint.pth.tar").read_bytes() == before
    assert len(judged) == 1 + 3 * 2  # once dense, then each level above 0 of each layer
    for point in found.points:
        assert point.is_dense == (point.level == 0)
        assert (point.values["loss"] == 0) == point.is_dense
        size = found.opened.generator.get_parameter(point.weight).numel()
        assert point.sparsity == pytest.approx(int(point.level * size) / size)
    assert found.seconds["loss"] > 0
    assert found.names["loss"].startswith("supervised loss[L_GC + 0.5 L_DC; discriminator ")


def test_fid_and_kid_are_those_of_the_test_protocol(dense: Path):
    found = measure_sensitivity(options_of(dense), Request("filter", (0.5,), "kid"), "filter.jsonl")
    run = found.opened.run
    own = run.measure("test", pruned_copy(found.opened.generator, "filter", "main.3.weight", 0.5), 16)
    by_name = {item.name: item.value for item in own}
    (point,) = [point for point in found.points if point.weight == "main.3.weight"]
    assert point.values["kid"] == by_name[found.names["kid"]]
    lines = [json.loads(line) for line in Path("filter.jsonl").read_text().splitlines()]
    fid = [item for item in lines[1:] if item["weight"] == "main.3.weight" and item["metric"] == "fid"]
    assert [item["value"] for item in fid] == [by_name[fid[0]["name"]]]  # it came along, and is kept


def test_a_stopped_analysis_goes_on_and_comes_to_the_same(
    dense: Path, monkeypatch: pytest.MonkeyPatch, judged: list[str]
):
    request = Request("element", LEVELS, "loss")
    whole = measure_sensitivity(options_of(dense), request, "whole.jsonl")
    count = len(judged)
    measure = Judge.measure

    def killed(self: Judge, metric: str, generator: nn.Module) -> Any:
        if len(judged) == count + 3:
            assert len(Path("part.jsonl").read_text().splitlines()) == 1 + 3  # kill -9 would lose nothing
            raise KeyboardInterrupt
        return measure(self, metric, generator)

    monkeypatch.setattr(Judge, "measure", killed)
    with pytest.raises(KeyboardInterrupt):
        measure_sensitivity(options_of(dense), request, "part.jsonl")
    monkeypatch.setattr(Judge, "measure", measure)
    text = Path("part.jsonl").read_text()
    assert len(text.splitlines()) == 4
    Path("part.jsonl").write_text(text + '{"weight": "main.3.we')  # killed while it wrote
    found = measure_sensitivity(options_of(dense), request, "part.jsonl")
    assert len(judged) == 2 * count
    assert [p.values for p in found.points] == [p.values for p in whole.points]
    again = measure_sensitivity(options_of(dense), request, "part.jsonl")
    assert len(judged) == 2 * count
    assert again.points == found.points
    assert all(json.loads(line) for line in Path("part.jsonl").read_text().splitlines())


def test_other_levels_and_metrics_go_into_the_same_file(dense: Path, judged: list[str]):
    measure_sensitivity(options_of(dense), Request("element", (0.0, 0.5), "loss"), "e.jsonl")
    assert judged == ["loss"] * 4
    both = measure_sensitivity(options_of(dense), Request("element", (0.25, 0.5), "both"), "e.jsonl")
    assert judged[4:].count("loss") == 3
    assert judged[4:].count("fid") == 7
    assert set(both.points[0].values) == {"fid", "loss"}


def test_a_file_of_something_else_is_refused(dense: Path, instant: None):
    request = Request("element", LEVELS, "loss")
    measure_sensitivity(options_of(dense), request, "e.jsonl")
    with pytest.raises(
        UserError, match=r"e\.jsonl: is of another analysis \(seed 0, now 1\); expected the same"
    ):
        measure_sensitivity(options_of(dense, seed=1), request, "e.jsonl")
    with pytest.raises(UserError, match=r"structure 'element', now 'filter'.*another folder with -o"):
        measure_sensitivity(options_of(dense), Request("filter", LEVELS, "loss"), "e.jsonl")
    state = load_checkpoint(dense)
    state["state_dict"]["main.0.weight"][0, 0, 0, 0] += 1
    torch.save(state, "other.pth")
    with pytest.raises(UserError, match=r"another analysis \(generator '\w{16}', now '\w{16}'\)"):
        measure_sensitivity(options_of(Path("other.pth")), request, "e.jsonl")
    state = load_checkpoint(dense)
    next(iter(state["discriminator_state_dict"].values())).add_(1)
    torch.save(state, "judge.pth")
    with pytest.raises(
        UserError, match=r"holds loss as 'loss of zeros', got 'supervised loss\[.*do not compare"
    ):
        measure_sensitivity(options_of(Path("judge.pth")), request, "e.jsonl")
    content = Path("e.jsonl").read_text().splitlines()
    Path("e.jsonl").write_text("\n".join([content[0], "[]", *content[1:]]) + "\n")
    with pytest.raises(
        UserError, match=r"e\.jsonl:2: expected one JSON record a line, got '\[\]'; the file is"
    ):
        measure_sensitivity(options_of(dense), request, "e.jsonl")


def test_what_the_loss_needs_is_said(dense: Path):
    state = {"state_dict": load_checkpoint(dense)["state_dict"]}
    torch.save(state, "generator.pth")
    options = options_of(
        Path("generator.pth"), task="dcgan", data=str(dense.parent / "pictures"), task_options={"channels": 1}
    )
    with pytest.raises(UserError, match=r"holds a generator but no discriminator.*--discriminator-from"):
        measure_sensitivity(options, Request("element", LEVELS, "both"), "e.jsonl")
    assert not Path("e.jsonl").exists()
    given_judge = options_of(
        Path("generator.pth"),
        task="dcgan",
        data=str(dense.parent / "pictures"),
        task_options={"channels": 1},
        discriminator_from=str(dense),
    )
    found = measure_sensitivity(given_judge, Request("element", (0.5,), "loss"), "e.jsonl")
    assert found.dense == {"loss": 0.0}


def test_a_task_without_discriminator_has_no_loss(dense: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sgc_distiller.tasks.dcgan.DCGAN.judges", False)
    with pytest.raises(
        UserError, match=r"task 'dcgan' trains without a discriminator .*take --sense-metric fid"
    ):
        measure_sensitivity(options_of(dense), Request("element", LEVELS, "loss"), "e.jsonl")
    found = analysis({"a": [0.0, 0.01]}, metric="fid", dense=dense)
    text = starting_schedule(found, "s.yaml")
    assert "OutputDistillationPolicy" in text


@pytest.mark.parametrize(("value", "shown"), [(0.0, "0.0000"), (-0.5, "-0.5000"), (None, "not a number")])
def test_a_dense_value_that_nothing_compares_with_is_refused(
    value: float | None, shown: str, dense: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Judge, "measure", lambda *_: {"kid": ("KID", value)})
    with pytest.raises(
        UserError, match=rf"--sense-metric kid: the dense generator's own value is {shown}, which"
    ):
        measure_sensitivity(options_of(dense), Request("element", LEVELS, "kid"), "e.jsonl")


def test_several_comparisons_count_by_their_mean_and_none_is_said(
    dense: Path, monkeypatch: pytest.MonkeyPatch
):
    results = [MetricResult("FID A[x]", 2.0), MetricResult("FID B[x]", 4.0), MetricResult("PSNR[x]", 9.0)]
    monkeypatch.setattr("sgc_distiller.assembly.Run.measure", lambda *_: results)
    found = measure_sensitivity(options_of(dense), Request("element", (0.0,), "fid"), "e.jsonl")
    assert found.dense == {"fid": 3.0}
    assert found.names == {"fid": "FID A[x] and FID B[x]"}
    with pytest.raises(UserError, match=r"the test protocol of 'dcgan' measures no KID on these data"):
        measure_sensitivity(options_of(dense), Request("element", (0.0,), "kid"), "k.jsonl")


def test_pictures_that_are_no_numbers_are_infinite_damage(dense: Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[int] = []

    def measure(*_: Any) -> list[MetricResult]:
        calls.append(0)
        if len(calls) > 1:
            raise NotANumberError("no numbers")
        return [MetricResult("FID[x]", 2.0)]

    monkeypatch.setattr("sgc_distiller.assembly.Run.measure", measure)
    found = measure_sensitivity(options_of(dense), Request("element", (0.0, 0.5), "fid"), "e.jsonl")
    assert found.points[1].values == {"fid": None}
    assert found.damage(found.points[1]) == math.inf
    assert found.tolerated("main.0.weight") == 0.0
    assert points_as_csv(found).splitlines()[2].endswith(",,inf")
    write_outcome(found, "out")
    assert calls == [0] * 4


# --- what it comes to ---


def analysis(
    losses: dict[str, list[float]],
    metric: str = "loss",
    tolerance: float = 0.1,
    dense: Any = None,
    **more: Any,
) -> Analysis:
    """Return an analysis of made-up values at the levels 0, 0.25, 0.5, ..."""
    opened: Any = None
    if dense is not None:
        from sgc_distiller.finished import open_finished

        opened = open_finished(options_of(dense))
        losses = dict(zip(prunable_names(opened.generator), [*losses.values()] * 3, strict=False))
    points = []
    for weight, values in losses.items():
        for index, value in enumerate(values):
            level = 0.25 * index
            both = {"loss": value, "fid": 1 + value}
            points.append(Point(weight, level, level, {**both, **more.get(weight, {})}, index == 0))
    levels = tuple(0.25 * index for index in range(max(map(len, losses.values()))))
    request = Request("element", levels, metric, tolerance)
    names = {"fid": "FID[x]", "loss": "supervised loss[y]"}
    dense_values = {"loss": 0.0, "fid": 1.0}
    return Analysis(request, opened, points, dense_values, names, ["last"], {"loss": 61.0, "fid": 2.0}, [])


def test_a_layer_tolerates_up_to_the_first_level_that_does_too_much():
    found = analysis({"a": [0.0, 0.05, 0.2, 0.01], "b": [0.0, 0.3], "c": [0.0, 0.1, 0.1]})
    assert [found.tolerated(name) for name in "abc"] == [0.25, 0.0, 0.5]
    assert analysis({"a": [0.0, 0.05]}, tolerance=0.04).tolerated("a") == 0.0
    ratio = analysis({"a": [0.0, 1.0]}, metric="fid", tolerance=1.0)
    assert ratio.damage(ratio.points[1]) == 1.0  # 2 against 1
    assert ratio.tolerated("a") == 0.25
    ratio.dense["fid"] = 0.5
    assert ratio.damage(ratio.points[1]) == 3.0  # 2 against 0.5


def test_agreement_over_all_points_and_between_layers():
    found = analysis({"a": [0, 1, 4, 6], "b": [0, 2, 3, 5], "c": [0, 3, 5, 7]}, metric="both")
    values = [point.values for point in found.points]
    for value, fid in zip(values, (1, 2, 9, 6, 1, 3, 4, 8, 1, 4, 5, 7), strict=True):
        value["fid"] = float(fid)  # type: ignore[index]
    result = agreement(found)
    assert result is not None
    pairs = [(0, 1), (1, 2), (4, 9), (6, 6), (2, 3), (3, 4), (5, 8), (3, 4), (5, 5), (7, 7)]
    unique = sorted(set(pairs))
    assert result.points == len(unique)
    ranks = [average_ranks([pair[place] for pair in unique]) for place in (0, 1)]
    assert result.spearman == pytest.approx(np.corrcoef(*ranks)[0, 1])
    # level 0.25: 1 2 3 by both; 0.5: 4 3 5 and 9 4 5; 0.75: 6 5 7 and 6 8 7
    assert (result.alike, result.pairs) == (3 + 2 + 1, 9)
    assert agreement(analysis({"a": [0.0, 1.0]})) is None
    few = agreement(analysis({"a": [0.0, 1.0]}, metric="both"))
    assert few is not None
    assert few.spearman is None
    assert (
        "none, of fewer than five or ties; of 0 pairs"
        in closing_notes(analysis({"a": [0.0, 1.0]}, "both"))[-1]
    )


def average_ranks(values: list[float]) -> list[float]:
    return [sum(v < x for v in values) + (sum(v == x for v in values) + 1) / 2 for x in values]


def test_notes_say_how_long_it_took_and_what_was_left_out():
    found = analysis({"a": [0.0]}, metric="both")
    found.skipped.append("odd.weight")
    notes = closing_notes(found)
    assert notes[0] == "without elements that could be told apart: odd.weight"
    assert notes[1].endswith("measured: FID 2.0 s, supervised loss 1 min 1 s")


def test_the_schedule_asks_for_what_each_layer_tolerates(dense: Path):
    found = analysis({"x": [0.0, 0.05, 0.5], "y": [0.0, 0.01, 0.05], "z": [0.0, 0.0, 0.0]}, dense=dense)
    found.outputs[:] = ["main.6.weight"]
    files = write_outcome(found, "out")
    assert files.schedule == Path("out/element.yaml")
    schedule = read_schedule(files.schedule)
    assert schedule.gan is not None
    assert (schedule.gan.output_layer, schedule.gan.dense_steps, schedule.epochs) == ("dense", 2, 20)
    assert asked_by(files.schedule) == {"main.0.weight": 0.25, "main.3.weight": 0.5}
    text = files.schedule.read_text()
    for words in (
        "# Purpose:",
        "#   main.3.weight: 50 %",
        "main.6.weight: 50 %, an output layer, left dense",
    ):
        assert words in text
    nothing = analysis({"x": [0.0, 9.0]}, dense=dense)
    assert write_outcome(nothing, "out").schedule is None
    assert not files.schedule.exists()


def asked_by(schedule: Path) -> dict[str, float]:
    """Return the sparsity that a schedule's file asks of each weight in the end."""
    pruners = yaml.safe_load(schedule.read_text())["pruners"].values()
    return {name: pruner["final_sparsity"] for pruner in pruners for name in pruner["weights"]}


def test_csv_and_table(dense: Path):
    found = analysis({"x": [0.0, 0.05, 0.5]}, metric="both", dense=dense)
    found.outputs[:] = ["main.6.weight"]
    rows = list(csv.DictReader(io.StringIO(points_as_csv(found))))
    assert [row["weight"] for row in rows[::3]] == found.weights
    assert [row["output_layer"] for row in rows] == ["0"] * 6 + ["1"] * 3
    assert [float(row["damage"]) for row in rows[:3]] == pytest.approx([0.0, 0.05, 0.5])
    assert rows[1]["loss"] == "0.05"
    table = sensitivity_table(found, "loss")
    assert table.columns == ("weight", "weights", "0 %", "25 %", "50 %", "tolerated")
    assert table.rows[2] == ("main.6.weight (output)", "64", "0.0000", "0.0500", "0.5000", "25 %, left dense")
    many = analysis({"x": [0.0] * 4}, dense=dense)
    object.__setattr__(many.request, "levels", tuple(0.05 * i for i in range(19)))
    object.__setattr__(
        many,
        "points",
        [Point("main.0.weight", level, 0, {"loss": 0.0}, False) for level in many.request.levels],
    )
    assert sensitivity_table(many, "loss").columns[2:-1] == ("10 %", "30 %", "50 %", "70 %", "90 %")


# --- the command ---


def test_command_writes_four_files_and_its_schedule_runs(
    dense: Path, instant: None, capsys: pytest.CaptureFixture[str]
):
    flags = "--range 0 0.6 0.3 --metric loss --tolerance 0.2 -o out --cpu -b 8"
    assert main(["sense", str(dense), *flags.split()]) == 0
    shown = capsys.readouterr().out
    assert {item.name for item in Path("out").iterdir()} == {
        *("element.jsonl", "element.csv", "element.png", "element.yaml")
    }
    assert Path("out/element.png").read_bytes().startswith(b"\x89PNG")
    for words in ("left, about", "table: out/element.csv", "schedule to start from: out/element.yaml"):
        assert words in shown
    run = f"--compress out/element.yaml --exp-load-weights-from {dense} --cpu --extractor digits"
    small = "-b 8 --epoch-images 0 --test-images 16 --steps-per-epoch 1 -n done"
    assert main(["compress", "dcgan", *run.split(), *small.split()]) == 0
    state = load_checkpoint("logs/done")["state_dict"]
    shares = [float((state[f"main.{i}.weight"] == 0).double().mean()) for i in (0, 3, 6)]
    asked = asked_by(Path("out/element.yaml"))
    assert shares == pytest.approx([asked.get(f"main.{i}.weight", 0.0) for i in (0, 3, 6)], abs=0.01)
    assert shares[2] == 0
    assert shares[1] > 0


@pytest.mark.parametrize("structure", ["filter", "channel"])
def test_structures_give_a_schedule_that_can_be_built(structure: str, dense: Path, instant: None):
    flags = f"--kind {structure} --range 0 0.6 0.25 --metric fid --tolerance 1 -o out --cpu"
    assert main(["sense", str(dense), *flags.split()]) == 0
    text = Path(f"out/{structure}.yaml").read_text()
    assert f"group_type: {structure.title()}s" in text
    assert main(["schedule", f"out/{structure}.yaml", "--exp-load-weights-from", str(dense)]) == 0


def test_of_compress_gan_and_its_folder(dense: Path, instant: None):
    start = [str(dense.parent / "pictures"), "-a", "dcgan", "--cpu", "--exp-load-weights-from", str(dense)]
    flags = "--sense element --sense-range 0 0.5 0.25 --sense-metric loss --sense-tolerance 0.5"
    assert compress_gan([*start, *flags.split()]) == 0
    assert Path("logs/sensitivity/element.csv").is_file()
    resumed = [*start[:-2], "--resume-from", str(dense), "-n", "named"]
    assert compress_gan([*resumed, *flags.split()]) == 0
    assert Path("logs/named/element.csv").is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--sense-range 0 0.5 0.1",
            "--sense-range means nothing without --sense; give both, or leave it out",
        ),
        ("--sense-metric fid", "--sense-metric means nothing without --sense"),
        ("--sense-tolerance 1", "--sense-tolerance means nothing without --sense"),
        ("--sense element --compress x/y", "which is neither"),
        ("--sense element --compress dcgan/recommended_75", "--sense looks into a generator as it is; leave"),
        ("--sense element", "expected a checkpoint: --resume-from or --exp-load-weights-from CHECKPOINT"),
        ("--sense element --sense-range 1 0 0.1", "--sense-range: expected START STOP STEP"),
        (
            "--sense element --sense-tolerance -1",
            "--sense-tolerance: Expected a number of at least 0, got -1.0",
        ),
        ("--sense layer", "invalid choice: 'layer'"),
        ("--sense element --sense-metric psnr", "invalid choice: 'psnr'"),
    ],
)
def test_mistakes(flags: str, message: str, dense: Path, capsys: pytest.CaptureFixture[str]):
    start = [str(dense.parent / "pictures"), "-a", "dcgan", "--cpu", "--image-size", "16", "--width", "4"]
    assert compress_gan([*start, *flags.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not Path("logs").exists()


def test_an_interrupt_says_how_to_go_on(
    dense: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Judge, "measure", stop)
    assert main(["sense", str(dense), "--cpu"]) == 130
    assert capsys.readouterr().err == "interrupted; the same command goes on where it stopped\n"


def test_a_network_without_layers_is_refused(dense: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sgc_distiller.sensitivity.layer_axes", lambda generator: {})
    with pytest.raises(
        UserError, match=r"--sense filter: expected a generator with .* got 3 layers of which"
    ):
        measure_sensitivity(options_of(dense), Request("filter", LEVELS, "loss"), "e.jsonl")
    monkeypatch.setattr("sgc_distiller.sensitivity.layer_axes", lambda generator: {"main.3.weight": "stored"})
    monkeypatch.setattr(Judge, "measure", lambda *_: {"fid": ("FID", 1.0)})
    found = measure_sensitivity(options_of(dense), Request("filter", (0.5,), "fid"), "e.jsonl")
    assert found.skipped == ["main.0.weight", "main.6.weight"]
    assert found.weights == ["main.3.weight"]
