"""Weights in safetensors files, plain or compact: tensors and a header in JSON, no code.

A file of ours has one entry among the metadata, ``sgc_distiller``, a JSON object with ``task``, ``options``,
what else a generator is built from, and in a compact file ``tensors`` (see `sgc_distiller.compact_weights`).
One, because the library writes several in an order that changes from run to run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sgc_distiller.compact_weights import packed, unpacked
from sgc_distiller.errors import UserError
from sgc_distiller.optional_packages import load

__all__ = [
    "DESCRIPTION",
    "builds",
    "compact_bytes",
    "is_weight_file",
    "plain_bytes",
    "read_exported",
    "read_weight_file",
]

DESCRIPTION = "export.json"
"""Lies in a folder that ``sgc export`` wrote, and says what the files beside it are."""

_ENTRY = "sgc_distiller"
_VERSION = 1
_BUILDS: dict[str, tuple[str, type]] = {
    "task": ("arch", str),
    "options": ("task_options", dict),
    "student_width": ("student_width", float),
    "thinned": ("thinned", dict),
}
"""What a header says of the generator, and under which key and as what a checkpoint does."""


def builds(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return for a header what a checkpoint says of how its generator is built."""
    return {name: content[key] for name, (key, _) in _BUILDS.items() if content.get(key)}


def is_weight_file(path: Path) -> bool:
    """Return whether a file is a safetensors file by its name."""
    return path.suffix == ".safetensors"


def plain_bytes(state: Mapping[str, Tensor], about: Mapping[str, Any]) -> bytes:
    """Return a safetensors file of all values, zeros included, under the names of the state dictionary.

    Args:
        state: Tensors by name.
        about: What the header says, as JSON can hold it: ``task``, ``options``.

    Raises:
        UserError: If the package safetensors is missing.
    """
    return _file(state, about)


def compact_bytes(state: Mapping[str, Tensor], about: Mapping[str, Any], half: bool = False) -> bytes:
    """Return a safetensors file of the values that are not zero.

    Args:
        state: Tensors by name.
        about: What the header says beside how the tensors are stored.
        half: See `sgc_distiller.compact_weights.packed`.

    Raises:
        UserError: If the package is missing, or a value too large for half precision.
    """
    tensors, entries = packed(state, half)
    return _file(tensors, {**about, "compact": _VERSION, "tensors": entries})


def _file(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> bytes:
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    library = load("safetensors.torch", "writing safetensors files")
    content: bytes = library.save(own, {_ENTRY: json.dumps(header, sort_keys=True)})
    return content


def read_weight_file(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a safetensors file, plain or compact, of ours or of others.

    Returns:
        ``state_dict``, and those of a checkpoint's keys that a generator is built from, where the header has
        them.

    Raises:
        UserError: If it is damaged, or the package safetensors is missing.
    """
    tensors, header = _opened(path)
    if "compact" in header:
        tensors = _unpacked(path, tensors, header)
    content: dict[str, Any] = {"state_dict": {name: item.to(device) for name, item in tensors.items()}}
    for name, (key, kind) in _BUILDS.items():
        if isinstance(header.get(name), kind):
            content[key] = header[name]
    return content


def read_exported(folder: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read the weights in a folder that ``sgc export`` wrote: those of all networks, as one generator's.

    Returns:
        As `read_weight_file`; names begin with those of the networks where there are several.

    Raises:
        UserError: If the folder holds no weights, or they are damaged.
    """
    file = folder / DESCRIPTION
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        prefixes = {part["name"]: part["prefix"] for part in record["parts"]}
        files = {(item["format"], item["part"]): folder / Path(item["file"]).name for item in record["files"]}
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file}: expected what `sgc export` wrote, got something else ({error!r})") from None
    for kind in ("safetensors", "compact"):
        if prefixes and all((kind, name) in files for name in prefixes):
            read = [
                (prefix, read_weight_file(files[kind, name], device)) for name, prefix in prefixes.items()
            ]
            state = {
                prefix + name: tensor for prefix, part in read for name, tensor in part["state_dict"].items()
            }
            return {**read[0][1], "state_dict": state}
    raise UserError(f"{folder}: expected exported weights; export them with --formats safetensors or compact")


def _opened(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a file and the header that we wrote into it, if we did."""
    library = load("safetensors", f"reading {path}")
    try:
        with library.safe_open(path, framework="pt", device="cpu") as file:
            text = (file.metadata() or {}).get(_ENTRY, "{}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        header = json.loads(text)
    except Exception as error:  # the library and JSON raise their own
        raise _damaged(path, str(error)) from None
    if not tensors:
        raise UserError(f"{path}: expected weights, got a file without tensors")
    if not isinstance(header, dict):
        raise _damaged(path, "its header is no JSON object")
    return tensors, header


def _unpacked(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> dict[str, Tensor]:
    if header["compact"] != _VERSION:
        raise UserError(
            f"{path}: expected version {_VERSION} of compact weights, got {header['compact']!r}; read it "
            "with the version of sgc_distiller that wrote it"
        )
    entries = header.get("tensors")
    if not isinstance(entries, dict):
        raise _damaged(path, "its header does not say how the tensors are stored")
    try:
        return unpacked(tensors, entries)
    except UserError as error:
        raise _damaged(path, str(error)) from None


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path}: cannot be read as weights, it is damaged or of another kind ({reason}); expected a "
        "safetensors file, plain or as `sgc export` writes it. Take another one, or export it anew"
    )
