"""Random schedules with every pruner, run here and in the real Distiller: same masks, weights, rates."""

from __future__ import annotations

import random
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

from sgc_distiller.schedule import CLASSES, dict_config
from tests.test_against_distiller import run

CONVS = {"1.weight": (6, 2, 1, 1), "3.weight": (6, 6, 2, 2), "5.weight": (8, 6, 2, 2)}
MATRIX = "8.weight"


class Statistic:
    """What Distiller's collectors leave at a layer."""

    def __init__(self, count: int) -> None:
        self.values = np.random.RandomState(count).permutation(count) * 1.5

    def value(self) -> tuple[np.ndarray, np.ndarray]:
        return self.values, np.zeros_like(self.values)


def network() -> nn.Module:
    """Return a network of pictures of 2x2x2, with statistics of activations at its convolutions."""
    random.seed(5)
    np.random.seed(5)
    model = nn.Sequential(
        nn.Unflatten(1, (2, 2, 2)), nn.Conv2d(2, 6, 1), nn.Tanh(), nn.Conv2d(6, 6, 2, padding=1), nn.Tanh(),
        nn.Conv2d(6, 8, 2), nn.Tanh(), nn.Flatten(), nn.Linear(32, 5),
    )  # fmt: skip
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            layer.apoz_channels = layer.mean_channels = Statistic(layer.out_channels)
    return model


class Maker:
    """Draws the arguments of one pruner for some weights that no other pruner has."""

    def __init__(self, stream: random.Random, kind: str, names: list[str]) -> None:
        self.stream, self.kind, self.names = stream, kind, names
        self.needs_dense_weights = False  # what docs/deviations.md says of equal scores does not come about

    def number(self, low: float, high: float) -> float:
        return round(self.stream.uniform(low, high), 3)

    def sparsity(self) -> dict[str, float]:
        if self.kind.endswith("_AGP"):
            return {"initial_sparsity": self.number(0.2, 0.4), "final_sparsity": self.number(0.5, 0.95)}
        return {"desired_sparsity": self.number(0.1, 0.9)}

    def arguments(self) -> dict[str, Any]:
        values = {name: self.number(0.05, 0.3) for name in self.names}
        if self.kind == "AutomatedGradualPruner":
            return {"initial_sparsity": 0.1, "final_sparsity": self.number(0.3, 0.9), "weights": self.names}
        if self.kind == "SparsityLevelParameterPruner":
            return {"levels": {name: self.number(0.1, 0.9) for name in self.names}}
        if self.kind == "MagnitudeParameterPruner":
            return {"thresholds": {**values, "*": -1}}
        if self.kind == "SensitivityPruner":
            return {"sensitivities": {name: self.number(0.2, 1.5) for name in self.names}}
        if self.kind == "SplicingPruner":
            growth = self.stream.choice([0, 0.1])
            rest = {"low_thresh_mult": 0.6, "hi_thresh_mult": 0.9, "sensitivity_multiplier": growth}
            return {"sensitivities": {name: self.number(0, 0.5) for name in self.names}, **rest}
        if self.kind == "BaiduRNNPruner":
            ramp = {"ramp_epoch_offset": self.stream.choice([0, 1]), "ramp_slope_mult": 1.5}
            return {"q": self.number(0.05, 0.4), **ramp, "weights": self.names}
        if self.kind == "StructureParameterPruner":
            groups = {name: ["2D", "3D", "Filters", "Channels"] for name in CONVS} | {
                MATRIX: ["Rows", "Cols"]
            }
            criterion = "Max" if MATRIX in self.names else self.stream.choice(["Max", "Mean_Abs"])
            chosen = {name: [values[name], self.stream.choice(groups[name])] for name in self.names}
            return {"reg_regims": chosen, "threshold_criteria": criterion}
        return self.structures()

    def structures(self) -> dict[str, Any]:
        convs = [name for name in self.names if name in CONVS] or [MATRIX]
        group_type = self.stream.choice(["Filters", "3D"])
        found: dict[str, Any] = {"weights": convs, "group_type": group_type}
        if "Ranked" in self.kind and "Structure" not in self.kind:
            self.needs_dense_weights = "Gradient" in self.kind
            return found | self.sparsity()
        if convs == [MATRIX] or self.stream.random() < 0.4:
            found |= {"weights": self.names, "group_type": self.stream.choice(["Channels", "Rows"])}
        elif self.stream.random() < 0.3:
            block = self.stream.choice([[1, 2, 1, 1], [2, 2, 1, 1], [2, 1, 1, 1], [1, 6, 1, 1]])
            found |= {"group_type": "Blocks", "kwargs": {"block_shape": block}}
        elif len({CONVS[name][0] for name in convs}) == 1 and self.stream.random() < 0.6:
            found["group_dependency"] = "Leader"
        if self.kind == "RandomLevelStructureParameterPruner":
            self.needs_dense_weights = True
            return found | {"sparsity_range": [0.3, 0.8]}
        if not self.kind.endswith("_AGP") and found["group_type"] != "Blocks" and self.stream.random() < 0.3:
            self.needs_dense_weights = True
            found["noise"] = self.number(0.2, 0.8)
        return found | self.sparsity()


OURS_ALONE = ("NMPruner", "BernoulliFilterPruner", "BernoulliFilterPruner_AGP")
KINDS = sorted(
    name
    for name, kind in CLASSES["pruners"].items()
    if name not in OURS_ALONE and kind.__module__.startswith("sgc_distiller")
)


def random_schedule(stream: random.Random, kind: str) -> dict[str, Any]:
    """Return a schedule with a pruner of one class, and maybe one of another class for other weights."""
    names = stream.sample([*CONVS, MATRIX], 4)
    if "Filter" in kind and names[:2].count(MATRIX) and not set(names[:2]) & set(CONVS):
        names.reverse()
    makers = [Maker(stream, kind, names[:2])]
    if stream.random() < 0.4 and kind != "MagnitudeParameterPruner" and "Gradient" not in kind:
        others = [name for name in KINDS if "Filter" not in name and name != "MagnitudeParameterPruner"]
        makers.append(Maker(stream, stream.choice(others), names[2:]))
    arguments = [maker.arguments() for maker in makers]
    options = random_options(stream, any(m.needs_dense_weights for m in makers), len(makers) == 1)
    pruners, policies = {}, []
    for index, maker in enumerate(makers):
        pruners[f"p{index}"] = {"class": maker.kind, **arguments[index]}
        frequency, start = stream.choice([1, 1, 2]), stream.randint(0, 2)
        end = start + (stream.randint(2, 4) - 1) * frequency + 1  # the last epoch is an active one
        policies.append(
            {
                "pruner": {"instance_name": f"p{index}", "args": options},
                "starting_epoch": start,
                "ending_epoch": end,
                "frequency": frequency,
            }
        )
    return {"pruners": pruners, "policies": policies}


def random_options(stream: random.Random, stays_dense: bool, is_alone: bool) -> dict[str, Any]:
    """Return options of a pruning policy, without what docs/deviations.md lists."""
    options: dict[str, Any] = {}
    if stays_dense or stream.random() < 0.3:
        options["mask_on_forward_only"] = True
    if is_alone and stream.random() < 0.3:
        options["use_double_copies"] = True
    if not stays_dense and stream.random() < 0.3:
        options["keep_mask"] = True
    if stream.random() < 0.4:
        options["mini_batch_pruning_frequency"] = stream.choice([1, 2, 3])
    return options


@pytest.mark.distiller
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_every_pruner_does_the_same(kind: str, seed: int):
    import distiller.config

    stream = random.Random(f"{kind} {seed}")
    schedule = random_schedule(stream, kind)
    with mock.patch.object(torch.Tensor, "cuda", lambda tensor: tensor):  # Distiller's need a GPU
        theirs = run(distiller.config.dict_config, schedule, network)
    ours = run(dict_config, schedule, network)
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=2e-6)
