"""Studies: experiments from files, workers that may be killed, statistics by hand, tables, gates, the CLI."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sgc_distiller import assembly, checkpoints
from sgc_distiller.app import main
from sgc_distiller.errors import UserError
from sgc_distiller.recording import Console
from sgc_distiller.resources import find_schedule
from sgc_distiller.schedule import Schedule
from sgc_distiller.seeding import seed_for
from sgc_distiller.settings import resolve
from sgc_distiller.studies import measures, presets, runner, studies, tables, worker
from sgc_distiller.studies.comparing import paired_difference, rank_correlation
from sgc_distiller.studies.experiments import Experiment, Setting
from sgc_distiller.studies.gates import failures
from sgc_distiller.studies.measures import measure
from sgc_distiller.studies.presets import Row
from sgc_distiller.studies.retarget import retargeted
from sgc_distiller.studies.runner import Outcome, exclusive, finished, run_all
from sgc_distiller.studies.scales import DENSE_STEPS, SCALES, Scale, scale_of
from sgc_distiller.studies.studies import Request
from sgc_distiller.tasks import TASKS
from sgc_distiller.tasks.dcgan import DCGAN
from sgc_distiller.wording import MISSING
from sgc_distiller.yaml_source import scalar

SMALLEST = Scale({"image_size": 16, "width": 4}, 20, 32, 8, note="so few steps mean nothing")


def _setting(root: Path) -> Setting:
    return Setting("dcgan", None, SMALLEST, root / "dcgan", "cpu")


class _Heard(Console):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str, once: bool = False) -> None:
        self.notes.append(text)


# Schedules at other sparsities.


@pytest.mark.parametrize("row", presets.table1_rows([*"abcdefghijklmn", "variants"]), ids=lambda row: row.key)
def test_every_row_of_table1_can_be_pruned_to_another_sparsity(row: Row):
    if row.key == "a":
        with pytest.raises(
            UserError, match=r"a_none.yaml: expected a pruner with final_sparsity.*leave --spars"
        ):
            retargeted(row.file, 0.75)
        return
    before, after = scalar(row.file.read_text()), scalar(retargeted(row.file, 0.75))
    changed = {path: value for path, value in _leaves(after) if value != dict(_leaves(before)).get(path)}
    for path, value in changed.items():
        last = path[-1]
        if row.key == "c":
            assert (last, value) == ("width", 0.5)  # a quarter of the weights
        else:
            assert last in ("final_sparsity", "*.weight")
            assert value == 0.75
    assert len(changed) == (2 if row.key in ("m", "n") else 1)
    Schedule.from_dict(after)


def _leaves(value: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in _leaves(item, (*path, str(key)))]
    if isinstance(value, list):
        return [leaf for index, item in enumerate(value) for leaf in _leaves(item, (*path, str(index)))]
    return [(path, value)]


def test_a_ramp_to_a_target_below_its_first_sparsity_begins_at_0():
    text = retargeted(find_schedule("dcgan/agp_50"), 0.03)
    assert scalar(text)["pruners"]["fine"]["initial_sparsity"] == 0.0
    Schedule.from_dict(scalar(text))
    assert text.startswith("# dcgan/agp_50.yaml at a sparsity of 3 %\n")


@pytest.mark.parametrize("sparsity", [-0.1, 0.0, 1.0, 1.5])
def test_impossible_sparsities_are_refused(sparsity: float):
    with pytest.raises(UserError, match="--sparsity: expected percentages between 0 and 100, got"):
        retargeted(find_schedule("dcgan/agp_50"), sparsity)


# Sizes and steps.


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_has_every_task_and_paper_is_the_baseline(scale: str):
    assert SCALES[scale].keys() == TASKS.keys() == DENSE_STEPS.keys()
    for task, found in SCALES[scale].items():
        TASKS[task](**{**found.sizes, **({"perceptual": "none"} if task == "srgan" else {})})
        if scale == "paper":
            assert (found.sizes, found.dense_steps, found.batch_size, found.lr) == (
                {},
                DENSE_STEPS[task],
                None,
                None,
            )


@pytest.mark.parametrize(
    ("name", "task", "text"),
    [
        (
            "smal",
            "dcgan",
            r"--scale: expected one of tiny, small, medium, paper, got 'smal'. Did you mean 'small'",
        ),
        ("tiny", "gan", r"--task: expected one of dcgan, .*, got 'gan'"),
    ],
)
def test_unknown_scales_and_tasks_are_named(name: str, task: str, text: str):
    with pytest.raises(UserError, match=text):
        scale_of(name, task)


@pytest.mark.parametrize(
    ("task", "schedule", "scale", "steps"),
    [
        ("stargan", "table1/b_self_supervised", "paper", 200),
        ("stargan", "table1/a_none", "paper", 2000),
        ("stargan", "table1/b_self_supervised", "small", 20),
        ("dcgan", "table1/b_self_supervised", "paper", 117),  # 10 % of 23,450 in 20 epochs
        ("dcgan", "dcgan/paper_50", "paper", 117),
        ("dcgan", "dcgan/paper_50", "small", 15),
        ("dcgan", "table1/f_agp_from_scratch", "small", 150),
        ("cyclegan", "cyclegan/paper_50", "small", 12),  # 12.5, rounded to even
    ],
)
def test_runs_keep_their_share_of_the_dense_training(task: str, schedule: str, scale: str, steps: int):
    setting = Setting(task, None, scale_of(scale, task), Path("runs"))
    assert Experiment(setting, "x", "x", find_schedule(schedule), 0).steps_per_epoch == steps


@pytest.mark.parametrize(
    "task", ["dcgan", *(pytest.param(name, marks=pytest.mark.gpu) for name in TASKS if name != "dcgan")]
)
def test_the_paper_scale_takes_its_first_steps(
    task: str, tmp_path: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch
):
    """The baseline's own sizes, its row (b), one step of each: so large that only DCGAN's fits a CPU."""
    monkeypatch.setattr(measures, "_BATCHES", 1)
    monkeypatch.setattr(measures, "_PICTURES", 2)
    setting = Setting(task, TASKS[task].built_in, scale_of("paper", task), tmp_path, str(device))
    planned = [
        *presets.dense(setting, [0]),
        *presets.pruning(setting, presets.table1_rows(["b"]), [0]),
    ]
    for item in planned:
        few = {**item.settings(), "epochs": 1, "steps_per_epoch": 1, "test_images": 2}
        worker.perform({**runner._job(item), "given": few, "threads": torch.get_num_threads()})
        assert finished(item)
    content = checkpoints.load_checkpoint(planned[1].folder)
    for name in ("image_size", "width"):
        assert content["task_options"][name] == TASKS[task].usual_options()[name]
    assert planned[1].steps_per_epoch * planned[1].epochs == pytest.approx(DENSE_STEPS[task] / 10, rel=0.01)


def test_learning_rates_are_the_schedules_the_scales_or_the_baselines_times_the_factor():
    def lr(schedule: str, scale_lr: float | None, factor: float) -> Any:
        setting = Setting("dcgan", None, dataclasses.replace(SMALLEST, lr=scale_lr), Path("runs"))
        item = Experiment(setting, "x", "x", find_schedule(schedule), 0, lr_factor=factor)
        return item.settings().get("lr")

    assert lr("dcgan/agp_50", None, 1.0) is None  # the baseline's own
    assert lr("dcgan/agp_50", None, 0.5) == pytest.approx(1e-4)
    assert lr("dcgan/agp_50", 3e-3, 1.0) == 3e-3
    assert lr("dcgan/agp_50", 3e-3, 0.1) == pytest.approx(3e-4)
    assert lr("dcgan/recommended_50", 3e-3, 1.0) is None  # its file names one
    assert lr("dcgan/recommended_50", 3e-3, 0.5) == pytest.approx(5e-4)


# Statistics.

values = st.lists(st.floats(-100, 100), min_size=2, max_size=9)


@given(values, st.integers(0, 2**31 - 1))
def test_paired_differences_are_scipys(one: list[float], seed: int):
    other = list(np.random.default_rng(seed).normal(size=len(one)))
    found = paired_difference(dict(enumerate(one)), {**dict(enumerate(other)), 99: 5.0})
    assert found is not None
    differences = np.subtract(one, other)
    assert found.mean == pytest.approx(differences.mean(), abs=1e-9)
    if differences.std() > 1e-9:
        low, high = stats.ttest_rel(one, other).confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((low, high), abs=1e-6)
    assert found.pairs == len(one)
    assert found.is_claim == (len(one) >= 5 and (found.low > 0 or found.high < 0))


def test_one_pair_claims_nothing_and_none_is_none():
    assert paired_difference({0: 1.0}, {1: 2.0}) is None
    one = paired_difference({0: 1.0}, {0: 2.0})
    assert one is not None
    assert (one.mean, one.low, one.high, one.is_claim) == (-1.0, -math.inf, math.inf, False)


def test_four_certain_pairs_are_no_claim_and_five_are():
    for count, claimed in ((4, False), (5, True)):
        seeds = range(count)
        found = paired_difference({s: 1.0 + s / 100 for s in seeds}, {s: 9.0 - s / 100 for s in seeds})
        assert found is not None
        assert found.is_claim == claimed


def test_rank_correlation_by_hand():
    x, y = [1.0, 5.0, 2.0, 4.0, 3.0], [2.0, 9.0, 1.0, 7.0, 8.0]
    ranks = np.argsort(np.argsort(x)), np.argsort(np.argsort(y))
    by_hand = 1 - 6 * sum((a - b) ** 2 for a, b in zip(*ranks, strict=True)) / (5 * 24)
    found = rank_correlation(x, y)
    assert found == pytest.approx(by_hand)
    assert rank_correlation(x[:4], y[:4]) is None
    assert rank_correlation(x, [1.0] * 5) is None


# Tables.


def _outcome(key: str, seed: int, fid: float | None, reason: str = "", **result: Any) -> Outcome:
    rows = {row.key: row for row in presets.table1_rows([*"abcdefghijklmn", "variants"])}
    item = Experiment(
        Setting("stargan", None, SMALLEST, Path("runs")),
        "dense" if key == "a" else f"{key}_at_50",
        "dense" if key == "a" else key,
        rows[key].file,
        seed,
        None if key == "a" else 0.5,
        trains_dense=key == "a",
    )
    if fid is None:
        return Outcome(item, None, reason)
    metrics = [{"name": "FID[x; y]", "value": fid}, {"name": "KID[x; y]", "value": fid / 10}]
    record = {"metrics": metrics, "sparsity": 0.5, "seconds": 61.0, "residual": 0.1, "supervised_loss": fid}
    return Outcome(item, {**record, **result})


def _table() -> tables.Table:
    outcomes = [_outcome("a", seed, 10.0 + seed) for seed in range(5)]
    outcomes += [_outcome("b", seed, 12.0 + seed) for seed in range(5)]
    outcomes += [_outcome("d", seed, 20.0 + 2 * seed) for seed in range(5)]
    outcomes += [_outcome("e'", seed, 11.0 + seed) for seed in range(5)]
    outcomes += [_outcome("h", 0, 15.0), _outcome("h", 1, None, "no | memory")]
    return tables.table1(outcomes, gate=["a gate"])


def test_table1_has_the_papers_columns_means_spreads_and_marks():
    table = _table()
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert list(rows) == ["(a)", "(b)", "(d)", "(e')", "(h)"]
    assert rows["(b)"]["FID in the paper"] == "6.929"
    assert rows["(b)"]["paper: discriminator"] == "Dense, Pretrained"
    assert rows["(b)"]["FID"] == "14.00 ± 1.58"
    assert rows["(a)"]["FID / dense"] == "1.00 ± 0.0000"
    ratios = [(12.0 + seed) / (10.0 + seed) for seed in range(5)]
    assert rows["(b)"]["FID / dense"] == f"{np.mean(ratios):.2f} ± {np.std(ratios, ddof=1):.4f}"
    differences = [8.0 + seed for seed in range(5)]
    half = stats.t.ppf(0.975, 4) * np.std(differences, ddof=1) / math.sqrt(5)
    assert rows["(d)"]["FID against (b)"] == f"+10.00 [+{10 - half:.2f}, +{10 + half:.2f}] ▲"
    assert rows["(b)"]["FID against (b)"] == "–"
    assert rows["(e')"]["FID against (b)"].endswith("▼")
    assert rows["(e')"]["technique"] == "variant: e-prime_agp_pretrained"
    assert rows["(e')"]["paper: fixed"] == "–"
    assert rows["(h)"]["FID"] == "15.00; seed 1 failed: no | memory"
    assert rows["(h)"]["FID against (b)"] == "+3.00"
    assert table.notes[0] == "a gate"


def test_rows_at_other_learning_rates_are_rows_of_their_own():
    outcomes = [_outcome("a", 0, 10.0), _outcome("b", 0, 12.0), _outcome("d", 0, 20.0)]
    for key, fid in (("b", 11.0), ("d", 18.0)):
        other = _outcome(key, 0, fid)
        item = dataclasses.replace(other.experiment, lr_factor=0.5)
        outcomes.append(dataclasses.replace(other, experiment=item))
    table = tables.table1(outcomes)
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert list(rows) == [*("(a)", "(b), learning rate × 0.5", "(b)", "(d), learning rate × 0.5", "(d)")]
    assert [row["FID"] for row in rows.values()] == ["10.00", "11.00", "12.00", "18.00", "20.00"]
    assert rows["(d), learning rate × 0.5"]["FID against (b)"] == "+6.00"
    assert rows["(b), learning rate × 0.5"]["FID against (b)"] == "−1.00"


def test_markdown_csv_and_terminal_hold_the_same_cells():
    table = _table()
    read = list(csv.reader(io.StringIO(table.csv())))
    assert [tuple(row) for row in read] == [table.columns, *table.rows]
    lines = table.markdown().splitlines()
    assert lines[0] == "## Table 1"
    assert "no \\| memory" in table.markdown()
    assert len([line for line in lines if line.startswith("| ")]) == 1 + len(table.rows)
    narrow = table.narrowed()
    assert set(narrow.columns) < set(table.columns)
    assert all(cell in table.rows[index] for index, row in enumerate(narrow.rows) for cell in row)


def test_the_papers_numbers_are_those_of_the_paper():
    printed = tables.paper_tables()
    rows = printed["table1"]["rows"]
    assert "".join(rows) == "abcdefghijklmn"
    assert all(len(row) == len(printed["table1"]["columns"]) for row in rows.values())
    best = sorted((row[-1], key) for key, row in rows.items())
    assert [key for _, key in best[:3]] == ["a", "b", "i"]
    assert sum(row[-1] for row in rows.values()) == pytest.approx(926.574)
    assert sum(sum(line) for task in printed["table2"].values() for line in task.values()) == pytest.approx(
        1229.95, abs=1e-3
    )


def test_a_dense_gan_that_has_not_learned_its_task_is_told():
    def dense(accuracies: list[float | None], lost: float) -> Outcome:
        metrics = [
            {"name": f"accuracy of {name}[x]", "value": value} for name, value in enumerate(accuracies)
        ]
        metrics.append(
            {"name": "attribute accuracy[x]", "value": 1.0}
        )  # of all attributes, also the kept ones
        metrics.append({"name": "reconstruction L1[x]", "value": lost})
        return _outcome("a", 0, 5.0, metrics=metrics)

    assert failures([dense([0.9, 0.7], 0.1)]) == []
    (low,) = failures([dense([0.9, 0.68], 0.1)])
    assert "NOT TO BE PUBLISHED" in low
    assert "accuracy of the changed attributes 0.790, expected at least 0.8" in low
    (lost,) = failures([dense([0.9], 0.11)])
    assert "reconstruction L1 0.110, expected at most 0.1" in lost
    assert "not measured" in failures([dense([None], 0.0)])[0]
    assert (
        failures([_outcome("a", 0, 5.0)])[0].count("not measured") == 2
    )  # with an extractor without classes
    assert failures([_outcome("a", 0, None, "failed")]) == []


def test_no_other_task_has_a_gate():
    outcome = _outcome("a", 0, 5.0)
    other = dataclasses.replace(outcome.experiment, setting=_setting(Path("runs")))
    assert failures([dataclasses.replace(outcome, experiment=other)]) == []


# Running.


def test_schedules_of_one_name_are_refused_and_repeated_ones_run_once(tmp_path: Path):
    setting = _setting(tmp_path)
    rows = presets.schedule_rows(["dcgan/paper_50", "stargan/paper_50"])
    with pytest.raises(UserError, match=r"have the same name and would share .*paper_50; rename one of them"):
        run_all(presets.pruning(setting, rows, [0]), 1)
    for place in ("a", "c"):
        (tmp_path / place / "x").mkdir(parents=True)
        (tmp_path / place / "x" / "s.yaml").write_text(rows[0].file.read_text())
    files = [str(tmp_path / place / "x" / "s.yaml") for place in ("a", "c")]
    with pytest.raises(UserError, match="have the same name"):
        run_all(presets.pruning(setting, presets.schedule_rows(files), [0], (0.3,)), 1)
    assert not (tmp_path / "dcgan").exists()
    twice = presets.pruning(setting, [rows[0], rows[0]], [0])
    assert len(runner._distinct(twice)) == 1


def _study(root: Path, rows: list[str], seeds: tuple[int, ...] = (0,)) -> list[Experiment]:
    setting = _setting(root)
    chosen = presets.table1_rows(rows)
    return [*presets.dense(setting, seeds), *presets.pruning(setting, chosen, seeds, (0.5,))]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Experiment], list[Outcome]]:
    """A study that nothing interrupts."""
    planned = _study(tmp_path_factory.mktemp("whole"), ["b", "g", "l"])
    return planned, run_all(planned, 1)


def test_a_study_runs_and_measures_everything(whole: tuple[list[Experiment], list[Outcome]]):
    planned, outcomes = whole
    assert [item.experiment for item in outcomes] == planned
    assert all(item.reason == "" for item in outcomes)
    dense, b = outcomes[0].result, outcomes[1].result
    assert dense is not None
    assert b is not None
    assert (dense["residual"], dense["supervised_loss"]) == (0.0, 0.0)
    assert 0 < b["residual"] < 1
    assert b["supervised_loss"] > 0
    assert b["sparsity"] == pytest.approx(0.5, abs=0.01)
    assert (b["steps"], dense["steps"]) == (20, 20)


def test_finished_runs_are_read_and_nothing_is_run_again(
    whole: tuple[list[Experiment], list[Outcome]], monkeypatch: pytest.MonkeyPatch
):
    planned, outcomes = whole
    monkeypatch.setattr(runner.Workers, "perform", lambda *_: pytest.fail("a finished run was run again"))
    console = _Heard()
    again = run_all(planned, 2, console)
    assert [item.result for item in again] == [item.result for item in outcomes]
    assert len([note for note in console.notes if note.endswith("finished before")]) == 4


def test_the_residual_is_half_the_mean_difference_by_hand(
    whole: tuple[list[Experiment], list[Outcome]],
):
    planned, outcomes = whole
    task = DCGAN(16, width=4)
    drawn = []
    for item in planned[:2]:
        generator = task.build("generator")
        content = checkpoints.load_checkpoint(item.folder)
        generator.load_state_dict(content["state_dict"])
        pictures = task.sample(generator, 128, seed_for(0, "residual"), torch.device("cpu"))
        drawn.append(torch.cat(list(pictures)).double().numpy())
    assert outcomes[1].result is not None
    assert outcomes[1].result["residual"] == pytest.approx(np.abs(drawn[0] - drawn[1]).mean() / 2, rel=1e-5)


DRIVER = """
import sys
from pathlib import Path
from sgc_distiller.studies.runner import run_all
from tests.test_studies import _study
run_all(_study(Path(sys.argv[1]), ["b", "g", "l"]), 1)
"""


def _wait_for(true: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_study_that_is_killed_goes_on_and_ends_the_same(
    whole: tuple[list[Experiment], list[Outcome]], tmp_path: Path
):
    planned = _study(tmp_path, ["b", "g", "l"])
    root = Path(__file__).resolve().parents[1]
    b = planned[1].folder / "checkpoint.pth.tar"
    process = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)], cwd=root)
    try:
        _wait_for(lambda: b.is_file() and checkpoints.load_checkpoint(b)["epoch"] >= 3)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    time.sleep(0.3)
    stopped_at = checkpoints.load_checkpoint(b)["epoch"]
    time.sleep(1.0)
    assert checkpoints.load_checkpoint(b)["epoch"] == stopped_at, "the worker outlived its study"
    dense = (planned[0].folder / "checkpoint.pth.tar").stat().st_mtime_ns
    outcomes = run_all(planned, 1)
    assert (planned[0].folder / "checkpoint.pth.tar").stat().st_mtime_ns == dense
    for one, other in zip(outcomes, whole[1], strict=True):
        assert one.result is not None
        assert other.result is not None
        assert one.result["metrics"] == other.result["metrics"]
        assert one.result["residual"] == other.result["residual"]
        states = [checkpoints.load_checkpoint(item.experiment.folder)["state_dict"] for item in (one, other)]
        assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_row_that_fails_is_told_in_its_cell_and_the_others_go_on(tmp_path: Path):
    broken = tmp_path / "broken.yaml"
    text = find_schedule("table1/g_oneshot_distillation").read_text()
    broken.write_text(text.replace("'*.weight'", "'nosuch.*.weight'"))
    setting = _setting(tmp_path)
    rows = [*presets.schedule_rows([str(broken)]), *presets.table1_rows(["g"])]
    planned = [*presets.dense(setting, [0]), *presets.pruning(setting, rows, [0], (0.5,))]
    console = _Heard()
    dense, bad, good = run_all(planned, 1, console)
    assert dense.result
    assert good.result
    assert bad.result is None
    assert "'nosuch.*.weight'" in bad.reason
    assert any("broken_at_50: failed: " in note for note in console.notes)
    table = tables.by_sparsity("A study", [dense, bad, good], tables.distances([dense])[0])
    cell = table.rows[0][table.columns.index("50 %")]
    assert cell.startswith("seed 0 failed: ")
    broken.write_text(text)  # what failed is tried again, and nothing else
    again = run_all(planned, 1)
    assert again[1].result
    assert again[2].result == good.result


def test_nothing_starts_from_a_dense_training_that_failed(tmp_path: Path):
    setting = dataclasses.replace(_setting(tmp_path), data=str(tmp_path / "nowhere"))
    planned = [*presets.dense(setting, [0]), *presets.pruning(setting, presets.table1_rows(["g"]), [0])]
    dense, row = run_all(planned, 1)
    assert "nowhere" in dense.reason
    assert row.reason == f"its dense training failed: {dense.reason}"


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_worker_that_is_killed_fails_its_run_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    planned = _study(tmp_path, ["g"])
    start = runner.Workers._start
    started: list[subprocess.Popen[str]] = []

    def dying(workers: runner.Workers) -> subprocess.Popen[str]:
        started.append(start(workers))
        if len(started) == 1:
            started[0].kill()
        return started[-1]

    monkeypatch.setattr(runner.Workers, "_start", dying)
    dense, row = run_all([*planned, *_study(tmp_path, ["l"])[1:]], 1)[:2]
    assert dense.reason.startswith("its process was killed by signal 9; ")
    assert row.reason.startswith("its dense training failed: its process was killed")
    assert all(item.poll() is not None for item in started)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"scale": dataclasses.replace(SMALLEST, dense_steps=40)}, "steps_per_epoch 1 there, 2 asked"),
        ({"scale": dataclasses.replace(SMALLEST, lr=0.5)}, "lr None there, 0.5 asked"),
        (
            {"scale": dataclasses.replace(SMALLEST, sizes={"image_size": 16, "width": 8})},
            "width 4 there, 8 asked",
        ),
        ({"judged_on": "train"}, "judged_on 'test' there, 'train' asked"),
        ({"data": "elsewhere"}, "data digits there, .*elsewhere asked"),
    ],
)
def test_a_folder_with_other_settings_is_refused(
    changes: dict[str, Any], text: str, whole: tuple[list[Experiment], list[Outcome]]
):
    planned = whole[0]
    other = dataclasses.replace(planned[0].setting, **changes)
    with pytest.raises(
        UserError, match=f"{planned[0].folder}: holds a run with other settings .*{text}.* -o"
    ):
        run_all([dataclasses.replace(item, setting=other) for item in planned], 1)


def test_another_text_of_the_schedule_is_refused_but_not_other_comments(
    whole: tuple[list[Experiment], list[Outcome]], tmp_path: Path
):
    g = whole[0][2]
    other = tmp_path / "g.yaml"
    other.write_text("# another comment\n" + g.file.read_text())
    assert run_all([dataclasses.replace(g, file=other)], 1)[0].result == whole[1][2].result
    other.write_text(g.file.read_text().replace("distill_weight: 10", "distill_weight: 11"))
    with pytest.raises(UserError, match="another schedule than .*g.yaml is now"):
        run_all([dataclasses.replace(g, file=other)], 1)


def test_a_mistake_in_a_schedule_shows_before_anything_is_trained(tmp_path: Path):
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(find_schedule("table1/b_self_supervised").read_text().replace("lambda_dc", "lambda_cd"))
    setting = _setting(tmp_path)
    planned = [
        *presets.dense(setting, [0]),
        *presets.pruning(setting, presets.schedule_rows([str(wrong)]), [0]),
    ]
    with pytest.raises(UserError, match=r"wrong.yaml:\d+: extensions.supervision.lambda_cd: .*'lambda_dc'"):
        run_all(planned, 1)
    assert not setting.root.exists()


def test_one_study_at_a_time_works_in_a_folder(tmp_path: Path):
    second = exclusive(tmp_path / "x")
    with (
        exclusive(tmp_path / "x"),
        pytest.raises(UserError, match="another study works in this folder now; wait for it, or name"),
    ):
        second.__enter__()
    with exclusive(tmp_path / "x"):
        pass
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match="expected a folder for the study, which cannot be made"),
        exclusive(tmp_path / "file" / "x"),
    ):
        pass


def test_pruned_runs_whose_dense_gan_was_removed_are_refused(
    whole: tuple[list[Experiment], list[Outcome]], tmp_path: Path
):
    g = whole[0][2]
    shutil.copytree(g.folder, tmp_path / "dcgan" / "seed0" / g.name)
    lonely = dataclasses.replace(g, setting=_setting(tmp_path))
    with pytest.raises(
        UserError, match=r"was pruned from a dense GAN that is no longer in .*seed0, since its"
    ):
        run_all([lonely], 1)
    shutil.copytree(whole[0][0].folder, tmp_path / "dcgan" / "seed0" / "dense")
    wider = dataclasses.replace(SMALLEST, sizes={"image_size": 16, "width": 8})
    with pytest.raises(UserError, match="width 4 there, 8 asked"):
        run_all([dataclasses.replace(lonely, setting=dataclasses.replace(lonely.setting, scale=wider))], 1)


def test_a_run_that_lacks_its_report_gets_it(whole: tuple[list[Experiment], list[Outcome]]):
    g = whole[0][2]
    (g.folder / "report.html").unlink()
    worker.perform({**runner._job(g), "threads": 1})
    assert (g.folder / "report.html").is_file()


def test_measures_are_read_whole_or_not_at_all(whole: tuple[list[Experiment], list[Outcome]]):
    b = whole[0][1]
    file = b.folder / "measures.json"
    kept = file.read_text()
    file.unlink()
    assert finished(b) is None
    assert measure(b.folder, b.dense_folder, "cpu") == json.loads(kept)
    assert finished(b) == whole[1][1].result


def test_workers_share_data_and_nothing_else_does(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(assembly, "_kept", None)
    options = resolve({"task": "dcgan", "task_options": SMALLEST.sizes, "device": "cpu"})
    assert assembly.Run(options).data is not assembly.Run(options).data
    assembly.keep_data()
    first = assembly.Run(options)
    assert assembly.Run(options).data is first.data
    assert assembly.Run(dataclasses.replace(options, train_size=0.5)).data is not first.data
    other = dataclasses.replace(options, task_options={"image_size": 32, "width": 4})
    assert assembly.Run(other).data is not first.data


# The command line.


def test_table1_from_the_command_line(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(SCALES["tiny"], "dcgan", SMALLEST)
    arguments = ["table1", "--task", "dcgan", "--scale", "tiny", "--rows", "b,g", "--seeds", "2"]
    arguments += ["-o", str(tmp_path), "--jobs", "2", "--cpu"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "Table 1: dcgan, 50 %, tiny" in said
    assert "the yardstick" in said
    assert "Rank correlation" not in said  # of four runs
    root = tmp_path / "dcgan"
    page = (root / "table1.html").read_text()
    assert page.count("data:image/png") >= 5 + 3  # sheets and residuals, two dense generators
    assert page.count("<svg") == 3
    assert "http" not in page.replace("http://www.w3.org", "")
    records = json.loads((root / "table1.json").read_text())
    assert [(item["row"], item["seed"]) for item in records] == [
        *(("dense", 0), ("dense", 1), ("b", 0), ("g", 0), ("b", 1), ("g", 1))
    ]
    assert str(tmp_path) not in (root / "table1.json").read_text()
    assert len(list(csv.reader(io.StringIO((root / "table1.csv").read_text())))) == 4
    assert yaml.safe_load((root / "schedules" / "table1_b_self_supervised_at_50.yaml").read_text())


def _rows(root: Path, study: str) -> dict[str, dict[str, str]]:
    """Return the first table of a study by its first column."""
    file = next(path for path in (root / f"{study}.csv", root / f"{study}_1.csv") if path.is_file())
    return {row[next(iter(row))]: row for row in csv.DictReader(io.StringIO(file.read_text()))}


def _runs(root: Path, study: str) -> list[tuple[Any, ...]]:
    records = json.loads((root / f"{study}.json").read_text())
    assert not any(item["failed"] for item in records)
    keys = ("row", "sparsity", "lr_factor", "share")
    return [tuple(item[key] for key in keys) for item in records if item["row"] != "dense"]


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Perform jobs in this process: what they come to is the same, and the imports are done."""

    def perform(workers: runner.Workers, job: dict[str, Any]) -> str:
        worker.perform({**job, "threads": workers.threads})
        return ""

    threads = torch.get_num_threads()
    monkeypatch.setattr(runner.Workers, "perform", perform)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def smallest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, in_process: None) -> Callable[[str], Path]:
    """Return a function that runs a study of DCGAN at the smallest size, and returns its folder."""
    monkeypatch.setitem(SCALES["tiny"], "dcgan", SMALLEST)

    def run(arguments: str) -> Path:
        assert main([*arguments.split(), "--scale", "tiny", "-o", str(tmp_path), "--jobs", "1", "--cpu"]) == 0
        return tmp_path / "dcgan"

    return run


def test_table2_has_a_column_a_sparsity_and_the_papers_row(smallest: Callable[[str], Path]):
    root = smallest("table2 --task dcgan")
    wanted = [("paper", sparsity, 1.0, 1.0) for sparsity in (0.25, 0.5, 0.75, 0.9)]
    assert _runs(root, "table2") == wanted
    rows = _rows(root, "table2")
    assert list(rows["the paper"].values()) == [
        *("the paper", "50.391", "50.128", "50.634", "50.805", "51.356")
    ]
    assert all("×" in rows["paper"][f"{percent} %"] for percent in (25, 50, 75, 90))


def test_granularity_prunes_what_its_rows_say(smallest: Callable[[str], Path]):
    root = smallest("granularity --task dcgan --rows element,filter --sparsity 50,75")
    assert set(_runs(root, "granularity")) == {
        (row, sparsity, 1.0, 1.0) for row in ("element", "filter") for sparsity in (0.5, 0.75)
    }
    content = checkpoints.load_checkpoint(root / "seed0" / "filter_at_75")
    weight = content["state_dict"]["main.0.weight"]  # (in, out, 4, 4)
    assert int((weight.abs().sum((0, 2, 3)) == 0).sum()) == round(0.75 * weight.shape[1])


def test_effort_counts_shares_of_the_dense_training(
    smallest: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(SCALES["tiny"], "dcgan", dataclasses.replace(SMALLEST, dense_steps=400))
    root = smallest("effort --task dcgan --shares 50,100")
    assert [share for *_, share in _runs(root, "effort")] == [0.5, 1.0]
    heads = list(_rows(root, "effort")["b"])
    assert heads[2:] == ["5 % of the dense training", "10 % of the dense training"]


def test_compare_runs_any_schedules_at_several_learning_rates(smallest: Callable[[str], Path]):
    root = smallest("compare dcgan/oneshot_50 dcgan/agp_50 --lr-factors 1,0.5 --data digits --width 2")
    assert _runs(root, "compare") == [
        ("oneshot_50", None, 1.0, 1.0),
        ("agp_50", None, 1.0, 1.0),
        ("oneshot_50", None, 0.5, 1.0),
        ("agp_50", None, 0.5, 1.0),
    ]
    config = json.loads((root / "seed0" / "agp_50_lr_x0.5" / "config.json").read_text())
    assert config["lr"] == pytest.approx(1e-4)
    assert (config["task_options"]["width"], config["data"]) == (2, "digits")
    smallest("compare dcgan/oneshot_50 dcgan/agp_50 --lr-factors 1,0.5 --data digits --width 2")  # read again
    assert list(_rows(root, "compare")) == [
        *("oneshot_50", "agp_50", "oneshot_50, learning rate × 0.5", "agp_50, learning rate × 0.5")
    ]


def test_rows_with_a_rate_of_their_own_run_at_that_alone():
    request = Request(Path("x"), lr_factors=(0.5, 1.0))
    rows = request.tried(presets.table1_rows(["b", "g@5", "dcgan/agp_50@0.1"]))
    assert [(row.key, row.lr_factor) for row in rows] == [
        *(("b", 0.5), ("g", 5.0), ("agp_50", 0.1), ("b", 1.0)),
    ]
    twice = presets.schedule_rows(["dcgan/agp_50", "dcgan/agp_50@5", "dcgan/oneshot_50"])
    assert [row.key for row in twice] == ["agp_50", "agp_50", "oneshot_50"]


def test_rows_are_compared_with_the_first_at_its_first_learning_rate(smallest: Callable[[str], Path]):
    root = smallest("compare dcgan/agp_50@2 dcgan/agp_50@0.5 --data digits --width 2")
    assert "above 'agp_50, learning rate × 2' in" in (root / "compare.md").read_text()
    root = smallest("table1 --rows b,g --task dcgan --data digits --width 2 --lr-factors 0.5,2")
    against = next(name for name in next(iter(_rows(root, "table1").values())) if "against (b)" in name)
    values = {name: row[against] for name, row in _rows(root, "table1").items()}
    assert list(values) == [
        *("(a)", "(b), learning rate × 0.5", "(b), learning rate × 2"),
        *("(g), learning rate × 0.5", "(g), learning rate × 2"),
    ]
    own = values.pop("(b), learning rate × 0.5")
    assert own == MISSING
    assert MISSING not in values.values()


def test_table3_has_psnr_ssim_and_fid_of_each_test_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    def made_up(planned: list[Experiment], *_: Any) -> list[Outcome]:
        assert [item.row for item in planned] == ["dense", "filter", "element"]
        assert [item.file.parent.name for item in planned[1:]] == ["granularity", "srgan"]
        metrics = [
            {"name": f"{kind} {title}[{rest}]", "value": value}
            for title in ("Set5", "Set14")
            for kind, rest, value in (
                *(("PSNR", "RGB; x", 25.0), ("PSNR", "Y; x", 27.5)),
                *(("SSIM", "RGB; x", 0.6), ("SSIM", "Y; x", 0.7)),
                ("FID", "x", 12.0),
            )
        ]
        record = {"metrics": metrics, "supervised_loss": 1.0}
        failed = Outcome(planned[1], None, "no memory")
        return [Outcome(planned[0], record), failed, Outcome(planned[2], record)]

    monkeypatch.setattr(studies, "run_all", made_up)
    assert main(["table3", "--scale", "tiny", "-o", str(tmp_path), "--cpu"]) == 2
    assert "error: 1 run failed, with the reasons in the cells; the same" in capsys.readouterr().err
    rows = _rows(tmp_path / "srgan", "table3")
    assert list(rows) == ["dense", "filter", "filter failed", "element"]
    assert rows["element"]["PSNR Set5"] == "27.50"  # on Y, as the paper's must be
    assert rows["element"]["SSIM Set14"] == "0.7000"
    assert rows["dense"]["FID Set14"] == "12.00"
    assert rows["filter failed"]["in the paper (PSNR, SSIM, FID)"] == "no memory"
    assert rows["filter"]["in the paper (PSNR, SSIM, FID)"].startswith("Set5: 30.23, 0.860, 35.51; Set14")


def test_a_study_by_training_pictures_judges_every_run_by_them(
    smallest: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
):
    splits: set[str] = set()
    measure_run = assembly.Run.measure

    def noted(run: assembly.Run, split: Any, *rest: Any) -> Any:
        splits.add(split)
        return measure_run(run, split, *rest)

    monkeypatch.setattr(assembly.Run, "measure", noted)
    root = smallest("compare dcgan/oneshot_50 --judged-on train")
    assert splits == {"train"}
    for name in ("dense", "oneshot_50"):
        config = json.loads((root / "seed0" / name / "config.json").read_text())
        assert config["judged_on"] == "train"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("table1 --scale huge", "--scale: expected one of tiny, small, medium, paper, got 'huge'"),
        ("table1 --task dcgam", "--task: expected one of .*, got 'dcgam'. Did you mean 'dcgan'?"),
        ("table1 --rows z", "--rows: expected letters out of a, b,"),
        ("table1 --sparsity 150", "--sparsity: expected percentages between 0 and 100, got 150"),
        ("table1 --sparsity half", "--sparsity: expected numbers with commas between them, got 'half'"),
        (
            "table1 --data nowhere",
            "--data nowhere: expected a folder, got none; leave it out for the bundled",
        ),
        ("table1 --seeds 0", "--seeds: expected at least 1, got 0"),
        ("table1 --dense-steps 0", "--dense-steps: expected at least 1, got 0"),
        ("table1 -O blocs=2", "task 'stargan' has no option 'blocs'; .* Did you mean 'blocks'?"),
        ("table1 --width -1", "stargan: expected width"),
        ("table1 --jobs 0", "--jobs: expected at least 1, got 0"),
        (
            "compare dcgan/agp_50@0",
            "dcgan/agp_50@0: expected a factor of the learning rate above 0 after @, got 0",
        ),
        (
            "table1 --data dcgan=DIR",
            "--data dcgan=DIR: dcgan is not in this study of stargan; add --task dcgan",
        ),
        ("table1 --data A --data B", "--data B: stargan has data already, A; give one folder a task"),
        ("table1 --lr-factors 1,0", "--lr-factors: expected numbers above 0, got 0"),
        (
            "table1 --scale paper",
            "--scale paper: expected the baseline's data for stargan, .* --data stargan=DIR",
        ),
        ("table2 --data DIR", "--data DIR: expected TASK=DIR, since there are several tasks"),
        ("table3 --task dcgan", "--task: expected srgan, whose table this is, got dcgan"),
        (
            "granularity --rows atom",
            "--rows: expected granularities out of element, vector, kernel, filter, got",
        ),
        ("compare nosuch", "Expected a schedule file or the name of a shipped schedule, got 'nosuch'"),
        ("effort --shares -1", "--shares: expected numbers above 0, got -1"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    arguments: str, text: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert main(arguments.split()) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert re.search(text, line), line
    assert list(tmp_path.iterdir()) == []
