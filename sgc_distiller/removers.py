"""What a schedule names to take zeroed filters and channels out of a network in the middle of training."""

from __future__ import annotations

import logging
from typing import Any

from torch import nn
from torch.optim import Optimizer

from sgc_distiller import checks
from sgc_distiller.errors import UserError
from sgc_distiller.masks import MaskSet
from sgc_distiller.policies import ScheduledTrainingPolicy
from sgc_distiller.removal import check_removable, remove_zeros
from sgc_distiller.thinning import Thinning

__all__ = ["LAYER_REMOVAL", "REMOVERS", "StructureRemover", "is_remover"]

log = logging.getLogger(__name__)

LAYER_REMOVAL = "resnet_cifar_remove_layers"
"""Takes whole layers out of Distiller's ResNets for CIFAR; read, and without effect."""

_FUNCTIONS = ("remove_filters", "remove_channels", LAYER_REMOVAL)


class StructureRemover(ScheduledTrainingPolicy):
    """Takes zeroed filters and channels out of the network, once in each active epoch.

    It acts as Distiller's does: before the first forward pass of the epoch, when all masks of the epoch are
    applied. Whatever says nothing goes: filters of zeros with all that reads them, and filters that are read
    with zeros only; both functions mean both. Where zero filters must stay (what they are added to is not
    zero, or it is a layer's last one), a warning says why, and they stay masked.

    Pruners, regularizers and learning rates go on, on what is left: their shares count it alone.

    Args:
        thinning_func_str: ``remove_filters`` or ``remove_channels``; ``resnet_cifar_remove_layers``, which is
            about one classifier of Distiller's, has no effect.
        arch: Distiller's name of the network; not used.
        dataset: Distiller's name of the data set, from which it takes the size of the input; not used.

    Raises:
        ArgumentError: If the function is none of these, or another argument is no text.
    """

    def __init__(self, thinning_func_str: str, arch: str, dataset: str) -> None:
        super().__init__()
        self.thinning_func_str = checks.one_of(thinning_func_str, _FUNCTIONS, "thinning_func_str")
        for name, value in (("arch", arch), ("dataset", dataset)):
            if not isinstance(value, str):
                raise checks.ArgumentError(f"Expected a name, got {value!r}.", name)
        self.arch = arch
        self.dataset = dataset
        self._acted_in: int | None = None

    @property
    def has_effect(self) -> bool:
        """Whether it takes anything out."""
        return self.thinning_func_str != LAYER_REMOVAL

    def check_model(self, model: nn.Module) -> None:
        """Refuse, with a `UserError`, a model out of which nothing can be taken."""
        if self.has_effect:
            check_removable(model)

    def on_minibatch_begin(
        self,
        model: nn.Module,
        epoch: int,
        minibatch_id: int,
        minibatches_per_epoch: int,
        zeros_mask_dict: MaskSet,
        meta: dict[str, Any],
        optimizer: Optimizer | None = None,
    ) -> None:
        """Take the zeros out before the epoch's first forward pass.

        Raises:
            UserError: If the network cannot be followed, or the optimizer is missing or of a kind that cannot
                go on; nothing is changed then.
        """
        if not self.has_effect or self._acted_in == epoch:
            return
        self._acted_in = epoch
        before = _count(model)
        try:
            found = remove_zeros(model, zeros_mask_dict, optimizer)
        except UserError as error:
            raise UserError(f"{self.thinning_func_str} in epoch {epoch}: {error}") from error
        _tell(epoch, found, before, _count(model))


def _count(model: nn.Module) -> int:
    return sum(item.numel() for item in model.parameters())


def _tell(epoch: int, found: Thinning, before: int, after: int) -> None:
    layers = ", ".join(f"{path} {count}" for path, count in found.removed.items() if count)
    log.info(
        "Epoch %d: %s parameters before filters were taken out, %s after; filters that went: %s.",
        *(epoch, f"{before:,}", f"{after:,}", layers or "none"),
    )
    if found.stays:
        reasons = "; ".join(f"{path}: {', '.join(sorted(set(why)))}" for path, why in found.stays.items())
        log.warning("Epoch %d: zero filters stay in the network, masked: %s.", epoch, reasons)


REMOVERS: dict[str, type] = dict.fromkeys(
    ("StructureRemover", "FilterRemover", "ChannelRemover"), StructureRemover
)
"""Classes that a schedule may name under ``extensions:``; Distiller has all three names for one class."""


def is_remover(kind: Any) -> bool:
    """Return whether a class of a schedule takes structures out of the network."""
    return isinstance(kind, type) and issubclass(kind, StructureRemover)
