"""Learning-rate schedules that a YAML schedule can name: torch's own and two more."""

from __future__ import annotations

import inspect
import math
import warnings
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from sgc_distiller import checks

__all__ = [
    "LR_SCHEDULERS",
    "MultiStepMultiGammaLR",
    "PolynomialLR",
    "make_lr_scheduler",
    "moving_state",
    "rehearse",
    "settings_kept_on_error",
    "stand_in_optimizer",
    "step_to",
]


class PolynomialLR(LRScheduler):
    """Sets the rate of epoch ``e`` to ``base * (1 - e / T_max) ** power``.

    Args:
        optimizer: The optimizer whose rates are set.
        T_max: Epoch at which the rate reaches 0; it goes on as the formula says afterwards.
        power: Exponent, greater than 0.
        last_epoch: The last epoch that was trained, -1 for none.
    """

    def __init__(self, optimizer: Optimizer, T_max: int, power: float, last_epoch: int = -1) -> None:
        self.T_max = checks.integer(T_max, "T_max", low=1)
        self.power = checks.number(power, "power", low=0.0, open_low=True)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """Return the rate of ``last_epoch`` for each group."""
        factor = (1 - self.last_epoch / self.T_max) ** self.power
        return [base * factor for base in self.base_lrs]


class MultiStepMultiGammaLR(LRScheduler):
    """Multiplies the rate by a factor of its own at each milestone.

    Args:
        optimizer: The optimizer whose rates are set.
        milestones: Increasing epochs.
        gammas: One factor for each milestone.
        last_epoch: The last epoch that was trained, -1 for none.

    Raises:
        UserError: If there are not as many factors as milestones, or the milestones do not increase.
    """

    def __init__(
        self, optimizer: Optimizer, milestones: Sequence[int], gammas: Sequence[float], last_epoch: int = -1
    ) -> None:
        for name, values in (("milestones", milestones), ("gammas", gammas)):
            if not isinstance(values, (list, tuple)):
                raise checks.ArgumentError(f"Expected a list of numbers, got {values!r}.", name)
        for milestone in milestones:
            checks.integer(milestone, "milestones", low=0)
        if list(milestones) != sorted(set(milestones)):
            raise checks.ArgumentError(f"Expected increasing epochs, got {list(milestones)}.", "milestones")
        if len(milestones) != len(gammas):
            raise checks.ArgumentError(
                f"Expected one factor for each of the {len(milestones)} milestones, got {len(gammas)}.",
                "gammas",
            )
        self.milestones = list(milestones)
        self.gammas = [checks.number(gamma, "gammas", low=0.0) for gamma in gammas]
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """Return the rate of ``last_epoch`` for each group."""
        factor = math.prod(self.gammas[: bisect_right(self.milestones, self.last_epoch)])
        return [base * factor for base in self.base_lrs]


_NOT_IN_YAML = {"LRScheduler", "LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler"}
LR_SCHEDULERS: dict[str, type] = {
    **{name: getattr(lr_scheduler, name) for name in lr_scheduler.__all__ if name not in _NOT_IN_YAML},
    "PolynomialLR": PolynomialLR,
    "MultiStepMultiGammaLR": MultiStepMultiGammaLR,
}


# Rates are set by absolute epochs at the end of an epoch, whatever happened to the optimizer before.
_BESIDE_THE_POINT = (
    r"The epoch parameter in `scheduler.step\(\)`",
    r"Detected call of `lr_scheduler.step\(\)` before `optimizer.step\(\)`",
    r"Seems like `optimizer.step\(\)` has been overridden",
)


def make_lr_scheduler(
    kind: type, optimizer: Optimizer, arguments: Mapping[str, Any], last_epoch: int | None = None
) -> Any:
    """Return a learning-rate schedule of class ``kind``.

    Args:
        kind: A class of `LR_SCHEDULERS`.
        optimizer: The optimizer whose rates are set.
        arguments: The other arguments.
        last_epoch: The last epoch that was trained before a resumed run, None for a new run. The optimizer's
            settings, which came with its own state, are then left as they are.

    Raises:
        UserError: If the run is resumed and the optimizer does not know its initial rates.
    """
    takes_epoch = "last_epoch" in inspect.signature(kind).parameters
    if last_epoch is None or last_epoch < 0 or not takes_epoch:
        return kind(optimizer=optimizer, **arguments)
    if any("initial_lr" not in group for group in optimizer.param_groups):
        raise checks.ArgumentError(
            "Expected an optimizer that knows its initial rates ('initial_lr' in its groups) to resume from "
            f"epoch {last_epoch}. Load the optimizer's state before the schedule is built, or build it "
            "without 'resumed_epoch' and load the scheduler's and the optimizer's state afterwards."
        )
    before = [
        {key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups
    ]
    made = kind(optimizer=optimizer, **arguments, last_epoch=last_epoch)
    for group, settings in zip(optimizer.param_groups, before, strict=True):
        group.update(settings)
    return made


@contextmanager
def settings_kept_on_error(optimizer: Optimizer | None) -> Iterator[None]:
    """Put back what learning-rate schedules changed of an optimizer if there is an error in the block."""
    kept: list[tuple[dict[str, Any], dict[str, Any]]] = []
    if optimizer is not None:
        kept = [(state, dict(state)) for state in (optimizer.__dict__, *optimizer.param_groups)]
    rates = [
        (value, value.clone()) for _, before in kept[1:] for value in [before["lr"]] if torch.is_tensor(value)
    ]
    try:
        yield
    except BaseException:
        for state, before in kept:
            for key in state.keys() - before.keys():
                del state[key]
            state.update(before)
        for rate, value in rates:
            rate.copy_(value)
        raise


def step_to(schedule: Any, epoch: int, metrics: Mapping[str, Any] | None = None) -> None:
    """Set the rates for ``epoch``, counted from the start of training.

    Args:
        schedule: A learning-rate schedule.
        epoch: The epoch that comes next.
        metrics: What `ReduceLROnPlateau` watches: ``{"min": value, "max": value}``, the one of its mode is
            read.

    Raises:
        UserError: If `ReduceLROnPlateau` gets no metric of its mode.
    """
    with warnings.catch_warnings():
        for message in _BESIDE_THE_POINT:
            warnings.filterwarnings("ignore", message)
        if not isinstance(schedule, ReduceLROnPlateau):
            schedule.step(epoch=epoch)
            return
        if metrics is None or schedule.mode not in metrics:
            raise checks.ArgumentError(
                f"Expected on_epoch_end(..., metrics={{{schedule.mode!r}: value}}) for ReduceLROnPlateau, "
                f"got {'no metrics' if metrics is None else sorted(metrics)}."
            )
        schedule.step(metrics[schedule.mode], epoch=epoch)


def rehearse(kind: type, arguments: Mapping[str, Any], epochs: Iterable[int]) -> None:
    """Run a learning-rate schedule on a stand-in optimizer, so that its mistakes show before training.

    Args:
        kind: A class of `LR_SCHEDULERS`.
        arguments: Its arguments.
        epochs: The epochs at whose end it is stepped.

    Raises:
        UserError: If it refuses its arguments, fails, or asks for a rate that is no number of at least 0.
    """
    parameters = inspect.signature(kind).parameters
    for name, value in arguments.items():
        if isinstance(value, str) and not isinstance(parameters[name].default, str):
            raise checks.ArgumentError(f"Expected a number, got the text {value!r}.", name)
    for name, value in arguments.items():
        if name in _COUNTS:
            checks.integer(value, name, low=_COUNTS[name])
    optimizer = stand_in_optimizer([arguments])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            schedule = make_lr_scheduler(kind, optimizer, arguments)
            for epoch in epochs:
                step_to(schedule, epoch + 1, {"min": 1.0, "max": 1.0})
                for group in optimizer.param_groups:
                    _check_rate(group["lr"], epoch + 1)
        except checks.ArgumentError:
            raise
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise checks.ArgumentError(
                f"Expected arguments that {kind.__name__} can use, but it says: {error}"
            ) from error


_COUNTS = {"step_size": 1, "T_max": 1, "T_0": 1, "T_mult": 1, "total_iters": 1, "patience": 0, "cooldown": 0}
"""Arguments of torch's schedules that count epochs, with the smallest that means something."""

_EPOCH_LISTS = frozenset({"milestones", "gammas"})


def stand_in_optimizer(arguments: Iterable[Mapping[str, Any]], lr: float = 1.0) -> Optimizer:
    """Return an optimizer of nothing with as many groups as learning-rate schedules have values for.

    Args:
        arguments: Arguments of the learning-rate schedules.
        lr: Initial rate of each group.
    """
    per_group = [
        len(value)
        for given in arguments
        for name, value in given.items()
        if isinstance(value, list) and name not in _EPOCH_LISTS
    ]
    groups = [{"params": [torch.zeros(1, requires_grad=True)]} for _ in range(max([1, *per_group]))]
    return torch.optim.SGD(groups, lr=lr, momentum=0.9)


def _check_rate(rate: Any, epoch: int) -> None:
    if isinstance(rate, complex) or not math.isfinite(rate) or rate < 0:
        raise checks.ArgumentError(
            f"Expected a learning rate of at least 0 in every epoch, but in epoch {epoch} it would be "
            f"{rate:.3g} times the initial one. End the policy earlier."
        )


def moving_state(schedule: Any) -> dict[str, Any]:
    """Return the state of a learning-rate schedule without its arguments, which its constructor gives anew.

    Returns:
        Values that ``torch.load(weights_only=True)`` accepts.
    """
    arguments = set(inspect.signature(type(schedule)).parameters) - {"last_epoch"}
    return {
        key: value
        for key, value in schedule.state_dict().items()
        if key not in arguments and _is_plain(value)
    }


def _is_plain(value: Any) -> bool:
    if type(value) is list:
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(map(_is_plain, value.keys())) and all(map(_is_plain, value.values()))
    return value is None or type(value) in (bool, int, float, str, torch.Tensor)
