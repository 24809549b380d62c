"""The file of a sensitivity analysis: what was measured, line by line, so that nothing is measured twice."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from sgc_distiller.errors import UserError
from sgc_distiller.runs import atomic_write

__all__ = ["Journal"]

Record = dict[str, Any]
_Key = tuple[str, int, str]
_KEYS = {"weight", "level", "nonzero", "metric", "name", "value", "seconds"}


class Journal:
    """Reads and writes the points of one analysis; the first line says what they have in common.

    Every line is handed to the operating system at once, so a killed process loses nothing of it; a last
    line that was cut off is dropped.

    Args:
        path: The file; it is made, with its folder, if it is missing.
        settings: What all points have in common.

    Raises:
        UserError: If the file is of other settings, or damaged.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self._points: dict[_Key, Record] = {}
        content = path.read_bytes() if path.is_file() else b""
        lines = content[: content.rfind(b"\n") + 1].decode(errors="replace").splitlines()
        records = [self._read(number, line) for number, line in enumerate(lines, 1)]
        if records:
            self._refuse_others(records[0], settings)
            for record in records[1:]:
                self._points[_key(record)] = record
            if not content.endswith(b"\n"):
                atomic_write(path, content[: content.rfind(b"\n") + 1])
        else:
            atomic_write(path, json.dumps(settings) + "\n")
        self._lines: IO[str] = path.open("a", encoding="utf-8")

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.close()

    def find(self, weight: str, nonzero: int, metric: str) -> Record | None:
        """Return what was measured of a layer that was pruned to this number of parameters not zero."""
        return self._points.get((weight, nonzero, metric))

    def add(self, record: Record) -> None:
        """Write a point.

        Raises:
            UserError: If the file knows the metric under another full name.
        """
        self.check_name(record["metric"], record["name"])
        self._points[_key(record)] = record
        self._lines.write(json.dumps(record) + "\n")
        self._lines.flush()

    def check_name(self, metric: str, name: str) -> None:
        """Refuse a metric that the file knows under another full name: it was measured otherwise.

        Raises:
            UserError: If there is such a point.
        """
        known = self.names().get(metric, "")
        if name and known and name != known:
            raise UserError(
                f"{self.path}: holds {metric} as {known!r}, got {name!r}; expected the same, since such "
                "numbers do not compare: choose another folder with -o, or remove the file"
            )

    def names(self) -> dict[str, str]:
        """Return the full name of every metric of which there is a point."""
        return {record["metric"]: record["name"] for record in self._points.values() if record["name"]}

    def seconds(self) -> dict[str, float]:
        """Return the time that all points took together, by metric."""
        found: dict[str, float] = {}
        for record in self._points.values():
            found[record["metric"]] = found.get(record["metric"], 0.0) + record["seconds"]
        return found

    def _read(self, number: int, line: str) -> Record:
        try:
            record: Record = json.loads(line)
            if number > 1 and not record.keys() >= _KEYS:
                raise ValueError(line)
            return record
        except (ValueError, AttributeError):
            raise UserError(
                f"{self.path}:{number}: expected one JSON record a line, got {line[:60]!r}; the file is "
                "damaged: remove that line, or choose another folder with -o"
            ) from None

    def _refuse_others(self, own: Record, settings: Mapping[str, Any]) -> None:
        differing = [name for name in settings if own.get(name) != settings[name]]
        if differing:
            told = ", ".join(f"{name} {own.get(name)!r}, now {settings[name]!r}" for name in differing[:3])
            raise UserError(
                f"{self.path}: is of another analysis ({told}); expected the same checkpoint and settings: "
                "choose another folder with -o, or remove the file"
            )


def _key(record: Record) -> _Key:
    return record["weight"], record["nonzero"], record["metric"]
