"""Where each channel of a network comes from and who reads it, and which channels say nothing.

Every output channel of a layer is a number; operations that add, concatenate or rearrange pictures tell which
numbers belong together. Channels that hold the same constant for every input are followed along, so that a
zero filter is known to stay zero (or not) up to its readers. `sgc_distiller.channel_tracing` fills this in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

__all__ = ["Activation", "ChannelFlow", "Channels", "LayerFlow", "Numbers", "Values", "is_layer"]

Numbers = npt.NDArray[np.int64]
"""Channel numbers, shape (C,)."""
Values = npt.NDArray[np.float64]
"""What each channel holds for every input, shape (C,); NaN where that depends on the input."""

_LAYERS = (_ConvNd, nn.Linear)


class Channels:
    """Numbers of channels, which of them can only go together, and which must stay."""

    def __init__(self) -> None:
        self._parents: list[int] = []
        self._fixed: dict[int, str] = {}

    def new(self, count: int, fixed: str = "") -> Numbers:
        """Return so many new numbers; ``fixed`` says why they must stay, if so."""
        first = len(self._parents)
        self._parents.extend(range(first, first + count))
        if fixed:
            self._fixed.update(dict.fromkeys(range(first, first + count), fixed))
        return np.arange(first, first + count)

    def root(self, number: int) -> int:
        """Return the number that stands for all that go together with this one."""
        root = number
        while self._parents[root] != root:
            root = self._parents[root]
        while self._parents[number] != root:
            self._parents[number], number = root, self._parents[number]
        return root

    def roots(self, numbers: Numbers) -> Numbers:
        """Return the `root` of each."""
        return np.array([self.root(int(number)) for number in numbers], dtype=np.int64)

    def tie(self, numbers: Numbers, others: Numbers) -> None:
        """Let channels go together, pair by pair."""
        for one, other in zip(numbers.tolist(), others.tolist(), strict=True):
            first, second = sorted((self.root(one), self.root(other)))
            if first != second:
                self._parents[second] = first
                reason = self._fixed.pop(second, None)
                if reason:
                    self._fixed.setdefault(first, reason)

    def fix(self, numbers: Numbers, reason: str) -> None:
        """Let channels stay, and all that go together with them."""
        for number in numbers.tolist():
            self._fixed.setdefault(self.root(number), reason)

    def fixed(self, number: int) -> str:
        """Return why a channel must stay, or an empty text."""
        return self._fixed.get(self.root(number), "")


@dataclass
class Activation:
    """What flows between two operations.

    Attributes:
        numbers: Of the channels, in their order; ``None`` for a piece of unknown length, which must stay.
        values: Of the same pieces.
        kind: ``map`` of shape (B, C, ...), ``vector`` (B, C), or ``flat`` (B, C * H * W).
    """

    numbers: list[Numbers | None]
    values: list[Values]
    kind: Literal["map", "vector", "flat"] = "map"

    @property
    def known(self) -> Numbers:
        """The numbers of all pieces of known length."""
        return _joined([piece for piece in self.numbers if piece is not None], np.int64)

    @property
    def is_known(self) -> bool:
        """Whether the number of channels is known."""
        return all(piece is not None for piece in self.numbers)

    @property
    def all_values(self) -> Values:
        """The values of all pieces of known length."""
        pairs = zip(self.numbers, self.values, strict=True)
        return _joined([values for piece, values in pairs if piece is not None], np.float64)


@dataclass
class LayerFlow:
    """A convolution or linear layer, its inputs and its outputs.

    Attributes:
        path: Its path in the network.
        module: The layer.
        inputs: Number of each input channel, shape (inputs,).
        outputs: Number of each output channel, shape (outputs,).
        values: Of the inputs.
        repeats: Inputs that one channel has, more than 1 behind a flattening.
    """

    path: str
    module: Any
    inputs: Numbers
    outputs: Numbers
    values: Values
    repeats: int = 1

    @property
    def groups(self) -> int:
        """Into how many parts the layer falls that do not see each other."""
        return int(getattr(self.module, "groups", 1))

    @property
    def is_depthwise(self) -> bool:
        """Whether each part sees one channel only."""
        return self.groups > 1 and self.groups == len(self.inputs)

    def kernels(self) -> Tensor:
        """Return the weight by outputs and inputs, (outputs, inputs / groups, k), float64, without graph."""
        weight: Tensor = self.module.weight.detach().double().cpu()
        if not isinstance(self.module, _ConvTransposeNd):
            return weight.reshape(weight.shape[0], weight.shape[1], -1)
        rows, columns = weight.shape[:2]  # (inputs, outputs / groups, ...)
        parts = weight.reshape(self.groups, rows // self.groups, columns, -1).transpose(1, 2)
        return parts.reshape(self.groups * columns, rows // self.groups, -1)


@dataclass
class ChannelFlow:
    """What a network was found to do.

    Attributes:
        channels: All channels.
        layers: Convolutions and linear layers by path, in the order in which they are called.
        others: The channels of norms and other modules that hold something for each channel, by path.
    """

    channels: Channels = field(default_factory=Channels)
    layers: dict[str, LayerFlow] = field(default_factory=dict)
    others: dict[str, Numbers] = field(default_factory=dict)


def is_layer(module: object) -> bool:
    """Return whether a module is a convolution, a transposed convolution or a linear layer."""
    return isinstance(module, _LAYERS)


def _joined(pieces: Sequence[npt.NDArray[Any]], dtype: Any) -> npt.NDArray[Any]:
    return np.concatenate(pieces) if pieces else np.empty(0, dtype)
