"""Refusal of schedules in which one filter after the other is lost for good."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sgc_distiller.pruners import Pruner
from sgc_distiller.pruning_policy import PruningPolicy
from sgc_distiller.regularization_policy import RegularizationPolicy
from sgc_distiller.regularizers import GroupLassoRegularizer, ParameterRegularizer
from sgc_distiller.schedule_reader import PolicySpec
from sgc_distiller.structures import GROUP_TYPES

__all__ = ["check_returning_filters", "keeps_groups", "structures_of"]

Entry = tuple[PolicySpec, Any]


def check_returning_filters(entries: Sequence[Entry]) -> None:
    """Refuse filters that are to come back from where nothing comes back.

    A pruned filter's weights, its bias and its norm's weight and bias are all 0, so none of them gets a
    gradient again. Where masks last (which all of `mask_on_forward_only` and `use_double_copies` prevent
    only together), a pruner that picks others the next time loses more filters each time, and in the end
    all of them. So of all the masks that a weight gets in the whole schedule, from whatever pruner, one that
    is picked anew may last only if none has lasted before. The options that count are those in force: of
    two pruning policies those of the one that started last, and `keep_mask` makes the masks of all last.

    Args:
        entries: Policies about pruners and regularizers in their order, each with its entry in the file.

    Raises:
        ScheduleError: If more than one such mask lasts.
    """
    weights = {name for _, made in entries for name, kind in structures_of(made).items() if kind == "Filters"}
    if any(_returns(made) for _, made in entries):
        rehearsal = _Rehearsal(weights)
        for epoch in sorted({epoch for policy, _ in entries for epoch in policy.active}):
            rehearsal.rehearse(epoch, [entry for entry in entries if epoch in entry[0].active])


class _Draw(NamedTuple):
    """One computation of a weight's filter mask."""

    policy: PolicySpec
    epoch: int
    is_new: bool
    """Whether the filters are others than those that are gone."""
    is_repeated: bool
    """Whether it is repeated in the middle of the epoch."""


class _Rehearsal:
    """Goes through a schedule's epochs with the masks' histories in the place of the masks.

    Args:
        weights: Those that have filters pruned.
    """

    def __init__(self, weights: set[str]) -> None:
        self._weights = sorted(weights)
        self._draws: dict[str, list[_Draw]] = {}
        self._lost: dict[str, _Draw] = {}
        self._is_soft = dict.fromkeys(weights, False)
        self._decided_by: dict[str, tuple[PolicySpec, str]] = {}
        self._begun: set[int] = set()

    def rehearse(self, epoch: int, active: Sequence[Entry]) -> None:
        """Go through one epoch, with its active policies."""
        pruning = [(policy, made) for policy, made in active if isinstance(made, PruningPolicy)]
        for policy, made in pruning:
            if id(policy) not in self._begun:
                self._begun.add(id(policy))
                self._decide(
                    self._weights, policy, "options", made.mask_on_forward_only and made.use_double_copies
                )
            self._draw(epoch, policy, made)
        self._train()
        if any(made.discard_masks_at_minibatch_end for _, made in pruning):
            self._draws = {}
        for policy, made in active:
            if epoch == policy.active[-1] and getattr(made, "keep_mask", False):
                self._keep(epoch, policy, made)
        self._train()

    def _decide(self, weights: Sequence[str], policy: PolicySpec, by: str, is_soft: bool) -> None:
        for name in weights:
            self._is_soft[name] = is_soft
            self._decided_by[name] = policy, by

    def _draw(self, epoch: int, policy: PolicySpec, made: PruningPolicy) -> None:
        meta = {**policy.meta, "current_epoch": epoch}
        for name, kind in structures_of(made).items():
            has_target = hasattr(made.pruner, "target")
            if kind == "Filters" and not (has_target and made.pruner.target(name, meta) == 0.0):
                draw = _Draw(policy, epoch, _returns(made), made.mini_batch_pruning_frequency > 0)
                repeated = [
                    other
                    for other in self._draws.get(name, [])
                    if other.epoch == epoch and other.is_new and other.is_repeated
                ]
                self._draws[name] = [*repeated, draw]

    def _keep(self, epoch: int, policy: PolicySpec, made: Any) -> None:
        if isinstance(made, PruningPolicy):
            self._decide(self._weights, policy, "keep_mask", False)
        elif isinstance(made.regularizer, ParameterRegularizer) and made.has_threshold:
            named = [name for name in self._weights if name in made.regularizer.reg_regims]
            self._decide(named, policy, "keep_mask", False)
            for name, kind in structures_of(made).items():
                if kind == "Filters":
                    self._draws.setdefault(name, []).append(_Draw(policy, epoch, False, False))

    def _train(self) -> None:
        """Let the masks of this moment act on the weights; those that last cost their filters."""
        for name, draws in self._draws.items():
            for draw in draws if not self._is_soft[name] else []:
                if draw.is_new and (draw.is_repeated or self._lost.get(name, draw) != draw):
                    self._refuse(name, draw)
                self._lost[name] = draw

    def _refuse(self, name: str, draw: _Draw) -> None:
        own = draw.policy.instance
        decider, by = self._decided_by[name]
        why = (
            f"the pruner {own.name!r} picks other filters of {name!r} each time: with lasting masks a filter "
            "and its norm stay 0 for good, and in the end all do. Or set masks of that weight only once in "
            "the whole schedule ('epochs: [0]'), or write 'filter_axis: stored' under 'gan'."
        )
        soft = "'args: {mask_on_forward_only: true, use_double_copies: true}'"
        if by == "keep_mask" and decider is not draw.policy:
            raise decider.node.error(
                f"Expected no 'keep_mask: true' before the last epoch of {own.name!r}; it makes the masks of "
                f"all weights last, and {why}"
            )
        if decider.instance is not own:
            raise decider.node.error(
                f"Expected {soft} here too; of several pruning policies the options of the one that started "
                f"last count for all weights, and {why}"
            )
        raise own.node.error(f"Expected {soft} in each policy of {own.name!r}; {why}")


def _returns(made: Any) -> bool:
    """Return whether a policy's pruner may pick what is not gone yet in the place of what is."""
    return isinstance(made, PruningPolicy) and isinstance(made.pruner, Pruner) and made.pruner.brings_back()


def keeps_groups(made: Any) -> bool:
    """Return whether a policy is a regularizer's that makes masks of groups lasting."""
    return (
        isinstance(made, RegularizationPolicy)
        and isinstance(made.regularizer, GroupLassoRegularizer)
        and made.keep_mask
        and made.has_threshold
    )


def structures_of(made: Any) -> dict[str, str]:
    """Return the group type by the name of each weight that a policy prunes by structures."""
    if isinstance(made, RegularizationPolicy) and isinstance(made.regularizer, GroupLassoRegularizer):
        return {name: GROUP_TYPES.get(kind, kind) for name, (_, kind) in made.regularizer.reg_regims.items()}
    is_known = isinstance(made, PruningPolicy) and isinstance(made.pruner, Pruner)
    return made.pruner.structures() if is_known else {}
