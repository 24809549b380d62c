"""The networks of SRGAN (Ledig et al., 2017) as in BasicSR, of both of its generations.

Sizes follow https://github.com/XPixelGroup/BasicSR. `MSRResNet` is the generator of v0.1 and later,
`SRResNet` that of v0.0. Key names are those of v1.x, for which `basicsr_names` knows the older ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from sgc_distiller.errors import UserError
from sgc_distiller.networks import basicsr_names
from sgc_distiller.networks.sections import chains_from
from sgc_distiller.networks.sizes import fitting, kernel_shape

__all__ = [
    "MSRResNet",
    "SRResNet",
    "VGGDiscriminator",
    "discriminator_sizes",
    "msrresnet_sizes",
    "srresnet_sizes",
]

_FACTORS = {2: (2,), 3: (3,), 4: (2, 2)}  # by how much, and in which steps


def _factors(upscale: int) -> tuple[int, ...]:
    if upscale not in _FACTORS:
        raise UserError(f"super-resolution: expected upscale 2, 3 or 4, got {upscale}")
    return _FACTORS[upscale]


class MSRResNet(nn.Module):
    """Pictures (B, in_nc, h, w) in [0, 1] to pictures (B, out_nc, upscale * h, upscale * w), not clamped.

    The network adds to what bilinear interpolation gives. There are no norms.

    Args:
        in_nc: Channels of the pictures that come in; as many as ``out_nc``, or 1.
        out_nc: Channels of the pictures that go out.
        nf: Channels of every hidden layer.
        nb: Residual blocks.
        upscale: 2, 3 or 4.

    Raises:
        UserError: If ``upscale`` or the channels are none of these.
    """

    def __init__(self, in_nc: int = 3, out_nc: int = 3, nf: int = 64, nb: int = 16, upscale: int = 4) -> None:
        super().__init__()
        factors = _factors(upscale)
        if in_nc not in (1, out_nc):
            raise UserError(f"super-resolution: expected in_nc 1 or out_nc ({out_nc}), got {in_nc}")
        self.upscale = upscale
        self.conv_first = nn.Conv2d(in_nc, nf, 3, 1, 1)
        self.body = nn.Sequential(*(_Block(nf) for _ in range(nb)))
        for number, factor in enumerate(factors, 1):
            self.add_module(f"upconv{number}", nn.Conv2d(nf, nf * factor**2, 3, 1, 1))
        self.shuffle = nn.PixelShuffle(factors[0])
        self.conv_hr = nn.Conv2d(nf, nf, 3, 1, 1)
        self.conv_last = nn.Conv2d(nf, out_nc, 3, 1, 1)
        self.lrelu = nn.LeakyReLU(0.1, True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the enlarged pictures."""
        out = self.body(self.lrelu(self.conv_first(x)))
        for number in range(1, len(_FACTORS[self.upscale]) + 1):
            out = self.lrelu(self.shuffle(self.get_submodule(f"upconv{number}")(out)))
        out = self.conv_last(self.lrelu(self.conv_hr(out)))
        base = F.interpolate(x, scale_factor=self.upscale, mode="bilinear", align_corners=False)
        pictures: Tensor = out + base
        return pictures

    def sections(self) -> list[list[nn.Module]]:
        """Return each residual block and each other convolution by itself."""
        last = [getattr(self, f"upconv{number}") for number in range(1, len(_FACTORS[self.upscale]) + 1)]
        chains = [self.conv_first, *self.body, *last, self.conv_hr, self.conv_last]
        return [[module] for module in chains]


class _Block(nn.Module):
    """Two convolutions, added to what came in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, 1, 1)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1)
        self.relu = nn.ReLU(True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv2(self.relu(self.conv1(x)))
        return out


class SRResNet(nn.Module):
    """Pictures (B, in_nc, h, w) in [0, 1] to pictures (B, out_nc, upscale * h, upscale * w), not clamped.

    Unlike in `MSRResNet`, a skip goes around all residual blocks and none around the whole network.

    Args:
        in_nc: Channels of the pictures that come in.
        out_nc: Channels of the pictures that go out.
        nf: Channels of every hidden layer.
        nb: Residual blocks.
        upscale: 2, 3 or 4.

    Raises:
        UserError: If ``upscale`` is none of these.
    """

    def __init__(self, in_nc: int = 3, out_nc: int = 3, nf: int = 64, nb: int = 16, upscale: int = 4) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(in_nc, nf, 3, 1, 1), _Skip(nf, nb)]
        for factor in _factors(upscale):
            layers += [nn.Conv2d(nf, nf * factor**2, 3, 1, 1), nn.PixelShuffle(factor), nn.ReLU(True)]
        layers += [nn.Conv2d(nf, nf, 3, 1, 1), nn.ReLU(True), nn.Conv2d(nf, out_nc, 3, 1, 1)]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return the enlarged pictures."""
        pictures: Tensor = self.model(x)
        return pictures

    def sections(self) -> list[list[nn.Module]]:
        """Return the first layer, each residual block, the layer behind them, and the way out."""
        first, skip, *rest = self.model
        inner = [[module] for module in skip.get_submodule("sub").children()]
        return [[first], *inner, *chains_from(nn.Sequential(*rest), nn.Conv2d)]


class _Skip(nn.Module):
    """All residual blocks and one more convolution, added to what came in."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.sub = nn.Sequential(*(_OldBlock(width) for _ in range(blocks)), nn.Conv2d(width, width, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.sub(x)
        return out


class _OldBlock(nn.Module):
    """The residual block with the key names of v0.0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.res = nn.Sequential(
            nn.Conv2d(width, width, 3, 1, 1), nn.ReLU(True), nn.Conv2d(width, width, 3, 1, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.res(x)
        return out


class VGGDiscriminator(nn.Module):
    """Pictures (B, in_nc, size, size) in [0, 1] to one score a picture, (B, 1), without a sigmoid.

    Args:
        in_nc: Channels of the pictures.
        nf: Channels of the first layers; they double three times.
        size: Height and width in pixels, a multiple of 32; 128 in BasicSR.

    Raises:
        UserError: If ``size`` is not, or, in a forward pass, pictures have another size.
    """

    def __init__(self, in_nc: int = 3, nf: int = 64, size: int = 128) -> None:
        super().__init__()
        if size < 32 or size % 32:
            raise UserError(f"SRGAN discriminator: expected a size that is a multiple of 32, got {size}")
        self.size = size
        before = in_nc
        for stage, width in enumerate((nf, nf * 2, nf * 4, nf * 8, nf * 8)):
            self.add_module(f"conv{stage}_0", nn.Conv2d(before, width, 3, 1, 1, bias=stage == 0))
            if stage:
                self.add_module(f"bn{stage}_0", nn.BatchNorm2d(width))
            self.add_module(f"conv{stage}_1", nn.Conv2d(width, width, 4, 2, 1, bias=False))
            self.add_module(f"bn{stage}_1", nn.BatchNorm2d(width))
            before = width
        self.linear1 = nn.Linear(before * (size // 32) ** 2, 100)
        self.linear2 = nn.Linear(100, 1)
        self.lrelu = nn.LeakyReLU(0.2, True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores, shape (B, 1)."""
        return self.judge(x)[0]

    def judge(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the scores and the activations after each hidden layer's LeakyReLU."""
        if x.shape[-2:] != (self.size, self.size):
            raise UserError(
                f"SRGAN discriminator: expected pictures of {self.size}x{self.size} pixels, got "
                f"{x.shape[-2]}x{x.shape[-1]}; crop them, or set size"
            )
        features = []
        for stage in range(5):
            for half in range(2):
                x = self.get_submodule(f"conv{stage}_{half}")(x)
                if stage or half:
                    x = self.get_submodule(f"bn{stage}_{half}")(x)
                x = self.lrelu(x)
                features.append(x)
        x = self.lrelu(self.linear1(x.flatten(1)))  # (B, 8 nf, size / 32, size / 32) -> (B, inputs)
        features.append(x)
        return self.linear2(x), features


def msrresnet_sizes(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Return the arguments of `MSRResNet` that a state dictionary of v0.1 or later tells, or ``None``."""
    state = basicsr_names.current(state)
    nf, in_nc, _, _ = kernel_shape(state, "conv_first.weight")
    widened = kernel_shape(state, "upconv1.weight")[0]
    sizes = {
        "in_nc": in_nc,
        "out_nc": kernel_shape(state, "conv_last.weight")[0],
        "nf": nf,
        "nb": sum(name.endswith(".conv1.weight") for name in state),
        "upscale": 4 if "upconv2.weight" in state else (3 if widened == 9 * nf else 2),
    }
    return fitting(MSRResNet, state, sizes)


def srresnet_sizes(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Return the arguments of `SRResNet` that a state dictionary tells, or ``None`` if it is another's."""
    nf, in_nc, _, _ = kernel_shape(state, "model.0.weight")
    widened = kernel_shape(state, "model.2.weight")[0]
    last = "model.10.weight" if "model.10.weight" in state else "model.7.weight"
    sizes = {
        "in_nc": in_nc,
        "out_nc": kernel_shape(state, last)[0],
        "nf": nf,
        "nb": sum(name.endswith(".res.0.weight") for name in state),
        "upscale": 4 if "model.10.weight" in state else (3 if widened == 9 * nf else 2),
    }
    return fitting(SRResNet, state, sizes)


def discriminator_sizes(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Return the arguments of `VGGDiscriminator` that a state dictionary tells, or ``None``."""
    state = basicsr_names.current(state)
    nf, in_nc, _, _ = kernel_shape(state, "conv0_0.weight")
    linear = state.get("linear1.weight")
    inputs = linear.shape[-1] if linear is not None and linear.dim() == 2 else 0
    pixels = inputs // (nf * 8) if nf else 0
    return fitting(VGGDiscriminator, state, {"in_nc": in_nc, "nf": nf, "size": 32 * round(pixels**0.5)})
