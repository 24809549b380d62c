"""Summaries: every structure counted by hand, computation of all networks, tables that fold nothing."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
import torch
from gans import GANS, samples
from rich.console import Console as RichConsole
from tiny import picture_folder
from torch import nn

from sgc_distiller.app import compress_gan, main
from sgc_distiller.compute import multiply_adds
from sgc_distiller.deployment import example_inputs
from sgc_distiller.errors import UserError
from sgc_distiller.settings import resolve
from sgc_distiller.studies.tables import Table
from sgc_distiller.summaries import (
    compute_rows,
    compute_table,
    inspected,
    module_rows,
    rows_as_csv,
    sparsity_rows,
    sparsity_table_of,
    summary_of,
)
from sgc_distiller.terminal import Terminal


class Zeros(nn.Module):
    """Layers in which chosen structures are zero as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(4, 8, 3)
        self.up = nn.ConvTranspose2d(4, 8, 3)
        self.grouped = nn.ConvTranspose2d(4, 8, 3, groups=2)
        self.line = nn.Linear(5, 10)
        self.norm = nn.BatchNorm2d(8)
        self.code = nn.Parameter(torch.ones(1, 2, 3, 4))
        for parameter in self.parameters():
            parameter.data.fill_(1.0)
        self.plain.weight.data[:2] = 0  # two of eight outputs
        self.up.weight.data[:, :2] = 0  # the same, stored the other way round
        self.up.weight.data[3] = 0  # one of four inputs
        self.line.weight.data[:, 1] = 0
        self.line.weight.data[7] = 0
        self.code.data[0, 0, 0] = 0


def test_every_structure_is_counted_by_hand():
    rows = {row["name"]: row for row in sparsity_rows(Zeros())}
    assert list(rows) == ["code", "plain.weight", "up.weight", "grouped.weight", "line.weight"]
    plain, up, line = rows["plain.weight"], rows["up.weight"], rows["line.weight"]
    assert (plain["filters"], plain["channels"], plain["2-D"], plain["3-D"]) == (0.25, 0.0, 0.25, 0.25)
    assert (up["filters"], up["channels"]) == (0.25, 0.25)  # true outputs and inputs
    assert up["3-D"] == 0.25  # Distiller's filter, an input here: one of four
    assert up["2-D"] == up["sparsity"] == 1 - (6 * 3) / (8 * 4)
    assert (line["rows"], line["cols"], line["filters"], line["channels"]) == (0.1, 0.2, 0.1, 0.2)
    assert line["2-D"] is line["3-D"] is None
    assert rows["grouped.weight"]["filters"] is None
    assert rows["grouped.weight"]["3-D"] == 0.0
    assert rows["code"]["filters"] is rows["code"]["channels"] is None
    assert rows["code"]["sparsity"] == pytest.approx(4 / 24)
    assert plain["nonzero"] == 6 * 4 * 9
    assert plain["mean"] == pytest.approx(0.75)
    assert plain["std"] == pytest.approx(float(Zeros().plain.weight.detach().std()))


def test_three_d_is_the_stored_axis_and_filters_are_true_outputs():
    layer = nn.ConvTranspose2d(4, 8, 3, bias=False)
    layer.weight.data[:1] = 0
    (row,) = sparsity_rows(layer)
    assert (row["3-D"], row["channels"], row["filters"]) == (0.25, 0.25, 0.0)


def test_the_table_adds_up_and_leaves_out_columns_that_say_nothing():
    table = sparsity_table_of(sparsity_rows(Zeros()), "here")
    assert "rows, %" in table.columns
    total = table.rows[-1]
    dense = 24 + 288 + 288 + 144 + 50
    left = 20 + 216 + 162 + 144 + 9 * 4
    assert total[:4] == ("all", "", f"{dense:,}", f"{left:,}")
    assert f"({left:,} of {dense:,} weights are not zero)" in table.notes[0]
    convolutions = sparsity_table_of(sparsity_rows(nn.Conv2d(1, 2, 3)), "here")
    assert "rows, %" not in convolutions.columns
    assert convolutions.rows[0][-4:] == ("0", *convolutions.rows[0][-3:])
    empty = sparsity_table_of(sparsity_rows(nn.ReLU()), "here")
    assert empty.rows == [("all", "", "0", "0", "0", "", "", "")]


def test_computation_names_the_layers_of_both_networks_and_counts_what_is_left():
    task = GANS["cyclegan"]()
    generator = task.build("generator")
    layers = dict(generator.named_modules())
    half = next(name for name, m in layers.items() if isinstance(m, nn.Conv2d) and m.out_channels > 1)
    layers[half].weight.data[::2] = 0
    rows = compute_rows(task, generator, samples(task))
    assert {row["name"].partition(".")[0] for row in rows} == {"G_A", "G_B"}
    assert [row["name"] for row in rows if row["macs_nonzero"] * 2 == row["macs"]] == [half]
    assert all(row["input_shape"][0] == 1 for row in rows)
    network = task.deploy(generator)
    inputs = example_inputs(task, network, samples(task), 1)
    by_hand = sum(call.macs for name in ("G_A", "G_B") for call in multiply_adds(network[name], inputs[name]))
    table = compute_table(rows, "here")
    assert f"Total MACs for one sample: {by_hand:,}; " in table.notes[0]
    assert table.rows[-1][6] == f"{by_hand:,}"
    assert "biases" in table.notes[1]


def test_a_layer_that_is_called_twice_has_its_weights_once():
    row = {"name": "a", "kind": "Linear", "kernel": [], "input_shape": [1, 2], "output_shape": [1, 2]}
    counts = {
        "stride": [],
        "padding": [],
        "groups": 1,
        "weights": 4,
        "nonzero": 4,
        "macs": 4,
        "macs_nonzero": 4,
    }
    table = compute_table([{**row, **counts}] * 2, "here")
    assert table.rows[-1][5:] == ("4", "8", "8", "100")
    assert "after pruning 8 (all)" in table.notes[0]
    gone = compute_table([{**row, **counts, "macs_nonzero": 0}], "here")
    assert "after pruning 0 (none is left)" in gone.notes[0]
    some = compute_table([{**row, **counts, "macs_nonzero": 1}], "here")
    assert "after pruning 1 (4.00 times fewer)" in some.notes[0]


def test_attributes_are_short():
    rows = compute_rows(GANS["dcgan"](), GANS["dcgan"]().build("generator"), samples(GANS["dcgan"]()))
    table = compute_table(rows, "here")
    assert table.rows[0][2] == "k=4 s=1 p=0"
    odd = {**rows[0], "kernel": [3, 5], "padding": "same", "groups": 2}
    assert compute_table([odd], "here").rows[0][2] == "k=3x5 s=1 p=same g=2"


def test_modules_are_the_leaves():
    assert module_rows(Zeros())[-2:] == [
        {"name": "line", "kind": "Linear"},
        {"name": "norm", "kind": "BatchNorm2d"},
    ]
    assert module_rows(nn.ReLU()) == [{"name": "", "kind": "ReLU"}]


def test_csv_holds_plain_numbers():
    rows = sparsity_rows(Zeros())
    read = list(csv.DictReader(io.StringIO(rows_as_csv(rows))))
    assert [row["name"] for row in read] == [row["name"] for row in rows]
    assert [float(row["sparsity"]) for row in read] == [row["sparsity"] for row in rows]
    assert read[1]["shape"] == "8x4x3x3"
    assert read[-1]["3-D"] == ""
    assert rows_as_csv([]) == "\n"


def test_a_wide_table_folds_nothing():
    written = io.StringIO()
    terminal = Terminal(RichConsole(file=written, width=40))
    terminal.wide(Table("T", ("a", "b"), [("x" * 60, "[7]")], ["a note"]), texts=1)
    lines = written.getvalue().splitlines()
    assert any("x" * 60 in line and "[7]" in line for line in lines)
    assert lines[-1] == "a note"


def test_an_untrained_generator_can_be_looked_into():
    options = resolve({"task": "dcgan", "task_options": {"image_size": 16, "width": 4}, "device": "cpu"})
    run, generator, source = inspected(options)
    assert source == "dcgan, untrained"
    rows, table, texts = summary_of("compute", run, generator, source)
    assert len(rows) == 3
    assert texts == 5
    assert table.title == "Computation of dcgan, untrained, one sample"
    assert summary_of("modules", run, generator, source)[2] == 2


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("summaries")
    picture_folder(folder / "pictures")
    small = "-b 8 --image-size 16 --width 4 --epochs 1 --steps-per-epoch 1 --epoch-images 0 --test-images 16"
    flags = f"--data {folder / 'pictures'} --extractor digits --cpu {small} -o {folder} -n dense"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sgc_distiller.session.write_report", lambda path: path)
        assert main(["train", "dcgan", *flags.split()]) == 0
    return folder / "dense"


class TestCommand:
    """The commands ``sgc summary`` and ``compress_gan.py --summary``."""

    def test_sparsity_is_what_is_printed_by_default(self, dense: Path, capsys: pytest.CaptureFixture[str]):
        assert main(["summary", str(dense), "--cpu"]) == 0
        shown = capsys.readouterr().out
        assert f"Sparsity of {dense}" in shown
        assert "Total sparsity: 0 %" in shown
        assert "main.0.weight" in shown

    def test_several_kinds_in_their_order(self, dense: Path, capsys: pytest.CaptureFixture[str]):
        assert main(f"summary {dense} --kind modules --kind model --kind compute --cpu".split()) == 0
        shown = capsys.readouterr().out
        places = [shown.index(text) for text in ("Modules of", "(main): Sequential(", "Total MACs")]
        assert places == sorted(places)
        assert "Total sparsity" not in shown

    def test_csv(self, dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        file = tmp_path / "deep" / "compute.csv"
        assert main(f"summary {dense} --kind compute --csv {file} --cpu".split()) == 0
        rows = list(csv.DictReader(io.StringIO(file.read_text())))
        assert [row["kind"] for row in rows] == ["ConvTranspose2d"] * 3
        # z of 100 by 8 maps at 1x1; 8 by 4 at 4x4; 4 by 1 at 8x8; each by 4x4 kernels
        assert [int(row["macs"]) for row in rows] == [100 * 8 * 16, 16 * 8 * 4 * 16, 64 * 4 * 1 * 16]
        assert f"csv: {file}" in capsys.readouterr().out

    @pytest.mark.parametrize("kinds", ["--kind model", "--kind compute --kind sparsity"])
    def test_csv_wants_one_table(self, kinds: str, dense: Path, capsys: pytest.CaptureFixture[str]):
        assert main(f"summary {dense} {kinds} --csv x.csv --cpu".split()) == 2
        error = capsys.readouterr().err
        assert (
            "error: --csv x.csv: expected one kind that is a table (sparsity, compute, modules), got" in error
        )

    def test_of_compress_gan(self, dense: Path, capsys: pytest.CaptureFixture[str]):
        start = f"{dense.parent / 'pictures'} -a dcgan --cpu"
        assert compress_gan(f"{start} --summary compute --resume-from {dense} -n ignored".split()) == 0
        assert "Total MACs" in capsys.readouterr().out
        size = "--image-size 16 --width 4"
        assert compress_gan(f"{start} {size} --summary compute --summary sparsity".split()) == 0
        shown = capsys.readouterr().out
        assert "Computation of dcgan, untrained" in shown
        assert "Total sparsity" in shown
        assert not (dense / "ignored").exists()

    def test_mistakes(self, dense: Path, capsys: pytest.CaptureFixture[str]):
        assert main(["summary", str(dense), "--kind", "png", "--cpu"]) == 2
        assert "invalid choice: 'png'" in capsys.readouterr().err
        start = f"{dense.parent / 'pictures'} -a dcgan --cpu --exp-load-weights-from {dense}"
        assert compress_gan(f"{start} --summary sparsity --compress dcgan/recommended_75".split()) == 2
        assert (
            "error: --summary looks into a generator as it is; leave --compress out\n"
            in capsys.readouterr().err
        )
        assert main(["summary", "nowhere", "--cpu"]) == 2
        assert "nowhere: no such file" in capsys.readouterr().err


def test_the_task_says_when_a_network_is_not_called():
    class Silent(type(GANS["dcgan"]())):  # type: ignore[misc]
        def generate(self, generator: nn.Module, batch: object) -> dict[str, torch.Tensor]:
            return {"fake": torch.zeros(1, 1, 16, 16)}

    task = Silent(16, width=4)
    with pytest.raises(UserError, match=r"expected generate\(\) to call 'generator', which it did not"):
        compute_rows(task, task.build("generator"), samples(GANS["dcgan"]()))
