"""The schedules of the ablation: each changes one factor of the base, and all can be run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sgc_distiller.resources import shipped_schedules
from sgc_distiller.schedule import read_schedule
from sgc_distiller.tasks.dcgan import DCGAN
from sgc_distiller.yaml_source import scalar
from tests.tiny import tiny_supervision

FOLDER = shipped_schedules() / "ablation"
FILES = sorted(FOLDER.glob("*.yaml"))
PIXELS = {"class": "OutputDistillationPolicy", "distill_weight": 10, "kind": "l1", "mode": "add"}
CHANGES: dict[str, dict[str, Any]] = {
    "base": {},
    "fixed_discriminator": {"gan.discriminator.train": False},
    "consistency_discriminator": {"gan.discriminator.objective": "consistency"},
    "both_discriminator": {"gan.discriminator.objective": "both"},
    "batch_distance": {"extensions.supervision.distance": "batch"},
    "no_features": {"extensions.supervision.features": 0},
    "features_10": {"extensions.supervision.features": 10},
    "features_100": {"extensions.supervision.features": 100},
    "no_dc": {"extensions.supervision.lambda_dc": 0},
    "adversarial": {"extensions.supervision.mode": "add"},
    "pixels": {f"extensions.pixels.{key}": value for key, value in PIXELS.items()},
    "adversarial_pixels": {
        "extensions.supervision.mode": "add",
        **{f"extensions.pixels.{key}": value for key, value in PIXELS.items()},
    },
    "early_target": {"policies.fine.ending_epoch": 6},
    "late_target": {"policies.fine.ending_epoch": 16},
    "kept_moments": {
        "extensions.masks.class": "DependentMasksPolicy",
        "extensions.masks.clear_moments": False,
    },
    "pruned_output": {"gan.output_layer": "pruned"},
    "ema_normalizer": {"extensions.supervision.normalizer": "ema"},
}


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, list):
        value = {
            entry[kind]["instance_name"]: {key: entry[key] for key in entry if key != kind}
            for entry in value
            for kind in ("pruner", "extension")
            if kind in entry
        }
    if not isinstance(value, dict):
        return {path: value}
    return {
        leaf: found for key, item in value.items() for leaf, found in _leaves(item, f"{path}.{key}").items()
    }


def _content(path: Path) -> dict[str, Any]:
    content = scalar(path.read_text())
    weights = content["pruners"]["fine"].pop("weights")
    assert weights == ["*.weight"]
    return {key.lstrip("."): value for key, value in _leaves(content).items()}


def test_every_factor_has_its_file():
    assert {path.stem for path in FILES} == CHANGES.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_changes_its_factor_and_nothing_else(path: Path):
    base, own = _content(FOLDER / "base.yaml"), _content(path)
    changed = {key: value for key, value in own.items() if base.get(key) != value}
    added = {
        key for key in changed if key.startswith("policies.") and key.split(".")[1] in ("pixels", "masks")
    }
    assert {key: value for key, value in changed.items() if key not in added} == CHANGES[path.stem]
    assert base.keys() <= own.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_can_be_built(path: Path, device: Any):
    s = tiny_supervision(DCGAN(16, width=4), device)
    read_schedule(path).build(s.generator)
