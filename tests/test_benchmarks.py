"""The benchmarks run, and the arithmetic that they report is that of the paper's step; no time is judged."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def step_cost(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("step_cost")


@pytest.fixture
def mask_cost(step_cost: ModuleType) -> ModuleType:
    return importlib.import_module("mask_cost")


@pytest.mark.parametrize(
    ("name", "plain", "supervised"),
    [
        ("dcgan", 1.118, 1.424),
        ("pix2pix", 43.47, 55.91),
        ("cyclegan", 939.6, 1243.2),
        ("stargan", 30.28 - 9.96 / 5, 34.54 - 9.96 / 5),
        ("srgan", 44.66, 55.85),
    ],
)
def test_arithmetic_of_every_gans_step_is_the_least_there_is(
    name: str, plain: float, supervised: float, step_cost: ModuleType
) -> None:
    """Against GMAC a picture that were counted from the passes of each step, by another program.

    StarGAN's generator starts from the picture that the discriminator's last update was shown: one pass of
    9.96 GMAC in five batches less than the baseline, which makes it anew.
    """
    gan_steps = importlib.import_module("gan_steps")
    assert gan_steps.multiply_adds(name, supervised=False) / 1e9 == pytest.approx(plain, rel=1e-3)
    assert gan_steps.multiply_adds(name, supervised=True) / 1e9 == pytest.approx(supervised, rel=1e-3)


def test_arithmetic_of_a_dcgan_step_is_the_least_there_is(step_cost: ModuleType) -> None:
    """Against multiply-adds an image that were counted independently, by another program.

    A forward pass of the generator is 0.1025 GMAC; distillation takes four, two of them backwards.
    """
    expected = {
        "plain GAN step": 1.118,
        "AGP, plain GAN loss": 1.118,
        "supervised, as in the paper": 1.424,
        "supervised, recommended": 1.424,
        "distillation of pixels, no discriminator": 4 * 0.1025,
    }
    gmac = {case: step_cost.flops_per_image(case, 64, 64) / 2e9 for case in step_cost.CASES}
    assert gmac == pytest.approx(expected, rel=2e-3)
    assert gmac["supervised, as in the paper"] / gmac["plain GAN step"] == pytest.approx(1.27, abs=0.02)


def test_step_cost_writes_and_prints_every_case(
    step_cost: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], device: torch.device
) -> None:
    results = tmp_path / "new" / "results.json"
    sizes = ["--settings", "32x32", "--width", "4", "--batch-size", "2"]
    amount = ["--rounds", "2", "--steps", "1", "--warm-up", "1"]
    step_cost.main(["--device", str(device), *sizes, *amount, "--results", str(results)])
    found = json.loads(results.read_text())
    assert (found["rounds"], found["steps"]) == (2, 1)
    (setting,) = found["settings"].values()
    assert [row["case"] for row in setting["rows"]] == list(step_cost.CASES)
    for row in setting["rows"]:
        assert len(row["rounds"]["wall"]) == 2
        assert row["ratio"]["low"] <= row["ratio"]["median"] <= row["ratio"]["high"]
        assert (row["peak_bytes"] is not None) == (device.type == "cuda")
    assert setting["rows"][0]["ratio"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    printed = capsys.readouterr().out
    assert all(f"| {case} |" in printed for case in step_cost.CASES)


def test_ratios_compare_cases_within_a_round(step_cost: ModuleType) -> None:
    assert step_cost.ratio([2.0, 6.0, 4.0], [1.0, 2.0, 4.0]) == {"median": 2.0, "low": 1.0, "high": 3.0}


def test_mask_cost_measures_the_generators_of_stargan_and_pix2pix(mask_cost: ModuleType) -> None:
    assert sum(p.numel() for p in mask_cost.stargan().parameters()) == 8_430_528
    assert sum(torch.Size(shape).numel() for shape in mask_cost.STARGAN) == 8_423_104
    # pix2pix has 54,413,955 parameters: 3 of the output's bias, 9,856 of its norms, 13 of them
    norms = 2 * (128 + 256 + 512 * 4 + 512 * 4 + 256 + 128 + 64)
    assert sum(torch.Size(shape).numel() for shape in mask_cost.PIX2PIX) == 54_413_955 - 3 - norms


def test_mask_cost_compares_sides_that_end_alike(
    mask_cost: ModuleType, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    weight = torch.randn(4, 3, 2, device=device)
    assert torch.equal(mask_cost.topk_mask(weight, 7), mask_cost.keep_largest(weight, 7))
    monkeypatch.setattr(mask_cost, "STARGAN", [(3, 2, 2, 2)] * 18)
    ends = []
    for side in ("ours", "loops", "Distiller"):
        torch.manual_seed(0)
        model = mask_cost.stargan().to(device)
        if side == "loops":
            scheduler = mask_cost.Loops(model, mask_cost.ours(model).zeros_mask_dict)
        else:
            scheduler = mask_cost.ours(model) if side == "ours" else mask_cost.distillers(model)
        if scheduler is not None:
            way = mask_cost.hooks_of(scheduler, device)
            costs = [way(), way()]
            assert all(0 < cost.host <= cost.wall for cost in costs)
            ends.append([parameter.detach() for parameter in model.parameters()])
    for end in ends[1:]:
        assert all(torch.equal(a, b) for a, b in zip(ends[0], end, strict=True))
    assert int((ends[0][0] == 0).sum()) == 12


def test_mask_cost_writes_and_prints_every_row(
    mask_cost: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    device: torch.device,
) -> None:
    monkeypatch.setattr(mask_cost, "STARGAN", [(3, 2, 2, 2)] * 18)
    monkeypatch.setattr(mask_cost, "PIX2PIX", [(3, 2, 4, 4)] * 2)
    results = tmp_path / "results.json"
    mask_cost.main(["--device", str(device), "--rounds", "2", "--steps", "2", "--results", str(results)])
    rows = json.loads(results.read_text())["rows"]
    assert list(rows) == [
        "hooks of a step",
        "refresh of dense weights, 50%",
        "refresh of dense weights, 90%",
        "refresh of pruned weights, 50%",
        "refresh of pruned weights, 90%",
    ]
    printed = capsys.readouterr().out
    for name, row in rows.items():
        assert f"| {name}: " in printed
        for values in row["times_faster"].values():
            assert values["low"] <= values["median"] <= values["high"]


def test_thinned_generators_do_the_work_of_those_built_at_that_width(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    thinned_speed = importlib.import_module("thinned_speed")
    sizes = {
        "dcgan": {"image_size": 32, "width": 8},
        "stargan": {"image_size": 32, "width": 8, "blocks": 1, "attributes": ["Red", "Green"]},
    }
    monkeypatch.setattr(thinned_speed, "SIZES", sizes)
    file = tmp_path / "found.json"
    thinned_speed.main(["--gans", *sizes, "--shares", "0.5", "--seconds", "0.01", "--results", str(file)])
    records = json.loads(file.read_text())["records"]
    work = {(item["gan"], item["network"]): item["macs"] for item in records}
    for gan in sizes:
        assert work[gan, "dense"] == work[gan, "masked"] > 2 * work[gan, "thinned"]
        assert work[gan, "thinned"] == work[gan, "built at that width"]
    assert all(item["times_faster_than_dense"] == [1.0] * 3 for item in records if item["network"] == "dense")
    assert capsys.readouterr().out.count("\n") == 2 + len(records)
