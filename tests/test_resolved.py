"""A resolved schedule says of one model in full what a schedule leaves open, and means the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sgc_distiller import yaml_source
from sgc_distiller.errors import ScheduleError
from sgc_distiller.names import spell_out
from sgc_distiller.resources import find_schedule
from sgc_distiller.schedule import Schedule, read_schedule
from sgc_distiller.supervision import Supervision
from sgc_distiller.tasks.dcgan import DCGAN

SCHEDULES = sorted((Path(__file__).parents[1] / "schedules").rglob("*.yaml"))

MIXED = """\
pruners:
  grow: {class: AutomatedGradualPruner, initial_sparsity: 0.1, final_sparsity: 0.5, weights: ['main.[36]*', main.9.weight]}
  level: {class: SparsityLevelParameterPruner, levels: {'main.*.weight': 0.3, main.0.weight: 1e-1, '*': 0.2}}
  idle: {class: SparsityLevelParameterPruner, levels: {'main.*': 0.7}}
lr_schedulers:
  decay: {class: StepLR, step_size: 2, gamma: 0.5}
policies:
- lr_scheduler: {instance_name: decay}
  epochs: [0, 3]
- pruner: {instance_name: grow}
  starting_epoch: 1
  ending_epoch: 5
  frequency: 1
- pruner:
    instance_name: level
    args: {keep_mask: true, levels: {'main.?.weight': 0.4}}
  epochs: [2]
gan: {output_layer: dense, lr: 2e-3, discriminator: {train: false}}
"""  # noqa: E501


def written(folder: Path, text: str) -> Path:
    path = folder / "schedule.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shelf")


@pytest.fixture
def supervision() -> Supervision:
    """A DCGAN with five layers, of which main.12 is the output; alive as long as the test."""
    task = DCGAN(image_size=64, channels=1, width=2)
    return Supervision(task, task.build("generator"), task.build("discriminator"), task.build("generator"))


def test_names_and_settings_are_spelled_out(tmp_path: Path, supervision: Supervision) -> None:
    schedule = read_schedule(written(tmp_path, MIXED))
    found = schedule.resolved(supervision.generator, epochs=8, steps_per_epoch=7)
    # main.3 and main.6 are convolutions, main.4 and the like norms, main.12 is the output layer
    assert found["pruners"]["grow"]["weights"] == ["main.3.weight", "main.6.weight", "main.9.weight"]
    assert found["pruners"]["level"]["levels"] == {
        "main.0.weight": 0.1,
        "main.3.weight": 0.3,
        "main.6.weight": 0.3,
        "main.9.weight": 0.3,
        "*": 0.2,
    }
    assert found["policies"][2]["pruner"]["args"] == {
        "keep_mask": True,
        "levels": {f"main.{index}.weight": 0.4 for index in (0, 3, 6, 9)},
    }
    assert found["gan"] == {
        "objective": "task",
        "filter_axis": "module",
        "student": {"init": "dense", "width": 1.0},
        "discriminator": {
            "init": "pretrained",
            "train": False,
            "real": "data",
            "fake": "student",
            "objective": "adversarial",
        },
        "steps_per_epoch": 7,
        "epochs": 8,
        "output_layer": "dense",
        "lr": 0.002,
        "dense_steps": None,
    }
    assert found["lr_schedulers"] == {"decay": {"class": "StepLR", "step_size": 2, "gamma": 0.5}}
    assert found["pruners"]["idle"]["levels"] == {"main.*": 0.7}, "what no policy uses is left alone"
    assert schedule.sparsity_plan(supervision.generator) == read_schedule(
        written(tmp_path, MIXED)
    ).sparsity_plan(supervision.generator), "the schedule itself is not changed"


@pytest.mark.parametrize("source", [MIXED, *SCHEDULES], ids=lambda item: getattr(item, "stem", "mixed"))
def test_what_is_written_means_the_same(source: str | Path, tmp_path: Path, supervision: Supervision) -> None:
    model = supervision.generator
    text = source if isinstance(source, str) else source.read_text(encoding="utf-8")
    before = read_schedule(written(tmp_path, text))
    again = read_schedule(written(tmp_path, yaml_source.write(before.resolved(model))))
    assert again.sparsity_plan(model) == before.sparsity_plan(model)
    assert again.epochs == before.epochs
    assert before.gan is not None
    assert again.gan is not None
    assert (again.gan.lr, again.gan.objective, again.gan.discriminator, again.gan.student) == (
        before.gan.lr,
        before.gan.objective,
        before.gan.discriminator,
        before.gan.student,
    )
    assert again.resolved(model) == before.resolved(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    policies = [s.build(model, optimizer).policies for s in (before, again)]
    assert [[type(p) for p in epoch] for epoch in policies[0].values()] == [
        [type(p) for p in epoch] for epoch in policies[1].values()
    ]


WHOLE = """\
pruners:
  filters: {class: L1RankedStructureParameterPruner, group_type: Filters, desired_sparsity: 0.5, weights: ['main.[36]*']}
regularizers:
  ridge: {class: L1Regularizer, reg_regims: {'main.?.weight': 0.1, main.3.weight: 0.2}}
policies:
- pruner: {instance_name: filters}
  epochs: [0]
- regularizer: {instance_name: ridge, args: {keep_mask: false}}
  epochs: [0]
gan:
  discriminator:
    schedule:
      pruners:
        thin: {class: SparsityLevelParameterPruner, levels: {'main.[02].weight': 0.5}}
      policies:
      - pruner: {instance_name: thin}
        epochs: [2]
"""  # noqa: E501


def test_regularizers_and_the_discriminators_own_schedule_too(
    tmp_path: Path, supervision: Supervision
) -> None:
    schedule = read_schedule(written(tmp_path, WHOLE))
    model, judge = supervision.generator, supervision.discriminator
    found = schedule.resolved(model, discriminator=judge)
    assert found["pruners"]["filters"]["weights"] == ["main.3.weight", "main.6.weight"]
    regims = {"main.0.weight": 0.1, "main.3.weight": 0.2, "main.6.weight": 0.1, "main.9.weight": 0.1}
    assert found["regularizers"]["ridge"]["reg_regims"] == regims
    own = found["gan"]["discriminator"]["schedule"]["pruners"]["thin"]["levels"]
    assert own == {"main.0.weight": 0.5, "main.2.weight": 0.5}
    assert found["gan"]["epochs"] == 3, "as long as the discriminator's schedule"
    again = read_schedule(written(tmp_path, yaml_source.write(found)))
    assert again.resolved(model, discriminator=judge) == found
    assert again.discriminator is not None
    assert again.discriminator.sparsity_plan(judge)[2] == own
    kept = schedule.resolved(model)["gan"]["discriminator"]["schedule"]["pruners"]["thin"]["levels"]
    assert kept == {"main.[02].weight": 0.5}


def test_fewer_epochs_than_the_policies_need_are_not_written(supervision: Supervision) -> None:
    schedule = read_schedule(find_schedule("dcgan/recommended_75"))
    assert schedule.resolved(supervision.generator, epochs=3)["gan"]["epochs"] == 20
    assert schedule.resolved(supervision.generator, epochs=21)["gan"]["epochs"] == 21
    agp = read_schedule(find_schedule("dcgan/agp_75"))  # its policy needs 11 of its 20 epochs
    assert agp.resolved(supervision.generator, epochs=12)["gan"]["epochs"] == 12
    assert agp.resolved(supervision.generator, epochs=2)["gan"]["epochs"] == 11


def test_a_distiller_schedule_stays_one() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2))
    given = {
        "pruners": {
            "p": {"class": "SparsityLevelParameterPruner", "levels": {"*": 0.5, "[02].weight": 0.25}}
        },
        "policies": [{"pruner": {"instance_name": "p"}, "epochs": [0]}],
    }
    found = Schedule.from_dict(given).resolved(model, epochs=9, steps_per_epoch=3, lr=0.5)
    assert found["pruners"]["p"]["levels"] == {"0.weight": 0.25, "2.weight": 0.25, "*": 0.5}
    assert found["policies"] == given["policies"]
    assert "gan" not in found


def test_names_that_fit_nothing_are_refused_at_their_place(supervision: Supervision, tmp_path: Path) -> None:
    path = written(tmp_path, MIXED.replace("main.[36]*", "main.[78]*"))
    with pytest.raises(
        ScheduleError, match=r"schedule\.yaml:2: pruners\.grow\.weights\[0\]: .*'main\.\[78\]"
    ):
        read_schedule(path).resolved(supervision.generator)


@pytest.mark.parametrize("table", ["levels", "sensitivities", "thresholds", "reg_regims"])
def test_any_table_that_is_keyed_by_names_is_spelled_out(table: str) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2))
    asked = {table: {"1.bias": 0.5, "?.weight": [0.25, "Filters"], "2.weight": 3}, "group_type": "*"}
    assert spell_out(model, asked) == {
        table: {"0.weight": [0.25, "Filters"], "2.weight": 3, "1.bias": 0.5},
        "group_type": "*",
    }
    assert "?.weight" in asked[table], "what is given is not changed"


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text("aé #:'\"{}[],&*!|>%@`-?0159.eE+~<=\\\n\t")
    | st.builds("{}{}e{}{}".format, *map(st.sampled_from, (["", "-"], ["1", "1.5", ".5"], ["", "-"], "07")))
    | st.sampled_from(["yes", "null", "~", "1:30", "2020-01-01", "<<", "=", "*", "main.*.weight", "0o7"])
)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.text("ab.*?[1]<=~ ", min_size=1),
        st.recursive(
            SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text("a1*"), inner), max_leaves=6
        ),
    )
)
def test_written_values_are_read_back(shelf: Path, values: dict[str, Any]) -> None:
    text = yaml_source.write({"a": values, "b": values})
    assert yaml_source.read_file(written(shelf, text))[0].value == {"a": values, "b": values}


def test_what_stands_twice_is_written_twice() -> None:
    names = ["main.0.weight"]
    assert yaml_source.write({"a": names, "b": names}) == "a: [main.0.weight]\nb: [main.0.weight]\n"
