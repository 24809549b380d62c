"""StarGAN (Choi et al., 2018): one generator that gives a face any of several attributes.

Losses, order of steps, data and test protocol follow https://github.com/yunjey/stargan; its checkpoints
(``200000-G.ckpt``, ``200000-D.ckpt``) load as they are. The networks are never put into evaluation mode:
their instance norms would then use running statistics, which changes the pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sgc_distiller import losses
from sgc_distiller.data import AttributeSet, Samples, attribute_names, open_attributes
from sgc_distiller.errors import UserError
from sgc_distiller.module_state import deployed, drawing, to_device, unwrapped
from sgc_distiller.networks import stargan as networks
from sgc_distiller.tasks.base import Batch, GANTask, Judgement, Outputs, Phase, Role, Terms
from sgc_distiller.tasks.evaluation import Drawn, Evaluation, Sheet, loaded
from sgc_distiller.tasks.options import names, scaled, within

__all__ = ["StarGAN"]

_EXCLUSIVE = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair", "Red", "Green", "Blue")
_INPUTS = 16  # pictures that are translated at once
_ROWS = 6  # of a sheet


class StarGAN(GANTask):
    """StarGAN with the Wasserstein loss, gradient penalty and classification loss of its baseline.

    Args:
        image_size: Height and width in pixels: 128 as in the baseline, or another multiple of 4.
        width: Channels of the narrowest hidden layer of both networks (``conv_dim``).
        blocks: Residual blocks of the generator.
        layers: Layers of the discriminator, each of which halves the picture; fewer for small pictures.
        attributes: Names of the attributes, in the order of the label's numbers; a list, or a text with
            commas. Where none are named: the baseline's five where the data have them, else all.
        exclusive: Those of which a picture has one at a time; where none are named, the hair colours.
        n_critic: Updates of the discriminator for each of the generator.
        test_last: Use this many last lines of the attribute file as the test set; 0 for the baseline's split,
            a shuffled one.
        lr_decay: ``upstream`` is what the baseline's code does (a fall by 0.1 %), ``linear`` what it means
            (to 0 over the second half).
    """

    name = "stargan"
    built_in = "coloured-digits"
    channels = 3
    batch_size = 16
    epochs = 16
    lr = 1e-4
    generator_weights = {"gen": 1.0, "cla": 1.0, "rec": 10.0}  # noqa: RUF012 - read only
    discriminator_weights = {"dis": 1.0, "cla_real": 1.0, "gp": 10.0}  # noqa: RUF012 - read only
    own_term_names = frozenset({"cla_real", "gp"})
    data_options = frozenset({"attributes"})

    def __init__(
        self,
        image_size: int = 128,
        width: int = 64,
        blocks: int = 6,
        layers: int | None = None,
        attributes: Sequence[str] | str = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Male", "Young"),
        exclusive: Sequence[str] | str | None = None,
        n_critic: int = 5,
        test_last: int = 0,
        lr_decay: str = "upstream",
    ) -> None:
        within("stargan", image_size=(image_size, 16), width=(width, 1), blocks=(blocks, 0))
        within("stargan", n_critic=(n_critic, 1), test_last=(test_last, 0))
        if layers is not None:
            within("stargan", layers=(layers, 1))
        if image_size % 4:
            raise UserError(f"stargan: expected image_size to be a multiple of 4, got {image_size}")
        if lr_decay not in ("upstream", "linear"):
            raise UserError(f"stargan: expected lr_decay 'upstream' or 'linear', got {lr_decay!r}")
        self.image_size = image_size
        self.width = width
        self.blocks = blocks
        self.layers = layers
        self.attributes = names(attributes)
        if not self.attributes:
            raise UserError("stargan: expected the name of at least one attribute, got none")
        wanted = [name for name in _EXCLUSIVE if name in self.attributes] if exclusive is None else exclusive
        self.exclusive = None if exclusive is None else names(exclusive)
        self._one_at_a_time = names(wanted)
        unknown = [name for name in self._one_at_a_time if name not in self.attributes]
        if unknown:
            raise UserError(
                f"stargan: expected 'exclusive' to name attributes ({', '.join(self.attributes)}), "
                f"got {unknown[0]!r}"
            )
        self.n_critic = n_critic
        self.test_last = test_last
        self.lr_decay = lr_decay
        self.phases = (Phase("discriminator", n_critic), Phase("generator"))

    @classmethod
    def options_of(cls, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Return the sizes that a generator's weights tell; not the attributes' names."""
        sizes = networks.generator_sizes(state)
        if sizes is None:
            return None
        known: dict[str, Any] = {"width": sizes["conv_dim"], "blocks": sizes["repeat_num"]}
        usual = cls.usual_options()["attributes"]
        if sizes["c_dim"] == len(usual):  # of another number the data tell the names
            known["attributes"] = list(usual)
        return known

    @classmethod
    def options_for(cls, source: str | None) -> dict[str, Any]:
        """Return the names of a data set's attributes: the baseline's five, else all."""
        present = attribute_names(source)
        usual = [name for name in cls.usual_options()["attributes"] if name in present]
        return {"attributes": usual if len(usual) == 5 else present}

    def build(self, role: Role, width: float = 1.0) -> nn.Module:
        """Return a network with PyTorch's own initialisation, as the baseline has it."""
        channels, count = scaled(self.width, width), len(self.attributes)
        if role == "generator":
            return networks.Generator(channels, count, self.blocks)
        layers = self.layers or min(6, self.image_size.bit_length() - 2)
        return networks.Discriminator(self.image_size, channels, count, layers)

    def prepare(self, raw: dict[str, Tensor], rng: torch.Generator) -> Batch:
        """Return pictures, their labels, target labels (those of another picture) and the penalty's alpha."""
        real, labels = raw["real"], raw["labels"]
        order = to_device(torch.randperm(len(real), generator=rng), real.device)
        alpha = to_device(torch.rand(len(real), 1, 1, 1, generator=rng), real.device)
        return {"real": real, "labels": labels, "targets": labels[order], "alpha": alpha}

    def deploy(self, generator: nn.Module) -> nn.Module:
        """Return a copy whose norms use each picture's own statistics, as the baseline does."""
        return deployed(generator, own_statistics=nn.InstanceNorm2d)

    def generate(self, generator: nn.Module, batch: Batch) -> Outputs:
        """Return the pictures with their target labels under ``fake``."""
        return {"fake": generator(batch["real"], batch["targets"])}

    def judge_real(self, discriminator: nn.Module, batch: Batch) -> Judgement:
        """Return how real the real pictures look, patch by patch, and the logits of their attributes."""
        return _judge(discriminator, batch["real"])

    def judge_fake(self, discriminator: nn.Module, batch: Batch, outputs: Outputs) -> Judgement:
        """Return how real the translations look, patch by patch, and the logits of their attributes."""
        return _judge(discriminator, outputs["fake"])

    def as_real(self, batch: Batch, outputs: Outputs) -> Batch:
        """Return a batch of translations as real pictures; those of the data stay under ``data``."""
        return {**super().as_real(batch, outputs), "data": batch["real"]}

    def generator_terms(self, generator: nn.Module, batch: Batch, outputs: Outputs, fake: Judgement) -> Terms:
        """Return ``gen`` (Wasserstein), ``cla`` (attributes) and ``rec`` (L1 after translating back)."""
        back = generator(outputs["fake"], batch["labels"])
        return {
            "gen": -losses.sample_means(fake["score"]),
            "cla": losses.attribute_cross_entropy(fake["logits"], batch["targets"]),
            "rec": losses.mean_absolute(back, batch["real"]),
        }

    def discriminator_terms(
        self, discriminator: nn.Module, batch: Batch, outputs: Outputs, real: Judgement, fake: Judgement
    ) -> Terms:
        """Return ``dis``, the Wasserstein distance D(G(x)) - D(x)."""
        return {"dis": losses.sample_means(fake["score"]) - losses.sample_means(real["score"])}

    def own_terms(self, discriminator: nn.Module, batch: Batch, outputs: Outputs, real: Judgement) -> Terms:
        """Return ``cla_real`` (attributes of the real pictures) and ``gp`` (of the real/fake score only).

        Attributes are learned from the data, whatever else stands in the place of real pictures.
        """
        if "data" in batch:
            real = _judge(discriminator, batch["data"])
        penalty = losses.gradient_penalty(
            lambda pictures: unwrapped(discriminator).judge(pictures)[0],
            batch["real"],
            outputs["fake"],
            batch["alpha"],
        )
        return {
            "cla_real": losses.attribute_cross_entropy(real["logits"], batch["labels"]),
            "gp": penalty,
        }

    def lr_factor(self, epoch: int, epochs: int) -> float:
        """Return the factor of `lr_decay`, over the second half of the run."""
        late = max(0.0, (epoch - epochs / 2) / (epochs / 2))
        return 1.0 - (0.001 if self.lr_decay == "upstream" else 1.0) * late

    def open_data(self, source: str | None, split: str, fraction: float = 1.0) -> Samples:
        """Return pictures with the attributes' labels."""
        return open_attributes(
            source, self.image_size, self.attributes, split, fraction, test_last=self.test_last
        )

    def translations(self, labels: Tensor) -> Tensor:
        """Return the labels of the test's translations, one an attribute, shape (B, T, attributes).

        An exclusive attribute is set and its fellows are cleared; any other one is flipped.
        """
        group = [self.attributes.index(name) for name in self._one_at_a_time]
        wanted = labels.unsqueeze(1).repeat(1, len(self.attributes), 1)
        for index in range(len(self.attributes)):
            if index in group:
                wanted[:, index, group] = 0.0
                wanted[:, index, index] = 1.0
            else:
                wanted[:, index, index] = 1.0 - wanted[:, index, index]
        return wanted

    def translate(self, generator: nn.Module, real: Tensor, wanted: Tensor) -> Tensor:
        """Return translations (B, T, C, H, W) of pictures (B, C, H, W) to labels (B, T, attributes)."""
        with drawing(generator):
            made = [generator(real, wanted[:, index]) for index in range(wanted.shape[1])]
        return torch.stack(made, 1)

    def evaluations(self, data: Samples) -> list[Evaluation]:
        """Return the comparison of all translations of the test pictures with the test pictures."""
        assert isinstance(data, AttributeSet)

        def draw(generator: nn.Module, count: int, seed: int, device: torch.device) -> Iterator[Drawn]:
            inputs = min(len(data), max(1, count // len(self.attributes)))
            for first in range(0, inputs, _INPUTS):
                batch = loaded(data, range(first, min(first + _INPUTS, inputs)), device)
                wanted = self.translations(batch["labels"])
                made = self.translate(generator, batch["real"], wanted)
                flat = made.flatten(0, 1)
                labels = batch["labels"].repeat_interleave(made.shape[1], 0)  # (B * T, attributes)
                back = self.translate(generator, flat, labels.unsqueeze(1)).squeeze(1)
                lost = losses.mean_absolute(back, batch["real"].repeat_interleave(made.shape[1], 0))
                yield Drawn(flat, translations=made, wanted=wanted, values={"reconstruction L1": lost})

        protocol = f"{len(self.attributes)} translations of each of the first pictures"
        return [Evaluation(data.images, draw, protocol, attributes=tuple(self.attributes))]

    def sheet(self, generator: nn.Module, data: Samples, seed: int, device: torch.device) -> Sheet:
        """Return the first pictures and their translations, one row a picture."""
        batch = loaded(data, range(min(_ROWS, len(data))), device)
        made = self.translate(generator, batch["real"], self.translations(batch["labels"]))
        return Sheet(made, batch["real"].unsqueeze(1), ("input", *self.attributes))


def _judge(discriminator: nn.Module, pictures: Tensor) -> Judgement:
    score, logits, features = unwrapped(discriminator).judge(pictures)
    return {"score": score, "logits": logits, "features": features}
