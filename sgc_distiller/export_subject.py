"""A network about to be exported: what goes in, what comes out, and how the exported one is compared."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sgc_distiller.data import Samples
from sgc_distiller.deployment import Inputs, example_inputs
from sgc_distiller.errors import UserError
from sgc_distiller.module_state import Part, parts_of
from sgc_distiller.tasks.base import GANTask

__all__ = ["BATCH_SIZES", "TOLERANCE", "Subject", "largest_difference", "subjects_of", "verified"]

BATCH_SIZES = (2, 1, 5)
"""Samples in the batches that exported networks are compared on; the first one is exported with."""
TOLERANCE = 1e-4
"""The largest difference that is accepted, of pictures in [-1, 1] or [0, 1]."""

Run = Callable[[Inputs], Sequence[Tensor]]


@dataclass(frozen=True)
class Subject:
    """A network with examples.

    Attributes:
        part: The network, on the CPU, as it is deployed.
        inputs: Names of its inputs, those of ``forward``.
        outputs: Names of its outputs.
        examples: What it is called with, a batch of each of `BATCH_SIZES`.
        expected: What it makes of them.
    """

    part: Part
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    examples: list[Inputs]
    expected: list[list[Tensor]]

    def described(self) -> dict[str, Any]:
        """Return names, shapes and types of inputs and outputs; the first dimension is free."""
        return {
            kind: [
                {"name": name, "shape": ["batch", *value.shape[1:]], "dtype": str(value.dtype)[6:]}
                for name, value in zip(names, values, strict=True)
            ]
            for kind, names, values in (
                ("inputs", self.inputs, self.examples[0]),
                ("outputs", self.outputs, self.expected[0]),
            )
        }


def subjects_of(task: GANTask, deployed: nn.Module, data: Samples) -> list[Subject]:
    """Return the networks of a generator with examples from the data.

    Args:
        task: Whose generator it is.
        deployed: What its `GANTask.deploy` returned, on the CPU.
        data: What its `GANTask.open_data` returned.

    Raises:
        UserError: If a network's output is no tensor, or differs from pass to pass.
    """
    batches = [example_inputs(task, deployed, data, count, seed) for seed, count in enumerate(BATCH_SIZES)]
    return [_subject(task, part, [batch[part.name] for batch in batches]) for part in parts_of(deployed)]


def _subject(task: GANTask, part: Part, examples: list[Inputs]) -> Subject:
    expected = [outputs_of(part, inputs) for inputs in examples]
    if largest_difference(expected[0], outputs_of(part, examples[0])) > 0:
        raise UserError(
            f"task {task.name!r}: {part.name} makes something else of the same input at every pass; "
            "expected deploy() to return a network that draws nothing at random"
        )
    names = tuple(inspect.signature(part.network.forward).parameters)[: len(examples[0])]
    count = len(expected[0])
    outputs = ("pictures",) if count == 1 else tuple(f"output_{index}" for index in range(count))
    return Subject(part, names, outputs, examples, expected)


def outputs_of(part: Part, inputs: Inputs) -> list[Tensor]:
    """Return what a network makes of its inputs, a tensor each."""
    with torch.no_grad():
        made = part.network(*inputs)
    found = [made] if isinstance(made, Tensor) else made
    if not isinstance(found, list | tuple) or not found or not all(isinstance(v, Tensor) for v in found):
        raise UserError(
            f"{part.name}: expected a network that returns tensors, got {type(made).__name__}; wrap it in "
            "one that does, in the task's deploy()"
        )
    return list(found)


def largest_difference(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """Return the largest difference of two lists of tensors; infinity where they cannot be compared."""
    if [item.shape for item in first] != [item.shape for item in second]:
        return float("inf")
    found = [float((a.double() - b.double()).abs().max()) for a, b in zip(first, second, strict=True)]
    return max(found) if all(value == value for value in found) else float("inf")


def verified(subject: Subject, run: Run, what: str) -> float:
    """Return the largest difference between an exported network's outputs and the original's.

    Args:
        subject: The original.
        run: Calls the exported network.
        what: For the error: what was exported.

    Raises:
        UserError: If it cannot be called with one of the batches, or differs by more than `TOLERANCE`.
    """
    worst = 0.0
    for inputs, expected in zip(subject.examples, subject.expected, strict=True):
        size = len(inputs[0])
        try:
            difference = largest_difference(run(inputs), expected)
        except Exception as error:  # whatever runs it raises its own
            raise UserError(
                f"{what} cannot be called with {size} samples, only with other numbers of them "
                f"({_first_line(error)}); {_FIXED_BATCH}"
            ) from error
        if not difference <= TOLERANCE:
            raise UserError(
                f"{what} differs from the original by {difference:.2g} on a batch of {size}, expected at "
                f"most {TOLERANCE:g}; nothing was written. {_FIXED_BATCH}"
            )
        worst = max(worst, difference)
    return worst


_FIXED_BATCH = (
    "Look in forward() for what depends on the batch, such as len(x) in the place of x.size(0), or on the "
    "values of a tensor; or leave this format out with --formats"
)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
