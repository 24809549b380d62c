"""Schedules replayed beside the numbers that Intel's Distiller left, see tests/golden/README.md."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from sgc_distiller.schedule import file_config

GOLDEN = Path(__file__).resolve().parent / "golden"
sys.path.insert(0, str(GOLDEN))

import golden_models  # noqa: E402

# What we do otherwise on purpose; docs/deviations.md gives the reasons. Expected values: `TestDeviations`.
DEVIATIONS = {"level_ties_dcgan", "agp_mofo_freq2_dcgan", "agp_two_policies_stargan"}
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
}


def load_case(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / name / "case.json").read_text())


def load_arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / name / "golden.npz") as arrays:
        return {key: arrays[key] for key in arrays.files}


class Replay:
    """Runs a case's training loop with our runtime and writes down the arrays that the case lists."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.case = load_case(name)
        self.path = GOLDEN / name / "schedule.yaml"
        self.device = device
        self.arrays: dict[str, list[Any]] = {}
        self.active: list[list[str]] = []
        self.make()

    def make(self, resumed_epoch: int | None = None, states: tuple[Any, Any, Any] | None = None) -> None:
        self.model = golden_models.build_model(self.case).to(self.device)
        self.optimizer = golden_models.build_optimizer(self.case, self.model)
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
        return {key: np.array(value) for key, value in self.arrays.items()}

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
        assert components == []
        self.note("loss_overall of steps", loss.item())
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
            inner = policy.pruner.name if hasattr(policy, "pruner") else type(policy.lr_scheduler).__name__
            names.append(f"{type(policy).__name__}:{inner}")
            if hasattr(policy, "pruner") and type(policy.pruner).__name__ == "AutomatedGradualPruner":
                meta = self.scheduler.sched_metadata[policy]
                targets[inner] = policy.pruner.target(policy.pruner.weights[0], meta)
        self.active.append(names)
        self.note(
            "target_sparsity", list(targets.values()) or [np.nan]
        )  # one column where there is no pruner


@pytest.mark.filterwarnings(
    "ignore:Detected call of `lr_scheduler.step"
)  # loops that never step the optimizer
@pytest.mark.parametrize("name", [name for name in CASES if name not in DEVIATIONS])
def test_same_as_distiller(name: str, device: torch.device):
    expected = load_arrays(name)
    replay = Replay(name, device)
    found = replay.run()
    assert replay.active == replay.case["active_policies"]
    assert expected.pop("loss_components").size == 0  # none of these cases has a policy that adds some
    if replay.case.get("lr_only"):
        found["weights"] = found["weights"][:1]
    for key in expected:
        if key in CLOSE:
            np.testing.assert_allclose(found[key], expected[key], rtol=0, atol=CLOSE[key], err_msg=key)
        else:
            assert key in EXACT
            np.testing.assert_array_equal(found[key], expected[key], err_msg=key)
