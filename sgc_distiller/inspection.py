"""What a schedule does, epoch by epoch: for reading it, for a plot, and as the real Distiller needs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import nn

from sgc_distiller import checkpoints
from sgc_distiller.errors import UserError
from sgc_distiller.plain_schedule import own_classes
from sgc_distiller.schedule import Schedule, read_schedule
from sgc_distiller.schedule_plan import planned_rates, planned_targets
from sgc_distiller.supervision import Supervision
from sgc_distiller.tasks import build_task
from sgc_distiller.yaml_source import write

__all__ = ["Outline", "inspect_schedule", "plain_text", "plot_outline", "write_plain"]


@dataclass(frozen=True)
class Outline:
    """What happens in each epoch of a schedule.

    Attributes:
        source: The schedule's file.
        checked: What it was checked against, in words.
        epochs: How many epochs there are; they count from 0.
        groups: For each pruner, by name, smallest and largest sparsity asked in each epoch, None where only
            training tells.
        overall: Sparsity asked of all weights of convolutions and linear layers together, None where only
            training tells; empty without a model, and where nothing is known.
        rates: Learning rate of each epoch, None where it follows a metric.
        is_relative: Whether rates are multiples of the initial one, since no task says what that is.
        active: Names of the policies of each epoch, in the order in which they are called.
        discriminator: The same for the discriminator's own schedule.
    """

    source: str
    checked: str
    epochs: int
    groups: dict[str, list[tuple[float, float] | None]]
    overall: list[float | None]
    rates: list[float | None]
    is_relative: bool
    active: list[list[str]]
    discriminator: Outline | None = None
    networks: Networks | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Networks:
    """Stand-ins for the networks that a schedule is for.

    Attributes:
        schedule: The schedule.
        generator: Its model.
        discriminator: The model of the discriminator's own schedule.
        supervision: Keeps what its policies need alive.
    """

    schedule: Schedule
    generator: nn.Module
    discriminator: nn.Module
    supervision: Supervision


def inspect_schedule(
    filename: str | Path,
    task: str | None = None,
    task_options: Mapping[str, Any] | None = None,
    weights_from: str | None = None,
    lr: float | None = None,
) -> Outline:
    """Check a schedule and return what it does.

    Args:
        filename: The schedule.
        task: A name of `sgc_distiller.tasks.TASKS`, to check names and shapes against its networks; None to
            check what shows without a model.
        task_options: Sizes of the task.
        weights_from: A checkpoint whose names and shapes must fit too.
        lr: Initial learning rate; by default the schedule's, else the task's.

    Raises:
        UserError: If there is a mistake in the schedule, or it does not fit.
    """
    schedule = read_schedule(filename)
    if task is None:
        return _outline(schedule, None, None, lr, "the file alone; -a TASK checks names and shapes too")
    made = build_task(task, task_options)
    width = schedule.gan.student.width if schedule.gan else 1.0
    generator, discriminator = made.build("generator", width), made.build("discriminator")
    checked = f"{task}, {dict(made.options)}"
    if weights_from:
        content = checkpoints.load_checkpoint(weights_from)
        state = made.adapted(content["state_dict"])
        checkpoints.load_weights(made.build("generator"), state, f"{weights_from}, generator")
        checked = f"{weights_from} ({checked})"
    supervision = Supervision(made, generator, discriminator, made.build("generator"))
    networks = Networks(schedule, generator, discriminator, supervision)
    optimizer = made.optimizer("generator", generator, lr or (schedule.gan.lr if schedule.gan else None))
    rate = float(optimizer.param_groups[0]["lr"])
    schedule.build(generator, optimizer, seed=0)
    own = schedule.discriminator
    if own is not None:
        own.build(discriminator, made.optimizer("discriminator", discriminator, rate), seed=0)
    return _outline(schedule, networks, generator, rate, checked)


def _outline(
    schedule: Schedule,
    networks: Networks | None,
    model: nn.Module | None,
    rate: float | None,
    checked: str,
    epochs: int | None = None,
) -> Outline:
    epochs = schedule.epochs if epochs is None else epochs
    pruning = schedule.pruners(model)
    rating = [policy for policy in schedule.policies if policy.section == "lr_schedulers"]
    rest = [policy for policy in schedule.policies if policy.section != "lr_schedulers"]
    overall = schedule.asked_overall(model, epochs) if model is not None else []
    own = schedule.discriminator
    judge = networks.discriminator if networks else None
    return Outline(
        source=schedule.source,
        checked=checked,
        epochs=epochs,
        groups=planned_targets(pruning, epochs),
        overall=overall if any(share is not None for share in overall) else [],
        rates=planned_rates(rating, epochs, 1.0 if rate is None else rate),
        is_relative=rate is None,
        active=[[p.instance.name for p in [*rest, *rating] if epoch in p.active] for epoch in range(epochs)],
        discriminator=_outline(own, networks, judge, rate, checked, epochs) if own else None,
        networks=networks,
    )


def write_plain(outline: Outline, path: str | Path) -> list[Path]:
    """Write a schedule as Intel's Distiller reads it, see `plain_schedule`.

    Args:
        outline: Of a schedule that was checked against a task.
        path: The file; the discriminator's own schedule goes into a second one, ``NAME.discriminator.yaml``.

    Returns:
        The files.

    Raises:
        UserError: If no task was named, something cannot be expressed in Distiller, or a file is the schedule
            itself.
    """
    networks = outline.networks
    if networks is None:
        raise UserError(
            "expected a task whose parameters a plain schedule names in full, got none; add -a TASK or "
            "--exp-load-weights-from CHECKPOINT"
        )
    target = Path(path)
    plain = {target: networks.schedule.plain(networks.generator)}
    judge = networks.schedule.discriminator
    if judge is not None:
        plain[target.with_suffix(f".discriminator{target.suffix}")] = judge.plain(networks.discriminator)
    for file in plain:
        if file.exists() and file.samefile(outline.source):
            raise UserError(
                f"{file}: expected another file for the plain schedule, got the schedule that it is made of; "
                "name a new one, such as plain.yaml"
            )
    for file, content in plain.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        own = sorted(
            {**own_classes(networks.schedule.policies), **(own_classes(judge.policies) if judge else {})}
        )
        file.write_text(plain_text(content, Path(outline.source).name, own), encoding="utf-8")
    return list(plain)


def plain_text(content: Mapping[str, Any], made_of: str, own: Sequence[str] = ()) -> str:
    """Return a plain schedule as the text of a file.

    Args:
        content: The schedule.
        made_of: Name of the schedule that it was made of.
        own: Names of the user's own classes in it.
    """
    return (
        f"# {made_of} as Intel's Distiller reads it: names in full, stored axes. Before it is read, call\n"
        "# sgc_distiller.register(distiller), and build the Supervision that its policies need.\n"
        f"{''.join(f'# Before it is read, set distiller.config.{name} = {name}.{chr(10)}' for name in own)}"
        f"{write(content)}"
    )


def plot_outline(outline: Outline, path: str | Path) -> None:
    """Draw sparsity, learning rate and active policies over the epochs.

    Where a pruner's weights or its drawings differ there is a band in the place of a line.

    Args:
        outline: What is drawn.
        path: A file whose suffix names its format: ``.png``, ``.svg``, ``.pdf``.

    Raises:
        UserError: If the format is unknown.
    """
    figure = Figure(figsize=(8, 6), layout="constrained")
    above, below, bars = figure.subplots(3, 1, sharex=True, height_ratios=(3, 1, 1))
    epochs = range(outline.epochs + 1)  # the last epoch is as wide as the others
    rows = dict(outline.groups)
    if outline.discriminator is not None:
        rows |= {f"discriminator: {name}": row for name, row in outline.discriminator.groups.items()}
    for name, row in rows.items():
        low, high = ([100 * asked[end] if asked else nan for asked in [*row, *row[-1:]]] for end in (0, 1))
        same = [right if left == right else nan for left, right in zip(low, high, strict=True)]
        (line,) = above.step(epochs, same, where="post", label=name)
        above.fill_between(epochs, low, high, step="post", color=line.get_color(), alpha=0.3, linewidth=0)
    if outline.overall:
        total = [nan if value is None else 100 * value for value in outline.overall]
        all_of_it = [*total, *total[-1:]]
        above.step(epochs, all_of_it, where="post", label="all weights", color="black", linestyle="--")
    above.set_ylabel("sparsity asked, %")
    above.set_ylim(-2, 102)
    if above.get_legend_handles_labels()[0]:
        above.legend(loc="upper left", frameon=False)
    rates = [nan if rate is None else rate for rate in outline.rates]
    below.step(epochs, [*rates, *rates[-1:]], where="post", color="black")
    below.set_ylabel("rate" + (" (relative)" if outline.is_relative else ""))
    below.set_ylim(bottom=0)
    active = _epochs_by_policy(outline)
    if outline.discriminator is not None:
        own = _epochs_by_policy(outline.discriminator)
        active |= {f"discriminator: {name}": found for name, found in own.items()}
    for place, found in enumerate(active.values()):
        spans = [(epoch, 1) for epoch in found]
        bars.broken_barh(spans, (place - 0.35, 0.7), color="0.6")
    bars.set_yticks(range(len(active)), list(active))
    bars.set_ylabel("active")
    bars.set_xlim(0, max(1, outline.epochs))
    bars.set_xlabel("epoch")
    bars.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    figure.suptitle(Path(outline.source).name)
    known = sorted(figure.canvas.get_supported_filetypes())
    if Path(path).suffix.lstrip(".").lower() not in known:
        raise UserError(f"{path}: expected a file name that ends in one of .{', .'.join(known)}")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.fonttype": "none"}):
        figure.savefig(path, dpi=120)


def _epochs_by_policy(outline: Outline) -> dict[str, list[int]]:
    """Return the active epochs by the name of each policy, in the order of their first ones."""
    names = list(dict.fromkeys(name for row in outline.active for name in row))
    return {name: [epoch for epoch, row in enumerate(outline.active) if name in row] for name in names}
