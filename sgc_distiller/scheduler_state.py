"""What a scheduler saves and takes over again: masks, their flags, and how far each policy is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sgc_distiller.errors import UserError, nearest
from sgc_distiller.masks import MaskSet, ParameterMasker
from sgc_distiller.names import canonical

__all__ = ["Entry", "check_policies", "load_masks_state", "masks_state"]

_OTHER_NETWORK = "Load the checkpoint of the same network."
_OTHER_SCHEDULE = (
    "Resume with the same schedule, or load only the masks: "
    "scheduler.load_state_dict({'masks_dict': state['masks_dict']})."
)


@dataclass
class Entry:
    """One policy and the epochs in which it acts; a policy that is added twice has two entries."""

    policy: Any
    epochs: frozenset[int]
    meta: dict[str, Any]

    def state_dict(self) -> dict[str, Any]:
        """Return how far the policy is."""
        return {
            "policy": type(self.policy).__name__,
            "state": self.policy.state_dict() if hasattr(self.policy, "state_dict") else {},
        }

    def load_state_dict(self, state: Mapping[str, Any], maskers: MaskSet) -> None:
        """Take over what `state_dict` returned; the maskers hold the saved masks already."""
        if state["state"] and hasattr(self.policy, "load_state_dict"):
            self.policy.load_state_dict(state["state"])
        if hasattr(self.policy, "recognise_masks"):
            self.policy.recognise_masks(maskers)


def check_policies(entries: Sequence[Entry], saved: Sequence[Mapping[str, Any]], first: int = 1) -> None:
    """Refuse saved policies of another schedule.

    Args:
        entries: Policies as they were added.
        saved: What was saved of them, and maybe of more that are added later.
        first: Number of the first of them in the schedule.

    Raises:
        UserError: If a policy is of another class, or more were added than saved.
    """
    if saved and len(saved) < len(entries):
        raise UserError(
            f"Expected the schedule of the saved run, which has {len(saved)} policies, got one with "
            f"{len(entries)}. {_OTHER_SCHEDULE}"
        )
    for index, (entry, state) in enumerate(zip(entries, saved, strict=False), first):
        name = type(entry.policy).__name__
        if state["policy"] != name:
            raise UserError(
                f"Expected the schedule of the saved run, whose policy number {index} is a "
                f"{state['policy']}, got a {name}. {_OTHER_SCHEDULE}"
            )


def masks_state(maskers: MaskSet) -> dict[str, Any]:
    """Return the masks, and of each masker what is not usual."""
    states = {name: _masker_state(masker) for name, masker in maskers.items()}
    return {
        "masks_dict": {name: masker.mask for name, masker in maskers.items()},
        "maskers": {name: state for name, state in states.items() if state},
    }


def load_masks_state(model: nn.Module, maskers: MaskSet, state: Mapping[str, Any]) -> None:
    """Take over what `masks_state` returned.

    Raises:
        UserError: If the masks are not those of ``model``.
    """
    if "masks_dict" not in state:
        raise UserError(f"Expected a scheduler's state with 'masks_dict', got one with {sorted(state)}.")
    parameters = {name: param for name, param in model.named_parameters() if name in maskers}
    masks = _matched(parameters, state["masks_dict"])
    flags = {canonical(name): values for name, values in state.get("maskers", {}).items()}
    for name, param in parameters.items():
        _load_masker(maskers[name], param, masks[name], flags.get(canonical(name), {}))
    maskers.forget_plan()


def _matched(
    parameters: Mapping[str, nn.Parameter], saved: Mapping[str, Tensor | None]
) -> dict[str, Tensor | None]:
    """Return the saved masks by the parameters' names, or refuse those of another model."""
    by_name = {canonical(name): mask for name, mask in saved.items()}
    unknown = sorted(by_name.keys() - {canonical(name) for name in parameters})
    for name in unknown:
        if by_name[name] is not None:
            raise UserError(
                f"Expected masks of this model, got one of {name!r}, which it does not have."
                f"{nearest(name, parameters)} {_OTHER_NETWORK}"
            )
    matched = {}
    for name, param in parameters.items():
        if canonical(name) not in by_name:
            raise UserError(f"Expected masks of this model, but {name!r} is missing. {_OTHER_NETWORK}")
        mask = matched[name] = by_name[canonical(name)]
        if mask is not None and mask.shape != param.shape:
            raise UserError(
                f"Expected a mask of shape {tuple(param.shape)} for {name!r}, got {tuple(mask.shape)}. "
                f"{_OTHER_NETWORK}"
            )
    return matched


def _masker_state(masker: ParameterMasker) -> dict[str, Any]:
    state = {
        "use_double_copies": masker.use_double_copies,
        "mask_on_forward_only": masker.mask_on_forward_only,
        "gradient_holders": masker.gradient_holders,
        "unmasked_copy": masker.unmasked_copy,
        "statistics": dict(masker.statistics),
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
    masker.statistics = {key: value.to(param.device) for key, value in state.get("statistics", {}).items()}
    while masker.gradient_holders:
        masker.release_gradient()
    for _ in range(state.get("gradient_holders", 0)):
        masker.hold_gradient(param)
