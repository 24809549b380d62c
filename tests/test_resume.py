"""A run that was stopped anywhere and resumed ends exactly as one that never stopped."""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import picture_folder
from torch import Tensor

from sgc_distiller import checkpoints, extractors, runs, session
from sgc_distiller.checkpoints import load_checkpoint
from sgc_distiller.errors import NotANumberError, UserError
from sgc_distiller.experiment import compress, train
from sgc_distiller.recording import Console, Recorder
from sgc_distiller.report import write_report
from sgc_distiller.runs import RunFolder
from sgc_distiller.settings import resolve
from sgc_distiller.tasks.dcgan import DCGAN
from sgc_distiller.training import StepReport

Record = dict[str, Any]

# Momentum moves what the masks hide, the rate falls, and denominators are averaged. In FORWARD, AGP begins in
# epoch 1; in LASTING it reaches its target there, so that two epochs compete for the best.
SCHEDULE = """
version: 1
pruners:
  agp: {{class: AutomatedGradualPruner, initial_sparsity: 0.2, final_sparsity: 0.8, weights: ['*.weight']}}
extensions:
  own: {{class: SelfSupervisedPolicy, normalizer: ema, features: 1.0}}
lr_schedulers:
  rate: {rate}
policies:
  - pruner: {{instance_name: agp, args: {args}}}
    starting_epoch: {start}
    ending_epoch: {end}
    frequency: 1
  - extension: {{instance_name: own}}
    starting_epoch: 0
    ending_epoch: 3
    frequency: 1
  - lr_scheduler: {{instance_name: rate}}
    starting_epoch: 0
    ending_epoch: 3
    frequency: 1
gan: {{steps_per_epoch: 2, lr: 0.004}}
"""
FORWARD = SCHEDULE.format(
    rate="{class: PolynomialLR, T_max: 5, power: 1.5}",
    args="{mask_on_forward_only: true}",
    start=1,
    end=3,
)
LASTING = SCHEDULE.format(
    rate="{class: ReduceLROnPlateau, patience: 0, threshold: 0.5}",
    args="{mask_on_forward_only: true, use_double_copies: true, keep_mask: true}",
    start=0,
    end=2,
)
# The discriminator is pruned too: at random, on the forward pass only, and gradually for good.
JUDGE = FORWARD.replace(
    "gan: {steps_per_epoch: 2, lr: 0.004}",
    """
gan:
  steps_per_epoch: 2
  lr: 0.004
  discriminator:
    schedule:
      pruners:
        any:
          class: RandomRankedFilterPruner
          group_type: Filters
          desired_sparsity: 0.5
          weights: [main.0.weight]
        agp:
          class: AutomatedGradualPruner
          initial_sparsity: 0.2
          final_sparsity: 0.6
          weights: [main.2.weight]
      policies:
        - pruner: {instance_name: any, args: &soft {mask_on_forward_only: true, use_double_copies: true}}
          starting_epoch: 0
          ending_epoch: 3
          frequency: 1
        - pruner: {instance_name: agp, args: *soft}
          starting_epoch: 0
          ending_epoch: 3
          frequency: 1
""",
)
# Filters are pruned in epoch 0, and in epoch 1 taken out, by which two pruners go on with what is left.
THINNED = """
version: 1
pruners:
  filters:
    class: L1RankedStructureParameterPruner
    group_type: Filters
    group_dependency: Coupled
    desired_sparsity: 0.5
    weights: [main.0.weight, main.3.weight]
  fine:
    class: AutomatedGradualPruner
    initial_sparsity: 0.1
    final_sparsity: 0.4
    weights: [main.3.weight, main.6.weight]
extensions:
  own: {class: SelfSupervisedPolicy}
  thin: {class: FilterRemover, thinning_func_str: remove_filters, arch: any, dataset: any}
policies:
  - pruner: {instance_name: filters}
    epochs: [0]
  - extension: {instance_name: thin}
    epochs: [1]
  - pruner: {instance_name: fine}
    starting_epoch: 1
    ending_epoch: 3
    frequency: 1
  - extension: {instance_name: own}
    starting_epoch: 0
    ending_epoch: 3
    frequency: 1
gan: {steps_per_epoch: 2, lr: 0.004}
"""
OTHER = """
version: 1
lr_schedulers:
  rate: {class: StepLR, step_size: 1}
policies:
  - lr_scheduler: {instance_name: rate}
    epochs: [0]
"""
SMALL: Record = {
    "batch_size": 8,
    "report_every": 1,
    "epoch_images": 16,
    "test_images": 16,
    "extractor": "digits",
    "device": "cpu",
}


class Stopped(BaseException):
    """Stands for Ctrl-C or a kill: nothing in the package catches it."""


class Stopper(Console):
    """A console that stops the run at one moment: ``start``, ``step 3``, ``epoch 1``, ``finish``."""

    def __init__(self, moment: str) -> None:
        self.moment = moment

    def _maybe(self, moment: str) -> None:
        if moment == self.moment:
            self.moment = ""
            raise Stopped

    def start(self, epochs: int, steps_per_epoch: int, first_epoch: int) -> None:
        self._maybe("start")

    def step(self, report: StepReport) -> None:
        self._maybe(f"step {report.step}")

    def epoch(self, record: Record) -> None:
        self._maybe(f"epoch {record['epoch']}")

    def finish(self) -> None:
        self._maybe("finish")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures, a dense run and the schedules."""
    folder = tmp_path_factory.mktemp("resume")
    sizes = {"image_size": 16, "width": 4}
    given = {**SMALL, "data": str(picture_folder(folder / "pictures")), "task_options": sizes}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "write_report", _short_report)
        train(resolve({**given, "epochs": 1, "steps_per_epoch": 2, "folder": str(folder / "dense")}))
    (folder / "forward.yaml").write_text(FORWARD)
    (folder / "lasting.yaml").write_text(LASTING)
    (folder / "judge.yaml").write_text(JUDGE)
    (folder / "thinned.yaml").write_text(THINNED)
    return folder


@pytest.fixture(autouse=True)
def _quick_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "write_report", _short_report)


def _short_report(folder: Path) -> Path:
    """Stand in for the report, whose charts take longer than these runs."""
    return runs.atomic_write(folder / "report.html", "report")


def _given(place: Path, schedule: str, folder: Path, **more: Any) -> Record:
    start = {"weights_from": str(place / "dense"), "schedule": str(place / f"{schedule}.yaml")}
    return {**SMALL, **start, "folder": str(folder), "best_count": 2, **more}


@pytest.fixture(scope="module")
def straight(place: Path) -> Any:
    """Runs that never stop, by schedule; each is made once."""
    made: dict[str, Path] = {}

    def run(schedule: str) -> Path:
        if schedule not in made:
            folder = place / f"straight_{schedule}"
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(session, "write_report", _short_report)
                compress(resolve(_given(place, schedule, folder)))
            made[schedule] = folder
        return made[schedule]

    return run


def _tensors(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors(item, f"{path}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _tensors(item, f"{path}[{index}]")
    else:
        yield path, value


_OF_THE_PLACE = {"folder", "schedule", "resume_from", "weights_from", "checkpoint", "seconds"}


def _without_place(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_place(item) for key, item in value.items() if key not in _OF_THE_PLACE}
    return [_without_place(item) for item in value] if isinstance(value, list) else value


def assert_same_run(found: Path, expected: Path) -> None:
    """Compare every tensor and number of the checkpoints, the records and the pictures of two runs."""
    for name in ("checkpoint.pth.tar", "best.pth.tar", "teacher.pth"):
        ours = dict(_tensors(_without_place(load_checkpoint(found / name))))
        theirs = dict(_tensors(_without_place(load_checkpoint(expected / name))))
        assert ours.keys() == theirs.keys()
        for path, value in theirs.items():
            same = torch.equal(ours[path], value) if isinstance(value, Tensor) else ours[path] == value
            assert same, f"{name}{path} differs: {ours[path]} and {value}"
    records = [_without_place(RunFolder(folder).records()) for folder in (found, expected)]
    assert records[0] == records[1]
    assert (found / "schedule.yaml").read_text() == (expected / "schedule.yaml").read_text()
    drawn = {item.name: item.read_bytes() for item in (expected / "samples").iterdir()}
    assert {item.name: item.read_bytes() for item in (found / "samples").iterdir()} == drawn
    assert (found / "report.html").exists()


def test_the_run_that_never_stops_is_worth_comparing(straight: Any) -> None:
    """Masks, dense weights beneath them, averages and a falling rate are there to be lost."""
    content = load_checkpoint(straight("forward"))
    weights, dense = content["state_dict"], content["dense_weights"]
    assert set(dense) == {"main.0.weight", "main.3.weight", "main.6.weight"}
    for name, value in dense.items():
        hidden = weights[name] == 0
        assert int(hidden.sum()) == int(0.8 * value.numel())
        assert value[hidden].abs().sum() > 0
        assert torch.equal(value[~hidden], weights[name][~hidden])
    policies = content["compression_sched"]["policies"]
    assert policies[2]["state"]["scales"].keys() == {"gc.gen", "dc.dis"}
    rates = [record["lr"] for record in RunFolder(straight("forward")).records("step")]
    assert rates == sorted(rates, reverse=True)
    assert len(set(rates)) == 3
    assert [score["epoch"] for score in content["extras"]["scores"]] == [2]
    (result,) = [r for r in RunFolder(straight("judge")).records("result") if r["method"] == "judge"]
    assert 0.0 < result["discriminator_sparsity"] < 1.0
    lasting = load_checkpoint(straight("lasting"))
    assert lasting["dense_weights"] == {}
    assert {score["epoch"] for score in lasting["extras"]["scores"]} == {1, 2}


def test_the_thinned_run_is_worth_comparing(straight: Any) -> None:
    """Half of the filters are gone, masks and moments are of what is left, and some of it is pruned."""
    folder = straight("thinned")
    content = load_checkpoint(folder)
    assert content["thinned"]["main.0"] == {"out_channels": 4}
    assert content["thinned"]["main.3"] == {"in_channels": 4, "out_channels": 2}
    assert content["thinned_from"] == {"sizes": {}, "shapes": {}}
    masks = content["compression_sched"]["masks_dict"]
    assert masks["main.0.weight"] is None
    assert masks["main.3.weight"].shape == content["state_dict"]["main.3.weight"].shape == (4, 2, 4, 4)
    assert (masks["main.3.weight"] == 0).sum() == int(0.4 * 4 * 2 * 4 * 4)
    moments = content["optimizer_state_dict"]["state"]
    shapes = [tuple(value["exp_avg"].shape) for value in moments.values()]
    assert shapes == [tuple(value.shape) for value in masked_parameters(content)]
    *_, result = RunFolder(folder).records("result")
    assert result["weights"] == (100 * 4 + 4 * 2 + 2) * 4 * 4
    assert result["weights_before_thinning"] == (100 * 8 + 8 * 4 + 4) * 4 * 4
    assert result["sparsity_asked"] is None
    asked = [record["sparsity_asked"] for record in RunFolder(folder).records("epoch")]
    assert asked[0] > 0.4
    assert asked[1:] == [None, None]


def test_the_report_of_a_thinned_run_says_what_was_taken_out(straight: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(straight("thinned"), tmp_path / "copy")
    page = write_report(folder).read_text()
    weights, left = (100 * 8 + 8 * 4 + 4) * 16, (100 * 4 + 4 * 2 + 2) * 16
    assert f"{weights - left:,} were taken out of the network with whole filters." in page
    assert f"of {weights:,} weights of its convolutions" in page
    assert "Filters were taken out in epoch 1: from then on what is left counts" in page


def masked_parameters(content: Record) -> list[Tensor]:
    """Return the parameters of a saved generator, in order."""
    return [content["state_dict"][name] for name in content["compression_sched"]["masks_dict"]]


def test_a_run_goes_on_from_a_thinned_run_and_is_thinned_again(
    place: Path, straight: Any, tmp_path: Path
) -> None:
    """A run that began thinner than its task builds is resumed as it began, and ends as if never stopped."""
    start = {"weights_from": str(straight("thinned"))}
    folder = tmp_path / "straight"
    compress(resolve({**_given(place, "thinned", folder), **start}))
    content = load_checkpoint(folder)
    assert content["thinned"]["main.3"] == {"in_channels": 2, "out_channels": 1}
    assert content["thinned_from"]["sizes"]["main.3"] == {"in_channels": 4, "out_channels": 2}
    for moment in ("step 1", "epoch 2"):
        stopped = tmp_path / moment
        with pytest.raises(Stopped):
            compress(resolve({**_given(place, "thinned", stopped), **start}), Stopper(moment))
        compress(resolve({"resume_from": str(stopped), "device": "cpu"}))
        assert_same_run(stopped, folder)


def test_masks_may_be_taken_out_without_training(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = compress(resolve(_given(place, "thinned", folder, prune_only=True)))
    assert load_checkpoint(folder)["thinned"]["main.0"] == {"out_channels": 4}
    assert result["weights"] < result["weights_before_thinning"]


@pytest.mark.parametrize(
    ("schedule", "moment"),
    [("forward", m) for m in ("start", "step 1", "step 3", "epoch 1", "step 5", "finish")]
    + [("lasting", m) for m in ("step 3", "epoch 1", "epoch 2")]
    + [("judge", m) for m in ("step 1", "epoch 1", "step 5")]
    + [("thinned", m) for m in ("step 1", "epoch 0", "step 3", "epoch 1", "step 5", "finish")],
)
def test_stopped_once_and_resumed(
    schedule: str, moment: str, place: Path, straight: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Stopped):
        compress(resolve(_given(place, schedule, folder)), Stopper(moment))
    result = compress(resolve({"resume_from": str(folder), "device": "cpu"}))
    assert_same_run(folder, straight(schedule))
    assert result["method"] == schedule


def test_stopped_after_every_epoch_and_in_every_epoch(place: Path, straight: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Stopped):
        compress(resolve(_given(place, "forward", folder)), Stopper("step 1"))
    for moment in ("epoch 0", "step 2", "step 4", "epoch 1", "step 6", "finish"):
        with pytest.raises(Stopped):
            compress(resolve({"resume_from": str(folder), "device": "cpu"}), Stopper(moment))
        with (folder / "metrics.jsonl").open("a") as lines:
            lines.write('{"kind": "step", "epo')  # a kill in the middle of a line
    compress(resolve({"resume_from": str(folder), "device": "cpu"}))
    assert_same_run(folder, straight("forward"))


def test_stopped_before_any_file_is_written(
    place: Path, straight: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every renaming of a finished temporary file is a moment to stop at; as soon as there is a checkpoint,
    the run is resumed, before that it is begun again in the same folder.
    """
    straight("forward")
    replace = os.replace
    count = stop_at = 0

    def stopping(source: Any, target: Any) -> None:
        nonlocal count
        count += 1
        if count == stop_at:
            raise Stopped
        replace(source, target)

    monkeypatch.setattr(runs.os, "replace", stopping)
    while True:
        stop_at, count = stop_at + 1, 0
        folder = tmp_path / f"run{stop_at}"
        given = _given(place, "forward", folder)
        try:
            compress(resolve(given))
            break
        except Stopped:
            is_begun = (folder / "checkpoint.pth.tar").exists()
        compress(resolve({"resume_from": str(folder), "device": "cpu"} if is_begun else given))
        assert_same_run(folder, straight("forward"))
    # teacher, config, environment, schedule, checkpoint; three epochs, of which one is the best; report
    assert stop_at - 1 == 5 + 3 + 1 + 1


def test_a_run_that_has_finished_goes_on_for_more_epochs(place: Path, straight: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    compress(resolve(_given(place, "forward", folder, epochs=2)))
    compress(resolve({"resume_from": str(folder), "device": "cpu", "epochs": 3}))
    found, expected = (load_checkpoint(path) for path in (folder, straight("forward")))
    for key in ("state_dict", "dense_weights", "optimizer_state_dict", "discriminator_state_dict"):
        ours, theirs = dict(_tensors(found[key])), dict(_tensors(expected[key]))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[p], v) for p, v in theirs.items() if isinstance(v, Tensor))
    results = RunFolder(folder).records("result")
    assert [record["steps"] for record in results] == [0, 4, 6]
    assert results[-1]["metrics"] == RunFolder(straight("forward")).records("result")[-1]["metrics"]


def test_a_run_begun_anew_in_an_old_folder_keeps_no_old_records(place: Path, tmp_path: Path) -> None:
    """Who throws a checkpoint away begins again; the old run's dense result must not stay."""
    folder = tmp_path / "run"
    compress(resolve(_given(place, "forward", folder, prune_only=True)))
    (folder / "checkpoint.pth.tar").unlink()
    compress(resolve(_given(place, "forward", folder, prune_only=True, seed=7)))
    assert [(r["method"], r["seed"]) for r in RunFolder(folder).records("result")] == [
        ("dense", 7),
        ("forward", 7),
    ]


class Notes(Console):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str, once: bool = False) -> None:
        self.said.append(text)


def _content(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.mark.parametrize("prune_only", [False, True])
def test_a_run_that_has_finished_is_left_as_it_is(prune_only: bool, place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = compress(resolve(_given(place, "forward", folder, prune_only=prune_only)))
    before = _content(folder)
    notes = Notes()
    again = compress(resolve({"resume_from": str(folder), "device": "cpu"}), notes)
    assert _content(folder) == before
    assert json.loads(json.dumps(first)) == again
    assert f"{folder}: this run has finished, nothing is changed" in notes.said[0]


def test_a_resumed_run_keeps_its_settings_without_naming_them(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also from another folder, and when the schedule was changed meanwhile."""
    monkeypatch.chdir(tmp_path)
    schedule = tmp_path / "own name.yaml"
    schedule.write_text(FORWARD)
    folder = tmp_path / "run"
    pictures = os.path.relpath(place / "pictures", tmp_path)
    settings = {
        "seed": 5,
        "batch_size": 6,
        "test_size": 0.5,
        "weight_decay": 0.01,
        "data": pictures,
        "distill_weight": 2.0,
        "student_weight": 0.5,
        "lr": 0.001,
        "extractor_weights": os.path.relpath(_digits_weights(), tmp_path),
    }
    given = {**_given(place, "forward", folder, **settings), "schedule": "own name.yaml"}
    with pytest.raises(Stopped):
        compress(resolve(given), Stopper("epoch 1"))
    before = json.loads((folder / "config.json").read_text())
    schedule.write_text("version: 1\npolicies: []\n")
    monkeypatch.chdir(place)
    result = compress(resolve({"resume_from": str(folder), "device": "cpu"}))
    after = json.loads((folder / "config.json").read_text())
    assert _without_place(before) == _without_place(after)
    assert after["schedule"] == str(folder / "schedule.yaml")
    for name in ("seed", "batch_size", "test_size", "weight_decay", "distill_weight", "student_weight", "lr"):
        assert after[name] == settings[name]
    assert Path(after["data"]).is_absolute()
    assert Path(after["data"]).samefile(place / "pictures")
    assert result["method"] == "own name"
    assert result["seed"] == 5
    assert "8 images" in result["metrics"][0]["name"]
    assert "own.total" in RunFolder(folder).records("step")[-1]["terms"]
    assert "kd.l1" in RunFolder(folder).records("step")[-1]["terms"]


def _digits_weights() -> Path:
    return Path(extractors.__file__).parent / "assets" / "digits_cnn.pt"


def test_a_rate_and_a_decay_given_on_resuming_count(place: Path, straight: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Stopped):
        compress(resolve(_given(place, "forward", folder)), Stopper("step 3"))
    compress(resolve({"resume_from": str(folder), "device": "cpu", "lr": 0.001, "weight_decay": 0.1}))
    usual = [record["lr"] for record in RunFolder(straight("forward")).records("step")]
    found = [record["lr"] for record in RunFolder(folder).records("step")]
    assert found[:2] == usual[:2]
    assert found[2:] == pytest.approx([rate / 4 for rate in usual[2:]])
    content = load_checkpoint(folder)
    for name in ("optimizer_state_dict", "discriminator_optimizer_state_dict"):
        assert content[name]["param_groups"][0]["weight_decay"] == 0.1
    assert content["discriminator_optimizer_state_dict"]["param_groups"][0]["lr"] == pytest.approx(0.001)
    assert not torch.equal(
        content["state_dict"]["main.0.weight"],
        load_checkpoint(straight("forward"))["state_dict"]["main.0.weight"],
    )


@pytest.mark.parametrize("change", ["altered", "missing", "exchanged"])
def test_another_teacher_is_refused(change: str, place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Stopped):
        compress(resolve(_given(place, "forward", folder)), Stopper("step 3"))
    teacher = folder / "teacher.pth"
    if change == "missing":
        teacher.unlink()
    elif change == "altered":
        teacher.write_bytes(teacher.read_bytes()[:-1] + b"x")
    else:
        content = load_checkpoint(teacher)
        content["state_dict"]["main.0.weight"] *= 1.001
        torch.save(content, teacher)
    before = _content(folder)
    got = "no such file" if change == "missing" else "another file"
    with pytest.raises(UserError, match=rf"teacher\.pth: expected the dense generator .*, got {got}; put it"):
        compress(resolve({"resume_from": str(folder), "device": "cpu"}))
    assert _content(folder) == before


def test_what_cannot_be_resumed_is_told(place: Path, straight: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(straight("forward"), run)
    (tmp_path / "other.yaml").write_text(OTHER)
    before = _content(run)
    for given, message in (
        (
            {"steps_per_epoch": 5},
            "was trained for 6 steps in 3 epochs, got 5 steps an epoch; .*--steps-per-epoch",
        ),
        ({"task_options": {"width": 8}}, "these are the weights of another network"),
        ({"schedule": str(tmp_path / "other.yaml")}, "Expected the schedule of the saved run"),
    ):
        with pytest.raises(UserError, match=message):
            compress(resolve({"resume_from": str(run), "device": "cpu", "epochs": 9, **given}))
    torch.save({"state_dict": load_checkpoint(run)["state_dict"]}, tmp_path / "plain.pth")
    with pytest.raises(UserError, match="cannot be resumed, it lacks epoch, step, .*--exp-load-weights-from"):
        train(resolve({"resume_from": str(tmp_path / "plain.pth"), "device": "cpu"}))
    with pytest.raises(UserError, match="is of a run that trained a dense GAN; to prune its generator"):
        compress(resolve({"resume_from": str(place / "dense"), "schedule": str(place / "forward.yaml")}))
    assert _content(run) == before
    assert {item.name for item in tmp_path.iterdir()} == {"run", "other.yaml", "plain.pth"}


def test_dense_training_resumes_too(place: Path, tmp_path: Path) -> None:
    given = {**SMALL, "data": str(place / "pictures"), "task_options": {"image_size": 16, "width": 4}}
    given.update(epochs=3, steps_per_epoch=2)
    train(resolve({**given, "folder": str(tmp_path / "straight")}))
    folder = tmp_path / "run"
    with pytest.raises(Stopped):
        train(resolve({**given, "folder": str(folder)}), Stopper("step 3"))
    with pytest.raises(Stopped):
        train(resolve({"resume_from": str(folder), "device": "cpu"}), Stopper("epoch 2"))
    train(resolve({"resume_from": str(folder / "checkpoint.pth.tar"), "device": "cpu"}))
    for name in ("straight", "run"):
        (tmp_path / name / "teacher.pth").write_bytes(
            (place / "straight_forward" / "teacher.pth").read_bytes()
        )
        (tmp_path / name / "schedule.yaml").write_text("")
    assert_same_run(folder, tmp_path / "straight")


def test_not_a_number_leaves_the_last_checkpoint(
    place: Path, straight: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad step in epoch 1 stops the run; resumed without it, the run ends as if nothing had been."""
    folder = tmp_path / "run"
    calls = 0
    generate = DCGAN.generate

    def spoilt(self: DCGAN, generator: torch.nn.Module, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        outputs = generate(self, generator, batch)
        return {"fake": outputs["fake"] * float("nan")} if calls == 6 else outputs

    with monkeypatch.context() as patch:
        patch.setattr(DCGAN, "generate", spoilt)
        with pytest.raises(
            NotANumberError, match=r"is not a finite number since step 3, .*Nothing was saved"
        ):
            compress(resolve(_given(place, "forward", folder)))
    assert load_checkpoint(folder)["epoch"] == 0
    compress(resolve({"resume_from": str(folder), "device": "cpu"}))
    assert_same_run(folder, straight("forward"))


def test_killed_at_a_random_moment_and_resumed(place: Path, straight: Any, tmp_path: Path) -> None:
    """A process of its own, ended by SIGKILL somewhere after a step, goes on in another process."""
    folder = tmp_path / "a run"
    command = [sys.executable, "-m", "sgc_distiller.app", "compress", "dcgan", "--cpu"]
    begin = ["-b", "8", "-p", "1", "--epoch-images", "16", "--test-images", "16", "--num-best-scores", "2"]
    begin += ["--extractor", "digits"]
    begin += ["--compress", str(place / "forward.yaml"), "--exp-load-weights-from", str(place / "dense")]
    begin += ["-o", str(tmp_path), "-n", folder.name]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    expected = straight("forward")
    step, delay = random.SystemRandom().randint(1, 5), random.SystemRandom().uniform(0, 0.3)
    logging.getLogger(__name__).info("killed %.3f s after step %d", delay, step)
    process = subprocess.Popen(
        [*command, *begin], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _wait_for_step(process, folder / "metrics.jsonl", step)
        time.sleep(delay)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    done = subprocess.run(
        [*command, "--resume-from", str(folder)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert_same_run(folder, expected)


def _wait_for_step(process: subprocess.Popen[bytes], metrics: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if metrics.is_file() and f'"step": {step},' in metrics.read_text():
            return
        time.sleep(0.005)
    raise AssertionError(f"step {step} was never recorded; exit code {process.poll()}")


def test_epochs_are_closed_best_checkpoint_first(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a run that is stopped between the two would never write the best one."""
    saved: list[str] = []
    closed = Recorder.on_epoch_closed

    def note(self: Recorder, *args: Any) -> None:
        saved.append("closed")
        closed(self, *args)

    save = checkpoints.save_checkpoint
    monkeypatch.setattr(Recorder, "on_epoch_closed", note)
    monkeypatch.setattr(
        checkpoints, "save_checkpoint", lambda path, content: (saved.append(path.name), save(path, content))
    )
    compress(resolve(_given(place, "forward", tmp_path / "run", save_untrained=True)))
    assert saved[:3] == ["teacher.pth", "untrained.pth.tar", "checkpoint.pth.tar"]
    assert saved[-3:] == ["closed", "best.pth.tar", "checkpoint.pth.tar"]
