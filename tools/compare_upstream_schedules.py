"""Run the schedules that Intel's Distiller ships here and in Distiller itself, and compare.

    python tools/compare_upstream_schedules.py PATH_TO_DISTILLER [--only TEXT]

PATH_TO_DISTILLER is a checkout of https://github.com/IntelLabs/distiller; its dependencies and
``pkg_resources`` (setuptools before 81) must be importable. Each YAML file in it that has policies is loaded
for a small model with the parameters that it names, in both runtimes from the same seeds, and trained on
random targets in the first and in the last active epoch of every policy. Masks must be the same exactly,
weights, losses and their parts within 2e-6, learning rates within 1e-12.

One line a file, then counts. Exits with 1 when a file differs, is refused without need, or fails here.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import io
import logging
import random
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import yaml
from torch import Tensor, nn
from upstream_stand_in import batchnorm_after, instances, stand_in

import sgc_distiller
from sgc_distiller.errors import UserError
from sgc_distiller.remover_checks import removal_epochs
from sgc_distiller.removers import REMOVERS
from sgc_distiller.schedule import CLASSES, Schedule, read_schedule

TOLERANCE = 2e-6
MINIBATCHES = 3
TAKEN_OUT = "removers taken out"
GOOD = {
    "equal": "the same in both",
    "helped": "the same once Distiller's own fault was worked around",
    "mended": "refused as it stands, the same once mended",
    "quantizer": "quantizers, refused in one line",
    "stopped": "the same up to an error of Distiller's; goes on here",
    "both refuse": "refused here, an error in Distiller",
}
BAD = {
    "missing": "a class that does not exist here",
    "refused": "refused here, runs in Distiller",
    "failed": "fails here",
    "different": "different",
}


@dataclass
class Verdict:
    """What came out for one file: a key of `GOOD` or `BAD`, and why."""

    kind: str
    note: str = ""


@dataclass
class Run:
    """One runtime's answers: values by moment and name, as far as it came, and the error that ended it."""

    seen: dict[tuple[str, str], Any] = field(default_factory=dict)
    error: Exception | None = None


def active_ends(policy: Mapping[str, Any]) -> list[int]:
    """Return a policy's first and last active epoch."""
    if "epochs" in policy:
        return [policy["epochs"][0], policy["epochs"][-1]]
    epochs = range(policy["starting_epoch"], policy["ending_epoch"], policy["frequency"])
    return [epochs[0], epochs[-1]]


def minibatches(schedule: Mapping[str, Any]) -> int:
    """Return how many steps an epoch needs, so that masks are also computed in the middle of one."""
    args = [(policy.get("pruner") or {}).get("args") or {} for policy in schedule["policies"]]
    every = [int(arg.get("mini_batch_pruning_frequency", 0)) for arg in args]
    return max([MINIBATCHES, *(count + 1 for count in every)])


def without_removers(schedule: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schedule without the extensions that thin, and without their policies."""
    gone = {name for name, item in (schedule.get("extensions") or {}).items() if item["class"] in REMOVERS}
    if not gone:
        return dict(schedule)
    others = {name: item for name, item in schedule["extensions"].items() if name not in gone}
    kept = {key: value for key, value in schedule.items() if key != "extensions"}
    if others:
        kept["extensions"] = others
    kept["policies"] = [
        policy
        for policy in schedule["policies"]
        if policy.get("extension", {}).get("instance_name") not in gone
    ]
    return kept


def mended(schedule: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schedule with a list where ``weights`` is a text (keys that stood twice are gone anyway)."""
    copied = copy.deepcopy(dict(schedule))
    for instance in instances(copied):
        if isinstance(instance.get("weights"), str):
            instance["weights"] = [instance["weights"]]  # type: ignore[index]
    return copied


def seed_everything() -> None:
    """Seed what pruners draw from."""
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)


def play(config: Callable[..., Any], path: Path, schedule: Mapping[str, Any], model: nn.Module) -> Run:
    """Load a file and train a copy of ``model``; errors end the run and are kept."""
    run = Run()
    model = copy.deepcopy(model)
    seed_everything()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            scheduler = config(model, optimizer, str(path))
            train(scheduler, model, optimizer, schedule, run)
    except Exception as error:
        run.error = error
    return run


def train(scheduler: Any, model: nn.Module, optimizer: Any, schedule: Mapping[str, Any], run: Run) -> None:
    """Play the loop of the first and last active epochs, and note masks, weights, losses and rates."""
    steps = minibatches(schedule)
    targets = {name: param.detach().clone() for name, param in model.named_parameters()}

    def look(moment: str) -> None:
        for name, param in model.named_parameters():
            mask = scheduler.zeros_mask_dict[name].mask
            run.seen[moment, f"mask of {name}"] = None if mask is None else mask.detach().clone()
            run.seen[moment, f"weights of {name}"] = param.detach().clone()

    for epoch in sorted({end for policy in schedule["policies"] for end in active_ends(policy)}):
        scheduler.on_epoch_begin(epoch, optimizer)
        for step in range(steps):
            moment = f"epoch {epoch}, step {step}"
            scheduler.on_minibatch_begin(epoch, step, steps, optimizer)
            look(f"{moment}, forward")
            loss = loss_of(model, targets, epoch * steps + step)
            answer = scheduler.before_backward_pass(
                epoch, step, steps, loss, optimizer, return_loss_components=True
            )
            run.seen[moment, "loss"] = answer.overall_loss.detach().clone()
            for index, part in enumerate(answer.loss_components):
                run.seen[moment, f"part {index} of the loss, {part.name}"] = part.value.detach().clone()
            optimizer.zero_grad()
            answer.overall_loss.backward()
            scheduler.before_parameter_optimization(epoch, step, steps, optimizer)
            optimizer.step()
            scheduler.on_minibatch_end(epoch, step, steps, optimizer)
            look(f"{moment}, end")
        scheduler.on_epoch_end(epoch, optimizer, metrics={"min": float(1 + epoch % 7), "max": 0.5})
        look(f"end of epoch {epoch}")
        run.seen[f"end of epoch {epoch}", "learning rate"] = optimizer.param_groups[0]["lr"]


def loss_of(model: nn.Module, targets: Mapping[str, Tensor], step: int) -> Tensor:
    """Return half the squared distance of all weights from targets that are drawn anew for each step."""
    stream = torch.Generator().manual_seed(step)
    total = torch.zeros(())
    for name, param in model.named_parameters():
        factor = 1 + 0.5 * torch.randn(param.shape, generator=stream)
        total = total + 0.5 * (param - factor * targets[name]).pow(2).sum()
    return total


def difference(ours: Run, theirs: Run) -> str:
    """Return the first difference between what both have seen, or an empty text."""
    for key, their in theirs.seen.items():
        moment, what = key
        if key not in ours.seen:
            return f"{moment}: {what}: not there here" if ours.error is None else ""
        our = ours.seen[key]
        if what == "learning rate":
            if abs(our - their) > 1e-12 * max(1.0, abs(their)):
                return f"{moment}: {what}: {our} here, {their} in Distiller"
        elif our is None or their is None:
            if our is not their:
                kept = "no mask" if our is None else f"a mask with {int((our == 0).sum())} zeros"
                other = "no mask" if their is None else f"one with {int((their == 0).sum())} zeros"
                return f"{moment}: {what}: {kept} here, {other} in Distiller"
        else:
            problem = tensor_difference(our.to(torch.float64), their.to(torch.float64), what)
            if problem:
                return f"{moment}: {what}: {problem}"
    extra = [f"{moment}: {what}" for moment, what in ours.seen if (moment, what) not in theirs.seen]
    return f"{extra[0]}: only here" if extra and theirs.error is None else ""


def tensor_difference(our: Tensor, their: Tensor, what: str) -> str:
    """Return how two tensors differ, or an empty text; masks of zeros and ones must be the same exactly."""
    if our.shape != their.shape:
        return f"shape {tuple(our.shape)} here, {tuple(their.shape)} in Distiller"
    scale = their.abs().clamp(min=1.0) if "loss" in what else torch.ones(())
    wrong = (our - their).abs() > TOLERANCE * scale
    wrong |= our.isnan() != their.isnan()
    if not wrong.any():
        return ""
    if what.startswith("mask"):
        zeros = f"{int((our == 0).sum())} zeros here, {int((their == 0).sum())} in Distiller"
        return f"{int(wrong.sum())} of {wrong.numel()} differ; {zeros}"
    return f"{int(wrong.sum())} of {wrong.numel()} differ, by up to {(our - their).abs().max():.3g}"


class KnownGraph:
    """Answers what Distiller's graph of a network answers when batch norms are folded, from the names."""

    def __init__(self, model: nn.Module, dummy_input: Tensor) -> None:
        self.modules = dict(model.named_modules())

    def successors_f(self, layer: str, kinds: list[str]) -> list[str]:
        """Return the batch norm behind a layer, if there is one."""
        norm = batchnorm_after(layer)
        return [norm] if isinstance(self.modules.get(norm), nn.BatchNorm2d) else []


@contextlib.contextmanager
def helped(distiller: Any) -> Iterator[None]:
    """Let Distiller do on this machine what it does on a GPU with the torch of its time.

    ``.cuda()`` leaves a tensor where it is, masks are written out in full as a copy to the GPU does, and
    the graph of the network, whose tracer needs an old torch, is known.
    """
    expand = distiller.thresholding.expand_binary_map

    def written_out(*args: Any, **kwargs: Any) -> Any:
        mask, binary_map = expand(*args, **kwargs)
        return mask.contiguous(), binary_map

    with (
        mock.patch.object(torch.Tensor, "cuda", lambda tensor, *_, **__: tensor),
        mock.patch.object(distiller.thresholding, "expand_binary_map", written_out),
        mock.patch.object(distiller, "SummaryGraph", KnownGraph),
    ):
        yield


def missing_classes(schedule: Mapping[str, Any]) -> list[str]:
    """Return the classes that a schedule names and this package does not know."""
    sections = ("pruners", "regularizers", "lr_schedulers", "extensions")
    return sorted(
        {
            item["class"]
            for section in sections
            for item in (schedule.get(section) or {}).values()
            if item["class"] not in CLASSES.get(section, {})
        }
    )


def refusal(path: Path, model: nn.Module) -> str:
    """Return why this package refuses a file, or an empty text.

    Removers are read, but not built: the stand-in has parameters and no layers that something could be taken
    out of.
    """
    model = copy.deepcopy(model)
    try:
        schedule = read_schedule(path)
        if removal_epochs(schedule.policies):
            schedule = Schedule.from_dict(without_removers(yaml.safe_load(path.read_text(encoding="utf-8"))))
        schedule.build(model, torch.optim.SGD(model.parameters(), lr=0.1))
    except UserError as error:
        return str(error).removeprefix(f"{path}:")
    return ""


def written(path: Path, schedule: Mapping[str, Any]) -> Path:
    """Write a schedule to a file and return the file's path."""
    path.write_text(yaml.safe_dump(schedule, sort_keys=False), encoding="utf-8")
    return path


def compare(distiller: Any, path: Path, folder: Path) -> Verdict:
    """Run one file in both runtimes.

    Args:
        distiller: The real Distiller.
        path: The file.
        folder: Where changed copies of it are written.
    """
    original = yaml.safe_load(path.read_text(encoding="utf-8"))
    model = stand_in(original)
    refused = refusal(path, model)
    if "quantizers" in original:
        is_one_line = "quantizers" in refused and "\n" not in refused
        return Verdict("quantizer" if is_one_line else "failed", refused or "not refused")
    if missing := missing_classes(original):
        return Verdict("missing", ", ".join(missing))
    schedule = without_removers(original)
    is_whole = schedule == original
    their_path = path if is_whole else written(folder / f"theirs_{path.name}", schedule)
    is_ours = is_whole and not refused
    our_path = path if is_ours else written(folder / f"ours_{path.name}", mended(schedule))
    ours = play(sgc_distiller.file_config, our_path, schedule, model)
    theirs = play(distiller.file_config, their_path, schedule, model)
    fault = theirs.error
    if fault is not None:
        with helped(distiller):
            theirs = play(distiller.file_config, their_path, schedule, model)
    verdict = judge(ours, theirs, fault, refused)
    verdict.note = verdict.note.replace(f"{folder}/ours_", "") + ("" if is_whole else f"; {TAKEN_OUT}")
    return verdict


def judge(ours: Run, theirs: Run, fault: Exception | None, refused: str) -> Verdict:
    """Return what two runs mean.

    Args:
        ours: The run here.
        theirs: Distiller's, helped if it failed alone.
        fault: The error with which Distiller failed alone.
        refused: Why this package refuses the file as it stands.
    """
    known = "" if fault is None else f"Distiller alone: {short(fault)}"
    if isinstance(ours.error, UserError):
        why = short(ours.error)
        return Verdict("both refuse", f"{why}; {known}") if theirs.error else Verdict("refused", why)
    if ours.error is not None:
        return Verdict("failed", short(ours.error))
    if problem := difference(ours, theirs):
        return Verdict("different", "; ".join(filter(None, (problem, known))))
    masks = {what: value for (_, what), value in ours.seen.items() if "mask of" in what and value is not None}
    pruned = sum(bool((mask == 0).any()) for mask in masks.values())
    note = f"{len(ours.seen)} values, {pruned} parameters pruned"
    if theirs.error is not None:
        return Verdict("stopped", f"{len(theirs.seen)} values; Distiller: {short(theirs.error)}")
    if refused:
        return Verdict("mended", "; ".join(filter(None, (note, refused, known))))
    return Verdict("helped", f"{note}; {known}") if known else Verdict("equal", note)


def short(error: Exception) -> str:
    """Return an error on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]


def schedules_in(folder: Path) -> list[Path]:
    """Return the YAML files below a folder that have policies."""
    found = []
    for path in sorted(folder.rglob("*.yaml")):
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        if isinstance(values, dict) and "policies" in values:
            found.append(path)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Compare all files, print what came out, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("distiller", type=Path, help="a checkout of Intel's Distiller")
    parser.add_argument("--only", default="", help="compare only files with this text in their paths")
    options = parser.parse_args(arguments)
    root = options.distiller.resolve()
    sys.path.insert(0, str(root))
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    distiller = importlib.import_module("distiller")
    if not hasattr(distiller, "file_config"):
        parser.error(f"Expected a checkout of Intel's Distiller, got {root}.")
    counts: Counter[str] = Counter()
    thinned = 0
    with tempfile.TemporaryDirectory() as folder:
        for path in schedules_in(root):
            if options.only not in str(path):
                continue
            verdict = compare(distiller, path, Path(folder))
            counts[verdict.kind] += 1
            thinned += TAKEN_OUT in verdict.note
            print(f"{verdict.kind:<12}{path.relative_to(root)}  ({verdict.note})", flush=True)
    print(f"\n{sum(counts.values())} schedules with policies, {thinned} of them with removers")
    for kind, meaning in {**GOOD, **BAD}.items():
        print(f"{counts[kind]:>4} {kind}: {meaning}")
    return int(any(counts[kind] for kind in BAD))


if __name__ == "__main__":
    sys.exit(main())
