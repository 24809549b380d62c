"""The policy that regularizes: its terms join the loss, its masks are used once, or kept at the end."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sgc_distiller import checks
from sgc_distiller.epochs import last_active_epoch
from sgc_distiller.errors import UserError
from sgc_distiller.masks import MaskSet, ParameterMasker
from sgc_distiller.policies import LossComponent, PolicyLoss, ScheduledTrainingPolicy
from sgc_distiller.pruners import Convention
from sgc_distiller.regularizers import ParameterRegularizer

__all__ = ["RegularizationPolicy"]

log = logging.getLogger(__name__)


class RegularizationPolicy(ScheduledTrainingPolicy):
    """Adds a regularizer's terms to the loss, and drops what its threshold says after each step.

    What is small becomes 0 after the optimizer's step and may grow again: the threshold's mask is used once.
    Masks of pruners stay in force beside it.

    Args:
        regularizer: One of `sgc_distiller.regularizers`, or anything with Distiller's
            ``loss(param, param_name, regularizer_loss, zeros_mask_dict)``, which adds to
            ``regularizer_loss`` in place or returns the sum; ``threshold_criteria``; and, where that is not
            None, ``threshold(param, param_name, zeros_mask_dict)``, which sets
            ``zeros_mask_dict[param_name].mask``. A mask that it marks with ``is_regularization_mask = True``
            is used once; others stay.
        keep_mask: Whether the last masks become lasting at the end of the last active epoch. Where a weight
            has a pruner's mask, what both of them keep is left.

    Raises:
        UserError: If the regularizer has no ``loss``, or has a threshold but no ``threshold``.
    """

    mode = "add"  # to the loss so far: a policy that replaces the loss must stand before this one

    def __init__(self, regularizer: Any, keep_mask: bool = False) -> None:
        super().__init__()
        self.regularizer = regularizer
        self.keep_mask = checks.boolean(keep_mask, "keep_mask")
        needed = ("loss", "threshold") if self.has_threshold else ("loss",)
        missing = [method for method in needed if not callable(getattr(regularizer, method, None))]
        if missing:
            raise UserError(
                f"Expected a regularizer with {' and '.join(f'{method}()' for method in needed)}, but "
                f"{type(regularizer).__name__} has no {' and no '.join(missing)}."
            )
        self._bound_to: nn.Module | None = None
        self._parameters: list[tuple[str, nn.Parameter]] | None = None
        self._is_last_epoch = False
        self._is_kept = False

    @property
    def has_threshold(self) -> bool:
        """Whether the regularizer drops what is small."""
        return getattr(self.regularizer, "threshold_criteria", None) is not None

    def bind(self, model: nn.Module, spared: Collection[str] = (), convention: Convention = "stored") -> None:
        """Find the parameters of ``model`` that the regularizer means.

        Args:
            model: The model that is regularized.
            spared: Parameters that no pattern matches.
            convention: What Filters and Channels of a weight are.

        Raises:
            UserError: If a name or a pattern fits none, or a parameter has no such groups.
        """
        if isinstance(self.regularizer, ParameterRegularizer):
            self.regularizer.bind(model, spared, convention)
        if self.keep_mask and not self.has_threshold:
            log.warning(
                "keep_mask has no effect: the regularizer %s makes no masks, since it has no "
                "threshold_criteria.",
                getattr(self.regularizer, "name", type(self.regularizer).__name__),
            )
        self._bound_to = model
        self._parameters = None

    def drops(self, param_name: str) -> bool:
        """Return whether the regularizer's threshold may drop elements of a parameter, after `bind`."""
        return self.has_threshold and param_name in getattr(self.regularizer, "reg_regims", (param_name,))

    def on_epoch_begin(
        self, model: nn.Module, zeros_mask_dict: MaskSet, meta: dict[str, Any], **kwargs: Any
    ) -> None:
        """Note whether this is the last active epoch."""
        self._parameters = None
        self._regularized(model)
        self._is_last_epoch = meta["current_epoch"] == last_active_epoch(meta)
        self._is_kept = False

    def before_backward_pass(
        self,
        model: nn.Module,
        epoch: int,
        minibatch_id: int,
        minibatches_per_epoch: int,
        loss: Tensor,
        zeros_mask_dict: MaskSet,
        optimizer: Optimizer | None = None,
    ) -> PolicyLoss:
        """Return the loss with the regularizer's terms; their sum is named ``<class>_loss``."""
        total = torch.zeros((), dtype=torch.float32, device=loss.device)
        for name, param in self._regularized(model):
            version = total._version
            answer = self.regularizer.loss(param, name, total, zeros_mask_dict)
            if isinstance(answer, Tensor) and total._version == version:  # else it was added in place
                total = answer
        component = LossComponent(f"{type(self.regularizer).__name__}_loss", total.detach())
        return PolicyLoss(loss + total, [component])

    def on_minibatch_end(
        self,
        model: nn.Module,
        epoch: int,
        minibatch_id: int,
        minibatches_per_epoch: int,
        zeros_mask_dict: MaskSet,
        optimizer: Optimizer | None,
    ) -> None:
        """Drop what is small; in the last step of the last active epoch for good if that is asked for."""
        if not self.has_threshold:
            return
        is_end = self._is_last_epoch and minibatch_id == minibatches_per_epoch - 1
        self._drop_small(model, zeros_mask_dict, is_lasting=is_end and self.keep_mask)

    def on_epoch_end(
        self, model: nn.Module, zeros_mask_dict: MaskSet, meta: dict[str, Any], **kwargs: Any
    ) -> None:
        """Keep the masks where the last active epoch ended before its last step."""
        if self.has_threshold and self.keep_mask and self._is_last_epoch and not self._is_kept:
            self._drop_small(model, zeros_mask_dict, is_lasting=True)

    def on_thinned(self, model: nn.Module, zeros_mask_dict: MaskSet) -> None:
        """Look at the parameters anew."""
        self._parameters = None

    def state_dict(self) -> dict[str, Any]:
        """Return what the steps of the current epoch need; masks are the scheduler's."""
        return {"is_last_epoch": self._is_last_epoch, "is_kept": self._is_kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self._is_last_epoch = bool(state["is_last_epoch"])
        self._is_kept = bool(state["is_kept"])

    def _regularized(self, model: nn.Module) -> list[tuple[str, nn.Parameter]]:
        """Return the parameters that the regularizer is asked about; one of the user's sees all of them."""
        if self._bound_to is not model:
            self.bind(model)
        if self._parameters is None:
            named = list(model.named_parameters())
            if isinstance(self.regularizer, ParameterRegularizer):
                named = [(name, param) for name, param in named if name in self.regularizer.reg_regims]
            self._parameters = named
        return self._parameters

    def _drop_small(self, model: nn.Module, zeros_mask_dict: MaskSet, is_lasting: bool) -> None:
        """Mask the weights with the threshold's masks.

        The regularizer writes on drafts of the maskers, so the pruners' masks are not lost.
        """
        parameters = self._regularized(model)
        drafts = {name: _draft(zeros_mask_dict[name]) for name, _ in parameters}
        for name, param in parameters:
            self.regularizer.threshold(param, name, drafts)
        for name, param in parameters:
            masker, mask = zeros_mask_dict[name], drafts[name].mask
            if mask is None or mask is masker.mask:
                continue
            if not drafts[name].is_regularization_mask:
                masker.mask = mask
            elif is_lasting:
                mask = masker.mask = mask if masker.mask is None else mask * masker.mask
                masker.use_double_copies = False
                masker.mask_on_forward_only = False
            with torch.no_grad():
                param.mul_(mask)
        self._is_kept = is_lasting


def _draft(masker: ParameterMasker) -> ParameterMasker:
    draft = ParameterMasker(masker.param_name)
    draft.mask = masker.mask
    return draft
