"""Pruners: how much of a parameter goes in an epoch, and which of its elements."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from sgc_distiller import checks
from sgc_distiller.epochs import last_active_epoch
from sgc_distiller.masks import ParameterMasker, keep_largest
from sgc_distiller.names import find_all_names, find_names

__all__ = [
    "AutomatedGradualPruner",
    "ElementPruner",
    "SparsityLevelParameterPruner",
    "checked_levels",
    "find_levels",
    "gradual_target",
]


def gradual_target(initial: float, final: float, meta: Mapping[str, Any]) -> float:
    """Return the sparsity that gradual pruning asks for in an epoch (Zhu and Gupta, arXiv 1710.01878).

    Args:
        initial: Sparsity of the first active epoch, in [0, 1].
        final: Sparsity of the last active epoch, in [0, 1].
        meta: ``starting_epoch``, ``ending_epoch`` (exclusive), ``frequency``, ``current_epoch``.

    Returns:
        ``final + (initial - final) * (1 - (epoch - start) / span) ** 3``, where ``span`` is the number of
        epochs from the first to the last active one.

    Raises:
        UserError: If the epochs are a list, or only one of them is active.
    """
    start, frequency = meta["starting_epoch"], meta["frequency"]
    if frequency is None:
        raise checks.ArgumentError(
            "Expected 'starting_epoch', 'ending_epoch' and 'frequency' for gradual pruning, got a list of "
            "epochs.",
            "epochs",
        )
    span = last_active_epoch(meta) - start
    if span == 0:
        raise checks.ArgumentError(
            f"Expected at least two active epochs for gradual pruning, got only epoch {start}: epochs "
            f"{start} to {meta['ending_epoch'] - 1} at a frequency of {frequency}. Increase 'ending_epoch' "
            "(it is exclusive).",
            "ending_epoch",
        )
    return float(final + (initial - final) * (1.0 - (meta["current_epoch"] - start) / span) ** 3)


class ElementPruner:
    """Prunes single elements: those smallest in magnitude, exactly ``int(target * size)`` of them.

    1. `bind` finds the parameters that the pruner's names and patterns mean, once for a model.
    2. `target` says how much of a parameter is to be pruned in an epoch.
    3. `set_param_mask` sets the mask.

    Args:
        name: Name of the pruner in the schedule.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._bound_to: nn.Module | None = None

    def bind(self, model: nn.Module, spared: Collection[str] = ()) -> None:
        """Find the parameters of ``model`` that are pruned; nothing happens if that was done before.

        Args:
            model: The model that is pruned.
            spared: Parameters that no pattern matches.

        Raises:
            UserError: If a name or a pattern fits none.
        """
        if self._bound_to is not model:
            self._find(model, spared)
            self._bound_to = model

    def _find(self, model: nn.Module, spared: Collection[str]) -> None:
        raise NotImplementedError

    def target(self, param_name: str, meta: Mapping[str, Any]) -> float:
        """Return the sparsity asked for, in [0, 1]; 0 leaves the parameter as it is."""
        raise NotImplementedError

    def check_epochs(self, meta: Mapping[str, Any]) -> None:
        """Refuse epochs with which this pruner cannot work, with a `UserError`."""

    def set_param_mask(
        self,
        param: Tensor,
        param_name: str,
        zeros_mask_dict: Mapping[str, ParameterMasker],
        meta: Mapping[str, Any],
    ) -> None:
        """Set the mask of one parameter for the current epoch.

        Args:
            param: The parameter's weights as they are now.
            param_name: Its name in the model.
            zeros_mask_dict: Maskers by parameter name.
            meta: Epochs of the policy, see `gradual_target`.
        """
        drop_count = int(self.target(param_name, meta) * param.numel())
        if drop_count > 0:
            masker = zeros_mask_dict[param_name]
            masker.mask = keep_largest(param, drop_count, masker.mask)


class SparsityLevelParameterPruner(ElementPruner):
    """Prunes each parameter to a level of its own.

    Args:
        name: Name of the pruner in the schedule.
        levels: Sparsity in [0, 1] by parameter name or shell pattern. ``'*'`` is the level of every other
            parameter of the model, biases and norms included.

    Raises:
        UserError: If there are no levels, or one is outside [0, 1].
    """

    def __init__(self, name: str, levels: Mapping[str, float]) -> None:
        super().__init__(name)
        self._asked = checked_levels(levels)
        self.levels: Mapping[str, float] = dict(self._asked)

    def _find(self, model: nn.Module, spared: Collection[str]) -> None:
        self.levels = find_levels(model, self._asked, spared)

    def target(self, param_name: str, meta: Mapping[str, Any]) -> float:
        """Return the parameter's level, else that of ``'*'``, else 0."""
        return self.levels.get(param_name, self.levels.get("*", 0.0))


class AutomatedGradualPruner(ElementPruner):
    """Prunes a little more in each active epoch, from an initial to a final sparsity; see `gradual_target`.

    Args:
        name: Name of the pruner in the schedule.
        initial_sparsity: Sparsity of the first active epoch, in [0, 1].
        final_sparsity: Sparsity of the last active epoch, in [0, 1], greater than the initial one.
        weights: Names or shell patterns of the parameters.

    Raises:
        UserError: If the sparsities are not in order, or no weights are named.
    """

    def __init__(
        self, name: str, initial_sparsity: float, final_sparsity: float, weights: Sequence[str]
    ) -> None:
        super().__init__(name)
        self.initial_sparsity = checks.fraction(initial_sparsity, "initial_sparsity")
        self.final_sparsity = checks.fraction(final_sparsity, "final_sparsity")
        if self.final_sparsity <= self.initial_sparsity:
            raise checks.ArgumentError(
                f"Expected a sparsity greater than 'initial_sparsity' ({self.initial_sparsity:g}), got "
                f"{self.final_sparsity:g}.",
                "final_sparsity",
            )
        self._asked = _checked_weights(weights)
        self.weights = list(self._asked)

    def _find(self, model: nn.Module, spared: Collection[str]) -> None:
        self.weights = find_all_names(model, self._asked, spared)

    def check_epochs(self, meta: Mapping[str, Any]) -> None:
        """Refuse a list of epochs and a single active epoch."""
        gradual_target(
            self.initial_sparsity, self.final_sparsity, {**meta, "current_epoch": meta["starting_epoch"]}
        )

    def target(self, param_name: str, meta: Mapping[str, Any]) -> float:
        """Return the epoch's sparsity for the listed weights, and 0 for all others."""
        if param_name not in self.weights:
            return 0.0
        return gradual_target(self.initial_sparsity, self.final_sparsity, meta)


def _checked_weights(weights: Sequence[str]) -> list[str]:
    wanted = "a list of names or patterns of weights"
    if isinstance(weights, str):
        raise checks.ArgumentError(
            f"Expected {wanted}, got the text {weights!r}. Write [{weights}].", "weights"
        )
    if not isinstance(weights, Sequence):
        raise checks.ArgumentError(f"Expected {wanted}, got {weights!r}.", "weights")
    if not weights:
        raise checks.ArgumentError(f"Expected {wanted}, got an empty list.", "weights")
    for index, entry in enumerate(weights):
        if not isinstance(entry, str):
            raise checks.ArgumentError(
                f"Expected a name or a pattern, got {entry!r}.", "weights", f"[{index}]"
            )
    return list(weights)


def checked_levels(levels: Mapping[str, float]) -> dict[str, float]:
    """Return ``levels`` as a new dictionary, or refuse them with a `UserError`."""
    if not isinstance(levels, Mapping) or not levels:
        raise checks.ArgumentError(
            f"Expected a level for at least one weight, such as {{'main.*.weight': 0.5}}, got {levels!r}.",
            "levels",
        )
    return {str(name): checks.fraction(level, "levels", str(name)) for name, level in levels.items()}


def find_levels(
    model: nn.Module, levels: Mapping[str, float], spared: Collection[str] = ()
) -> dict[str, float]:
    """Return ``levels`` by the parameters' own names.

    A parameter named in full keeps its own level, whatever patterns fit it; ``'*'`` stays as it is.

    Raises:
        UserError: If an entry fits no parameter, or two entries give one parameter different levels.
    """
    found: dict[str, tuple[str, float]] = {}
    patterns: dict[str, tuple[str, float]] = {}
    for asked, level in levels.items():
        if asked == "*":
            found["*"] = (asked, level)
            continue
        names = find_names(model, asked, spared)
        target = found if len(names) == 1 and not any(sign in asked for sign in "*?[") else patterns
        for name in names:
            other, other_level = target.get(name, (asked, level))
            if other_level != level:
                raise checks.ArgumentError(
                    f"Expected one level for {name!r}, got {level:g} and, from {other!r}, {other_level:g}.",
                    "levels",
                    asked,
                )
            target[name] = (asked, level)
    return {name: level for name, (_, level) in {**patterns, **found}.items()}
