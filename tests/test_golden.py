"""Schedules replayed beside the numbers that Intel's Distiller left, see tests/golden/README.md."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sgc_distiller.schedule import file_config

GOLDEN = Path(__file__).resolve().parent / "golden"
sys.path.insert(0, str(GOLDEN))

import golden_models  # noqa: E402

# What we do otherwise on purpose, see docs/deviations.md. The tests below work out what is right.
DEVIATIONS = {
    "agp_mofo_freq2_dcgan",
    "agp_two_policies_stargan",
    "level_ties_dcgan",
    "structure_mean_abs_plain",
}
CASES = sorted(path.parent.name for path in GOLDEN.glob("*/case.json"))
EXACT = (
    "mask_begin",
    "mask_begin_none",
    "mask_end",
    "mask_end_none",
    "fwd_nnz",
    "post_nnz",
    "step_mask_nnz",
    "lr_begin",
    "lr_end",
    "target_sparsity",
)
CLOSE = {
    "weights": 2e-6,
    "weights_before_epoch_end": 2e-6,
    "fwd_abs": 1e-4,
    "loss_objective": 1e-4,
    "loss_overall": 1e-4,
    "loss_components": 1e-5,
}


def load_case(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / name / "case.json").read_text())


def load_arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / name / "golden.npz") as arrays:
        return {key: arrays[key] for key in arrays.files}


class Statistics:
    """What Distiller's collectors leave at a layer: ``value()`` returns means and deviations by channel."""

    def __init__(self, count: int, seed: int) -> None:
        self.values = np.random.RandomState(seed).random_sample(count) * 100

    def value(self) -> tuple[np.ndarray, np.ndarray]:
        return self.values, np.zeros_like(self.values)


class Replay:
    """Runs a case's training loop with our runtime and writes down the arrays that the case lists."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.case = load_case(name)
        self.path = GOLDEN / name / "schedule.yaml"
        self.device = device
        self.arrays: dict[str, list[Any]] = {}
        self.active: list[list[str]] = []
        self.parts: dict[tuple[int, int, str], float] = {}
        self.make()

    def make(self, resumed_epoch: int | None = None, states: tuple[Any, Any, Any] | None = None) -> None:
        self.model = golden_models.build_model(self.case).to(self.device)
        self.optimizer = golden_models.build_optimizer(self.case, self.model)
        seeds = self.case.get("rng") or {}
        random.seed(seeds.get("python", 0))
        np.random.seed(seeds.get("numpy", 0))
        torch.manual_seed(seeds.get("torch", 0))
        for path, (attribute, count, seed) in (self.case.get("activation_stats") or {}).items():
            setattr(self.model.get_submodule(path), attribute, Statistics(count, seed))
        if states is not None:
            self.model.load_state_dict(states[0])
            self.optimizer.load_state_dict(states[1])
        self.scheduler = file_config(self.model, self.optimizer, self.path, resumed_epoch=resumed_epoch)
        if states is not None:
            self.scheduler.load_state_dict(states[2])
        if self.case["loop"]["kind"] == "quadratic":
            self.goals = golden_models.targets(self.case, self.model)

    def resume(self, epoch: int) -> None:
        self.make(
            epoch - 1, (self.model.state_dict(), self.optimizer.state_dict(), self.scheduler.state_dict())
        )

    def note(self, key: str, value: Any) -> None:
        self.arrays.setdefault(key, []).append(value)

    def run(self) -> dict[str, np.ndarray]:
        self.note("weights", self.weights())
        for epoch in range(self.case["loop"]["epochs"]):
            if epoch == self.case.get("resume_at"):
                self.resume(epoch)
            self.epoch(epoch)
        return {
            "loss_components": self.loss_components(),
            **{key: np.array(value) for key, value in self.arrays.items()},
        }

    def loss_components(self) -> np.ndarray:
        loop, names = self.case["loop"], self.case["loss_component_names"]
        values = np.full((len(names), loop["epochs"], loop["minibatches"]), np.nan)
        for (epoch, step, name), value in self.parts.items():
            values[names.index(name), epoch, step] = value
        return values

    def epoch(self, epoch: int) -> None:
        self.note("lr_begin", [group["lr"] for group in self.optimizer.param_groups])
        self.scheduler.on_epoch_begin(epoch)
        self.note_masks("mask_begin")
        self.note_policies(epoch)
        for step in range(self.case["loop"]["minibatches"]):
            self.step(epoch, step)
        for key in ("fwd_nnz", "fwd_abs", "step_mask_nnz", "post_nnz", "loss_objective", "loss_overall"):
            self.note(key, self.arrays.pop(f"{key} of steps"))
        self.note("weights_before_epoch_end", self.weights())
        metric = self.case["metrics_min"][epoch] if "metrics_min" in self.case else 1.0
        self.scheduler.on_epoch_end(epoch, self.optimizer, metrics={"min": metric, "max": -metric})
        self.note("weights", self.weights())
        self.note_masks("mask_end")
        self.note("lr_end", [group["lr"] for group in self.optimizer.param_groups])

    def step(self, epoch: int, step: int) -> None:
        where = (epoch, step, self.case["loop"]["minibatches"])
        count = epoch * where[2] + step
        self.scheduler.on_minibatch_begin(*where, self.optimizer)
        self.note("fwd_nnz of steps", [int(param.count_nonzero()) for param in self.model.parameters()])
        self.note(
            "fwd_abs of steps",
            [float(param.detach().double().abs().sum()) for param in self.model.parameters()],
        )
        masks = [self.scheduler.zeros_mask_dict[name].mask for name, _ in self.model.named_parameters()]
        self.note(
            "step_mask_nnz of steps", [-1 if mask is None else int(mask.count_nonzero()) for mask in masks]
        )
        if self.case["loop"]["kind"] == "quadratic":
            loss = golden_models.quadratic_loss(self.case, self.model, self.goals, count)
        else:
            loss = torch.ones((), device=self.device)
        self.note("loss_objective of steps", loss.item())
        loss, components = self.scheduler.before_backward_pass(
            *where, loss, self.optimizer, return_loss_components=True
        )
        self.note("loss_overall of steps", loss.item())
        for index, (name, value) in enumerate(components):
            self.parts[epoch, step, f"{index}:{name}"] = value.item()
        self.optimizer.zero_grad()
        if loss.requires_grad:
            loss.backward()
        self.scheduler.before_parameter_optimization(*where, self.optimizer)
        if self.case["loop"]["kind"] == "quadratic":
            self.optimizer.step()
        else:
            with torch.no_grad():
                for index, param in enumerate(self.model.parameters()):
                    param += golden_models.noise(self.case, count, index, param.shape).to(param.device)
        self.scheduler.on_minibatch_end(*where, self.optimizer)
        self.note("post_nnz of steps", [int(param.count_nonzero()) for param in self.model.parameters()])

    def target(self, policy: Any) -> float:
        """Return an AGP target or a constant level; the recordings have none for other pruners."""
        if not hasattr(policy.pruner, "weights") or "RandomLevel" in type(policy.pruner).__name__:
            return np.nan
        return policy.pruner.target(policy.pruner.weights[0], self.scheduler.sched_metadata[policy])

    def weights(self) -> np.ndarray:
        return np.concatenate([param.detach().cpu().numpy().ravel() for param in self.model.parameters()])

    def note_masks(self, key: str) -> None:
        bits, none = [], []
        for name, param in self.model.named_parameters():
            mask = self.scheduler.zeros_mask_dict[name].mask
            none.append(mask is None)
            kept = torch.ones_like(param, dtype=torch.bool) if mask is None else mask != 0
            bits.append(kept.cpu().numpy().ravel())
        self.note(key, np.packbits(np.concatenate(bits)))
        self.note(f"{key}_none", none)

    def note_policies(self, epoch: int) -> None:
        names, targets = [], dict.fromkeys(self.case["pruner_names"], np.nan)
        for policy in self.scheduler.policies.get(epoch, []):
            inner = getattr(policy, "pruner", None) or getattr(policy, "regularizer", None)
            inner_name = type(policy.lr_scheduler).__name__ if inner is None else inner.name
            names.append(f"{type(policy).__name__}:{inner_name}")
            if hasattr(policy, "pruner") and hasattr(policy.pruner, "target"):
                targets[inner_name] = self.target(policy)
        self.active.append(names)
        self.note(
            "target_sparsity", list(targets.values()) or [np.nan]
        )  # one column where there is no pruner


@pytest.mark.parametrize("name", [name for name in CASES if name not in DEVIATIONS])
def test_same_as_distiller(name: str, device: torch.device):
    expected = load_arrays(name)
    replay = Replay(name, device)
    found = replay.run()
    assert replay.active == replay.case["active_policies"]
    if replay.case.get("lr_only"):
        found["weights"] = found["weights"][:1]
    for key in expected:
        if key in CLOSE:
            np.testing.assert_allclose(found[key], expected[key], rtol=0, atol=CLOSE[key], err_msg=key)
        else:
            assert key in EXACT
            np.testing.assert_array_equal(found[key], expected[key], err_msg=key)


def drop_smallest(weight: np.ndarray, count: int) -> np.ndarray:
    """Return a mask without the ``count`` smallest magnitudes, the first of equal ones first: by sorting."""
    mask = np.ones(weight.size, np.float32)
    mask[np.argsort(np.abs(weight).ravel(), kind="stable")[:count]] = 0
    return mask.reshape(weight.shape)


def unpacked(
    found: dict[str, np.ndarray], key: str, epoch: int, case: dict[str, Any]
) -> dict[str, np.ndarray]:
    """Return the masks of one epoch by parameter name."""
    sizes = [int(np.prod(shape)) for _, shape in case["parameters"]]
    bits = np.unpackbits(found[key][epoch])[: sum(sizes)]
    parts = np.split(bits, np.cumsum(sizes)[:-1])
    return {name: part.reshape(shape) for (name, shape), part in zip(case["parameters"], parts, strict=True)}


def test_of_equal_weights_exactly_the_asked_share_goes(device: torch.device):
    replay = Replay("level_ties_dcgan", device)
    found = replay.run()
    initial = golden_models.initial_arrays(replay.model, replay.case["seed"], replay.case["init"])
    for epoch in range(3):
        masks = unpacked(found, "mask_begin", epoch, replay.case)
        for name, weight in initial.items():
            level = 0.7 if name == "main.3.weight" else 0.4
            np.testing.assert_array_equal(
                masks[name], drop_smallest(weight, int(level * weight.size)), err_msg=name
            )
        # by hand: int(0.4 * 8) = 3 of eight ones, int(0.4 * 6) = 2 of six zeros, the first ones of each
        assert masks["main.1.weight"].tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
        assert masks["main.4.bias"].tolist() == [0, 0, 1, 1, 1, 1]
    theirs = unpacked(load_arrays("level_ties_dcgan"), "mask_begin", 0, replay.case)
    assert theirs["main.1.weight"].sum() == 0  # Distiller drops all eight


class Simulation:
    """SGD on the quadratic loss in numpy, with weights masked on the forward pass only."""

    def __init__(self, case: dict[str, Any], keeps_copies: bool) -> None:
        model = golden_models.build_model(case)
        self.weights = golden_models.initial_arrays(model, case["seed"], case["init"])
        self.goals = dict(zip(self.weights, golden_models.targets(case, model), strict=True))
        self.loop = case["loop"]
        self.keeps_copies = keeps_copies
        self.masks: dict[str, np.ndarray] = {}
        self.speed: dict[str, np.ndarray] = {}
        self.is_lasting = False

    def prune(self, sparsity: float, names: list[str]) -> None:
        for name in names:
            self.masks[name] = drop_smallest(self.weights[name], int(sparsity * self.weights[name].size))

    def mask(self) -> None:
        for name, mask in self.masks.items():
            self.weights[name] = self.weights[name] * mask

    def steps(self, epoch: int, is_active: bool) -> None:
        for step in range(self.loop["minibatches"]):
            dense = dict(self.weights)
            if is_active:
                self.mask()
            factors = self.loop["target_factors"]
            factor = factors[(epoch * self.loop["minibatches"] + step) % len(factors)]
            slopes = {
                name: weight - self.goals[name].numpy() * np.float32(factor)
                for name, weight in self.weights.items()
            }
            if self.keeps_copies:
                self.weights = dense
            for name, slope in slopes.items():
                rate, momentum = self.loop["optimizer"]["lr"], self.loop["optimizer"]["momentum"]
                self.speed[name] = momentum * self.speed.get(name, np.zeros_like(slope)) + slope
                self.weights[name] = (self.weights[name] - rate * self.speed[name]).astype(np.float32)
            if self.is_lasting:
                self.mask()

    def all_weights(self) -> np.ndarray:
        return np.concatenate([weight.ravel() for weight in self.weights.values()])


def gradual(initial: float, final: float, done: float) -> float:
    """Return the target of gradual pruning when a share ``done`` of its span is over."""
    return final + (initial - final) * (1 - done) ** 3


def assert_same_masks(found: dict[str, np.ndarray], case: dict[str, Any], epoch: int, simulation: Simulation):
    masks = unpacked(found, "mask_begin", epoch, case)
    for name, mask in simulation.masks.items():
        np.testing.assert_array_equal(masks[name], mask, err_msg=f"epoch {epoch}, {name}")


def test_masks_are_kept_from_the_last_active_epoch_on(device: torch.device):
    name = "agp_mofo_freq2_dcgan"  # active in 0, 2, 4; ending_epoch - 1 is 5
    replay = Replay(name, device)
    found = replay.run()
    simulation = Simulation(replay.case, keeps_copies=False)
    pruned = ["main.0.weight", "main.3.weight", "main.6.weight"]
    for epoch in range(8):
        is_active = epoch in (0, 2, 4)
        if is_active:
            simulation.prune(gradual(0.1, 0.8, epoch / 4), pruned)
        assert_same_masks(found, replay.case, epoch, simulation)
        simulation.steps(epoch, is_active)
        if epoch == 4:
            simulation.is_lasting = True
            simulation.mask()
        np.testing.assert_allclose(found["weights"][epoch + 1], simulation.all_weights(), rtol=0, atol=2e-6)
    by_name = dict(replay.model.named_parameters())
    for name in pruned:
        assert int((by_name[name] == 0).sum()) == int(0.8 * by_name[name].numel())
    theirs = load_arrays("agp_mofo_freq2_dcgan")["weights"][-1]
    assert (theirs != 0).all()  # Distiller ends with a dense network


def test_double_copies_survive_a_second_policy(device: torch.device):
    replay = Replay("agp_two_policies_stargan", device)
    found = replay.run()
    simulation = Simulation(replay.case, keeps_copies=True)
    for epoch in range(6):
        if epoch < 5:
            simulation.prune(
                gradual(0.1, 0.5, epoch / 4), ["main.0.weight", "main.3.weight", "main.6.main.0.weight"]
            )
            simulation.prune(  # main.6.main.3.weight is in both: the later policy has the last word
                gradual(0.2, 0.8, epoch / 4),
                ["main.6.main.3.weight", "main.7.main.0.weight", "main.7.main.3.weight"],
            )
        assert_same_masks(found, replay.case, epoch, simulation)
        simulation.steps(epoch, is_active=epoch < 5)
        np.testing.assert_allclose(found["weights"][epoch + 1], simulation.all_weights(), rtol=0, atol=2e-6)
    recorded = load_arrays("agp_two_policies_stargan")["weights"]
    assert np.abs(recorded[-1] - found["weights"][-1]).max() > 1e-3


def test_structures_are_compared_by_the_mean_of_their_own_magnitudes(device: torch.device):
    replay = Replay("structure_mean_abs_plain", device)
    found = replay.run()
    theirs = load_arrays("structure_mean_abs_plain")
    groups = {  # threshold, and the dimensions inside a group
        "conv1.weight": (0.08, (1, 2, 3)),
        "conv2.weight": (0.08, (2, 3)),
        "fc1.weight": (0.22, (1,)),
        "fc2.weight": (0.035, (0,)),
    }
    weights = golden_models.initial_arrays(replay.model, replay.case["seed"], replay.case["init"])
    differs = {name: 0 for name in groups}
    for epoch in range(3):
        masks, recorded = (unpacked(arrays, "mask_begin", epoch, replay.case) for arrays in (found, theirs))
        for name, weight in weights.items():
            right = np.ones(weight.shape)
            if name in groups:
                threshold, inside = groups[name]
                size = np.abs(weight.astype(np.float64)).mean(inside, keepdims=True)
                right = np.broadcast_to(size > threshold, weight.shape)
                differs[name] += (recorded[name] != right).sum()
            np.testing.assert_array_equal(masks[name], right, err_msg=f"epoch {epoch}, {name}")
        for step in range(3):  # masked before and after noise is added
            for index, name in enumerate(weights):
                noise = golden_models.noise(replay.case, epoch * 3 + step, index, weights[name].shape)
                weights[name] = (weights[name] * masks[name] + noise.numpy()) * masks[name]
        np.testing.assert_allclose(
            found["weights"][epoch + 1],
            np.concatenate([weight.ravel() for weight in weights.values()]),
            rtol=0,
            atol=2e-6,
        )
    assert differs["conv1.weight"] == differs["conv2.weight"] == 0
    assert differs["fc1.weight"] > 0  # of shape (12, 32), and Distiller divides by 12
    assert differs["fc2.weight"] > 0  # of shape (5, 12), and Distiller divides by 12
