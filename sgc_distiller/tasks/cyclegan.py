"""CycleGAN (Zhu et al., 2017): two generators that translate between two unpaired sets of pictures.

Networks, losses, order of steps, image pools, data and test protocol follow
https://github.com/junyanz/pytorch-CycleGAN-and-pix2pix. ``G_A`` translates A to B and ``D_A`` judges
pictures of B; ``G_B`` and ``D_B`` go the other way. Both generators are one module, so that one schedule
prunes both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sgc_distiller import losses
from sgc_distiller.data import Samples, UnpairedSet, open_unpaired
from sgc_distiller.errors import UserError
from sgc_distiller.module_state import drawing, unwrapped
from sgc_distiller.networks import resnet
from sgc_distiller.networks.initialisation import initialise_normal
from sgc_distiller.networks.patch import PatchDiscriminator
from sgc_distiller.tasks.base import Batch, GANTask, Judgement, Outputs, Phase, Role, Terms
from sgc_distiller.tasks.evaluation import Drawn, Evaluation, Sheet, loaded
from sgc_distiller.tasks.options import linear_decay, scaled, within

__all__ = ["CycleGAN"]

_DIRECTIONS = {"both": ("G_A", "G_B"), "AtoB": ("G_A",), "BtoA": ("G_B",)}

_ROWS = 6  # of a sheet
_INPUTS = 8  # pictures that are translated at once


class CycleGAN(GANTask):
    """CycleGAN with least-squares losses, cycle (10), identity (5) and pools of 50 pictures.

    Args:
        image_size: Height and width in pixels: 256 as in the baseline, or another multiple of 4.
        width: Channels of the narrowest hidden layer of all networks (``ngf`` and ``ndf``).
        blocks: Residual blocks of each generator.
        load_size: Side to which pictures are resized before a crop of ``image_size`` is taken in training; by
            default 286/256 of ``image_size`` as in the baseline.
        pool_size: Earlier pictures that each discriminator may be shown again; 0 for none.
        direction: ``both``; or ``AtoB`` or ``BtoA`` to measure a single generator, as public files hold it.
    """

    name = "cyclegan"
    built_in = "red-blue-digits"
    channels = 3
    batch_size = 1
    epochs = 200
    phases = (Phase("generator"), Phase("discriminator"))
    generator_weights = {  # noqa: RUF012 - read only
        **{"gen_A": 1.0, "gen_B": 1.0, "cyc_A": 10.0, "cyc_B": 10.0},
        **{"idt_A": 5.0, "idt_B": 5.0},
    }
    discriminator_weights = {"dis_A": 1.0, "dis_B": 1.0}  # noqa: RUF012 - read only
    imitates = {"fake_A": "A", "fake_B": "B"}  # noqa: RUF012 - read only

    def __init__(
        self,
        image_size: int = 256,
        width: int = 64,
        blocks: int = 9,
        load_size: int | None = None,
        pool_size: int = 50,
        direction: str = "both",
    ) -> None:
        within("cyclegan", image_size=(image_size, 32), width=(width, 1), blocks=(blocks, 0))
        within("cyclegan", pool_size=(pool_size, 0))
        if image_size % 4:
            raise UserError(f"cyclegan: expected image_size to be a multiple of 4, got {image_size}")
        if load_size is not None:
            within("cyclegan", load_size=(load_size, image_size))
        self.image_size = image_size
        self.width = width
        self.blocks = blocks
        self.load_size = load_size
        if direction not in _DIRECTIONS:
            raise UserError(f"cyclegan: expected direction both, AtoB or BtoA, got {direction!r}")
        self.pool_size = pool_size
        self.direction = direction
        self.pools = {"fake_A": pool_size, "fake_B": pool_size} if pool_size else {}

    @classmethod
    def options_of(cls, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Return the sizes that the generators' weights tell; the picture's size they do not."""
        one = {name.removeprefix("G_A."): item for name, item in state.items() if name.startswith("G_A.")}
        sizes = resnet.generator_sizes(one or state)
        return None if sizes is None else {"width": sizes["ngf"], "blocks": sizes["blocks"]}

    def build(self, role: Role, width: float = 1.0) -> nn.Module:
        """Return both networks of a role, with weights N(0, 0.02) and biases 0.

        Raises:
            UserError: If a discriminator is asked for, to train with, and there is one generator only.
        """
        channels = scaled(self.width, width)
        if role == "discriminator" and self.direction != "both":
            raise UserError(
                "cyclegan: one generator can be measured only; training and pruning need both directions, in "
                "one folder as latest_net_G_A.pth and latest_net_G_B.pth"
            )
        networks: dict[str, nn.Module]
        if role == "generator":
            networks = {
                name: resnet.ResnetGenerator(3, 3, channels, self.blocks)
                for name in _DIRECTIONS[self.direction]
            }
        else:
            networks = {name: PatchDiscriminator(3, channels, norm="instance") for name in ("D_A", "D_B")}
        return nn.ModuleDict(networks).apply(initialise_normal)

    def adapted(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the weights of both generators, or of the one whose direction is named.

        Raises:
            UserError: If they are those of a single one and no direction is.
        """
        if any(name.startswith(("G_A.", "G_B.")) for name in state) or resnet.generator_sizes(state) is None:
            kept = _DIRECTIONS[self.direction]
            return {name: item for name, item in state.items() if name.partition(".")[0] in kept} or state
        if self.direction == "both":
            raise UserError(
                "cyclegan: these are the weights of one generator, and both directions are needed; put them "
                "in one folder as latest_net_G_A.pth and latest_net_G_B.pth and give the folder, or name the "
                "one that this is, -O direction=AtoB or BtoA, to measure it"
            )
        (name,) = _DIRECTIONS[self.direction]
        return {f"{name}.{key}": item for key, item in state.items()}

    def sections(self, generator: nn.Module) -> list[list[nn.Module]]:
        """Return the sections of both generators."""
        return [chain for one in unwrapped(generator).values() for chain in one.sections()]

    def prepare(self, raw: dict[str, Tensor], rng: torch.Generator) -> Batch:
        """Return the pictures of both sets."""
        return {"A": raw["A"], "B": raw["B"]}

    def generate(self, generator: nn.Module, batch: Batch) -> Outputs:
        """Return the translations of its directions: ``fake_B`` of A and ``fake_A`` of B."""
        networks = unwrapped(generator)
        sides = {"G_A": ("fake_B", "A"), "G_B": ("fake_A", "B")}
        made = {name: sides[name] for name in _DIRECTIONS[self.direction]}
        return {fake: networks[name](batch[real]) for name, (fake, real) in made.items()}

    def judge_real(self, discriminator: nn.Module, batch: Batch) -> Judgement:
        """Return what ``D_A`` says of B and ``D_B`` of A, patch by patch."""
        return _judge(discriminator, batch["B"], batch["A"])

    def judge_fake(self, discriminator: nn.Module, batch: Batch, outputs: Outputs) -> Judgement:
        """Return what ``D_A`` says of ``fake_B`` and ``D_B`` of ``fake_A``, patch by patch."""
        return _judge(discriminator, outputs["fake_B"], outputs["fake_A"])

    def generator_terms(self, generator: nn.Module, batch: Batch, outputs: Outputs, fake: Judgement) -> Terms:
        """Return least-squares (``gen``), cycle (``cyc``) and identity (``idt``) terms of both directions."""
        both = unwrapped(generator)
        return {
            "gen_A": losses.least_squares(fake["A"], 1.0),
            "gen_B": losses.least_squares(fake["B"], 1.0),
            "cyc_A": losses.mean_absolute(both["G_B"](outputs["fake_B"]), batch["A"]),
            "cyc_B": losses.mean_absolute(both["G_A"](outputs["fake_A"]), batch["B"]),
            "idt_A": losses.mean_absolute(both["G_A"](batch["B"]), batch["B"]),
            "idt_B": losses.mean_absolute(both["G_B"](batch["A"]), batch["A"]),
        }

    def discriminator_terms(
        self, discriminator: nn.Module, batch: Batch, outputs: Outputs, real: Judgement, fake: Judgement
    ) -> Terms:
        """Return ``dis_A`` and ``dis_B``, half the sum of the squared distances from their labels."""
        return {
            f"dis_{side}": 0.5
            * (losses.least_squares(real[side], 1.0) + losses.least_squares(fake[side], 0.0))
            for side in ("A", "B")
        }

    def lr_factor(self, epoch: int, epochs: int) -> float:
        """Return 1 for the first half of the run, then a linear fall to nearly 0."""
        return linear_decay(epoch, epochs)

    def output_layers(self, generator: nn.Module) -> list[str]:
        """Return the names of the last convolution's weight of each generator."""
        weights = {
            path: [name for name, item in network.named_parameters() if item.dim() == 4]
            for path, network in unwrapped(generator).items()
        }
        prefix = "module." if hasattr(generator, "module") else ""
        return [f"{prefix}{path}.{found[-1]}" for path, found in weights.items()]

    def open_data(self, source: str | None, split: str, fraction: float = 1.0) -> Samples:
        """Return the pictures of both sets, unpaired."""
        return open_unpaired(source, self.image_size, split, fraction, self.load_size)

    def evaluations(self, data: Samples) -> list[Evaluation]:
        """Return one comparison a direction: translated test pictures with the real ones of the other set."""
        assert isinstance(data, UnpairedSet)
        sides = {"G_A": ("A", "B"), "G_B": ("B", "A")}
        return [self._evaluation(data, *sides[name], name) for name in _DIRECTIONS[self.direction]]

    def _evaluation(self, data: UnpairedSet, of: str, to: str, name: str) -> Evaluation:
        inputs = data.side(of)

        def draw(generator: nn.Module, count: int, seed: int, device: torch.device) -> Iterator[Drawn]:
            end = min(count, len(inputs))
            for first in range(0, end, _INPUTS):
                batch = loaded(inputs, range(first, min(first + _INPUTS, end)), device)
                with drawing(generator):
                    yield Drawn(unwrapped(generator)[name](batch["real"]))

        return Evaluation(data.side(to), draw, f"{of} to {to}, each picture once", title=f"{of} to {to}")

    def sheet(self, generator: nn.Module, data: Samples, seed: int, device: torch.device) -> Sheet:
        """Return pictures of A and B beside their translations, one of each set in a row."""
        assert isinstance(data, UnpairedSet)
        rows = range(min(_ROWS, len(data.side("A")), len(data.side("B"))))
        left, right = (loaded(data.side(side), rows, device)["real"] for side in ("A", "B"))
        with drawing(generator):
            outputs = self.generate(generator, {"A": left, "B": right})
        made = torch.stack([outputs["fake_B"], outputs["fake_A"]], 1)
        return Sheet(made, torch.stack([left, right], 1), ("A", "B", "A to B", "B to A"))


def _judge(discriminator: nn.Module, of_b: Tensor, of_a: Tensor) -> Judgement:
    """Return the scores under ``A`` (what ``D_A`` says of B) and ``B``, and the activations of both."""
    both = unwrapped(discriminator)
    score_a, features_a = both["D_A"].judge(of_b)
    score_b, features_b = both["D_B"].judge(of_a)
    return {"A": score_a, "B": score_b, "features": [*features_a, *features_b]}
