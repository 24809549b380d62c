"""What the command line understands of thinning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["add_thin_command"]


def add_thin_command(commands: Any, add_task: Callable[[Any], None]) -> None:
    """Add ``sgc thin`` to the subparsers of ``sgc``.

    Args:
        commands: The subparsers.
        add_task: Adds the options that name task, data and sizes.
    """
    text = "take zero filters out of a trained generator, which becomes smaller and faster"
    command = commands.add_parser(
        "thin",
        help=text,
        description=f"{text.capitalize()}. Its pictures stay the same; the new run folder is used like any "
        "other.",
    )
    add = command.add_argument
    add("weights_from", metavar="CHECKPOINT", help="a run folder or a checkpoint of `sgc compress`")
    add("-o", "--out-dir", default=None, metavar="DIR", help="the new run folder (default: CHECKPOINT_thin)")
    add_task(command)
