"""Policies: what happens at each callback of the training loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from sgc_distiller.lr_schedulers import moving_state, step_to
from sgc_distiller.masks import MaskSet

__all__ = ["LRPolicy", "LossComponent", "PolicyLoss", "ScheduledTrainingPolicy"]


class LossComponent(NamedTuple):
    """One named term that a policy added to the loss."""

    name: str
    value: Tensor


class PolicyLoss(NamedTuple):
    """What `before_backward_pass` of a policy returns: the new loss, and the terms that were added."""

    overall_loss: Tensor
    loss_components: list[LossComponent]


class ScheduledTrainingPolicy:
    """What happens in the epochs of one entry of a schedule; override the callbacks that matter.

    In an active epoch the scheduler calls

    1. `on_epoch_begin` once; then in each step
    2. `on_minibatch_begin` before the forward pass,
    3. `before_backward_pass` with the loss, which it may replace,
    4. `before_parameter_optimization` between the backward pass and the optimizer's step,
    5. `on_minibatch_end` after the optimizer's step; and
    6. `on_epoch_end` once.

    `on_thinned` is called whenever a remover of the schedule took filters out of the model.

    ``meta`` holds ``starting_epoch``, ``ending_epoch`` (exclusive), ``frequency`` (None for a list of epochs)
    and ``current_epoch``. `state_dict` returns what a resumed run needs: tensors, texts, numbers, truth
    values, None, lists and dictionaries.

    Args:
        classes: Kept for policies written for Distiller; not used.
        layers: Kept for policies written for Distiller; not used.
    """

    def __init__(self, classes: Any = None, layers: Any = None) -> None:
        self.classes = classes
        self.layers = layers

    def on_epoch_begin(
        self, model: nn.Module, zeros_mask_dict: MaskSet, meta: dict[str, Any], **kwargs: Any
    ) -> None:
        """Act before an epoch."""

    def on_minibatch_begin(
        self,
        model: nn.Module,
        epoch: int,
        minibatch_id: int,
        minibatches_per_epoch: int,
        zeros_mask_dict: MaskSet,
        meta: dict[str, Any],
        optimizer: Optimizer | None = None,
    ) -> None:
        """Act before a forward pass."""

    def before_backward_pass(
        self,
        model: nn.Module,
        epoch: int,
        minibatch_id: int,
        minibatches_per_epoch: int,
        loss: Tensor,
        zeros_mask_dict: MaskSet,
        optimizer: Optimizer | None = None,
    ) -> PolicyLoss | None:
        """Return the loss to use in place of ``loss`` with the terms added to it, or None to leave it."""
        return None

    def before_parameter_optimization(
        self,
        model: nn.Module,
        epoch: int,
        minibatch_id: int,
        minibatches_per_epoch: int,
        zeros_mask_dict: MaskSet,
        meta: dict[str, Any],
        optimizer: Optimizer | None,
    ) -> None:
        """Act before the optimizer's step."""

    def on_minibatch_end(
        self,
        model: nn.Module,
        epoch: int,
        minibatch_id: int,
        minibatches_per_epoch: int,
        zeros_mask_dict: MaskSet,
        optimizer: Optimizer | None,
    ) -> None:
        """Act after the optimizer's step."""

    def on_epoch_end(
        self, model: nn.Module, zeros_mask_dict: MaskSet, meta: dict[str, Any], **kwargs: Any
    ) -> None:
        """Act after an epoch."""

    def on_thinned(self, model: nn.Module, zeros_mask_dict: MaskSet) -> None:
        """Look at the model anew: some of its parameters gave way to smaller ones, and masks were cut alike.

        When a run is resumed that was thinned, this comes before the state is loaded.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to go on."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""


class LRPolicy(ScheduledTrainingPolicy):
    """Sets the learning rate of the next epoch at the end of each active one.

    Epochs are counted from the start of training: a policy that starts at epoch 4 goes on at the rate that
    its schedule has for epoch 5.

    Args:
        lr_scheduler: A learning-rate schedule of torch's kind.
    """

    def __init__(self, lr_scheduler: Any) -> None:
        super().__init__()
        self.lr_scheduler = lr_scheduler

    def on_epoch_end(
        self, model: nn.Module, zeros_mask_dict: MaskSet, meta: dict[str, Any], **kwargs: Any
    ) -> None:
        """Set the next epoch's rates; `ReduceLROnPlateau` reads ``metrics={"min": ..., "max": ...}``."""
        step_to(self.lr_scheduler, meta["current_epoch"] + 1, kwargs.get("metrics"))

    def state_dict(self) -> dict[str, Any]:
        """Return the part of the learning-rate schedule's state that changes during a run."""
        return moving_state(self.lr_scheduler)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.lr_scheduler.load_state_dict(dict(state))
