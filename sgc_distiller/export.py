"""A finished generator as files that others load: ONNX, safetensors, torch.export, compact weights.

Every file is checked: exported networks compute the same pictures as the original on batches of several
sizes, and weights that are read back are the same bit for bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sgc_distiller import checkpoints
from sgc_distiller._version import __version__
from sgc_distiller.errors import UserError, nearest
from sgc_distiller.export_files import FORMATS, Source, weight_sizes
from sgc_distiller.export_subject import subjects_of
from sgc_distiller.finished import open_finished
from sgc_distiller.module_state import parts_of
from sgc_distiller.nm_patterns import layer_patterns
from sgc_distiller.onnx_export import onnx_bytes
from sgc_distiller.optional_packages import EXPORT, missing
from sgc_distiller.recording import Console
from sgc_distiller.runs import atomic_write
from sgc_distiller.settings import Options
from sgc_distiller.weight_files import DESCRIPTION

__all__ = ["export", "export_onnx", "find_formats"]

Record = dict[str, Any]


def find_formats(named: str | None, console: Console | None = None) -> list[str]:
    """Return the formats that are meant, checked.

    Args:
        named: Their names with commas between them; ``None`` for all whose packages are installed.
        console: Told what is left out.

    Raises:
        UserError: If there is no such format, or its packages are not installed.
    """
    absent = {name: missing(item.packages) for name, item in FORMATS.items()}
    if named is None:
        without = [name for name, packages in absent.items() if packages]
        if without and console:
            console.note(f"left out, since their packages are not installed: {', '.join(without)}; {EXPORT}")
        return [name for name in FORMATS if name not in without]
    formats = list(dict.fromkeys(name.strip() for name in named.split(",")))
    for name in formats:
        if name not in FORMATS:
            raise UserError(
                f"--formats: expected some of {','.join(FORMATS)}, got {name!r}.{nearest(name, FORMATS)}"
            )
        if absent[name]:
            raise UserError(
                f"--formats {name}: needs what is not installed, {' and '.join(absent[name])}; {EXPORT}"
            )
    return formats


def export(
    options: Options,
    folder: str | Path,
    formats: Sequence[str],
    half: bool = False,
    console: Console | None = None,
) -> Record:
    """Export the generator of a checkpoint.

    Args:
        options: Name the checkpoint by ``weights_from``, and the data that exported networks are tried on.
        folder: Where to: a new or an empty folder, which is filled with all files or with none.
        formats: Names out of `sgc_distiller.export_files.FORMATS`.
        half: Round compact weights to half precision.
        console: Where a person follows.

    Returns:
        What ``export.json`` in the folder holds, see docs/export.md.

    Raises:
        UserError: If the checkpoint cannot be opened, or a file does not hold what it should.
    """
    if half and "compact" not in formats:
        raise UserError("--half rounds compact weights, which --formats leaves out; name compact too")
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder}: expected a new or an empty folder to export to; name another one")
    sources = _sources(options, half, console)
    record: Record = {
        "sgc_distiller": __version__,
        "torch": torch.__version__,
        "source": str(sources[0].opened.source),
        **sources[0].about(),
        "parts": [_described(source) for source in sources],
        "files": [],
    }
    with _whole(folder) as place:
        for source in sources:
            for name in formats:
                path = place / f"{source.kept.name}{FORMATS[name].ending}"
                checks = FORMATS[name].write(source, path)
                record["files"].append(
                    {
                        "file": path.name,
                        "part": source.kept.name,
                        "format": name,
                        "bytes": path.stat().st_size,
                        "sha256": checkpoints.sha256(path),
                        "checks": checks,
                    }
                )
        (place / DESCRIPTION).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record


def export_onnx(options: Options, file: str | Path, console: Console | None = None) -> list[Record]:
    """Export the generator of a checkpoint to ONNX alone.

    Args:
        options: Name the checkpoint by ``resume_from`` or ``weights_from``.
        file: Where to. Where there are several networks each has a file, such as ``model_G_A.onnx``.
        console: Where a person follows.

    Returns:
        For each file ``file``, its path, and ``largest_difference``.

    Raises:
        UserError: As `export` does; nothing is written then.
    """
    if missing(FORMATS["onnx"].packages):
        raise UserError(f"--export-onnx needs onnx and onnxruntime, which are not installed; {EXPORT}")
    file = Path(file)
    made = {}
    sources = _sources(options, False, console)
    for source in sources:
        name = file.name if len(sources) == 1 else f"{file.stem}_{source.kept.name}{file.suffix}"
        made[file.with_name(name)] = onnx_bytes(source.subject, source.properties())
    return [
        {"file": str(atomic_write(path, content)), "largest_difference": difference}
        for path, (content, difference) in made.items()
    ]


def _sources(options: Options, half: bool, console: Console | None) -> list[Source]:
    """Open a generator on the CPU, where files are made, and return its networks."""
    opened = open_finished(dataclasses.replace(options, device="cpu"), console)
    _drop_signs_of_zeros(opened.generator)
    task = opened.run.task
    subjects = subjects_of(task, task.deploy(opened.generator), opened.run.data)
    kept = parts_of(opened.generator)
    return [Source(opened, subject, part, half) for subject, part in zip(subjects, kept, strict=True)]


def _drop_signs_of_zeros(network: nn.Module) -> None:
    """Make -0.0 in the weights 0.0, in place: masks leave one wherever a negative weight was pruned.

    No picture depends on it, while every format for sparse weights, and gzip, would store it as a value.
    """
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.is_floating_point():
                tensor.add_(0.0)


def _described(source: Source) -> Record:
    """Return what a reader wants to know of a network."""
    patterns = layer_patterns(source.subject.part.network)
    sizes = {} if missing(FORMATS["compact"].packages) else {"weight_bytes": weight_sizes(source)}
    return {
        "name": source.kept.name,
        "prefix": source.kept.prefix,
        **source.subject.described(),
        **source.sparsity(),
        **sizes,
        "pattern_2_4": [
            {**dataclasses.asdict(item), "shape": list(item.shape), "holds": item.holds} for item in patterns
        ],
    }


@contextlib.contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """Yield a folder beside ``folder`` that becomes it if the block succeeds, and vanishes if not."""
    place = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    place.mkdir(parents=True)
    try:
        yield place
        if folder.exists():
            folder.rmdir()
        place.rename(folder)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
