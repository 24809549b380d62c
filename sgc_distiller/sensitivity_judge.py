"""What judges generators in a sensitivity analysis: pictures by the test protocol, or the supervised loss."""

from __future__ import annotations

import copy
import hashlib
import math
from typing import Literal

import torch
from torch import nn

from sgc_distiller import checkpoints
from sgc_distiller.assembly import Run
from sgc_distiller.errors import NotANumberError, UserError
from sgc_distiller.finished import Finished
from sgc_distiller.studies.measures import supervised_loss

__all__ = ["Judge", "fingerprint"]


class Judge:
    """Measures generators: FID and KID by the task's test protocol, or the supervised loss.

    Args:
        opened: The dense generator, its run, and its discriminator.
        metrics: What will be measured, out of ``fid``, ``kid`` and ``loss``.

    Attributes:
        loss_name: Full name of the supervised loss, which names its discriminator; empty where it will not
            be measured.

    Raises:
        UserError: If the supervised loss lacks its discriminator.
    """

    def __init__(self, opened: Finished, metrics: tuple[str, ...]) -> None:
        self.run: Run = opened.run
        self.teacher = copy.deepcopy(opened.generator)
        self.discriminator = _discriminator(opened) if "loss" in metrics else None
        self.loss_name = ""
        if self.discriminator is not None:
            judge = fingerprint(self.discriminator)[:8]
            self.loss_name = f"supervised loss[L_GC + 0.5 L_DC; discriminator {judge}]"
        self.split: Literal["train", "test"] = "train" if self.run.options.judged_on == "train" else "test"

    def measure(self, metric: str, generator: nn.Module) -> dict[str, tuple[str, float | None]]:
        """Return full name and value of a metric, and of others that come with it.

        The mean where the task has several comparisons, ``None`` for what is no finite number.

        Raises:
            UserError: If the task's test protocol has no such metric.
        """
        if metric == "loss":
            return {"loss": (self.loss_name, _finite(self._loss(generator)))}
        try:
            results = self.run.measure(self.split, generator, self.run.options.images_for_result)
        except NotANumberError:
            return {metric: ("", None)}
        found = {}
        for kind in ("fid", "kid"):
            own = [item for item in results if item.name.startswith(kind.upper())]
            if own:
                value = _finite(sum(item.value for item in own) / len(own))
                found[kind] = (" and ".join(item.name for item in own), value)
        if metric not in found:
            raise UserError(
                f"--sense-metric {metric}: the test protocol of {self.run.task.name!r} measures no "
                f"{metric.upper()} on these data; expected at least two real pictures to compare with: take "
                "--sense-metric loss"
            )
        return found

    def _loss(self, generator: nn.Module) -> float:
        assert self.discriminator is not None
        student = copy.deepcopy(generator)  # its running statistics move
        found = supervised_loss(self.run, student, self.discriminator, self.teacher)
        assert found is not None
        return found


def _discriminator(opened: Finished) -> nn.Module:
    """Return the discriminator that judges the supervised loss."""
    run, other = opened.run, opened.run.options.discriminator_from
    if not run.task.judges:
        raise UserError(
            f"--sense-metric loss: task {run.task.name!r} trains without a discriminator with these options; "
            "take --sense-metric fid"
        )
    content = checkpoints.load_checkpoint(other, run.device) if other else opened.content
    state = content.get("discriminator_state_dict", content["state_dict"] if other else None)
    if state is None:
        raise UserError(
            f"{opened.source}: holds a generator but no discriminator, which judges the supervised loss; add "
            "--discriminator-from CHECKPOINT, or take --sense-metric fid"
        )
    network = run.build("discriminator")
    checkpoints.load_weights(network, state, f"{other or opened.source}, discriminator")
    return network


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def fingerprint(network: nn.Module) -> str:
    """Return a hash of a network's weights."""
    found = hashlib.sha256()
    for name, value in network.state_dict().items():
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]
