"""Removers: read and checked as Distiller's, said aloud, and without any effect."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import nn

from sgc_distiller.errors import ScheduleError
from sgc_distiller.schedule import Schedule

NAMES = ["FilterRemover", "ChannelRemover", "StructureRemover"]


def remover(**changes: Any) -> dict[str, Any]:
    """Return a remover as a schedule declares it; None leaves an argument out."""
    values = {
        "class": "FilterRemover",
        "thinning_func_str": "remove_filters",
        "arch": "resnet20_cifar",
        "dataset": "cifar10",
        **changes,
    }
    return {key: value for key, value in values.items() if value is not None}


def schedule(*removers: dict[str, Any]) -> dict[str, Any]:
    """Return a schedule that prunes in epoch 0 and has removers in epochs 0 and 1."""
    names = [f"thin{index}" for index in range(len(removers))]
    return {
        "pruners": {"p": {"class": "SparsityLevelParameterPruner", "levels": {"0.weight": 0.5}}},
        "extensions": dict(zip(names, removers, strict=True)),
        "policies": [
            {"pruner": {"instance_name": "p"}, "epochs": [0]},
            *({"extension": {"instance_name": name}, "epochs": [0, 1]} for name in names),
        ],
    }


def train(given: dict[str, Any]) -> list[torch.Tensor]:
    """Return the weights after two epochs of two steps."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = Schedule.from_dict(given).build(model, optimizer)
    for epoch in range(2):
        scheduler.on_epoch_begin(epoch, optimizer)
        for step in range(2):
            scheduler.on_minibatch_begin(epoch, step, 2, optimizer)
            loss = model(torch.ones(3, 2, 5, 5)).pow(2).sum()
            loss = scheduler.before_backward_pass(epoch, step, 2, loss, optimizer)
            optimizer.zero_grad()
            loss.backward()
            scheduler.before_parameter_optimization(epoch, step, 2, optimizer)
            optimizer.step()
            scheduler.on_minibatch_end(epoch, step, 2, optimizer)
        scheduler.on_epoch_end(epoch, optimizer)
    return [param.detach() for param in model.parameters()]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("function", ["remove_filters", "remove_channels", "resnet_cifar_remove_layers"])
def test_pruning_goes_on_as_if_they_were_not_there(name: str, function: str):
    thinned = train(schedule(remover(**{"class": name, "thinning_func_str": function})))
    plain = train(schedule())
    assert (plain[0] == 0).sum() == plain[0].numel() // 2
    for left, right in zip(thinned, plain, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)


def test_a_schedule_says_once_that_zeros_stay(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        Schedule.from_dict(schedule(remover(), remover(**{"class": "ChannelRemover"})))
    assert [record.message for record in caplog.records] == [
        "<dict>: zeros are not removed by this version. Thinning is a step of its own that is to come; "
        "pruning goes on as scheduled."
    ]


def test_a_schedule_without_removers_says_nothing(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        Schedule.from_dict(schedule())
    assert not caplog.records


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"thinning_func_str": "remove_filter"},
            r"extensions\.thin0\.thinning_func_str: Expected one of remove_filters, remove_channels, "
            r"resnet_cifar_remove_layers, got 'remove_filter'\. Did you mean 'remove_filters'\?",
        ),
        ({"thinning_func_str": 1}, r"extensions\.thin0\.thinning_func_str: Expected one of .*, got 1"),
        ({"arch": 20}, r"extensions\.thin0\.arch: Expected a name, got 20\."),
        ({"dataset": []}, r"extensions\.thin0\.dataset: Expected a name, got \[\]\."),
        ({"dataset": None}, r"extensions\.thin0: Expected argument 'dataset' of FilterRemover, got none\."),
        ({"layers": "all"}, r"extensions\.thin0\.layers: Expected an argument of FilterRemover"),
    ],
)
def test_mistakes_are_refused_when_the_schedule_is_read(changes: dict[str, Any], message: str):
    with pytest.raises(ScheduleError, match=message):
        Schedule.from_dict(schedule(remover(**changes)))
