"""Pictures to train on and to measure against, for every kind of GAN of the package.

A set holds samples; a sample is one or several pictures and perhaps labels. `open_images` opens single
pictures, `open_attributes` pictures with attributes, `open_pairs` pictures side by side with their
translations, `open_unpaired` two domains, `open_superresolution` pictures beside reduced ones; each has a
built-in set that needs no download.

Pictures are uint8 until they are on the device where they are used, and become float32 in [-1, 1] there. Sets
of up to `MEMORY_LIMIT` bytes are decoded once; larger ones when a batch needs them. The order of the samples,
and each sample's crop, flip and partner, are functions of the seed, the pass over the set and the sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sgc_distiller.data.attribute_file import attribute_names, attribute_table
from sgc_distiller.data.attributes import AttributeSet, open_attributes
from sgc_distiller.data.augment import sample_seeds
from sgc_distiller.data.decoding import SUFFIXES
from sgc_distiller.data.images import ImageSet, normalise, open_images
from sgc_distiller.data.pairs import PairSet, open_pairs
from sgc_distiller.data.superresolution import SuperResolutionSet, cut_into_tiles, open_superresolution
from sgc_distiller.data.unpaired import UnpairedSet, open_unpaired
from sgc_distiller.errors import UserError
from sgc_distiller.interrupts import ignore_interrupts, uninterrupted
from sgc_distiller.seeding import generator_for

__all__ = [
    "MEMORY_LIMIT",
    "SUFFIXES",
    "AttributeSet",
    "ImageSet",
    "PairSet",
    "Samples",
    "SuperResolutionSet",
    "UnpairedSet",
    "attribute_names",
    "attribute_table",
    "batches",
    "cut_into_tiles",
    "in_order",
    "normalise",
    "open_attributes",
    "open_images",
    "open_pairs",
    "open_superresolution",
    "open_unpaired",
]

MEMORY_LIMIT = 512 * 2**20
"""Sets that need at most this many bytes as uint8 are kept in memory; read when a set is opened."""


class Samples(Protocol):
    """What `batches` asks of a set."""

    @property
    def name(self) -> str:
        """What the set is, with its split and count; metrics carry it."""
        ...

    @property
    def in_memory(self) -> bool:
        """Whether everything is decoded already, so that worker processes would not help."""
        ...

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def load(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Return samples by name, on the CPU: pictures as uint8 (B, C, H, W), all else as float32.

        Args:
            indices: Which samples.
            seeds: One integer a sample, from which its crop, flip and partner are drawn; ``None`` for the
                view of the test protocol, in which nothing is drawn.

        Raises:
            UserError: A file cannot be decoded.
        """
        ...


def batches(
    data: Samples,
    batch_size: int,
    seed: int,
    start: int = 0,
    workers: int = 0,
    device: torch.device | str | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Yield shuffled batches without end: what the set's `load` returns, pictures as float32 in [-1, 1].

    Every pass over the set has a new order and ceil(N / B) batches, of which the last may be smaller. Batch
    number i, counted over all passes, depends only on the seed and on i, crops and flips included, so that a
    run which starts at batch k sees what an uninterrupted one sees there.

    Args:
        data: The set.
        batch_size: Samples in a batch, at least 1.
        seed: The run's seed.
        start: Number of the first batch to yield, from 0.
        workers: Processes that decode files. A set in memory needs none and is indexed in place.
        device: Where the batches go; uint8 pixels travel there and become float32 there. Copies to a GPU are
            asynchronous, from pinned memory.

    Raises:
        UserError: A number is out of range, or a file cannot be decoded.
    """
    if batch_size < 1 or start < 0 or workers < 0:
        given = f"batch_size {batch_size}, start {start}, workers {workers}"
        raise UserError(f"Expected batch_size >= 1, start >= 0 and workers >= 0, got {given}.")
    order = _Order(len(data), batch_size, seed, start)
    target = torch.device("cpu" if device is None else device)
    return _generate(data, order, 0 if data.in_memory else workers, target)


def in_order(images: ImageSet, batch_size: int, device: torch.device | str | None = None) -> Iterator[Tensor]:
    """Yield all pictures once, unshuffled, as float32 batches (B, C, H, W) in [-1, 1] on ``device``."""
    target = torch.device("cpu" if device is None else device)
    for first in range(0, len(images), batch_size):
        chosen = torch.arange(first, min(first + batch_size, len(images)))
        yield _to_device(images.pixels(chosen), target)


class _Order:
    """Pass and indices of all batches from number ``start`` on, for iteration without end."""

    def __init__(self, count: int, batch_size: int, seed: int, start: int) -> None:
        self.count = count
        self.batch_size = batch_size
        self.seed = seed
        self.start = start

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        passes, skip = divmod(self.start, math.ceil(self.count / self.batch_size))
        while True:
            order = torch.randperm(self.count, generator=generator_for(self.seed, "order", passes))
            for first in range(skip * self.batch_size, self.count, self.batch_size):
                yield passes, order[first : first + self.batch_size].tolist()
            passes, skip = passes + 1, 0


class _BatchReader(Dataset[object]):
    """Reads whole batches in a worker process; a mistake of the user's travels back as a value."""

    def __init__(self, data: Samples, seed: int) -> None:
        self.data = data
        self.seed = seed

    def __getitem__(self, batch: tuple[int, list[int]]) -> dict[str, Tensor] | UserError:
        passes, indices = batch
        try:
            return self.data.load(indices, sample_seeds(self.seed, passes, indices))
        except UserError as error:  # raised anew by the reader, without the worker's traceback in its text
            return error


def _generate(
    data: Samples, order: _Order, workers: int, device: torch.device
) -> Iterator[dict[str, Tensor]]:
    loader = DataLoader(
        _BatchReader(data, order.seed),
        batch_size=None,
        sampler=order,
        num_workers=workers,
        pin_memory=workers > 0 and device.type == "cuda",
        generator=generator_for(order.seed, "workers"),  # otherwise it draws from torch's global generator
        worker_init_fn=ignore_interrupts,
    )
    for samples in uninterrupted(loader):
        if isinstance(samples, UserError):
            raise samples
        assert isinstance(samples, dict)
        yield {name: _to_device(item, device) for name, item in samples.items()}


def _to_device(item: Tensor, device: torch.device) -> Tensor:
    """Move a tensor; pictures, which are uint8, become float32 in [-1, 1] where they arrive."""
    if device.type == "cuda" and not item.is_pinned():
        item = item.pin_memory()
    moved = item.to(device, non_blocking=True)
    return normalise(moved) if moved.dtype == torch.uint8 else moved
