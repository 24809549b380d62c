"""The contract between a GAN and everything that trains, prunes or measures it."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from sgc_distiller.errors import UserError
from sgc_distiller.names import prunable_names

__all__ = [
    "Batch",
    "GANTask",
    "ImageSource",
    "Judgement",
    "Outputs",
    "Phase",
    "Role",
    "Terms",
    "frozen_statistics",
    "same_randomness",
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


class ImageSource(Protocol):
    """A set of pictures with a name; see `sgc_distiller.data.ImageSet`."""

    name: str

    def __len__(self) -> int:
        """Return how many pictures there are."""
        ...


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

    Life of one training step, in the order of `phases`:

    1. ``batch = task.prepare(raw, rng)``
    2. discriminator phase: ``outputs = task.generate(G, batch)``, then `judge_real` and `judge_fake` on
       detached outputs, and `discriminator_terms`;
    3. generator phase: `judge_fake` on outputs with their graph, and `generator_terms`.

    A supervised step calls the same methods once more with the teacher in the generator's place, so a
    task that trains plainly can be supervised as it is.
    """

    name: ClassVar[str]
    #: Height and width of the pictures in pixels, and their number of channels.
    image_size: int
    channels: int
    phases: tuple[Phase, ...] = (Phase("discriminator"), Phase("generator"))
    #: Weights of the generator's loss terms; their names are the terms' names.
    generator_weights: dict[str, float] = {"gen": 1.0}  # noqa: RUF012 - read only
    #: Weights of the discriminator's loss terms.
    discriminator_weights: dict[str, float] = {"dis": 1.0}  # noqa: RUF012 - read only

    @classmethod
    def usual_options(cls) -> dict[str, Any]:
        """Return what `__init__` takes where nobody says otherwise: the baseline's sizes."""
        return {}

    @classmethod
    def options_of(cls, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Return the sizes that a generator's weights tell, or ``None`` if they are another task's."""
        return None

    @property
    def options(self) -> dict[str, Any]:
        """What `__init__` was called with; checkpoints keep it."""
        return {}

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
            raw: Real pictures in [-1, 1] under ``real``, shape (B, C, H, W), and labels if any.
            rng: CPU generator of this step; drawing from anything else breaks resuming.
        """

    @abstractmethod
    def generate(self, generator: nn.Module, batch: Batch) -> Outputs:
        """Return the generator's pictures under ``fake`` in [-1, 1], shape (B, C, H, W)."""

    def judge_real(self, discriminator: nn.Module, batch: Batch) -> Judgement:
        """Return the discriminator's judgement of the batch's real pictures."""
        return {"score": discriminator(batch["real"])}

    def judge_fake(self, discriminator: nn.Module, batch: Batch, outputs: Outputs) -> Judgement:
        """Return the discriminator's judgement of the generator's pictures."""
        return {"score": discriminator(outputs["fake"])}

    @abstractmethod
    def generator_terms(self, generator: nn.Module, batch: Batch, outputs: Outputs, fake: Judgement) -> Terms:
        """Return the generator's loss terms, each of shape (B,)."""

    @abstractmethod
    def discriminator_terms(
        self, discriminator: nn.Module, batch: Batch, outputs: Outputs, real: Judgement, fake: Judgement
    ) -> Terms:
        """Return the discriminator's loss terms, each of shape (B,)."""

    @abstractmethod
    def optimizer(self, role: Role, network: nn.Module, lr: float | None = None) -> torch.optim.Optimizer:
        """Return the baseline's optimiser; ``lr`` replaces its learning rate."""

    @abstractmethod
    def sample(
        self, generator: nn.Module, count: int, seed: int, device: torch.device, batch_size: int | None = None
    ) -> Iterator[Tensor]:
        """Yield ``count`` pictures by the test protocol, batch by batch, without touching the network.

        Pictures are in [-1, 1], shape (<= batch size, C, H, W), and depend on ``seed`` and weights alone.
        """

    @abstractmethod
    def protocol(self, batch_size: int | None = None) -> str:
        """Return how `sample` draws, in a few words for a metric's name."""

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

    def output_layers(self, generator: nn.Module) -> list[str]:
        """Return the names of the weights of the layers that make the pictures: by default the last one."""
        return prunable_names(generator)[-1:]

    def total(self, terms: Terms, role: Role = "generator") -> Tensor:
        """Return the weighted sum of the terms' means, the baseline's scalar loss."""
        weights = self.generator_weights if role == "generator" else self.discriminator_weights
        return torch.stack([weights[name] * value.mean() for name, value in terms.items()]).sum()


_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


@contextlib.contextmanager
def frozen_statistics(*networks: nn.Module) -> Iterator[None]:
    """Keep the running statistics of normalisation layers in training mode from moving.

    The layers still normalise by the batch's own statistics: an extra forward pass in training mode then
    leaves the network as it was.
    """
    taken: list[tuple[dict[str, Tensor | None], dict[str, Tensor | None]]] = []
    waiting: list[nn.Module | None] = list(networks)
    while waiting:  # several times a step: four times as fast as `nn.Module.modules`
        module = waiting.pop()
        if module is None:
            continue
        waiting.extend(module._modules.values())
        buffers = module._buffers
        if buffers and module.training and getattr(module, "track_running_stats", False):
            own = {name: buffers[name] for name in _BUFFERS if buffers.get(name) is not None}
            taken.append((buffers, own))
            buffers.update(dict.fromkeys(own))
    try:
        yield
    finally:
        for buffers, own in taken:
            buffers.update(own)


@contextlib.contextmanager
def same_randomness(seed: int | None, device: torch.device) -> Iterator[None]:
    """Draw dropout masks from ``seed`` inside the block and leave the global generators untouched.

    Two passes inside blocks with the same seed draw the same masks. ``None`` does nothing.
    """
    if seed is None:
        yield
        return
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
