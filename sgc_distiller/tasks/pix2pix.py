"""pix2pix (Isola et al., 2017): pictures translated with a U-Net that learns from aligned pairs.

Networks, losses, order of steps, data and test protocol follow
https://github.com/junyanz/pytorch-CycleGAN-and-pix2pix; its checkpoints (``latest_net_G.pth``) load as they
are. Pictures are always drawn in training mode, test included: norms use each picture's own statistics and
dropout stays on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sgc_distiller import losses
from sgc_distiller.data import PairSet, Samples, open_pairs
from sgc_distiller.errors import UserError
from sgc_distiller.module_state import deployed, drawing, same_randomness
from sgc_distiller.networks import unet
from sgc_distiller.networks.initialisation import initialise_normal
from sgc_distiller.networks.patch import PatchDiscriminator
from sgc_distiller.seeding import seed_for
from sgc_distiller.tasks.base import Batch, GANTask, Judgement, Outputs, Role, Terms, judged
from sgc_distiller.tasks.evaluation import Drawn, Evaluation, Sheet, loaded
from sgc_distiller.tasks.options import linear_decay, scaled, within

__all__ = ["Pix2Pix"]

_ROWS = 8  # of a sheet


class Pix2Pix(GANTask):
    """pix2pix with the cross-entropy of patches and an L1 term of weight 100.

    Args:
        image_size: Height and width in pixels: 256 as in the baseline, or another multiple of 32. The U-Net
            halves the picture until it is one pixel wide, but at most eight times.
        width: Channels of the narrowest hidden layer of both networks (``ngf`` and ``ndf``).
        direction: ``AtoB`` translates the left half of each pair to the right one, ``BtoA`` the other way.
        load_size: Side to which pictures are resized before a crop of ``image_size`` is taken in training; by
            default 286/256 of ``image_size`` as in the baseline.
        dropout: Whether the U-Net's inner blocks drop half of their units.
    """

    name = "pix2pix"
    built_in = "digit-outlines"
    channels = 3
    batch_size = 1
    epochs = 200
    generator_weights = {"gen": 1.0, "l1": 100.0}  # noqa: RUF012 - read only
    imitates = {"fake": "B"}  # noqa: RUF012 - read only

    def __init__(
        self,
        image_size: int = 256,
        width: int = 64,
        direction: str = "AtoB",
        load_size: int | None = None,
        dropout: bool = True,
    ) -> None:
        within("pix2pix", image_size=(image_size, 32), width=(width, 1))
        if image_size % 32:
            raise UserError(f"pix2pix: expected image_size to be a multiple of 32, got {image_size}")
        if direction not in ("AtoB", "BtoA"):
            raise UserError(f"pix2pix: expected direction 'AtoB' or 'BtoA', got {direction!r}")
        if not isinstance(dropout, bool):
            raise UserError(f"pix2pix: expected dropout to be true or false, got {dropout!r}")
        if load_size is not None:
            within("pix2pix", load_size=(load_size, image_size))
        self.image_size = image_size
        self.width = width
        self.direction = direction
        self.load_size = load_size
        self.dropout = dropout

    @classmethod
    def options_of(cls, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Return the sizes that a generator's weights tell."""
        sizes = unet.generator_sizes(state)
        if sizes is None:
            return None
        return {"width": sizes["ngf"], "image_size": 2 ** sizes["num_downs"]}

    def build(self, role: Role, width: float = 1.0) -> nn.Module:
        """Return a network with weights N(0, 0.02), norms' weights N(1, 0.02) and biases 0."""
        channels = scaled(self.width, width)
        network: nn.Module
        if role == "generator":
            halvings = (self.image_size & -self.image_size).bit_length() - 1
            network = unet.UNetGenerator(3, 3, channels, min(8, halvings), self.dropout)
        else:
            network = PatchDiscriminator(6, channels)
        return network.apply(initialise_normal)

    def prepare(self, raw: dict[str, Tensor], rng: torch.Generator) -> Batch:
        """Return the pairs: inputs under ``A``, truths under ``B``."""
        return {"A": raw["A"], "B": raw["B"]}

    def deploy(self, generator: nn.Module) -> nn.Module:
        """Return a copy without dropout whose norms use each picture's own statistics, as at batch size 1."""
        return deployed(generator, own_statistics=nn.BatchNorm2d)

    def generate(self, generator: nn.Module, batch: Batch) -> Outputs:
        """Return the translations under ``fake``."""
        return {"fake": generator(batch["A"])}

    def judge_real(self, discriminator: nn.Module, batch: Batch) -> Judgement:
        """Return the logits of the patches of true pairs, and the hidden activations."""
        return judged(discriminator, torch.cat([batch["A"], batch["B"]], 1))

    def judge_fake(self, discriminator: nn.Module, batch: Batch, outputs: Outputs) -> Judgement:
        """Return the logits of the patches of inputs with their translations, and the hidden activations."""
        return judged(discriminator, torch.cat([batch["A"], outputs["fake"]], 1))

    def generator_terms(self, generator: nn.Module, batch: Batch, outputs: Outputs, fake: Judgement) -> Terms:
        """Return ``gen``, the cross-entropy against "real", and ``l1``, the distance to the truth."""
        return {
            "gen": losses.cross_entropy_with_logits(fake["score"], 1.0),
            "l1": losses.mean_absolute(outputs["fake"], batch["B"]),
        }

    def discriminator_terms(
        self, discriminator: nn.Module, batch: Batch, outputs: Outputs, real: Judgement, fake: Judgement
    ) -> Terms:
        """Return ``dis``, half the sum of the cross-entropies of true and generated pairs."""
        fake_loss = losses.cross_entropy_with_logits(fake["score"], 0.0)
        return {"dis": 0.5 * (fake_loss + losses.cross_entropy_with_logits(real["score"], 1.0))}

    def lr_factor(self, epoch: int, epochs: int) -> float:
        """Return 1 for the first half of the run, then a linear fall to nearly 0."""
        return linear_decay(epoch, epochs)

    def open_data(self, source: str | None, split: str, fraction: float = 1.0) -> Samples:
        """Return aligned pairs, already turned round for ``BtoA``."""
        return open_pairs(source, self.image_size, split, fraction, self.direction, self.load_size)

    def translate(self, generator: nn.Module, inputs: Tensor, seed: int, first: int) -> Tensor:
        """Return translations one by one, each with the dropout masks of its own number."""
        made = []
        for number, picture in enumerate(inputs, first):
            with drawing(generator), same_randomness(seed_for(seed, "dropout", number), inputs.device):
                made.append(generator(picture[None]))
        return torch.cat(made)

    def evaluations(self, data: Samples) -> list[Evaluation]:
        """Return the comparison of translated test inputs with the true pictures, as sets and one by one."""
        assert isinstance(data, PairSet)

        def draw(generator: nn.Module, count: int, seed: int, device: torch.device) -> Iterator[Drawn]:
            for index in range(min(count, len(data))):
                batch = loaded(data, [index], device)
                made = self.translate(generator, batch["A"], seed, index)
                yield Drawn(made, pairs=[(made[0], batch["B"][0])])

        return [Evaluation(data.targets, draw, f"{self.direction}, train mode, batch 1")]

    def sheet(self, generator: nn.Module, data: Samples, seed: int, device: torch.device) -> Sheet:
        """Return input, truth and translation, one row a pair."""
        batch = loaded(data, range(min(_ROWS, len(data))), device)
        made = self.translate(generator, batch["A"], seed, 0)
        given = torch.stack([batch["A"], batch["B"]], 1)
        return Sheet(made.unsqueeze(1), given, ("input", "truth", "translation"))
