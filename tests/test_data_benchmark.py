"""The benchmark of loading runs, writes what it prints, and asks for as much as the baselines compute."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def loading(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("loading")


def test_it_measures_files_and_built_in_sets(
    loading: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.random.randint(0, 256, (20, 40, 3), dtype=np.uint8)
    for index in range(4):
        (tmp_path / "train").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "train" / f"{index}.png")
    amount = ["--size", "16", "--batches", "2", "--rounds", "3", "--warm-up", "1", "--workers", "0"]
    results = tmp_path / "new" / "results.json"
    folder = ["--pairs", str(tmp_path), "--kinds", "attributes", "pairs"]
    limit = loading.data.MEMORY_LIMIT
    loading.main([*folder, *amount, "--results", str(results)])
    assert limit == loading.data.MEMORY_LIMIT
    rows = json.loads(results.read_text())["rows"]
    found = [(row["kind"], row["source"], row["samples"], row["workers"]) for row in rows]
    files = ("pairs", tmp_path.name, 4)
    assert found == [("attributes", "built in", 1437, None), (*files, None), (*files, 0)]
    for row in rows:
        batch = loading.KINDS[row["kind"]].batch_size
        assert row["speed"] == pytest.approx(batch / (row["milliseconds"] / 1e3))
    printed = capsys.readouterr().out
    assert printed.count("once, in memory") == 2
    assert printed.count("as needed, 0 workers") == 1


def test_needs_are_those_of_the_baselines(loading: ModuleType) -> None:
    """At 30 TFLOPS: 43.47 GMAC a pair are 86.94 GFLOP, of which a second holds 345."""
    options = loading.argparse.Namespace(tflops=30.0, warm_up=0, rounds=1, batches=1)
    row = loading.measure("pairs", None, 32, None, options)
    assert row.needed == pytest.approx(345.06, abs=0.01)
    assert loading.measure("images", None, 8, 0, options) is None  # the digits are always in memory
