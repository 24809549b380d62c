"""Networks as ONNX files that onnxruntime computes the same pictures with."""

from __future__ import annotations

import inspect
import io
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sgc_distiller.deployment import Inputs
from sgc_distiller.errors import UserError
from sgc_distiller.export_subject import Subject, verified
from sgc_distiller.optional_packages import load

__all__ = ["OPSET", "onnx_bytes"]

OPSET = 17
"""Version of ONNX's operators: of 2022, so that also older runtimes read the file."""

_WHAT = "exporting to ONNX"


def onnx_bytes(subject: Subject, properties: Mapping[str, str]) -> tuple[bytes, float]:
    """Return a network as an ONNX file, and by how much its outputs differ at most.

    The first dimension of all inputs and outputs is free and called ``batch``.

    Args:
        subject: The network.
        properties: What the file's metadata say.

    Raises:
        UserError: If the network cannot be exported, ONNX's checker refuses the file, or onnxruntime
            computes something else from it.
    """
    onnx = load("onnx", _WHAT)
    name = f"ONNX, {subject.part.name}"
    model = onnx.load_model_from_string(_exported(subject, name))
    onnx.helper.set_model_props(model, dict(properties))
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise UserError(f"{name}: ONNX's checker refuses the file: {error}") from error
    content: bytes = model.SerializeToString()
    return content, verified(subject, _session(content, subject.inputs), name)


def _exported(subject: Subject, name: str) -> bytes:
    """Return what torch makes of a network.

    By the exporter that records a forward pass: it is in every torch from 2.4 on, while the one that is
    built on torch.export changed with every release, needs another package, and takes ten times as long.
    Recording takes decisions in Python code for constants; what that breaks, the comparison finds.
    """
    free = {item: {0: "batch"} for item in (*subject.inputs, *subject.outputs)}
    settings: dict[str, Any] = {"input_names": list(subject.inputs), "output_names": list(subject.outputs)}
    if "dynamo" in inspect.signature(torch.onnx.export).parameters:  # torch 2.4 has no other one
        settings["dynamo"] = False
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the decisions, and that another exporter is the default by now
        try:
            torch.onnx.export(
                subject.part.network,
                subject.examples[0],
                file,  # type: ignore[arg-type]  # the recording exporter takes files too
                opset_version=OPSET,
                dynamic_axes=free,
                **settings,
            )
        except Exception as error:  # unknown operators, among much else
            raise UserError(
                f"{name}: torch cannot export this network ({error}); change what it names, or leave this "
                "format out with --formats"
            ) from error
    return file.getvalue()


def _session(content: bytes, names: tuple[str, ...]) -> Callable[[Inputs], list[Tensor]]:
    """Return a function that computes a file's outputs with onnxruntime on the CPU."""
    runtime = load("onnxruntime", _WHAT)
    settings = runtime.SessionOptions()
    settings.log_severity_level = 3  # errors
    session = runtime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])

    def run(inputs: Inputs) -> list[Tensor]:
        given = dict(zip(names, (item.numpy() for item in inputs), strict=True))
        return [torch.from_numpy(made) for made in session.run(None, given)]

    return run
