"""One GAN a module, all behind the contract of `sgc_distiller.tasks.base.GANTask`."""

from __future__ import annotations

from typing import Any

from sgc_distiller.errors import UserError, nearest
from sgc_distiller.tasks.base import GANTask
from sgc_distiller.tasks.dcgan import DCGAN

__all__ = ["TASKS", "build_task"]

TASKS: dict[str, type[GANTask]] = {"dcgan": DCGAN}
"""The GANs that come with the package, by the name that the command line and checkpoints use."""


def build_task(name: str, **options: Any) -> GANTask:
    """Return the task called ``name``.

    Raises:
        UserError: If there is no such task or it takes no such option.
    """
    if name not in TASKS:
        raise UserError(f"unknown task {name!r}; expected one of {', '.join(TASKS)}.{nearest(name, TASKS)}")
    try:
        return TASKS[name](**options)
    except TypeError as error:
        raise UserError(f"task {name!r}: {error}") from None
