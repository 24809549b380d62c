"""The epochs in which a policy acts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sgc_distiller import checks
from sgc_distiller.checks import ArgumentError

__all__ = ["active_epochs", "last_active_epoch"]


def active_epochs(
    epochs: Sequence[int] | None, starting_epoch: int | None, ending_epoch: int | None, frequency: int
) -> tuple[list[int], dict[str, Any]]:
    """Return the epochs in which a policy acts, and its ``meta``; that is how policies know them.

    Args:
        epochs: Increasing epochs, counted from 0; None for a range.
        starting_epoch: First epoch of the range, 0 if None.
        ending_epoch: End of the range, exclusive; the epoch after the first if None.
        frequency: Distance between active epochs of the range.

    Returns:
        The epochs, and ``starting_epoch``, ``ending_epoch``, ``frequency``; the latter is None for a list.

    Raises:
        UserError: If they are no epochs.
    """
    if epochs is not None:
        if starting_epoch is not None or ending_epoch is not None:
            raise ArgumentError(
                "Expected either 'epochs' or 'starting_epoch', 'ending_epoch' and 'frequency', got both. "
                "Leave one out.",
                "epochs",
            )
        active = list(epochs)
        if not active or not all(_is_count(epoch) for epoch in active) or active != sorted(set(active)):
            raise ArgumentError(
                f"Expected a list of increasing epochs, counted from 0, such as [0, 2, 5], got {active}.",
                "epochs",
            )
        _check_length(active[-1] + 1, "epochs")
        return active, {"starting_epoch": active[0], "ending_epoch": active[-1] + 1, "frequency": None}
    start = 0 if starting_epoch is None else checks.integer(starting_epoch, "starting_epoch", low=0)
    end = start + 1 if ending_epoch is None else ending_epoch
    if not _is_count(end) or end <= start:
        raise ArgumentError(
            f"Expected a whole number greater than 'starting_epoch' ({start}), since "
            f"'ending_epoch' itself is not active, got {end!r}.",
            "ending_epoch",
        )
    _check_length(end, "ending_epoch")
    if not _is_count(frequency) or not 0 < frequency <= end - start:
        raise ArgumentError(
            f"Expected a whole number from 1 to {end - start} (ending_epoch - starting_epoch), got "
            f"{frequency!r}.",
            "frequency",
        )
    meta = {"starting_epoch": start, "ending_epoch": end, "frequency": frequency}
    return list(range(start, end, frequency)), meta


_MOST = 1_000_000


def _check_length(end: int, argument: str) -> None:
    if end > _MOST:
        raise ArgumentError(f"Expected at most {_MOST:,} epochs, got {end}.", argument)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def last_active_epoch(meta: Mapping[str, Any]) -> int:
    """Return the last active epoch of a policy with this ``starting_epoch, ending_epoch, frequency``."""
    start, end, frequency = meta["starting_epoch"], meta["ending_epoch"], meta["frequency"]
    if frequency is None:
        return int(end) - 1
    return int(start + (end - start - 1) // frequency * frequency)
