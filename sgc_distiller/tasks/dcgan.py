"""DCGAN (Radford et al., 2016) as in PyTorch's examples, the paper's baseline for MNIST.

Sizes, key names, initialisation, losses, optimiser and order of steps follow
https://github.com/pytorch/examples/tree/main/dcgan; its checkpoints load as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from sgc_distiller import losses
from sgc_distiller.errors import UserError
from sgc_distiller.networks.dcgan import Discriminator, Generator
from sgc_distiller.networks.dcgan import initialise as _initialise
from sgc_distiller.networks.dcgan import stages as _stages
from sgc_distiller.seeding import generator_for
from sgc_distiller.tasks.base import Batch, GANTask, Judgement, Outputs, Role, Terms, frozen_statistics

__all__ = ["DCGAN", "Discriminator", "Generator"]


class DCGAN(GANTask):
    """DCGAN with the baseline's losses: binary cross-entropy, the generator's one not saturating.

    Args:
        image_size: Height and width in pixels: 64 as in the baseline, or 16, 32, 128, ...
        channels: Channels of the pictures, 1 for digits and 3 for colour.
        width: Channels of the narrowest hidden layer of both networks (``ngf`` and ``ndf``).
        noise: Length of the noise vector (``nz``).
    """

    name = "dcgan"
    batch_size = 64
    lr = 2e-4

    def __init__(self, image_size: int = 64, channels: int = 1, width: int = 64, noise: int = 100) -> None:
        _stages(image_size)
        for option, value in (("channels", channels), ("width", width), ("noise", noise)):
            if value < 1:
                raise UserError(f"dcgan: expected {option} of at least 1, got {value}")
        self.image_size = image_size
        self.channels = channels
        self.width = width
        self.noise = noise

    @classmethod
    def usual_options(cls) -> dict[str, Any]:
        """Return the baseline's sizes: 64x64 pictures, one channel, width 64."""
        return {"image_size": 64, "channels": 1, "width": 64}

    @classmethod
    def options_of(cls, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Return the sizes that a generator's weights tell, or ``None`` if they are another network's."""
        layers = [tensor for name, tensor in state.items() if name.startswith("main.") and tensor.dim() == 4]
        if len(layers) < 3 or any(tuple(layer.shape[2:]) != (4, 4) for layer in layers):
            return None
        width, channels = layers[-1].shape[:2]
        if layers[0].shape[1] != width * 2 ** (len(layers) - 2):
            return None
        return {
            "image_size": 2 ** (len(layers) + 1),
            "channels": channels,
            "width": width,
            "noise": layers[0].shape[0],
        }

    @property
    def options(self) -> dict[str, Any]:
        """What `__init__` was called with; kept in checkpoints."""
        return {
            "image_size": self.image_size,
            "channels": self.channels,
            "width": self.width,
            "noise": self.noise,
        }

    def build(self, role: Role, width: float = 1.0) -> nn.Module:
        """Return a network with weights N(0, 0.02), norms' weights N(1, 0.02) and biases 0."""
        channels = max(1, round(self.width * width))
        network: nn.Module
        if role == "generator":
            network = Generator(self.channels, self.noise, channels, self.image_size)
        else:
            network = Discriminator(self.channels, channels, self.image_size)
        return network.apply(_initialise)

    def prepare(self, raw: dict[str, Tensor], rng: torch.Generator) -> Batch:
        """Return the real pictures and noise N(0, 1) of shape (B, nz, 1, 1) on their device."""
        real = raw["real"]
        noise = torch.randn(len(real), self.noise, 1, 1, generator=rng)
        return {"real": real, "z": _to(noise, real.device)}

    def generate(self, generator: nn.Module, batch: Batch) -> Outputs:
        """Return the pictures for the batch's noise under ``fake``."""
        return {"fake": generator(batch["z"])}

    def judge_real(self, discriminator: nn.Module, batch: Batch) -> Judgement:
        """Return the probability that each real picture is real, and the hidden activations."""
        return _judge(discriminator, batch["real"])

    def judge_fake(self, discriminator: nn.Module, batch: Batch, outputs: Outputs) -> Judgement:
        """Return the probability that each generated picture is real, and the hidden activations."""
        return _judge(discriminator, outputs["fake"])

    def generator_terms(self, generator: nn.Module, batch: Batch, outputs: Outputs, fake: Judgement) -> Terms:
        """Return ``gen``, the cross-entropy of D(G(z)) against "real"."""
        return {"gen": losses.binary_cross_entropy(fake["score"], 1.0)}

    def discriminator_terms(
        self, discriminator: nn.Module, batch: Batch, outputs: Outputs, real: Judgement, fake: Judgement
    ) -> Terms:
        """Return ``dis``, the cross-entropy of D(x) against "real" plus that of D(G(z)) against "fake"."""
        return {
            "dis": losses.binary_cross_entropy(real["score"], 1.0)
            + losses.binary_cross_entropy(fake["score"], 0.0)
        }

    def optimizer(self, role: Role, network: nn.Module, lr: float | None = None) -> torch.optim.Optimizer:
        """Return Adam with learning rate 2e-4 and betas (0.5, 0.999)."""
        return torch.optim.Adam(network.parameters(), lr=self.lr if lr is None else lr, betas=(0.5, 0.999))

    def sample(
        self, generator: nn.Module, count: int, seed: int, device: torch.device, batch_size: int | None = None
    ) -> Iterator[Tensor]:
        """Yield pictures in training mode at a fixed batch size, as the baseline draws its samples.

        Norms use each batch's own statistics, so every batch is drawn whole and the last one is cut.
        """
        size = batch_size or self.batch_size
        was_training = generator.training
        generator.train()
        try:
            for start in range(0, count, size):
                rng = generator_for(seed, "sample", start // size)
                noise = torch.randn(size, self.noise, 1, 1, generator=rng)
                with torch.no_grad(), frozen_statistics(generator):
                    pictures: Tensor = generator(_to(noise, device))
                yield pictures[: count - start]
        finally:
            generator.train(was_training)

    def protocol(self, batch_size: int | None = None) -> str:
        """Return ``train mode, batch N``."""
        return f"train mode, batch {batch_size or self.batch_size}"


def _judge(discriminator: nn.Module, pictures: Tensor) -> Judgement:
    inner = getattr(discriminator, "module", discriminator)
    score, features = cast(Discriminator, inner).judge(pictures)
    return {"score": score, "features": features}


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    """Move a tensor without making the host wait for the device."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
