"""The policy that prunes: when masks are computed, and how they are applied."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from sgc_distiller import checks
from sgc_distiller.element_pruners import checked_levels, find_levels
from sgc_distiller.epochs import last_active_epoch
from sgc_distiller.errors import UserError, nearest
from sgc_distiller.masks import MaskSet
from sgc_distiller.neighbours import Norm, folded_weights, norms_after
from sgc_distiller.policies import ScheduledTrainingPolicy
from sgc_distiller.pruners import Convention

__all__ = ["PruningPolicy"]

log = logging.getLogger(__name__)

_PRUNING_DEFAULTS: dict[str, Any] = {
    "levels": None,
    "keep_mask": False,
    "mini_batch_pruning_frequency": 0,
    "mask_on_forward_only": False,
    "mask_gradients": False,
    "use_double_copies": False,
    "discard_masks_at_minibatch_end": False,
    "skip_first_minibatch": False,
    "fold_batchnorm": False,
}


class PruningPolicy(ScheduledTrainingPolicy):
    """Computes masks with a pruner and applies them.

    Masks are computed when an active epoch begins, applied before each forward pass, and applied again after
    each optimizer step, since momentum moves weights whose gradient is 0. They stay after the policy's last
    epoch.

    Args:
        pruner: Anything with Distiller's ``set_param_mask(param, param_name, zeros_mask_dict, meta)``.
        pruner_args: Options, all of them optional:
            ``levels`` replaces the levels of a `SparsityLevelParameterPruner`;
            ``keep_mask`` makes masks lasting at the end of the last active epoch, whatever the next three
            say; ``mask_on_forward_only`` leaves the weights dense after the optimizer's step;
            ``mask_gradients`` masks the gradients too (needs ``mask_on_forward_only``);
            ``use_double_copies`` trains dense weights with the gradients of the masked ones (has a lasting
            effect with ``mask_on_forward_only`` only);
            ``mini_batch_pruning_frequency`` computes masks also every so many steps, counted from step 0 of
            epoch 0, 0 for never;
            ``discard_masks_at_minibatch_end`` drops all masks after each step;
            ``skip_first_minibatch`` sets the first masks at step 1 of epoch 0 instead of at the beginning;
            ``fold_batchnorm`` ranks the weights of convolutions as they are with the batch norm behind them
            folded in (of a plain schedule 2-D convolutions only, as in Distiller); a leader is ranked
            by its own weights.
        classes: Kept for policies written for Distiller; not used.
        layers: Kept for policies written for Distiller; not used.

    Raises:
        UserError: If an option is unknown, has a value that means nothing, or does not go with another.
    """

    def __init__(
        self,
        pruner: Any,
        pruner_args: Mapping[str, Any] | None = None,
        classes: Any = None,
        layers: Any = None,
    ) -> None:
        super().__init__(classes, layers)
        self.pruner = pruner
        options = _checked_options(pruner_args or {})
        self.levels: dict[str, float] | None = options["levels"]
        if self.levels is not None and not hasattr(pruner, "levels"):
            raise checks.ArgumentError(
                "Expected a pruner with levels, such as SparsityLevelParameterPruner, got "
                f"{type(pruner).__name__}.",
                "levels",
            )
        self.keep_mask: bool = options["keep_mask"]
        self.mini_batch_pruning_frequency: int = options["mini_batch_pruning_frequency"]
        self.mask_on_forward_only: bool = options["mask_on_forward_only"]
        self.mask_gradients: bool = options["mask_gradients"]
        self.use_double_copies: bool = options["use_double_copies"]
        self.discard_masks_at_minibatch_end: bool = options["discard_masks_at_minibatch_end"]
        self.skip_first_minibatch: bool = options["skip_first_minibatch"]
        self.fold_batchnorm: bool = options["fold_batchnorm"]
        if self.fold_batchnorm and not getattr(pruner, "ranks_weights", True):
            raise checks.ArgumentError(
                f"Expected a pruner that ranks weights, got {type(pruner).__name__}. Leave the option out.",
                "fold_batchnorm",
            )
        self.is_initialized = False
        self._bound_to: nn.Module | None = None
        self._binding: tuple[Collection[str], Convention] = ((), "stored")
        self._is_outdated = False
        self._found_levels: dict[str, float] | None = None
        self._norms: dict[str, Norm] = {}
        self._holds_gradients = False

    def bind(self, model: nn.Module, spared: Collection[str] = (), convention: Convention = "stored") -> None:
        """Find the parameters of ``model`` that the pruner and the levels mean.

        Args:
            model: The model that is pruned.
            spared: Parameters that no pattern matches.
            convention: What Filters and Channels of a weight are.

        Raises:
            UserError: If a name or a pattern fits none, or norms are to be folded and there are none.
        """
        if hasattr(self.pruner, "bind"):
            self.pruner.bind(model, spared, convention)
        if self.levels is not None:
            self._found_levels = find_levels(model, self.levels, spared)
        if self.fold_batchnorm:
            self._norms = _foldable(model, convention, getattr(self.pruner, "weights", None))
        self._bound_to = model
        self._binding = (spared, convention)

    def check_gradients(self, model: nn.Module) -> None:
        """Refuse to mask gradients, with a `UserError`, where a parameter does not learn; schedules do so."""
        frozen = [name for name, param in model.named_parameters() if not param.requires_grad]
        if self.mask_gradients and frozen:
            raise checks.ArgumentError(
                f"Expected parameters that learn, but {frozen[0]!r} does not (requires_grad is False). Leave "
                "the option out, or let it learn.",
                "mask_gradients",
            )

    def watch(self) -> None:
        """Let the pruner begin to measure what its ranking needs; done once the whole schedule is built."""
        if hasattr(self.pruner, "watch"):
            self.pruner.watch()
        if getattr(self.pruner, "scales_weights", False) and not (
            self.mask_on_forward_only and self.use_double_copies
        ):
            log.warning(
                "%s makes the weights that stay larger in every step, for good. Set 'mask_on_forward_only: "
                "true' and 'use_double_copies: true' beside it.",
                type(self.pruner).__name__,
            )

    def prunes(self, param_name: str) -> bool:
        """Return whether the pruner may set the mask of a parameter; one that does not say may set any."""
        if hasattr(self.pruner, "prunes"):
            return bool(self.pruner.prunes(param_name))
        listed = getattr(self.pruner, "weights", None)
        return param_name in listed if isinstance(listed, Collection) and listed else True

    def use_levels(self) -> None:
        """Make the pruner prune to this policy's levels, if it has any."""
        if self._found_levels is not None:
            self.pruner.levels = self._found_levels

    def on_epoch_begin(
        self, model: nn.Module, zeros_mask_dict: MaskSet, meta: dict[str, Any], **kwargs: Any
    ) -> None:
        """Compute the epoch's masks; in the first active epoch also set the maskers' flags."""
        if self._bound_to is not model:
            self.bind(model)
            self.watch()
        self.use_levels()
        meta["model"] = model
        is_first = not self.is_initialized
        if is_first:
            self._initialize(model, zeros_mask_dict)
        zeros_mask_dict.revert()
        if not (is_first and self.skip_first_minibatch):
            self._set_masks(model, zeros_mask_dict, meta)

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
        """Apply the masks, after computing them anew where that is due."""
        if not self.is_initialized:
            raise UserError(
                f"Expected on_epoch_begin({epoch}) before on_minibatch_begin({epoch}, {minibatch_id}): no "
                "masks were computed. Call the scheduler's on_epoch_begin before the first step of each "
                "epoch."
            )
        step = epoch * minibatches_per_epoch + minibatch_id
        every = self.mini_batch_pruning_frequency
        is_due = minibatch_id > 0 and every > 0 and step % every == 0
        if is_due or (self.skip_first_minibatch and step == 1):
            zeros_mask_dict.revert()
            self._set_masks(model, zeros_mask_dict, meta)
        zeros_mask_dict.apply()

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
        """Bring back the dense weights where double copies are used."""
        zeros_mask_dict.revert()

    def on_minibatch_end(
        self,
        model: nn.Module,
        epoch: int,
        minibatch_id: int,
        minibatches_per_epoch: int,
        zeros_mask_dict: MaskSet,
        optimizer: Optimizer | None,
    ) -> None:
        """Drop all masks if the policy asks for it."""
        if self.discard_masks_at_minibatch_end:
            for masker in zeros_mask_dict.values():
                masker.mask = None

    def on_epoch_end(
        self, model: nn.Module, zeros_mask_dict: MaskSet, meta: dict[str, Any], **kwargs: Any
    ) -> None:
        """In the last active epoch, make the masks lasting if asked to, and stop masking gradients."""
        if meta["current_epoch"] != last_active_epoch(meta):
            return
        if self._holds_gradients:
            self._holds_gradients = False
            for masker in zeros_mask_dict.values():
                masker.release_gradient()
        if self.keep_mask:
            zeros_mask_dict.drop_copies()
            for masker in zeros_mask_dict.values():
                masker.use_double_copies = False
                masker.mask_on_forward_only = False
            zeros_mask_dict.mask_weights()

    def on_thinned(self, model: nn.Module, zeros_mask_dict: MaskSet) -> None:
        """Let the pruner look at the weights anew when it sets masks next; its shares are of what is left."""
        self._is_outdated = hasattr(self.pruner, "forget_sizes")
        if self._is_outdated:
            self.pruner.forget_sizes()

    def state_dict(self) -> dict[str, Any]:
        """Return how far the policy is; masks, flags and holds of gradients are the scheduler's."""
        own = self.pruner.state_dict() if hasattr(self.pruner, "state_dict") else {}
        return {
            "pruner": own,
            "is_initialized": self.is_initialized,
            "holds_gradients": self._holds_gradients,
            "levels_in_use": self._found_levels is not None and self.pruner.levels is self._found_levels,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.is_initialized = bool(state["is_initialized"])
        self._holds_gradients = bool(state["holds_gradients"])
        if state.get("pruner") and hasattr(self.pruner, "load_state_dict"):
            self.pruner.load_state_dict(state["pruner"])
        if state["levels_in_use"] and self._found_levels is not None:
            self.pruner.levels = self._found_levels

    def _bind_again(self, model: nn.Module) -> None:
        try:
            self.pruner.bind(model, *self._binding)
        except UserError as error:
            raise UserError(
                f"The pruner {getattr(self.pruner, 'name', type(self.pruner).__name__)!r} cannot go on after "
                f"filters were taken out: {error} Let it end before, or let the remover act when it is done."
            ) from error
        self._is_outdated = False

    def _initialize(self, model: nn.Module, zeros_mask_dict: MaskSet) -> None:
        self.is_initialized = True
        for name, param in model.named_parameters():
            masker = zeros_mask_dict[name]
            masker.use_double_copies = self.use_double_copies
            masker.mask_on_forward_only = self.mask_on_forward_only
            if self.mask_gradients:
                masker.hold_gradient(param)
        self._holds_gradients = self.mask_gradients

    def _set_masks(self, model: nn.Module, zeros_mask_dict: MaskSet, meta: dict[str, Any]) -> None:
        if self._is_outdated:
            self._bind_again(model)
        weights: dict[str, Tensor] = dict(model.named_parameters())
        if self._norms:
            weights = folded_weights(weights, model, self._norms)
        if hasattr(self.pruner, "set_masks"):
            self.pruner.set_masks(weights, zeros_mask_dict, meta)
            return
        for name, weight in weights.items():
            self.pruner.set_param_mask(weight, name, zeros_mask_dict, meta)


def _foldable(model: nn.Module, convention: Convention, weights: Collection[str] | None) -> dict[str, Norm]:
    """Return the batch norms with running statistics behind layers, by the names of the pruned weights."""
    found = {
        name: norm
        for name, norm in norms_after(model).items()
        if getattr(norm.module, "running_var", None) is not None
        and (weights is None or name in weights)
        and (
            convention == "module" or isinstance(model.get_submodule(name.removesuffix(".weight")), nn.Conv2d)
        )
    }
    if not found:
        raise checks.ArgumentError(
            "Expected a convolution with a batch norm behind it that keeps running statistics, found none "
            "among the layers that are pruned. Leave the option out.",
            "fold_batchnorm",
        )
    return found


def _checked_options(options: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(options, Mapping):
        raise UserError(f"Expected options by name, got {options!r}.")
    found = dict(_PRUNING_DEFAULTS)
    for name, value in options.items():
        if name not in found:
            raise checks.ArgumentError(
                f"Expected an option of a pruning policy ({', '.join(sorted(found))}), got {name!r}."
                f"{nearest(name, found)}",
                name,
            )
        if name == "levels":
            found[name] = None if value is None else checked_levels(value)
        elif name == "mini_batch_pruning_frequency":
            found[name] = checks.integer(value, name, low=0)
        else:
            found[name] = checks.boolean(value, name)
    if found["mask_gradients"] and not found["mask_on_forward_only"]:
        raise checks.ArgumentError(
            "Expected 'mask_on_forward_only: true' beside 'mask_gradients: true'. Weights that are masked "
            "after each step need no masked gradients.",
            "mask_gradients",
        )
    return found
