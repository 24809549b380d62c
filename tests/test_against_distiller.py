"""Random plain schedules, run here and in the real Distiller: same masks, weights, rates."""

from __future__ import annotations

import contextlib
import copy
import io
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from sgc_distiller.schedule import CLASSES, dict_config

EPOCHS, STEPS = 7, 4
WEIGHTS = ["0.weight", "2.weight", "4.weight"]
RATES: list[dict[str, Any]] = [
    {"class": "StepLR", "step_size": 2},
    {"class": "ExponentialLR", "gamma": 0.9},
    {"class": "CosineAnnealingLR", "T_max": 5},
    {"class": "PolynomialLR", "T_max": 12, "power": 2},
]


def random_options(stream: random.Random, is_alone: bool) -> dict[str, Any]:
    """Return options of a pruning policy; those of docs/deviations.md only for one that is alone."""
    options: dict[str, Any] = {}
    likely = {"mask_on_forward_only": 0.4, "keep_mask": 0.3, "skip_first_minibatch": 0.2}
    if is_alone:
        likely |= {"use_double_copies": 0.4, "discard_masks_at_minibatch_end": 0.2, "mask_gradients": 0.3}
    for name, chance in likely.items():
        if stream.random() < chance and (name != "mask_gradients" or options.get("mask_on_forward_only")):
            options[name] = True
    if stream.random() < 0.4:
        options["mini_batch_pruning_frequency"] = stream.choice([1, 2, 3])
    return options


def random_levels(stream: random.Random) -> dict[str, float]:
    return {name: round(stream.uniform(0.1, 0.9), 2) for name in stream.sample(WEIGHTS, 2)}


def random_schedule(stream: random.Random) -> dict[str, Any]:
    pruners: dict[str, Any] = {}
    policies: list[dict[str, Any]] = []
    count = stream.choice([1, 1, 2, 3])
    for index in range(count):
        options = random_options(stream, count == 1)
        entry: dict[str, Any] = {"pruner": {"instance_name": f"p{index}", "args": options}}
        if stream.random() < 0.6:
            pruners[f"p{index}"] = {
                "class": "AutomatedGradualPruner",
                "initial_sparsity": round(stream.uniform(0.1, 0.4), 2),
                "final_sparsity": round(stream.uniform(0.5, 0.95), 2),
                "weights": stream.sample(WEIGHTS, 2),
            }
            frequency, start = stream.choice([1, 1, 2]), stream.randint(0, 2)
            end = start + (stream.randint(2, 4) - 1) * frequency + 1  # the last epoch is an active one
            entry |= {"starting_epoch": start, "ending_epoch": end, "frequency": frequency}
        else:
            pruners[f"p{index}"] = {"class": "SparsityLevelParameterPruner", "levels": random_levels(stream)}
            if stream.random() < 0.3:
                options["levels"] = random_levels(stream)
            entry["epochs"] = sorted(stream.sample(range(EPOCHS), stream.randint(1, 3)))
        policies.append(entry)
    start = stream.randint(0, 3)
    rate = {"starting_epoch": start, "ending_epoch": start + 3, "frequency": 1}
    return {
        "pruners": pruners,
        "lr_schedulers": {"rate": stream.choice(RATES)},
        "policies": [{"lr_scheduler": {"instance_name": "rate"}, **rate}, *policies],
    }


GROUPS = {
    "1.weight": ["2D", "3D", "Filters", "Channels", "4D"],
    "3.weight": ["2D", "3D", "Filters", "Channels", "4D"],
    "6.weight": ["Rows", "Cols", "Rows+Cols", "Cols+Rows"],
}


def random_regularizer(stream: random.Random, names: list[str], has_threshold: bool) -> dict[str, Any]:
    """Return a regularizer of some weights, without what docs/deviations.md lists."""
    kind = stream.choice(["L1Regularizer", "GroupLassoRegularizer", "GroupVarianceRegularizer"])
    if kind == "GroupVarianceRegularizer" and (has_threshold or names == ["6.weight"]):
        kind = "GroupLassoRegularizer"
    regularizer: dict[str, Any] = {"class": kind}
    if has_threshold:
        is_mean = kind == "GroupLassoRegularizer" and "6.weight" not in names and stream.random() < 0.5
        regularizer["threshold_criteria"] = "Mean_Abs" if is_mean else "Max"
    strengths = {name: round(stream.uniform(0.01, 0.1), 3) for name in names}
    if kind == "GroupVarianceRegularizer":
        regularizer["reg_regims"] = {name: [1e-6, "Channels"] for name in names if name != "6.weight"}
    elif kind == "GroupLassoRegularizer":
        found = {name: [group for group in GROUPS[name] if fits(group, has_threshold)] for name in names}
        regularizer["reg_regims"] = {
            name: [strengths[name], stream.choice(groups)] for name, groups in found.items()
        }
    else:
        regularizer["reg_regims"] = strengths
    return regularizer


def fits(group: str, has_threshold: bool) -> bool:
    return not has_threshold or (group != "4D" and "+" not in group)


def random_regularizing_schedule(stream: random.Random) -> dict[str, Any]:
    """Return up to three regularizers, and maybe a pruner of a weight that no threshold is for."""
    names = stream.sample(list(GROUPS), len(GROUPS))
    pruned = [names.pop()] if stream.random() < 0.5 else []
    regularizers: dict[str, Any] = {}
    policies: list[dict[str, Any]] = []
    for index in range(stream.choice([1, 2, 3])):
        has_threshold = bool(names) and stream.random() < 0.6
        chosen = [names.pop()] if has_threshold else stream.sample(list(GROUPS), stream.randint(1, 2))
        regularizers[f"r{index}"] = random_regularizer(stream, chosen, has_threshold)
        frequency, start = stream.choice([1, 1, 2]), stream.randint(0, 2)
        policies.append(
            {
                "regularizer": {"instance_name": f"r{index}", "args": {"keep_mask": stream.random() < 0.5}},
                "starting_epoch": start,
                "ending_epoch": start + (stream.randint(2, 3) - 1) * frequency + 1,
                "frequency": frequency,
            }
        )
    schedule: dict[str, Any] = {"regularizers": regularizers, "policies": policies}
    if pruned:
        levels = {name: round(stream.uniform(0.1, 0.9), 2) for name in pruned}
        schedule["pruners"] = {"p": {"class": "SparsityLevelParameterPruner", "levels": levels}}
        pruning = {"pruner": {"instance_name": "p"}, "epochs": sorted(stream.sample(range(EPOCHS), 2))}
        policies.insert(stream.randint(0, len(policies)), pruning)
    return schedule


def matrices() -> nn.Module:
    return nn.Sequential(nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 5))


def convolutions() -> nn.Module:
    """Return a network of pictures of 2x2x2 whose weights are as in `GROUPS`."""
    layers = [nn.Conv2d(2, 4, 2), nn.Tanh(), nn.ConvTranspose2d(4, 3, 2), nn.Tanh(), nn.Flatten()]
    return nn.Sequential(nn.Unflatten(1, (2, 2, 2)), *layers, nn.Linear(12, 5))


def run(
    config: Callable[..., Any], schedule: dict[str, Any], network: Callable[[], nn.Module] = matrices
) -> list[torch.Tensor]:
    """Return weights, masks, added terms and rates after every callback that changes them."""
    torch.manual_seed(3)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    width = 9 if network is matrices else 8
    seen: list[torch.Tensor] = []

    def look() -> None:
        seen.extend(param.detach().clone() for param in model.parameters())
        masks = (scheduler.zeros_mask_dict[name].mask for name, _ in model.named_parameters())
        seen.extend(torch.zeros(0) if mask is None else mask.clone() for mask in masks)
        seen.append(torch.tensor(optimizer.param_groups[0]["lr"], dtype=torch.float64))

    with contextlib.redirect_stdout(io.StringIO()):
        scheduler = config(model, optimizer, copy.deepcopy(schedule))
    for epoch in range(EPOCHS):
        scheduler.on_epoch_begin(epoch, optimizer)
        for step in range(STEPS):
            inputs = torch.randn(6, width, generator=torch.Generator().manual_seed(epoch * STEPS + step))
            scheduler.on_minibatch_begin(epoch, step, STEPS, optimizer)
            look()
            loss = (model(inputs) - inputs[:, :5]).pow(2).mean()
            loss, parts = scheduler.before_backward_pass(
                epoch, step, STEPS, loss, optimizer, return_loss_components=True
            )
            seen.extend(part.value.detach() for part in parts)
            optimizer.zero_grad()
            loss.backward()
            scheduler.before_parameter_optimization(epoch, step, STEPS, optimizer)
            optimizer.step()
            scheduler.on_minibatch_end(epoch, step, STEPS, optimizer)
            look()
        scheduler.on_epoch_end(epoch, optimizer, metrics={"min": 1.0, "max": 1.0})
        look()
    return seen


@pytest.mark.distiller
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(100))
def test_random_schedules_do_the_same(seed: int):
    import distiller.config

    schedule = random_schedule(random.Random(seed))
    theirs = run(distiller.config.dict_config, schedule)
    ours = run(dict_config, schedule)
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=2e-6)


@pytest.mark.distiller
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(40))
def test_random_schedules_with_regularizers_do_the_same(seed: int):
    import distiller.config

    schedule = random_regularizing_schedule(random.Random(seed))
    theirs = run(distiller.config.dict_config, schedule, convolutions)
    ours = run(dict_config, schedule, convolutions)
    assert len(ours) == len(theirs)
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=2e-6)


@pytest.mark.distiller
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(10))
def test_its_own_regularizers_run_here_unchanged(seed: int, monkeypatch: pytest.MonkeyPatch):
    import distiller.config

    schedule = random_regularizing_schedule(random.Random(seed))
    theirs = run(distiller.config.dict_config, schedule, convolutions)
    for name in list(CLASSES["regularizers"]):
        monkeypatch.setitem(CLASSES["regularizers"], name, getattr(distiller.config, name))
    ours = run(dict_config, schedule, convolutions)
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=2e-6)
