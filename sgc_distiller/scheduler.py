"""The scheduler: calls the policies of each epoch, in order, and keeps the masks."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sgc_distiller import checks
from sgc_distiller.checks import ArgumentError
from sgc_distiller.errors import UserError, nearest
from sgc_distiller.masks import MaskSet, ParameterMasker
from sgc_distiller.names import canonical
from sgc_distiller.policies import LossComponent, PolicyLoss

__all__ = ["CompressionScheduler"]

log = logging.getLogger(__name__)

_HOOKS = (
    "on_epoch_begin",
    "on_minibatch_begin",
    "before_backward_pass",
    "before_parameter_optimization",
    "on_minibatch_end",
    "on_epoch_end",
)


@dataclass
class _Entry:
    """One policy and the epochs in which it acts; a policy added twice has two entries."""

    policy: Any
    epochs: frozenset[int]
    meta: dict[str, Any]


class CompressionScheduler:
    """Calls the policies of a schedule from a training loop and keeps the model's masks.

    The six callbacks have Distiller's names and arguments, so policies written for Distiller run unchanged::

        scheduler.on_epoch_begin(epoch, optimizer)
        for step, batch in enumerate(batches):
            scheduler.on_minibatch_begin(epoch, step, len(batches), optimizer)
            loss = scheduler.before_backward_pass(epoch, step, len(batches), loss_of(batch), optimizer)
            optimizer.zero_grad()
            loss.backward()
            scheduler.before_parameter_optimization(epoch, step, len(batches), optimizer)
            optimizer.step()
            scheduler.on_minibatch_end(epoch, step, len(batches), optimizer)
        scheduler.on_epoch_end(epoch, optimizer, metrics={"min": loss_value, "max": score})

    No callback reads a tensor's value on the host, except that learning rates may follow a metric at the end
    of an epoch.

    Args:
        model: The model that is compressed: of a GAN the generator.
        zeros_mask_dict: Masks to start from, by parameter name, such as another scheduler's
            ``zeros_mask_dict``.
        device: Accepted for loops written for Distiller; masks lie where their parameters lie.

    Attributes:
        zeros_mask_dict: Maskers by parameter name; ``zeros_mask_dict[name].mask`` is None or zeros and ones.
        policies: The policies of each epoch, in the order in which they are called.
    """

    def __init__(
        self,
        model: nn.Module,
        zeros_mask_dict: Mapping[str, ParameterMasker] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.model = model
        self.device = device
        self.zeros_mask_dict = MaskSet(model)
        for name, masker in (zeros_mask_dict or {}).items():
            self.zeros_mask_dict[name].mask = masker.mask
        self.policies: dict[int, list[Any]] = {}
        self._entries: list[_Entry] = []
        self._waiting: list[dict[str, Any]] = []

    @property
    def sched_metadata(self) -> dict[Any, dict[str, Any]]:
        """Epochs of each policy; of a policy that was added twice, those of the last time."""
        return {entry.policy: entry.meta for entry in self._entries}

    def add_policy(
        self,
        policy: Any,
        epochs: Sequence[int] | None = None,
        starting_epoch: int | None = None,
        ending_epoch: int | None = None,
        frequency: int = 1,
    ) -> None:
        """Add a policy, either for a list of epochs or for a range of them.

        Args:
            policy: A `ScheduledTrainingPolicy`, or any object with its six callbacks.
            epochs: Increasing epochs, counted from 0.
            starting_epoch: First epoch of the range; 0 if it is not given.
            ending_epoch: End of the range, exclusive; 1 if it is not given.
            frequency: Distance between active epochs of the range.

        Raises:
            UserError: If callbacks are missing, or the epochs are none.
        """
        missing = [hook for hook in _HOOKS if not callable(getattr(policy, hook, None))]
        if missing:
            raise UserError(
                "Expected a policy with the callbacks of ScheduledTrainingPolicy, but "
                f"{type(policy).__name__} has no {', '.join(missing)}. Derive it from "
                "ScheduledTrainingPolicy."
            )
        active, meta = active_epochs(epochs, starting_epoch, ending_epoch, frequency)
        self._entries.append(_Entry(policy, frozenset(active), meta))
        for epoch in active:
            self.policies.setdefault(epoch, []).append(policy)
        self._restore_waiting()

    def on_epoch_begin(self, epoch: int, optimizer: Optimizer | None = None, **kwargs: Any) -> None:
        """Begin an epoch: pruners compute its masks."""
        if self._waiting:
            log.warning(
                "The loaded state has %d more policies than were added; they are dropped.", len(self._waiting)
            )
            self._waiting = []
        self.zeros_mask_dict.forget_plan()
        for entry in self._active(epoch):
            entry.policy.on_epoch_begin(self.model, self.zeros_mask_dict, entry.meta, **kwargs)

    def on_minibatch_begin(
        self, epoch: int, minibatch_id: int, minibatches_per_epoch: int, optimizer: Optimizer | None = None
    ) -> None:
        """Begin a step: the forward passes that follow see masked weights."""
        self.zeros_mask_dict.revert()
        for entry in self._active(epoch):
            entry.policy.on_minibatch_begin(
                self.model,
                epoch,
                minibatch_id,
                minibatches_per_epoch,
                self.zeros_mask_dict,
                entry.meta,
                optimizer,
            )

    def before_backward_pass(
        self,
        epoch: int,
        minibatch_id: int,
        minibatches_per_epoch: int,
        loss: Tensor,
        optimizer: Optimizer | None = None,
        return_loss_components: bool = False,
    ) -> Any:
        """Return the loss that the policies make of ``loss``.

        Args:
            epoch: The current epoch.
            minibatch_id: The current step in it, counted from 0.
            minibatches_per_epoch: Steps in an epoch.
            loss: The loss of the forward pass, a scalar.
            optimizer: The optimizer.
            return_loss_components: Whether to return a `PolicyLoss` with the terms of all policies.

        Raises:
            TypeError: If a policy returns something else than None or a `PolicyLoss`.
        """
        overall_loss, components = loss, []
        for entry in self._active(epoch):
            answer = entry.policy.before_backward_pass(
                self.model, epoch, minibatch_id, minibatches_per_epoch, overall_loss, self.zeros_mask_dict
            )
            if answer is not None:
                components += _loss_components(entry.policy, answer)
                overall_loss = answer.overall_loss
        return PolicyLoss(overall_loss, components) if return_loss_components else overall_loss

    def before_parameter_optimization(
        self, epoch: int, minibatch_id: int, minibatches_per_epoch: int, optimizer: Optimizer | None
    ) -> None:
        """Come between the backward pass and the optimizer's step."""
        for entry in self._active(epoch):
            entry.policy.before_parameter_optimization(
                self.model,
                epoch,
                minibatch_id,
                minibatches_per_epoch,
                self.zeros_mask_dict,
                entry.meta,
                optimizer,
            )

    def on_minibatch_end(
        self, epoch: int, minibatch_id: int, minibatches_per_epoch: int, optimizer: Optimizer | None = None
    ) -> None:
        """End a step: weights that the optimizer moved are masked again, in every epoch."""
        self.zeros_mask_dict.drop_copies()  # of weights from before the optimizer's step
        self.zeros_mask_dict.mask_weights(is_forward=False)
        for entry in self._active(epoch):
            entry.policy.on_minibatch_end(
                self.model, epoch, minibatch_id, minibatches_per_epoch, self.zeros_mask_dict, optimizer
            )

    def on_epoch_end(self, epoch: int, optimizer: Optimizer | None = None, **kwargs: Any) -> None:
        """End an epoch: learning rates change; ``metrics`` is read by schedules that follow a metric."""
        for entry in self._active(epoch):
            entry.meta["optimizer"] = optimizer
            entry.policy.on_epoch_end(self.model, self.zeros_mask_dict, entry.meta, **kwargs)

    def mask_all_weights(self, is_forward: bool = True) -> None:
        """Mask the weights for good.

        Args:
            is_forward: Whether weights that are masked on the forward pass only are masked too.
        """
        self.zeros_mask_dict.mask_weights(is_forward)

    @contextmanager
    def masked_weights(self) -> Iterator[None]:
        """Show masked weights inside the block, for evaluation; weights dense between steps come back."""
        with self.zeros_mask_dict.masked():
            yield

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs, beside the states of model and optimizer.

        Returns:
            ``masks_dict`` (the mask or None by parameter name, as Distiller's), ``maskers`` (flags and dense
            copies) and ``policies``. It can be loaded with ``torch.load(weights_only=True)``.
        """
        maskers = {name: _masker_state(masker) for name, masker in self.zeros_mask_dict.items()}
        return {
            "masks_dict": {name: masker.mask for name, masker in self.zeros_mask_dict.items()},
            "maskers": {name: state for name, state in maskers.items() if state},
            "policies": [_entry_state(entry) for entry in self._entries],
        }

    def load_state_dict(self, state: Mapping[str, Any], normalize_dataparallel_keys: bool = False) -> None:
        """Take over what `state_dict` returned, or a Distiller checkpoint's ``{"masks_dict": ...}``.

        Policies may be added before or afterwards, in the order of the run that was saved.

        Args:
            state: The state.
            normalize_dataparallel_keys: Accepted for loops written for Distiller; the path elements
                ``module`` and ``_orig_mod`` are ignored anyway.

        Raises:
            UserError: If the state is that of another model or another schedule; nothing is changed then.
        """
        if "masks_dict" not in state:
            raise UserError(f"Expected a scheduler's state with 'masks_dict', got one with {sorted(state)}.")
        masks = self._matched(state["masks_dict"])
        self._check_policies(state.get("policies", []))
        maskers = {canonical(name): values for name, values in state.get("maskers", {}).items()}
        for name, param in self.model.named_parameters():
            if name in self.zeros_mask_dict:
                _load_masker(self.zeros_mask_dict[name], param, masks[name], maskers.get(canonical(name), {}))
        self.zeros_mask_dict.forget_plan()
        self._waiting = [dict(policy) for policy in state.get("policies", [])]
        for entry in self._entries:
            self._restore(entry)

    def _active(self, epoch: int) -> Iterator[_Entry]:
        for entry in self._entries:
            if epoch in entry.epochs:
                entry.meta["current_epoch"] = epoch
                yield entry

    def _matched(self, saved: Mapping[str, Tensor | None]) -> dict[str, Tensor | None]:
        """Return the saved masks by this model's parameter names, or refuse those of another model."""
        by_name = {canonical(name): mask for name, mask in saved.items()}
        shapes = {
            name: param.shape for name, param in self.model.named_parameters() if name in self.zeros_mask_dict
        }
        unknown = set(by_name) - {canonical(name) for name in shapes}
        lost = sorted(name for name in unknown if by_name[name] is not None)
        if lost:
            raise UserError(
                f"Expected masks of this model, got one of {lost[0]!r}, which it does not have."
                f"{nearest(lost[0], shapes)} Load the checkpoint of the same network."
            )
        matched = {}
        for name, shape in shapes.items():
            if canonical(name) not in by_name:
                raise UserError(
                    f"Expected masks of this model, but {name!r} is missing. Load the checkpoint of the same "
                    "network."
                )
            mask = matched[name] = by_name[canonical(name)]
            if mask is not None and mask.shape != shape:
                raise UserError(
                    f"Expected a mask of shape {tuple(shape)} for {name!r}, got {tuple(mask.shape)}. Load "
                    "the checkpoint of the same network."
                )
        return matched

    def _check_policies(self, saved: Sequence[Mapping[str, Any]]) -> None:
        for index, (entry, state) in enumerate(zip(self._entries, saved, strict=False), 1):
            _check_same(index, entry, state)

    def _restore_waiting(self) -> None:
        if self._waiting:
            _check_same(len(self._entries), self._entries[-1], self._waiting[0])
            self._restore(self._entries[-1])

    def _restore(self, entry: _Entry) -> None:
        if not self._waiting:
            return
        state = self._waiting.pop(0)
        if state["current_epoch"] is not None:
            entry.meta["current_epoch"] = state["current_epoch"]
        if state["state"] and hasattr(entry.policy, "load_state_dict"):
            entry.policy.load_state_dict(state["state"])


def active_epochs(
    epochs: Sequence[int] | None, starting_epoch: int | None, ending_epoch: int | None, frequency: int
) -> tuple[list[int], dict[str, Any]]:
    """Return the epochs in which a policy acts, and its ``meta``; see `CompressionScheduler.add_policy`.

    Raises:
        UserError: If they are no epochs.
    """
    if epochs is not None:
        if starting_epoch is not None or ending_epoch is not None:
            raise ArgumentError(
                "Expected either 'epochs' or 'starting_epoch', 'ending_epoch' and 'frequency', got both. "
                "Leave one out.",
                "epochs",
            )
        active = list(epochs)
        if not active or not all(_is_count(epoch) for epoch in active) or active != sorted(set(active)):
            raise ArgumentError(
                f"Expected a list of increasing epochs, counted from 0, such as [0, 2, 5], got {active}.",
                "epochs",
            )
        return active, {"starting_epoch": active[0], "ending_epoch": active[-1] + 1, "frequency": None}
    start = 0 if starting_epoch is None else checks.integer(starting_epoch, "starting_epoch", low=0)
    end = start + 1 if ending_epoch is None else ending_epoch
    if not _is_count(end) or end <= start:
        raise ArgumentError(
            f"Expected a whole number greater than 'starting_epoch' ({start}), since this epoch is not "
            f"active any more, got {end!r}.",
            "ending_epoch",
        )
    if not _is_count(frequency) or not 0 < frequency <= end - start:
        raise ArgumentError(
            f"Expected a whole number from 1 to {end - start} (ending_epoch - starting_epoch), got "
            f"{frequency!r}.",
            "frequency",
        )
    meta = {"starting_epoch": start, "ending_epoch": end, "frequency": frequency}
    return list(range(start, end, frequency)), meta


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _loss_components(policy: Any, answer: Any) -> list[LossComponent]:
    name = type(policy).__name__
    if not hasattr(answer, "overall_loss") or not hasattr(answer, "loss_components"):
        raise TypeError(
            f"Expected None or a PolicyLoss from {name}.before_backward_pass, got {type(answer).__name__}."
        )
    given = answer.loss_components
    components = given if isinstance(given, list) else [given]
    for component in components:
        if not hasattr(component, "name") or not hasattr(component, "value"):
            raise TypeError(
                f"Expected LossComponents in the PolicyLoss of {name}.before_backward_pass, got "
                f"{type(component).__name__}."
            )
    return components


def _masker_state(masker: ParameterMasker) -> dict[str, Any]:
    state = {
        "use_double_copies": masker.use_double_copies,
        "mask_on_forward_only": masker.mask_on_forward_only,
        "gradient_holders": masker.gradient_holders,
        "unmasked_copy": masker.unmasked_copy,
    }
    return {key: value for key, value in state.items() if isinstance(value, Tensor) or value}


def _load_masker(
    masker: ParameterMasker, param: nn.Parameter, mask: Tensor | None, state: Mapping[str, Any]
) -> None:
    masker.mask = None if mask is None else mask.to(device=param.device, dtype=param.dtype, copy=True)
    masker.use_double_copies = state.get("use_double_copies", False)
    masker.mask_on_forward_only = state.get("mask_on_forward_only", False)
    copy = state.get("unmasked_copy")
    masker.unmasked_copy = None if copy is None else copy.to(param.device, copy=True)
    while masker.gradient_holders:
        masker.release_gradient()
    for _ in range(state.get("gradient_holders", 0)):
        masker.hold_gradient(param)


def _entry_state(entry: _Entry) -> dict[str, Any]:
    return {
        "policy": type(entry.policy).__name__,
        "current_epoch": entry.meta.get("current_epoch"),
        "state": entry.policy.state_dict() if hasattr(entry.policy, "state_dict") else {},
    }


def _check_same(index: int, entry: _Entry, state: Mapping[str, Any]) -> None:
    name = type(entry.policy).__name__
    if name != state["policy"]:
        raise UserError(
            f"Expected the schedule of the saved run, whose policy number {index} is a {state['policy']}, "
            f"got a {name}. Resume with the same schedule, or load only the masks: "
            f"load_state_dict({'masks_dict': state['masks_dict']})."
        )
