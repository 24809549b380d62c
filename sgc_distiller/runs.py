"""The folder of one run: what was asked, where it ran, what was measured, pictures and checkpoints.

::

    RUN/config.json         resolved settings          RUN/samples/*.png       pictures
    RUN/schedule.yaml       copy of the schedule       RUN/report.html         all of it on one page
    RUN/environment.json    versions, machine          RUN/checkpoint.pth.tar  newest state, to resume from
    RUN/metrics.jsonl       one record a line          RUN/best.pth.tar        best state by the metric
    RUN/tb/                 the same for TensorBoard   RUN/teacher.pth         the dense generator
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import platform
import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import torch

from sgc_distiller._version import __version__
from sgc_distiller.errors import UserError

__all__ = ["KINDS", "Record", "RunFolder", "atomic_file", "atomic_write", "describe_environment"]

log = logging.getLogger(__name__)

Record = dict[str, Any]
"""One line of ``metrics.jsonl``; ``kind`` says which of `KINDS` it is."""

KINDS = ("step", "epoch", "layers", "result")
"""Kinds of records: numbers of a step, of an epoch, of every layer, and what a whole run came to."""


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a file that appears under its name whole or not at all.

    What is written goes to a temporary file beside it, which is flushed to the disk and renamed at the end
    of the ``with`` block. If the block fails, an earlier file of that name stays as it was.

    Args:
        path: The file's final name; its folder is made if it is missing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # several processes may write the same
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # elsewhere a folder cannot be opened, and renaming is durable by itself
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def atomic_write(path: str | Path, content: bytes | str) -> Path:
    """Write a file whole or not at all; see `atomic_file`. Text is written as UTF-8."""
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)
    return Path(path)


def describe_environment(device: torch.device | str = "cpu") -> Record:
    """Return versions, machine and device of this process, for a reader of the run's numbers."""
    device = torch.device(device)
    described: Record = {
        "sgc_distiller": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "device": str(device),
    }
    if device.type == "cuda":
        described["device_name"] = torch.cuda.get_device_name(device)
        described["cuda"] = torch.version.cuda
    return described


class RunFolder:
    """Reads and writes the folder of one run.

    Args:
        path: The folder.
        create: Make the folder if it is missing.

    Raises:
        UserError: If ``path`` is a file, cannot be made, or is missing while ``create`` is false.
    """

    def __init__(self, path: str | Path, create: bool = True) -> None:
        self.path = Path(path)
        if not create and not self.path.is_dir():
            raise UserError(f"Expected the folder of a run, got {self.path}, which is not a folder.")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"Expected a folder for the run, got {self.path}, which cannot be made: {error.strerror}. "
                "Choose another folder with -o."
            ) from error
        self.config_file = self.path / "config.json"
        self.schedule_file = self.path / "schedule.yaml"
        self.environment_file = self.path / "environment.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.samples = self.path / "samples"
        self.report_file = self.path / "report.html"
        self.checkpoint_file = self.path / "checkpoint.pth.tar"
        self.best_file = self.path / "best.pth.tar"
        self.teacher_file = self.path / "teacher.pth"
        self._lines: IO[str] | None = None
        self._board: _Board | None = None
        self._purge_step: int | None = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def epoch_sample(self, epoch: int) -> Path:
        """Return the name of the picture strip of one epoch."""
        return self.samples / f"epoch_{epoch:03d}.png"

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Save the resolved settings; values that JSON does not know are saved as text."""
        atomic_write(self.config_file, json.dumps(_finite(config), indent=2, default=str) + "\n")

    def write_schedule(self, text: str) -> None:
        """Save the schedule as it was read."""
        atomic_write(self.schedule_file, text)

    def write_environment(self, device: torch.device | str = "cpu") -> None:
        """Save `describe_environment`."""
        atomic_write(self.environment_file, json.dumps(describe_environment(device), indent=2) + "\n")

    def config(self) -> Record:
        """Return the saved settings, empty if there are none."""
        return _read_json(self.config_file)

    def environment(self) -> Record:
        """Return the saved environment, empty if there is none."""
        return _read_json(self.environment_file)

    def schedule(self) -> str:
        """Return the schedule's text, empty if the run had none."""
        return self.schedule_file.read_text(encoding="utf-8") if self.schedule_file.is_file() else ""

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one record to ``metrics.jsonl`` and its numbers to TensorBoard's events.

        The line is handed to the operating system at once, so a killed process loses nothing of it. A
        number that is not finite is written as ``null``.

        Args:
            record: ``kind`` is one of `KINDS`; the other keys are free.
        """
        assert record.get("kind") in KINDS, f"expected a kind out of {KINDS}, got {record.get('kind')!r}"
        if self._lines is None:
            self._drop_partial_line()
            self._lines = self.metrics_file.open("a", encoding="utf-8")
        plain = _finite(record)
        self._lines.write(json.dumps(plain) + "\n")
        self._lines.flush()
        self._events().add(plain)

    def histograms(self, tensors: Mapping[str, torch.Tensor], step: int) -> None:
        """Write the distribution of every tensor's values to TensorBoard's events."""
        self._events().add_histograms(tensors, step)

    def records(self, kind: str | None = None) -> list[Record]:
        """Return the records so far, all or those of one kind, oldest first.

        A last line that was cut off by a crash is left out.

        Raises:
            UserError: If another line cannot be read.
        """
        found = []
        for number, line in enumerate(self._whole_lines(), 1):
            try:
                record = json.loads(line)
            except ValueError as error:
                raise UserError(
                    f"{self.metrics_file}:{number}: Expected one JSON record a line, got {line[:60]!r}. "
                    "The file is damaged; remove that line."
                ) from error
            if kind is None or record.get("kind") == kind:
                found.append(record)
        return found

    def own_results(self) -> list[Record]:
        """Return the result records of the run's own generator, not those of its teacher."""
        own = self.checkpoint_file.name
        return [item for item in self.records("result") if Path(str(item["checkpoint"])).name == own]

    def rewind(self, step: int) -> None:
        """Forget what was recorded after a step, before a run continues from there.

        Records of later steps are dropped, a result counts by its ``steps``; TensorBoard hides its later
        events too.

        Args:
            step: The last step to keep.
        """
        self.close()
        kept = [item for item in self.records() if _step_of(item) <= step]
        if self.metrics_file.exists():
            atomic_write(self.metrics_file, "".join(json.dumps(item) + "\n" for item in kept))
        self._purge_step = step + 1

    def close(self) -> None:
        """Close the files; a later `log` opens them again."""
        if self._lines is not None:
            self._lines.close()
            self._lines = None
        if self._board is not None:
            self._board.close()
            self._board = None

    def _events(self) -> _Board:
        if self._board is None:
            self._board = _Board(self.path / "tb", self._purge_step)
        return self._board

    def _whole_lines(self) -> list[str]:
        if not self.metrics_file.is_file():
            return []
        text = self.metrics_file.read_bytes().decode(errors="replace")
        return text[: text.rfind("\n") + 1].splitlines()

    def _drop_partial_line(self) -> None:
        if self.metrics_file.is_file():
            content = self.metrics_file.read_bytes()
            if not content.endswith(b"\n"):
                atomic_write(self.metrics_file, content[: content.rfind(b"\n") + 1])


class _Board:
    """TensorBoard's events of a run; does nothing where TensorBoard is not installed."""

    def __init__(self, folder: Path, purge_step: int | None) -> None:
        self._writer: Any = None
        try:
            module = import_module("torch.utils.tensorboard")
        except ImportError:
            log.warning("TensorBoard is not installed, so %s is not written: pip install tensorboard", folder)
            return
        self._writer = module.SummaryWriter(log_dir=str(folder), purge_step=purge_step)

    def add(self, record: Record) -> None:
        if self._writer is not None:
            for tag, value in _scalars(record).items():
                self._writer.add_scalar(tag, value, _step_of(record))

    def add_histograms(self, tensors: Mapping[str, torch.Tensor], step: int) -> None:
        if self._writer is not None:
            for name, tensor in tensors.items():
                self._writer.add_histogram(f"weights/{name}", tensor.detach().float().cpu(), step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _step_of(record: Record) -> int:
    return int(record["step"] if "step" in record else record.get("steps", 0))


def _scalars(record: Record) -> dict[str, float]:
    """Return the finite numbers of a record by the tags that TensorBoard shows them under."""
    kind = record["kind"]
    numbers: dict[str, Any] = {f"{kind}/terms/{name}": v for name, v in record.get("terms", {}).items()}
    for name in ("loss", "lr", "seconds", "sparsity", "sparsity_asked", "nonzero"):
        numbers[f"{kind}/{name}"] = record.get(name)
    for metric in record.get("metrics", []):
        numbers[f"{kind}/metrics/" + re.sub(r"[^\w.+-]+", "_", metric["name"]).strip("_")] = metric["value"]
    return {tag: float(value) for tag, value in numbers.items() if isinstance(value, (int, float))}


def _finite(value: Any) -> Any:
    """Return a copy that strict JSON can hold: plain numbers, ``None`` for one that is not finite."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, (np.generic, torch.Tensor)):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def _read_json(path: Path) -> Record:
    if not path.is_file():
        return {}
    try:
        read: Record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: Expected JSON, got a file that cannot be read as such: {error}.") from error
    return read
