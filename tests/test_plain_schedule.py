"""Schedules as Intel's Distiller reads them: the same masks, or a clear refusal."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from sgc_distiller.distiller_runtime import build_with_distiller
from sgc_distiller.errors import ScheduleError
from sgc_distiller.inspection import plain_text
from sgc_distiller.plain_schedule import own_classes
from sgc_distiller.policies import LossComponent, PolicyLoss
from sgc_distiller.schedule import Schedule, dict_config

EPOCHS, STEPS = 4, 2


def network() -> nn.Sequential:
    torch.manual_seed(5)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 2, 3),
        nn.Flatten(),
        nn.Linear(128, 4),
        nn.ReLU(),
        nn.Linear(4, 2),
    )
    with torch.no_grad():
        for param in model.parameters():
            param.add_(0.1 * torch.randn_like(param))  # no ties
    return model


def made(pruner: dict[str, Any], gan: dict[str, Any] | None, **args: Any) -> dict[str, Any]:
    entry = {"instance_name": "p", **({"args": args} if args else {})}
    policy = {"pruner": entry, "starting_epoch": 0, "ending_epoch": EPOCHS, "frequency": 1}
    found = {"pruners": {"p": pruner}, "policies": [policy]}
    return found if gan is None else {**found, "gan": gan}


def ranked(group: str, weights: list[str], kind: str = "L1", **more: Any) -> dict[str, Any]:
    return {
        "class": f"{kind}RankedStructureParameterPruner_AGP",
        "group_type": group,
        "initial_sparsity": 0.2,
        "final_sparsity": 0.6,
        "weights": weights,
        **more,
    }


AGP = {
    "class": "AutomatedGradualPruner",
    "initial_sparsity": 0.2,
    "final_sparsity": 0.7,
    "weights": ["*.weight"],
}
REGULARIZED = {
    "regularizers": {
        "r": {
            "class": "GroupLassoRegularizer",
            "reg_regims": {
                "0.weight": [0.002, "Filters"],
                "3.weight": [0.003, "Filters"],
                "5.*": [0.001, "Kernels"],
            },
        }
    },
    "policies": [
        {"regularizer": {"instance_name": "r"}, "starting_epoch": 0, "ending_epoch": EPOCHS, "frequency": 1}
    ],
    "gan": {},
}
SAME: dict[str, dict[str, Any]] = {
    "elements": made(AGP, {}),
    "levels": made({"class": "SparsityLevelParameterPruner", "levels": {"[03].*": 0.5, "*": 0.6}}, None),
    "filters of all kinds": made(ranked("Filters", ["0.weight", "3.weight"]), {}),
    "channels of all kinds": made(ranked("Channels", ["[03].weight", "7.weight"], "L2"), {}),
    "stored axes": made(ranked("Filters", ["0.weight", "3.weight"]), {"filter_axis": "stored"}),
    "no experiment": made(ranked("3D", ["0.weight", "3.weight"]), None),
    "soft": made(
        {**AGP, "weights": ["3.weight"]},
        {},
        mask_on_forward_only=True,
        use_double_copies=True,
        keep_mask=True,
    ),
    "two of four": made({"class": "NMPruner", "n": 2, "m": 4, "weights": ["3.weight", "7.weight"]}, {}),
    "splicing": made(
        {
            "class": "SplicingPruner",
            "sensitivities": {"0.*": 0.5},
            "low_thresh_mult": 0.9,
            "hi_thresh_mult": 1.1,
        },
        {},
    ),
    "regularized": REGULARIZED,
}


def trained(given: dict[str, Any], build: Callable[[nn.Module, Any], Any]) -> list[Tensor]:
    """Return all weights after each step of a training with a schedule."""
    model = network()
    optimizer: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    if "regularizers" in given:  # Channels are squared with 1e-8 added, which Adam makes much of
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    scheduler = build(model, optimizer)
    seen: list[Tensor] = []
    for epoch in range(EPOCHS + 1):
        scheduler.on_epoch_begin(epoch, optimizer)
        for step in range(STEPS):
            scheduler.on_minibatch_begin(epoch, step, STEPS, optimizer)
            inputs = torch.randn(4, 3, 10, 10, generator=torch.Generator().manual_seed(10 * epoch + step))
            loss = (model(inputs) - 1).pow(2).mean()
            loss = scheduler.before_backward_pass(epoch, step, STEPS, loss, optimizer)
            optimizer.zero_grad()
            loss.backward()
            scheduler.before_parameter_optimization(epoch, step, STEPS, optimizer)
            optimizer.step()
            scheduler.on_minibatch_end(epoch, step, STEPS, optimizer)
            seen += [param.detach().clone() for param in model.parameters()]
        scheduler.on_epoch_end(epoch, optimizer)
    return seen


def assert_close(given: dict[str, Any], found: list[Tensor], expected: list[Tensor]) -> None:
    """Compare bit for bit where nothing but masks is at work."""
    tolerance = 2e-6 if "regularizers" in given else 0.0
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=tolerance)


@pytest.mark.parametrize("given", SAME.values(), ids=SAME)
def test_the_plain_schedule_means_the_same_here(given: dict[str, Any]):
    before = copy.deepcopy(given)
    plain = Schedule.from_dict(given).plain(network())
    assert given == before
    read = yaml.safe_load(plain_text(plain, "given"))
    assert read == plain
    assert "gan" not in plain
    assert not any(sign in str(plain).replace("'*'", "") for sign in "*?")
    expected = trained(given, lambda model, optimizer: dict_config(model, optimizer, given))
    found = trained(given, lambda model, optimizer: dict_config(model, optimizer, read))
    assert_close(given, found, expected)


@pytest.mark.distiller
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("given", SAME.values(), ids=SAME)
def test_distiller_does_the_same(given: dict[str, Any]):
    def build(model: nn.Module, optimizer: Any) -> Any:
        with contextlib.redirect_stdout(io.StringIO()):
            return build_with_distiller(Schedule.from_dict(given), model, optimizer)[0]

    expected = trained(given, lambda model, optimizer: dict_config(model, optimizer, given))
    assert_close(given, trained(given, build), expected)


def test_axes_of_transposed_convolutions_are_swapped():
    plain = Schedule.from_dict(made(ranked("Filters", ["0.weight", "3.weight"]), {})).plain(network())
    assert {name: (entry["group_type"], entry["weights"]) for name, entry in plain["pruners"].items()} == {
        "p": ("Filters", ["0.weight"]),
        "p_transposed": ("Channels", ["3.weight"]),
    }
    assert plain["extensions"]["dependent_masks"]["filters"] == ["0.weight", "3.weight"]
    kinds = [next(iter(entry)) for entry in plain["policies"]]
    assert kinds == ["pruner", "pruner", "extension"]
    lasso = Schedule.from_dict(REGULARIZED).plain(network())["regularizers"]["r"]["reg_regims"]
    assert lasso == {
        "0.weight": [0.002, "Filters"],
        "3.weight": [0.003, "Channels"],
        "5.weight": [0.001, "2D"],
    }


def test_the_last_active_epoch_is_distillers_last():
    given = made(AGP, None, keep_mask=True)
    given["policies"][0].update(starting_epoch=0, ending_epoch=6, frequency=2)
    (policy,) = Schedule.from_dict(given).plain(network())["policies"]
    assert (policy["starting_epoch"], policy["ending_epoch"], policy["frequency"]) == (0, 5, 2)


class Shrinking:
    """A policy of a user's own: makes the loss smaller."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("on_") or name == "before_parameter_optimization":
            return lambda *_, **__: None
        raise AttributeError(name)

    def before_backward_pass(
        self, model: Any, epoch: int, step: int, steps: int, loss: Tensor, *_: Any, **__: Any
    ):
        return PolicyLoss(0.5 * loss, [LossComponent("shrunk", loss.detach())])


OWN: dict[str, Any] = {
    **made(AGP, {}),
    "extensions": {"own": {"class": "tests.test_plain_schedule.Shrinking"}},
}
OWN["policies"] = [
    *OWN["policies"],
    {"extension": {"instance_name": "own"}, "starting_epoch": 0, "ending_epoch": 3, "frequency": 1},
]


def test_classes_by_their_path_go_by_their_name():
    schedule = Schedule.from_dict(OWN)
    plain = schedule.plain(network())
    assert plain["extensions"]["own"] == {"class": "Shrinking"}
    assert {name: section for name, (section, _) in own_classes(schedule.policies).items()} == {
        "Shrinking": "extensions"
    }
    text = plain_text(plain, "given", ["Shrinking"])
    assert "# Before it is read, set distiller.config.Shrinking = Shrinking.\n" in text
    assert yaml.safe_load(text) == plain


@pytest.mark.distiller
@pytest.mark.filterwarnings("ignore")
def test_classes_by_their_path_run_in_distiller():
    def build(model: nn.Module, optimizer: Any) -> Any:
        with contextlib.redirect_stdout(io.StringIO()):
            return build_with_distiller(Schedule.from_dict(OWN), model, optimizer)[0]

    expected = trained(OWN, lambda model, optimizer: dict_config(model, optimizer, OWN))
    assert_close(OWN, trained(OWN, build), expected)
    without = {key: value for key, value in OWN.items() if key != "extensions"} | made(AGP, {})
    other = trained(without, lambda model, optimizer: dict_config(model, optimizer, without))
    assert any(not torch.equal(left, right) for left, right in zip(other, expected, strict=True))


@pytest.mark.distiller
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("BernoulliFilterPruner", "Distiller's fails with today's torch"),
        ("ActivationAPoZRankedFilterPruner", "Distiller's needs statistics of a collector"),
        ("GradientRankedFilterPruner", "Distiller's needs a GPU, and this machine has none"),
    ],
)
def test_pruners_that_fail_in_distiller_are_refused(kind: str, reason: str):
    if "GPU" in reason and torch.cuda.is_available():
        pytest.skip("requires: a machine without GPU")
    pruner = {"class": kind, "group_type": "Filters", "desired_sparsity": 0.5, "weights": ["0.weight"]}
    model = network()
    with pytest.raises(
        ScheduleError, match=rf"pruners\.p: Expected a pruner that can run .* got {kind}: {reason}"
    ):
        build_with_distiller(
            Schedule.from_dict(made(pruner, None)), model, torch.optim.SGD(model.parameters(), 0.1)
        )


def test_the_variance_of_swapped_inputs_is_refused():
    given = copy.deepcopy(REGULARIZED)
    given["regularizers"]["r"] = {
        "class": "GroupVarianceRegularizer",
        "reg_regims": {"3.weight": [0.01, "Channels"]},
    }
    with pytest.raises(
        ScheduleError, match="got the variance of the inputs of the transposed convolution '3.weight'"
    ):
        Schedule.from_dict(given).plain(network())


LACKING: dict[str, tuple[dict[str, Any], str]] = {
    "kernels": (made(ranked("Kernels", ["0.weight"]), None), "got the group type Kernels"),
    "elements": (made(ranked("Elements", ["0.weight"]), None), "got the group type Elements"),
    "global": (made(ranked("Filters", ["0.weight"], scope="global"), None), "got 'scope: global'"),
    "neighbours": (made(ranked("Filters", ["0.weight"], group_size=2), None), "got 'group_size: 2'"),
    "rounding": (made(ranked("Filters", ["0.weight"], rounding_fn="ceil"), None), "got 'rounding_fn: ceil'"),
    "neurons": (made(ranked("Filters", ["7.weight"]), {}), "got Filters of '7.weight', a weight with 2"),
    "leader": (
        made(ranked("Channels", ["3.weight", "7.weight"], group_dependency="Leader"), {}),
        "Expected",
    ),
    "folded": (made({**AGP, "weights": ["0.weight"]}, {}, fold_batchnorm=True), "got 'fold_batchnorm'"),
    "nothing": (made({**AGP, "initial_sparsity": 0.0}, None), "got a sparsity of 0 for the"),
    "random": (
        made(
            {
                "class": "RandomRankedFilterPruner",
                "group_type": "Filters",
                "desired_sparsity": 0.5,
                "weights": ["3.weight"],
            },
            {},
            mask_on_forward_only=True,
            use_double_copies=True,
        ),
        "got RandomRankedFilterPruner on the outputs of the transposed convolution '3.weight'",
    ),
}


@pytest.mark.parametrize(("given", "message"), LACKING.values(), ids=LACKING)
def test_what_distiller_lacks_is_refused(given: dict[str, Any], message: str):
    with pytest.raises(ScheduleError, match=rf"pruners\.p.*{message}"):
        Schedule.from_dict(given).plain(network())


def test_dense_copies_of_two_policies_are_refused():
    given = made(AGP, None, use_double_copies=True)
    given["policies"].append(copy.deepcopy(given["policies"][0]))
    with pytest.raises(ScheduleError, match="got two policies with 'use_double_copies' in one epoch"):
        Schedule.from_dict(given).plain(network())
