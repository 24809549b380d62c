"""Pruners of whole filters that are picked at random, by their gradient, or by their activations."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sgc_distiller import checks
from sgc_distiller.masks import drop_smallest
from sgc_distiller.names import layer_axes
from sgc_distiller.pruners import ConstantRate, GradualRate, Rate
from sgc_distiller.structure_pruners import StructurePruner, checked_kind
from sgc_distiller.structures import find_grouping

__all__ = [
    "ActivationAPoZRankedFilterPruner",
    "ActivationAPoZRankedFilterPruner_AGP",
    "ActivationMeanRankedFilterPruner",
    "ActivationMeanRankedFilterPruner_AGP",
    "BernoulliFilterPruner",
    "BernoulliFilterPruner_AGP",
    "FILTER_PRUNERS",
    "FilterPruner",
    "GradientRankedFilterPruner",
    "GradientRankedFilterPruner_AGP",
    "RandomRankedFilterPruner",
    "RandomRankedFilterPruner_AGP",
]


class FilterPruner(StructurePruner):
    """Prunes ``int(share * filters)`` whole filters.

    Args:
        name: Name of the pruner in the schedule.
        group_type: ``Filters`` or ``3D``.
        weights: Names or shell patterns of the weights of convolutions.
        rate: Share of the filters that go in an epoch.
        group_dependency: Must be None: these filters cannot follow a leader's.
        prune_output: See `StructurePruner`.

    Raises:
        UserError: If an argument is not one of these.
    """

    kinds = ("Filters",)
    ranks_weights = False

    def __init__(
        self,
        name: str,
        group_type: str,
        weights: Sequence[str],
        rate: Rate,
        group_dependency: str | None = None,
        prune_output: bool = False,
    ) -> None:
        if group_dependency is not None:
            raise checks.ArgumentError(
                f"Expected no 'group_dependency' for {type(self).__name__}, which ranks by no weight, got "
                f"{group_dependency!r}. To follow a leader, use L1RankedStructureParameterPruner.",
                "group_dependency",
            )
        kind = checked_kind(group_type, self.kinds)
        super().__init__(name, kind, weights, rate, None, prune_output)

    def _pick(self, param: Tensor, param_name: str, mask: Tensor | None, share: float) -> Tensor | None:
        count = int(share * self.grouping(param_name, param).count)
        return None if count == 0 else self._pick_count(param, param_name, count)

    def _pick_count(self, param: Tensor, param_name: str, count: int) -> Tensor | None:
        """Return a factor for each filter, 0 for the ``count`` that go; None to leave the mask as it is."""
        raise NotImplementedError


class _ConstantFilterPruner(FilterPruner):
    def __init__(
        self,
        name: str,
        group_type: str,
        desired_sparsity: float,
        weights: Sequence[str],
        group_dependency: str | None = None,
        prune_output: bool = False,
    ) -> None:
        rate = ConstantRate(desired_sparsity)
        super().__init__(name, group_type, weights, rate, group_dependency, prune_output)


class _GradualFilterPruner(FilterPruner):
    def __init__(
        self,
        name: str,
        initial_sparsity: float,
        final_sparsity: float,
        group_type: str,
        weights: Sequence[str],
        group_dependency: str | None = None,
        prune_output: bool = False,
    ) -> None:
        rate = GradualRate(initial_sparsity, final_sparsity)
        super().__init__(name, group_type, weights, rate, group_dependency, prune_output)


class _Random(FilterPruner):
    """Picks filters at random, others each time masks are set."""

    def brings_back(self) -> bool:
        """Return True: other filters are drawn each time."""
        return True

    def _pick_count(self, param: Tensor, param_name: str, count: int) -> Tensor:
        kept = self.streams.numpy.permutation(self.grouping(param_name, param).count)[:-count]
        factors = torch.zeros(self.grouping(param_name, param).count, dtype=param.dtype)
        factors[torch.from_numpy(kept)] = 1.0
        return factors.to(param.device, non_blocking=True)


class RandomRankedFilterPruner(_Random, _ConstantFilterPruner):
    """Prunes a share ``desired_sparsity`` of the filters, picked at random; see `FilterPruner`."""


class RandomRankedFilterPruner_AGP(_Random, _GradualFilterPruner):
    """Prunes filters picked at random, gradually more of them; see `FilterPruner` and `gradual_target`."""


class _Bernoulli(FilterPruner):
    """Drops each filter with a probability, and makes the others larger to make up for it."""

    def brings_back(self) -> bool:
        """Return True: other filters are drawn each time."""
        return True

    scales_weights = True

    def _pick(self, param: Tensor, param_name: str, mask: Tensor | None, share: float) -> Tensor:
        count = self.grouping(param_name, param).count
        kept = torch.bernoulli(torch.full((count,), 1.0 - share), generator=self.streams.torch)
        factors = kept / kept.mean().clamp(min=1.0 / count)
        return factors.to(param.device, param.dtype, non_blocking=True)


class BernoulliFilterPruner(_Bernoulli, _ConstantFilterPruner):
    """Drops each filter with probability ``desired_sparsity``, others each time masks are set.

    The filters that stay are multiplied by ``filters / filters that stay``, as dropout does it: use it with
    ``mask_on_forward_only`` and ``use_double_copies``, else they grow with every step. See `FilterPruner`.
    """


class BernoulliFilterPruner_AGP(_Bernoulli, _GradualFilterPruner):
    """Drops filters with a probability that grows; see `BernoulliFilterPruner` and `gradual_target`."""


class _Gradient(FilterPruner):
    """Keeps the filters with the largest sum of weight times gradient."""

    def brings_back(self) -> bool:
        """Return True: a pruned filter scores 0, which need not be the smallest score."""
        return True

    _saved: Mapping[str, Tensor] = {}  # noqa: RUF012 - replaced, never changed

    def _scores(self, param: Tensor, param_name: str) -> Tensor | None:
        if param.grad is None:
            return self._saved.get(param_name)
        grouping = self.grouping(param_name, param)
        return grouping.gather(param.detach() * param.grad).sum(dim=1)

    def _pick_count(self, param: Tensor, param_name: str, count: int) -> Tensor | None:
        scores = self._scores(param, param_name)
        return None if scores is None else (~drop_smallest(scores, count)).to(param.dtype)

    def state_dict(self) -> dict[str, Any]:
        """Return also the scores that the last gradients gave, since gradients are not saved."""
        params = dict(self._bound_to.named_parameters()) if self._bound_to else {}
        found = {name: self._scores(params[name], name) for name in self.weights if name in params}
        return {**super().state_dict(), "scores": {k: v for k, v in found.items() if v is not None}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        super().load_state_dict(state)
        self._saved = dict(state["scores"])


class GradientRankedFilterPruner(_Gradient, _ConstantFilterPruner):
    """Prunes a share of the filters, those with the smallest signed sum of weight times gradient.

    The gradients are those of the last step; before there are any, nothing is pruned. See
    `FilterPruner`.
    """


class GradientRankedFilterPruner_AGP(_Gradient, _GradualFilterPruner):
    """Prunes filters by weight times gradient, gradually more of them; see `GradientRankedFilterPruner`."""


class ActivationMeter:
    """Mean of a statistic of a layer's outputs for each channel, over all forward passes since `reset`.

    Args:
        share_of_zeros: Whether the statistic is the share of zeros (APoZ) or the value.
    """

    def __init__(self, share_of_zeros: bool) -> None:
        self.share_of_zeros = share_of_zeros
        self.total: Tensor | None = None
        self.passes = 0

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        """Add a forward pass; this is a forward hook. Channels are dimension 1 of ``output``."""
        values = output.detach()
        values = (values == 0).float() if self.share_of_zeros else values.float()
        mean = values.transpose(0, 1).flatten(1).mean(dim=1)
        if self.total is not None and self.total.shape != mean.shape:
            self.reset()  # the layer was made thinner
        self.total = mean if self.total is None else self.total.to(mean.device) + mean
        self.passes += 1

    def value(self) -> Tensor:
        """Return the mean of each channel."""
        assert self.total is not None
        return self.total / self.passes

    def reset(self) -> None:
        """Forget all passes."""
        self.total, self.passes = None, 0


class _Activation(FilterPruner):
    """Prunes the filters whose activations have the largest statistic."""

    _statistic = "apoz_channels"
    _modules: Mapping[str, nn.Module] = {}  # noqa: RUF012 - replaced, never changed
    _meters: Mapping[str, ActivationMeter] = {}  # noqa: RUF012 - replaced, never changed
    _watched: nn.Module | None = None

    def _find(self, model: nn.Module, spared: Collection[str]) -> None:
        super()._find(model, spared)
        modules: dict[str, nn.Module] = {}
        axes, params = layer_axes(model), dict(model.named_parameters())
        for name in self.weights:
            path = name.replace(".conv", ".relu").removesuffix(".weight")
            try:
                modules[name] = model.get_submodule(path)
            except AttributeError:
                raise checks.ArgumentError(
                    f"Expected a layer {path!r}, whose activations rank the filters of {name!r}, but the "
                    "model has none.",
                    "weights",
                ) from None
            if path == name.removesuffix(".weight") and name in axes:
                outputs = find_grouping("Filters", params[name].shape, axes[name]).count
                self._check_count(name, outputs, self.grouping(name, params[name]).count)
        self._modules = modules

    def _check_count(self, param_name: str, channels: int, filters: int) -> None:
        if channels != filters:
            raise checks.ArgumentError(
                "Expected as many filters as there are channels of activations, got "
                f"{param_name!r} with {filters} and {channels}. Take it off the list; of transposed "
                "convolutions Filters are the outputs in schedules with 'gan' only.",
                "weights",
            )

    def watch(self) -> None:
        """Measure the activations of all forward passes from now on."""
        if self._watched is self._bound_to:
            return
        self._watched = self._bound_to
        self._meters = {name: self._meters.get(name, self._new_meter()) for name in self._modules}
        for name, module in self._modules.items():
            if not hasattr(module, self._statistic):
                module.register_forward_hook(self._meters[name])

    def _new_meter(self) -> ActivationMeter:
        return ActivationMeter(self._statistic == "apoz_channels")

    def _pick_count(self, param: Tensor, param_name: str, count: int) -> Tensor | None:
        scores = self._scores(param_name)
        if scores is None:
            return None
        self._check_count(param_name, len(scores), self.grouping(param_name, param).count)
        return (~drop_smallest(-scores.to(param.device), count)).to(param.dtype)

    def _scores(self, param_name: str) -> Tensor | None:
        given = getattr(self._modules[param_name], self._statistic, None)
        if given is not None:  # what Distiller's collector left there
            return torch.as_tensor(given.value()[0])
        meter = self._meters.get(param_name)
        if meter is None or meter.passes == 0:
            return None
        values = meter.value()
        meter.reset()
        return values

    def state_dict(self) -> dict[str, Any]:
        """Return also what was measured so far."""
        measured = {name: [meter.total, meter.passes] for name, meter in self._meters.items()}
        return {**super().state_dict(), "measured": measured}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        super().load_state_dict(state)
        meters = {name: self._meters.get(name, self._new_meter()) for name in state["measured"]}
        for name, (total, passes) in state["measured"].items():
            meters[name].total, meters[name].passes = total, passes
        self._meters = {**self._meters, **meters}


class ActivationAPoZRankedFilterPruner(_Activation, _ConstantFilterPruner):
    """Prunes a share of the filters, those whose activations are 0 most often (APoZ, arXiv 1607.03250).

    Activations are those of the layer whose path has ``.relu`` where the weight's has ``.conv``. What
    Distiller's collector left there as ``apoz_channels`` counts; else they are measured in the forward passes
    since masks were last set, and nothing is pruned before the first one. See `FilterPruner`.
    """


class ActivationAPoZRankedFilterPruner_AGP(_Activation, _GradualFilterPruner):
    """Prunes filters by APoZ, gradually more of them; see `ActivationAPoZRankedFilterPruner`."""


class ActivationMeanRankedFilterPruner(_Activation, _ConstantFilterPruner):
    """Prunes a share of the filters, those with the largest mean activation, as Distiller does.

    Its source (arXiv 1611.06440) prunes the smallest. Statistics are ``mean_channels``, else measured; see
    `ActivationAPoZRankedFilterPruner`.
    """

    _statistic = "mean_channels"

    def brings_back(self) -> bool:
        """Return True: the mean activation of a pruned filter need not be the largest."""
        return True


class ActivationMeanRankedFilterPruner_AGP(_Activation, _GradualFilterPruner):
    """Prunes filters by mean activation, gradually more; see `ActivationMeanRankedFilterPruner`."""

    _statistic = "mean_channels"

    def brings_back(self) -> bool:
        """Return True: the mean activation of a pruned filter need not be the largest."""
        return True


FILTER_PRUNERS: tuple[type[FilterPruner], ...] = (
    ActivationAPoZRankedFilterPruner,
    ActivationAPoZRankedFilterPruner_AGP,
    ActivationMeanRankedFilterPruner,
    ActivationMeanRankedFilterPruner_AGP,
    BernoulliFilterPruner,
    BernoulliFilterPruner_AGP,
    GradientRankedFilterPruner,
    GradientRankedFilterPruner_AGP,
    RandomRankedFilterPruner,
    RandomRankedFilterPruner_AGP,
)
"""What a schedule may name of these."""
