"""``python -m sgc_distiller``."""

from __future__ import annotations

import runpy
import sys

import pytest

from sgc_distiller._version import __version__


def test_the_package_runs_as_a_program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "argv", ["python -m sgc_distiller", "schedule", "no_such.yaml"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_module("sgc_distiller", run_name="__main__")
    assert "got 'no_such.yaml', which is neither" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["python -m sgc_distiller", "--version"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("sgc_distiller", run_name="__main__")
    assert __version__ in capsys.readouterr().out
