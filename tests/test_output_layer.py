"""The ``gan:`` section's say over output layers, epochs and learning rate."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from torch import nn

from sgc_distiller.errors import ScheduleError
from sgc_distiller.schedule import Schedule
from sgc_distiller.supervision import Supervision
from sgc_distiller.tasks.dcgan import DCGAN


def _schedule(weights: list[str], **gan: Any) -> Schedule:
    return Schedule.from_dict(
        {
            "version": 1,
            "pruners": {
                "fine": {
                    "class": "AutomatedGradualPruner",
                    "initial_sparsity": 0.1,
                    "final_sparsity": 0.5,
                    "weights": weights,
                }
            },
            "policies": [
                {"pruner": {"instance_name": "fine"}, "starting_epoch": 0, "ending_epoch": 3, "frequency": 1}
            ],
            "gan": gan,
        }
    )


def _supervised(size: int) -> tuple[Supervision, nn.Module]:
    task = DCGAN(size, width=2)
    generator = task.build("generator")
    return Supervision(task, generator, task.build("discriminator"), copy.deepcopy(generator)), generator


@pytest.mark.parametrize(("size", "output"), [(32, "main.9.weight"), (64, "main.12.weight")])
def test_patterns_leave_the_output_layer_dense_whatever_its_name(size: int, output: str) -> None:
    supervision, generator = _supervised(size)
    dense = _schedule(["main.*.weight"], output_layer="dense").sparsity_plan(generator)[-1]
    pruned = _schedule(["main.*.weight"], output_layer="pruned").sparsity_plan(generator)[-1]
    assert set(pruned) - set(dense) == {output}
    assert set(dense.values()) == {0.5}
    scheduler = _schedule(["main.*.weight"], output_layer="dense").build(generator)
    scheduler.on_epoch_begin(0)
    assert scheduler.zeros_mask_dict[output].mask is None
    assert scheduler.zeros_mask_dict["main.0.weight"].mask is not None
    del supervision


def test_an_output_layer_named_in_full_is_pruned_all_the_same() -> None:
    supervision, generator = _supervised(16)
    named = _schedule(["main.6.weight"], output_layer="dense").sparsity_plan(generator)[-1]
    assert named == {"main.6.weight": 0.5}
    del supervision


def test_a_wrapped_generator_keeps_its_output_layer_too() -> None:
    supervision, generator = _supervised(16)
    wrapped = nn.DataParallel(generator)
    plan = _schedule(["main.*.weight"], output_layer="dense").sparsity_plan(wrapped)[-1]
    assert set(plan) == {"module.main.0.weight", "module.main.3.weight"}
    del supervision


def test_leaving_output_layers_dense_needs_a_task_that_names_them() -> None:
    message = r"<dict>: gan.output_layer: no supervision is registered .* build `supervision = Supervision"
    with pytest.raises(ScheduleError, match=message):
        _schedule(["*.weight"], output_layer="dense").build(DCGAN(16, width=2).build("generator"))


def test_epochs_go_on_after_the_last_policy_but_never_end_before_it() -> None:
    supervision, generator = _supervised(16)
    schedule = _schedule(["main.*.weight"], epochs=5)
    plan = schedule.sparsity_plan(generator)
    assert schedule.epochs == len(plan) == 5
    assert plan[2] == plan[4]
    with pytest.raises(ScheduleError, match=r"gan.epochs: Expected at least 3 epochs.*got 2"):
        _schedule(["main.*.weight"], epochs=2)
    del supervision


@pytest.mark.parametrize(
    ("gan", "message"),
    [
        ({"output_layer": "thick"}, r"gan.output_layer: Expected one of pruned, dense, got 'thick'"),
        ({"lr": 0}, r"gan.lr: Expected a number greater than 0, got 0"),
        ({"lr": "fast"}, r"gan.lr: Expected a number greater than 0, got 'fast'"),
        ({"epochs": 0}, r"gan.epochs: Expected a whole number of at least 1, got 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(gan: dict[str, Any], message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        _schedule(["main.*.weight"], **gan)
