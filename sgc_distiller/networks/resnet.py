"""The generator of CycleGAN (Zhu et al., 2017) with residual blocks (Johnson et al., 2016).

Sizes and key names follow https://github.com/junyanz/pytorch-CycleGAN-and-pix2pix (``resnet_9blocks``
and ``resnet_6blocks``). Its norms keep no statistics, so training and evaluation mode agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx, nn

from sgc_distiller.errors import UserError
from sgc_distiller.networks.sections import chains_around
from sgc_distiller.networks.sizes import fitting, kernel_shape

__all__ = ["ResnetGenerator", "generator_sizes"]


class ResnetGenerator(nn.Module):
    """Pictures (B, input_nc, H, W) to pictures (B, output_nc, H, W) in [-1, 1].

    Args:
        input_nc: Channels of the pictures that come in.
        output_nc: Channels of the pictures that go out.
        ngf: Channels of the outermost layers; they double twice on the way in.
        blocks: Residual blocks at a quarter of height and width.
        dropout: Drop half of the activations within each block; CycleGAN does not.

    Raises:
        UserError: In a forward pass, if height or width is below 8 or not a multiple of 4.
    """

    def __init__(
        self, input_nc: int = 3, output_nc: int = 3, ngf: int = 64, blocks: int = 9, dropout: bool = False
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.ReflectionPad2d(3), nn.Conv2d(input_nc, ngf, 7), *_norm_relu(ngf)]
        for width in (ngf, ngf * 2):
            layers += [nn.Conv2d(width, width * 2, 3, 2, 1), *_norm_relu(width * 2)]
        layers += [_Block(ngf * 4, dropout) for _ in range(blocks)]
        for width in (ngf * 4, ngf * 2):
            layers += [
                nn.ConvTranspose2d(width, width // 2, 3, 2, 1, output_padding=1),
                *_norm_relu(width // 2),
            ]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(ngf, output_nc, 7), nn.Tanh()]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return the translated pictures."""
        _check_size(x)
        pictures: Tensor = self.model(x)
        return pictures

    def sections(self) -> list[list[nn.Module]]:
        """Return the way in, each residual block, and the way out."""
        return chains_around(self.model, _Block)


@fx.wrap
def _check_size(x: Tensor) -> None:
    height, width = x.shape[-2:]
    if height % 4 or width % 4 or min(height, width) < 8:
        raise UserError(
            f"ResNet generator: expected height and width that are multiples of 4, at least 8, got "
            f"{height}x{width}; resize or crop the pictures"
        )


def _norm_relu(width: int) -> list[nn.Module]:
    return [nn.InstanceNorm2d(width), nn.ReLU(True)]


class _Block(nn.Module):
    """Two convolutions with norms, added to what came in; nothing is rectified after the sum."""

    def __init__(self, width: int, dropout: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), *_norm_relu(width)]
        if dropout:
            layers.append(nn.Dropout(0.5))
        layers += [nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width)]
        self.conv_block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv_block(x)
        return out


def generator_sizes(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Return the arguments of `ResnetGenerator` that a state dictionary tells, or ``None``.

    Statistics that the norms of 2018 files kept are passed over.
    """
    ngf, input_nc, _, _ = kernel_shape(state, "model.1.weight")
    blocks = sum(name.endswith(".conv_block.1.weight") for name in state)
    sizes = {
        "input_nc": input_nc,
        "output_nc": kernel_shape(state, f"model.{blocks + 17}.weight")[0],
        "ngf": ngf,
        "blocks": blocks,
        "dropout": "model.10.conv_block.6.weight" in state,
    }
    return fitting(ResnetGenerator, state, sizes)
