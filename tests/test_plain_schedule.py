"""Schedules as Intel's Distiller reads them: the same masks, or a clear refusal."""
# ruff: noqa: E501  (messages stand on one line)

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
RAMP = {"class": "BaiduRNNPruner", "q": 0.1, "ramp_epoch_offset": 1, "ramp_slope_mult": 1.5}
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
    "dropped after each step": made(AGP, {}, discard_masks_at_minibatch_end=True),
    "two on one weight": {
        **made(AGP, {}),
        "pruners": {"p": AGP, "q": {"class": "NMPruner", "n": 2, "m": 4, "weights": ["3.weight"]}},
        "policies": [*made(AGP, {})["policies"], {"pruner": {"instance_name": "q"}, "epochs": [2]}],
    },
    "a slope to an epoch that is not active": {
        "pruners": {"p": {**RAMP, "weights": ["0.weight", "3.weight"]}},
        "policies": [
            {"pruner": {"instance_name": "p"}, "starting_epoch": 0, "ending_epoch": 4, "frequency": 2}
        ],
    },
    "a leader": made(ranked("Channels", ["3.weight"], group_dependency="Leader"), {}),
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


def regularized(group: str, weight: str, kind: str = "GroupLasso", **more: Any) -> dict[str, Any]:
    found = {"class": f"{kind}Regularizer", "reg_regims": {weight: [0.01, group]}, **more}
    return {
        **copy.deepcopy(REGULARIZED),
        "regularizers": {"p": found},
        "policies": [entry("regularizer", "p")],
    }


def thresholds(group: str, weight: str, criterion: str = "Max") -> dict[str, Any]:
    regims = {weight: [0.01, group]}
    kind = "StructureParameterPruner"
    return made({"class": kind, "reg_regims": regims, "threshold_criteria": criterion}, None)


def entry(kind: str, name: str, epochs: range = range(EPOCHS), **args: Any) -> dict[str, Any]:
    what = {"instance_name": name, **({"args": args} if args else {})}
    when = {"starting_epoch": epochs.start, "ending_epoch": epochs.stop, "frequency": epochs.step}
    return {kind: what, **when}


def both(first: dict[str, Any], second: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return a schedule with two entries about the pruners ``p`` and ``q``."""
    return {"pruners": {"p": AGP, "q": {**AGP}}, "policies": [first, second], **more}


def leader(**more: Any) -> dict[str, Any]:
    return ranked("Filters", ["0.weight"], group_dependency="Leader", **more)


SOFT = {"mask_on_forward_only": True, "use_double_copies": True}
MASKED = {"mask_on_forward_only": True, "mask_gradients": True}
THRESHOLD = {
    "regularizers": {
        "p": {"class": "L1Regularizer", "reg_regims": {"0.weight": 0.01}, "threshold_criteria": "Max"}
    },
    "pruners": {"q": {**AGP, "weights": ["0.weight"]}},
}
DROPPED = {"class": "RandomLevelStructureParameterPruner", "group_type": "Filters", "weights": ["0.weight"]}
LACKING: dict[str, tuple[dict[str, Any], str]] = {
    "kernels": (made(ranked("Kernels", ["0.weight"]), None), "got the group type Kernels"),
    "elements": (made(ranked("Elements", ["0.weight"]), None), "got the group type Elements"),
    "global": (made(ranked("Filters", ["0.weight"], scope="global"), None), "got 'scope: global'"),
    "neighbours": (made(ranked("Filters", ["0.weight"], group_size=2), None), "got 'group_size: 2'"),
    "rounding": (made(ranked("Filters", ["0.weight"], rounding_fn="ceil"), None), "got 'rounding_fn: ceil'"),
    "neurons": (made(ranked("Filters", ["7.weight"]), {}), "got Filters of '7.weight', a weight with 2"),
    "leader from nothing": (
        made(leader(initial_sparsity=0.0), None),
        "got a sparsity of 0 for the 8 filters of the leader '0.weight'. Distiller fails where not one of them",
    ),
    "leader below one": (
        made(leader(initial_sparsity=0.1), {}),
        "got a sparsity of 0.1 for the 8 filters of the leader '0.weight'",
    ),
    "leader by chance": (
        made({**DROPPED, "sparsity_range": [0.1, 0.9], "group_dependency": "Leader"}, None),
        "got a sparsity of 0.1 for the 8 filters of the leader '0.weight'",
    ),
    "blocks with noise": (
        made(
            {
                "class": "L1RankedStructureParameterPruner",
                "group_type": "Blocks",
                "kwargs": {"block_shape": [1, 4, 1, 1]},
                "noise": 0.5,
                "desired_sparsity": 0.5,
                "weights": ["3.weight"],
            },
            None,
        ),
        "got 'noise' for Blocks. Distiller ignores it there",
    ),
    "folded": (made({**AGP, "weights": ["0.weight"]}, {}, fold_batchnorm=True), "got 'fold_batchnorm'"),
    "nothing": (made({**AGP, "initial_sparsity": 0.0}, None), "got a sparsity of 0 for the"),
    "nothing by the policy's levels": (
        made({"class": "SparsityLevelParameterPruner", "levels": {"*": 0.9}}, None, levels={"0.bias": 0.01}),
        "got a sparsity of 0.01 for the 8 elements of '0.bias'",
    ),
    "channels of a matrix": (
        thresholds("Channels", "7.weight"),
        r"got Channels of '7.weight' of shape \(4, 128\). Distiller's are of weights with four dimensions",
    ),
    "a matrix's means": (
        thresholds("Rows", "7.weight", "Mean_Abs"),
        r"got the mean magnitude of Rows of '7.weight' of shape \(4, 128\).*take 'threshold_criteria: Max'",
    ),
    "lasso of channels of a matrix": (regularized("Channels", "7.weight"), "got Channels of '7.weight'"),
    "lasso of neurons": (regularized("3D", "7.weight"), "got 3D of '7.weight' of shape"),
    "lasso of a matrix's means": (
        regularized("Cols", "7.weight", threshold_criteria="Mean_Abs"),
        "got the mean magnitude of Cols of '7.weight'",
    ),
    "lasso of vectors": (regularized("1D", "0.weight"), "got the group '1D'"),
    "lasso of two groups": (regularized("Channels+4D", "0.weight"), r"got the group 'Channels\+4D'"),
    "variance of channels of a matrix": (
        regularized("Channels", "7.weight", "GroupVariance"),
        "got Channels of '7.weight'",
    ),
    "a slope that ends early and is kept": (
        {
            "pruners": {"p": {**RAMP, "weights": ["0.weight"]}},
            "policies": [entry("pruner", "p", range(0, 6, 4), keep_mask=True)],
        },
        "got 'ending_epoch: 6' with 'keep_mask' or 'mask_gradients'.*before it only: write 5",
    ),
    "copies of both kinds": (
        made(ranked("Filters", ["0.weight", "3.weight"]), {}, **SOFT),
        r"got 'use_double_copies' for convolutions and transposed ones \('0.weight', '3.weight'\)",
    ),
    "a threshold of what is pruned": (
        {**THRESHOLD, "policies": [entry("regularizer", "p"), entry("pruner", "q")]},
        "got a regularizer's threshold for '0.weight', which a pruner may prune too",
    ),
    "a threshold beside soft masks": (
        {**THRESHOLD, "policies": [entry("regularizer", "p"), entry("pruner", "q", **MASKED)]},
        "got a regularizer's threshold beside 'mask_on_forward_only'",
    ),
    "gradients until another ends": (
        both(entry("pruner", "p", **MASKED), entry("pruner", "q", range(2), mask_on_forward_only=True)),
        "got 'mask_gradients' in epochs 0 to 3 beside 'q'. Distiller stops masking with the first",
    ),
    "gradients of two": (
        both(entry("pruner", "p", range(2), **MASKED), entry("pruner", "q", range(1, 4), **MASKED)),
        "got 'mask_gradients' in epochs 0 to 1 beside 'q'",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("given", "message"), LACKING.values(), ids=LACKING)
def test_what_distiller_lacks_is_refused(given: dict[str, Any], message: str):
    schedule, model = Schedule.from_dict(given), network()
    with pytest.raises(ScheduleError, match=rf"(pruners|regularizers)\.p.*{message}"):
        schedule.plain(model)
    schedule.build(model)


def test_a_leader_of_both_kinds_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ConvTranspose2d(6, 6, 3), nn.Conv2d(6, 2, 3))
    given = made(ranked("Filters", ["0.weight", "1.weight"], group_dependency="Leader"), {})
    message = r"got a leader for convolutions and transposed ones \('0.weight', '1.weight'\)"
    with pytest.raises(ScheduleError, match=message):
        Schedule.from_dict(given).plain(model)


def test_dense_copies_of_two_policies_are_refused():
    """Options of the one that started last count, so it may be that of the first or of the second."""
    soft, hard = entry("pruner", "p", range(2, 4), **SOFT), entry("pruner", "q")
    message = "got two policies in one epoch with 'use_double_copies' in force"
    for given in (both(hard, soft), both(entry("pruner", "p", **SOFT), entry("pruner", "q", **SOFT))):
        with pytest.raises(ScheduleError, match=message):
            Schedule.from_dict(given).plain(network())
    Schedule.from_dict(both(entry("pruner", "p", range(2), **SOFT), entry("pruner", "q", range(2, 4)))).plain(
        network()
    )
    Schedule.from_dict(both(entry("pruner", "p", **SOFT), hard)).plain(network())


@pytest.mark.parametrize(
    ("kind", "has_gpu", "reason"),
    [
        ("BernoulliFilterPruner", True, "Distiller's fails with today's torch"),
        ("ActivationAPoZRankedFilterPruner", True, "Distiller's needs statistics of a collector"),
        ("GradientRankedFilterPruner", False, "Distiller's needs a GPU, and this machine has none"),
        ("RandomRankedFilterPruner", False, "Distiller's needs a GPU, and this machine has none"),
        ("RandomRankedFilterPruner", True, ""),
    ],
)
def test_pruners_that_fail_in_distiller_are_refused(
    monkeypatch: pytest.MonkeyPatch, kind: str, has_gpu: bool, reason: str
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    pruner = {"class": kind, "group_type": "Filters", "desired_sparsity": 0.5, "weights": ["0.weight"]}
    schedule = Schedule.from_dict(made(pruner, None))
    if not reason:
        assert schedule.plain(network())["pruners"]["p"] == pruner
        return
    with pytest.raises(
        ScheduleError, match=rf"pruners\.p: Expected a pruner that can run .* got {kind}: {reason}"
    ):
        schedule.plain(network())


def test_filters_by_other_measures_are_stored_ones(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    pruner = {"class": "RandomRankedFilterPruner", "group_type": "Filters", "desired_sparsity": 0.5}
    message = "got RandomRankedFilterPruner on the outputs of the transposed convolution '3.weight'"
    with pytest.raises(ScheduleError, match=message):
        Schedule.from_dict(made({**pruner, "weights": ["3.weight"]}, {}, **SOFT)).plain(network())


def test_one_object_of_the_users_in_two_policies_is_refused():
    given = copy.deepcopy(OWN)
    given["policies"].append(entry("extension", "own", range(3, 4)))
    with pytest.raises(ScheduleError, match=r"extensions\.own.*got the extension 'own' in two policies"):
        Schedule.from_dict(given).plain(network())


def test_moments_are_cleared_where_elements_come_back():
    kinds = {name: "dependent_masks" in str(Schedule.from_dict(SAME[name]).plain(network())) for name in SAME}
    assert {name for name, has in kinds.items() if has} == {
        "filters of all kinds",
        "splicing",
        "dropped after each step",
        "two on one weight",
    }


@pytest.mark.distiller
@pytest.mark.filterwarnings("ignore")
def test_refusals_come_before_anything_is_said(caplog: pytest.LogCaptureFixture):
    model = network()
    with caplog.at_level("INFO"), pytest.raises(ScheduleError, match="got 'scope: global'"):
        build_with_distiller(
            Schedule.from_dict(LACKING["global"][0]), model, torch.optim.SGD(model.parameters(), 0.1)
        )
    assert not caplog.records
