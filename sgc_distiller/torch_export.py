"""Networks as files of torch.export (``.pt2``), which load without the code that defines them."""

from __future__ import annotations

import io
import warnings
from typing import Any

import torch
from torch import Tensor

from sgc_distiller.deployment import Inputs
from sgc_distiller.errors import UserError
from sgc_distiller.export_subject import Subject, verified

__all__ = ["torch_bytes"]


def torch_bytes(subject: Subject) -> tuple[bytes, float]:
    """Return a network as a ``.pt2`` file, and by how much its outputs differ at most.

    The first dimension of all inputs is free and the same.

    Raises:
        UserError: If the network cannot be exported, or computes something else after loading.
    """
    name = f"torch.export, {subject.part.name}"
    batch = torch.export.Dim("batch")
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's remarks on its own internals
        try:
            program = torch.export.export(
                subject.part.network,
                subject.examples[0],
                dynamic_shapes=tuple({0: batch} for _ in subject.inputs),
                strict=False,  # checks of sizes in Python run as they are
            )
            torch.export.save(program, file)
        except Exception as error:  # what it cannot follow, among much else
            raise UserError(
                f"{name}: torch cannot export this network ({_short(error)}); change what it names, or leave "
                "this format out with --formats"
            ) from error
        content = file.getvalue()
        loaded: Any = torch.export.load(io.BytesIO(content)).module()

        def run(inputs: Inputs) -> list[Tensor]:
            made = loaded(*inputs)
            return [made] if isinstance(made, Tensor) else list(made)

        return content, verified(subject, run, name)


def _short(error: Exception) -> str:
    """Return the lines of an error that say what is wrong; torch adds pages on how to debug it."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:400] or type(error).__name__
