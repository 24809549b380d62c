"""DCGAN (Radford et al., 2016) as in PyTorch's examples, the paper's baseline for MNIST.

Sizes, key names, initialisation, losses, optimiser and order of steps follow
https://github.com/pytorch/examples/tree/main/dcgan; its checkpoints load as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sgc_distiller import losses
from sgc_distiller.module_state import drawing, to_device
from sgc_distiller.networks.dcgan import Discriminator, Generator, initialise, stages
from sgc_distiller.seeding import generator_for
from sgc_distiller.tasks.base import Batch, GANTask, Judgement, Outputs, Role, Terms, judged
from sgc_distiller.tasks.options import within

__all__ = ["DCGAN"]


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
        within("dcgan", image_size=(image_size, 16))
        stages(image_size)
        within("dcgan", channels=(channels, 1), width=(width, 1), noise=(noise, 1))
        self.image_size = image_size
        self.channels = channels
        self.width = width
        self.noise = noise

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

    def build(self, role: Role, width: float = 1.0) -> nn.Module:
        """Return a network with weights N(0, 0.02), norms' weights N(1, 0.02) and biases 0."""
        channels = max(1, round(self.width * width))
        network: nn.Module
        if role == "generator":
            network = Generator(self.channels, self.noise, channels, self.image_size)
        else:
            network = Discriminator(self.channels, channels, self.image_size)
        return network.apply(initialise)

    def prepare(self, raw: dict[str, Tensor], rng: torch.Generator) -> Batch:
        """Return the real pictures and noise N(0, 1) of shape (B, nz, 1, 1) on their device."""
        real = raw["real"]
        noise = torch.randn(len(real), self.noise, 1, 1, generator=rng)
        return {"real": real, "z": to_device(noise, real.device)}

    def generate(self, generator: nn.Module, batch: Batch) -> Outputs:
        """Return the pictures for the batch's noise under ``fake``."""
        return {"fake": generator(batch["z"])}

    def judge_real(self, discriminator: nn.Module, batch: Batch) -> Judgement:
        """Return the probability that each real picture is real, and the hidden activations."""
        return judged(discriminator, batch["real"])

    def judge_fake(self, discriminator: nn.Module, batch: Batch, outputs: Outputs) -> Judgement:
        """Return the probability that each generated picture is real, and the hidden activations."""
        return judged(discriminator, outputs["fake"])

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

    def sample(
        self, generator: nn.Module, count: int, seed: int, device: torch.device, batch_size: int | None = None
    ) -> Iterator[Tensor]:
        """Yield pictures in training mode at a fixed batch size, as the baseline draws its samples.

        Norms use each batch's own statistics, so every batch is drawn whole and the last one is cut.
        """
        size = batch_size or self.batch_size
        for start in range(0, count, size):
            rng = generator_for(seed, "sample", start // size)
            noise = to_device(torch.randn(size, self.noise, 1, 1, generator=rng), device)
            with drawing(generator):
                pictures: Tensor = generator(noise)
            yield pictures[: count - start]

    def protocol(self, batch_size: int | None = None) -> str:
        """Return ``train mode, batch N``."""
        return f"train mode, batch {batch_size or self.batch_size}"
