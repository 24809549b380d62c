"""The networks of DCGAN (Radford et al., 2016) as in PyTorch's examples.

Sizes, key names and initialisation follow https://github.com/pytorch/examples/tree/main/dcgan.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from sgc_distiller.errors import UserError
from sgc_distiller.networks.sections import chains_from
from sgc_distiller.networks.sizes import fitting, kernel_shape

__all__ = ["Discriminator", "Generator", "discriminator_sizes", "generator_sizes", "initialise", "stages"]

_MOST_LAYERS = 13  # 16,384 pixels; more layers are another network's


class Generator(nn.Module):
    """Noise (B, nz, 1, 1) to pictures (B, nc, size, size) in [-1, 1].

    Args:
        nc: Channels of the pictures.
        nz: Length of the noise.
        ngf: Channels of the last hidden layer; each layer before it has twice as many.
        size: Height and width in pixels, a power of two, at least 16.
    """

    def __init__(self, nc: int = 1, nz: int = 100, ngf: int = 64, size: int = 64) -> None:
        super().__init__()
        widths = [ngf * 2**power for power in reversed(range(stages(size)))]
        layers: list[nn.Module] = []
        for before, after in zip([nz, *widths], widths, strict=False):
            stride, padding = (1, 0) if not layers else (2, 1)
            layers += [
                nn.ConvTranspose2d(before, after, 4, stride, padding, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(True),
            ]
        layers += [nn.ConvTranspose2d(ngf, nc, 4, 2, 1, bias=False), nn.Tanh()]
        self.main = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        """Return the pictures for the noise ``z``."""
        pictures: Tensor = self.main(z)
        return pictures

    def sections(self) -> list[list[nn.Module]]:
        """Return the chain of each layer: transposed convolution, norm, activation."""
        return chains_from(self.main, nn.ConvTranspose2d)


class Discriminator(nn.Module):
    """Pictures (B, nc, size, size) to the probability of being real, shape (B,).

    Args:
        nc: Channels of the pictures.
        ndf: Channels of the first hidden layer; each layer after it has twice as many.
        size: Height and width in pixels, a power of two, at least 16.
    """

    def __init__(self, nc: int = 1, ndf: int = 64, size: int = 64) -> None:
        super().__init__()
        widths = [ndf * 2**power for power in range(stages(size))]
        layers: list[nn.Module] = [nn.Conv2d(nc, ndf, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True)]
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [
                nn.Conv2d(before, after, 4, 2, 1, bias=False),
                nn.BatchNorm2d(after),
                nn.LeakyReLU(0.2, inplace=True),
            ]
        layers += [nn.Conv2d(widths[-1], 1, 4, 1, 0, bias=False), nn.Sigmoid()]
        self.main = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return the probabilities, shape (B,)."""
        return self.judge(x)[0]

    def judge(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the probabilities and the activations after each hidden layer's LeakyReLU."""
        features = []
        for layer in self.main:
            x = layer(x)
            if isinstance(layer, nn.LeakyReLU):
                features.append(x)
        return x.view(-1), features


def stages(size: int) -> int:
    """Return the number of hidden layers for pictures of ``size`` pixels (4 for 64)."""
    power = round(math.log2(size)) if size >= 1 else 0
    if size < 16 or 2**power != size:
        raise UserError(f"dcgan: expected an image size that is a power of two and at least 16, got {size}")
    return power - 2


def initialise(module: nn.Module) -> None:
    """Initialise one layer as the baseline does."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


def generator_sizes(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Return the arguments of `Generator` that a state dictionary tells, or ``None`` if it is another's."""
    layers = [tensor for name, tensor in state.items() if _is_layer(name, tensor)]
    if not 3 <= len(layers) <= _MOST_LAYERS:
        return None
    ngf, nc = layers[-1].shape[:2]
    sizes = {"nc": nc, "nz": layers[0].shape[0], "ngf": ngf, "size": 2 ** (len(layers) + 1)}
    return fitting(Generator, state, sizes)


def discriminator_sizes(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Return the arguments of `Discriminator` that a state dictionary tells, or ``None``."""
    layers = sum(_is_layer(name, tensor) for name, tensor in state.items())
    if not 3 <= layers <= _MOST_LAYERS:
        return None
    ndf, nc, _, _ = kernel_shape(state, "main.0.weight")
    return fitting(Discriminator, state, {"nc": nc, "ndf": ndf, "size": 2 ** (layers + 1)})


def _is_layer(name: str, tensor: Tensor) -> bool:
    return name.startswith("main.") and tensor.dim() == 4
