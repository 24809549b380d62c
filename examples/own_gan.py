"""A GAN that this package has never seen; ``python own_gan.py [FOLDER]`` trains, prunes and compares it."""
# ruff: noqa: D102 - what each method is for is said in GANTask

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from sgc_distiller.data import ImageSet, Samples, open_images
from sgc_distiller.errors import UserError
from sgc_distiller.experiment import compress, resolve, train
from sgc_distiller.module_state import drawing
from sgc_distiller.seeding import generator_for
from sgc_distiller.tasks.base import Batch, GANTask, Judgement, Outputs, Role, Terms
from sgc_distiller.tasks.evaluation import Sheet
from sgc_distiller.terminal import Terminal


class Digits(ImageSet):
    """Pictures that come with their class."""

    def load(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> dict[str, Tensor]:
        return {"real": self.pixels(indices), "digit": self.labels[list(indices)]}


class OwnGAN(GANTask):
    """Hinge loss, a projection of the class (arXiv:1802.05637), shuffled pixels (arXiv:1609.05158)."""

    name = "own_gan.OwnGAN"  # checkpoints keep it, and by its dotted path the class is found again
    channels, epochs, lr, betas = 1, 24, 1e-3, (0.0, 0.9)

    def __init__(self, image_size: int = 16, width: int = 16, noise: int = 32) -> None:
        self.image_size, self.width, self.noise = image_size, width, noise

    def build(self, role: Role, width: float = 1.0) -> nn.Module:
        w, side = round(self.width * width), self.image_size // 4
        if role == "discriminator":
            a, b, c = (nn.Conv2d(i, o, 4, 2, 1) for i, o in ((1, w), (w, 2 * w), (2 * w, 4 * w)))
            bend, pool = nn.LeakyReLU(0.2), nn.AdaptiveAvgPool2d(1)
            return nn.Sequential(a, bend, b, bend, c, bend, pool, nn.Flatten(), nn.Linear(4 * w, 10))
        layers = [nn.Linear(self.noise + 10, 4 * w * side**2), nn.Unflatten(1, (4 * w, side, side))]
        for i in (4 * w, 2 * w):
            layers += nn.Conv2d(i, 2 * i, 3, padding=1), nn.PixelShuffle(2), nn.BatchNorm2d(i // 2), nn.ReLU()
        return nn.Sequential(*layers, nn.Conv2d(w, 1, 3, padding=1), nn.Tanh())

    def prepare(self, raw: dict[str, Tensor], rng: torch.Generator) -> Batch:
        noise = torch.randn(len(raw["digit"]), self.noise, generator=rng).to(raw["digit"].device)
        return {**raw, "z": torch.cat([noise, nn.functional.one_hot(raw["digit"], 10)], 1)}

    def generate(self, generator: nn.Module, batch: Batch) -> Outputs:
        return {"fake": generator(batch["z"])}

    def judge_real(self, discriminator: nn.Module, batch: Batch) -> Judgement:
        return self.judge_fake(discriminator, batch, {"fake": batch["real"]})

    def judge_fake(self, discriminator: nn.Module, batch: Batch, outputs: Outputs) -> Judgement:
        hidden = discriminator[:-1](outputs["fake"])
        score = discriminator[-1](hidden).gather(1, batch["digit"][:, None])  # out of one for each class
        return {"score": score[:, 0], "features": [hidden]}

    def generator_terms(self, generator: nn.Module, batch: Batch, outputs: Outputs, fake: Judgement) -> Terms:
        return {"gen": -fake["score"]}

    def discriminator_terms(
        self, discriminator: nn.Module, batch: Batch, outputs: Outputs, real: Judgement, fake: Judgement
    ) -> Terms:
        return {"dis": (1 - real["score"]).clamp(min=0) + (1 + fake["score"]).clamp(min=0)}

    def open_data(self, source: str | None, split: str, fraction: float = 1.0) -> Samples:
        data = open_images(source, self.image_size, 1, split, fraction)
        if data.labels is None:
            raise UserError(f"{data.name}: expected pictures with classes; take 'digits' or MNIST's files")
        return Digits(data.name, data.pixels(range(len(data))), self.image_size, 1, data.labels)

    def sample(self, generator: nn.Module, count: int, seed: int, device: torch.device) -> Iterator[Tensor]:
        for first in range(0, count, 100):
            rng, digits = generator_for(seed, "sample", first), torch.arange(100, device=device) % 10
            batch = self.prepare({"digit": digits}, rng)
            with drawing(generator):
                yield self.generate(generator, batch)["fake"][: count - first]

    def sheet(self, generator: nn.Module, data: Samples, seed: int, device: torch.device) -> Sheet:
        return Sheet(torch.cat(list(self.sample(generator, 40, seed, device))).unflatten(0, (4, 10)))


def main(folder: str = "logs/own_gan", **more: object) -> None:
    """Train, compress and compare; ``report.html`` in the second run's folder shows the pictures."""
    asked = {"task": OwnGAN.name, "extractor": "digits", **more}
    dense = train(resolve({**asked, "folder": f"{folder}/dense"}), Terminal())
    asked |= {"schedule": str(Path(__file__).with_suffix(".yaml")), "weights_from": f"{folder}/dense"}
    sparse = compress(resolve({**asked, "folder": f"{folder}/sparse"}), Terminal())
    Terminal().comparison([[{"label": "dense", **dense}, {"label": "sparse", **sparse}]])


if __name__ == "__main__":
    main(*sys.argv[1:])
