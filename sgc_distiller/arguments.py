"""What the command line understands; `sgc_distiller.app` acts on it."""

from __future__ import annotations

import argparse
import datetime
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from sgc_distiller import inspection_arguments
from sgc_distiller._version import __version__
from sgc_distiller.deploy_arguments import (
    add_export_command,
    add_speed_command,
    add_thin_command,
    add_thinnify,
)
from sgc_distiller.errors import UserError, nearest
from sgc_distiller.study_arguments import add_study_commands
from sgc_distiller.task_arguments import add_sizes, task_options
from sgc_distiller.tasks import TASKS, find_task

__all__ = ["compress_gan_parser", "given_options", "is_evaluation", "parse", "sgc_parser"]

_CLASSIFIERS = "it is about classifiers, and a generator has no labels to score"
_QUANTIZATION = "it is about quantization, and this tool prunes"
_GREEDY = "greedy filter pruning is not supported; use a schedule"
_NO_VALIDATION = "a GAN is judged against training or test pictures; use --effective-valid-size"
_OWN_TEACHER = "the teacher is the dense generator that --exp-load-weights-from names"
REFUSED = {
    "--momentum": "both networks are trained with the baseline's Adam; --lr and --wd apply",
    "--pretrained": "no trained GANs come with the package; give yours with --exp-load-weights-from",
    "--resume": "it is deprecated in Distiller; use --resume-from, with --reset-optimizer where wanted",
    "--load-serialized": "networks are not wrapped; checkpoints of wrapped ones load as they are",
    "--valid-size": _NO_VALIDATION,
    "--vs": _NO_VALIDATION,
    "--validation-split": _NO_VALIDATION,
    "--activation-stats": _CLASSIFIERS,
    "--act-stats": _CLASSIFIERS,
    "--activation-histograms": _CLASSIFIERS,
    "--act-hist": _CLASSIFIERS,
    "--confusion": _CLASSIFIERS,
    "--earlyexit_lossweights": _CLASSIFIERS,
    "--earlyexit_thresholds": _CLASSIFIERS,
    "--kd-teacher": _OWN_TEACHER,
    "--kd-pretrained": _OWN_TEACHER,
    "--kd-resume": _OWN_TEACHER,
    "--kd-temp": "pictures are compared, which knows no temperature; use --kd-distill-wt and --kd-student-wt",
    "--kd-temperature": "pictures are compared, which knows no temperature; use --kd-distill-wt",
    "--kd-teacher-wt": "a generator's pictures have no labels; use --kd-distill-wt and --kd-student-wt",
    "--kd-tw": "a generator's pictures have no labels; use --kd-distill-wt and --kd-student-wt",
    "--kd-start-epoch": "declare OutputDistillationPolicy in the schedule, whose entry names its epochs",
    "--greedy": _GREEDY,
    "--greedy-ft-epochs": _GREEDY,
    "--greedy-target-density": _GREEDY,
    "--greedy-pruning-step": _GREEDY,
    "--greedy-finetuning-policy": _GREEDY,
    "--quantize-eval": _QUANTIZATION,
    "--qe": _QUANTIZATION,
}
"""Flags of Distiller's compress_classifier that mean nothing here, and why."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are `UserError`: nearest flag, Distiller's own explained."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
            **settings,
        )

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong with the command line.

        Raises:
            UserError: Always.
        """
        hint = ""
        unknown = re.search(r"unrecognized arguments: (\S+)", message)
        if unknown:
            flag = unknown.group(1).partition("=")[0]
            reason = REFUSED.get(flag)
            if reason is None and flag.startswith(("--qe-", "--lapq-")):
                reason = _QUANTIZATION
            if reason:
                raise UserError(f"{flag} of Distiller's compress_classifier is not supported: {reason}")
            hint = nearest(flag, self._option_string_actions)
        raise UserError(f"{message}.{hint} `{self.prog} --help` lists what is understood")


_TASK_HELP = f"the GAN: {', '.join(TASKS)}, or the dotted path of your own, such as my_module.MyTask"


def _task(name: str) -> str:
    """Return the name of a task, checked."""
    try:
        find_task(name)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error  # the one that argparse shows as it is
    return name


def sgc_parser() -> Parser:
    """Return the parser of ``sgc``."""
    parser = Parser(
        prog="sgc", description="Prune the generators of trained GANs without losing their pictures."
    )
    parser.add_argument("--version", action="version", version=f"sgc_distiller {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    helps = {
        "train": "train a dense GAN",
        "compress": "prune a trained generator by a schedule",
        "evaluate": "measure the generator of a checkpoint",
        "warm-up-discriminator": "train a discriminator for a generator that has none",
    }
    for name, text in helps.items():
        command = commands.add_parser(name, help=text, description=text.capitalize() + ".")
        command.add_argument("task", type=_task, metavar="TASK", help=_TASK_HELP)
        command.add_argument("--data", metavar="DIR", help="data set: a folder (default: a bundled set)")
        _add_run_arguments(command)
        if name == "compress":
            add_thinnify(command)
    _add_schedule_command(commands)
    _add_extractor_command(commands)
    add_export_command(commands, _add_task_options)
    add_thin_command(commands, _add_task_options)
    add_speed_command(commands, _add_task_options)
    inspection_arguments.add_inspection_commands(commands, _add_task_options)
    add_study_commands(commands)
    quickstart = commands.add_parser(
        "quickstart",
        help="train a small GAN on bundled data, compress it, and compare",
        description="Train a small GAN on data that come with the package, prune its generator, and write a "
        "report.",
    )
    quickstart.add_argument(
        "task", nargs="?", default="dcgan", choices=list(TASKS), metavar="TASK", help="default: dcgan"
    )
    quickstart.add_argument(
        "-o", "--out-dir", default=None, metavar="DIR", help="where to write (default: quickstart)"
    )
    quickstart.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="how many seeds, from 0 (default: 1)"
    )
    quickstart.add_argument(
        "--smoke", action="store_true", default=False, help="a few steps of everything: does it run?"
    )
    quickstart.add_argument("--cpu", action="store_true", default=False, help="use no GPU")
    return parser


def _add_schedule_command(commands: Any) -> None:
    command = commands.add_parser(
        "schedule",
        help="check a schedule and show what it does in each epoch",
        description="Check a schedule and show what it asks for in each epoch; nothing is trained.",
    )
    add = command.add_argument
    add("schedule", metavar="FILE", help="a schedule's file, or a shipped one's name")
    add("-a", "--arch", dest="task", type=_task, metavar="TASK", help="check names and shapes against it")
    add(
        "--exp-load-weights-from", dest="weights_from", metavar="PATH", help="... and against this checkpoint"
    )
    add_sizes(add)
    add("--lr", "--learning-rate", dest="lr", type=float, metavar="R", help="initial rate (default: task's)")
    add("--plot", metavar="FILE", help="also draw it: FILE.png, FILE.svg or FILE.pdf")
    add(
        "--plain",
        metavar="FILE",
        help="also write it as Intel's Distiller reads it (needs -a or a checkpoint)",
    )


def _add_extractor_command(commands: Any) -> None:
    text = "train the small network whose features the metrics compare where Inception is missing"
    extractor = commands.add_parser("extractor", help=text, description=text.capitalize() + ".")
    actions = extractor.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=Parser)
    train = actions.add_parser("train", help="train it on a folder of pictures")
    add = train.add_argument
    add("data", metavar="DIR", help="a folder of pictures, or the name of a bundled set")
    add("--image-size", type=int, default=64, metavar="N", help="height and width in pixels (default: 64)")
    add("--seed", type=int, default=0, metavar="N", help="of everything random (default: 0)")


def _add_task_options(command: Any) -> None:
    """Add what names a checkpoint's task, data and sizes where it does not know them itself."""
    add = command.add_argument
    add("-a", "--arch", dest="task", type=_task, metavar="TASK", help="the GAN (default: checkpoint's)")
    add("--data", metavar="DIR", help="data set (default: what it was trained on)")
    add_sizes(add)
    add("--cpu", action="store_true", default=False, help="use no GPU")


def compress_gan_parser() -> Parser:
    """Return the parser of ``examples/compress_gan.py``, with compress_classifier's flags."""
    parser = Parser(
        prog="compress_gan.py", description="Train, prune or evaluate a GAN, as compress_classifier does."
    )
    parser.add_argument("data", metavar="DATASET_DIR", help="data set: a folder, or a bundled one's name")
    parser.add_argument("-a", "--arch", dest="task", type=_task, metavar="TASK", help=_TASK_HELP)
    parser.add_argument(
        "-e", "--evaluate", action="store_true", default=False, help="measure a checkpoint and exit"
    )
    parser.add_argument(
        "--export-onnx",
        nargs="?",
        const="model.onnx",
        default=None,
        metavar="FILE",
        help="export a checkpoint's generator and exit (default: model.onnx in the run's folder)",
    )
    inspection_arguments.add_inspection_flags(parser)
    _add_run_arguments(parser)
    add_thinnify(parser)
    return parser


def _add_run_arguments(parser: Parser) -> None:
    """Add what all commands share; what is not given is left out, see `sgc_distiller.settings.resolve`."""
    _add_starting_points(parser)
    _add_training(parser)
    _add_metrics(parser)
    _add_surroundings(parser)


def _add_starting_points(parser: Parser) -> None:
    add = parser.add_argument_group("where to start").add_argument
    add("--compress", dest="schedule", metavar="FILE", help="schedule: a file, or a shipped one's name")
    add("--resume-from", metavar="PATH", help="continue the run of this checkpoint or folder")
    add("--exp-load-weights-from", dest="weights_from", metavar="PATH", help="begin from these weights")
    add("--discriminator-from", metavar="PATH", help="the discriminator's weights, if in another file")
    add("--reset-optimizer", action="store_true", help="with --resume-from: new run, its weights")
    add(
        "--save-untrained-model",
        dest="save_untrained",
        action="store_true",
        help="also save a checkpoint before the first step",
    )
    add("--runtime", choices=("builtin", "distiller"), help="what drives the schedule (default: builtin)")
    add("--prune-only", action="store_true", help="set the schedule's masks without training")
    add("--dry-run", action="store_true", default=False, help="print the schedule in full, and exit")


def _add_training(parser: Parser) -> None:
    add = parser.add_argument_group("training").add_argument
    add("--epochs", type=int, metavar="N", help="total number of epochs (default: schedule's or baseline's)")
    add("--steps-per-epoch", type=int, metavar="N", help="generator updates (default: the schedule's)")
    add("-b", "--batch-size", type=int, metavar="N", help="samples in a batch (default: baseline's)")
    add(
        "--lr",
        "--learning-rate",
        dest="lr",
        type=float,
        metavar="R",
        help="of both networks (default: baseline's)",
    )
    add("--wd", "--weight-decay", dest="weight_decay", type=float, metavar="W", help="default: 0")
    add("-j", "--workers", type=int, metavar="N", help="processes that decode pictures (default: 2)")
    add_sizes(add)
    add(
        "--kd-distill-wt",
        "--kd-dw",
        dest="distill_weight",
        type=float,
        metavar="W",
        help="weight of added distillation",
    )
    add(
        "--kd-student-wt",
        "--kd-sw",
        dest="student_weight",
        type=float,
        metavar="W",
        help="weight of the loss beside it",
    )
    add("--deterministic", "--det", action="store_true", help="only deterministic operations")
    add("--seed", type=int, metavar="N", help="of everything random (default: 0)")


def _add_metrics(parser: Parser) -> None:
    add = parser.add_argument_group("measuring").add_argument
    for short, which, text in (
        ("--etrs", "train", "share of the training pictures to use"),
        ("--evs", "valid", "share of --epoch-images to draw after an epoch"),
        ("--etes", "test", "share of --test-images to draw for the result"),
    ):
        add(short, f"--effective-{which}-size", dest=f"{which}_size", type=float, metavar="F", help=text)
    add("--num-best-scores", dest="best_count", type=int, metavar="N", help="best epochs to name")
    add("--extractor", metavar="NAME", help="features of the metric: auto, inception, digits, folder")
    add("--extractor-weights", metavar="FILE", help="the extractor's weights")
    add("--epoch-images", type=int, metavar="N", help="pictures measured after an epoch (512)")
    add("--test-images", type=int, metavar="N", help="pictures measured at the end (5000)")
    add("--judged-on", choices=("test", "train"), help="measure the result against these (default: test)")


def _add_surroundings(parser: Parser) -> None:
    add = parser.add_argument_group("folder, output, device").add_argument
    add("-o", "--out-dir", default=None, metavar="DIR", help="folder of all runs (default: logs)")
    add("-n", "--name", default=None, metavar="NAME", help="this run's folder (default: date and time)")
    add(
        "-p",
        "--print-freq",
        dest="report_every",
        type=int,
        metavar="N",
        help="steps between reports (default: 50)",
    )
    add("-v", "--verbose", action="store_true", default=False, help="debugging messages")
    add("--masks-sparsity", action="store_true", help="show every mask's sparsity after an epoch")
    add("--param-hist", action="store_true", help="histograms of the weights for TensorBoard")
    add("--gpus", default=None, metavar="N", help="number of the GPU to use")
    add("--cpu", action="store_true", default=False, help="use no GPU")


_NOT_OPTIONS = (
    "other_options",
    "command",
    "evaluate",
    "thinnify",
    "export_onnx",
    "formats",
    "half",
    *inspection_arguments.NAMES,
    "out_dir",
    "name",
    "verbose",
    "gpus",
    "cpu",
    "dry_run",
)


def given_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options that a person gave, by the names of `sgc_distiller.settings.Options`.

    Args:
        arguments: What a parser of this module returned.

    Raises:
        UserError: If ``--gpus`` names more than one GPU, ``--cpu`` stands beside it, or a run that goes on in
            its own folder is given another one.
    """
    given = {k: v for k, v in vars(arguments).items() if k not in _NOT_OPTIONS and v is not None}
    sizes = task_options(arguments)
    given = {name: value for name, value in given.items() if name not in sizes}
    if sizes:
        given["task_options"] = sizes
    named = arguments.name is not None or arguments.out_dir is not None
    if "resume_from" not in given or "reset_optimizer" in given:
        name = arguments.name or datetime.datetime.now().strftime("%Y.%m.%d-%H%M%S")
        given["folder"] = str(Path(arguments.out_dir or "logs") / name)
    elif named and not (is_evaluation(arguments) or inspection_arguments.inspects(arguments)):
        raise UserError(
            "--resume-from goes on in the run's own folder: leave out -n and -o, or begin a new run from its "
            "weights with --reset-optimizer"
        )
    if arguments.cpu and arguments.gpus is not None:
        raise UserError("--cpu and --gpus exclude each other; give one of them")
    if arguments.cpu:
        given["device"] = "cpu"
    elif arguments.gpus is not None:
        if not arguments.gpus.isdigit():
            raise UserError(f"--gpus: expected the number of one GPU, got {arguments.gpus!r}; a run uses one")
        given["device"] = f"cuda:{arguments.gpus}"
    return given


def is_evaluation(arguments: argparse.Namespace) -> bool:
    """Return whether a checkpoint is to be measured and nothing else."""
    return bool(getattr(arguments, "evaluate", False)) or getattr(arguments, "command", "") == "evaluate"


def parse(parser: Parser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the parsed command line; an unknown flag is an error wherever it stands."""
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        for action in parser._actions:  # the flags are those of the command
            if isinstance(action, argparse._SubParsersAction):
                parser = action.choices[arguments.command]
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return arguments
