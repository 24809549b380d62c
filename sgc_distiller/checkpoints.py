"""Checkpoints with Distiller's keys, written whole or not at all, read without running code."""

from __future__ import annotations

import hashlib
import logging
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sgc_distiller.baseline_files import converted, find_files, looks_like
from sgc_distiller.errors import NotANumberError, UserError
from sgc_distiller.names import canonical
from sgc_distiller.runs import RunFolder, atomic_file
from sgc_distiller.weight_files import DESCRIPTION, is_weight_file, read_exported, read_weight_file

__all__ = [
    "find_checkpoint",
    "load_checkpoint",
    "load_weights",
    "plain_names",
    "save_checkpoint",
    "sha256",
]

log = logging.getLogger(__name__)


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint whole or not at all: through a temporary file, flushed and renamed.

    Args:
        path: Where to.
        content: Tensors, numbers, strings, and lists and dictionaries of them.

    Raises:
        NotANumberError: If a tensor in it is not finite; nothing is written then.
    """
    bad = _not_finite(content)
    if bad:
        raise NotANumberError(
            f"{path.name}: not written, since {_share_of(bad)}; earlier checkpoints are intact. Lower "
            "the learning rate and resume from the last one"
        )
    with atomic_file(path) as file:
        torch.save(dict(content), file)


def _not_finite(content: Mapping[str, Any]) -> list[str]:
    """Return the names of the tensors that hold infinity or not-a-number."""
    return [
        name
        for name, tensor in _tensors(content)
        if tensor.is_floating_point() and not tensor.isfinite().all()
    ]


def _share_of(bad: list[str]) -> str:
    """Return in words which tensors are not finite."""
    if len(bad) == 1:
        return f"{bad[0]} holds values that are not finite"
    return f"{len(bad)} tensors hold values that are not finite, the first {bad[0]}"


def _tensors(value: Any, name: str = "") -> list[tuple[str, Tensor]]:
    """Return every tensor inside nested containers with its path."""
    if isinstance(value, Tensor):
        return [(name, value)]
    items: list[tuple[Any, Any]] = []
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, list | tuple):
        items = list(enumerate(value))
    return [found for key, part in items for found in _tensors(part, f"{name}.{key}" if name else str(key))]


def find_checkpoint(path: str | Path) -> Path:
    """Return what a path means: a file, the checkpoint in a run folder, or a folder of several files.

    Several files are those of a baseline, or what ``sgc export`` wrote.

    Raises:
        UserError: If there is none, or if a baseline's files are ambiguous or not complete.
    """
    path = Path(path)
    if path.is_dir():
        inside = RunFolder(path, create=False).checkpoint_file
        if inside.is_file():
            return inside
        if (path / DESCRIPTION).is_file() or find_files(path):
            return path
        raise UserError(
            f"{path}: expected {inside.name} in this folder, got none; name a run folder or a checkpoint "
            "file. A run that was stopped before its first step has none: begin it again"
        )
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a checkpoint or a run folder, such as logs/<run>")
    return path


def load_checkpoint(path: str | Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint, a plain state dictionary or a baseline's files; no code in a file is run.

    Args:
        path: A file, also of safetensors, a run folder, a folder that ``sgc export`` wrote, or one of a
            baseline's files (see `find_files` in `sgc_distiller.baseline_files`).
        device: Where the tensors go.

    Returns:
        The checkpoint. Plain dictionaries of tensors, and those under BasicSR's ``params_ema`` or
        ``params``, come back as ``{"state_dict": ...}``; a folder of a baseline as that and
        ``discriminator_state_dict`` if a discriminator is there. Names of two generators or discriminators
        begin with ``G_A.``, ``G_B.``, ``D_A.`` and ``D_B.``.

    Raises:
        UserError: If a file is missing, damaged or something else.
    """
    path = find_checkpoint(path)
    return _load_folder(path, device) if path.is_dir() else _load_file(path, device)


def _load_folder(folder: Path, device: torch.device | str) -> dict[str, Any]:
    """Read exported files or a baseline's, and put them together."""
    if (folder / DESCRIPTION).is_file():
        return read_exported(folder, device)
    files = find_files(folder)
    log.info("%s: read %s", folder, ", ".join(file.name for file in files.values()))
    content: dict[str, Any] = {}
    for role, file in files.items():
        state = _load_file(file, device)["state_dict"]
        key = "state_dict" if role.startswith("G") else "discriminator_state_dict"
        prefix = f"{role}." if "_" in role else ""
        content.setdefault(key, {}).update({prefix + name: value for name, value in state.items()})
    return content


def _load_file(path: Path, device: torch.device | str) -> dict[str, Any]:
    if is_weight_file(path):
        return read_weight_file(path, device)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on files that it then refuses
            content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # damaged files make torch raise nearly anything
        raise UserError(
            f"{path}: cannot be read as a checkpoint ({_reason(path, error)}); expected a file written by "
            "torch.save that holds tensors, numbers and strings only. Take another checkpoint, or save its "
            "state_dict() anew"
        ) from None
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path}: expected a checkpoint or a state dictionary, got {type(content).__name__}")
    if "state_dict" in content:
        return dict(content)
    for key in ("params_ema", "params"):
        if _is_state(content.get(key)):
            if key == "params_ema":
                log.info("%s: took the averaged weights, params_ema", path)
            return {"state_dict": dict(content[key])}
    if _is_state(content):
        return {"state_dict": dict(content)}
    raise UserError(
        f"{path}: expected the key 'state_dict' or tensors only, got the keys "
        f"{', '.join(map(str, list(content)[:5]))}"
    )


def _is_state(value: Any) -> bool:
    """Return whether a value is a state dictionary: tensors by name, at least one."""
    return isinstance(value, Mapping) and bool(value) and all(isinstance(v, Tensor) for v in value.values())


def _reason(path: Path, error: Exception) -> str:
    """Return in a few words why a file could not be loaded; torch's own text recommends to run its code."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if path.stat().st_size == 0:
        return "it is empty"
    named = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
    if named:
        return f"it holds a {named.group(1)}, which could run code"
    return "it is damaged or of another kind"


def plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dictionary without the names that wrappers add (``module.``, ``_orig_mod.``)."""
    return {canonical(name): tensor for name, tensor in state.items()}


def load_weights(network: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Load weights into a network of the same architecture.

    Args:
        network: Where to.
        state: State dictionary; the prefixes of wrappers are ignored on both sides, norms may lack
            ``num_batches_tracked``, as those of torch before 0.4.1 do, and older names of the baselines'
            layers are converted (see `converted` in `sgc_distiller.baseline_files`).
        what: For the error: the file and the network's role.

    Raises:
        UserError: If names or shapes differ, or values are not finite; the first of them are named, and
            which baseline's network the weights look like.
    """
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{what}: expected tensors by name, got something else; take another checkpoint")
    own = network.state_dict()
    by_plain_name = {canonical(name): name for name in own}
    given = converted(state, by_plain_name)
    problems = _differences(given, {name: own[full] for name, full in by_plain_name.items()})
    if problems:
        look = looks_like(state)
        raise UserError(
            f"{what}: these are the weights of another network ({'; '.join(problems)}); "
            f"{f'they look like {look}; ' if look else ''}give the checkpoint of this task and size, or set "
            "the task, --image-size, --channels and --width to its own"
        )
    bad = _not_finite(state)
    if bad:
        raise UserError(f"{what}: {_share_of(bad)}; take an earlier checkpoint")
    network.load_state_dict({full: given.get(n, own[full]) for n, full in by_plain_name.items()})


def _differences(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """Return in words the first names and shapes in which two state dictionaries differ."""
    missing = [n for n in own if n not in given and not n.endswith("num_batches_tracked")]
    unexpected = [n for n in given if n not in own]
    shapes = [
        f"{n} is {tuple(given[n].shape)}, expected {tuple(tensor.shape)}"
        for n, tensor in own.items()
        if n in given and given[n].shape != tensor.shape
    ]
    problems = []
    if missing:
        problems.append(f"missing: {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}")
    if unexpected:
        problems.append(f"not expected: {', '.join(unexpected[:3])}{' ...' if len(unexpected) > 3 else ''}")
    return problems + shapes[:3]


def sha256(path: Path) -> str:
    """Return a file's SHA-256 as 64 hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
