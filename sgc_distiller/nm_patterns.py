"""Whether a layer's weights have N:M sparsity as sparse tensor cores want it, proven by the weights.

2:4 means that of each four neighbours at most two are not zero. TensorRT's sparse kernels want it along the
dimension that a product adds up: the input channels of a `torch.nn.Conv2d`, for every filter and every
position of its kernel, and the inputs of a `torch.nn.Linear`. Other layers have none.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

__all__ = ["LayerPattern", "layer_patterns"]


@dataclass(frozen=True)
class LayerPattern:
    """What the weights of a layer show.

    Attributes:
        name: The name of its weight.
        kind: Its class.
        shape: The weight's shape.
        reason: Why the layer does not qualify; empty if it does.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    reason: str

    @property
    def holds(self) -> bool:
        """Whether the layer qualifies."""
        return not self.reason


def layer_patterns(network: nn.Module, n: int = 2, m: int = 4) -> list[LayerPattern]:
    """Return for each convolution, transposed convolution and linear layer whether it has N:M sparsity.

    Args:
        network: The network.
        n: How many of ``m`` neighbours may be other than zero.
        m: Size of a group; groups begin at input 0.
    """
    layers = {
        f"{path}.weight" if path else "weight": module
        for path, module in network.named_modules()
        if isinstance(module, (_ConvNd, nn.Linear))
    }
    return [
        LayerPattern(name, type(layer).__name__, tuple(layer.weight.shape), _reason(layer, n, m))
        for name, layer in layers.items()
    ]


def _reason(layer: nn.Module, n: int, m: int) -> str:
    if isinstance(layer, _ConvTransposeNd):
        return "a transposed convolution, for which there are no sparse kernels"
    if not isinstance(layer, nn.Conv2d | nn.Linear):
        return "neither a Conv2d nor a Linear"
    weight: Tensor = layer.weight.detach()
    inputs = weight.shape[1]
    of_a_group = " of each group" if getattr(layer, "groups", 1) > 1 else ""
    if inputs % m:
        return f"{inputs} input{'s' * (inputs != 1)}{of_a_group}, not a multiple of {m}"
    kept = (weight != 0).movedim(1, -1)  # (outputs, *kernel, inputs)
    counts = kept.reshape(*kept.shape[:-1], -1, m).sum(-1)  # (outputs, *kernel, inputs / m)
    wrong = (counts > n).nonzero()
    if len(wrong) == 0:
        return ""
    output, *position, group = wrong[0].tolist()
    where = f" at ({', '.join(map(str, position))})" if position else ""
    what = "filter" if position else "output"
    found = int(counts[tuple(wrong[0])])
    return (
        f"{what} {output}, inputs {m * group} to {m * group + m - 1}{where}: {found} not zero; "
        f"{len(wrong):,} of {counts.numel():,} groups have more than {n}"
    )
