"""What follows from a mask: parameters that belong to a pruned filter, and what the optimizer remembers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sgc_distiller import checks
from sgc_distiller.masks import MaskSet
from sgc_distiller.names import find_all_names, layer_axes
from sgc_distiller.neighbours import norms_after
from sgc_distiller.policies import ScheduledTrainingPolicy
from sgc_distiller.structures import Grouping, find_grouping

__all__ = ["DependentMasksPolicy"]


class DependentMasksPolicy(ScheduledTrainingPolicy):
    """Completes the masks that pruning policies set; it stands behind them in a schedule.

    1. A filter of ``filters`` that is pruned takes its bias, and its channel of the weight and bias of the
       normalisation layer behind it, along.
    2. Where a mask has changed that lasts after the optimizer's step, what the optimizer remembers of the
       masked elements (momentum, Adam's moments) is set to 0.

    A schedule with a ``gan:`` section has this policy of itself, in every epoch in which something is pruned.

    Args:
        model: The model that is pruned.
        name: The instance's name in the schedule.
        filters: Names or patterns of the weights whose filters (the layer's outputs) are pruned.
        clear_moments: Whether point 2 holds.

    Raises:
        UserError: If a name or a pattern fits no weight of a convolution or linear layer.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str = "dependent_masks",
        filters: Sequence[str] = (),
        clear_moments: bool = True,
    ) -> None:
        super().__init__()
        self.name = name
        self.clear_moments = checks.boolean(clear_moments, "clear_moments")
        self.filters = find_all_names(model, checks.names(filters, "filters"))
        axes, norms = layer_axes(model), norms_after(model)
        parameters = dict(model.named_parameters())
        self._companions: dict[str, list[str]] = {}
        for weight in self.filters:
            if weight not in axes:
                raise checks.ArgumentError(
                    f"Expected weights of convolutions or linear layers, got {weight!r}.", "filters"
                )
            wanted = [f"{weight.removesuffix('.weight')}.bias"]
            if weight in norms:
                wanted += [f"{norms[weight].path}.weight", f"{norms[weight].path}.bias"]
            self._companions[weight] = [item for item in wanted if item in parameters]
        self._groupings = self._find_groupings(model)
        self._filters_seen: dict[str, Tensor | None] = {}
        self._own: dict[str, Tensor | None] = {}
        self._cleared: dict[str, Tensor | None] = {}
        self._maskers: Mapping[str, Any] = {}
        self._saved: Mapping[str, Sequence[str]] = {}
        self._parameters: dict[str, nn.Parameter] = {}  # of the epoch

    def on_epoch_begin(
        self, model: nn.Module, zeros_mask_dict: MaskSet, meta: dict[str, Any], **kwargs: Any
    ) -> None:
        """Complete the epoch's masks."""
        self._parameters = dict(model.named_parameters())
        self._complete(zeros_mask_dict)

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
        """Complete masks that were computed in the middle of an epoch, apply them, and clear moments."""
        parameters = self._parameters or dict(model.named_parameters())
        for name in self._complete(zeros_mask_dict):
            zeros_mask_dict[name].revert_weights(parameters[name])  # masked by the mask before, else
            zeros_mask_dict[name].apply_mask(parameters[name])
        if self.clear_moments and optimizer is not None:
            self._clear(parameters, zeros_mask_dict, optimizer)

    def on_epoch_end(
        self, model: nn.Module, zeros_mask_dict: MaskSet, meta: dict[str, Any], **kwargs: Any
    ) -> None:
        """Complete masks that became lasting with the epoch, such as a regularizer's, and apply them."""
        parameters = dict(model.named_parameters())
        for name in self._complete(zeros_mask_dict):
            if not zeros_mask_dict[name].mask_on_forward_only:
                zeros_mask_dict[name].mask_tensor(parameters[name])

    def on_thinned(self, model: nn.Module, zeros_mask_dict: MaskSet) -> None:
        """Look at filters and masks anew."""
        self._groupings = self._find_groupings(model)
        self._parameters = dict(model.named_parameters())
        for known in (self._filters_seen, self._own, self._cleared):
            known.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return for which parameters the masks of this moment are known: completed, made here, cleared."""
        known = {"filters": self._filters_seen, "own": self._own, "cleared": self._cleared}
        return {
            kind: [name for name, mask in masks.items() if mask is self._maskers[name].mask]
            for kind, masks in known.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned; `recognise_masks` looks up which masks these are."""
        self._saved = dict(state)

    def recognise_masks(self, zeros_mask_dict: Mapping[str, Any]) -> None:
        """Know the masks that were known when the state was saved, now that they are loaded."""
        kinds = (("filters", self._filters_seen), ("own", self._own), ("cleared", self._cleared))
        for kind, masks in kinds:
            masks.clear()
            masks.update({name: zeros_mask_dict[name].mask for name in self._saved.get(kind, ())})
        self._maskers = zeros_mask_dict

    def _find_groupings(self, model: nn.Module) -> dict[str, Grouping]:
        axes, parameters = layer_axes(model), dict(model.named_parameters())
        return {name: find_grouping("Filters", parameters[name].shape, axes[name]) for name in self.filters}

    def _complete(self, maskers: Mapping[str, Any]) -> list[str]:
        """Set the masks of what belongs to filters whose masks have changed; return their names."""
        changed = []
        self._maskers = maskers
        for weight, companions in self._companions.items():
            mask = maskers[weight].mask
            is_new = mask is not self._filters_seen.get(weight)
            self._filters_seen[weight] = mask
            for name in companions:
                masker, own = maskers[name], self._own.get(name)
                if not is_new and masker.mask is own:
                    continue
                others = None if masker.mask is own else masker.mask
                masker.mask = self._own[name] = self._companion_mask(weight, mask, others)
                masker.mask_on_forward_only = maskers[weight].mask_on_forward_only
                masker.use_double_copies = maskers[weight].use_double_copies
                changed.append(name)
        return changed

    def _companion_mask(self, weight: str, mask: Tensor | None, others: Tensor | None) -> Tensor | None:
        """Return the mask of a parameter with one element a filter; ``others`` is what others masked."""
        if mask is None:
            return others
        kept = (self._groupings[weight].gather(mask) != 0).any(dim=1).to(mask.dtype)
        return kept if others is None else kept * others

    def _clear(
        self, parameters: Mapping[str, nn.Parameter], maskers: Mapping[str, Any], optimizer: Optimizer
    ) -> None:
        """Set to 0 what the optimizer remembers of elements whose masks have changed."""
        for name, parameter in parameters.items():
            mask = maskers[name].mask
            if mask is self._cleared.get(name) or maskers[name].mask_on_forward_only:
                continue
            self._cleared[name] = mask
            for value in optimizer.state.get(parameter, {}).values():
                if mask is not None and isinstance(value, Tensor) and value.shape == parameter.shape:
                    with torch.no_grad():
                        value.mul_(mask)
