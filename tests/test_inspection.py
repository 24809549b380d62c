"""What a schedule does in each epoch, told before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from sgc_distiller.errors import UserError
from sgc_distiller.inspection import inspect_schedule, plot_outline, write_plain
from sgc_distiller.schedule import read_schedule
from sgc_distiller.schedule_plan import decided_late

SCHEDULE = """
version: 1
pruners:
  fine:
    {class: AutomatedGradualPruner, initial_sparsity: 0.1, final_sparsity: 0.5, weights: ['main.*.weight']}
  small: {class: MagnitudeParameterPruner, thresholds: {'*': -1, main.0.weight: 0.01}}
  levels: {class: SparsityLevelParameterPruner, levels: {main.0.weight: 0.25, main.3.weight: 0.75}}
lr_schedulers:
  decay: {class: StepLR, step_size: 2, gamma: 0.5}
policies:
  - lr_scheduler: {instance_name: decay}
    starting_epoch: 0
    ending_epoch: 6
    frequency: 1
  - pruner: {instance_name: fine}
    starting_epoch: 1
    ending_epoch: 4
    frequency: 1
  - pruner: {instance_name: small}
    epochs: [2]
  - pruner: {instance_name: levels}
    epochs: [5]
"""
GAN = """
gan:
  lr: 0.01
  output_layer: dense
  discriminator:
    schedule:
      pruners:
        judge: {class: NMPruner, n: 2, m: 4, weights: [main.2.weight]}
      policies:
        - pruner: {instance_name: judge}
          epochs: [3]
"""
SMALL = {"image_size": 16, "width": 4}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "schedule.yaml"
    path.write_text(SCHEDULE)
    return path


def test_tells_targets_rates_and_policies_of_each_epoch(file: Path):
    outline = inspect_schedule(file)
    assert outline.epochs == 6
    # by hand: 0.5 - 0.4 * (1 - k / 2)^3 for k = 0, 1, 2
    fine = [0.0, 0.1, 0.45, 0.5, 0.5, 0.5]
    assert [high for _, high in outline.groups["fine"]] == pytest.approx(fine)
    assert outline.groups["small"] == [(0.0, 0.0)] * 2 + [None] * 4
    assert outline.groups["levels"] == [(0.0, 0.0)] * 5 + [(0.25, 0.75)]
    assert outline.rates == pytest.approx([1.0, 1.0, 0.5, 0.5, 0.25, 0.25])
    assert outline.is_relative
    assert outline.overall == []
    assert outline.active[0] == ["decay"]
    assert outline.active[2] == ["fine", "small", "decay"]


def test_a_task_tells_the_rate_and_the_share_of_all_weights(file: Path):
    known = SCHEDULE.replace("  - pruner: {instance_name: small}\n    epochs: [2]\n", "")
    file.write_text(known + GAN)
    outline = inspect_schedule(file, "dcgan", SMALL)
    assert outline.rates == pytest.approx([0.01, 0.01, 0.005, 0.005, 0.0025, 0.0025])
    assert not outline.is_relative
    sizes = {"main.0": 100 * 8 * 16, "main.3": 8 * 4 * 16, "main.6": 4 * 16}
    pruned = 0.5 * (sizes["main.0"] + sizes["main.3"])
    assert outline.overall[3] == pytest.approx(pruned / sum(sizes.values()))
    judge = outline.discriminator
    assert judge is not None
    assert judge.groups == {"judge": [(0.0, 0.0)] * 3 + [(0.5, 0.5)] * 3}


def test_a_rate_that_follows_a_metric_is_not_foretold(file: Path):
    file.write_text(SCHEDULE.replace("StepLR, step_size: 2, gamma: 0.5", "ReduceLROnPlateau"))
    assert inspect_schedule(file).rates == [1.0, *[None] * 5]


def test_names_are_checked_against_the_task(file: Path):
    file.write_text(SCHEDULE.replace("main.3.weight: 0.75", "main.2.weight: 0.75"))
    inspect_schedule(file)
    with pytest.raises(
        UserError, match=r"schedule.yaml:7: pruners.levels.levels.main.2.weight: Expected the name"
    ):
        inspect_schedule(file, "dcgan", SMALL)


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_is_drawn(file: Path, tmp_path: Path, suffix: str):
    target = tmp_path / "plots" / f"schedule.{suffix}"
    plot_outline(inspect_schedule(file), target)
    if suffix == "png":
        assert len(set(Image.open(target).convert("L").tobytes())) > 20
    else:
        text = target.read_text()
        assert all(
            word in text
            for word in ("fine", "levels", "sparsity asked", "rate (relative)", "active", "decay")
        )


def test_formats_that_nobody_knows_are_refused(file: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"plot.xyz: expected a file name that ends in one of .*\.png"):
        plot_outline(inspect_schedule(file), tmp_path / "plot.xyz")


def test_plain_files_are_written_for_both_networks(file: Path, tmp_path: Path):
    file.write_text(SCHEDULE + GAN)
    files = write_plain(inspect_schedule(file, "dcgan", SMALL), tmp_path / "out" / "plain.yaml")
    assert [item.name for item in files] == ["plain.yaml", "plain.discriminator.yaml"]
    generator, judge = (yaml.safe_load(item.read_text()) for item in files)
    assert generator["pruners"]["fine"]["weights"] == ["main.0.weight", "main.3.weight"]
    assert judge["pruners"] == {"judge": {"class": "NMPruner", "n": 2, "m": 4, "weights": ["main.2.weight"]}}


@pytest.mark.parametrize("spelling", ["itself", "around", "link", "hard link", "discriminator"])
def test_no_plain_file_takes_the_place_of_its_schedule(file: Path, tmp_path: Path, spelling: str):
    file.write_text(SCHEDULE + GAN)
    source = file
    targets = {
        "itself": file,
        "around": tmp_path / "other" / ".." / "schedule.yaml",
        "link": tmp_path / "link.yaml",
        "hard link": tmp_path / "hard.yaml",
        "discriminator": tmp_path / "own.yaml",
    }
    (tmp_path / "other").mkdir()
    targets["link"].symlink_to(file)
    targets["hard link"].hardlink_to(file)
    if spelling == "discriminator":
        source = file.rename(tmp_path / "own.discriminator.yaml")
    before = source.read_bytes()
    outline = inspect_schedule(source, "dcgan", SMALL)
    with pytest.raises(UserError, match="expected another file for the plain schedule, got the schedule"):
        write_plain(outline, targets[spelling])
    assert source.read_bytes() == before
    assert not (tmp_path / "own.yaml").exists()
    assert write_plain(outline, tmp_path / "plain.yaml")[0].is_file()


def test_plain_files_need_a_model(file: Path, tmp_path: Path):
    with pytest.raises(UserError, match="expected a task whose parameters a plain schedule names in full"):
        write_plain(inspect_schedule(file), tmp_path / "plain.yaml")
    assert not (tmp_path / "plain.yaml").exists()


LATE = """
version: 1
pruners:
  late: {CLASS, weights: [main.0.weight, main.3.weight]}
policies:
  - pruner: {instance_name: late}
    epochs: [0]
"""
GLOBAL = "class: L1RankedStructureParameterPruner, group_type: Elements, desired_sparsity: 0.5, scope: global"
DRAWN = "class: RandomLevelStructureParameterPruner, group_type: Filters, sparsity_range: [0.2, 0.5]"
BELOW = "class: BaiduRNNPruner, q: 0.1, ramp_epoch_offset: 0, ramp_slope_mult: 1"


@pytest.mark.parametrize(
    ("kind", "asked", "overall"),
    [(GLOBAL, (0.5, 0.5), True), (DRAWN, (0.2, 0.5), False), (BELOW, None, False)],
)
def test_what_only_the_run_tells_is_not_foretold(file: Path, kind: str, asked: Any, overall: bool):
    text = LATE.replace("CLASS", kind)
    if kind == BELOW:
        text = text.replace("epochs: [0]", "starting_epoch: 0\n    ending_epoch: 2\n    frequency: 1")
    file.write_text(text)
    outline = inspect_schedule(file, "dcgan", SMALL)
    assert outline.groups["late"][0] == asked
    assert bool(outline.overall) == overall
    schedule = read_schedule(file)
    assert decided_late(schedule.pruners()) == ["late"]
    assert decided_late(read_schedule("schedules/dcgan/agp_50.yaml").pruners()) == []
