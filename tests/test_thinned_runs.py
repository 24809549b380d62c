"""Thinned run folders: they load, resume, train on, are measured and timed as any other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sgc_distiller import session, speed
from sgc_distiller.app import main
from sgc_distiller.checkpoints import load_checkpoint
from sgc_distiller.errors import UserError
from sgc_distiller.experiment import compress, evaluate, train
from sgc_distiller.finished import open_finished
from sgc_distiller.runs import RunFolder
from sgc_distiller.settings import Options, resolve
from sgc_distiller.thinned_runs import thin_run

Record = dict[str, Any]

PRUNING = """
version: 1
pruners:
  filters:
    class: L1RankedStructureParameterPruner
    group_type: Filters
    group_dependency: Coupled
    desired_sparsity: 0.5
    weights: ['*.weight']
extensions:
  own: {class: SelfSupervisedPolicy}
policies:
  - pruner: {instance_name: filters}
    epochs: [0, 1]
  - extension: {instance_name: own}
    epochs: [0, 1]
gan: {steps_per_epoch: 2, output_layer: dense}
"""
TUNING = """
version: 1
extensions:
  own: {class: SelfSupervisedPolicy, features: 1.0}
policies:
  - extension: {instance_name: own}
    epochs: [0, 1]
gan: {steps_per_epoch: 2}
"""
SIZES: dict[str, dict[str, Any]] = {
    "dcgan": {"image_size": 16, "width": 4},
    "stargan": {"image_size": 16, "width": 4, "blocks": 1, "n_critic": 1},
    "cyclegan": {"image_size": 32, "width": 4, "blocks": 1},
}


@pytest.fixture(scope="module", autouse=True)
def _short_reports() -> Iterator[None]:
    """Leave out the charts, which take longer than these runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "write_report", lambda folder: None)
        yield


def options(task: str, folder: Path, **more: Any) -> Options:
    given = {
        **{"task": task, "task_options": SIZES[task], "folder": str(folder), "batch_size": 4},
        **{"epoch_images": 0, "test_images": 16, "extractor": "digits", "device": "cpu", "workers": 0},
    }
    return resolve({**given, **more})


@pytest.fixture(scope="module", params=list(SIZES))
def pruned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Return a task and a folder with a dense run and one whose filters were pruned."""
    folder, task = tmp_path_factory.mktemp("runs"), request.param
    for name, text in (("pruning", PRUNING), ("tuning", TUNING)):
        (folder / f"{name}.yaml").write_text(text)
    train(options(task, folder / "dense", epochs=1, steps_per_epoch=2))
    compress(
        options(
            task, folder / "sparse", schedule=str(folder / "pruning.yaml"), weights_from=str(folder / "dense")
        )
    )
    return task, folder


@pytest.fixture(scope="module")
def thinned(pruned: tuple[str, Path]) -> tuple[str, Path, Record]:
    task, folder = pruned
    return (
        task,
        folder,
        thin_run(resolve({"weights_from": str(folder / "sparse"), "device": "cpu"}), folder / "thin"),
    )


def metrics(record: Record) -> dict[str, float]:
    return {item["name"]: item["value"] for item in record["metrics"]}


def test_a_thinned_generator_has_the_masked_ones_metrics(thinned: tuple[str, Path, Record]):
    task, folder, result = thinned
    assert result["difference"] < 1e-5
    (before, after), (work, less) = result["parameters"], result["macs"]
    assert before / after > 2
    assert work / less > 2
    found = [
        metrics(evaluate(options(task, folder, weights_from=str(folder / n)))) for n in ("sparse", "thin")
    ]
    assert found[1] == pytest.approx(found[0], rel=1e-3, abs=1e-3)


def test_what_belongs_to_weights_is_cut_with_them(thinned: tuple[str, Path, Record]):
    """Adam's moments of the weights that stay are those they had, and masks hold nothing back any more."""
    _, folder, result = thinned
    before, after = load_checkpoint(folder / "sparse"), load_checkpoint(folder / "thin")
    names = [name for name in before["state_dict"] if name in before["compression_sched"]["masks_dict"]]
    for index, name in enumerate(names):
        weight, mask = after["state_dict"][name], after["compression_sched"]["masks_dict"][name]
        old = before["optimizer_state_dict"]["state"][index]
        new = after["optimizer_state_dict"]["state"][index]
        assert new["exp_avg"].shape == new["exp_avg_sq"].shape == weight.shape
        assert new["step"] == old["step"]
        assert mask is None or (mask.shape == weight.shape and bool((mask == 1).all()))
        had = before["compression_sched"]["masks_dict"][name]
        if weight.dim() == 1:
            kept = old["exp_avg"] if had is None else old["exp_avg"][had != 0]
            assert torch.equal(new["exp_avg"], kept)
        else:
            assert set(new["exp_avg"].flatten().tolist()) <= set(old["exp_avg"].flatten().tolist())
    assert sum(item["after"] < item["before"] for item in result["layers"]) >= 2


def test_it_is_trained_on_under_the_same_supervision(thinned: tuple[str, Path, Record], tmp_path: Path):
    """The teacher is the dense generator, and the sizes stay."""
    task, folder, _ = thinned
    start = {"schedule": str(folder / "tuning.yaml"), "weights_from": str(folder / "thin")}
    compress(options(task, tmp_path / "whole", **start))
    whole = load_checkpoint(tmp_path / "whole")
    begun = load_checkpoint(folder / "thin")["state_dict"]
    assert {n: v.shape for n, v in whole["state_dict"].items()} == {n: v.shape for n, v in begun.items()}
    assert not all(torch.equal(value, begun[n]) for n, value in whole["state_dict"].items())
    kept = load_checkpoint(RunFolder(tmp_path / "whole", create=False).teacher_file)["state_dict"]
    dense = load_checkpoint(folder / "dense")["state_dict"]
    assert all(torch.equal(value, dense[name]) for name, value in kept.items())
    if task != "dcgan":  # once is enough for the rest
        return
    compress(options(task, tmp_path / "parts", **start, epochs=1))
    compress(resolve({"resume_from": str(tmp_path / "parts"), "epochs": 2, "device": "cpu"}))
    parts = load_checkpoint(tmp_path / "parts")
    assert whole["step"] == parts["step"] == 4
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, parts["state_dict"][name]), name
    train(options(task, tmp_path / "plain", weights_from=str(folder / "thin"), epochs=1, steps_per_epoch=1))


def test_nothing_is_left_to_take_out(thinned: tuple[str, Path, Record], tmp_path: Path):
    _, folder, _ = thinned
    with pytest.raises(
        UserError, match="expected filters that can be taken out, found none; it has been thinned already"
    ):
        thin_run(resolve({"weights_from": str(folder / "thin"), "device": "cpu"}), tmp_path / "again")
    with pytest.raises(UserError, match="holds a run already; name another folder with -o"):
        thin_run(resolve({"weights_from": str(folder / "sparse"), "device": "cpu"}), folder / "thin")


def test_what_a_thinned_generator_needs_is_named(thinned: tuple[str, Path, Record], tmp_path: Path):
    task, folder, _ = thinned
    shutil.copytree(folder / "thin", tmp_path / "thin")
    (tmp_path / "thin" / "teacher.pth").unlink()
    start = {"schedule": str(folder / "tuning.yaml"), "weights_from": str(tmp_path / "thin")}
    with pytest.raises(
        UserError, match=r"teacher\.pth: expected the dense generator that supervises the thinned"
    ):
        compress(options(task, tmp_path / "x", **start))
    narrow = tmp_path / "narrow.yaml"
    narrow.write_text(TUNING.replace("gan: {", "gan: {student: {init: random}, "))
    with pytest.raises(UserError, match=r"expected a schedule whose gan\.student is left out"):
        compress(options(task, tmp_path / "y", schedule=str(narrow), weights_from=str(folder / "thin")))


def test_a_network_whose_pictures_would_change_is_not_written(
    pruned: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    _, folder = pruned
    monkeypatch.setattr("sgc_distiller.thinned_runs.TOLERANCE", -1.0)
    with pytest.raises(
        UserError, match=r"differ by .* from those of the masked one, expected at most -1; nothing"
    ):
        thin_run(resolve({"weights_from": str(folder / "sparse"), "device": "cpu"}), tmp_path / "x")
    assert not (tmp_path / "x").exists()


class TestCommands:
    @pytest.fixture
    def shelf(self, pruned: tuple[str, Path]) -> Path:
        task, folder = pruned
        if task != "dcgan":
            pytest.skip("once is enough")
        return folder

    def test_thin_prints_layers_and_totals(
        self, shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ):
        assert main(["thin", str(shelf / "sparse"), "-o", str(tmp_path / "t"), "--cpu"]) == 0
        printed = capsys.readouterr().out
        for text in ("main.0", "multiply-adds", "The pictures differ by", f"thinned: {tmp_path / 't'}"):
            assert text in printed
        assert main(["thin", str(shelf / "dense"), "-o", str(tmp_path / "u"), "--cpu"]) == 2
        assert "found none; prune whole filters first, those together whose" in capsys.readouterr().err

    def test_speed_times_every_form(self, shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        given = ["speed", str(shelf / "sparse"), "--cpu", "--seconds", "0.01", "--batch", "1,3"]
        assert main([*given, "-o", str(tmp_path), "--test-images", "16"]) == 0
        report = json.loads((tmp_path / "speed.json").read_text())
        rows = {(row["form"], row["batch"]): row for row in report["rows"]}
        forms = {form for form, _ in rows}
        assert {"dense", "masked", "thinned", "dense, bf16", "thinned, channels_last"} <= forms
        assert len(rows) == 2 * len(forms)
        assert all(row["rounds"] == 5 and row["milliseconds"] > 0 for row in rows.values())
        assert rows["dense", 3]["times_faster"] == 1.0
        dense, masked, thin = (rows[form, 1] for form in ("dense", "masked", "thinned"))
        assert dense["macs"] == masked["macs"] == rows["dense", 3]["macs"] > 2 * thin["macs"]
        assert dense["parameters"] == masked["parameters"] > 2 * thin["parameters"]
        assert rows["dense, bf16", 1]["bytes"] == dense["bytes"] // 2
        own = [metrics(row) for row in (masked, thin)]
        assert own[1] == pytest.approx(own[0], rel=1e-3, abs=1e-3)
        assert all(name.endswith("; as deployed]") for name in own[0])
        assert (tmp_path / "speed.md").read_text().startswith("## Speed")
        assert "times faster" in capsys.readouterr().out

    def test_a_form_is_compared_with_the_dense_one_of_the_same_round(
        self, shelf: Path, monkeypatch: pytest.MonkeyPatch
    ):
        def timed(calls: Any, *_: Any) -> dict[str, list[float]]:
            return {name: [0.4, 0.8, 1.2] if name == "dense" else [0.1, 0.4, 0.2] for name in calls}

        monkeypatch.setattr(speed, "side_by_side", timed)
        report = speed.speed_report(
            resolve({"weights_from": str(shelf / "sparse"), "device": "cpu"}), batches=[2]
        )
        thin = next(row for row in report["rows"] if row["form"] == "thinned")
        assert thin["times_faster"] == pytest.approx(4.0)  # of 4, 2 and 6
        assert thin["times_faster_quartiles"] == pytest.approx([3.0, 5.0])
        assert thin["milliseconds"] == pytest.approx(200.0)

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            ("--batch 0", "--batch: expected sizes of at least 1, got 0"),
            ("--batch one", "--batch: expected numbers with commas between them, got 'one'"),
            ("--threads 0", "--threads: Expected"),
            ("--test-images -1", "--test-images: Expected"),
        ],
    )
    def test_mistakes_of_speed(
        self, flags: str, message: str, shelf: Path, capsys: pytest.CaptureFixture[str]
    ):
        assert main(["speed", str(shelf / "sparse"), "--cpu", *flags.split()]) == 2
        assert message in capsys.readouterr().err

    def test_speed_asks_for_the_dense_generator(self, shelf: Path, capsys: pytest.CaptureFixture[str]):
        assert main(["speed", str(shelf / "dense"), "--cpu"]) == 2
        assert "expected the dense generator to compare with, got no such file" in capsys.readouterr().err
        given = ["speed", str(shelf / "dense"), "--dense", str(shelf / "dense"), "--cpu", "--seconds", "0.01"]
        assert main([*given, "--batch", "1"]) == 0
        assert "There are no zero filters to take out." in capsys.readouterr().out


def test_one_network_of_a_thinned_pair_is_opened_alone(thinned: tuple[str, Path, Record], tmp_path: Path):
    task, folder, _ = thinned
    if task != "cyclegan":
        pytest.skip("there is one network only")
    given = ["export", str(folder / "thin"), "--formats", "safetensors", "--cpu"]
    assert main([*given, "-o", str(tmp_path / "both")]) == 0
    alone = {"weights_from": str(tmp_path / "both" / "G_B.safetensors"), "device": "cpu"}
    opened = open_finished(resolve({**alone, "task_options": {"direction": "BtoA"}}))
    whole = load_checkpoint(folder / "thin")["state_dict"]
    found = opened.generator.state_dict()
    assert set(found) == {name for name in whole if name.startswith("G_B.")}
    assert all(torch.equal(value, whole[name]) for name, value in found.items())
