"""Our policies inside Intel's Distiller, for those who have it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from sgc_distiller.dependent_masks import DependentMasksPolicy
from sgc_distiller.errors import UserError
from sgc_distiller.schedule_reader import CLASSES

__all__ = ["ADAPTERS", "UNNAMED", "adopt", "adopt_all", "check_is_distiller", "register"]

log = logging.getLogger(__name__)

_NEEDED = ("config", "file_config", "CompressionScheduler", "ScheduledTrainingPolicy", "PolicyLoss")
_ORIGINAL = "_sgc_original"  # what a class that was registered here stands for


def register(distiller: Any) -> list[str]:
    """Let schedules that Distiller itself reads name our classes.

    Everything in `sgc_distiller.schedule.CLASSES` that Distiller lacks is put where its loader looks classes
    up. None of Distiller's own names is replaced, and registering twice is harmless; do it again to add what
    came into `CLASSES` since. Afterwards Distiller drives, with its own scheduler, pruners and masks::

        import distiller
        import sgc_distiller

        sgc_distiller.register(distiller)
        supervision = sgc_distiller.Supervision(task, generator, discriminator, teacher)
        scheduler = distiller.file_config(generator, optimizer, "schedule.yaml")

    Distiller knows no shell patterns and ignores the ``gan:`` section: weights are named in full there.

    Args:
        distiller: The imported module.

    Returns:
        The names that schedules can use now, in the order of `CLASSES`.

    Raises:
        UserError: If the module is not Intel's Distiller.
    """
    names = adopt_all(distiller)
    log.info("Distiller at %s knows %s.", getattr(distiller, "__file__", "?"), ", ".join(names))
    return names


def adopt_all(distiller: Any) -> list[str]:
    """Do what `register` does, without a line in the log."""
    check_is_distiller(distiller)
    names = []
    for section, classes in CLASSES.items():
        for name, kind in {**classes, **UNNAMED.get(section, {})}.items():
            if adopt(distiller, section, name, kind):
                names.append(name)
    return names


def adopt(distiller: Any, section: str, name: str, kind: type) -> bool:
    """Put one class where Distiller's loader finds it, and return whether the name was free for it.

    Args:
        distiller: The imported module.
        section: The section of a schedule that the class is for.
        name: What schedules call it.
        kind: The class.
    """
    known = getattr(distiller.config, name, None)
    original = getattr(known, "__dict__", {}).get(_ORIGINAL)
    if known is not None and original is None:
        return False  # Distiller's own
    if original is not kind:
        adapt = ADAPTERS.get(section, _as_it_is)
        setattr(distiller.config, name, _marked(name, adapt(kind, distiller), kind))
    return True


def check_is_distiller(distiller: Any) -> None:
    """Refuse, with a `UserError`, a module that is not Intel's Distiller."""
    missing = [name for name in _NEEDED if not hasattr(distiller, name)]
    if missing:
        file = getattr(distiller, "__file__", None)
        folder = next(iter(getattr(distiller, "__path__", [])), None)
        given = f"the module at {file or folder}" if file or folder else repr(distiller)
        instead = (
            "It is not on PyPI, where another project has that name: `pip uninstall distiller`, then install "
            "https://github.com/IntelLabs/distiller as the README says under 'With the real Distiller'."
        )
        if folder and not file:  # a clone of the repository, seen from beside
            instead = "That is a folder and no package: run from somewhere else, or rename the folder."
        raise UserError(
            f"Expected Intel's Distiller, got {given}, which has no {', '.join(missing)}. {instead}"
        )


def _policy(kind: type, distiller: Any) -> type:
    """Return a policy as Distiller wants it: its base class, and losses in its own types."""
    if issubclass(kind, distiller.ScheduledTrainingPolicy):
        return kind

    class Policy(kind, distiller.ScheduledTrainingPolicy):  # type: ignore[misc]
        def before_backward_pass(self, *args: Any, **kwargs: Any) -> Any:
            return _translated(super().before_backward_pass(*args, **kwargs), distiller)

    return Policy


def _translated(answer: Any, distiller: Any) -> Any:
    """Return a loss in Distiller's types, which it checks; what is no loss is left to its own message."""
    if not hasattr(answer, "overall_loss") or not hasattr(answer, "loss_components"):
        return answer
    given = answer.loss_components
    parts = [
        distiller.LossComponent(part.name, part.value)
        for part in (given if isinstance(given, list) else [given])
    ]
    return distiller.PolicyLoss(answer.overall_loss, parts)


def _pruner(kind: type, distiller: Any) -> type:
    """Return a pruner that finds its weights by itself, since Distiller does not tell it to."""
    if not hasattr(kind, "bind"):
        return kind

    class Pruner(kind):  # type: ignore[misc]
        def set_param_mask(self, param: Any, param_name: str, zeros_mask_dict: Any, meta: Any) -> None:
            self.bind(meta["model"])
            super().set_param_mask(param, param_name, zeros_mask_dict, meta)

    return Pruner


def _as_it_is(kind: type, distiller: Any) -> type:
    return kind


def _marked(name: str, adapted: type, kind: type) -> type:
    """Return a class that says what it stands for and goes by the name that schedules use."""
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(name, (adapted,), {**names, _ORIGINAL: kind})


ADAPTERS: dict[str, Callable[[type, Any], type]] = {"extensions": _policy, "pruners": _pruner}
"""By section of a schedule: what makes of a class of ours one that Distiller can drive."""

UNNAMED: dict[str, dict[str, type]] = {"extensions": {"DependentMasksPolicy": DependentMasksPolicy}}
"""Classes that no schedule of ours names, but one that was written for Distiller does."""
