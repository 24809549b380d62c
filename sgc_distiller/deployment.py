"""Generators as they are deployed: deterministic, one network at a time, with the inputs that they take."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sgc_distiller.data import Samples, batches
from sgc_distiller.errors import UserError
from sgc_distiller.module_state import Part, parts_of
from sgc_distiller.seeding import generator_for, seed_for
from sgc_distiller.tasks.base import GANTask

__all__ = ["Inputs", "example_inputs"]

Inputs = tuple[Tensor, ...]
"""What a network is called with, in the order of its arguments."""


def example_inputs(
    task: GANTask, generator: nn.Module, data: Samples, count: int = 2, seed: int = 0
) -> dict[str, Inputs]:
    """Return what each network of a generator is called with for ``count`` samples of the data.

    Args:
        task: Whose `GANTask.generate` calls them.
        generator: The generator, on the device where the inputs belong.
        data: What the task's `GANTask.open_data` returned.
        count: Samples, at least 1; they are repeated where the data hold fewer.
        seed: Seed of their choice, their crops and their noise.

    Returns:
        By the names of `parts_of`.

    Raises:
        UserError: If a network is not called, or with something else than tensors.
    """
    device = next((item.device for item in generator.parameters()), torch.device("cpu"))
    size = min(count, len(data))
    raw = next(batches(data, size, seed_for(seed, "example"), device=device))
    batch = task.prepare(_repeated(raw, count), generator_for(seed, "example"))
    parts = parts_of(generator)
    with _recorded(parts) as found, torch.no_grad():
        task.generate(generator, batch)
    missing = [part.name for part in parts if part.name not in found]
    if missing:
        raise UserError(
            f"task {task.name!r}: expected generate() to call {missing[0]!r}, which it did not; call each "
            "network of the generator there"
        )
    return found


def _repeated(raw: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """Return a batch of ``count`` samples, the same again and again where there are fewer."""
    return {
        name: value.repeat(-(-count // len(value)), *[1] * (value.dim() - 1))[:count]
        for name, value in raw.items()
    }


@contextlib.contextmanager
def _recorded(parts: list[Part]) -> Iterator[dict[str, Inputs]]:
    """Note what each network is called with first inside the block."""
    found: dict[str, Inputs] = {}
    handles = []
    for part in parts:

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], part: Part = part) -> None:
            given = inspect.signature(part.network.forward).bind(*args, **kwargs).arguments.values()
            if not all(isinstance(item, Tensor) for item in given):
                raise UserError(
                    f"{part.name}: expected a network that is called with tensors, got "
                    f"{', '.join(type(item).__name__ for item in given)}; wrap it in one that is"
                )
            found.setdefault(part.name, tuple(item.detach().clone() for item in given))

        handles.append(part.network.register_forward_pre_hook(note, with_kwargs=True))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
