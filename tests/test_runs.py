"""A run folder keeps what was written, whole, also when a run is cut off and continued."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgc_distiller import runs
from sgc_distiller.errors import UserError
from sgc_distiller.resources import cache_folder
from sgc_distiller.runs import RunFolder, atomic_file, atomic_write, describe_environment


def step(number: int, **terms: float) -> dict:
    return {"kind": "step", "epoch": 0, "step": number, "terms": terms, "lr": 0.1, "seconds": 0.5}


def test_records_come_back_as_they_were_logged(tmp_path):
    with RunFolder(tmp_path / "a" / "b") as run:
        run.log(step(1, loss=0.25))
        run.log({"kind": "epoch", "epoch": 0, "step": 1, "sparsity": 0.5, "metrics": []})
        assert run.records() == [
            step(1, loss=0.25),
            {"kind": "epoch", "epoch": 0, "step": 1, "sparsity": 0.5, "metrics": []},
        ]
        assert [item["kind"] for item in run.records("epoch")] == ["epoch"]


def test_each_record_is_one_line_of_strict_json(tmp_path):
    with RunFolder(tmp_path) as run:
        run.log(step(1, nan=math.nan, inf=math.inf, scalar=np.float32(0.5), tensor=torch.tensor(2.0)))
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    terms = json.loads(line, parse_constant=refuse)["terms"]
    assert terms == {"nan": None, "inf": None, "scalar": 0.5, "tensor": 2.0}


def test_an_unknown_kind_is_a_bug(tmp_path):
    with RunFolder(tmp_path) as run, pytest.raises(AssertionError, match="expected a kind out of"):
        run.log({"kind": "epochs"})


@given(steps=st.lists(st.integers(0, 30), max_size=12), last=st.integers(0, 30))
@settings(max_examples=25, deadline=None)
def test_rewind_keeps_exactly_the_records_up_to_a_step(tmp_path_factory, steps, last):
    run = RunFolder(tmp_path_factory.mktemp("run"))
    run.metrics_file.write_text("".join(json.dumps(step(number)) + "\n" for number in steps))
    run.rewind(last)
    assert [item["step"] for item in run.records()] == [number for number in steps if number <= last]


def test_rewind_counts_a_result_by_its_steps(tmp_path):
    with RunFolder(tmp_path) as run:
        run.log({"kind": "result", "method": "dense", "steps": 0})
        run.log({"kind": "result", "method": "pruned", "steps": 40})
        run.rewind(20)
        assert [item["method"] for item in run.records("result")] == ["dense"]


def test_rewind_before_anything_was_logged(tmp_path):
    run = RunFolder(tmp_path)
    run.rewind(5)
    assert run.records() == []


def test_a_half_written_last_line_is_dropped_and_never_continued(tmp_path):
    with RunFolder(tmp_path) as run:
        run.log(step(1))
        run.log(step(2))
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(file.read_bytes()[:-7])  # as if the process had been killed while writing
    with RunFolder(tmp_path) as run:
        assert [item["step"] for item in run.records()] == [1]
        run.log(step(2))
        assert [item["step"] for item in run.records()] == [1, 2]


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"kind": "step", "step": 1}\nnot json\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: Expected one JSON record a line, got 'not json'"):
        RunFolder(tmp_path).records()


def test_a_resumed_log_ends_as_one_never_interrupted(tmp_path):
    straight, broken = RunFolder(tmp_path / "straight"), RunFolder(tmp_path / "broken")
    for number in range(1, 7):
        straight.log(step(number, loss=1 / number))
    for number in range(1, 5):
        broken.log(step(number, loss=1 / number))
    broken.close()
    again = RunFolder(tmp_path / "broken")
    again.rewind(2)
    for number in range(3, 7):
        again.log(step(number, loss=1 / number))
    straight.close()
    again.close()
    assert again.metrics_file.read_bytes() == straight.metrics_file.read_bytes()


def test_settings_schedule_and_environment_come_back(tmp_path):
    run = RunFolder(tmp_path)
    assert (run.config(), run.schedule(), run.environment()) == ({}, "", {})
    run.write_config({"lr": 2e-4, "out": Path("x"), "sizes": (1, 2)})
    run.write_schedule("version: 1\n# größer\n")
    run.write_environment("cpu")
    assert run.config() == {"lr": 2e-4, "out": "x", "sizes": [1, 2]}
    assert run.schedule() == "version: 1\n# größer\n"
    assert run.environment()["device"] == "cpu"


def test_damaged_settings_are_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: Expected JSON"):
        RunFolder(tmp_path).config()


def test_the_environment_names_versions_and_device(device):
    described = describe_environment(device)
    assert described["torch"] == torch.__version__
    assert described["device"] == str(device)
    assert ("device_name" in described) == (device.type == "cuda")


def test_a_missing_folder_is_refused_unless_it_may_be_made(tmp_path):
    with pytest.raises(UserError, match="Expected the folder of a run, got .*gone, which is not a folder"):
        RunFolder(tmp_path / "gone", create=False)


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="got .*taken, which cannot be made: File exists"):
        RunFolder(tmp_path / "taken")


def test_tensorboard_gets_the_numbers_and_forgets_what_was_rewound(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    name = "FID[digits; 200 images]"
    with RunFolder(tmp_path) as run:
        for number in (1, 2, 3):
            run.log(step(number, loss=10.0 * number, broken=math.nan))
        run.rewind(1)
        run.log(step(2, loss=-1.0))
        run.log({"kind": "epoch", "epoch": 0, "step": 2, "metrics": [{"name": name, "value": 5.0}]})
        run.histograms({"main.weight": torch.zeros(3, requires_grad=True)}, 2)
    events = accumulator.EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert [(item.step, item.value) for item in events.Scalars("step/terms/loss")] == [(1, 10.0), (2, -1.0)]
    assert events.Scalars("epoch/metrics/FID_digits_200_images")[0].value == 5.0
    assert "step/terms/broken" not in events.Tags()["scalars"]
    assert events.Tags()["histograms"] == ["weights/main.weight"]


def test_without_tensorboard_one_warning_and_no_failure(tmp_path, monkeypatch, caplog):
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(runs, "import_module", missing)
    with caplog.at_level(logging.WARNING), RunFolder(tmp_path) as run:
        run.log(step(1))
        run.log(step(2))
        run.histograms({"w": torch.zeros(1)}, 2)
    assert len(run.records()) == 2
    assert [item.message for item in caplog.records if "TensorBoard" in item.message] == [
        f"TensorBoard is not installed, so {tmp_path / 'tb'} is not written: pip install tensorboard"
    ]


def test_atomic_write_replaces_whole_files_only(tmp_path):
    file = atomic_write(tmp_path / "sub" / "a.txt", "first é")
    assert file.read_text(encoding="utf-8") == "first é"
    with pytest.raises(TypeError, match="bytes-like object is required"), atomic_file(file) as opened:
        opened.writelines([b"sec", "ond"])
    assert file.read_text(encoding="utf-8") == "first é"
    assert [item.name for item in file.parent.iterdir()] == ["a.txt"]
    atomic_write(file, b"second")
    assert file.read_bytes() == b"second"


@pytest.mark.skipif(os.name != "posix", reason="requires: a system with SIGKILL")
def test_killed_at_any_moment_a_file_is_old_or_new(tmp_path):
    """A process that rewrites a file again and again is killed; the file is one of its whole versions."""
    file = tmp_path / "state.bin"
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from sgc_distiller.runs import atomic_write\n"
        "number = 0\n"
        "while True:\n"
        "    atomic_write(sys.argv[1], bytes([number % 256]) * 400_000); number += 1\n"
    )
    root = str(Path(runs.__file__).parents[1])
    for delay in (0.05, 0.11):
        file.unlink(missing_ok=True)
        process = subprocess.Popen([sys.executable, "-c", code, str(file), root])
        for _ in range(600):
            if file.exists() or process.poll() is not None:
                break
            time.sleep(0.05)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        content = file.read_bytes()
        assert len(content) == 400_000
        assert len(set(content)) == 1


def test_cache_folder_is_named_by_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("SGC_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("SGC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "sgc_distiller"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "sgc_distiller"
