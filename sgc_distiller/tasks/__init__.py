"""One GAN a module, all behind the contract of `sgc_distiller.tasks.base.GANTask`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from sgc_distiller.class_lookup import import_class
from sgc_distiller.errors import UserError, nearest
from sgc_distiller.tasks.base import GANTask
from sgc_distiller.tasks.cyclegan import CycleGAN
from sgc_distiller.tasks.dcgan import DCGAN
from sgc_distiller.tasks.pix2pix import Pix2Pix
from sgc_distiller.tasks.srgan import SRGAN
from sgc_distiller.tasks.stargan import StarGAN

__all__ = ["TASKS", "build_task", "find_task"]

TASKS: dict[str, type[GANTask]] = {
    "dcgan": DCGAN,
    "pix2pix": Pix2Pix,
    "cyclegan": CycleGAN,
    "stargan": StarGAN,
    "srgan": SRGAN,
}
"""The GANs that come with the package, by the name that the command line and checkpoints use."""


def find_task(name: str) -> type[GANTask]:
    """Return the task that a name means: one of `TASKS`, or a user's own by its dotted path.

    Args:
        name: Such as ``stargan``, or ``my_package.my_module.MyTask``, looked for on Python's path and in the
            current directory.

    Raises:
        UserError: If there is no such task.
    """
    if name in TASKS:
        return TASKS[name]
    if "." not in name:
        raise UserError(
            f"unknown task {name!r}; expected one of {', '.join(TASKS)}, or the dotted path of your own "
            f"GANTask, such as my_module.MyTask.{nearest(name, TASKS)}"
        )
    found = import_class(name)
    if not issubclass(found, GANTask) or inspect.isabstract(found):
        lacking = ", ".join(sorted(getattr(found, "__abstractmethods__", ()))) or "GANTask as its base"
        raise UserError(f"{name}: expected a GANTask, which this class is not: it lacks {lacking}")
    return found


def build_task(name: str, options: Mapping[str, Any] | None = None) -> GANTask:
    """Return the task called ``name``; see `find_task`.

    Args:
        name: The task.
        options: What it is built with; those left out are the baseline's.

    Raises:
        UserError: If there is no such task or it takes no such option.
    """
    task, options = find_task(name), dict(options or {})
    known = task.usual_options()
    for option in options:
        if option not in inspect.signature(task).parameters:
            raise UserError(
                f"task {name!r} has no option {option!r}; expected one of {', '.join(known)}."
                f"{nearest(option, known)}"
            )
    try:
        return task(**options)
    except TypeError as error:
        raise UserError(f"task {name!r}: {error}") from None
