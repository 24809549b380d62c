"""What the command line understands of a task's sizes and other options."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from sgc_distiller.errors import UserError
from sgc_distiller.yaml_source import scalar

__all__ = ["add_sizes", "task_options"]

_TASK_OPTIONS = ("image_size", "channels", "width")


def add_sizes(add: Callable[..., Any]) -> None:
    """Add the flags of a task's options to a parser."""
    add("--image-size", type=int, metavar="N", help="height and width in pixels")
    add("--channels", type=int, metavar="N", help="1 for grey, 3 for colour")
    add("--width", type=int, metavar="N", help="channels of the narrowest hidden layer")
    add(
        "-O",
        "--task-option",
        dest="other_options",
        action="append",
        metavar="NAME=VALUE",
        help="another option of the task, such as direction=BtoA; may be repeated",
    )


def task_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the sizes of the task that a person gave."""
    given = vars(arguments)
    options = {name: given[name] for name in _TASK_OPTIONS if given.get(name) is not None}
    for text in given.get("other_options") or []:
        name, sign, value = text.partition("=")
        if not sign or not name.strip():
            raise UserError(f"-O {text}: expected NAME=VALUE, such as -O direction=BtoA")
        options[name.strip().replace("-", "_")] = scalar(value)
    return options
