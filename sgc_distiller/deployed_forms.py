"""The forms in which a generator can be deployed: dense, masked, thinned, in other formats and runtimes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sgc_distiller.deployment import Inputs
from sgc_distiller.errors import UserError
from sgc_distiller.export_subject import subjects_of
from sgc_distiller.finished import Finished
from sgc_distiller.module_state import parts_of, unwrapped
from sgc_distiller.onnx_export import onnx_bytes
from sgc_distiller.optional_packages import load, missing
from sgc_distiller.thinned_runs import thin_generator

__all__ = ["Form", "deployed_forms"]

_MAP_DIMENSIONS = 4  # (B, C, H, W)


@dataclass
class Form:
    """One form of a generator.

    Attributes:
        name: Such as ``thinned, bf16``.
        generator: What it computes, as deployed.
        call: Runs it for inputs by network, see `example_inputs`.
        bytes: Size of its weights, or of its file.
        draws: A generator that draws as this form does, for the metric; ``None`` where another form's do.
        prepare: Brings inputs into the form's own layout, which is not timed.
    """

    name: str
    generator: nn.Module
    call: Callable[[Mapping[str, Inputs]], Any]
    bytes: int
    draws: nn.Module | None = None
    prepare: Callable[[Mapping[str, Inputs]], Mapping[str, Inputs]] = field(default=lambda inputs: inputs)


def deployed_forms(opened: Finished, dense: nn.Module, notes: list[str]) -> list[Form]:
    """Return the forms in which a generator can be deployed, the dense generator first.

    Args:
        opened: The pruned generator.
        dense: The one that it was made of.
        notes: Is given why a form is missing, a sentence each.
    """
    task = opened.run.task
    own = "thinned" if opened.content.get("thinned") else "masked"
    networks = {"dense": task.deploy(dense), own: task.deploy(opened.generator)}
    thin = copy.deepcopy(unwrapped(opened.generator))
    try:
        thin_generator(Finished(opened.run, thin, opened.content, opened.source))
    except UserError as error:
        notes.append(f"Not thinned: {error}.")
    else:
        thinner = task.deploy(thin)
        if _weight_bytes(thinner) == _weight_bytes(networks[own]):
            notes.append("There are no zero filters to take out.")
        else:
            networks["thinned" if own == "masked" else "thinned further"] = thinner
    best = list(networks)[-1]
    forms = [_eager(name, network) for name, network in networks.items()]
    for name in dict.fromkeys(("dense", best)):
        forms += [_channels_last(name, networks[name]), _bfloat16(name, networks[name])]
        form = _onnx_runtime(opened, name, networks[name], notes)
        forms += [form] if form else []
    return forms


def _run_parts(generator: nn.Module) -> Callable[[Mapping[str, Inputs]], list[Tensor]]:
    parts = parts_of(generator)
    return lambda inputs: [part.network(*inputs[part.name]) for part in parts]


def _eager(name: str, generator: nn.Module) -> Form:
    return Form(name, generator, _run_parts(generator), _weight_bytes(generator), generator)


def _channels_last(name: str, generator: nn.Module) -> Form:
    made = copy.deepcopy(generator).to(memory_format=torch.channels_last)

    def prepare(inputs: Mapping[str, Inputs]) -> Mapping[str, Inputs]:
        return {
            part: tuple(
                item.contiguous(memory_format=torch.channels_last) if item.dim() == _MAP_DIMENSIONS else item
                for item in given
            )
            for part, given in inputs.items()
        }

    return Form(f"{name}, channels_last", made, _run_parts(made), _weight_bytes(made), prepare=prepare)


class _Autocast(nn.Module):
    """A network that computes in bfloat16 where that is safe, and returns single precision."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> Tensor:
        with torch.autocast(inputs[0].device.type, torch.bfloat16):
            made: Tensor = self.network(*inputs)
        return made.float()


def _bfloat16(name: str, generator: nn.Module) -> Form:
    made = copy.deepcopy(generator)
    cast: nn.Module = _Autocast(made)
    if isinstance(made, nn.ModuleDict):
        cast = nn.ModuleDict({key: _Autocast(part) for key, part in made.items()})
    cast.is_deployed = True  # type: ignore[assignment]
    return Form(f"{name}, bf16", made, _run_parts(cast.eval()), _weight_bytes(made) // 2, cast)


def _onnx_runtime(opened: Finished, name: str, generator: nn.Module, notes: list[str]) -> Form | None:
    lacking = missing(("onnx", "onnxruntime"))
    if lacking or opened.run.device.type != "cpu":
        notes.append(
            f"ONNX Runtime was not measured: {', '.join(lacking)} not installed."
            if lacking
            else "ONNX Runtime was not measured: it is, on the CPU only."
        )
        return None
    runtime = load("onnxruntime", "ONNX Runtime")
    settings = runtime.SessionOptions()
    settings.log_severity_level = 3  # errors
    settings.intra_op_num_threads = torch.get_num_threads()
    sessions, size = {}, 0
    for subject in subjects_of(opened.run.task, generator, opened.run.data):
        content, _ = onnx_bytes(subject, {})
        session = runtime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])
        sessions[subject.part.name] = (session, tuple(subject.inputs))
        size += len(content)

    def call(inputs: Mapping[str, Any]) -> list[Any]:
        return [session.run(None, inputs[part]) for part, (session, _) in sessions.items()]

    def prepare(inputs: Mapping[str, Inputs]) -> Any:
        return {
            part: dict(zip(names, (item.numpy() for item in inputs[part]), strict=True))
            for part, (_, names) in sessions.items()
        }

    return Form(f"{name}, ONNX Runtime", generator, call, size, prepare=prepare)


def _weight_bytes(generator: nn.Module) -> int:
    return sum(item.numel() * item.element_size() for item in generator.state_dict().values())
