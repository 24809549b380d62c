"""How much a network computes: the multiplications of its convolutions and linear layers, layer by layer."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

__all__ = ["CONVENTION", "LayerCompute", "multiply_adds"]

CONVENTION = (
    "One MAC is one multiplication and one addition; biases, norms and activations are not counted, nor "
    "what a network computes by functions of its own (F.conv2d, attention). A convolution multiplies every "
    "kernel element at every output position, also where it meets padded zeros; a transposed convolution "
    "every kernel element with every input element, also where the padding crops the product. After "
    "pruning, only weights that are not zero multiply."
)
"""What is counted, for a reader of the numbers."""

Layer = _ConvNd | nn.Linear
Shape = tuple[int, ...]


@dataclass(frozen=True)
class LayerCompute:
    """One call of one layer.

    Attributes:
        name: The layer's path in its network; empty for the network itself.
        kind: Its class, such as ``ConvTranspose2d``.
        kernel: Size of the kernel; empty for a linear layer, as are the next two.
        stride: Stride of the kernel.
        padding: Padding, as numbers or as PyTorch's name of it.
        groups: Groups of a convolution; 1 for a linear layer.
        input_shape: Shape of what it was called with, the batch included.
        output_shape: Shape of what it returned.
        weights: Number of weights, without the bias.
        nonzero: How many of them are not zero.
        positions: How often each weight multiplies: output positions of a convolution, input positions of a
            transposed one, rows of a linear layer, over the whole batch.
    """

    name: str
    kind: str
    kernel: Shape
    stride: Shape
    padding: Shape | str
    groups: int
    input_shape: Shape
    output_shape: Shape
    weights: int
    nonzero: int
    positions: int

    @property
    def macs(self) -> int:
        """Multiply-adds of the dense layer, see `CONVENTION`."""
        return self.weights * self.positions

    @property
    def macs_nonzero(self) -> int:
        """Multiply-adds with weights that are not zero."""
        return self.nonzero * self.positions


def multiply_adds(network: nn.Module, inputs: Sequence[Any]) -> list[LayerCompute]:
    """Return what the convolutions and linear layers of a network compute in one forward pass.

    `CONVENTION` says what is counted. All sizes are read from the layers and from what flows through them.

    Args:
        network: Called once, in evaluation mode and without gradients; it is left as it was.
        inputs: What it is called with; numbers are of the whole batch, so give a batch of 1 for one picture.

    Returns:
        One entry a call, in the order of the calls; a layer that is called twice has two.
    """
    calls: list[LayerCompute] = []
    handles = []
    for name, module in network.named_modules():
        if isinstance(module, _ConvNd | nn.Linear):

            def note(
                layer: Layer, given: tuple[Any, ...], kwargs: Any, made: Tensor, name: str = name
            ) -> None:
                entered = given[0] if given else kwargs["input"]
                calls.append(_call(name, layer, tuple(entered.shape), tuple(made.shape)))

            handles.append(module.register_forward_hook(note, with_kwargs=True))
    try:
        with _evaluating(network), torch.no_grad():
            network(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return calls


@contextlib.contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode inside the block, so that no running statistics move."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, was_training in modes:
            module.training = was_training


def _call(name: str, layer: Layer, entered: Shape, left: Shape) -> LayerCompute:
    weight = layer.weight
    kind = type(layer).__name__
    counts = (weight.numel(), int(weight.count_nonzero()))
    if isinstance(layer, nn.Linear):
        positions = math.prod(left) // layer.out_features
        return LayerCompute(name, kind, (), (), (), 1, entered, left, *counts, positions)
    padding = layer.padding if isinstance(layer.padding, str) else tuple(layer.padding)
    settings = (tuple(layer.kernel_size), tuple(layer.stride), padding, layer.groups)
    is_transposed = isinstance(layer, _ConvTransposeNd)
    shape, channels = (entered, layer.in_channels) if is_transposed else (left, layer.out_channels)
    return LayerCompute(name, kind, *settings, entered, left, *counts, math.prod(shape) // channels)
