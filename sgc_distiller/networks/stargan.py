"""The networks of StarGAN (Choi et al., 2018): one generator for all attributes.

Sizes and key names follow https://github.com/yunjey/stargan; its checkpoints load as they are. Both
keep PyTorch's own initialisation. The generator's instance norms keep running statistics which the
baseline never uses: it stays in training mode, in tests too, and so must whoever calls it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from sgc_distiller.errors import UserError
from sgc_distiller.networks.sections import chains_around
from sgc_distiller.networks.sizes import fitting, kernel_shape

__all__ = ["Discriminator", "Generator", "discriminator_sizes", "generator_sizes"]


class Generator(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] and wanted attributes (B, c_dim) to pictures (B, 3, H, W) in [-1, 1].

    Args:
        conv_dim: Channels of the outermost hidden layers; they double twice on the way in.
        c_dim: Number of attributes.
        repeat_num: Residual blocks at a quarter of height and width.

    Raises:
        UserError: In a forward pass, if height or width is below 8 or not a multiple of 4, or if the
            attributes have another shape.
    """

    def __init__(self, conv_dim: int = 64, c_dim: int = 5, repeat_num: int = 6) -> None:
        super().__init__()
        self.c_dim = c_dim
        layers: list[nn.Module] = [
            nn.Conv2d(3 + c_dim, conv_dim, 7, 1, 3, bias=False),
            *_norm_relu(conv_dim),
        ]
        for width in (conv_dim, conv_dim * 2):
            layers += [nn.Conv2d(width, width * 2, 4, 2, 1, bias=False), *_norm_relu(width * 2)]
        layers += [_Block(conv_dim * 4) for _ in range(repeat_num)]
        for width in (conv_dim * 4, conv_dim * 2):
            layers += [nn.ConvTranspose2d(width, width // 2, 4, 2, 1, bias=False), *_norm_relu(width // 2)]
        layers += [nn.Conv2d(conv_dim, 3, 7, 1, 3, bias=False), nn.Tanh()]
        self.main = nn.Sequential(*layers)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Return ``x`` with the attributes ``c``, which reach every pixel as further channels."""
        _check_inputs(x, c, self.c_dim)
        maps = c.to(x.dtype)[:, :, None, None].expand(-1, -1, x.size(2), x.size(3))  # (B, c_dim, H, W)
        pictures: Tensor = self.main(torch.cat([x, maps], 1))
        return pictures

    def sections(self) -> list[list[nn.Module]]:
        """Return the way in, each residual block, and the way out: 8 for 6 blocks."""
        return chains_around(self.main, _Block)


@fx.wrap
def _check_inputs(x: Tensor, c: Tensor, c_dim: int) -> None:
    height, width = x.shape[-2:]
    if height % 4 or width % 4 or min(height, width) < 8:
        raise UserError(
            f"StarGAN generator: expected height and width that are multiples of 4, at least 8, got "
            f"{height}x{width}; resize or crop the pictures"
        )
    if c.shape != (x.shape[0], c_dim):  # len(x) would make the batch a constant of exported networks
        raise UserError(
            f"StarGAN generator: expected attributes of shape ({len(x)}, {c_dim}), got "
            f"{tuple(c.shape)}; give {c_dim} values for each picture"
        )


def _norm(width: int) -> nn.Module:
    return nn.InstanceNorm2d(width, affine=True, track_running_stats=True)


def _norm_relu(width: int) -> list[nn.Module]:
    return [_norm(width), nn.ReLU(True)]


class _Block(nn.Module):
    """Two convolutions with norms, added to what came in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            *_norm_relu(width),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            _norm(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.main(x)
        return out


class Discriminator(nn.Module):
    """Pictures (B, 3, size, size) to scores of patches (B, 1, h, h) and logits of attributes (B, c_dim).

    h is ``image_size // 2**repeat_num``, which is 2 for 128 pixels.

    Args:
        image_size: Height and width in pixels.
        conv_dim: Channels of the first hidden layer; each layer after it has twice as many.
        c_dim: Number of attributes.
        repeat_num: Hidden layers, each of which halves height and width; fewer for small pictures.

    Raises:
        UserError: If pictures cannot be halved so often, or, in a forward pass, have another size.
    """

    def __init__(
        self, image_size: int = 128, conv_dim: int = 64, c_dim: int = 5, repeat_num: int = 6
    ) -> None:
        super().__init__()
        self.image_size = image_size
        if image_size < 2**repeat_num:
            raise UserError(
                f"StarGAN discriminator: expected an image size of at least {2**repeat_num} (repeat_num "
                f"{repeat_num}), got {image_size}; set repeat_num to {max(1, image_size.bit_length() - 1)} "
                "or less"
            )
        widths = [3, *(conv_dim * 2**power for power in range(repeat_num))]
        layers: list[nn.Module] = []
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(before, after, 4, 2, 1), nn.LeakyReLU(0.01)]
        self.main = nn.Sequential(*layers)
        self.conv1 = nn.Conv2d(widths[-1], 1, 3, 1, 1, bias=False)
        self.conv2 = nn.Conv2d(widths[-1], c_dim, image_size // 2**repeat_num, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores, shape (B, 1, h, h), and the attributes' logits, shape (B, c_dim)."""
        src, cls, _ = self.judge(x)
        return src, cls

    def judge(self, x: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return scores, attributes' logits and the activations after each hidden layer's LeakyReLU."""
        if x.shape[-2:] != (self.image_size, self.image_size):
            raise UserError(
                f"StarGAN discriminator: expected pictures of {self.image_size}x{self.image_size} pixels, "
                f"got {x.shape[-2]}x{x.shape[-1]}; resize them, or set image_size"
            )
        features = []
        for layer in self.main:
            x = layer(x)
            if isinstance(layer, nn.LeakyReLU):
                features.append(x)
        return self.conv1(x), self.conv2(x).flatten(1), features  # (B, c_dim, 1, 1) -> (B, c_dim)


def generator_sizes(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Return the arguments of `Generator` that a state dictionary tells, or ``None`` if it is another's."""
    conv_dim, channels, _, _ = kernel_shape(state, "main.0.weight")
    repeats = sum(name.endswith(".main.3.weight") for name in state)
    return fitting(Generator, state, {"conv_dim": conv_dim, "c_dim": channels - 3, "repeat_num": repeats})


def discriminator_sizes(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Return the arguments of `Discriminator` that a state dictionary tells, or ``None`` if it is another's.

    The image size is the least that these weights take.
    """
    repeats = sum(tensor.dim() == 4 for tensor in state.values()) - 2
    c_dim, _, kernel, _ = kernel_shape(state, "conv2.weight")
    sizes = {
        "image_size": kernel * 2 ** max(0, repeats),
        "conv_dim": kernel_shape(state, "main.0.weight")[0],
        "c_dim": c_dim,
        "repeat_num": repeats,
    }
    return fitting(Discriminator, state, sizes)
