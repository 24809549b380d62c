"""Pruners of structures that are ranked by their norm: vectors, kernels, filters, channels, blocks."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from sgc_distiller import checks
from sgc_distiller.coupled_filters import CoupledFilters, find_coupled, find_staying
from sgc_distiller.errors import UserError
from sgc_distiller.masks import drop_smallest
from sgc_distiller.pruners import ConstantRate, GradualRate, Maskers, Meta, Pruner, Rate
from sgc_distiller.structure_pruners import StructureParameterPruner, StructurePruner, checked_kind
from sgc_distiller.structures import Grouping, find_grouping

__all__ = [
    "L1RankedStructureParameterPruner",
    "L1RankedStructureParameterPruner_AGP",
    "L2RankedStructureParameterPruner",
    "L2RankedStructureParameterPruner_AGP",
    "RandomLevelStructureParameterPruner",
    "RankedPruner",
    "STRUCTURE_PRUNERS",
]

log = logging.getLogger(__name__)

Scope = Literal["layer", "global"]
RANKED = ("Elements", "Vectors", "Kernels", "Filters", "Channels", "Blocks", "Rows")
"""Group types that can be ranked; Rows is Distiller's other name for Channels there."""
_ROUNDING: dict[str, Callable[[float], int]] = {"floor": math.floor, "ceil": math.ceil, "round": round}


class RankedPruner(StructurePruner):
    """Prunes the structures with the smallest norm, an exact number of them.

    Of equal norms the first structures go. What is pruned and still 0 stays pruned, unless noise decides.

    Args:
        name: Name of the pruner in the schedule.
        order: 1 or 2, the norm.
        group_type: One of `RANKED`.
        weights: Names or shell patterns of the parameters.
        rate: Share of the structures that go in an epoch.
        group_dependency: See `StructurePruner`.
        kwargs: ``{block_shape: [repetitions, depth, 1, 1]}`` for Blocks.
        noise: With this probability, in [0, 1], norms are multiplied by normal random numbers.
        group_size: So many neighbouring structures go or stay together, at least 1.
        rounding_fn: How the share becomes a whole number: ``floor``, ``ceil`` or ``round``.
        scope: ``layer`` takes the share of each weight; ``global`` of all of them together, measured in
            elements and ranked by the mean (L1) or root mean square (L2) magnitude. No layer is emptied.
        prune_output: See `StructurePruner`.

    Raises:
        UserError: If an argument is not one of these, or two of them contradict each other.
    """

    kinds = RANKED

    def __init__(
        self,
        name: str,
        order: int,
        group_type: str,
        weights: Sequence[str],
        rate: Rate,
        group_dependency: str | None = None,
        kwargs: Mapping[str, Any] | None = None,
        noise: float = 0.0,
        group_size: int = 1,
        rounding_fn: str = "floor",
        scope: str = "layer",
        prune_output: bool = False,
    ) -> None:
        kind = checked_kind(group_type, self.kinds)
        super().__init__(name, kind, weights, rate, group_dependency, prune_output)
        self.order = order
        self.block_shape = _checked_block_shape(self.kind, kwargs)
        self.noise = checks.fraction(noise, "noise")
        self.group_size = checks.integer(group_size, "group_size", low=1)
        self.rounding = _ROUNDING[checks.one_of(rounding_fn, _ROUNDING, "rounding_fn")]
        self.is_global = checks.one_of(scope, get_args(Scope), "scope") == "global"
        if self.is_global and (self.follows_leader or self.noise or self.group_size > 1):
            raise checks.ArgumentError(
                "Expected 'scope: layer' beside 'group_dependency', 'noise' or 'group_size', got 'global'.",
                "scope",
            )
        if self.is_coupled and (
            self.kind != "Filters" or self.is_global or self.noise or self.group_size > 1
        ):
            raise checks.ArgumentError(
                "Expected 'group_dependency: Coupled' beside 'group_type: Filters' and neither "
                f"'scope: global' nor 'noise' nor 'group_size', got it beside {self._beside_coupled()}.",
                "group_dependency",
            )
        self._coupled: list[CoupledFilters] = []

    def _beside_coupled(self) -> str:
        if self.kind != "Filters":
            return f"'group_type: {self.kind}'"
        if self.is_global:
            return "'scope: global'"
        return f"'noise: {self.noise}'" if self.noise else f"'group_size: {self.group_size}'"

    def _find(self, model: nn.Module, spared: Collection[str]) -> None:
        super()._find(model, spared)
        if not self.is_coupled:
            return
        if not self._axes:
            raise checks.ArgumentError(
                "Expected a schedule with a 'gan' section, in which Filters are a layer's true outputs, got "
                "one without; add 'gan: {}', or leave 'group_dependency: Coupled' out.",
                "group_dependency",
            )
        self._leave_out(find_staying(model, self.weights))
        self._coupled = find_coupled(model, self.weights)

    def _leave_out(self, staying: Mapping[str, str]) -> None:
        """Leave weights alone that a pattern lists and whose filters cannot be taken out; say so."""
        left = {name: why for name, why in staying.items() if not self.named_in_full(name)}
        if not left:
            return
        told = "; ".join(f"{name}: {why}" for name, why in left.items())
        rest = [name for name in self.weights if name not in left]
        if not rest:
            raise checks.ArgumentError(
                f"Expected weights whose filters can be taken out, got none ({told}).", "weights"
            )
        log.warning("%s leaves alone what cannot be taken out: %s.", self.name, told)
        self.weights = rest

    def brings_back(self) -> bool:
        """Return whether noise may let what is pruned rank before what is not."""
        return self.noise > 0

    def _make_grouping(self, param_name: str, param: Tensor) -> Grouping:
        axes = self.axes_of(param_name)
        grouping = find_grouping(self.kind, param.shape, axes, self.block_shape, among=self.kinds)
        if grouping.count % self.group_size:
            raise UserError(
                f"Expected a number of {self.kind.lower()} that is a multiple of 'group_size' "
                f"({self.group_size}), got {grouping.count}."
            )
        return grouping

    def _pick(self, param: Tensor, param_name: str, mask: Tensor | None, share: float) -> Tensor | None:
        grouping = self.grouping(param_name, param)
        count = self.drop_count(grouping.count, share)
        if count == 0:
            return None
        norms = grouping.norms(param, self.order, self.group_size)
        if self.noise and self.streams.python.uniform(0, 1) <= self.noise:
            factors = torch.randn(norms.shape, generator=self.streams.torch, dtype=norms.dtype)
            kept = ~drop_smallest(norms * factors.to(norms.device), count // self.group_size)
        else:
            gone = self._gone(grouping, norms, mask)
            kept = ~(drop_smallest(norms.masked_fill(gone, -1.0), count // self.group_size) | gone)
        return kept.repeat_interleave(self.group_size).to(param.dtype)

    def drop_count(self, count: int, share: float) -> int:
        """Return how many of ``count`` structures go; all of them only where the share is 1."""
        wanted = self.rounding(share * count)
        dropped = self.rounding(wanted / self.group_size) * self.group_size
        return count - self.group_size if dropped >= count and share != 1.0 else min(dropped, count)

    def _gone(self, grouping: Grouping, norms: Tensor, mask: Tensor | None) -> Tensor:
        """Return which groups are pruned and still 0."""
        if mask is None:
            return torch.zeros_like(norms, dtype=torch.bool)
        rows = grouping.gather(mask.to(norms.device).expand(grouping.shape)).reshape(len(norms), -1)
        return (rows == 0).all(dim=1) & (norms == 0)

    def set_masks(self, weights: Mapping[str, Tensor], zeros_mask_dict: Maskers, meta: Meta) -> None:
        """Set the masks for the current epoch; see `Pruner.set_masks`."""
        if not self.is_global and not self.is_coupled:
            super().set_masks(weights, zeros_mask_dict, meta)
            return
        share = self.rate.target(meta)
        if share == 0.0:
            return
        listed = {name: weights[name] for name in weights if name in self.weights}
        pick = self._pick_coupled if self.is_coupled else self._pick_of_all
        for name, kept in pick(listed, zeros_mask_dict, share).items():
            expanded = self.grouping(name, listed[name]).expand(kept)
            zeros_mask_dict[name].mask = torch.empty_like(listed[name]).copy_(expanded)

    def _pick_coupled(
        self, weights: Mapping[str, Tensor], zeros_mask_dict: Maskers, share: float
    ) -> dict[str, Tensor]:
        """Return which filters of each weight stay, ranked by units; every layer keeps one unless all go."""
        kept: dict[str, Tensor] = {}
        for coupled in self._coupled:
            own = {name: weights[name] for name in coupled.units}
            groupings = {name: self.grouping(name, weight) for name, weight in own.items()}
            scores = coupled.scores(own, groupings, self.order)
            gone = coupled.gone(own, groupings, {name: zeros_mask_dict[name].mask for name in own})
            stays = coupled.largest_of_each(scores) & (share < 1.0) & ~gone
            ranked = scores.masked_fill(gone, -1.0).masked_fill(stays, torch.inf)
            units = ~(drop_smallest(ranked, self.drop_count(coupled.count, share)) | gone) | stays
            kept.update({name: units[index.to(units.device)] for name, index in coupled.units.items()})
        return kept

    def _pick_of_all(
        self, weights: Mapping[str, Tensor], zeros_mask_dict: Maskers, share: float
    ) -> dict[str, Tensor]:
        """Return which structures of each weight stay, ranked over all weights."""
        scores: list[Tensor] = []
        groupings = {name: self.grouping(name, weight) for name, weight in weights.items()}
        for name, weight in weights.items():
            grouping = groupings[name]
            norms = grouping.norms(weight, self.order)
            score = norms / (grouping.size if self.order == 1 else math.sqrt(grouping.size))
            gone = self._gone(grouping, norms, zeros_mask_dict[name].mask)
            score = score.masked_fill(gone, -1.0)
            if share < 1.0:  # one structure of each layer stays in any case
                largest = score.argmax() == torch.arange(len(score), device=score.device)
                score = score.masked_fill(largest & ~gone, torch.inf)
            scores.append(score.to(scores[0] if scores else score))
        flat, counts = torch.cat(scores), [grouping.count for grouping in groupings.values()]
        budget = self.rounding(share * sum(weight.numel() for weight in weights.values()))
        sizes = [grouping.size for grouping in groupings.values()]
        kept = ~(_drop_within(flat, counts, sizes, budget) | (flat < 0)) | torch.isinf(flat)
        return dict(zip(weights, torch.split(kept, counts), strict=True))


def _drop_within(scores: Tensor, counts: Sequence[int], sizes: Sequence[int], budget: int) -> Tensor:
    """Return which groups go: the smallest ones, until the next does not fit in the budget of elements.

    Args:
        scores: One number a group, shape (sum of ``counts``,).
        counts: So many groups of each weight.
        sizes: Elements in a group of each weight.
        budget: Elements that may go.
    """
    if len(set(sizes)) == 1:
        return drop_smallest(scores, min(budget // sizes[0], len(scores)))
    order = scores.argsort(stable=True)
    size = torch.cat(
        [torch.full((n,), size, device=scores.device) for n, size in zip(counts, sizes, strict=True)]
    )
    fits = size[order].cumsum(0) <= budget
    return torch.zeros_like(fits).scatter_(0, order, fits)


def _checked_block_shape(kind: str, kwargs: Any) -> list[int] | None:
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise checks.ArgumentError(f"Expected {{block_shape: [...]}}, got {kwargs!r}.", "kwargs")
    for key in kwargs or {}:
        checks.one_of(key, ("block_shape",), "kwargs")
    block_shape = (kwargs or {}).get("block_shape")
    if kind != "Blocks":
        if block_shape is not None:
            raise checks.ArgumentError(
                "Expected 'group_type: Blocks' beside a block shape.", "kwargs", "block_shape"
            )
        return None
    try:
        find_grouping("Blocks", [math.prod(block_shape or [1])] * 2 + [1, 1], block_shape=block_shape)
    except (TypeError, UserError) as error:
        raise checks.ArgumentError(
            f"Expected 'block_shape: [repetitions, depth, 1, 1]' for Blocks, got {block_shape!r}.", "kwargs"
        ) from error
    return list(block_shape or [])


class _ConstantRankedPruner(RankedPruner):
    _order = 1

    def __init__(
        self,
        name: str,
        group_type: str,
        desired_sparsity: float,
        weights: Sequence[str],
        group_dependency: str | None = None,
        kwargs: Mapping[str, Any] | None = None,
        noise: float = 0.0,
        group_size: int = 1,
        rounding_fn: str = "floor",
        scope: str = "layer",
        prune_output: bool = False,
    ) -> None:
        rate = ConstantRate(desired_sparsity)
        rest = (group_dependency, kwargs, noise, group_size, rounding_fn, scope, prune_output)
        super().__init__(name, self._order, group_type, weights, rate, *rest)


class _GradualRankedPruner(RankedPruner):
    _order = 1

    def __init__(
        self,
        name: str,
        initial_sparsity: float,
        final_sparsity: float,
        group_type: str,
        weights: Sequence[str],
        group_dependency: str | None = None,
        kwargs: Mapping[str, Any] | None = None,
        noise: float = 0.0,
        group_size: int = 1,
        rounding_fn: str = "floor",
        scope: str = "layer",
        prune_output: bool = False,
    ) -> None:
        rate = GradualRate(initial_sparsity, final_sparsity)
        rest = (group_dependency, kwargs, noise, group_size, rounding_fn, scope, prune_output)
        super().__init__(name, self._order, group_type, weights, rate, *rest)


class L1RankedStructureParameterPruner(_ConstantRankedPruner):
    """Prunes a share of the structures, those with the smallest L1 norm; see `RankedPruner`."""


class L2RankedStructureParameterPruner(_ConstantRankedPruner):
    """Prunes a share of the structures, those with the smallest L2 norm; see `RankedPruner`."""

    _order = 2


class L1RankedStructureParameterPruner_AGP(_GradualRankedPruner):
    """Prunes gradually (`gradual_target`) the structures with the smallest L1 norm; see `RankedPruner`."""


class L2RankedStructureParameterPruner_AGP(_GradualRankedPruner):
    """Prunes gradually (`gradual_target`) the structures with the smallest L2 norm; see `RankedPruner`."""

    _order = 2


class RandomLevelStructureParameterPruner(RankedPruner):
    """Prunes a random share of each weight's structures, those with the smallest L1 norm.

    Args:
        name: Name of the pruner in the schedule.
        group_type: One of `RANKED`.
        sparsity_range: Smallest and largest share, in [0, 1]; one is drawn for each weight whenever masks
            are set.
        weights: Names or shell patterns of the parameters.
        group_dependency: See `StructurePruner`.
        kwargs: See `RankedPruner`.

    Raises:
        UserError: If an argument is not one of these.
    """

    def __init__(
        self,
        name: str,
        group_type: str,
        sparsity_range: Any,
        weights: Sequence[str],
        group_dependency: str | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        if (
            isinstance(sparsity_range, str)
            or not isinstance(sparsity_range, Sequence)
            or len(sparsity_range) != 2
        ):
            raise checks.ArgumentError(
                f"Expected two numbers between 0 and 1, such as [0.2, 0.8], got {sparsity_range!r}.",
                "sparsity_range",
            )
        low, high = (checks.fraction(value, "sparsity_range") for value in sparsity_range)
        if low > high:
            raise checks.ArgumentError(
                f"Expected the smaller share first, got {list(sparsity_range)}.", "sparsity_range"
            )
        if group_dependency == "Coupled":
            raise checks.ArgumentError(
                "Expected 'Leader' or nothing, since every weight's share is drawn by itself, got 'Coupled'.",
                "group_dependency",
            )
        super().__init__(name, 1, group_type, weights, ConstantRate(high), group_dependency, kwargs)
        self.sparsity_range = (low, high)

    def _share(self, param_name: str, meta: Meta) -> float:
        return self.streams.python.uniform(*self.sparsity_range)


STRUCTURE_PRUNERS: tuple[type[Pruner], ...] = (
    L1RankedStructureParameterPruner,
    L1RankedStructureParameterPruner_AGP,
    L2RankedStructureParameterPruner,
    L2RankedStructureParameterPruner_AGP,
    RandomLevelStructureParameterPruner,
    StructureParameterPruner,
)
"""What a schedule may name of these."""
