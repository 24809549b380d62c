"""Regularizers: terms that push weights, or whole groups of them, towards 0, and the masks that follow."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn

from sgc_distiller import checks
from sgc_distiller.errors import UserError, nearest
from sgc_distiller.masks import ParameterMasker
from sgc_distiller.names import find_names, is_pattern, layer_axes
from sgc_distiller.pruners import Convention
from sgc_distiller.structures import GROUP_TYPES, Axes, Criterion, find_grouping, threshold_groups

__all__ = [
    "REGULARIZERS",
    "GroupLassoRegularizer",
    "GroupVarianceRegularizer",
    "L1Regularizer",
    "ParameterRegularizer",
    "group_lasso",
    "group_norms",
    "group_variance",
]

_EPSILON = 1e-8  # keeps the gradient of a channel of zeros finite, as in Distiller
_GROUP_KINDS = ("Vectors", "Kernels", "Filters", "Channels", "Rows", "Cols")
_SUMS = {
    "Rows+Cols": ("Rows", "Cols"),
    "Cols+Rows": ("Cols", "Rows"),
    "Channels+4D": ("Channels", "4D"),
    "4D+Channels": ("4D", "Channels"),
}
_THRESHOLD_GROUPS = {name: (kind,) for name, kind in GROUP_TYPES.items() if kind in _GROUP_KINDS}
_LASSO_GROUPS: dict[str, tuple[str, ...]] = {**_THRESHOLD_GROUPS, "4D": ("4D",), **_SUMS}


def group_norms(weight: Tensor, kind: str, axes: Axes = "stored") -> Tensor:
    """Return the L2 norm of each group of a weight; gradients are finite also where a group is 0.

    Args:
        weight: Any shape that has such groups.
        kind: Group type, see `sgc_distiller.structures.find_grouping`; of ``Channels`` it is
            ``sqrt(sum of squares + 1e-8)``, as in Distiller.
        axes: Which dimension Filters and Channels lie on.

    Returns:
        One norm a group, in the shape of the dimensions that number the groups.

    Raises:
        UserError: If the weight has no such groups.
    """
    dims = find_grouping(kind, weight.shape, axes).dims
    inside = [dim for dim in range(weight.dim()) if dim not in dims]
    if kind == "Channels":
        return (weight.square().sum(inside) + _EPSILON).sqrt()
    norms: Tensor = torch.linalg.vector_norm(weight, 2, dim=inside)
    return norms


def group_lasso(weight: Tensor, kinds: Sequence[str], axes: Axes = "stored") -> Tensor:
    """Return the sum of all groups' L2 norms, a scalar (Yuan and Lin 2006, J. R. Stat. Soc. B 68:49).

    Args:
        weight: Any shape that has such groups.
        kinds: Group types; the sums of several are added.
        axes: Which dimension Filters and Channels lie on.

    Raises:
        UserError: If the weight has no such groups.
    """
    return torch.stack([group_norms(weight, kind, axes).sum() for kind in kinds]).sum()


def group_variance(weight: Tensor, axes: Axes = "stored") -> Tensor:
    """Return one over the unbiased variance of the channels' L2 norms (Torfi et al., arXiv 1802.09902).

    It is small where a few channels hold all the weight, and infinite where all are equal.

    Args:
        weight: Two or more channels.
        axes: Which dimension the channels lie on.

    Raises:
        UserError: If the weight has no channels.
    """
    return 1.0 / group_norms(weight, "Channels", axes).var()


class ParameterRegularizer:
    """Adds a term to the loss for each parameter that it names.

    1. `bind` finds the parameters that the names and patterns mean, once for a model.
    2. `loss` adds a parameter's term to the loss.
    3. `threshold` sets the mask that drops what has become small.

    Args:
        name: Name of the regularizer in the schedule.
        model: The model, kept for code written for Distiller; `bind` is what looks at it.
        reg_regims: Strength, and what else there is to say, by parameter name or shell pattern. A name
            in full goes before patterns.
        threshold_criteria: How large what is dropped may be; None drops nothing.

    Attributes:
        reg_regims: After `bind`, by the parameters' own names, in the order of the model.

    Raises:
        UserError: If nothing is named, or a value means nothing.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module | None,
        reg_regims: Mapping[str, Any],
        threshold_criteria: str | None = None,
    ) -> None:
        self.name = name
        self.model = model
        self.threshold_criteria = threshold_criteria
        if not isinstance(reg_regims, Mapping) or not reg_regims:
            raise checks.ArgumentError(
                f"Expected at least one weight, such as {self._example()}, got {reg_regims!r}.", "reg_regims"
            )
        self._asked = {str(asked): self._checked(str(asked), value) for asked, value in reg_regims.items()}
        self.reg_regims: dict[str, Any] = dict(self._asked)
        self._convention: Convention = "stored"
        self._axes: dict[str, Axes] = {}

    def bind(self, model: nn.Module, spared: Collection[str] = (), convention: Convention = "stored") -> None:
        """Find the parameters of ``model`` that are regularized.

        Args:
            model: The model.
            spared: Parameters that no pattern matches.
            convention: What Filters and Channels of a weight are.

        Raises:
            UserError: If a name or a pattern fits none, two entries disagree, or a parameter has no such
                groups.
        """
        found = _find_regims(model, self._asked, spared)
        parameters = dict(model.named_parameters())
        self._convention = convention
        self._axes = layer_axes(model) if convention == "module" else {}
        for name, (asked, value) in found.items():
            self._check_fit(asked, name, tuple(parameters[name].shape), value)
        self.reg_regims = {name: found[name][1] for name in parameters if name in found}

    def axes_of(self, param_name: str) -> Axes:
        """Return how the dimensions of a bound parameter are read."""
        return self._axes.get(param_name, "stored")

    def loss(
        self,
        param: Tensor,
        param_name: str,
        regularizer_loss: Tensor,
        zeros_mask_dict: Mapping[str, ParameterMasker],
    ) -> Tensor:
        """Return ``regularizer_loss`` plus the term of one parameter; other parameters add nothing.

        Args:
            param: The parameter.
            param_name: Its name in the model.
            regularizer_loss: The terms so far, a scalar; it is not changed.
            zeros_mask_dict: Maskers by parameter name.
        """
        if param_name not in self.reg_regims:
            return regularizer_loss
        return regularizer_loss + self._penalty(param, param_name).to(regularizer_loss.device)

    def threshold(
        self, param: Tensor, param_name: str, zeros_mask_dict: Mapping[str, ParameterMasker]
    ) -> None:
        """Set the mask that drops what is small in one parameter, marked as one to be used once.

        Args:
            param: The parameter's weights as they are now.
            param_name: Its name in the model; nothing happens if it is not regularized.
            zeros_mask_dict: Maskers by parameter name.
        """
        if self.threshold_criteria is None or param_name not in self.reg_regims:
            return
        with torch.no_grad():
            zeros_mask_dict[param_name].mask = self._mask(param, param_name)
        zeros_mask_dict[param_name].is_regularization_mask = True

    def _example(self) -> str:
        raise NotImplementedError

    def _checked(self, asked: str, value: Any) -> Any:
        """Return the value of one entry of ``reg_regims``, or refuse it."""
        raise NotImplementedError

    def _check_fit(self, asked: str, name: str, shape: tuple[int, ...], value: Any) -> None:
        """Refuse a parameter whose shape does not go with the entry that names it."""

    def _penalty(self, param: Tensor, param_name: str) -> Tensor:
        raise NotImplementedError

    def _mask(self, param: Tensor, param_name: str) -> Tensor:
        raise NotImplementedError


class L1Regularizer(ParameterRegularizer):
    """Adds ``strength * sum(abs(w))`` of each named parameter.

    Args:
        name: Name of the regularizer in the schedule.
        model: The model, kept for code written for Distiller.
        reg_regims: Strength, at least 0, by parameter name or shell pattern.
        threshold_criteria: Anything but None drops, after each step, the elements whose magnitude is at most
            the strength. As in Distiller it does not matter what is said.

    Raises:
        UserError: If nothing is named, or a strength is no number of at least 0.
    """

    def _example(self) -> str:
        return "{'main.*.weight': 0.0001}"

    def _checked(self, asked: str, value: Any) -> float:
        return checks.number(value, "reg_regims", asked, low=0.0)

    def _penalty(self, param: Tensor, param_name: str) -> Tensor:
        strength: float = self.reg_regims[param_name]
        return strength * param.abs().sum()

    def _mask(self, param: Tensor, param_name: str) -> Tensor:
        return torch.empty_like(param).copy_(param.abs() > self.reg_regims[param_name])


class GroupLassoRegularizer(ParameterRegularizer):
    """Adds ``strength`` times the sum of the groups' L2 norms of each named parameter; see `group_lasso`.

    Args:
        name: Name of the regularizer in the schedule.
        model: The model, kept for code written for Distiller.
        reg_regims: ``[strength, group]`` by parameter name or shell pattern: a strength of at least 0, and
            one of ``2D`` (kernels), ``1D`` (their rows), ``3D`` or ``Filters``, ``Channels``, ``4D`` (the
            whole weight), ``Rows`` and ``Cols`` of a matrix, ``Rows+Cols``, ``Channels+4D``.
        threshold_criteria: ``Max`` or ``Mean_Abs`` drops, after each step, the groups whose largest or whose
            mean magnitude is at most the strength; not for ``4D`` and for sums.

    Raises:
        UserError: If nothing is named, or an argument means nothing.
    """

    groups: Mapping[str, tuple[str, ...]] = _LASSO_GROUPS

    def __init__(
        self,
        name: str,
        model: nn.Module | None,
        reg_regims: Mapping[str, Any],
        threshold_criteria: str | None = None,
    ) -> None:
        if threshold_criteria is not None:
            checks.one_of(threshold_criteria, get_args(Criterion), "threshold_criteria")
            self.groups = _THRESHOLD_GROUPS
        super().__init__(name, model, reg_regims, threshold_criteria)

    def _example(self) -> str:
        return f"{{'main.*.weight': [0.0001, {'Filters' if 'Filters' in self.groups else 'Channels'}]}}"

    def _checked(self, asked: str, value: Any) -> tuple[float, str]:
        if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
            raise checks.ArgumentError(
                f"Expected [strength, group type], got {value!r}.", "reg_regims", asked
            )
        strength = checks.number(value[0], "reg_regims", asked, "[0]", low=0.0)
        group = value[1]
        if isinstance(group, str) and group in self.groups:
            return strength, group
        is_lasso = isinstance(group, str) and group in _LASSO_GROUPS
        if self.threshold_criteria is not None and is_lasso:
            raise checks.ArgumentError(
                f"Expected a group type that can have a threshold ({', '.join(self.groups)}), got {group!r}. "
                "Leave out 'threshold_criteria', or name another group type.",
                *("reg_regims", asked, "[1]"),
            )
        close = nearest(group, self.groups) if isinstance(group, str) else ""
        raise checks.ArgumentError(
            f"Expected a group type ({', '.join(self.groups)}), got {group!r}.{close}",
            *("reg_regims", asked, "[1]"),
        )

    def _check_fit(self, asked: str, name: str, shape: tuple[int, ...], value: Any) -> None:
        if self._fits(name, shape, self.groups[value[1]]):
            return
        fitting = [group for group, kinds in self.groups.items() if self._fits(name, shape, kinds)]
        raise checks.ArgumentError(
            f"Expected a group type that {name!r} of shape {shape} has "
            f"({', '.join(fitting) or 'there is none'}), got {value[1]!r}.",
            *("reg_regims", asked, "[1]"),
        )

    def _fits(self, name: str, shape: tuple[int, ...], kinds: Sequence[str]) -> bool:
        if self._convention == "module" and name not in self._axes and {"Filters", "Channels"} & set(kinds):
            return False  # no dimension of a transposed convolution with groups numbers its outputs
        try:
            for kind in kinds:
                find_grouping(kind, shape, self.axes_of(name))
        except UserError:
            return False
        return True

    def _penalty(self, param: Tensor, param_name: str) -> Tensor:
        strength, group = self.reg_regims[param_name]
        norms = group_lasso(param, self.groups[group], self.axes_of(param_name))
        return float(strength) * norms

    def _mask(self, param: Tensor, param_name: str) -> Tensor:
        strength, group = self.reg_regims[param_name]
        (kind,) = self.groups[group]
        criterion: Criterion = "Max" if self.threshold_criteria == "Max" else "Mean_Abs"
        return threshold_groups(param, kind, strength, criterion, self.axes_of(param_name))


class GroupVarianceRegularizer(GroupLassoRegularizer):
    """Adds ``strength`` over the variance of the channels' L2 norms, which drives them apart.

    See `group_variance`. It has no threshold.

    Args:
        name: Name of the regularizer in the schedule.
        model: The model, kept for code written for Distiller.
        reg_regims: ``[strength, Channels]`` by parameter name or shell pattern, the strength at least 0.

    Raises:
        UserError: If nothing is named, a strength is no number of at least 0, or a group is not Channels.
    """

    groups = {"Channels": ("Channels",)}

    def __init__(self, name: str, model: nn.Module | None, reg_regims: Mapping[str, Any]) -> None:
        super().__init__(name, model, reg_regims)

    def _check_fit(self, asked: str, name: str, shape: tuple[int, ...], value: Any) -> None:
        super()._check_fit(asked, name, shape, value)
        count = find_grouping("Channels", shape, self.axes_of(name)).count
        if count < 2:
            raise checks.ArgumentError(
                f"Expected a weight with two or more channels, got {name!r} of shape {shape} with {count}.",
                *("reg_regims", asked),
            )

    def _penalty(self, param: Tensor, param_name: str) -> Tensor:
        strength: float = self.reg_regims[param_name][0]
        axes = self.axes_of(param_name)
        if find_grouping("Channels", param.shape, axes).count < 2:  # a remover has left no more
            return torch.zeros((), dtype=param.dtype, device=param.device)
        return strength * group_variance(param, axes)


def _find_regims(
    model: nn.Module, asked: Mapping[str, Any], spared: Collection[str]
) -> dict[str, tuple[str, Any]]:
    """Return for each parameter the entry that names it and its value; full names go before patterns."""
    in_full: dict[str, tuple[str, Any]] = {}
    by_pattern: dict[str, tuple[str, Any]] = {}
    for entry, value in asked.items():
        try:
            names = find_names(model, entry, spared)
        except UserError as error:
            raise checks.ArgumentError(str(error), "reg_regims", entry) from error
        found = by_pattern if is_pattern(entry) and names != [entry] else in_full
        for name in names:
            other, other_value = found.setdefault(name, (entry, value))
            if other_value != value:
                raise checks.ArgumentError(
                    f"Expected one value for {name!r}, got {_shown(value)} and, from {other!r}, "
                    f"{_shown(other_value)}.",
                    *("reg_regims", entry),
                )
    return {**by_pattern, **in_full}


def _shown(value: Any) -> str:
    return f"[{value[0]:g}, {value[1]}]" if isinstance(value, tuple) else f"{value:g}"


REGULARIZERS: dict[str, type] = {
    "GroupLassoRegularizer": GroupLassoRegularizer,
    "GroupVarianceRegularizer": GroupVarianceRegularizer,
    "L1Regularizer": L1Regularizer,
}
"""Classes that a schedule may name under ``regularizers:``."""
