"""A small model with the parameters that a Distiller schedule names, and nothing else of its network.

Each name becomes a module of a plausible kind at its place, with random weights whose filters and channels
differ by orders of magnitude, so that thresholds fall between them and no two magnitudes are equal.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["Statistic", "StandIn", "batchnorm_after", "names_of", "stand_in"]

_MATRICES = re.compile(r"^(fc\d*|classifier|encoder|decoder|linear)$")
_NORMS = re.compile(r"^(bn|norm)\d*$")
_BY_NAME = ("levels", "sensitivities", "thresholds", "reg_regims")
_FILTERS = (16, 20, 24)
_CHANNELS = 16  # divides into the blocks of the schedules


class StandIn(nn.Module):
    """Modules at the places that a schedule names.

    Attributes:
        input_shape: What Distiller asks a model for when batch norms are folded.
        folded: Convolutions and the batch norms behind them, by path.
    """

    def __init__(self) -> None:
        super().__init__()
        self.input_shape = (1, _CHANNELS, 8, 8)
        self.folded: list[tuple[str, str]] = []

    def forward(self, inputs: Tensor) -> list[Tensor]:
        """Return what each batch norm makes of its convolution's outputs, so that both can be found."""
        pairs = [(self.get_submodule(layer), self.get_submodule(norm)) for layer, norm in self.folded]
        return [norm(layer(inputs)) for layer, norm in pairs]


class Statistic:
    """What Distiller's collectors of activations leave on a module: one number a channel, and its spread."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def value(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean of each channel, shape (channels,), and the standard deviation."""
        return self.values, np.zeros_like(self.values)


def instances(schedule: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the pruners and regularizers of a schedule."""
    for section in ("pruners", "regularizers"):
        yield from (schedule.get(section) or {}).values()


def names_of(instance: Mapping[str, Any]) -> list[str]:
    """Return the parameters that a pruner or regularizer names; a text under ``weights`` is one name."""
    weights = instance.get("weights") or []
    names = [weights] if isinstance(weights, str) else list(weights)
    for key in _BY_NAME:
        names += [name for name in instance.get(key) or {} if name != "*"]
    return names


def _group_types(instance: Mapping[str, Any], name: str) -> set[str]:
    if name not in names_of(instance):
        return set()
    regime = (instance.get("reg_regims") or {}).get(name)
    listed = {regime[1]} if isinstance(regime, (list, tuple)) else set()
    return listed | ({instance["group_type"]} if "group_type" in instance else set())


def _rank(name: str, group_types: set[str]) -> int:
    """Return how many dimensions a parameter has, by its name and by what the schedule does with it."""
    *path, leaf = name.split(".")
    if any(_NORMS.match(part) for part in path[-1:]) or leaf == "bias":
        return 1
    if leaf != "weight" or group_types & {"Rows", "Cols", "Rows+Cols"}:
        return 2
    return 2 if any(_MATRICES.match(part) for part in path) else 4


def _shape(name: str, rank: int, filters: int) -> tuple[int, ...]:
    kernel = 1 if "downsample" in name else 3
    return ((filters,), (filters, _CHANNELS), (), (filters, _CHANNELS, kernel, kernel))[rank - 1]


def _module(leaf: str, shape: tuple[int, ...]) -> nn.Module:
    if leaf != "weight":
        return nn.Module()
    if len(shape) == 1:
        return nn.BatchNorm2d(shape[0])
    if len(shape) == 2:
        return nn.Linear(shape[1], shape[0], bias=False)
    return nn.Conv2d(shape[1], shape[0], shape[2], bias=False)


def _place(model: nn.Module, path: list[str], module: nn.Module | None = None) -> nn.Module:
    """Return the module at a path, after putting ``module`` there if there is none."""
    for index, part in enumerate(path):
        children = dict(model.named_children())
        if part not in children:
            is_last = index == len(path) - 1
            model.add_module(part, module if is_last and module is not None else nn.Module())
        model = getattr(model, part)
    return model


def _spread(shape: tuple[int, ...], decades: float, stream: torch.Generator) -> Tensor:
    """Return normal numbers whose scale differs from filter to filter and from channel to channel.

    Args:
        shape: Shape of the weight.
        decades: How many powers of ten the scales differ by, downwards from 3.
        stream: Where the numbers come from.
    """
    values = torch.randn(shape, generator=stream)
    for dim in range(min(len(shape), 2)):
        size = [-1 if other == dim else 1 for other in range(len(shape))]
        scale = 0.5 - decades * torch.rand(shape[dim], generator=stream)
        values = values * (10.0**scale).reshape(size)
    return values


def batchnorm_after(layer: str) -> str:
    """Return where the batch norm of a convolution is: ``bn1`` for ``conv1``, ``1`` for ``0``."""
    *path, last = layer.split(".")
    return ".".join([*path, str(int(last) + 1) if last.isdigit() else last.replace("conv", "bn")])


def stand_in(schedule: Mapping[str, Any], seed: int = 0) -> StandIn:
    """Return a model whose ``named_parameters()`` hold every name of a schedule, and a few more.

    Args:
        schedule: The schedule as a dictionary.
        seed: Seed of the weights.

    Returns:
        The model. Modules that activations are ranked by have statistics; convolutions that are ranked
        with their batch norm folded in have one.
    """
    model, stream, choose = StandIn(), torch.Generator().manual_seed(seed), random.Random(seed)
    found = list(instances(schedule))
    names = list(dict.fromkeys(name for instance in found for name in names_of(instance)))
    is_uniform = any(instance.get("group_dependency") for instance in found)
    for name in [*names, "bystander.weight", "bystander.bias"]:
        kinds = set().union(*(_group_types(instance, name) for instance in found))
        filters = _FILTERS[0] if is_uniform else choose.choice(_FILTERS)
        shape = _shape(name, _rank(name, kinds), filters)
        *path, leaf = name.split(".")
        owner = _place(model, path, _module(leaf, shape))
        is_regular = any(name in (instance.get("reg_regims") or {}) for instance in found)
        decades = 4.5 if is_regular else 2.0  # strengths, which are thresholds too, are about 1e-3
        setattr(owner, leaf, nn.Parameter(_spread(shape, decades, stream)))
    for instance in found:
        if instance["class"].startswith("Activation"):
            _add_statistics(model, names_of(instance), stream)
    for name in names_of_folded(schedule):
        _add_batchnorm(model, name, stream)
    return model


def names_of_folded(schedule: Mapping[str, Any]) -> list[str]:
    """Return the parameters that are ranked with their batch norm folded in."""
    folded: list[str] = []
    for policy in schedule["policies"]:
        pruner = policy.get("pruner") or {}
        if (pruner.get("args") or {}).get("fold_batchnorm"):
            folded += names_of(schedule["pruners"][pruner["instance_name"]])
    return list(dict.fromkeys(folded))


def _add_statistics(model: nn.Module, names: list[str], stream: torch.Generator) -> None:
    for name in names:
        module = _place(model, name.removesuffix(".weight").replace(".conv", ".relu").split("."), nn.ReLU())
        channels = model.get_parameter(name).shape[0]
        for statistic in ("apoz_channels", "mean_channels"):
            values = torch.rand(channels, generator=stream).numpy()
            setattr(module, statistic, Statistic(values))


def _add_batchnorm(model: StandIn, name: str, stream: torch.Generator) -> None:
    channels = model.get_parameter(name).shape[0]
    layer = name.removesuffix(".weight")
    model.folded.append((layer, batchnorm_after(layer)))
    norm = _place(model, batchnorm_after(layer).split("."), nn.BatchNorm2d(channels))
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_var is not None
    for tensor in (norm.weight.data, norm.running_var):
        tensor.copy_(0.1 + torch.rand(channels, generator=stream))
