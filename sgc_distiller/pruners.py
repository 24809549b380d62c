"""What all pruners share: the weights they mean, and how much is to be pruned in an epoch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from sgc_distiller import checks
from sgc_distiller.epochs import last_active_epoch
from sgc_distiller.masks import ParameterMasker
from sgc_distiller.names import find_all_names, find_names, is_pattern, layer_axes
from sgc_distiller.seeding import RandomStreams
from sgc_distiller.structures import Axes

__all__ = [
    "ConstantRate",
    "Convention",
    "GradualRate",
    "Pruner",
    "Rate",
    "checked_values",
    "checked_weights",
    "find_values",
    "gradual_target",
]

Convention = Literal["stored", "module"]
"""Whether Filters and Channels are dimensions 0 and 1 of the stored weight, or the layer's outputs and
inputs."""

Maskers = Mapping[str, ParameterMasker]
Meta = Mapping[str, Any]


def gradual_target(initial: float, final: float, meta: Meta) -> float:
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


class ConstantRate:
    """The same sparsity in every active epoch.

    Args:
        sparsity: In [0, 1].
        argument: Name of the argument that says so.

    Raises:
        UserError: If it is outside [0, 1].
    """

    def __init__(self, sparsity: float, argument: str = "desired_sparsity") -> None:
        self.sparsity = checks.fraction(sparsity, argument)

    def target(self, meta: Meta) -> float:
        """Return the epoch's sparsity."""
        return self.sparsity

    def check_epochs(self, meta: Meta) -> None:
        """Accept any epochs."""


class GradualRate:
    """A little more in each active epoch; see `gradual_target`.

    Args:
        initial_sparsity: Sparsity of the first active epoch, in [0, 1].
        final_sparsity: Sparsity of the last active epoch, in [0, 1], greater than the initial one.

    Raises:
        UserError: If the sparsities are not in order.
    """

    def __init__(self, initial_sparsity: float, final_sparsity: float) -> None:
        self.initial_sparsity = checks.fraction(initial_sparsity, "initial_sparsity")
        self.final_sparsity = checks.fraction(final_sparsity, "final_sparsity")
        if self.final_sparsity <= self.initial_sparsity:
            raise checks.ArgumentError(
                f"Expected a sparsity greater than 'initial_sparsity' ({self.initial_sparsity:g}), got "
                f"{self.final_sparsity:g}.",
                "final_sparsity",
            )

    def target(self, meta: Meta) -> float:
        """Return the epoch's sparsity."""
        return gradual_target(self.initial_sparsity, self.final_sparsity, meta)

    def check_epochs(self, meta: Meta) -> None:
        """Refuse a list of epochs and a single active epoch."""
        self.target({**meta, "current_epoch": meta["starting_epoch"]})


Rate = ConstantRate | GradualRate


class Pruner:
    """Computes the masks of some of a model's parameters.

    1. `bind` finds the parameters that the pruner's names and patterns mean, once for a model.
    2. `watch` begins to measure what the ranking needs, once the whole schedule is built.
    3. `set_masks` sets their masks, when an epoch begins and wherever a policy asks for it; by default it
       calls `set_param_mask`, which has Distiller's name and arguments, for one parameter after the other.

    Pruners with ``ranks_weights`` false look at something else than the weights' sizes; with
    ``scales_weights`` true their masks hold other numbers than 0 and 1.

    A pruner that can say in advance how much it prunes has ``target(param_name, meta)``, a sparsity in
    [0, 1].

    Args:
        name: Name of the pruner in the schedule.
    """

    ranks_weights = True
    scales_weights = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.streams = RandomStreams()
        self._bound_to: nn.Module | None = None
        self._axes: dict[str, Axes] = {}

    def bind(self, model: nn.Module, spared: Collection[str] = (), convention: Convention = "stored") -> None:
        """Find the parameters of ``model`` that are pruned; nothing happens if that was done before.

        Args:
            model: The model that is pruned.
            spared: Parameters that no pattern matches.
            convention: What Filters and Channels of a weight are.

        Raises:
            UserError: If a name or a pattern fits none, or a weight has no such structures.
        """
        if self._bound_to is not model:
            self._axes = layer_axes(model) if convention == "module" else {}
            self._find(model, spared)
            self._bound_to = model

    def _find(self, model: nn.Module, spared: Collection[str]) -> None:
        raise NotImplementedError

    def forget_sizes(self) -> None:
        """Forget what holds for the sizes of the weights as they were; `bind` looks at them anew."""
        self._bound_to = None

    def watch(self) -> None:
        """Begin to measure what the ranking needs; nothing by default."""

    def axes_of(self, param_name: str) -> Axes:
        """Return how the dimensions of a bound parameter are read."""
        return self._axes.get(param_name, "stored")

    def prunes(self, param_name: str) -> bool:
        """Return whether this may set the mask of a parameter, after `bind`."""
        return True

    def brings_back(self) -> bool:
        """Return whether what is pruned once may be picked to stay the next time masks are set."""
        return False

    def structures(self) -> dict[str, str]:
        """Return the group type by the name of each weight that is pruned by structures."""
        return {}

    def check_epochs(self, meta: Meta) -> None:
        """Refuse epochs with which this pruner cannot work, with a `UserError`."""

    def set_masks(self, weights: Mapping[str, Tensor], zeros_mask_dict: Maskers, meta: Meta) -> None:
        """Set the masks for the current epoch.

        Args:
            weights: All parameters of the model as they are ranked, in the model's order.
            zeros_mask_dict: Maskers by parameter name.
            meta: Epochs of the policy, see `gradual_target`, and ``model``.
        """
        for param_name, param in weights.items():
            self.set_param_mask(param, param_name, zeros_mask_dict, meta)

    def set_param_mask(self, param: Tensor, param_name: str, zeros_mask_dict: Maskers, meta: Meta) -> None:
        """Set the mask of one parameter for the current epoch; one that is not pruned is left alone.

        Args:
            param: The parameter's weights as they are now.
            param_name: Its name in the model.
            zeros_mask_dict: Maskers by parameter name.
            meta: Epochs of the policy, see `gradual_target`, and ``model``.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs beside the masks; nothing by default."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""


def checked_weights(weights: Sequence[str]) -> list[str]:
    """Return ``weights`` as a new list of names and patterns, or refuse them with a `UserError`."""
    found = checks.names(weights, "weights")
    if not found:
        raise checks.ArgumentError(
            "Expected a list of names or patterns of weights, got an empty list.", "weights"
        )
    return found


def checked_values(
    values: Mapping[str, Any], argument: str, check: Callable[..., Any], example: str
) -> dict[str, Any]:
    """Return a mapping of names or patterns to values as a new dictionary, or refuse it.

    Args:
        values: What the schedule says.
        argument: Name of the argument, such as ``levels``.
        check: Called with each value, the argument and the name; returns the value or refuses it.
        example: An entry, such as ``'main.*.weight': 0.5``.

    Raises:
        UserError: If it is no such mapping, or a value is refused.
    """
    if not isinstance(values, Mapping) or not values:
        raise checks.ArgumentError(
            f"Expected at least one entry by the name of a weight, such as {{{example}}}, got {values!r}.",
            argument,
        )
    return {str(name): check(value, argument, str(name)) for name, value in values.items()}


def find_values(
    model: nn.Module,
    values: Mapping[str, Any],
    argument: str,
    spared: Collection[str] = (),
    has_rest: bool = True,
) -> dict[str, Any]:
    """Return ``values`` by the parameters' own names.

    A parameter named in full keeps its own value, whatever patterns fit it.

    Args:
        model: The model.
        values: Values by name or pattern.
        argument: Name of the argument, such as ``levels``.
        spared: Parameters that no pattern matches.
        has_rest: Whether ``'*'`` means every other parameter and stays as it is, or is a pattern.

    Raises:
        UserError: If an entry fits no parameter, or two entries give one parameter different values.
    """
    found: dict[str, tuple[str, Any]] = {}
    patterns: dict[str, tuple[str, Any]] = {}
    for asked, value in values.items():
        if asked == "*" and has_rest:
            found["*"] = (asked, value)
            continue
        names = find_names(model, asked, spared)
        target = found if len(names) == 1 and not is_pattern(asked) else patterns
        for name in names:
            other, other_value = target.get(name, (asked, value))
            if other_value != value:
                raise checks.ArgumentError(
                    f"Expected one value for {name!r}, got {value} and, from {other!r}, {other_value}.",
                    argument,
                    asked,
                )
            target[name] = (asked, value)
    return {name: value for name, (_, value) in {**patterns, **found}.items()}


class ListedPruner(Pruner):
    """A pruner of weights that are listed by names and patterns.

    Args:
        name: Name of the pruner in the schedule.
        weights: Names or shell patterns of the parameters.

    Raises:
        UserError: If no weights are listed.
    """

    def __init__(self, name: str, weights: Sequence[str]) -> None:
        super().__init__(name)
        self._asked = checked_weights(weights)
        self.weights = list(self._asked)

    def _find(self, model: nn.Module, spared: Collection[str]) -> None:
        self.weights = find_all_names(model, self._asked, spared)

    def prunes(self, param_name: str) -> bool:
        """Return whether a parameter is listed."""
        return param_name in self.weights

    def named_in_full(self, param_name: str) -> bool:
        """Return whether a parameter is listed by its name and not by a pattern."""
        return param_name in self._asked
