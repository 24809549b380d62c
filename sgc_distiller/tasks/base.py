"""The contract between a GAN and everything that trains, prunes or measures it."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from sgc_distiller.data import ImageSet, Samples, open_images
from sgc_distiller.errors import UserError
from sgc_distiller.module_state import deployed, unwrapped
from sgc_distiller.names import prunable_names
from sgc_distiller.tasks.evaluation import Drawn, Evaluation, Sheet

__all__ = [
    "Batch",
    "GANTask",
    "Judgement",
    "Outputs",
    "Phase",
    "Role",
    "Terms",
    "judged",
]

Role = Literal["generator", "discriminator"]
Batch = dict[str, Any]
"""What one step works on: real pictures, noise, labels. All random numbers are already drawn."""
Outputs = dict[str, Tensor]
"""What a generator makes of a batch; ``fake`` holds the pictures that the discriminator judges."""
Judgement = dict[str, Any]
"""What a discriminator says of pictures: ``score`` and, where the task offers them, ``features``."""
Terms = dict[str, Tensor]
"""Loss terms by name, one value a sample, shape (B,); the mean is the baseline's scalar."""


@dataclass(frozen=True)
class Phase:
    """One part of a training step: whose weights move, and how often before the next part.

    Attributes:
        role: The network that is trained.
        repeats: Batches that this phase consumes in one step (StarGAN's ``n_critic`` is 5).
    """

    role: Role
    repeats: int = 1


class GANTask(ABC):
    """A GAN: its networks, losses, data and test protocol. Subclass it to bring your own.

    Five methods are all that training and supervision ask for: `build`, `prepare`, `generate`,
    `generator_terms` and `discriminator_terms`. What the command line wants beside them (`sample` or
    `evaluations`, `features`, ...) says so when it is missing. docs/add_a_task.md goes through an example.

    Life of one training step, in the order of `phases`:

    1. ``batch = task.prepare(raw, rng)``
    2. discriminator phase: ``outputs = task.generate(G, batch)``, then `judge_real` and `judge_fake` on
       detached outputs, `discriminator_terms` and `own_terms`;
    3. generator phase: `judge_fake` on outputs with their graph, and `generator_terms`.

    A supervised step calls the same methods once more with the teacher in the generator's place, so a
    task that trains plainly can be supervised as it is.
    """

    name: ClassVar[str]
    #: What the data set that comes with the package is called, for those who name none.
    built_in: ClassVar[str] = "digits"
    #: Height and width of the pictures in pixels, and their number of channels.
    image_size: int
    channels: int
    phases: tuple[Phase, ...] = (Phase("discriminator"), Phase("generator"))
    #: The baseline's batch size, passes over the data, learning rate and Adam's betas.
    batch_size: int = 64
    epochs: int = 25
    lr: float = 2e-4
    betas: tuple[float, float] = (0.5, 0.999)
    #: Weights of the generator's loss terms; their names are the terms' names.
    generator_weights: dict[str, float] = {"gen": 1.0}  # noqa: RUF012 - read only
    #: Weights of the discriminator's loss terms, those of `own_terms` among them.
    discriminator_weights: dict[str, float] = {"dis": 1.0}  # noqa: RUF012 - read only
    #: Which generated pictures (keys of `Outputs`) imitate which real ones (keys of `Batch`).
    imitates: dict[str, str] = {"fake": "real"}  # noqa: RUF012 - read only
    #: Names of the terms that `own_terms` returns.
    own_term_names: frozenset[str] = frozenset()
    #: Outputs that the discriminator sees through a history of earlier ones, and how many it keeps of each.
    pools: dict[str, int] = {}  # noqa: RUF012 - read only
    #: Whether a discriminator takes part; without one `generator_terms` is given an empty judgement.
    judges: bool = True
    #: Options that `options_for` reads from the data.
    data_options: frozenset[str] = frozenset()
    #: What a run should say aloud about this task's settings.
    note: str = ""

    @classmethod
    def usual_options(cls) -> dict[str, Any]:
        """Return what `__init__` takes where nobody says otherwise: the baseline's sizes."""
        parameters = inspect.signature(cls).parameters.values()
        return {item.name: item.default for item in parameters if item.default is not item.empty}

    @classmethod
    def options_for(cls, source: str | None) -> dict[str, Any]:
        """Return options that a data set tells, such as the names of its attributes; none by default."""
        return {}

    @classmethod
    def options_of(cls, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Return the sizes that a generator's weights tell, or ``None`` if they are another task's."""
        return None

    def adapted(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return a generator's weights as `build` names them; for files that hold a part of it."""
        return state

    @property
    def options(self) -> dict[str, Any]:
        """What `__init__` was called with, read from attributes of the same names; checkpoints keep it."""
        names = [name for name in inspect.signature(type(self)).parameters if name not in ("args", "kwargs")]
        return {name: getattr(self, name) for name in names if hasattr(self, name)}

    @property
    def batches_per_step(self) -> int:
        """Batches that one step consumes."""
        return 1 + sum(phase.repeats - 1 for phase in self.phases)

    @abstractmethod
    def build(self, role: Role, width: float = 1.0) -> nn.Module:
        """Return a network with the baseline's initialisation.

        Args:
            role: Which of the two.
            width: Multiplies the number of channels of every hidden layer.
        """

    @abstractmethod
    def prepare(self, raw: dict[str, Tensor], rng: torch.Generator) -> Batch:
        """Return a batch that holds all that its step needs, noise included.

        Args:
            raw: What the data set yields: real pictures in [-1, 1] under ``real`` (or the names that the
                task's own data uses), shape (B, C, H, W), and labels if any.
            rng: CPU generator of this step; drawing from anything else breaks resuming.
        """

    @abstractmethod
    def generate(self, generator: nn.Module, batch: Batch) -> Outputs:
        """Return the generator's pictures, by default under ``fake``, shape (B, C, H, W)."""

    def judge_real(self, discriminator: nn.Module, batch: Batch) -> Judgement:
        """Return the discriminator's judgement of the batch's real pictures."""
        return {"score": discriminator(batch["real"])}

    def judge_fake(self, discriminator: nn.Module, batch: Batch, outputs: Outputs) -> Judgement:
        """Return the discriminator's judgement of the generator's pictures."""
        return {"score": discriminator(outputs["fake"])}

    def as_real(self, batch: Batch, outputs: Outputs) -> Batch:
        """Return a batch in which generated pictures stand in the place of those that they imitate."""
        return {**batch, **{real: outputs[fake] for fake, real in self.imitates.items()}}

    @abstractmethod
    def generator_terms(self, generator: nn.Module, batch: Batch, outputs: Outputs, fake: Judgement) -> Terms:
        """Return the generator's loss terms, each of shape (B,)."""

    @abstractmethod
    def discriminator_terms(
        self, discriminator: nn.Module, batch: Batch, outputs: Outputs, real: Judgement, fake: Judgement
    ) -> Terms:
        """Return the discriminator's loss terms, each of shape (B,)."""

    def own_terms(self, discriminator: nn.Module, batch: Batch, outputs: Outputs, real: Judgement) -> Terms:
        """Return the discriminator's terms that no generator can learn from, each of shape (B,).

        A gradient penalty and the classification of real pictures belong here. They are part of the
        discriminator's loss, and a supervised generator's step leaves them out: their gradient with respect
        to the generated pictures is zero.
        """
        return {}

    def optimizer(self, role: Role, network: nn.Module, lr: float | None = None) -> torch.optim.Optimizer:
        """Return the baseline's optimiser; ``lr`` replaces its learning rate."""
        return torch.optim.Adam(network.parameters(), lr=self.lr if lr is None else lr, betas=self.betas)

    def lr_factor(self, epoch: int, epochs: int) -> float:
        """Return what the learning rates are multiplied with in an epoch, counted from 0, of ``epochs``."""
        return 1.0

    def open_data(self, source: str | None, split: str, fraction: float = 1.0) -> Samples:
        """Return the pictures of a split, ``train`` or ``test``; by default single pictures of a folder.

        Args:
            source: A folder, or the name of a data set that comes with the package (`built_in`).
            split: ``train`` or ``test``.
            fraction: Share of the pictures to use, in (0, 1].

        Raises:
            UserError: If there are no such pictures.
        """
        return open_images(source, self.image_size, self.channels, split, fraction)

    def sample(self, generator: nn.Module, count: int, seed: int, device: torch.device) -> Iterator[Tensor]:
        """Yield ``count`` pictures from noise by the test protocol, without touching the network.

        Pictures are in [-1, 1], shape (B, C, H, W), and depend on ``seed`` and weights alone.

        Raises:
            UserError: If the task does not say how.
        """
        raise UserError(
            f"task {self.name!r} cannot be measured or drawn: implement sample(generator, count, seed, "
            "device) for a GAN that draws from noise, or evaluations() and sheet() for one that translates "
            "pictures; docs/add_a_task.md shows both"
        )

    def protocol(self) -> str:
        """Return how `sample` draws, in a few words for a metric's name."""
        return "as sampled"

    def evaluations(self, data: Samples) -> list[Evaluation]:
        """Return the comparisons of the test protocol; by default one, of `sample` with the real pictures.

        Args:
            data: What `open_data` returned.
        """
        if not isinstance(data, ImageSet):
            raise UserError(
                f"task {self.name!r}: implement evaluations(data), since its data are more than pictures"
            )

        def draw(generator: nn.Module, count: int, seed: int, device: torch.device) -> Iterator[Drawn]:
            return (Drawn(pictures) for pictures in self.sample(generator, count, seed, device))

        return [Evaluation(data, draw, self.protocol())]

    def sheet(self, generator: nn.Module, data: Samples, seed: int, device: torch.device) -> Sheet:
        """Return pictures to look at, the same inputs every time; by default 32 of `sample` in rows of 8."""
        pictures = torch.cat(list(self.sample(generator, 32, seed, device)))
        return Sheet(pictures.reshape(4, 8, *pictures.shape[1:]))  # (rows, columns, C, H, W)

    def features(self, judgement: Judgement) -> list[Tensor]:
        """Return the discriminator's inner activations, one tensor a layer.

        Raises:
            UserError: If the task's judgements hold none.
        """
        if "features" not in judgement:
            raise UserError(
                f"task {self.name!r} offers no discriminator features: expected 'features' in what "
                "judge_fake() returns; add it there, or set `features: 0` in the schedule"
            )
        return list(judgement["features"])

    def sections(self, generator: nn.Module) -> list[list[nn.Module]]:
        """Return chains of the generator's modules that together make its pictures, in their order.

        `IntermediateDistillationPolicy` trains them one by one on the dense generator's activations. By
        default what the network's own ``sections()`` returns.

        Raises:
            UserError: If the network has none.
        """
        network = unwrapped(generator)
        if not hasattr(network, "sections"):
            raise UserError(
                f"task {self.name!r} offers no sections of its generator: implement sections(generator), a "
                "list of chains of modules, to distil intermediate activations"
            )
        found: list[list[nn.Module]] = network.sections()
        return found

    def deploy(self, generator: nn.Module) -> nn.Module:
        """Return a copy of the generator as it is deployed: the same input gives the same picture.

        Nothing is dropped at random, and no sample's picture depends on others in its batch. Whoever draws
        with it, see `drawing` in `sgc_distiller.module_state`, leaves it in this mode. By default a copy in
        evaluation mode, whose batch norms use their running statistics.
        """
        return deployed(generator)

    def output_layers(self, generator: nn.Module) -> list[str]:
        """Return the names of the weights of the layers that make the pictures: by default the last one."""
        return prunable_names(generator)[-1:]

    def total(self, terms: Terms, role: Role = "generator") -> Tensor:
        """Return the weighted sum of the terms' means, the baseline's scalar loss.

        Raises:
            UserError: If a term has no weight, or not one value a sample.
        """
        weights = self.generator_weights if role == "generator" else self.discriminator_weights
        for name, value in terms.items():
            if name not in weights:
                raise UserError(
                    f"task {self.name!r}: the {role}'s term {name!r} has no weight; expected one of "
                    f"{', '.join(weights)}: add it to {role}_weights"
                )
            if value.dim() != 1:
                raise UserError(
                    f"task {self.name!r}: the {role}'s term {name!r} has the shape {tuple(value.shape)}; "
                    "expected one value a sample, (B,), whose mean is the loss"
                )
        return torch.stack([weights[name] * value.mean() for name, value in terms.items()]).sum()


def judged(discriminator: nn.Module, pictures: Tensor) -> Judgement:
    """Return the ``score`` and ``features`` of a discriminator that has ``judge``, as ours have."""
    score, features = unwrapped(discriminator).judge(pictures)
    return {"score": score, "features": features}
