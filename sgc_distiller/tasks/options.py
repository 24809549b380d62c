"""Checks of what a task is built with."""

from __future__ import annotations

from collections.abc import Sequence

from sgc_distiller.errors import UserError

__all__ = ["linear_decay", "names", "scaled", "within"]


def names(value: Sequence[str] | str) -> list[str]:
    """Return a list of names; a text is split at its commas.

    Raises:
        UserError: If it is something else.
    """
    if not isinstance(value, str | list | tuple):
        raise UserError(f"expected a list of names, or a text of names with commas between, got {value!r}")
    parts = value.split(",") if isinstance(value, str) else list(value)
    return [str(part).strip() for part in parts if str(part).strip()]


def scaled(channels: int, width: float) -> int:
    """Return a number of channels times a factor, at least 1."""
    return max(1, round(channels * width))


def within(task: str, **options: tuple[int, int]) -> None:
    """Refuse options below their lowest value.

    Args:
        task: Name of the task, for the message.
        options: Value and lowest value by the option's name.

    Raises:
        UserError: If a value is no whole number or too small.
    """
    for name, (value, low) in options.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise UserError(f"{task}: expected {name} to be a whole number of at least {low}, got {value!r}")


def linear_decay(epoch: int, epochs: int) -> float:
    """Return a learning rate's factor: 1 over the first half of the epochs, then a linear fall.

    With 200 epochs, counted from 0, this is ``1 - max(0, epoch + 1 - 100) / 101``, which the baselines of
    pix2pix and CycleGAN use.
    """
    constant = epochs // 2
    return 1.0 - max(0, epoch + 1 - constant) / (epochs - constant + 1)
