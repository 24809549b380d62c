"""How the baselines initialise their networks: functions for ``network.apply(...)``.

StarGAN's networks and SRGAN's discriminator since BasicSR v0.1 keep PyTorch's own initialisation;
DCGAN's is beside its networks.
"""

from __future__ import annotations

from torch import nn

__all__ = ["initialise_normal", "initialise_sr_discriminator_v00", "initialise_sr_generator"]

_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def initialise_normal(module: nn.Module) -> None:
    """Initialise one layer as pix2pix and CycleGAN do.

    Weights of (transposed) convolutions are drawn from N(0, 0.02), those of batch norms from N(1, 0.02);
    biases are 0.
    """
    if isinstance(module, _CONVOLUTIONS):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


def initialise_sr_generator(module: nn.Module) -> None:
    """Initialise one layer as BasicSR does in generators: He's normal by fan-in times 0.1, biases 0."""
    _he_normal(module, 0.1)


def initialise_sr_discriminator_v00(module: nn.Module) -> None:
    """Initialise one layer as BasicSR v0.0 does in discriminators: He's normal by fan-in, biases 0."""
    _he_normal(module, 1.0)


def _he_normal(module: nn.Module, scale: float) -> None:
    if isinstance(module, _CONVOLUTIONS):
        nn.init.kaiming_normal_(module.weight, a=0.0, mode="fan_in")
        module.weight.data.mul_(scale)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
