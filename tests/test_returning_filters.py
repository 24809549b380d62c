"""Filters that return need their norms: whatever a schedule's policies add up to, no layer dies unnoticed."""

# ruff: noqa: E501  (messages stand on one line)

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgc_distiller.errors import ScheduleError
from sgc_distiller.schedule import dict_config
from tests.test_dependent_masks import CHANGING, dropped_outputs, network, run

SOFT = {"mask_on_forward_only": True, "use_double_copies": True}
KEPT = {**SOFT, "keep_mask": True}
NAMES = ("0.weight", "3.weight")


def ranked(kind: str = "random", weight: str = "0.weight", **more: Any) -> dict[str, Any]:
    usual = {"class": "L1RankedStructureParameterPruner", "group_type": "Filters", "desired_sparsity": 0.5}
    return {**usual, "weights": [weight], **CHANGING.get(kind, {}), **more}


def gradual(weight: str = "3.weight") -> dict[str, Any]:
    rate = {"initial_sparsity": 0.1, "final_sparsity": 0.5}
    return {"class": "AutomatedGradualPruner", **rate, "weights": [weight]}


def use(name: str, epochs: range | list[int], **args: Any) -> dict[str, Any]:
    when: dict[str, Any] = {"epochs": epochs}
    if isinstance(epochs, range):
        when = {"starting_epoch": epochs.start, "ending_epoch": epochs.stop, "frequency": epochs.step}
    return {"pruner": {"instance_name": name, **({"args": args} if args else {})}, **when}


def schedule(pruners: dict[str, Any], *policies: Any, **more: Any) -> dict[str, Any]:
    return {"pruners": pruners, "policies": list(policies), "gan": {}, **more}


LASSO = {
    "class": "GroupLassoRegularizer",
    "reg_regims": {"0.weight": [1e-6, "Filters"]},
    "threshold_criteria": "Max",
}
KEEPING = {
    "regularizer": {"instance_name": "r", "args": {"keep_mask": True}},
    "starting_epoch": 0,
    "ending_epoch": 2,
    "frequency": 1,
}
ONE, TWO = {"p": ranked()}, {"p": ranked(), "q": ranked()}
FINE = {"p": ranked(), "q": gradual()}
LOSING: dict[str, tuple[dict[str, Any], str]] = {
    "once in each of two policies": (
        schedule(ONE, use("p", [0]), use("p", [3])),
        r"pruners\.p: Expected 'args: {mask_on_forward_only: true, use_double_copies: true}' in each policy "
        r"of 'p'; the pruner 'p' picks other filters of '0.weight' each time: .*only once in the whole schedule",
    ),
    "once by each of two pruners": (
        schedule(TWO, use("p", [0]), use("q", [3])),
        r"pruners\.q: Expected 'args",
    ),
    "after filters that stay gone": (
        schedule({"p": ranked(), "q": ranked("L1")}, use("q", [0]), use("p", [1])),
        r"pruners\.p: Expected 'args",
    ),
    "in the middle of an epoch": (
        schedule(ONE, use("p", [0], mini_batch_pruning_frequency=2)),
        r"pruners\.p: Expected 'args",
    ),
    "one option is missing": (
        schedule(ONE, use("p", range(4), mask_on_forward_only=True)),
        r"pruners\.p: Expected 'args",
    ),
    "dropped after each step": (
        schedule(ONE, use("p", range(4), discard_masks_at_minibatch_end=True)),
        r"pruners\.p: Expected 'args",
    ),
    "another policy's options": (
        schedule(FINE, use("p", range(6), **SOFT), use("q", range(1, 6))),
        r"policies\[1\]: Expected 'args: {.*}' here too; of several pruning policies the options of the one "
        "that started last count for all weights, and the pruner 'p' picks",
    ),
    "another policy keeps": (
        schedule(FINE, use("p", range(6), **SOFT), use("q", range(3), **KEPT)),
        r"policies\[1\]: Expected no 'keep_mask: true' before the last epoch of 'p'; it makes the masks of all",
    ),
    "kept twice": (
        schedule(ONE, use("p", range(2), **KEPT), use("p", range(3, 5), **KEPT)),
        r"pruners\.p: Expected 'args",
    ),
    "a regularizer keeps": (
        schedule(ONE, use("p", range(4), **SOFT), KEEPING, regularizers={"r": LASSO}),
        r"policies\[1\]: Expected no 'keep_mask: true' before the last epoch of 'p'",
    ),
}
GOOD: dict[str, dict[str, Any]] = {
    "soft": schedule(ONE, use("p", range(6), **SOFT)),
    "soft in two policies": schedule(ONE, use("p", range(2), **SOFT), use("p", range(3, 6), **SOFT)),
    "kept at the end": schedule(FINE, use("p", range(6), **KEPT), use("q", range(2, 6), **SOFT)),
    "kept by another at the end": schedule(FINE, use("p", range(6), **SOFT), use("q", range(6), **KEPT)),
    "once": schedule(FINE, use("p", [0]), use("q", range(1, 6))),
    "once on each weight": schedule({"p": ranked(), "q": ranked(weight="3.weight")}, use("p", [0]), use("q", [2])),
    "other options before": schedule(FINE, use("q", range(2)), use("p", range(2, 6), **SOFT)),
    "from nothing in two epochs": schedule(
        {"p": ranked(**{"class": "RandomRankedFilterPruner_AGP", "initial_sparsity": 0.0, "final_sparsity": 0.5})},
        use("p", range(2)),
    ),
    "filters that stay gone are added": schedule(
        {"p": ranked(), "q": ranked("L1")}, use("p", [0]), use("q", range(1, 6))
    ),
}  # fmt: skip
GOOD["from nothing in two epochs"]["pruners"]["p"].pop("desired_sparsity")


def trained(given: dict[str, Any]) -> list[int]:
    """Return how many filters of each weight are gone for good after six epochs."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    torch.manual_seed(3)
    run(dict_config(model, optimizer, given), optimizer, range(6))
    weights = [model.get_parameter(name).detach() for name in NAMES]
    return [int(dropped_outputs(weight, dim).sum()) for dim, weight in enumerate(weights)]


@pytest.mark.parametrize(("made", "message"), LOSING.values(), ids=LOSING)
def test_schedules_that_lose_filter_after_filter_are_refused(made: dict[str, Any], message: str):
    with pytest.raises(ScheduleError, match=message):
        dict_config(network(), None, made)


@pytest.mark.parametrize("made", [made for made, _ in LOSING.values()], ids=LOSING)
@pytest.mark.parametrize("gan", [None, {"filter_axis": "stored"}])
def test_where_nothing_belongs_to_filters_they_are_distillers(made: dict[str, Any], gan: Any):
    given = {**made, "gan": gan}
    dict_config(network(), None, given if gan else {k: v for k, v in given.items() if k != "gan"})


@pytest.mark.parametrize("made", GOOD.values(), ids=GOOD)
def test_others_lose_what_was_asked_at_most(made: dict[str, Any]):
    first, second = trained(made)
    assert (first <= 4, second <= 3) == (True, True)


@st.composite
def schedules(draw: st.DrawFn) -> dict[str, Any]:
    """Return two pruners that share half of the filters between them in up to three policies."""
    kinds = st.sampled_from(["random", "L1"])
    pruners = {name: ranked(draw(kinds), draw(st.sampled_from(NAMES))) for name in "pq"}
    policies = []
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, 3))
        args = draw(st.sampled_from([{}, {}, SOFT, SOFT, KEPT, {"mini_batch_pruning_frequency": 1}]))
        policies.append(
            use(draw(st.sampled_from("pq")), range(start, start + draw(st.integers(1, 3))), **args)
        )
    return schedule(pruners, *policies)


@settings(max_examples=60, deadline=None)
@given(made=schedules())
def test_whatever_is_accepted_loses_what_was_asked_at_most(made: dict[str, Any]):
    try:
        first, second = trained(made)
    except ScheduleError:
        return
    assert (first <= 4, second <= 3) == (True, True)
