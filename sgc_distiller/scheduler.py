"""The scheduler: calls the policies of each epoch, in order, and keeps the masks."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sgc_distiller.epochs import active_epochs
from sgc_distiller.errors import UserError, nearest
from sgc_distiller.masks import MaskSet, ParameterMasker
from sgc_distiller.policies import LossComponent, PolicyLoss
from sgc_distiller.scheduler_state import Entry, check_policies, load_masks_state, masks_state

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
            if name not in self.zeros_mask_dict:
                raise UserError(
                    f"Expected masks of the model's parameters, got one of {name!r}."
                    f"{nearest(name, self.zeros_mask_dict)}"
                )
            self.zeros_mask_dict[name].mask = masker.mask
        self.policies: dict[int, list[Any]] = {}
        self._entries: list[Entry] = []
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
        entry = Entry(policy, frozenset(active), meta)
        if self._waiting:
            check_policies([entry], self._waiting, len(self._entries) + 1)
            entry.load_state_dict(self._waiting.pop(0), self.zeros_mask_dict)
        self._entries.append(entry)
        for epoch in active:
            self.policies.setdefault(epoch, []).append(policy)

    @contextmanager
    def all_or_none(self) -> Iterator[None]:
        """Add the policies that are added inside the block, or none of them if one is refused."""
        entries, waiting = list(self._entries), list(self._waiting)
        policies = {epoch: list(found) for epoch, found in self.policies.items()}
        try:
            yield
        except BaseException:
            self._entries, self._waiting, self.policies = entries, waiting, policies
            raise

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
            if self.zeros_mask_dict.take_cut():
                self.follow_thinning()

    def follow_thinning(self) -> None:
        """Let all policies look at the model anew, some of whose parameters gave way to smaller ones.

        After a remover of the schedule this is done already. Who makes the model thinner otherwise, such as
        when a thinned run is resumed, calls this before the state is loaded.
        """
        self.zeros_mask_dict.forget_plan()
        for policy in {id(entry.policy): entry.policy for entry in self._entries}.values():
            if hasattr(policy, "on_thinned"):
                policy.on_thinned(self.model, self.zeros_mask_dict)

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

    def mask_copy(self, model: nn.Module) -> None:
        """Mask a copy of the model for good, such as a moving average of its weights.

        Args:
            model: A network with the same parameters; ``module`` and ``_orig_mod`` in names are ignored.

        Raises:
            UserError: If parameters are unknown, missing or of another shape.
        """
        self.zeros_mask_dict.mask_copy(model)

    @contextmanager
    def masked_weights(self, epoch: int | None = None) -> Iterator[None]:
        """Show masked weights inside the block, for evaluation; weights dense between steps come back.

        Args:
            epoch: Show what the steps of this epoch see: where masks are used on the forward pass only, they
                are not used in epochs without a pruning policy. None for masks in any case.
        """
        if epoch is not None and not any(
            hasattr(policy, "pruner") for policy in self.policies.get(epoch, ())
        ):
            yield
            return
        with self.zeros_mask_dict.masked():
            yield

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs, beside the states of model and optimizer.

        Returns:
            ``masks_dict`` (the mask or None by parameter name, as Distiller's), ``maskers`` (flags and dense
            copies) and ``policies``. It can be loaded with ``torch.load(weights_only=True)``.
        """
        return {
            **masks_state(self.zeros_mask_dict),
            "policies": [entry.state_dict() for entry in self._entries],
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
        saved = list(state.get("policies", []))
        check_policies(self._entries, saved)
        load_masks_state(self.model, self.zeros_mask_dict, state)
        for entry, policy_state in zip(self._entries, saved, strict=False):
            entry.load_state_dict(policy_state, self.zeros_mask_dict)
        self._waiting = saved[len(self._entries) :]

    def _active(self, epoch: int) -> Iterator[Entry]:
        for entry in self._entries:
            if epoch in entry.epochs:
                entry.meta["current_epoch"] = epoch
                yield entry


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
