"""The command line: every flag changes what it says, every mistake gets one line, nothing is lost."""

from __future__ import annotations

import io
import json
import logging
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console as RichConsole
from tiny import picture_folder

from sgc_distiller import app, arguments, assembly, data, runs, session, wording
from sgc_distiller.app import main
from sgc_distiller.assembly import Run
from sgc_distiller.checkpoints import load_checkpoint
from sgc_distiller.experiment_spec import GanSpec
from sgc_distiller.report import write_report
from sgc_distiller.runs import RunFolder
from sgc_distiller.schedule import read_schedule
from sgc_distiller.settings import pick_device
from sgc_distiller.tasks.dcgan import DCGAN
from sgc_distiller.terminal import Terminal
from sgc_distiller.training import StepReport

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "compress_gan.py"
compress_gan = runpy.run_path(str(EXAMPLE))["compress_gan"]

SMALL = "-b 8 --image-size 16 --width 4 --epochs 1 --steps-per-epoch 2 --epoch-images 0 --test-images 16"
SCHEDULE = """
version: 1
pruners:
  once: {class: SparsityLevelParameterPruner, levels: {'main.*.weight': 0.5}}
extensions:
  own: {class: SelfSupervisedPolicy}
policies:
  - pruner: {instance_name: once}
    epochs: [0]
  - extension: {instance_name: own}
    epochs: [0]
gan: {steps_per_epoch: 2}
"""
Record = dict[str, Any]


def _short_report(folder: Path) -> Path:
    """Stand in for the report, whose charts take longer than these runs."""
    return runs.atomic_write(folder / "report.html", "report")


@pytest.fixture(scope="module")
def device_flags(device: torch.device) -> str:
    return "--cpu" if device.type == "cpu" else f"--gpus {device.index or 0}"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, device_flags: str) -> Path:
    """A folder with pictures, a schedule, and runs that the tests only read: dense, sparse."""
    folder = tmp_path_factory.mktemp("shelf")
    picture_folder(folder / "pictures")
    (folder / "half.yaml").write_text(SCHEDULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "write_report", _short_report)
        start = f"{folder / 'pictures'} -a dcgan --extractor digits {device_flags} {SMALL} -o {folder}"
        assert compress_gan(f"{start} -n dense".split()) == 0
        more = f"--compress {folder / 'half.yaml'} --exp-load-weights-from {folder / 'dense'}"
        assert compress_gan(f"{start} {more} -n sparse".split()) == 0
    return folder


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Every test works in a folder of its own, without reports, and leaves torch and logging as they were."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(session, "write_report", _short_report)
    level, deterministic = (
        logging.getLogger("sgc_distiller").level,
        torch.are_deterministic_algorithms_enabled(),
    )
    yield
    logging.getLogger("sgc_distiller").setLevel(level)
    torch.use_deterministic_algorithms(deterministic)


Go = Callable[..., int]


@pytest.fixture
def go(shelf: Path, device_flags: str) -> Go:
    """Run compress_gan.py on the pictures with few and small steps; ``plain`` leaves the small steps out."""

    def run(flags: str = "", plain: bool = False) -> int:
        small = "" if plain else SMALL
        return compress_gan(
            [
                str(shelf / "pictures"),
                *f"--extractor digits {device_flags} {small}".split(),
                *shlex.split(flags),
            ]
        )

    return run


def _compress(shelf: Path) -> str:
    return f"--compress {shelf / 'half.yaml'} --exp-load-weights-from {shelf / 'dense'}"


def _weights(run: Path) -> torch.Tensor:
    state = load_checkpoint(run)["state_dict"]
    return torch.cat([value.flatten() for name, value in state.items() if name.endswith("weight")])


def _records(run: Path, kind: str) -> list[Record]:
    return RunFolder(run, create=False).records(kind)


def _content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class TestFlags:
    """One test a flag: what changes when it is given."""

    def test_arch(self, go: Go, capsys: pytest.CaptureFixture[str]) -> None:
        assert go("-a dcgan -n x") == 0
        assert load_checkpoint(Path("logs/x"))["arch"] == "dcgan"
        assert go("-a dcgna -n y") == 2
        assert (
            "argument -a/--arch: unknown task 'dcgna'; expected one of dcgan, pix2pix"
            in capsys.readouterr().err
        )

    def test_task_option(self, go: Go, capsys: pytest.CaptureFixture[str]) -> None:
        assert go("-O noise=20 -n x") == 0
        assert load_checkpoint(Path("logs/x"))["state_dict"]["main.0.weight"].shape[0] == 20
        for wrong, message in (
            ("noise", "-O noise: expected NAME=VALUE, such as -O direction=BtoA"),
            ("niose=20", "task 'dcgan' has no option 'niose'; expected one of image_size, channels, width"),
            ("noise=many", "dcgan: expected noise to be a whole number of at least 1, got 'many'"),
        ):
            assert go(f"-O {wrong} -n y") == 2
            assert message in capsys.readouterr().err

    def test_workers(self, go: Go, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        loaders: list[int] = []
        loader = data.DataLoader

        def noted(*args: Any, **settings: Any) -> Any:
            loaders.append(settings["num_workers"])
            return loader(*args, **settings)

        monkeypatch.setattr(data, "MEMORY_LIMIT", 0)
        monkeypatch.setattr(data, "DataLoader", noted)
        assert go("-j 1 -n x") == 0
        assert go("-j 0 -n y") == 0
        assert loaders == [1, 0]
        for name in ("x", "y"):
            torch.testing.assert_close(_weights(Path("logs") / name), _weights(shelf / "dense"))

    def test_epochs(self, go: Go) -> None:
        assert go("--epochs 3 -n x") == 0
        assert [record["epoch"] for record in _records(Path("logs/x"), "epoch")] == [0, 1, 2]

    def test_batch_size(self, go: Go, shelf: Path) -> None:
        assert go("-b 4 -n x") == 0
        assert not torch.allclose(_weights(Path("logs/x")), _weights(shelf / "dense"))
        assert go("--steps-per-epoch 1 -b 24 -n y") == 0
        config = RunFolder(Path("logs/y")).config()
        assert config["batch_size"] == 24

    def test_learning_rate(self, go: Go, shelf: Path) -> None:
        assert go("--lr 0.01 -n x") == 0
        assert _records(Path("logs/x"), "step")[0]["lr"] == 0.01
        content = load_checkpoint(Path("logs/x"))
        assert content["discriminator_optimizer_state_dict"]["param_groups"][0]["lr"] == 0.01
        assert _records(shelf / "dense", "step")[0]["lr"] == 0.0002
        assert not torch.allclose(_weights(Path("logs/x")), _weights(shelf / "dense"))

    def test_weight_decay(self, go: Go, shelf: Path) -> None:
        assert go("--wd 0.5 -n x") == 0
        content = load_checkpoint(Path("logs/x"))
        for name in ("optimizer_state_dict", "discriminator_optimizer_state_dict"):
            assert content[name]["param_groups"][0]["weight_decay"] == 0.5
        assert not torch.equal(_weights(Path("logs/x")), _weights(shelf / "dense"))

    def test_print_freq(self, go: Go) -> None:
        assert go("--steps-per-epoch 5 -p 2 -n x") == 0
        assert [record["step"] for record in _records(Path("logs/x"), "step")] == [2, 4, 5]
        assert go("--steps-per-epoch 5 -n y") == 0
        assert [record["step"] for record in _records(Path("logs/y"), "step")] == [5]

    def test_verbose(self, go: Go, caplog: pytest.LogCaptureFixture) -> None:
        assert go("-n x") == 0
        assert "epoch 0 [2/2]" not in caplog.text
        assert go("-v -n y") == 0
        assert "epoch 0 [2/2]  discriminator.dis" in caplog.text

    def test_resume_from(self, go: Go, shelf: Path) -> None:
        assert go("--epochs 2 -n straight") == 0
        assert go("-n x") == 0
        assert go("--resume-from logs/x --epochs 2", plain=True) == 0
        assert [record["epoch"] for record in _records(Path("logs/x"), "epoch")] == [0, 1]
        torch.testing.assert_close(_weights(Path("logs/x")), _weights(Path("logs/straight")))

    def test_exp_load_weights_from(self, go: Go, shelf: Path) -> None:
        """Steps too small to move anything show where training began."""
        assert go(f"--exp-load-weights-from {shelf / 'dense'} --lr 1e-12 --seed 3 -n x") == 0
        assert go("--lr 1e-12 --seed 3 -n y") == 0
        torch.testing.assert_close(_weights(Path("logs/x")), _weights(shelf / "dense"))
        assert not torch.allclose(_weights(Path("logs/y")), _weights(shelf / "dense"))
        torch.save(load_checkpoint(shelf / "dense")["state_dict"], "generator.pth")
        torch.save(load_checkpoint(shelf / "dense")["discriminator_state_dict"], "discriminator.pth")
        both = "--exp-load-weights-from generator.pth --discriminator-from discriminator.pth --lr 1e-12"
        assert go(f"{both} -b 8 --epochs 1 --steps-per-epoch 1 --test-images 16 -n z", plain=True) == 0
        torch.testing.assert_close(_weights(Path("logs/z")), _weights(shelf / "dense"))

    def test_reset_optimizer(self, go: Go, shelf: Path) -> None:
        before = _content(shelf / "sparse")
        flags = f"--resume-from {shelf / 'sparse'} --reset-optimizer -n x --lr 1e-12"
        assert go(flags, plain=True) == 0
        assert _content(shelf / "sparse") == before
        content, old = load_checkpoint(Path("logs/x")), load_checkpoint(shelf / "sparse")
        steps = [state["step"].item() for state in content["optimizer_state_dict"]["state"].values()]
        assert set(steps) == {2}
        assert content["epoch"] == 0
        torch.testing.assert_close(_weights(Path("logs/x")), _weights(shelf / "sparse"))
        assert [r["method"] for r in _records(Path("logs/x"), "result")] == ["dense", "half"]
        assert torch.equal(
            load_checkpoint("logs/x/teacher.pth")["state_dict"]["main.0.weight"],
            load_checkpoint(shelf / "sparse/teacher.pth")["state_dict"]["main.0.weight"],
        )
        assert old["config"]["folder"] != content["config"]["folder"] == "logs/x"

    def test_evaluate(self, go: Go, shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for run, method in (("dense", "dense"), ("sparse", "half")):
            before = _content(shelf / run)
            assert go(f"-e --resume-from {shelf / run}", plain=True) == 0
            printed = capsys.readouterr().out
            result = _records(shelf / run, "result")[-1]
            for metric in result["metrics"]:
                assert f"{metric['name']}: {wording.number(metric['value'])}" in printed
            assert f"{method}: {wording.count(result['nonzero'])} of" in printed
            assert _content(shelf / run) == before
        assert go(f"-e --exp-load-weights-from {shelf / 'dense'} --test-images 16") == 0
        assert f"{_records(shelf / 'dense', 'result')[0]['metrics'][0]['name']}: " in capsys.readouterr().out
        assert not Path("logs").exists()

    def test_export_onnx(self, go: Go, shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
        start = f"--exp-load-weights-from {shelf / 'dense'} --export-onnx"
        for flags, file in (("-n x", "model.onnx"), ("small.onnx -n x", "small.onnx")):
            assert go(f"{start} {flags}", plain=True) == 0
            path = Path("logs") / "x" / file
            assert onnx.load(path).graph.output[0].name == "pictures"
            assert f"{path}: differs from the checkpoint by " in capsys.readouterr().out
        assert sorted(path.name for path in Path("logs/x").iterdir()) == ["model.onnx", "small.onnx"]

    def test_masks_sparsity(self, go: Go, shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert go(f"{_compress(shelf)} --masks-sparsity -n x") == 0
        shown = capsys.readouterr().out
        assert "Masks after epoch 0 (last: 0)" in shown
        assert "main.0.weight │ 100 x 8 x 4 x 4 │  50 % │    50 % │    6,400 │ 12,800" in shown
        assert go(f"{_compress(shelf)} -n y") == 0
        assert "main.0.weight" not in capsys.readouterr().out

    def test_param_hist(self, go: Go) -> None:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        assert go("--param-hist -n x") == 0
        assert go("-n y") == 0
        found = {}
        for name in ("x", "y"):
            events = EventAccumulator(f"logs/{name}/tb")
            events.Reload()
            found[name] = events.Tags()["histograms"]
        assert "weights/main.0.weight" in found["x"]
        assert found["y"] == []

    def test_compress(self, go: Go, shelf: Path) -> None:
        assert go(f"{_compress(shelf)} -n x") == 0
        dense, sparse = _records(Path("logs/x"), "result")
        assert (dense["method"], dense["sparsity"]) == ("dense", 0.0)
        assert (sparse["method"], sparse["sparsity"], sparse["sparsity_asked"]) == ("half", 0.5, 0.5)
        share = (load_checkpoint("logs/x")["state_dict"]["main.0.weight"] == 0).double().mean().item()
        assert share == 0.5

    def test_deterministic(self, go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
        seen = []
        prepare = DCGAN.prepare

        def note(self: DCGAN, *arguments: Any) -> Any:
            seen.append(torch.are_deterministic_algorithms_enabled())
            return prepare(self, *arguments)

        monkeypatch.setattr(DCGAN, "prepare", note)
        assert go("-n x") == 0
        assert go("--deterministic -n y") == 0
        assert seen == [False, False, True, True]

    def test_seed(self, go: Go, shelf: Path) -> None:
        assert go("--seed 1 -n x") == 0
        assert go("--seed 0 -n y") == 0
        assert not torch.allclose(_weights(Path("logs/x")), _weights(shelf / "dense"))
        torch.testing.assert_close(_weights(Path("logs/y")), _weights(shelf / "dense"))
        assert _records(Path("logs/x"), "result")[0]["seed"] == 1

    def test_gpus(
        self, shelf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        asked: list[Any] = []
        monkeypatch.setattr(
            assembly, "pick_device", lambda name: (asked.append(name), torch.device("cpu"))[1]
        )
        start = [str(shelf / "pictures"), *SMALL.split(), "--extractor", "digits"]
        assert compress_gan([*start, "--gpus", "1", "-n", "x"]) == 0
        assert asked == ["cuda:1"]
        monkeypatch.undo()
        for flags, message in (
            ("--gpus 0,1", "--gpus: expected the number of one GPU, got '0,1'"),
            ("--gpus 0 --cpu", "--cpu and --gpus exclude each other"),
            (f"--gpus {torch.cuda.device_count()}", "is not there: this machine has"),
        ):
            assert compress_gan([*start, *flags.split()]) == 2
            assert message in capsys.readouterr().err

    def test_cpu(self, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "is_available", lambda: True)
            assert pick_device(None).type == "cuda"
            assert pick_device("cpu").type == "cpu"
        asked: list[Any] = []
        monkeypatch.setattr(
            assembly, "pick_device", lambda name: (asked.append(name), torch.device("cpu"))[1]
        )
        start = [str(shelf / "pictures"), *SMALL.split(), "--extractor", "digits"]
        for flags in ("--cpu -n x", "-n y"):
            assert compress_gan([*start, *flags.split()]) == 0
        assert asked == ["cpu", None]
        assert json.loads(Path("logs/x/environment.json").read_text())["device"] == "cpu"

    def test_name_and_out_dir(self, go: Go, capsys: pytest.CaptureFixture[str]) -> None:
        assert go("-n x") == 0
        assert Path("logs/x/checkpoint.pth.tar").is_file()
        assert go("-o elsewhere -n y") == 0
        assert Path("elsewhere/y/checkpoint.pth.tar").is_file()
        assert go("-o dated") == 0
        (dated,) = Path("dated").iterdir()
        assert dated.name[:2] == "20"
        assert f"run folder: {dated}" in capsys.readouterr().out

    def test_effective_train_size(self, go: Go) -> None:
        flags = "-b 8 --image-size 16 --width 4 --epochs 1 --epoch-images 16 --test-images 16"
        assert go(f"{flags} --effective-train-size 0.5 -n x", plain=True) == 0
        assert go(f"{flags} -n y", plain=True) == 0
        half, whole = (_records(Path("logs") / name, "epoch")[0] for name in ("x", "y"))
        assert (half["step"], whole["step"]) == (2, 3)  # 12 and 24 pictures
        assert "reference folder:pictures-12of24 16x16" in half["metrics"][0]["name"]
        assert (
            "reference folder:pictures-24 16x16"
            in _records(Path("logs/x"), "result")[0]["metrics"][0]["name"]
        )

    def test_effective_valid_size(self, go: Go) -> None:
        assert go("--epoch-images 16 --effective-valid-size 0.5 -n x") == 0
        assert "; 8 images, " in _records(Path("logs/x"), "epoch")[0]["metrics"][0]["name"]
        assert "; 16 images, " in _records(Path("logs/x"), "result")[0]["metrics"][0]["name"]

    def test_effective_test_size(self, go: Go) -> None:
        assert go("--epoch-images 16 --effective-test-size 0.5 -n x") == 0
        assert "; 16 images, " in _records(Path("logs/x"), "epoch")[0]["metrics"][0]["name"]
        assert "; 8 images, " in _records(Path("logs/x"), "result")[0]["metrics"][0]["name"]

    def test_judged_on(self, go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
        splits: list[str] = []
        measure = Run.measure

        def noted(run: Run, split: Any, *rest: Any) -> Any:
            splits.append(split)
            return measure(run, split, *rest)

        monkeypatch.setattr(Run, "measure", noted)
        assert go("-n x") == 0
        assert splits[-1] == "test"
        assert go("--judged-on train -n y") == 0
        assert splits[-1] == "train"
        assert json.loads(Path("logs/y/config.json").read_text())["judged_on"] == "train"

    def test_num_best_scores(self, go: Go, capsys: pytest.CaptureFixture[str]) -> None:
        assert go("--epoch-images 16 --epochs 3 --num-best-scores 2 --lr 0.01 -n x") == 0
        values = {r["epoch"]: r["metrics"][0]["value"] for r in _records(Path("logs/x"), "epoch")}
        best = sorted(values, key=lambda epoch: values[epoch])[:2]
        content = load_checkpoint("logs/x")
        assert [score["epoch"] for score in content["extras"]["scores"]] == best
        assert [s["epoch"] for s in _records(Path("logs/x"), "result")[0]["best_epochs"]] == best
        named = ", ".join(f"{epoch} ({wording.number(values[epoch])})" for epoch in best)
        assert f"best epochs by FID: {named}" in capsys.readouterr().out
        assert load_checkpoint("logs/x/best.pth.tar")["epoch"] == best[0]
        assert go("--epoch-images 16 --epochs 3 --lr 0.01 -n y") == 0
        assert len(load_checkpoint("logs/y")["extras"]["scores"]) == 1
        assert f"best epoch by FID: {named.partition(',')[0]}\n" in capsys.readouterr().out

    def test_save_untrained_model(self, go: Go, shelf: Path) -> None:
        assert go("--save-untrained-model -n x") == 0
        assert load_checkpoint("logs/x/untrained.pth.tar")["epoch"] == -1
        assert go("-e --exp-load-weights-from logs/x/untrained.pth.tar --test-images 16") == 0
        assert go("--exp-load-weights-from logs/x/untrained.pth.tar -n y") == 0
        torch.testing.assert_close(
            _weights(Path("logs/y")), _weights(shelf / "dense")
        )  # begun at the same place
        assert not (shelf / "dense" / "untrained.pth.tar").exists()

    def test_kd_distill_wt(self, go: Go, shelf: Path) -> None:
        assert go(f"{_compress(shelf)} --kd-distill-wt 5 -n x") == 0
        terms = _records(Path("logs/x"), "step")[-1]["terms"]
        assert terms["generator.loss"] == pytest.approx(terms["own.total"] + 5 * terms["kd.l1"], rel=1e-5)
        assert "kd.l1" not in _records(shelf / "sparse", "step")[-1]["terms"]
        assert not torch.allclose(_weights(Path("logs/x")), _weights(shelf / "sparse"))

    def test_kd_student_wt(self, go: Go, shelf: Path) -> None:
        assert go(f"{_compress(shelf)} --kd-distill-wt 5 --kd-student-wt 0.25 -n x") == 0
        terms = _records(Path("logs/x"), "step")[-1]["terms"]
        expected = 0.25 * terms["own.total"] + 5 * terms["kd.l1"]
        assert terms["generator.loss"] == pytest.approx(expected, rel=1e-5)

    def test_prune_only(self, go: Go, shelf: Path) -> None:
        assert go(f"{_compress(shelf)} --prune-only -n x") == 0
        assert (load_checkpoint("logs/x")["state_dict"]["main.0.weight"] == 0).double().mean() == 0.5
        dense = load_checkpoint(shelf / "dense")["state_dict"]["main.0.weight"]
        pruned = load_checkpoint("logs/x")["state_dict"]["main.0.weight"]
        assert torch.equal(pruned[pruned != 0], dense[pruned != 0])
        (layers,) = _records(Path("logs/x"), "layers")
        assert layers["layers"][0]["asked"] == layers["layers"][0]["sparsity"] == 0.5
        names = {"dense.png", "sparse.png", "residual.png", "residual_x10.png", "strip.png"}
        assert {item.name for item in Path("logs/x/samples").iterdir()} == names
        assert _records(Path("logs/x"), "result")[-1]["steps"] == 0

    def test_thinnify(self, go: Go, shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
        own = (
            "class: L1RankedStructureParameterPruner, group_type: Filters, desired_sparsity: 0.5, "
            "weights: ['*.weight']"
        )
        text = SCHEDULE.replace("class: SparsityLevelParameterPruner, levels: {'main.*.weight': 0.5}", own)
        Path("filters.yaml").write_text(
            text.replace("steps_per_epoch: 2", "steps_per_epoch: 2, output_layer: dense")
        )
        assert go(f"--compress filters.yaml --exp-load-weights-from {shelf / 'dense'} --thinnify -n x") == 0
        assert "thinned: logs/x_thin" in capsys.readouterr().out
        whole, thin = (load_checkpoint(f"logs/{name}")["state_dict"] for name in ("x", "x_thin"))
        assert thin["main.0.weight"].shape[1] == whole["main.0.weight"].shape[1] // 2
        assert go("--resume-from logs/x --thinnify", plain=True) == 2, "the folder is there already"
        assert go("--thinnify -n y") == 2
        assert "--thinnify takes zero filters out of a trained generator" in capsys.readouterr().err
        assert go("--evaluate --resume-from logs/x --thinnify", plain=True) == 2
        assert (
            "--thinnify writes a generator, where the other flags measure or show one"
            in capsys.readouterr().err
        )
        assert main(["train", "dcgan", "--thinnify"]) == 2
        assert "unrecognized arguments: --thinnify" in capsys.readouterr().err

    def test_runtime(
        self, go: Go, shelf: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert go(f"{_compress(shelf)} --runtime builtin -n x") == 0
        assert "; runtime: built in" in capsys.readouterr().out
        monkeypatch.setitem(sys.modules, "distiller", None)  # as where it is not installed
        assert go(f"{_compress(shelf)} --runtime distiller -n y") == 2
        assert capsys.readouterr().err.startswith(
            "error: --runtime distiller: expected Intel's Distiller on the Python path, but importing it says"
        )
        assert not Path("logs/y").exists()

    @pytest.mark.distiller
    @pytest.mark.filterwarnings("ignore")
    def test_runtime_distiller(self, go: Go, shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert go(f"{_compress(shelf)} --runtime builtin -n x") == 0
        assert go(f"{_compress(shelf)} --runtime distiller -n y") == 0
        assert re.search(r"; runtime: Distiller at \S+", capsys.readouterr().out)
        assert torch.equal(_weights(Path("logs/x")), _weights(Path("logs/y")))
        plain = yaml.safe_load(Path("logs/y/distiller.yaml").read_text())
        assert set(plain["pruners"]["once"]["levels"]) >= {"main.0.weight", "main.3.weight"}
        terms = [_records(Path(f"logs/{name}"), "step")[-1]["terms"] for name in "xy"]
        assert terms[0] == terms[1]
        assert go("--resume-from logs/y --epochs 3", plain=True) == 0
        assert (_weights(Path("logs/y")) == 0).double().mean() > 0.4

    def test_prune_only_prunes_the_discriminator_by_its_schedule_too(self, go: Go, shelf: Path) -> None:
        own = SCHEDULE.partition("extensions:")[0]
        nested = "".join(f"      {line}\n" for line in own.replace("version: 1", "").strip().splitlines())
        policies = "      policies:\n        - pruner: {instance_name: once}\n          epochs: [0]\n"
        text = SCHEDULE.replace("gan: {steps_per_epoch: 2}\n", "")
        text += f"gan:\n  steps_per_epoch: 2\n  discriminator:\n    schedule:\n{nested}{policies}"
        Path("both.yaml").write_text(text)
        assert go(f"--compress both.yaml --exp-load-weights-from {shelf / 'dense'} --prune-only -n x") == 0
        (result,) = [r for r in _records(Path("logs/x"), "result") if r["method"] == "both"]
        assert result["discriminator_sparsity"] == pytest.approx(0.5, abs=0.01)

    @pytest.mark.parametrize("flag", sorted([*arguments.REFUSED, "--qe-mode", "--lapq-maxiter"]))
    def test_flags_of_distiller_that_mean_nothing_here_give_their_reason(
        self, flag: str, go: Go, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for given in (flag, f"{flag}=3", f"{flag} 3"):
            assert go(given) == 2
            error = capsys.readouterr().err
            reason = arguments.REFUSED.get(flag, "it is about quantization, and this tool prunes")
            assert error == f"error: {flag} of Distiller's compress_classifier is not supported: {reason}\n"

    def test_an_unknown_flag_shows_the_nearest_one(self, go: Go, capsys: pytest.CaptureFixture[str]) -> None:
        assert go("--epoch 3") == 2
        assert "unrecognized arguments: --epoch 3. Did you mean '--epochs'?" in capsys.readouterr().err


def test_every_flag_of_the_help_is_tested_or_named_here() -> None:
    """A new flag needs a test: this list and `TestFlags` hold all of them."""
    parser = arguments.compress_gan_parser()
    flags = {option for action in parser._actions for option in action.option_strings if option[:2] == "--"}
    tested = {name.removeprefix("test_").replace("_", "-") for name in vars(TestFlags)}
    other_names = {"--learning-rate", "--print-freq", "--out-dir", "--name", "--det", "--kd-dw", "--kd-sw"}
    short = {"--etrs", "--evs", "--etes"}
    used_throughout = {
        "--help",
        "--image-size",
        "--width",
        "--channels",
        "--steps-per-epoch",
        "--epoch-images",
        "--test-images",
        "--extractor",
        "--extractor-weights",
        "--discriminator-from",
        "--dry-run",
        "--lr",
        "--wd",
    }
    elsewhere = {"--summary", "--sense", "--sense-range", "--sense-metric", "--sense-tolerance"}
    assert {flag[2:] for flag in flags - other_names - short - used_throughout - elsewhere} <= tested


class TestMistakes:
    """One line on standard error, exit code 2, and nothing written or changed."""

    @pytest.fixture
    def refused(
        self, go: Go, shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> Callable[..., str]:
        def run(flags: str, plain: bool = False) -> str:
            before = _content(shelf), _content(tmp_path), sorted(tmp_path.rglob("*"))
            capsys.readouterr()
            assert go(flags, plain) == 2
            error = capsys.readouterr().err
            assert error.startswith("error: ")
            assert error.count("\n") == 1
            assert "Traceback" not in error
            assert (_content(shelf), _content(tmp_path), sorted(tmp_path.rglob("*"))) == before
            return error

        return run

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (("policies:", "policies: ["), r"s\.yaml:\d+: Expected plain YAML: .*expected"),
            (("levels:", "level:"), r"s\.yaml:4: pruners\.once\.level: .*Did you mean 'levels'\?"),
            (("SparsityLevel", "SparsityLvl"), r"s\.yaml:4: pruners\.once\.class: .*Did you mean"),
            (("main.*.weight", "main.2.weight"), r"s\.yaml:4: .*the name of a parameter .*'main\.2\.weight'"),
            (("main.*.weight", "body.*.weight"), r"s\.yaml:4: .*a pattern that matches a weight .*'body\.\*"),
            (
                ("SelfSupervisedPolicy", "SelfSupervisedPolicy, lambda_dc: -1"),
                r"s\.yaml:6: .*lambda_dc: .*-1",
            ),
            (("instance_name: own", "instance_name: onw"), r"s\.yaml:10: .*Did you mean 'own'\?"),
            (("steps_per_epoch: 2", "steps: 2"), r"s\.yaml:12: gan\.steps: .*steps_per_epoch"),
            (("levels: {'main.*.weight': 0.5}", "levels: {'main.*.weight': 1.5}"), r"s\.yaml:4: .*1\.5"),
        ],
    )
    def test_in_a_schedule_name_file_and_line(
        self, change: tuple[str, str], message: str, refused: Any, shelf: Path, tmp_path: Path
    ) -> None:
        assert change[0] in SCHEDULE
        (tmp_path / "s.yaml").write_text(SCHEDULE.replace(*change))
        flags = f"--compress s.yaml --exp-load-weights-from {shelf / 'dense'} -n x"
        error = refused(flags)
        assert re.search(message, error), error
        dry = refused(f"{flags} --dry-run")
        assert dry == error

    def test_schedules_that_cannot_be_read(self, refused: Any, shelf: Path, tmp_path: Path) -> None:
        start = f"--exp-load-weights-from {shelf / 'dense'} -n x --compress"
        assert "got 'nothing.yaml', which is neither" in refused(f"{start} nothing.yaml")
        (tmp_path / "latin.yaml").write_bytes(b"version: 1 # \xe9\n")
        assert "latin.yaml: Expected a text file in UTF-8" in refused(f"{start} latin.yaml")
        (tmp_path / "empty.yaml").write_text("")
        assert "empty.yaml: Expected a schedule, but the file is empty" in refused(f"{start} empty.yaml")
        (tmp_path / "folder.yaml").mkdir()
        assert "got the folder folder.yaml" in refused(f"{start} folder.yaml")
        assert "Did you mean 'dcgan/recommended_75'?" in refused(f"{start} dcgan/recomended_75")

    def test_checkpoints_that_cannot_be_used(self, refused: Any, shelf: Path, tmp_path: Path, go: Go) -> None:
        schedule = f"--compress {shelf / 'half.yaml'} -n x"
        for flag in ("--exp-load-weights-from", "--resume-from"):
            assert "gone.pth: no such file" in refused(f"{flag} gone.pth")
            (tmp_path / "empty.pth").write_bytes(b"")
            assert "empty.pth: cannot be read as a checkpoint (it is empty)" in refused(f"{flag} empty.pth")
            (tmp_path / "text.pth").write_text("hello")
            assert "text.pth: cannot be read as a checkpoint (it is damaged" in refused(f"{flag} text.pth")
        (tmp_path / "run").mkdir()
        assert "run: expected checkpoint.pth.tar in this folder" in refused("--resume-from run")
        other = f"--exp-load-weights-from {shelf / 'dense'} {schedule} --image-size 32"
        assert "these are the weights of another network" in refused(other)
        torch.save({"conv.weight": torch.ones(3)}, "other.pth")
        assert "not expected: conv.weight" in refused(f"--exp-load-weights-from other.pth {schedule}")
        torch.save(load_checkpoint(shelf / "dense")["state_dict"], "generator.pth")
        assert "holds a generator but no discriminator" in refused(
            f"--exp-load-weights-from generator.pth {schedule}"
        )
        state = load_checkpoint(shelf / "dense")
        state["state_dict"]["main.0.weight"][0] = float("nan")
        torch.save(state, "nan.pth")
        assert "main.0.weight holds values that are not finite" in refused(
            f"--exp-load-weights-from nan.pth {schedule}"
        )

    def test_data_that_cannot_be_used(
        self, shelf: Path, tmp_path: Path, device_flags: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "empty").mkdir()
        picture_folder(tmp_path / "damaged", 3)
        whole = (tmp_path / "damaged" / "01.png").read_bytes()
        (tmp_path / "damaged" / "01.png").write_bytes(whole[: len(whole) // 2])
        (tmp_path / "file").write_text("x")
        before = _content(tmp_path)
        for place, message in (
            ("gone", "The data folder"),
            ("empty", f"Expected pictures in {tmp_path / 'empty'}, got none"),
            ("damaged", f"Cannot decode the picture {tmp_path / 'damaged' / '01.png'}"),
            ("file", "Expected a folder of pictures, got the file"),
        ):
            for more in ("", _compress(shelf)):
                argv = f"{place} {SMALL} --extractor digits {device_flags} -n x {more}"
                assert compress_gan(argv.split()) == 2
                error = capsys.readouterr().err
                assert error.startswith(f"error: {message}")
                assert error.count("\n") == 1
        assert _content(tmp_path) == before
        assert not (tmp_path / "logs").exists()

    def test_a_folder_that_holds_a_run_is_left_alone(self, refused: Any, shelf: Path) -> None:
        """Also its teacher, which the run could not be resumed without."""
        for more in ("", _compress(shelf)):
            error = refused(f"{more} -o {shelf} -n sparse --seed 4")
            assert f"{shelf / 'sparse'}: holds a run already; continue it with --resume-from" in error

    def test_places_where_no_folder_can_be(self, refused: Any, shelf: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        for more in ("", _compress(shelf)):
            assert "Expected a folder for the run, got file/x" in refused(f"{more} -o file -n x")
            assert "Expected a folder for the run, got file" in refused(f"{more} -o . -n file")

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            ("--epochs 0", "--epochs: Expected a whole number of at least 1, got 0"),
            ("--epochs two", "argument --epochs: invalid int value: 'two'"),
            ("-b 0", "--batch-size: Expected a whole number of at least 1, got 0"),
            ("-j -1", "--workers: Expected"),
            ("-p 0", "--print-freq: Expected"),
            ("--lr 0", "--lr: Expected a number greater than 0, got 0.0"),
            ("--lr nan", "--lr: Expected a number greater than 0, got nan"),
            ("--wd -1", "--wd: Expected"),
            ("--etrs 0", "--effective-train-size: Expected a number greater than 0 and at most 1, got 0.0"),
            ("--evs 1.5", "--effective-valid-size: Expected"),
            ("--etes -1", "--effective-test-size: Expected"),
            ("--num-best-scores 0", "--num-best-scores: Expected"),
            ("--test-images 1", "--test-images: Expected a whole number of at least 2, got 1"),
            ("--epoch-images 1", "--epoch-images: expected 0 or at least 2"),
            ("--image-size 20", "expected an image size that is a power of two"),
            ("--channels 2", "Expected 1 channel (grey) or 3 (RGB), got 2"),
            ("--width 0", "expected width to be a whole number of at least 1, got 0"),
            ("--extractor inceptoin", "Did you mean 'inception'?"),
            ("--extractor-weights gone.pt", "Cannot read the weights of"),
            ("--resume-from {dense} --exp-load-weights-from {dense}", "exclude each other"),
            ("--resume-from {dense} -n y", "goes on in the run's own folder: leave out -n and -o"),
            ("--resume-from {dense} -o y", "goes on in the run's own folder: leave out -n and -o"),
            ("--reset-optimizer", "--reset-optimizer means nothing without --resume-from"),
            ("--discriminator-from {dense}", "means nothing without --exp-load-weights-from"),
            ("--compress {half} --kd-student-wt 2", "means nothing without --kd-distill-wt"),
            ("--compress {half}", "compressing needs a trained generator: --exp-load-weights-from"),
            ("--prune-only", "training a dense GAN has no use for --prune-only"),
            ("--kd-distill-wt 1", "training a dense GAN has no use for --kd-distill-wt"),
            ("--dry-run", "--dry-run prints what a schedule asks for: add --compress FILE"),
            ("-e", "evaluating needs a checkpoint: --resume-from or --exp-load-weights-from"),
            ("--compress {half} --kd-distill-wt -1 --exp-load-weights-from {dense}", "--kd-distill-wt: Exp"),
        ],
    )
    def test_in_flags_name_the_flag(self, flags: str, message: str, refused: Any, shelf: Path) -> None:
        assert message in refused(flags.format(dense=shelf / "dense", half=shelf / "half.yaml"))

    def test_a_full_disk_is_one_line_too(
        self, go: Go, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device", "logs/x/metrics.jsonl")

        monkeypatch.setattr(RunFolder, "log", full)
        assert go("-n x") == 2
        error = capsys.readouterr().err
        where = "'logs/x/metrics.jsonl'; -v shows where it happened"
        assert error == f"error: [Errno 28] No space left on device: {where}\n"
        with pytest.raises(OSError, match="No space left"):
            go("-v -n y")


class TestInterruption:
    def test_ctrl_c_says_how_to_go_on(
        self, go: Go, shelf: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def stop(self: Terminal, report: StepReport) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Terminal, "step", stop)
            assert go(f"{_compress(shelf)} -o 'my runs' -n 'a b'") == 130
        error = capsys.readouterr().err
        assert error == "interrupted; --resume-from 'my runs/a b' goes on after the last finished epoch\n"
        assert go(error.partition("; ")[2].partition(" goes on")[0], plain=True) == 0
        torch.testing.assert_close(_weights(Path("my runs/a b")), _weights(shelf / "sparse"))

    def test_ctrl_c_before_the_run_began(
        self, go: Go, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def stop(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(DCGAN, "open_data", stop)
        assert go("-n x") == 130
        assert capsys.readouterr().err == "interrupted; nothing was written yet, begin again\n"
        assert not Path("logs").exists()

    def test_ctrl_c_in_the_quickstart(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def stop(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(app, "quickstart", stop)
        assert main(["quickstart"]) == 130
        assert capsys.readouterr().err == "interrupted; the same command goes on where it stopped\n"


class TestOutput:
    def test_a_dry_run_prints_a_schedule_file_and_what_it_asks_for(
        self, go: Go, shelf: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        before = _content(shelf)
        for weights in ("", f"--exp-load-weights-from {shelf / 'dense'}"):
            assert go(f"--compress {shelf / 'half.yaml'} {weights} --dry-run --epochs 2 --lr 0.001") == 0
            shown = capsys.readouterr().out
            Path("shown.yaml").write_text(shown)
            found = read_schedule("shown.yaml")
            assert found.gan == GanSpec(steps_per_epoch=2, epochs=2, lr=0.001)
            model = DCGAN(image_size=16, channels=1, width=4).build("generator")
            assert found.sparsity_plan(model) == read_schedule(shelf / "half.yaml").sparsity_plan(model, 2)
            assert "main.*.weight" not in shown
            assert "# task: dcgan, image_size 16, channels 1, width 4, noise 100" in shown
            Path("shown.yaml").unlink()
            lines = [line.split("│") for line in shown.splitlines() if "50 %" in line]
            assert [[cell.strip() for cell in line[1:-1]] for line in lines] == [
                [str(epoch), "50 %", "50 %", "50 %"] for epoch in (0, 1)
            ]
        assert list(tmp_path.iterdir()) == []
        assert _content(shelf) == before

    def test_a_dry_run_says_what_no_schedule_can(self, go: Go, capsys: pytest.CaptureFixture[str]) -> None:
        assert go("--compress dcgan/agp_75 --dry-run --epochs 3 --kd-distill-wt 2") == 0
        shown = capsys.readouterr().out
        assert "# epochs: 0 to 2 are trained (--epochs 3)" in shown
        assert "# distillation: added by --kd-distill-wt 2 --kd-student-wt 1" in shown
        plain = SCHEDULE.partition("gan:")[0]
        Path("plain.yaml").write_text(plain)
        assert go("--compress plain.yaml --dry-run --steps-per-epoch 9") == 0
        shown = capsys.readouterr().out
        assert "gan:" not in shown
        assert "# generator updates in an epoch: 9" in shown

    def test_epochs_count_from_0(self, go: Go, capsys: pytest.CaptureFixture[str]) -> None:
        assert go("--epochs 3 -n x") == 0
        shown = capsys.readouterr().out
        assert "epochs 0 to 2, 2 generator updates an epoch\n" in shown
        assert [line.split()[0] for line in shown.splitlines() if re.match(r" +\d+ +\d+ +\d", line)] == [
            *"012"
        ]
        assert go("--resume-from logs/x --epochs 4", plain=True) == 0
        shown = capsys.readouterr().out
        assert "goes on with epoch 3: epoch 3, 2 generator updates an epoch\n" in shown
        terminal = Terminal()
        terminal.start(epochs=20, steps_per_epoch=1500, first_epoch=7)
        terminal.finish()
        terminal.start(epochs=4, steps_per_epoch=2, first_epoch=4)
        terminal.finish()
        shown = capsys.readouterr().out
        assert "goes on with epoch 7: epochs 7 to 19, 1,500 generator updates an epoch\n" in shown
        assert "epoch 3 was the last one" in shown

    def test_a_shipped_schedule_goes_by_its_name(self, go: Go, capsys: pytest.CaptureFixture[str]) -> None:
        assert go("--compress dcgan/recommended_75 --dry-run") == 0
        assert "AutomatedGradualPruner" in capsys.readouterr().out

    def test_an_epochs_line_shows_losses_sparsity_and_metric(
        self, go: Go, shelf: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert go(f"{_compress(shelf)} --epoch-images 16 -n x") == 0
        shown = capsys.readouterr().out.splitlines()
        head = next(index for index, line in enumerate(shown) if line.split()[:2] == ["epoch", "step"])
        assert " ".join(shown[head].split()) == "epoch step D loss G loss asked reached FID lr time"
        record = _records(Path("logs/x"), "epoch")[0]
        assert shown[head + 1].split()[:2] == ["0", "2"]
        assert f"{record['terms']['discriminator.dis']:.4f}" in shown[head + 1]
        assert f"{record['terms']['generator.loss']:.4f}" in shown[head + 1]
        assert shown[head + 1].count("50 %") == 2
        assert wording.number(record["metrics"][0]["value"]) in shown[head + 1]

    def test_a_stand_in_for_inception_is_said_once(
        self,
        shelf: Path,
        device_flags: str,
        capsys: pytest.CaptureFixture[str],
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
        assert compress_gan(f"{shelf / 'pictures'} {SMALL} {device_flags} -n x".split()) == 0
        captured = capsys.readouterr()
        said = captured.out + captured.err + caplog.text
        assert said.count("The Inception weights are not at") == 1
        terminal = Terminal()
        for _ in range(3):
            terminal.note("once only", once=True)
            terminal.note("each time")
        shown = capsys.readouterr().out
        assert (shown.count("once only"), shown.count("each time")) == (1, 3)

    def test_long_notes_are_not_broken_inside_of_paths(self, capsys: pytest.CaptureFixture[str]) -> None:
        Terminal().note("x" * 300 + " y")
        assert capsys.readouterr().out == "x" * 300 + " y\n"

    def test_paths_with_spaces_work(self, go: Go, shelf: Path, tmp_path: Path) -> None:
        (tmp_path / "my schedule.yaml").write_text(SCHEDULE)
        (tmp_path / "my dense").symlink_to(shelf / "dense")
        flags = "--compress 'my schedule.yaml' --exp-load-weights-from 'my dense' -o 'my runs' -n 'run 1'"
        assert go(flags) == 0
        assert _records(tmp_path / "my runs" / "run 1", "result")[-1]["method"] == "my schedule"

    @pytest.mark.parametrize("run", ["dense", "sparse"])
    def test_pictures_of_a_run(self, run: str, shelf: Path) -> None:
        samples = shelf / run / "samples"
        for name in ("strip.png", "epoch_000.png"):
            with Image.open(samples / name) as strip:
                assert 16 < strip.width / strip.height < 18  # sixteen in one row
        names = {"dense"} if run == "dense" else {"dense", "sparse", "residual", "residual_x10"}
        assert {path.stem for path in samples.iterdir()} == names | {"strip", "epoch_000"}
        assert (samples / "strip.png").read_bytes() == (samples / "epoch_000.png").read_bytes()

    def test_the_bar_of_a_terminal_shows_steps_and_time_left(self) -> None:
        shown = io.StringIO()
        terminal = Terminal(RichConsole(file=shown, force_terminal=True, width=120))
        terminal.start(epochs=2, steps_per_epoch=5, first_epoch=1)
        report = StepReport(1, 3, 5, 8, {}, {"generator.loss": 1.0}, 0.1, 1.0)
        terminal.step(report)
        terminal.finish()
        terminal.finish()
        assert "8/10" in shown.getvalue()
        assert "epoch 1 (last: 1)" in shown.getvalue()
        assert "left" in shown.getvalue()

    def test_a_whole_run_ends_with_its_report(
        self,
        go: Go,
        shelf: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(session, "write_report", write_report)
        assert go(f"{_compress(shelf)} --epoch-images 16 -n x") == 0
        shown = capsys.readouterr().out
        assert "report: logs/x/report.html" in shown
        assert "half: 6,688 of 13,376 weights are not zero (50 % sparse)" in shown
        page = Path("logs/x/report.html").read_text()
        assert "half" in page
        assert page.count("data:image/png;base64,") >= 5


class TestSgc:
    """``sgc``'s commands are the same program."""

    def test_train_compress_evaluate_and_resume(
        self, shelf: Path, device_flags: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        common = f"{device_flags} --extractor digits"
        start = f"dcgan --data {shelf / 'pictures'} {SMALL} {common}"
        assert main(f"train {start} -n dense".split()) == 0
        torch.testing.assert_close(_weights(Path("logs/dense")), _weights(shelf / "dense"))
        schedule = f"--compress {shelf / 'half.yaml'} --exp-load-weights-from logs/dense"
        small = "-b 8 --epochs 1 --epoch-images 0 --test-images 16"  # sizes and data are the checkpoint's
        assert main(f"compress dcgan {schedule} {small} {common} -n sparse".split()) == 0
        torch.testing.assert_close(_weights(Path("logs/sparse")), _weights(shelf / "sparse"))
        capsys.readouterr()
        assert main(f"evaluate dcgan --resume-from logs/sparse {common}".split()) == 0
        metric = _records(Path("logs/sparse"), "result")[-1]["metrics"][0]
        assert f"{metric['name']}: {wording.number(metric['value'])}" in capsys.readouterr().out
        before = _content(Path("logs/dense"))
        assert main(f"train dcgan --resume-from logs/dense {common}".split()) == 0
        assert "this run has finished, nothing is changed" in capsys.readouterr().out
        assert _content(Path("logs/dense")) == before
        assert main(f"train dcgan --resume-from logs/dense --epochs 2 {common}".split()) == 0
        assert [record["epoch"] for record in _records(Path("logs/dense"), "epoch")] == [0, 1]

    def test_each_command_refuses_what_is_another_ones(
        self, shelf: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for argv, message in (
            (f"train dcgan --compress {shelf / 'half.yaml'}", "expected a schedule without policies"),
            (f"train dcgan --resume-from {shelf / 'sparse'}", "expected a schedule without policies"),
            ("train dcgan --dry-run", "--dry-run prints what a schedule asks for"),
            ("compress dcgan", "compressing needs a schedule"),
            (f"compress dcgan --resume-from {shelf / 'dense'}", "compressing needs a schedule"),
            ("quickstart --seeds 0", "--seeds: expected at least 1, got 0"),
            ("trian dcgan", "invalid choice: 'trian'"),
            ("train dcgan --what", "unrecognized arguments: --what"),
        ):
            assert main(argv.split()) == 2
            error = capsys.readouterr().err
            assert message in error
            assert error.count("\n") == 1

    @pytest.mark.parametrize("argv", [["--version"], ["--help"], ["train", "--help"], ["quickstart", "-h"]])
    def test_help_and_version(self, argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            main(argv)
        assert ended.value.code == 0
        assert "sgc" in capsys.readouterr().out


class TestSchedule:
    """``sgc schedule``: mistakes, what happens in each epoch, a plot, a plain file."""

    def test_shows_each_epoch(self, shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["schedule", "dcgan/recommended_75"]) == 0
        out = capsys.readouterr().out
        assert "recommended_75.yaml: no mistakes; 20 epochs" in out
        assert "checked against the file alone; -a TASK checks names and shapes too" in out
        rows = [line for line in out.splitlines() if line.startswith("\u2502")]
        assert len(rows) == 20
        assert [word.strip() for word in rows[10].split("\u2502")[1:-1]] == [
            "10",
            "75 %",
            "x 1",
            "fine, supervision",
        ]
        assert re.search(r"fine  \u2581\S+", out)

    def test_checks_names_against_a_checkpoint(self, shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
        flags = ["--exp-load-weights-from", str(shelf / "dense")]
        assert main(["schedule", str(shelf / "half.yaml"), *flags]) == 0
        out = capsys.readouterr().out
        assert f"checked against {shelf / 'dense'} (dcgan" in out
        assert "all weights" in out
        Path("wrong.yaml").write_text(SCHEDULE.replace("main.*.weight", "main.2.weight"))
        assert main(["schedule", "wrong.yaml"]) == 0
        capsys.readouterr()
        assert main(["schedule", "wrong.yaml", *flags]) == 2
        assert re.match(r"error: .*wrong\.yaml:4: .*'main\.2\.weight'", capsys.readouterr().err)

    def test_draws_it_and_writes_it_for_distiller(
        self, shelf: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        size = ["-a", "dcgan", "--image-size", "16", "--width", "4"]
        files = ["--plot", "plots/half.png", "--plain", "plain/half.yaml"]
        assert main(["schedule", str(shelf / "half.yaml"), *size, *files]) == 0
        out = capsys.readouterr().out
        assert "plot: plots/half.png" in out
        assert "for Intel's Distiller: plain/half.yaml" in out
        assert Path("plots/half.png").stat().st_size > 1000
        assert main(["schedule", "plain/half.yaml", *size]) == 0

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["dcgan/recomended_75"], "Did you mean 'dcgan/recommended_75'"),
            (["dcgan/paper_50", "--width", "4"], "sizes are those of a GAN: add -a TASK, or leave them out"),
            (["dcgan/paper_50", "--plain", "x.yaml"], "expected a task whose parameters"),
            (["dcgan/paper_50", "--plot", "x.txt"], "x.txt: expected a file name that ends in one of"),
            (
                ["dcgan/paper_50", "-a", "dcgan", "--width", "0"],
                "expected width to be a whole number of at least 1, got 0",
            ),
            (["dcgan/paper_50", "--exp-load-weights-from", "nothing"], "nothing"),
        ],
    )
    def test_mistakes(
        self, flags: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        assert main(["schedule", *flags]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert list(tmp_path.iterdir()) == []
