"""The discriminator of pix2pix and CycleGAN: it judges overlapping patches (70x70 for three layers).

Sizes and key names follow https://github.com/junyanz/pytorch-CycleGAN-and-pix2pix (``basic`` and
``n_layers``); its checkpoints load as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from sgc_distiller.errors import UserError
from sgc_distiller.networks.sizes import fitting, kernel_shape

__all__ = ["PatchDiscriminator", "discriminator_sizes"]


class PatchDiscriminator(nn.Module):
    """Pictures (B, input_nc, H, W) to one score a patch, (B, 1, h, w), without a sigmoid.

    For three layers h is ``H // 8 - 2``, which is 30 for 256 pixels.

    Args:
        input_nc: Channels of what is judged; 6 for pairs of colour pictures.
        ndf: Channels of the first hidden layer; they double up to ``8 * ndf``.
        n_layers: Layers that halve height and width, at least 1.
        norm: ``batch`` as in pix2pix, or ``instance`` (no weights, no statistics kept) as in CycleGAN.

    Raises:
        UserError: If ``n_layers`` or ``norm`` is none of these, or, in a forward pass, if pictures are so
            small that no patch is left.
    """

    def __init__(
        self,
        input_nc: int = 3,
        ndf: int = 64,
        n_layers: int = 3,
        norm: Literal["batch", "instance"] = "batch",
    ) -> None:
        super().__init__()
        if norm not in ("batch", "instance"):
            raise UserError(f"patch discriminator: expected norm batch or instance, got {norm!r}")
        if n_layers < 1:
            raise UserError(f"patch discriminator: expected n_layers of at least 1, got {n_layers}")
        self.n_layers = n_layers
        widths = [ndf * min(2**power, 8) for power in range(n_layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(input_nc, ndf, 4, 2, 1), nn.LeakyReLU(0.2, True)]
        for number, (before, after) in enumerate(zip(widths, widths[1:], strict=False), 1):
            stride = 2 if number < n_layers else 1
            layers += [
                nn.Conv2d(before, after, 4, stride, 1, bias=norm == "instance"),
                nn.BatchNorm2d(after) if norm == "batch" else nn.InstanceNorm2d(after),
                nn.LeakyReLU(0.2, True),
            ]
        layers.append(nn.Conv2d(widths[-1], 1, 4, 1, 1))
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores, shape (B, 1, h, w)."""
        return self.judge(x)[0]

    def judge(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the scores and the activations after each hidden layer's LeakyReLU."""
        least = 3 * 2**self.n_layers
        if min(x.shape[-2:]) < least:
            raise UserError(
                f"patch discriminator: expected pictures of at least {least}x{least} pixels (n_layers "
                f"{self.n_layers}), got {x.shape[-2]}x{x.shape[-1]}; give larger pictures or fewer layers"
            )
        features = []
        for layer in self.model:
            x = layer(x)
            if isinstance(layer, nn.LeakyReLU):
                features.append(x)
        return x, features


def discriminator_sizes(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Return the arguments of `PatchDiscriminator` that a state dictionary tells, or ``None``."""
    ndf, input_nc, _, _ = kernel_shape(state, "model.0.weight")
    sizes = {
        "input_nc": input_nc,
        "ndf": ndf,
        "n_layers": sum(tensor.dim() == 4 for tensor in state.values()) - 2,
        "norm": "instance" if "model.2.bias" in state else "batch",
    }
    return fitting(PatchDiscriminator, state, sizes)
