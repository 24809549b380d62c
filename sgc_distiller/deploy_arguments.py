"""What the command line understands of thinning, timing and exporting."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from sgc_distiller.errors import UserError

__all__ = ["add_export_command", "add_speed_command", "add_thin_command", "add_thinnify", "batch_sizes"]


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
    add("-o", "--out-dir", default=None, metavar="DIR", help="new run folder (default: CHECKPOINT_thin)")
    add_task(command)


def add_speed_command(commands: Any, add_task: Callable[[Any], None]) -> None:
    """Add ``sgc speed`` to the subparsers of ``sgc``; see `add_thin_command`."""
    text = "time a trained generator in the forms in which it can be deployed"
    command = commands.add_parser(
        "speed",
        help=text,
        description=f"{text.capitalize()}: dense, masked, thinned, channels_last, bf16 and ONNX Runtime, "
        "side by side on this machine.",
    )
    add = command.add_argument
    add("weights_from", metavar="CHECKPOINT", help="a run folder or a checkpoint of `sgc compress`")
    add("-o", "--out-dir", default=None, metavar="DIR", help="write speed.json and speed.md there too")
    add("--dense", default=None, metavar="CHECKPOINT", help="the dense generator (default: its teacher.pth)")
    add("--batch", default="1,16", metavar="LIST", help="batch sizes (default: 1,16)")
    add("--threads", type=int, default=None, metavar="N", help="of the CPU (default: PyTorch's)")
    add("--seconds", type=float, default=60.0, metavar="S", help="for each batch size (default: 60)")
    add(
        "--test-images",
        dest="pictures",
        type=int,
        default=0,
        metavar="N",
        help="pictures to measure too (default: 0)",
    )
    add_task(command)


def add_export_command(commands: Any, add_task: Callable[[Any], None]) -> None:
    """Add ``sgc export`` to the subparsers of ``sgc``; see `add_thin_command`."""
    command = commands.add_parser(
        "export",
        help="write a trained generator as ONNX, safetensors, torch.export and compact weights",
        description="Write a trained generator as files that others load, each checked against the original.",
    )
    add = command.add_argument
    add("weights_from", metavar="CHECKPOINT", help="a run folder, a checkpoint or a file of weights")
    add("-o", "--out-dir", default=None, metavar="DIR", help="a new folder (default: exported)")
    add("--formats", metavar="LIST", help="some of onnx,safetensors,torch,compact (default: all)")
    add("--half", action="store_true", help="round compact weights to half precision")
    add_task(command)


def add_thinnify(parser: argparse.ArgumentParser) -> None:
    """Add the flag that thins what a run came to."""
    parser.add_argument(
        "--thinnify",
        action="store_true",
        default=False,
        help="also write the result without its zero filters, to a folder beside it",
    )


def batch_sizes(text: str) -> list[int]:
    """Return the numbers of ``--batch``.

    Raises:
        UserError: If it is no list of whole numbers.
    """
    try:
        return [int(item) for item in text.split(",")]
    except ValueError:
        raise UserError(f"--batch: expected numbers with commas between them, got {text!r}") from None
