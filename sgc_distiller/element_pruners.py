"""Pruners of single elements: by a share of each weight, by a threshold, or N of each M."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sgc_distiller import checks
from sgc_distiller.masks import ParameterMasker, keep_largest
from sgc_distiller.names import layer_axes
from sgc_distiller.pruners import (
    GradualRate,
    ListedPruner,
    Maskers,
    Meta,
    Pruner,
    checked_values,
    find_values,
)
from sgc_distiller.structures import keep_n_of_m

__all__ = [
    "AutomatedGradualPruner",
    "BaiduRNNPruner",
    "ELEMENT_PRUNERS",
    "MagnitudeParameterPruner",
    "NMPruner",
    "SensitivityPruner",
    "SparsityLevelParameterPruner",
    "SplicingPruner",
    "checked_levels",
    "find_levels",
]


def checked_levels(levels: Mapping[str, float]) -> dict[str, float]:
    """Return ``levels`` as a new dictionary, or refuse them with a `UserError`."""
    return checked_values(levels, "levels", checks.fraction, "'main.*.weight': 0.5")


def find_levels(
    model: nn.Module, levels: Mapping[str, float], spared: Collection[str] = ()
) -> dict[str, float]:
    """Return ``levels`` by the parameters' own names; see `find_values`."""
    return find_values(model, levels, "levels", spared)


def _prune_share(param: Tensor, share: float, masker: ParameterMasker) -> None:
    """Drop exactly ``int(share * size)`` elements, those smallest in magnitude."""
    drop_count = int(share * param.numel())
    if drop_count > 0:
        masker.mask = keep_largest(param, drop_count, masker.mask)


class SparsityLevelParameterPruner(Pruner):
    """Prunes each parameter to a level of its own: exactly ``int(level * size)`` elements.

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

    def prunes(self, param_name: str) -> bool:
        """Return whether a parameter's level is above 0."""
        return self.target(param_name, {}) > 0.0

    def target(self, param_name: str, meta: Meta) -> float:
        """Return the parameter's level, else that of ``'*'``, else 0."""
        return self.levels.get(param_name, self.levels.get("*", 0.0))

    def set_param_mask(self, param: Tensor, param_name: str, zeros_mask_dict: Maskers, meta: Meta) -> None:
        """Set the mask of one parameter; see `Pruner.set_param_mask`."""
        _prune_share(param, self.target(param_name, meta), zeros_mask_dict[param_name])


class AutomatedGradualPruner(ListedPruner):
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
        super().__init__(name, weights)
        self.rate = GradualRate(initial_sparsity, final_sparsity)

    def check_epochs(self, meta: Meta) -> None:
        """Refuse a list of epochs and a single active epoch."""
        self.rate.check_epochs(meta)

    def target(self, param_name: str, meta: Meta) -> float:
        """Return the epoch's sparsity for the listed weights, and 0 for all others."""
        return self.rate.target(meta) if param_name in self.weights else 0.0

    def set_param_mask(self, param: Tensor, param_name: str, zeros_mask_dict: Maskers, meta: Meta) -> None:
        """Set the mask of one parameter; see `Pruner.set_param_mask`."""
        _prune_share(param, self.target(param_name, meta), zeros_mask_dict[param_name])


class _ByNamePruner(Pruner):
    """A pruner with a number by parameter name or pattern, and maybe one for all others under ``'*'``."""

    def __init__(
        self, name: str, values: Mapping[str, float], argument: str, low: float, example: str
    ) -> None:
        super().__init__(name)

        def check(value: Any, *path: str) -> float:
            return checks.number(value, *path, low=low)

        self._argument = argument
        self._asked = checked_values(values, argument, check, example)
        self._values = dict(self._asked)

    def _find(self, model: nn.Module, spared: Collection[str]) -> None:
        self._values = find_values(model, self._asked, self._argument, spared)

    def prunes(self, param_name: str) -> bool:
        """Return whether a parameter has a number, which is not negative."""
        value = self._value(param_name)
        return value is not None and value >= 0.0

    def _value(self, param_name: str) -> float | None:
        return self._values.get(param_name, self._values.get("*"))


def _larger(weight: Tensor, threshold: float | Tensor) -> Tensor:
    """Return the mask of magnitudes greater than ``threshold``, compared in the weight's own type."""
    if isinstance(threshold, Tensor):
        threshold = threshold.to(weight.dtype)
    return torch.empty_like(weight).copy_(weight.detach().abs() > threshold)


class MagnitudeParameterPruner(_ByNamePruner):
    """Prunes elements whose magnitude is at most a threshold.

    Args:
        name: Name of the pruner in the schedule.
        thresholds: Threshold by parameter name or shell pattern. ``'*'`` must be there: it is the threshold
            of every other parameter, biases and norms included; a negative one prunes nothing.

    Raises:
        UserError: If there are no thresholds, or none for ``'*'``.
    """

    def __init__(self, name: str, thresholds: Mapping[str, float]) -> None:
        super().__init__(name, thresholds, "thresholds", -torch.inf, "'*': 0.01")
        if "*" not in self._asked:
            raise checks.ArgumentError(
                "Expected a threshold under '*' for all other parameters, got none. To spare them, write "
                "'*': -1.",
                "thresholds",
            )

    def set_param_mask(self, param: Tensor, param_name: str, zeros_mask_dict: Maskers, meta: Meta) -> None:
        """Set the mask of one parameter; see `Pruner.set_param_mask`."""
        threshold = self._value(param_name)
        assert threshold is not None
        zeros_mask_dict[param_name].mask = _larger(param, threshold)


def _once(masker: ParameterMasker, key: str, number: Tensor) -> Tensor:
    """Return a statistic of a weight as it was when a pruner first asked for it, in double precision."""
    if key not in masker.statistics:
        masker.statistics[key] = number.double()
    return masker.statistics[key]


def _spread(weight: Tensor) -> Tensor:
    """Return the unbiased standard deviation; that of one element is not a number."""
    weight = weight.detach()
    return weight.std() if weight.numel() > 1 else torch.full_like(weight.sum(), torch.nan)


class SensitivityPruner(_ByNamePruner):
    """Prunes elements whose magnitude is at most ``sensitivity * std`` (Han et al., arXiv 1506.02626).

    The standard deviation is that of the weights when they are first pruned by sensitivity.

    Args:
        name: Name of the pruner in the schedule.
        sensitivities: Factor of at least 0 by parameter name or shell pattern; ``'*'`` is that of every other
            parameter, biases and norms included.

    Raises:
        UserError: If there are no sensitivities, or one is negative.
    """

    def __init__(self, name: str, sensitivities: Mapping[str, float]) -> None:
        super().__init__(name, sensitivities, "sensitivities", 0.0, "'main.*.weight': 0.5")

    def set_param_mask(self, param: Tensor, param_name: str, zeros_mask_dict: Maskers, meta: Meta) -> None:
        """Set the mask of one parameter; see `Pruner.set_param_mask`."""
        sensitivity = self._value(param_name)
        if sensitivity is not None:
            masker = zeros_mask_dict[param_name]
            masker.mask = _larger(param, _once(masker, "std", _spread(param)) * sensitivity)


class SplicingPruner(_ByNamePruner):
    """Prunes small elements and brings back those that grew (arXiv 1608.04493, eq. 3).

    With the mean m and the standard deviation d of the magnitudes when they are first looked at, elements
    below ``(m + d * sensitivity) * low_thresh_mult`` go, those from ``(m + d * sensitivity) *
    hi_thresh_mult`` on come back, and those between stay as they are.

    Args:
        name: Name of the pruner in the schedule.
        sensitivities: Number of at least 0 by parameter name or shell pattern; ``'*'`` is that of every other
            parameter, biases and norms included.
        low_thresh_mult: At least 0.
        hi_thresh_mult: At least ``low_thresh_mult``.
        sensitivity_multiplier: The sensitivity grows by this share of itself in each epoch.

    Raises:
        UserError: If there are no sensitivities, or a number is out of range.
    """

    def __init__(
        self,
        name: str,
        sensitivities: Mapping[str, float],
        low_thresh_mult: float,
        hi_thresh_mult: float,
        sensitivity_multiplier: float = 0,
    ) -> None:
        super().__init__(name, sensitivities, "sensitivities", 0.0, "'main.*.weight': 0.5")
        self.low_thresh_mult = checks.number(low_thresh_mult, "low_thresh_mult", low=0.0)
        self.hi_thresh_mult = checks.number(hi_thresh_mult, "hi_thresh_mult", low=self.low_thresh_mult)
        self.sensitivity_multiplier = checks.number(sensitivity_multiplier, "sensitivity_multiplier", low=0.0)

    def set_param_mask(self, param: Tensor, param_name: str, zeros_mask_dict: Maskers, meta: Meta) -> None:
        """Set the mask of one parameter; see `Pruner.set_param_mask`."""
        sensitivity = self._value(param_name)
        if sensitivity is None:
            return
        if self.sensitivity_multiplier > 0:
            sensitivity *= (meta["current_epoch"] - meta["starting_epoch"]) * self.sensitivity_multiplier + 1
        masker, size = zeros_mask_dict[param_name], param.detach().abs()
        middle = (
            _once(masker, "abs_mean", size.mean()) + _once(masker, "abs_std", _spread(size)) * sensitivity
        )
        low, high = (
            (middle * factor).to(size.dtype) for factor in (self.low_thresh_mult, self.hi_thresh_mult)
        )
        mask = torch.ones_like(size) if masker.mask is None else masker.mask
        masker.mask = mask.masked_fill(low > size, 0.0).masked_fill(high <= size, 1.0)


class BaiduRNNPruner(ListedPruner):
    """Prunes elements below a threshold that rises slowly, then fast (arXiv 1704.05119, eq. 1).

    With ``ramp = start + ramp_epoch_offset`` the slope is ``2 * q * frequency / (2 * ramp_epoch_offset + 3 *
    (end - ramp))`` at first and ``ramp_slope_mult`` times that from epoch ``ramp`` on.

    Args:
        name: Name of the pruner in the schedule.
        q: Magnitude below which about 90 % of the weights are to lie, at least 0.
        ramp_epoch_offset: Epochs of the slow part, at least 0.
        ramp_slope_mult: Slope of the fast part relative to the slow one, at least 0.
        weights: Names or shell patterns of the parameters.

    Raises:
        UserError: If a number is out of range, or no weights are named.
    """

    def __init__(
        self, name: str, q: float, ramp_epoch_offset: int, ramp_slope_mult: float, weights: Sequence[str]
    ) -> None:
        super().__init__(name, weights)
        self.q = checks.number(q, "q", low=0.0)
        self.ramp_epoch_offset = checks.integer(ramp_epoch_offset, "ramp_epoch_offset", low=0)
        self.ramp_slope_mult = checks.number(ramp_slope_mult, "ramp_slope_mult", low=0.0)

    def check_epochs(self, meta: Meta) -> None:
        """Refuse a list of epochs, and epochs that end too early for the slow part."""
        if meta["frequency"] is None:
            raise checks.ArgumentError(
                "Expected 'starting_epoch', 'ending_epoch' and 'frequency' for BaiduRNNPruner, got a list of "
                "epochs.",
                "epochs",
            )
        if self._length(meta) <= 0:
            raise checks.ArgumentError(
                f"Expected epochs that last beyond 'ramp_epoch_offset' ({self.ramp_epoch_offset}), got "
                f"{meta['starting_epoch']} to {meta['ending_epoch'] - 1}.",
                "ending_epoch",
            )

    def _length(self, meta: Meta) -> int:
        ramp = meta["starting_epoch"] + self.ramp_epoch_offset
        return int(2 * self.ramp_epoch_offset + 3 * (meta["ending_epoch"] - ramp))

    def threshold(self, meta: Meta) -> float:
        """Return the epoch's threshold."""
        start, epoch, frequency = meta["starting_epoch"], meta["current_epoch"], meta["frequency"]
        slope = (2 * self.q * frequency) / self._length(meta)
        ramp = start + self.ramp_epoch_offset
        if epoch < ramp:
            return float(slope * (epoch - start + 1) / frequency)
        fast = slope * self.ramp_slope_mult
        return float((slope * (ramp - start + 1) + fast * (epoch - ramp + 1)) / frequency)

    def set_param_mask(self, param: Tensor, param_name: str, zeros_mask_dict: Maskers, meta: Meta) -> None:
        """Set the mask of one parameter; see `Pruner.set_param_mask`."""
        if param_name in self.weights:
            zeros_mask_dict[param_name].mask = _larger(param, self.threshold(meta))


class NMPruner(ListedPruner):
    """Keeps the N largest of each M elements along the reduction dimension ("N:M sparsity", such as 2:4).

    That is the dimension over which a matrix product adds up: a layer's inputs. They are dimension 1 of the
    weights of convolutions and linear layers and dimension 0 of those of transposed convolutions. Groups of
    M neighbours begin at index 0; of equal magnitudes the first ones go.

    Args:
        name: Name of the pruner in the schedule.
        n: How many of each group stay, from 1 to ``m - 1``.
        m: Size of a group, at least 2; it must divide the number of inputs.
        weights: Names or shell patterns of weights of convolutions, transposed convolutions and linear
            layers.

    Raises:
        UserError: If the numbers are out of range, or no weights are named.
    """

    def __init__(self, name: str, n: int, m: int, weights: Sequence[str]) -> None:
        super().__init__(name, weights)
        self.m = checks.integer(m, "m", low=2)
        self.n = checks.integer(n, "n", low=1)
        if self.n >= self.m:
            raise checks.ArgumentError(f"Expected a number below 'm' ({self.m}), got {self.n}.", "n")

    def _find(self, model: nn.Module, spared: Collection[str]) -> None:
        super()._find(model, spared)
        self._axes = layer_axes(model)
        shapes = {name: tuple(param.shape) for name, param in model.named_parameters()}
        for name in self.weights:
            if name not in self._axes:
                raise checks.ArgumentError(
                    "Expected weights of convolutions, of transposed convolutions without groups or of "
                    f"linear layers, got {name!r}.",
                    "weights",
                )
            if shapes[name][self._inputs(name)] % self.m:
                raise checks.ArgumentError(
                    f"Expected weights of layers whose number of inputs is a multiple of {self.m}, got "
                    f"{name!r} of shape {shapes[name]}. List those that fit.",
                    "weights",
                )

    def _inputs(self, param_name: str) -> int:
        return 0 if self.axes_of(param_name) == "inputs_first" else 1

    def target(self, param_name: str, meta: Meta) -> float:
        """Return ``1 - n / m`` for the listed weights, and 0 for all others."""
        return 1.0 - self.n / self.m if param_name in self.weights else 0.0

    def set_param_mask(self, param: Tensor, param_name: str, zeros_mask_dict: Maskers, meta: Meta) -> None:
        """Set the mask of one parameter; see `Pruner.set_param_mask`."""
        if param_name in self.weights:
            zeros_mask_dict[param_name].mask = keep_n_of_m(param, self.n, self.m, self._inputs(param_name))


ELEMENT_PRUNERS: tuple[type[Pruner], ...] = (
    AutomatedGradualPruner,
    BaiduRNNPruner,
    MagnitudeParameterPruner,
    NMPruner,
    SensitivityPruner,
    SparsityLevelParameterPruner,
    SplicingPruner,
)
"""What a schedule may name of these."""
