"""The files that a generator's network is exported to, each checked after it is written."""

from __future__ import annotations

import copy
import gzip
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sgc_distiller._version import __version__
from sgc_distiller.compact_weights import bits_of
from sgc_distiller.errors import UserError
from sgc_distiller.export_subject import Subject, largest_difference, outputs_of
from sgc_distiller.finished import Finished
from sgc_distiller.masks import sparsity_table
from sgc_distiller.module_state import Part, parts_of
from sgc_distiller.names import prunable_names
from sgc_distiller.onnx_export import OPSET, onnx_bytes
from sgc_distiller.torch_export import torch_bytes
from sgc_distiller.weight_files import builds, compact_bytes, plain_bytes, read_weight_file

__all__ = ["FORMATS", "Format", "Source", "weight_sizes"]

Record = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """One network of a finished generator.

    Attributes:
        opened: The generator.
        subject: The network as it is deployed.
        kept: The network in its form for training, whose weights have the baseline's names.
        half: Round compact weights to half precision.
    """

    opened: Finished
    subject: Subject
    kept: Part
    half: bool = False

    @property
    def state(self) -> dict[str, Tensor]:
        """The weights by the baseline's names."""
        return dict(self.kept.network.state_dict())

    def about(self) -> Record:
        """Return what tells which generator the weights are of; who reads a file back needs no more."""
        task = self.opened.run.task
        return {**builds(self.opened.content), "task": task.name, "options": dict(task.options)}

    def sparsity(self) -> Record:
        """Return how many weights of convolutions and linear layers there are, and how many are not zero."""
        prunable = set(prunable_names(self.kept.network))
        rows = [row for row in sparsity_table(self.kept.network) if row["name"] in prunable]
        dense, nonzero = sum(row["dense"] for row in rows), sum(row["nonzero"] for row in rows)
        return {
            "weights": dense,
            "nonzero": nonzero,
            "sparsity": 1.0 - nonzero / dense if dense else 0.0,
        }

    def properties(self) -> dict[str, str]:
        """Return what the metadata of an ONNX file say."""
        return {
            "task": self.opened.run.task.name,
            "sparsity": f"{self.sparsity()['sparsity']:.6g}",
            "sgc_distiller": __version__,
        }

    def difference_with(self, state: Mapping[str, Tensor]) -> float:
        """Return by how much the pictures of the deployed network differ with other weights."""
        generator = copy.deepcopy(self.opened.generator)
        parts = {part.name: part for part in parts_of(generator)}
        parts[self.kept.name].network.load_state_dict(dict(state))
        deployed = {part.name: part for part in parts_of(self.opened.run.task.deploy(generator))}
        made = [outputs_of(deployed[self.kept.name], inputs) for inputs in self.subject.examples]
        return max(map(largest_difference, made, self.subject.expected))


def _write_onnx(source: Source, path: Path) -> Record:
    content, difference = onnx_bytes(source.subject, source.properties())
    path.write_bytes(content)
    return {"opset": OPSET, "checker": "passed", "largest_difference": difference}


def _write_torch(source: Source, path: Path) -> Record:
    content, difference = torch_bytes(source.subject)
    path.write_bytes(content)
    return {"largest_difference": difference}


def _write_plain(source: Source, path: Path) -> Record:
    path.write_bytes(plain_bytes(source.state, source.about()))
    return _read_back(source, path)


def _write_compact(source: Source, path: Path) -> Record:
    path.write_bytes(compact_bytes(source.state, source.about(), source.half))
    if not source.half:
        return _read_back(source, path)
    difference = source.difference_with(read_weight_file(path)["state_dict"])
    return {"read_back": "in half precision", "largest_difference": difference}


def _read_back(source: Source, path: Path) -> Record:
    """Read weights again and refuse what is not the same bit for bit."""
    found, state = read_weight_file(path)["state_dict"], source.state
    wrong = [name for name in state if name not in found or not _is_same(found[name], state[name])]
    if wrong or len(found) != len(state):
        raise UserError(
            f"{path.name}: {wrong[0] if wrong else 'something'} came back other than it was written; "
            "nothing was exported. Is the disk damaged?"
        )
    return {"read_back": "bit for bit"}


def _is_same(first: Tensor, second: Tensor) -> bool:
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    return bool((bits_of(first) == bits_of(second)).all())


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        ending: What its files are called behind the network's name.
        packages: What must be installed beside the packages that this one needs.
        write: Writes and checks a file, and returns the checks that it passed.
    """

    ending: str
    packages: tuple[str, ...]
    write: Callable[[Source, Path], Record]


FORMATS = {
    "onnx": Format(".onnx", ("onnx", "onnxruntime"), _write_onnx),
    "safetensors": Format(".safetensors", ("safetensors",), _write_plain),
    "torch": Format(".pt2", (), _write_torch),
    "compact": Format(".compact.safetensors", ("safetensors",), _write_compact),
}
"""What a generator can be exported as."""


def weight_sizes(source: Source) -> dict[str, int]:
    """Return how many bytes the weights take: all of them and compact, each as it is and after gzip."""
    plain = plain_bytes(source.state, source.about())
    compact = compact_bytes(source.state, source.about(), source.half)
    return {
        "dense": len(plain),
        "dense_gzip": len(gzip.compress(plain, mtime=0)),
        "compact": len(compact),
        "compact_gzip": len(gzip.compress(compact, mtime=0)),
    }
