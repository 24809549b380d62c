"""What a schedule names to take zeroed structures out of a network; so far they are read and left alone."""

from __future__ import annotations

from typing import Any

from sgc_distiller import checks
from sgc_distiller.policies import ScheduledTrainingPolicy

__all__ = ["REMOVERS", "ZEROS_STAY", "StructureRemover", "is_remover"]

ZEROS_STAY = (
    "zeros are not removed by this version. Thinning is a step of its own that is to come; "
    "pruning goes on as scheduled."
)
"""What a schedule with a remover is told when it is read."""

_FUNCTIONS = ("remove_filters", "remove_channels", "resnet_cifar_remove_layers")


class StructureRemover(ScheduledTrainingPolicy):
    """Stands where Distiller would take zeroed filters or channels out of the network, and does nothing.

    Distiller thins in the middle of training. Here weights stay where they are, masked, so that the epochs
    that follow prune the same parameters; the results of its schedules agree up to the first removal.

    Args:
        thinning_func_str: ``remove_filters``, ``remove_channels`` or ``resnet_cifar_remove_layers``.
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


REMOVERS: dict[str, type] = dict.fromkeys(
    ("StructureRemover", "FilterRemover", "ChannelRemover"), StructureRemover
)
"""Classes that a schedule may name under ``extensions:``; Distiller has all three names for one class."""


def is_remover(kind: Any) -> bool:
    """Return whether a class of a schedule takes structures out of the network."""
    return isinstance(kind, type) and issubclass(kind, StructureRemover)
