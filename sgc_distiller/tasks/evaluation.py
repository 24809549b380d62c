"""What a task's test protocol hands over: pictures to measure, and pictures to look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sgc_distiller.data import ImageSet, Samples, normalise

__all__ = ["Drawn", "Evaluation", "Sheet", "loaded"]


@dataclass(frozen=True)
class Drawn:
    """One batch of what a generator made for its test.

    Attributes:
        pictures: What the distances between sets compare, shape (B, C, H, W) in [-1, 1].
        pairs: What is compared picture by picture, where there is a truth: (made, true), each (C, H, W) in
            [-1, 1], of any sizes.
        translations: The same pictures by input, where one input is translated in several ways, shape
            (inputs, T, C, H, W).
        wanted: The attributes that each translation should have, shape (inputs, T, attributes) in {0, 1}.
        values: Other numbers of each picture by name, shape (B,), of which less is better; their means are
            measured.
    """

    pictures: Tensor
    pairs: Sequence[tuple[Tensor, Tensor]] = ()
    translations: Tensor | None = None
    wanted: Tensor | None = None
    values: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """One comparison of a test protocol; a task may have several, such as one a direction.

    Attributes:
        reference: The real pictures that the distances compare with.
        draw: Called with generator, number of pictures, seed and device; yields at most so many pictures,
            batch by batch, which depend on seed and weights alone, and leaves the generator as it was.
        protocol: How `draw` draws, in a few words for the metrics' names.
        title: Tells several evaluations of one task apart; empty where there is one.
        border: Pixels at each edge that picture-by-picture comparisons leave out.
        attributes: Names of the attributes in `Drawn.wanted`.
    """

    reference: ImageSet
    draw: Callable[[nn.Module, int, int, torch.device], Iterator[Drawn]]
    protocol: str
    title: str = ""
    border: int = 0
    attributes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sheet:
    """Pictures for people, row by row: what was given on the left, what a generator made beside it.

    Attributes:
        made: Shape (rows, columns, C, H, W), values in [-1, 1].
        given: Inputs and truths, shape (rows, columns, C, H, W), or ``None`` where there are none.
        titles: What stands in the columns, the given ones first; empty where they are all alike.
    """

    made: Tensor
    given: Tensor | None = None
    titles: tuple[str, ...] = field(default=())

    @property
    def columns(self) -> int:
        """Pictures in a row."""
        return int(self.rows.shape[1])

    @property
    def rows(self) -> Tensor:
        """All pictures, shape (rows, columns, C, H, W)."""
        return self.made if self.given is None else torch.cat([self.given, self.made], dim=1)

    def cpu(self) -> Sheet:
        """Return the same on the CPU."""
        return Sheet(self.made.cpu(), None if self.given is None else self.given.cpu(), self.titles)


def loaded(data: Samples, indices: Sequence[int], device: torch.device) -> dict[str, Tensor]:
    """Return samples as the test protocol sees them, on a device: pictures as float32 in [-1, 1]."""
    samples = data.load(indices, None)
    return {
        name: normalise(item.to(device)) if item.dtype == torch.uint8 else item.to(device)
        for name, item in samples.items()
    }
