"""Thinning the generator of a finished run into a run folder of its own."""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sgc_distiller import checkpoints
from sgc_distiller.compute import multiply_adds
from sgc_distiller.deployment import Inputs, example_inputs
from sgc_distiller.errors import UserError
from sgc_distiller.finished import Finished, open_finished
from sgc_distiller.module_state import Part, parts_of, unwrapped
from sgc_distiller.recording import Console
from sgc_distiller.runs import RunFolder
from sgc_distiller.settings import Options
from sgc_distiller.studies.tables import Table
from sgc_distiller.thinning import Cut, Thinning, cut_tensor, sizes_beside, thin

__all__ = ["TOLERANCE", "thin_generator", "thin_run", "thinned_tables"]

Record = dict[str, Any]

log = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""How far a thinned generator's pictures may be from the masked one's, in units of their range's half."""

_SAMPLES = 4  # that both are compared on


def thin_run(options: Options, folder: str | Path, console: Console | None = None) -> Record:
    """Thin the generator of a checkpoint and write a run folder with it.

    The new checkpoint loads, resumes, evaluates and exports as any other; its ``teacher.pth`` is the dense
    generator that the run was supervised by, so that a supervised run can start from it.

    Args:
        options: Name the checkpoint by ``resume_from`` or ``weights_from``.
        folder: The new run folder.
        console: Where a person follows.

    Returns:
        ``checkpoint``; ``layers``, a record a layer with its ``name``, its outputs ``before`` and ``after``,
        and why zero filters of it ``stays``; ``parameters`` and ``macs`` (multiply-adds of one sample) before
        and after, each a pair; ``difference``, the largest one between the pictures.

    Raises:
        UserError: If there is nothing to take out, the network cannot be followed, its pictures would change,
            or the folder holds another run.
    """
    target = Path(folder)
    if (target / "checkpoint.pth.tar").exists():
        raise UserError(f"{target}: holds a run already; name another folder with -o")
    opened = open_finished(options, console)
    before = unwrapped(opened.generator)
    names = [name for name, _ in before.named_parameters()]
    whole = copy.deepcopy(before)
    result, thinning = thin_generator(opened)
    if not thinning.sizes:
        raise UserError(
            f"{opened.source}: expected filters that can be taken out, found none; {_advice(opened, result)}"
        )
    content = _thinner(opened, thinning, names, [name for name, _ in before.named_parameters()])
    _write(opened, target, content)
    result["layers"] = _layers(whole, before, result.pop("stays"))
    result["checkpoint"] = str(target / "checkpoint.pth.tar")
    return result


def _advice(opened: Finished, result: Record) -> str:
    """Return what to do where nothing can be taken out."""
    if result["stays"]:
        reasons = "; ".join(f"{path}: {why[0]}" for path, why in result["stays"].items())
        return f"its zero filters must stay, since {reasons}"
    if opened.content.get("thinned"):
        return "it has been thinned already"
    return (
        "prune whole filters first, those together whose outputs are added up, such as with "
        "--compress granularity/coupled_filter"
    )


def thinned_tables(result: Record) -> list[Table]:
    """Return what `thin_run` returned as tables for a person."""
    rows: list[tuple[str, ...]] = [
        (item["name"], str(item["before"]), str(item["after"]), "; ".join(sorted(set(item["stays"]))))
        for item in result["layers"]
    ]
    totals: list[tuple[str, ...]] = [
        (name.replace("_", "-"), f"{before:,}", f"{after:,}", f"{before / after:.2f}")
        for name, (before, after) in (("parameters", result["parameters"]), ("multiply-adds", result["macs"]))
    ]
    note = (
        f"The pictures differ by {result['difference']:.1e} at most from those of the masked generator. "
        "Multiply-adds are of one sample."
    )
    return [
        Table("Outputs of each layer", ("layer", "before", "after", "why zero filters stay"), rows),
        Table("Thinned", ("", "before", "after", "times smaller"), totals, [note]),
    ]


def thin_generator(opened: Finished) -> tuple[Record, Thinning]:
    """Thin a generator in place, after it was shown that its pictures stay the same.

    Args:
        opened: The generator.

    Returns:
        What `thin_run` returns of numbers, and what was taken out, with names of the whole generator.

    Raises:
        UserError: If the network cannot be followed, or its pictures would change.
    """
    run, generator = opened.run, unwrapped(opened.generator)
    deployed = run.task.deploy(generator)
    inputs = example_inputs(run.task, deployed, run.data, _SAMPLES, run.options.seed)
    own = {part.name: part.network for part in parts_of(generator)}
    whole = Thinning()
    numbers: Record = {"parameters": [_count(generator)], "macs": [_work(deployed, inputs)]}
    largest = 0.0
    for part in parts_of(deployed):
        wanted = _pictures(part, inputs)
        found = thin(own[part.name], part.network)
        difference = float((_pictures(part, inputs) - wanted).abs().max())
        if not difference <= TOLERANCE:  # not-a-number too
            raise UserError(
                f"{opened.source}: the pictures of the thinned {part.name} differ by {difference:.3g} from "
                f"those of the masked one, expected at most {TOLERANCE:g}; nothing was written. Please "
                "report it, with the network's code"
            )
        largest = max(largest, difference)
        whole.include(found, part.prefix)
    numbers["parameters"].append(_count(generator))
    numbers["macs"].append(_work(deployed, inputs))
    return {**numbers, "difference": largest, "stays": whole.stays, "removed": whole.removed}, whole


def _pictures(part: Part, inputs: Mapping[str, Inputs]) -> Tensor:
    with torch.no_grad():
        made: Tensor = part.network(*inputs[part.name])
    return made.double()


def _count(network: nn.Module) -> int:
    return sum(item.numel() for item in network.parameters())


def _work(generator: nn.Module, inputs: Mapping[str, Inputs]) -> int:
    """Return the multiply-adds of all networks for one sample."""
    return sum(
        layer.macs
        for part in parts_of(generator)
        for layer in multiply_adds(part.network, tuple(item[:1] for item in inputs[part.name]))
    )


def _layers(before: nn.Module, after: nn.Module, stays: Mapping[str, list[str]]) -> list[Record]:
    """Return the outputs of every convolution and linear layer before and after."""
    found = []
    for path, module in after.named_modules():
        for name in ("out_channels", "out_features"):
            if hasattr(module, name):
                was = getattr(before.get_submodule(path), name)
                now = getattr(module, name)
                found.append({"name": path, "before": was, "after": now, "stays": stays.get(path, [])})
    return found


def _thinner(opened: Finished, thinning: Thinning, before: Sequence[str], after: Sequence[str]) -> Record:
    """Return the checkpoint of the thinned generator: everything that has its shape is cut alike."""
    content = dict(opened.content)
    content["state_dict"] = unwrapped(opened.generator).state_dict()
    built = opened.run.build("generator", float(content.get("student_width", 1.0)))
    content["thinned"] = sizes_beside(unwrapped(opened.generator), built)
    content["arch"] = opened.run.task.name
    content["task_options"] = dict(opened.run.task.options)
    content.pop("dense_weights", None)  # of masks that held in forward passes only
    content.pop("thinned_from", None)  # the new run begins with what is left
    if content.get("optimizer_state_dict"):
        state = content["optimizer_state_dict"]
        content["optimizer_state_dict"] = _cut_optimizer(state, thinning.cuts, before, after)
    sched = content.get("compression_sched")
    if sched:
        masks = {
            name: mask if mask is None else cut_tensor(mask, thinning.cuts.get(name, ()))
            for name, mask in sched["masks_dict"].items()
        }
        content["compression_sched"] = {**sched, "masks_dict": {**dict.fromkeys(after), **masks}}
    return content


def _cut_optimizer(
    state: Record, cuts: Mapping[str, Sequence[Cut]], before: Sequence[str], after: Sequence[str]
) -> Record:
    """Return an optimiser's state for the parameters that there are now; new ones begin without."""
    places = {name: index for index, name in enumerate(after)}
    moments = {
        places[before[index]]: {
            key: cut_tensor(value, cuts.get(before[index], ()))
            if isinstance(value, Tensor) and value.dim()
            else value
            for key, value in own.items()
        }
        for index, own in state["state"].items()
    }
    (group,) = state["param_groups"]
    return {"state": moments, "param_groups": [{**group, "params": list(range(len(after)))}]}


def _write(opened: Finished, target: Path, content: Record) -> None:
    source = checkpoints.find_checkpoint(opened.source)
    old = RunFolder(source.parent if source.is_file() else source, create=False)
    folder = RunFolder(target)
    try:
        for file in (old.teacher_file, old.schedule_file):
            if file.is_file():
                shutil.copyfile(file, folder.path / file.name)
        config = {**content.get("config", {}), "folder": str(target), "data": opened.run.options.data}
        folder.write_config(config)
        folder.write_environment(opened.run.device)
        checkpoints.save_checkpoint(folder.checkpoint_file, content)
    finally:
        folder.close()
