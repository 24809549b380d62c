"""The generator of pix2pix (Isola et al., 2017): a U-Net whose skips join every depth.

Sizes and key names follow https://github.com/junyanz/pytorch-CycleGAN-and-pix2pix (``unet_256`` has
``num_downs`` 8, ``unet_128`` has 7); its checkpoints load as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from sgc_distiller.errors import UserError
from sgc_distiller.networks.sizes import fitting, kernel_shape

__all__ = ["UNetGenerator", "generator_sizes"]


class UNetGenerator(nn.Module):
    """Pictures (B, input_nc, H, W) to pictures (B, output_nc, H, W) in [-1, 1].

    Args:
        input_nc: Channels of the pictures that come in.
        output_nc: Channels of the pictures that go out.
        ngf: Channels of the outermost hidden layer; they double three times on the way in.
        num_downs: How many times height and width are halved, at least 5.
        dropout: Drop half of the activations on the way out in the ``num_downs - 5`` blocks at full width.

    Raises:
        UserError: If ``num_downs`` is below 5, or, in a forward pass, if height or width is not a multiple
            of ``2**num_downs``.
    """

    def __init__(
        self, input_nc: int = 3, output_nc: int = 3, ngf: int = 64, num_downs: int = 8, dropout: bool = True
    ) -> None:
        super().__init__()
        if num_downs < 5:
            raise UserError(
                f"U-Net: expected num_downs of at least 5, got {num_downs}; give larger pictures, which must "
                "be halved at least five times"
            )
        self.num_downs = num_downs
        full = ngf * 8
        block = _Block(full, full)
        for _ in range(num_downs - 5):
            block = _Block(full, full, inner=block, dropout=dropout)
        for width in (ngf * 4, ngf * 2, ngf):
            block = _Block(width, width * 2, inner=block)
        self.model = _Outermost(input_nc, output_nc, ngf, block)

    def forward(self, x: Tensor) -> Tensor:
        """Return the translated pictures."""
        _check_size(x, self.num_downs)
        pictures: Tensor = self.model(x)
        return pictures

    def sections(self) -> list[list[nn.Module]]:
        """Return the chains between the skips, from the picture inwards and out again.

        Dropout stands between chains: what it drops is not imitated.
        """
        way_in: list[list[nn.Module]] = []
        way_out: list[list[nn.Module]] = []
        block: nn.Module | None = self.model
        while block is not None:
            inner = None
            chains: list[list[nn.Module]] = [[]]
            for layer in block.get_submodule("model").children():
                if isinstance(layer, _Block):
                    inner = layer
                    chains.append([])
                elif not isinstance(layer, nn.Dropout):
                    chains[-1].append(layer)
            way_in.append(chains[0])
            way_out[:0] = chains[1:]
            block = inner
        return way_in + way_out


@fx.wrap
def _check_size(x: Tensor, num_downs: int) -> None:
    step = 2**num_downs
    height, width = x.shape[-2:]
    if height % step or width % step:
        raise UserError(
            f"U-Net: expected height and width that are multiples of {step} (num_downs "
            f"{num_downs}), got {height}x{width}; resize or crop the pictures, or set num_downs"
        )


class _Outermost(nn.Module):
    """First and last layer around all other blocks: no norms, no skip."""

    def __init__(self, input_nc: int, output_nc: int, width: int, inner: nn.Module) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Conv2d(input_nc, width, 4, 2, 1, bias=False),
            inner,
            nn.ReLU(True),
            nn.ConvTranspose2d(width * 2, output_nc, 4, 2, 1),
            nn.Tanh(),
        )

    def forward(self, x: Tensor) -> Tensor:
        pictures: Tensor = self.model(x)
        return pictures


class _Block(nn.Module):
    """Halve, go through the inner block, double, and put the result after the input: (B, 2 * outer, h, w).

    The first LeakyReLU works in place, as the baseline's does: what the skip carries is rectified too.
    """

    def __init__(self, outer: int, width: int, inner: nn.Module | None = None, dropout: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.LeakyReLU(0.2, True), nn.Conv2d(outer, width, 4, 2, 1, bias=False)]
        if inner is not None:
            layers += [nn.BatchNorm2d(width), inner]
        layers += [
            nn.ReLU(True),
            nn.ConvTranspose2d(width if inner is None else width * 2, outer, 4, 2, 1, bias=False),
            nn.BatchNorm2d(outer),
        ]
        if dropout:
            layers.append(nn.Dropout(0.5))
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.model(x)], 1)


def generator_sizes(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Return the arguments of `UNetGenerator` that a state dictionary tells, or ``None`` if it is another's.

    Weights do not tell ``dropout``, which is left out.
    """
    ngf, input_nc, _, _ = kernel_shape(state, "model.model.0.weight")
    output_nc = kernel_shape(state, "model.model.3.weight")[1]
    prefix, num_downs = "model.model.1.model.", 1
    while f"{prefix}1.weight" in state:
        prefix += "3.model."
        num_downs += 1
    sizes = {"input_nc": input_nc, "output_nc": output_nc, "ngf": ngf, "num_downs": num_downs}
    return fitting(UNetGenerator, state, sizes)
