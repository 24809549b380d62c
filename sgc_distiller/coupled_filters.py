"""Which filters can only be taken out together: those whose outputs are summed or woven into one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from sgc_distiller import checks
from sgc_distiller.channel_flow import ChannelFlow, LayerFlow
from sgc_distiller.channel_tracing import trace
from sgc_distiller.module_state import parts_of
from sgc_distiller.names import canonical
from sgc_distiller.structures import Grouping

__all__ = ["CoupledFilters", "find_coupled", "find_staying"]


@dataclass(frozen=True)
class CoupledFilters:
    """Layers that share units: a unit is what can only be taken out as a whole.

    In a residual network all layers whose outputs are added up share their units; a layer whose outputs
    nobody else adds to has its filters for itself.

    Attributes:
        units: By the name of the layer's weight, which unit each of its filters belongs to, int64 (filters,).
        count: How many units there are.
    """

    units: dict[str, Tensor]
    count: int

    def scores(self, weights: Mapping[str, Tensor], groupings: Mapping[str, Grouping], order: int) -> Tensor:
        """Return the sum of each unit's filter norms, shape (count,).

        Norms are relative to their layer's mean, since layers before a norm may be of any scale.

        Args:
            weights: The layers' weights.
            groupings: Their filters.
            order: 1 or 2, the norm.
        """
        total = torch.zeros(self.count, device=next(iter(weights.values())).device)
        for name, units in self.units.items():
            norms = groupings[name].norms(weights[name], order).to(total)
            total.index_add_(0, units.to(total.device), norms / norms.mean().clamp(min=1e-12))
        return total

    def gone(
        self,
        weights: Mapping[str, Tensor],
        groupings: Mapping[str, Grouping],
        masks: Mapping[str, Tensor | None],
    ) -> Tensor:
        """Return which units are pruned and still 0, shape (count,)."""
        alive = torch.zeros(self.count, dtype=torch.bool, device=next(iter(weights.values())).device)
        for name, units in self.units.items():
            mask, grouping = masks[name], groupings[name]
            rows = grouping.gather(torch.ones_like(weights[name]) if mask is None else mask)
            here = (rows != 0).any(dim=1) | (grouping.gather(weights[name]) != 0).any(dim=1)
            alive[units.to(alive.device)[here]] = True
        return ~alive

    def largest_of_each(self, scores: Tensor) -> Tensor:
        """Return for each unit whether it is the largest one of any layer, shape (count,)."""
        kept = torch.zeros(self.count, dtype=torch.bool, device=scores.device)
        for units in self.units.values():
            own = units.to(scores.device)
            kept[own[scores[own].argmax()]] = True
        return kept


def find_staying(model: nn.Module, weights: Sequence[str]) -> dict[str, str]:
    """Return the weights some of whose filters cannot be taken out, and why; see `find_coupled`."""
    by_name = {canonical(name): name for name in weights}
    found: dict[str, str] = {}
    for part in parts_of(model):
        flow = trace(part.network)
        for path, layer in flow.layers.items():
            reasons = [flow.channels.fixed(root) for root in flow.channels.roots(layer.outputs).tolist()]
            name = by_name.get(f"{part.prefix}{path}.weight")
            if name and any(reasons):
                found[name] = next(reason for reason in reasons if reason)
    return found


def find_coupled(model: nn.Module, weights: Sequence[str]) -> list[CoupledFilters]:
    """Return the groups of layers that share units, in the order of their first layer.

    Args:
        model: A network, or several in a `torch.nn.ModuleDict`.
        weights: Names of the weights whose filters are to be pruned.

    Raises:
        UserError: If the network cannot be followed, a filter must stay, or goes together with one of a layer
            that is not listed.
    """
    by_name = {canonical(name): name for name in weights}
    found: list[CoupledFilters] = []
    seen: set[str] = set()
    for part in parts_of(model):
        flow = trace(part.network)
        listed = {
            by_name[f"{part.prefix}{path}.weight"]: layer
            for path, layer in flow.layers.items()
            if f"{part.prefix}{path}.weight" in by_name
        }
        seen.update(listed)
        for name, layer in listed.items():
            _check(name, layer, flow, listed, part.prefix)
        found += _components(flow, listed)
    missing = [name for name in weights if name not in seen]
    if missing:
        raise checks.ArgumentError(
            f"Expected weights of layers that the network calls, got {missing[0]!r}.", "weights"
        )
    return found


def _check(
    name: str, layer: LayerFlow, flow: ChannelFlow, listed: Mapping[str, LayerFlow], prefix: str
) -> None:
    """Refuse a filter that cannot be taken out."""
    roots = flow.channels.roots(layer.outputs)
    fixed = [reason for root in roots.tolist() if (reason := flow.channels.fixed(root))]
    if fixed:
        raise checks.ArgumentError(
            f"Expected weights whose filters can be taken out, got {name!r}: {fixed[0]}. Leave it out.",
            "weights",
        )
    for other in flow.layers.values():
        known = any(other is item for item in listed.values())
        if not known and np.isin(flow.channels.roots(other.outputs), roots).any():
            raise checks.ArgumentError(
                f"Expected all layers whose filters go together, got {name!r} without "
                f"'{prefix}{other.path}.weight'; name both.",
                "weights",
            )


def _components(flow: ChannelFlow, listed: Mapping[str, LayerFlow]) -> list[CoupledFilters]:
    """Join layers that share a unit, directly or through others."""
    rest = {name: flow.channels.roots(layer.outputs) for name, layer in listed.items()}
    found = []
    while rest:
        first = next(iter(rest))
        own = {first: rest.pop(first)}
        grown = True
        while grown:
            shared = {
                name
                for name, roots in rest.items()
                if any(np.isin(roots, item).any() for item in own.values())
            }
            own.update({name: rest.pop(name) for name in shared})
            grown = bool(shared)
        numbers = np.unique(np.concatenate(list(own.values())))
        units = {
            name: torch.from_numpy(np.searchsorted(numbers, own[name])) for name in listed if name in own
        }
        found.append(CoupledFilters(units, len(numbers)))
    return found
