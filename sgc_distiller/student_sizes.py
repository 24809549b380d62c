"""How thin a run's generator was when training began and is now, as its checkpoints and results tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from sgc_distiller.module_state import unwrapped
from sgc_distiller.names import prunable_names
from sgc_distiller.thinning import fit, sizes_beside

__all__ = ["StudentSizes", "build_as_begun"]

Record = dict[str, Any]


class StudentSizes:
    """The sizes of a generator that a schedule may make thinner while it is trained.

    Args:
        generator: The generator as training begins, perhaps thinner than its task builds it.
        built: One of its kind, as its task builds it.
    """

    def __init__(self, generator: nn.Module, built: nn.Module) -> None:
        self._generator = generator
        self._built = built
        sizes = self._now()
        shapes = {name: list(value.shape) for name, value in unwrapped(generator).state_dict().items()}
        self._began: Record = {"sizes": sizes, "shapes": shapes if sizes else {}}

    def _now(self) -> dict[str, dict[str, int]]:
        return sizes_beside(unwrapped(self._generator), self._built)

    def record(self) -> Record:
        """Return what a checkpoint holds.

        Returns:
            ``thinned``, the sizes that differ from those of the task's network; where the generator has
            become thinner since training began, also ``thinned_from``, what `build_as_begun` takes.
        """
        sizes = self._now()
        return {"thinned": sizes, **({} if sizes == self._began["sizes"] else {"thinned_from": self._began})}

    def before_thinning(self) -> Record:
        """Return ``weights_before_thinning``, a count for the result of a thinned generator, else nothing."""
        if not self._now():
            return {}
        names = set(prunable_names(self._built))
        sizes = [item.numel() for name, item in self._built.named_parameters() if name in names]
        return {"weights_before_thinning": sum(sizes)}


def build_as_begun(built: nn.Module, thinned_from: Mapping[str, Any]) -> nn.Module:
    """Return a generator with the sizes that it had when a run began, in which it became thinner since.

    A schedule is built for it as it was for that run's; its weights are of no matter.

    Args:
        built: The generator as its task builds it; it is made thinner in place.
        thinned_from: What the run's checkpoint holds under that name.

    Raises:
        UserError: If it is of another kind.
    """
    if thinned_from["sizes"]:
        shapes = {name: torch.empty(tuple(shape)) for name, shape in thinned_from["shapes"].items()}
        fit(built, thinned_from["sizes"], shapes)
    return built
