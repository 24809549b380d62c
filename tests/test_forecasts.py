"""What a schedule asks for is said where it is known in advance, and nowhere else."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from sgc_distiller import session
from sgc_distiller.app import main
from sgc_distiller.inspection import inspect_schedule, plot_outline
from sgc_distiller.report import write_report
from sgc_distiller.schedule import Schedule
from tests.test_dependent_masks import network
from tests.tiny import picture_folder

AGP = {
    "class": "AutomatedGradualPruner",
    "initial_sparsity": 0.25,
    "final_sparsity": 0.75,
    "weights": ["0.weight"],
}
RANKED = {"group_type": "Filters", "weights": ["0.weight", "3.weight"]}
LEVEL = "RandomLevelStructureParameterPruner"


class OwnPruner:
    """A pruner of a user's own, of which nothing is known."""

    def __init__(self, name: str) -> None:
        self.name = name

    def set_param_mask(self, param: Any, param_name: str, zeros_mask_dict: Any, meta: Any) -> None:
        zeros_mask_dict[param_name].mask = (param.detach() > 0).float()


def plan(pruner: dict[str, Any], overall: bool = False, **more: Any) -> list[dict[str, float | None]]:
    policy = {"pruner": {"instance_name": "p"}, "starting_epoch": 1, "ending_epoch": 3, "frequency": 1}
    given = {"pruners": {"p": pruner}, "policies": [policy, *more.pop("policies", [])], **more}
    return Schedule.from_dict(given).sparsity_plan(network(), 4, overall)


@pytest.mark.parametrize(
    ("pruner", "late"),
    [
        ({"class": "MagnitudeParameterPruner", "thresholds": {"0.weight": 0.1, "*": -1}}, ["0.weight"]),
        ({"class": "SensitivityPruner", "sensitivities": {"3.weight": 0.1}}, ["3.weight"]),
        ({"class": LEVEL, **RANKED, "sparsity_range": [0.2, 0.5]}, ["0.weight", "3.weight"]),
        (
            {
                "class": "L1RankedStructureParameterPruner",
                **RANKED,
                "desired_sparsity": 0.5,
                "scope": "global",
            },
            ["0.weight", "3.weight"],
        ),
        (
            {
                "class": "StructureParameterPruner",
                "reg_regims": {"3.weight": [0.1, "2D"]},
                "threshold_criteria": "Max",
            },
            ["3.weight"],
        ),
        ({"class": f"{__name__}.OwnPruner"}, list(dict(network().named_parameters()))),
    ],
    ids=["threshold", "spread", "by chance", "global", "structures", "own"],
)
def test_what_only_the_run_tells_is_none(pruner: dict[str, Any], late: list[str]):
    assert plan(pruner) == [dict.fromkeys(late, 0.0), *[dict.fromkeys(late)] * 3]


def test_what_is_drawn_from_nothing_is_known():
    found = plan({"class": LEVEL, **RANKED, "sparsity_range": [0.5, 0.5]})
    assert found[1] == {"0.weight": 0.5, "3.weight": 0.5}


def test_a_global_budget_is_known_of_all_weights_together():
    ranked = {"class": "L1RankedStructureParameterPruner", **RANKED, "desired_sparsity": 0.5}
    assert plan({**ranked, "scope": "global"}, overall=True) == plan(ranked)
    given = {
        "pruners": {"p": {**ranked, "scope": "global"}},
        "policies": [{"pruner": {"instance_name": "p"}, "epochs": [0]}],
    }
    sizes = {name: param.numel() for name, param in network().named_parameters()}
    pruned = 0.5 * (sizes["0.weight"] + sizes["3.weight"])
    expected = pruned / (sizes["0.weight"] + sizes["3.weight"] + sizes["5.weight"])
    assert Schedule.from_dict(given).asked_overall(network()) == [pytest.approx(expected)]


@pytest.mark.parametrize("keep", [False, True])
def test_a_regularizers_threshold_decides_for_its_weights(keep: bool):
    lasso = {"class": "L1Regularizer", "reg_regims": {"0.weight": 0.1}, "threshold_criteria": "Max"}
    policy = {"regularizer": {"instance_name": "r", "args": {"keep_mask": keep}}, "epochs": [2]}
    found = plan({**AGP, "weights": ["0.weight", "3.weight"]}, regularizers={"r": lasso}, policies=[policy])
    # 0.75 - 0.5 * (1 - e)^3 for e = 0, 1; in epoch 2 and, if kept, afterwards it may be more
    assert [row["0.weight"] for row in found] == [0.0, 0.25, None, None if keep else 0.75]
    assert [row["3.weight"] for row in found] == [0.0, 0.25, 0.75, 0.75]


SCHEDULE = """
version: 1
pruners:
  agp: {class: AutomatedGradualPruner, initial_sparsity: 0.25, final_sparsity: 0.5, weights: [main.0.weight]}
  small: {class: MagnitudeParameterPruner, thresholds: {main.3.weight: 0.01, '*': -1}}
policies:
  - {pruner: {instance_name: agp}, starting_epoch: 0, ending_epoch: 2, frequency: 1}
  - {pruner: {instance_name: small}, epochs: [1]}
gan: {steps_per_epoch: 1}
"""
SIZES = "--data pictures --image-size 16 --width 4 -b 8 --extractor digits --cpu"


@pytest.fixture
def started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[Any, Path]:
    """A function that runs ``sgc`` in a folder with pictures and a schedule and returns what it prints."""
    monkeypatch.chdir(tmp_path)
    picture_folder(tmp_path / "pictures")
    (tmp_path / "late.yaml").write_text(SCHEDULE)

    def run(flags: str) -> str:
        assert main(shlex.split(flags)) == 0
        return capsys.readouterr().out

    return run, tmp_path


def test_dry_runs_name_what_they_do_not_know(started: Any):
    run, _ = started
    printed = run(f"compress dcgan --compress late.yaml {SIZES} --dry-run")
    assert "decided by the weights, so not shown for each layer: small" in printed
    table = [line.split("│")[1:-1] for line in printed.splitlines() if line.startswith("# │")]
    found = [[cell.strip() for cell in row] for row in table]
    assert ["0", "25 %", "0 %", "0 %"] in found
    assert ["1", "50 %", "by the weights", "0 %"] in found


def test_runs_show_a_dash_and_call_nothing_dense_that_a_threshold_prunes(
    started: Any, monkeypatch: pytest.MonkeyPatch
):
    run, folder = started
    monkeypatch.setattr(session, "write_report", lambda path: None)
    small = f"{SIZES} --epoch-images 0 --test-images 16 -o ."
    run(f"train dcgan {small} --epochs 1 --steps-per-epoch 1 -n dense")
    printed = run(f"compress dcgan --compress late.yaml {small} --exp-load-weights-from dense -n sparse")
    assert "left dense by the schedule: main.6.weight, " in printed
    assert "main.3.weight" not in printed
    lines = [line.split() for line in printed.splitlines()]
    (first,) = [line for line in lines if line[:2] == ["0", "1"]]
    (second,) = [line for line in lines if line[:2] == ["1", "2"]]
    assert "–" not in first[4:6]
    assert second[4] == "–"
    records = [json.loads(line) for line in (folder / "sparse" / "metrics.jsonl").read_text().splitlines()]
    asked = [record["sparsity_asked"] for record in records if record["kind"] == "epoch"]
    assert asked[0] > 0.0
    assert asked[1] is None
    (result,) = [record for record in records if record["kind"] == "result" and record["method"] == "late"]
    assert result["sparsity_asked"] is None
    layers = [record for record in records if record["kind"] == "layers"][-1]["layers"]
    found = {row["name"]: row["asked"] for row in layers}
    assert [found[f"main.{layer}.weight"] for layer in (0, 3, 6)] == [0.5, None, 0.0]
    page = write_report(folder / "sparse").read_text()
    assert "<td>–</td>" in page


DRAWN = """
version: 1
pruners:
  drawn:
    {class: RandomLevelStructureParameterPruner, group_type: Filters, sparsity_range: [0.2, 0.6],
      weights: [a]}
  known: {class: SparsityLevelParameterPruner, levels: {a: 0.4}}
policies:
  - {pruner: {instance_name: drawn}, epochs: [1]}
  - {pruner: {instance_name: known}, epochs: [2]}
gan:
  epochs: 3
  discriminator:
    schedule:
      pruners:
        judge: {class: SparsityLevelParameterPruner, levels: {b: 0.4}}
      policies:
        - {pruner: {instance_name: judge}, epochs: [1]}
"""


def test_plots_draw_bands_and_the_policies_of_both_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "drawn.yaml"
    file.write_text(DRAWN)
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    plot_outline(inspect_schedule(file), tmp_path / "plot.png")
    above, _, bars = figures[0].axes
    heights = {line.get_label(): list(line.get_ydata()) for line in above.lines}
    assert heights["drawn"][0] == 0.0
    assert all(value != value for value in heights["drawn"][1:])  # no line where it is not known
    assert heights["known"] == [0.0, 0.0, 40.0, 40.0]
    corners = above.collections[0].get_paths()[0].vertices[:, 1]
    assert (corners.min(), corners.max()) == (0.0, 60.0)
    assert 20.0 in corners
    labels = [text.get_text() for text in bars.get_yticklabels()]
    assert labels == ["drawn", "known", "discriminator: judge"]
