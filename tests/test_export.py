"""Exported files hold the generator: other libraries compute its pictures from them, and it loads back."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from sgc_distiller import checkpoints, export_subject
from sgc_distiller._version import __version__
from sgc_distiller.app import compress_gan, main
from sgc_distiller.checkpoints import load_checkpoint
from sgc_distiller.deployment import example_inputs
from sgc_distiller.errors import UserError
from sgc_distiller.export import export, export_onnx
from sgc_distiller.export_subject import Subject, largest_difference, subjects_of
from sgc_distiller.finished import open_finished
from sgc_distiller.module_state import Part, parts_of
from sgc_distiller.onnx_export import onnx_bytes
from sgc_distiller.settings import resolve
from sgc_distiller.tasks import build_task
from sgc_distiller.torch_export import torch_bytes
from sgc_distiller.weight_files import read_weight_file

ATTRIBUTES = ["Red", "Green", "Blue", "Inverted"]
SIZES: dict[str, dict[str, Any]] = {
    "dcgan": {"image_size": 16, "width": 8},
    "pix2pix": {"image_size": 32, "width": 4},
    "cyclegan": {"image_size": 32, "width": 4, "blocks": 1},
    "stargan": {"image_size": 16, "width": 4, "blocks": 1, "attributes": ATTRIBUTES},
    "srgan": {"image_size": 64, "width": 4, "blocks": 1},
}
ALL = ["onnx", "safetensors", "torch", "compact"]


def checkpoint(name: str, folder: Path, keep: float = 0.2) -> Path:
    """Write the checkpoint of a generator with random masks, which leave -0.0 as those of training do."""
    task = build_task(name, SIZES[name])
    torch.manual_seed(1)
    generator = task.build("generator")
    with torch.no_grad():
        for item in generator.parameters():
            if item.dim() > 1:
                item.mul_(torch.rand_like(item) < keep).mul_(5)
    path = folder / f"{name}.pth"
    content = {"arch": name, "task_options": task.options, "state_dict": generator.state_dict()}
    checkpoints.save_checkpoint(path, content)
    return path


@pytest.fixture(scope="module", params=list(SIZES))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A task's name, its checkpoint, the folder that it was exported to, and what was returned."""
    folder = tmp_path_factory.mktemp(request.param)
    source = checkpoint(request.param, folder)
    record = export(resolve({"weights_from": str(source)}), folder / "out", ALL)
    return request.param, source, folder / "out", record


@pytest.fixture(scope="module")
def dcgan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint("dcgan", tmp_path_factory.mktemp("dcgan"))


def with_onnxruntime(path: Path, inputs: tuple[Tensor, ...]) -> Tensor:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = {slot.name: value.numpy() for slot, value in zip(session.get_inputs(), inputs, strict=True)}
    return torch.from_numpy(session.run(["pictures"], given)[0])


class TestFiles:
    def test_draw_the_checkpoints_pictures_in_other_hands(self, exported: Any):
        """On a batch of a size and from a seed that the export did not try."""
        name, source, folder, _ = exported
        task = build_task(name, SIZES[name])
        generator = task.build("generator")
        generator.load_state_dict(load_checkpoint(source)["state_dict"])
        deployed = task.deploy(generator)
        inputs = example_inputs(task, deployed, task.open_data(None, "test"), 3, seed=7)
        for part in parts_of(deployed):
            given = inputs[part.name]
            wanted = part.network(*given)
            assert wanted.std() > 0.02, "the pictures are not all the same"
            found = with_onnxruntime(folder / f"{part.name}.onnx", given)
            torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
            program = torch.export.load(str(folder / f"{part.name}.pt2")).module()
            torch.testing.assert_close(program(*given), wanted, atol=1e-6, rtol=0)

    def test_hold_the_weights_under_the_baselines_names(self, exported: Any):
        name, source, folder, _ = exported
        generator = build_task(name, SIZES[name]).build("generator")
        generator.load_state_dict(load_checkpoint(source)["state_dict"])
        for part in parts_of(generator):
            wanted = part.network.state_dict()
            plain = safetensors.torch.load_file(folder / f"{part.name}.safetensors")
            compact = read_weight_file(folder / f"{part.name}.compact.safetensors")["state_dict"]
            assert set(plain) == set(compact) == set(wanted)
            for key, tensor in wanted.items():
                assert torch.equal(plain[key], tensor)
                assert torch.equal(compact[key], tensor)
                assert compact[key].dtype == tensor.dtype
            assert not any((1 / item).isneginf().any() for item in plain.values()), "-0.0 is 0.0"

    def test_load_back_as_the_whole_generator(self, exported: Any):
        name, source, folder, _ = exported
        wanted = load_checkpoint(source)["state_dict"]
        for formats in (folder, _only_compact(folder)):
            opened = open_finished(resolve({"weights_from": str(formats)}))
            assert opened.run.task.name == name
            assert opened.run.task.options == build_task(name, SIZES[name]).options
            found = opened.generator.state_dict()
            assert list(found) == list(wanted)
            assert all(torch.equal(found[key], wanted[key]) for key in wanted)

    def test_take_less_space_where_weights_are_zero(self, exported: Any):
        *_, folder, record = exported
        for part in record["parts"]:
            sizes = part["weight_bytes"]
            assert sizes["dense"] == (folder / f"{part['name']}.safetensors").stat().st_size
            assert sizes["compact"] == (folder / f"{part['name']}.compact.safetensors").stat().st_size
            assert sizes["compact"] < sizes["dense"]

    def test_are_described(self, exported: Any):
        name, source, folder, record = exported
        assert json.loads((folder / "export.json").read_text()) == record
        assert record["task"] == name
        assert record["options"] == build_task(name, SIZES[name]).options
        assert record["sgc_distiller"] == __version__
        assert record["source"] == str(source)
        listed = {item["file"]: item for item in record["files"]}
        assert set(listed) == {path.name for path in folder.iterdir()} - {"export.json"}
        for path, item in listed.items():
            content = (folder / path).read_bytes()
            assert item["bytes"] == len(content)
            assert item["sha256"] == hashlib.sha256(content).hexdigest()
            assert item["checks"].get("largest_difference", 0) <= 1e-4
        weights = [item for key, item in load_checkpoint(source)["state_dict"].items() if item.dim() == 4]
        assert sum(part["weights"] for part in record["parts"]) == sum(item.numel() for item in weights)
        kept = sum(int(item.count_nonzero()) for item in weights)
        assert sum(part["nonzero"] for part in record["parts"]) == kept
        layers = [layer for part in record["parts"] for layer in part["pattern_2_4"]]
        assert len(layers) == len(weights)
        assert all(layer["holds"] != bool(layer["reason"]) for layer in layers)

    def test_onnx_names_what_it_takes_and_gives(self, exported: Any):
        name, _, folder, record = exported
        for part in record["parts"]:
            model = onnx.load(folder / f"{part['name']}.onnx")
            assert [item.version for item in model.opset_import if not item.domain] == [17]
            for slots, told in ((model.graph.input, part["inputs"]), (model.graph.output, part["outputs"])):
                assert [slot.name for slot in slots] == [item["name"] for item in told]
                for slot, item in zip(slots, told, strict=True):
                    dims = slot.type.tensor_type.shape.dim
                    assert dims[0].dim_param == item["shape"][0] == "batch"
                    if slots is model.graph.input:
                        assert [dim.dim_value for dim in dims[1:]] == item["shape"][1:]
            properties = {item.key: item.value for item in model.metadata_props}
            assert properties == {
                "task": name,
                "sparsity": f"{part['sparsity']:.6g}",
                "sgc_distiller": __version__,
            }
        assert [item["name"] for item in record["parts"][0]["inputs"]] == {
            "dcgan": ["z"],
            "stargan": ["x", "c"],
        }.get(name, ["x"])


def _only_compact(folder: Path) -> Path:
    """Return a copy of a folder's compact files and description."""
    made = folder.with_name("compact")
    made.mkdir(exist_ok=True)
    for path in folder.glob("*.compact.safetensors"):
        (made / path.name).write_bytes(path.read_bytes())
    record = json.loads((folder / "export.json").read_text())
    record["files"] = [item for item in record["files"] if item["format"] == "compact"]
    (made / "export.json").write_text(json.dumps(record))
    return made


def test_sizes_that_the_task_does_not_know_travel_with_the_weights(dcgan: Path, tmp_path: Path):
    """Those of a narrower student; whoever reads the file back needs no checkpoint."""
    task = build_task("dcgan", SIZES["dcgan"])
    content = load_checkpoint(dcgan)
    narrow = {**content, "student_width": 0.5, "state_dict": task.build("generator", 0.5).state_dict()}
    checkpoints.save_checkpoint(tmp_path / "narrow.pth", narrow)
    export(resolve({"weights_from": str(tmp_path / "narrow.pth")}), tmp_path / "out", ["safetensors"])
    for source in ("out", "out/generator.safetensors"):
        found = open_finished(resolve({"weights_from": str(tmp_path / source)})).generator.state_dict()
        assert all(torch.equal(found[key], value) for key, value in narrow["state_dict"].items())


def test_half_precision_reports_what_it_changes(dcgan: Path, tmp_path: Path):
    options = resolve({"weights_from": str(dcgan)})
    whole = export(options, tmp_path / "whole", ["compact"])["files"][0]
    (half,) = export(options, tmp_path / "half", ["compact"], half=True)["files"]
    assert half["bytes"] < whole["bytes"]
    assert half["checks"]["read_back"] == "in half precision"
    state = load_checkpoint(dcgan)["state_dict"]
    rounded = {k: v.half().float() if v.dim() == 4 else v for k, v in state.items()}
    found = load_checkpoint(tmp_path / "half")["state_dict"]
    assert all(torch.equal(found[key], rounded[key]) for key in state)
    task = build_task("dcgan", SIZES["dcgan"])
    pictures = []
    for weights in (state, rounded):
        generator = task.build("generator")
        generator.load_state_dict(weights)
        subjects = subjects_of(task, task.deploy(generator), task.open_data(None, "train"))
        pictures.append([made for outputs in subjects[0].expected for made in outputs])
    assert half["checks"]["largest_difference"] == largest_difference(*pictures) > 0


class TestCommand:
    def test_prints_tables_and_says_where(
        self, dcgan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ):
        out = tmp_path / "out"
        assert main(["export", str(dcgan), "-o", str(out), "--formats", "onnx,compact"]) == 0
        said = capsys.readouterr().out
        assert {path.name for path in out.iterdir()} == {
            "export.json",
            "generator.onnx",
            "generator.compact.safetensors",
        }
        for text in ("largest difference", "bit for bit", "Bytes of the weights", "dense, gzip"):
            assert text in said
        assert said.count("a transposed convolution, for which there are no sparse kernels") == 3
        assert "0 of 3 layers can run on 2:4 sparse kernels" in said
        assert f"written to {out}, all of this and more in export.json" in said

    def test_writes_to_a_folder_called_exported(
        self, dcgan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.chdir(tmp_path)
        assert main(["export", str(dcgan), "--formats", "compact", "--half"]) == 0
        assert Path("exported/export.json").is_file()
        assert os.listdir() == ["exported"]

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (
                "{dcgan} --formats onnx,onyx",
                "--formats: expected some of onnx,safetensors,torch,compact, got",
            ),
            ("{dcgan} --formats", "expected one argument"),
            ("{dcgan} --formats onnx --half", "--half rounds compact weights, which --formats leaves out"),
            ("{dcgan} -o {full}", "expected a new or an empty folder to export to; name another one"),
            ("{dcgan} -a pix2pix", "is of a run of 'dcgan', expected 'pix2pix'"),
            ("{dcgan} --width 4", "these are the weights of another network"),
            ("{dcgan} --data {full}/none", "none"),
            ("gone.pth", "gone.pth: no such file"),
            ("{dcgan} --onnx", "unrecognized arguments: --onnx"),
        ],
    )
    def test_mistakes_get_one_line_and_leave_nothing(
        self, flags: str, message: str, dcgan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ):
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "notes.txt").write_text("mine")
        given = flags.format(dcgan=dcgan, full=tmp_path / "full").split()
        if "-o" not in given:
            given += ["-o", str(tmp_path / "out")]
        assert main(["export", *given]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert os.listdir(tmp_path) == ["full"]

    def test_without_its_packages_it_leaves_formats_out_or_says_what_to_install(
        self,
        dcgan: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ):
        real = importlib.util.find_spec
        hidden = ("onnxruntime", "safetensors")
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in hidden else real(name))
        install = "pip install 'sgc_distiller[export]'"
        assert main(["export", str(dcgan), "-o", str(tmp_path / "out"), "--formats", "torch,onnx"]) == 2
        expected = f"error: --formats onnx: needs what is not installed, onnxruntime; {install}\n"
        assert capsys.readouterr().err == expected
        assert main(["export", str(dcgan), "-o", str(tmp_path / "out")]) == 0
        said = capsys.readouterr().out
        assert "their packages are not installed: onnx, safetensors, compact; " + install in said
        assert {path.name for path in (tmp_path / "out").iterdir()} == {"export.json", "generator.pt2"}
        assert "Bytes of the weights" not in said
        with pytest.raises(UserError, match=r"--export-onnx needs onnx and onnxruntime.*sgc_distiller\[exp"):
            export_onnx(resolve({"weights_from": str(dcgan)}), tmp_path / "model.onnx")
        (tmp_path / "w.safetensors").write_bytes(b"")
        with pytest.raises(UserError, match=r"reading .*w.safetensors needs the package 'safetensors'"):
            load_checkpoint(tmp_path / "w.safetensors")
        with pytest.raises(UserError, match=r"expected exported weights; export them with --formats safet"):
            load_checkpoint(tmp_path / "out")

    def test_what_fails_its_check_is_not_written(
        self, dcgan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(export_subject, "TOLERANCE", -1.0)
        with pytest.raises(UserError, match="torch.export, generator differs from the original by 0 on a ba"):
            export(resolve({"weights_from": str(dcgan)}), tmp_path / "out", ["safetensors", "torch"])
        assert os.listdir(tmp_path) == []


class TestExportOnnx:
    """``--export-onnx`` of compress_classifier; its file in a run's folder is tested in `test_app`."""

    def test_two_networks_have_a_file_each(self, tmp_path: Path):
        source = checkpoint("cyclegan", tmp_path)
        found = export_onnx(resolve({"weights_from": str(source)}), tmp_path / "new" / "model.onnx")
        assert [Path(item["file"]).name for item in found] == ["model_G_A.onnx", "model_G_B.onnx"]
        assert all(item["largest_difference"] <= 1e-4 for item in found)
        for item in found:
            onnx.checker.check_model(item["file"])

    def test_does_not_go_with_a_schedule(self, dcgan: Path, capsys: pytest.CaptureFixture[str]):
        flags = f"digits --export-onnx --exp-load-weights-from {dcgan} --compress dcgan/recommended_75"
        assert compress_gan(flags.split()) == 2
        assert "--export-onnx writes a checkpoint's generator as it is" in capsys.readouterr().err

    def test_needs_a_checkpoint(self, capsys: pytest.CaptureFixture[str]):
        assert compress_gan(["digits", "--export-onnx"]) == 2
        assert "expected a checkpoint: --resume-from or --exp-load-weights-from" in capsys.readouterr().err


class CountsItsBatch(nn.Module):
    """Takes the number of samples for a constant of the program."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), 4)[: int(torch.tensor(len(x)))]


class Decides(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if float(x.sum()) > 0 else -x


class Two(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x + y, x - y


def subject(network: nn.Module, *batches: tuple[Tensor, ...]) -> Subject:
    expected = [network(*inputs) for inputs in batches]
    made = [[item] if isinstance(item, Tensor) else list(item) for item in expected]
    names = ("x", "y")[: len(batches[0])]
    outputs = ("pictures",) if len(made[0]) == 1 else ("output_0", "output_1")
    return Subject(Part("generator", "", network.eval()), names, outputs, list(batches), made)


class TestNetworksOfOnesOwn:
    def test_several_inputs_and_outputs(self):
        given = subject(Two(), *((torch.randn(n, 4), torch.randn(n, 4)) for n in (2, 1, 5)))
        content, difference = onnx_bytes(given, {})
        assert difference == 0.0
        assert [item.name for item in onnx.load_model_from_string(content).graph.output] == [
            "output_0",
            "output_1",
        ]
        assert torch_bytes(given)[1] == 0.0

    def test_one_that_counts_on_its_batch_is_refused(self):
        given = subject(CountsItsBatch(), *((torch.randn(n, 2, 2),) for n in (2, 1, 5)))
        with pytest.raises(UserError, match="ONNX, generator .* with 1 samples.*len.x. in the place of"):
            onnx_bytes(given, {})
        with pytest.raises(UserError, match=r"torch.export, generator: torch cannot export this network"):
            torch_bytes(given)

    def test_one_that_decides_by_values_is_refused(self):
        given = subject(Decides(), (torch.ones(2, 3),), (-torch.ones(1, 3),))
        with pytest.raises(UserError, match=r"ONNX, generator differs from the original by 3 on a batch of"):
            onnx_bytes(given, {})
        with pytest.raises(UserError, match=r"torch.export, generator: torch cannot export this network"):
            torch_bytes(given)

    def test_one_that_draws_at_random_is_refused(self):
        task = build_task("dcgan", SIZES["dcgan"])
        network = nn.Sequential(task.build("generator").eval(), nn.Dropout(0.5).train())
        with pytest.raises(UserError, match="task 'dcgan': generator makes something else of the same input"):
            subjects_of(task, network, task.open_data(None, "train"))

    def test_not_a_number_is_a_difference(self):
        nan = torch.tensor([float("nan")])
        assert largest_difference([nan], [nan]) == float("inf")
        assert largest_difference([torch.ones(2)], [torch.ones(1)]) == float("inf")
        assert largest_difference([torch.ones(2)], [torch.tensor([1.0, 1.5])]) == 0.5


@pytest.mark.parametrize("text", ["", "[]", '{"parts": 3}', '{"parts": [{"name": "a"}], "files": []}'])
def test_a_damaged_description_is_refused(text: str, tmp_path: Path):
    (tmp_path / "export.json").write_text(text)
    with pytest.raises(UserError, match=r"export.json: expected what `sgc export` wrote, got something else"):
        load_checkpoint(tmp_path)


def test_a_description_reaches_no_file_outside_its_folder(tmp_path: Path):
    (tmp_path / "in").mkdir()
    safetensors.torch.save_file({"w": torch.ones(1)}, tmp_path / "out.safetensors")
    record = {
        "parts": [{"name": "generator", "prefix": ""}],
        "files": [{"format": "safetensors", "part": "generator", "file": "../out.safetensors"}],
    }
    (tmp_path / "in" / "export.json").write_text(json.dumps(record))
    with pytest.raises(UserError):
        load_checkpoint(tmp_path / "in")
