"""The five GANs at their smallest, for tests that go through all of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sgc_distiller.data import Samples, batches
from sgc_distiller.networks.vgg import PerceptualNetwork
from sgc_distiller.supervision import Supervision
from sgc_distiller.tasks.base import Batch, GANTask
from sgc_distiller.tasks.cyclegan import CycleGAN
from sgc_distiller.tasks.dcgan import DCGAN
from sgc_distiller.tasks.pix2pix import Pix2Pix
from sgc_distiller.tasks.srgan import SRGAN
from sgc_distiller.tasks.stargan import StarGAN

COLOURS = ["Red", "Green", "Blue", "Inverted"]


def with_perception() -> SRGAN:
    """Return an SRGAN whose perceptual term has random weights."""
    task = SRGAN(64, width=4, blocks=1, perceptual="none")
    task.generator_weights = {**task.generator_weights, "vgg": 1.0}
    task._perceptual_network = PerceptualNetwork.random(width=4)
    return task


GANS: dict[str, Callable[[], GANTask]] = {
    "dcgan": lambda: DCGAN(16, width=4),
    "pix2pix": lambda: Pix2Pix(32, width=4),
    "cyclegan": lambda: CycleGAN(32, width=4, blocks=1, pool_size=2),
    "stargan": lambda: StarGAN(16, width=4, blocks=1, attributes=COLOURS, n_critic=2),
    "srgan": with_perception,
}

# Options that `build_task` takes, a little larger: several channels in every layer.
SIZES: dict[str, dict[str, Any]] = {
    "dcgan": {"image_size": 32, "width": 8},
    "pix2pix": {"image_size": 32, "width": 8},
    "cyclegan": {"image_size": 32, "width": 8, "blocks": 2},
    "stargan": {
        "image_size": 32,
        "width": 8,
        "blocks": 2,
        "attributes": ("Red", "Green", "Blue", "Inverted"),
    },
    "srgan": {"image_size": 64, "width": 8, "blocks": 2},
}


def samples(task: GANTask, split: str = "train") -> Samples:
    """Return a small part of the task's built-in set."""
    return task.open_data(task.built_in, split, 0.1)


def make_batch(task: GANTask, device: torch.device, count: int = 3, seed: int = 0) -> Batch:
    """Return a batch as the trainer makes it."""
    raw: dict[str, Tensor] = next(batches(samples(task), count, seed, device=device))
    batch = task.prepare(raw, torch.Generator().manual_seed(seed))
    return {"dropout_seed": seed, "pool_seed": seed, **batch}


def supervise(task: GANTask, device: torch.device, **settings: Any) -> Supervision:
    """Return a supervision whose student is an exact copy of its teacher."""
    torch.manual_seed(1)
    teacher, judge = (task.build(role).to(device) for role in ("generator", "discriminator"))
    return Supervision(task, copy.deepcopy(teacher), judge, teacher, **settings)
