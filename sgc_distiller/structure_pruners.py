"""Pruners of structures: what they share, and the one that compares structures with a threshold."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from sgc_distiller import checks
from sgc_distiller.errors import UserError
from sgc_distiller.names import find_names
from sgc_distiller.pruners import (
    ListedPruner,
    Maskers,
    Meta,
    Pruner,
    Rate,
    checked_values,
    find_values,
)
from sgc_distiller.structures import (
    Criterion,
    Grouping,
    find_grouping,
    group_name,
    threshold_groups,
)

__all__ = ["StructureParameterPruner", "StructurePruner", "checked_kind"]

Dependency = Literal["Leader", "Coupled"]


class StructurePruner(ListedPruner):
    """A pruner of structures of the listed weights, all of one group type.

    Args:
        name: Name of the pruner in the schedule.
        kind: A value of `structures.GROUP_TYPES`.
        weights: Names or shell patterns of the parameters.
        rate: Share of the structures that go in an epoch.
        group_dependency: ``Leader`` prunes in all weights the structures that the first one's ranking picks;
            ``Coupled`` ranks and prunes filters together whose outputs are summed or woven into one another
            (ranked pruners only); None ranks each weight for itself.
        prune_output: Whether a generator's output layer may be pruned, where it is named in full.

    Raises:
        UserError: If an argument is not one of these.
    """

    kinds: Sequence[str] = ()
    """The group types that a schedule may ask for."""

    def __init__(
        self,
        name: str,
        kind: str,
        weights: Sequence[str],
        rate: Rate,
        group_dependency: str | None = None,
        prune_output: bool = False,
    ) -> None:
        super().__init__(name, weights)
        if group_dependency is not None:
            checks.one_of(group_dependency, get_args(Dependency), "group_dependency")
        self.kind = kind
        self.rate = rate
        self.follows_leader = group_dependency == "Leader"
        self.is_coupled = group_dependency == "Coupled"
        self.prune_output = checks.boolean(prune_output, "prune_output")
        self._groupings: dict[str, Grouping] = {}
        self._leader_share: float | None = None
        self._leader_kept: Tensor | None = None

    def _find(self, model: nn.Module, spared: Collection[str]) -> None:
        super()._find(model, spared)
        params = dict(model.named_parameters())
        self._groupings = {}
        for name in self.weights:
            if self._axes and name not in self._axes and self.kind in ("Filters", "Channels"):
                raise checks.ArgumentError(
                    f"Expected weights of convolutions, of transposed convolutions without groups or of "
                    f"linear layers for {self.kind}, got {name!r}.",
                    "weights",
                )
            self._groupings[name] = self.grouping(name, params[name])
        counts = {name: self._groupings[name].count for name in self.weights}
        if self.follows_leader and len(set(counts.values())) > 1:
            raise checks.ArgumentError(
                f"Expected weights with as many {self.kind.lower()} as their leader {self.weights[0]!r} has: "
                + ", ".join(f"{name} with {count}" for name, count in counts.items())
                + ".",
                "weights",
            )

    def forget_sizes(self) -> None:
        """Forget also the leader's structures."""
        super().forget_sizes()
        self._leader_share = self._leader_kept = None

    def grouping(self, param_name: str, param: Tensor) -> Grouping:
        """Return the structures of a listed weight."""
        if param_name in self._groupings:
            return self._groupings[param_name]
        try:
            return self._make_grouping(param_name, param)
        except UserError as error:
            raise checks.ArgumentError(f"{param_name}: {error}", "weights") from error

    def _make_grouping(self, param_name: str, param: Tensor) -> Grouping:
        return find_grouping(self.kind, param.shape, self.axes_of(param_name), among=self.kinds)

    def structures(self) -> dict[str, str]:
        """Return the group type by the name of each weight that is pruned by structures."""
        return {} if self.kind == "Elements" else dict.fromkeys(self.weights, self.kind)

    def check_epochs(self, meta: Meta) -> None:
        """Refuse epochs with which the rate cannot work."""
        self.rate.check_epochs(meta)

    def target(self, param_name: str, meta: Meta) -> float:
        """Return the epoch's sparsity for the listed weights, and 0 for all others."""
        return self.rate.target(meta) if param_name in self.weights else 0.0

    def set_param_mask(self, param: Tensor, param_name: str, zeros_mask_dict: Maskers, meta: Meta) -> None:
        """Set the mask of one parameter; see `Pruner.set_param_mask`."""
        if param_name not in self.weights:
            return
        share = self._share(param_name, meta)
        if share == 0.0:
            return
        kept = self._kept(param, param_name, zeros_mask_dict, meta, share)
        if kept is not None:
            grouping = self.grouping(param_name, param)
            zeros_mask_dict[param_name].mask = torch.empty_like(param).copy_(grouping.expand(kept))

    def _share(self, param_name: str, meta: Meta) -> float:
        return self.target(param_name, meta)

    def _kept(
        self, param: Tensor, param_name: str, zeros_mask_dict: Maskers, meta: Meta, share: float
    ) -> Tensor | None:
        if not self.follows_leader:
            return self._pick(param, param_name, zeros_mask_dict[param_name].mask, share)
        if share != self._leader_share:
            leader = self.weights[0]
            weight = meta["model"].get_parameter(leader)
            self._leader_share = share
            self._leader_kept = self._pick(weight, leader, zeros_mask_dict[leader].mask, share)
        return self._leader_kept

    def _pick(self, param: Tensor, param_name: str, mask: Tensor | None, share: float) -> Tensor | None:
        """Return a factor for each structure, 0 for those that go; None to leave the mask as it is."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return the leader's structures and where the random streams are."""
        leader = {"share": self._leader_share, "kept": self._leader_kept}
        return {"leader": leader, "streams": self.streams.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self._leader_share = state["leader"]["share"]
        self._leader_kept = state["leader"]["kept"]
        self.streams.load_state_dict(state["streams"])


def checked_kind(group_type: Any, allowed: Sequence[str]) -> str:
    """Return the group type that a ranked pruner is asked for, or refuse it with a `UserError`.

    Rows mean Channels there, as in Distiller.
    """
    try:
        kind = group_name(group_type, allowed)
    except UserError as error:
        raise checks.ArgumentError(str(error), "group_type") from error
    return "Channels" if kind == "Rows" else kind


THRESHOLD_GROUPS = ("Kernels", "Filters", "Channels", "Rows", "Cols")
"""Group types that can be compared with a threshold."""


class StructureParameterPruner(Pruner):
    """Prunes structures whose size is at most a threshold.

    Args:
        name: Name of the pruner in the schedule.
        reg_regims: ``[threshold, group type]`` by parameter name or shell pattern, with 2D, 3D (Filters),
            Channels, Rows or Cols.
        threshold_criteria: ``Max`` compares a structure's largest magnitude, ``Mean_Abs`` the mean of its
            magnitudes.

    Raises:
        UserError: If an argument is not one of these.
    """

    def __init__(self, name: str, reg_regims: Mapping[str, Sequence[Any]], threshold_criteria: str) -> None:
        super().__init__(name)
        checks.one_of(threshold_criteria, get_args(Criterion), "threshold_criteria")
        self.threshold_criteria: Criterion = "Max" if threshold_criteria == "Max" else "Mean_Abs"
        self._asked = checked_values(reg_regims, "reg_regims", _threshold, "conv.weight: [0.1, 3D]")
        self._found = dict(self._asked)

    def _find(self, model: nn.Module, spared: Collection[str]) -> None:
        self._found = find_values(model, self._asked, "reg_regims", spared, has_rest=False)
        for asked, value in self._asked.items():
            for name in find_names(model, asked, spared):
                if self._found[name] == value:
                    self._check(asked, name, model.get_parameter(name), value[1])

    def _check(self, asked: str, param_name: str, param: Tensor, kind: str) -> None:
        try:
            find_grouping(kind, param.shape, self.axes_of(param_name), among=THRESHOLD_GROUPS)
        except UserError as error:
            raise checks.ArgumentError(f"{param_name}: {error}", "reg_regims", asked) from error

    def prunes(self, param_name: str) -> bool:
        """Return whether a parameter has a threshold."""
        return param_name in self._found

    def structures(self) -> dict[str, str]:
        """Return the group type by the name of each weight that is pruned by structures."""
        return {name: kind for name, (_, kind) in self._found.items()}

    def set_param_mask(self, param: Tensor, param_name: str, zeros_mask_dict: Maskers, meta: Meta) -> None:
        """Set the mask of one parameter; see `Pruner.set_param_mask`."""
        if param_name in self._found:
            threshold, kind = self._found[param_name]
            zeros_mask_dict[param_name].mask = threshold_groups(
                param.detach(), kind, threshold, self.threshold_criteria, self.axes_of(param_name)
            )


def _threshold(value: Any, *path: str) -> tuple[float, str]:
    """Return a checked ``[threshold, group type]``."""
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        raise checks.ArgumentError(f"Expected [threshold, group type], got {value!r}.", *path)
    try:
        return checks.number(value[0], *path, low=0.0), group_name(value[1], THRESHOLD_GROUPS)
    except checks.ArgumentError:
        raise
    except UserError as error:
        raise checks.ArgumentError(str(error), *path) from error
