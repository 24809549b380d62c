"""SRGAN (Ledig et al., 2017) as in BasicSR: photographs enlarged four times.

Networks, losses, order of steps, data and test protocol follow https://github.com/XPixelGroup/BasicSR: the
generator ``msrresnet`` is that of its versions from 0.1 on, ``srresnet`` that of version 0.0; checkpoints of
both load. The networks see pictures in [0, 1]; what leaves this module is in [-1, 1] as everywhere.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sgc_distiller import losses
from sgc_distiller.data import (
    ImageSet,
    Samples,
    SuperResolutionSet,
    cut_into_tiles,
    normalise,
    open_superresolution,
)
from sgc_distiller.errors import UserError
from sgc_distiller.module_state import drawing
from sgc_distiller.networks import srgan as networks
from sgc_distiller.networks.initialisation import (
    initialise_sr_discriminator_v00,
    initialise_sr_generator,
)
from sgc_distiller.networks.vgg import PerceptualNetwork, vgg19_path
from sgc_distiller.pictures import boxed
from sgc_distiller.tasks.base import Batch, GANTask, Judgement, Outputs, Phase, Role, Terms, judged
from sgc_distiller.tasks.evaluation import Drawn, Evaluation, Sheet
from sgc_distiller.tasks.options import scaled, within

__all__ = ["SRGAN"]

_GENERATORS = {"msrresnet": networks.MSRResNet, "srresnet": networks.SRResNet}
_ROWS = 5  # of a sheet
_PATCHES = 64  # pictures asked for after an epoch, for each whole one that is enlarged


class SRGAN(GANTask):
    """SRGAN with BasicSR's terms: 0.01 L1, 1 perceptual (VGG19 conv5_4) and 0.005 adversarial.

    Args:
        image_size: Side of the crops for training, in pixels of the large picture: 128 as in the baseline, or
            another multiple of 32 from 64 on.
        width: Channels of the hidden layers of the generator and of the discriminator's first one (``nf``).
        blocks: Residual blocks of the generator.
        scale: How many times larger the result is, 2 or 4.
        generator: ``msrresnet`` or ``srresnet``.
        pixel_weight: Weight of the L1 term beside the adversarial one. Without the perceptual term, which
            holds the picture in the baseline, its 0.01 is too little; 1 keeps it.
        gan_weight: Weight of the adversarial term.
        loss: ``gan``, or ``l1`` for the training that precedes it: L1 alone, without a discriminator.
        perceptual: ``vgg19`` with ImageNet's weights, ``none``, or ``auto``: where the weights are.
        vgg_weights: File of those weights; by default where torchvision keeps them.
    """

    name = "srgan"
    built_in = "photos"
    channels = 3
    batch_size = 16
    epochs = 196
    lr = 1e-4
    betas = (0.9, 0.99)
    imitates = {"fake": "high"}  # noqa: RUF012 - read only

    def __init__(
        self,
        image_size: int = 128,
        width: int = 64,
        blocks: int = 16,
        scale: int = 4,
        generator: str = "msrresnet",
        pixel_weight: float = 1e-2,
        gan_weight: float = 5e-3,
        loss: str = "gan",
        perceptual: str = "auto",
        vgg_weights: str | None = None,
    ) -> None:
        within("srgan", image_size=(image_size, 64), width=(width, 1), blocks=(blocks, 0))
        if image_size % 32:
            raise UserError(f"srgan: expected image_size to be a multiple of 32, got {image_size}")
        choices: dict[str, tuple[Any, Sequence[Any]]] = {
            "scale": (scale, (2, 4)),
            "generator": (generator, tuple(_GENERATORS)),
            "loss": (loss, ("gan", "l1")),
            "perceptual": (perceptual, ("auto", "vgg19", "none")),
        }
        for option, (value, allowed) in choices.items():
            if value not in allowed:
                expected = " or ".join(map(repr, allowed))
                raise UserError(f"srgan: expected {option} {expected}, got {value!r}")
        self.image_size = image_size
        self.width = width
        self.blocks = blocks
        self.scale = scale
        for option, weight in (("pixel_weight", pixel_weight), ("gan_weight", gan_weight)):
            is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
            if not is_number or not 0 <= weight < math.inf:
                raise UserError(f"srgan: expected {option} to be a number of at least 0, got {weight!r}")
        if vgg_weights is not None and not isinstance(vgg_weights, str):
            raise UserError(f"srgan: expected vgg_weights to be the path of a file, got {vgg_weights!r}")
        self.generator = generator
        self.pixel_weight = float(pixel_weight)
        self.gan_weight = float(gan_weight)
        self.loss = loss
        self.perceptual = perceptual
        self.vgg_weights = vgg_weights
        self._choose_terms()

    def _choose_terms(self) -> None:
        """Set phases, terms and learning rate for the kind of loss, and find the perceptual network."""
        if self.generator == "srresnet":
            self.betas = (0.9, 0.999)
        if self.loss == "l1":
            self.epochs = 491
            self.phases = (Phase("generator"),)
            self.generator_weights = {"pix": 1.0}
            self.judges = False
            self.lr = 2e-4
            return
        self.phases = (Phase("generator"), Phase("discriminator"))
        self.generator_weights = {"gen": self.gan_weight, "pix": self.pixel_weight}
        if self.perceptual == "none":
            return
        try:
            path = vgg19_path(Path(self.vgg_weights) if self.vgg_weights else None)
        except UserError as error:
            if self.perceptual == "vgg19" or self.vgg_weights:
                raise
            self.note = (
                f"The perceptual term is left out, and only the pixel and adversarial terms train: {error}"
            )
            if self.pixel_weight < 1:
                self.note += (
                    f". The pixel term's weight is {self.pixel_weight:g}; -O pixel_weight=1 holds the "
                    "pictures without the perceptual term"
                )
            return
        self.generator_weights["vgg"] = 1.0
        self._perceptual_network = PerceptualNetwork(path)

    @classmethod
    def options_of(cls, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Return the sizes that a generator's weights tell."""
        for name, sizes_of in (
            ("msrresnet", networks.msrresnet_sizes),
            ("srresnet", networks.srresnet_sizes),
        ):
            sizes = sizes_of(state)
            if sizes is not None:
                known = {"width": sizes["nf"], "blocks": sizes["nb"], "scale": sizes["upscale"]}
                return {**known, "generator": name}
        return None

    def build(self, role: Role, width: float = 1.0) -> nn.Module:
        """Return a network, the generator with Kaiming's initialisation times 0.1.

        The discriminator has PyTorch's own, or beside ``srresnet`` Kaiming's, as BasicSR v0.0 has it.
        """
        channels = scaled(self.width, width)
        if role == "discriminator":
            judge = networks.VGGDiscriminator(3, channels, self.image_size)
            return judge.apply(initialise_sr_discriminator_v00) if self.generator == "srresnet" else judge
        network = _GENERATORS[self.generator](3, 3, channels, self.blocks, self.scale)
        return network.apply(initialise_sr_generator)

    def prepare(self, raw: dict[str, Tensor], rng: torch.Generator) -> Batch:
        """Return small pictures under ``low`` and large ones under ``high``, in [0, 1].

        Where the perceptual term is used, ``high_features`` are those of the large pictures.
        """
        batch: Batch = {"low": (raw["low"] + 1) / 2, "high": (raw["high"] + 1) / 2}
        if "vgg" in self.generator_weights:
            with torch.no_grad():
                batch["high_features"] = self._perceive(batch["high"])
        return batch

    def _perceive(self, pictures: Tensor) -> Tensor:
        features: Tensor = self._perceptual_network.to(pictures.device)(pictures)
        return features

    def generate(self, generator: nn.Module, batch: Batch) -> Outputs:
        """Return the enlarged pictures under ``fake``, around [0, 1]."""
        return {"fake": generator(batch["low"])}

    def judge_real(self, discriminator: nn.Module, batch: Batch) -> Judgement:
        """Return the logits of the large pictures, and the hidden activations."""
        return judged(discriminator, batch["high"])

    def judge_fake(self, discriminator: nn.Module, batch: Batch, outputs: Outputs) -> Judgement:
        """Return the logits of the enlarged pictures, and the hidden activations."""
        return judged(discriminator, outputs["fake"])

    def generator_terms(self, generator: nn.Module, batch: Batch, outputs: Outputs, fake: Judgement) -> Terms:
        """Return ``pix`` (L1), and with a discriminator ``gen`` and, where there is a VGG19, ``vgg``."""
        terms = {"pix": losses.mean_absolute(outputs["fake"], batch["high"])}
        if "gen" in self.generator_weights:
            terms["gen"] = losses.cross_entropy_with_logits(fake["score"], 1.0)
        if "vgg" in self.generator_weights:
            terms["vgg"] = losses.mean_absolute(self._perceive(outputs["fake"]), batch["high_features"])
        return terms

    def discriminator_terms(
        self, discriminator: nn.Module, batch: Batch, outputs: Outputs, real: Judgement, fake: Judgement
    ) -> Terms:
        """Return ``dis``, the cross-entropy of the large pictures plus that of the enlarged ones."""
        fake_loss = losses.cross_entropy_with_logits(fake["score"], 0.0)
        return {"dis": losses.cross_entropy_with_logits(real["score"], 1.0) + fake_loss}

    def lr_factor(self, epoch: int, epochs: int) -> float:
        """Return BasicSR's factor, its iterations scaled to this run.

        It halves at 1/8, 1/4, 1/2 and 3/4 of the run, beside ``srresnet`` at 1/10, 1/5, 2/5 and 3/5; with the
        loss ``l1`` it is a cosine that falls to 5e-4 four times, beside ``srresnet`` it halves at each fifth.
        """
        share, is_old = epoch / epochs, self.generator == "srresnet"
        if is_old:
            steps = (0.2, 0.4, 0.6, 0.8) if self.loss == "l1" else (0.1, 0.2, 0.4, 0.6)
            return float(0.5 ** bisect.bisect_right(steps, share))
        if self.loss == "l1":
            low = 1e-7 / self.lr
            return low + (1 - low) * (1 + math.cos(math.pi * (4 * share % 1))) / 2
        return float(0.5 ** bisect.bisect_right((0.125, 0.25, 0.5, 0.75), share))

    def open_data(self, source: str | None, split: str, fraction: float = 1.0) -> Samples:
        """Return pairs of small and large pictures."""
        return open_superresolution(source, self.image_size, self.scale, split, fraction)

    def enlarge(self, generator: nn.Module, low: Tensor, device: torch.device) -> Tensor:
        """Return the enlargement (C, H, W) in [-1, 1] of a whole picture (C, h, w) of uint8, on the CPU."""
        with drawing(generator):
            made = generator(low.to(device).float()[None] / 255)[0]
        enlarged: Tensor = (made.clamp(0, 1) * 2 - 1).cpu()
        return enlarged

    def evaluations(self, data: Samples) -> list[Evaluation]:
        """Return one comparison a test set: PSNR and SSIM of whole pictures, distances of their tiles."""
        assert isinstance(data, SuperResolutionSet)
        if data.split == "test":
            return [self._evaluation(data, name, list(chosen)) for name, chosen in data.folders.items()]
        return [self._evaluation(data, "", list(range(min(8, len(data)))), _PATCHES)]

    def _evaluation(
        self, data: SuperResolutionSet, name: str, chosen: list[int], patches: int = 1
    ) -> Evaluation:
        size = self.image_size
        tiles = torch.cat([cut_into_tiles(data.pair(index)[1], size) for index in chosen])
        named = f"{data.name}{f' {name}' if name else ''}, {len(chosen)} pictures in tiles"
        reference = ImageSet(named, tiles, size, 3)

        def draw(generator: nn.Module, count: int, seed: int, device: torch.device) -> Iterator[Drawn]:
            for index in chosen[: max(2, count // patches)]:
                low, high = data.pair(index)
                made = self.enlarge(generator, low, device)
                yield Drawn(cut_into_tiles(made, size), pairs=[(made, normalise(high))])

        return Evaluation(reference, draw, f"x{self.scale}, tiles of {size}", name, border=self.scale)

    def sheet(self, generator: nn.Module, data: Samples, seed: int, device: torch.device) -> Sheet:
        """Return bicubic, true and enlarged crops, each beside an enlarged box of it, one row a picture."""
        assert isinstance(data, SuperResolutionSet)
        given, made = [], []
        for low, high in (_middle(data, index) for index in range(min(_ROWS, len(data)))):
            small = low.float()[None] / 255
            plain = F.interpolate(small, scale_factor=self.scale, mode="bicubic").clamp(0, 1)[0] * 2 - 1
            given.append(torch.stack([boxed(plain), boxed(normalise(high))]))
            made.append(boxed(self.enlarge(generator, low, device))[None])
        return Sheet(torch.stack(made), torch.stack(given), ("bicubic", "truth", "enlarged"))


def _middle(data: SuperResolutionSet, index: int) -> tuple[Tensor, Tensor]:
    """Return the middle of a pair, 96 or fewer pixels high and wide."""
    low, high = data.pair(index)
    scale = high.shape[1] // low.shape[1]
    side = min(96 // scale, low.shape[1], low.shape[2])
    top, left = (low.shape[1] - side) // 2, (low.shape[2] - side) // 2
    small = low[:, top : top + side, left : left + side]
    box = slice(top * scale, (top + side) * scale), slice(left * scale, (left + side) * scale)
    return small, high[:, box[0], box[1]]
