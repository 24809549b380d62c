"""How large a study is: sizes of the networks, steps of the dense training, pictures that are measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sgc_distiller.errors import UserError, nearest

__all__ = ["DENSE_STEPS", "SCALES", "Scale", "scale_of"]

DENSE_STEPS = {"dcgan": 23_450, "pix2pix": 219_200, "cyclegan": 266_800, "stargan": 40_000, "srgan": 400_000}
"""Generator updates of the baselines' own trainings (CycleGAN: on horse2zebra)."""


@dataclass(frozen=True)
class Scale:
    """The size at which every experiment of a study is run.

    Attributes:
        sizes: Options of the task; those not named are the baseline's.
        dense_steps: Generator updates of the dense training; compressing runs keep their share of them.
        test_images: Pictures that are measured.
        batch_size: Samples in a batch; ``None`` for the baseline's.
        lr: Learning rate where a schedule names none; ``None`` for the baseline's.
    """

    sizes: dict[str, Any]
    dense_steps: int
    test_images: int
    batch_size: int | None = None
    lr: float | None = None
    note: str = field(default="")

    def steps_per_epoch(self, steps_per_epoch: int, dense_steps: int) -> int:
        """Return an epoch's steps at this size, where ``dense_steps`` is the training it is meant for."""
        return max(1, round(steps_per_epoch * self.dense_steps / dense_steps))


_CHECK = "so few steps show that everything runs; the numbers mean nothing"

SCALES: dict[str, dict[str, Scale]] = {
    "tiny": {
        "dcgan": Scale({"image_size": 32, "width": 8}, 200, 200, 16, 1e-3, _CHECK),
        "pix2pix": Scale({"image_size": 32, "width": 8}, 200, 50, 2, None, _CHECK),
        "cyclegan": Scale({"image_size": 32, "width": 8, "blocks": 2}, 200, 50, 2, None, _CHECK),
        "stargan": Scale({"image_size": 32, "width": 8, "blocks": 2}, 200, 200, 8, 5e-4, _CHECK),
        "srgan": Scale(
            {"image_size": 64, "width": 8, "blocks": 2, "pixel_weight": 1.0}, 200, 20, 2, None, _CHECK
        ),
    },
    "small": {
        "dcgan": Scale({"image_size": 32, "width": 32}, 3_000, 10_000),
        "pix2pix": Scale({"image_size": 64, "width": 16}, 4_000, 400),
        "cyclegan": Scale({"image_size": 64, "width": 16, "blocks": 4}, 2_500, 140),
        "stargan": Scale(
            {"image_size": 32, "width": 16, "blocks": 3, "test_last": 1_000}, 4_000, 2_000, 16, 5e-4
        ),
        "srgan": Scale({"image_size": 64, "width": 32, "blocks": 4, "pixel_weight": 1.0}, 2_000, 740),
    },
    "medium": {
        "dcgan": Scale({"image_size": 64, "width": 64}, 9_380, 10_000),
        "pix2pix": Scale({"image_size": 128, "width": 64}, 40_000, 1_000),
        "cyclegan": Scale({"image_size": 128, "width": 64, "blocks": 6}, 40_000, 1_000),
        "stargan": Scale({"image_size": 64, "width": 64}, 10_000, 10_000),
        "srgan": Scale({"image_size": 128, "width": 64, "blocks": 16}, 40_000, 1_000),
    },
    "paper": {
        "dcgan": Scale({}, 23_450, 10_000),
        "pix2pix": Scale({}, 219_200, 1_098),
        "cyclegan": Scale({}, 266_800, 5_000),
        "stargan": Scale({}, 40_000, 9_995),
        "srgan": Scale({}, 400_000, 5_000),
    },
}
"""By scale and task. ``small`` is what two CPU cores can measure, ``medium`` wants a GPU, ``paper`` is the
baselines' own size and length."""


def scale_of(name: str, task: str) -> Scale:
    """Return the scale called ``name`` for a task.

    Raises:
        UserError: If there is none.
    """
    if name not in SCALES:
        raise UserError(f"--scale: expected one of {', '.join(SCALES)}, got {name!r}.{nearest(name, SCALES)}")
    if task not in SCALES[name]:
        raise UserError(
            f"--task: expected one of {', '.join(SCALES[name])}, got {task!r}.{nearest(task, SCALES[name])}"
        )
    return SCALES[name][task]
