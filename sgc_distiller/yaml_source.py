"""YAML read safely, with the line of every key."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from sgc_distiller.checks import ArgumentError
from sgc_distiller.errors import ScheduleError, UserError, nearest

__all__ = ["Node", "read_dict", "read_file", "scalar", "write"]

_Path = tuple[str, ...]
_MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, for which ``1e-4`` is a number, as YAML 1.2 has it."""


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which quotes what `_Loader` would take for a number, and repeats no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write out every value where it stands."""
        return True


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$"),
        list("-+.0123456789"),
    )


@dataclass(frozen=True)
class Node:
    """A value of a schedule, and where it stands.

    Args:
        value: Dictionaries, lists and scalars.
        path: Keys from the top; items of lists as ``[0]``.
        source: File name, or ``<dict>``.
        lines: Line of each path, counted from 1; empty for dictionaries.
    """

    value: Any
    path: _Path = ()
    source: str = "<dict>"
    lines: Mapping[_Path, int] = field(default_factory=dict, repr=False)

    @property
    def key(self) -> str:
        """The path as one text, such as ``policies[0].pruner``."""
        return "".join(part if part.startswith("[") else f".{part}" for part in self.path).lstrip(".")

    @property
    def line(self) -> int | None:
        """The line on which the value stands, where it is known."""
        known = (self.lines.get(self.path[:length]) for length in range(len(self.path), -1, -1))
        return next((line for line in known if line is not None), None)

    def error(self, problem: str | UserError) -> ScheduleError:
        """Return an error about this value; that of a constructor's argument points at the argument."""
        place = self
        if isinstance(problem, ArgumentError):
            for part in problem.path:
                place = Node(None, (*place.path, part), self.source, self.lines)
            problem = problem.problem
        return ScheduleError(str(problem), source=self.source, line=place.line, key=place.key)

    def child(self, key: str | int) -> Node:
        """Return the value below a key of a mapping or an index of a list."""
        part = f"[{key}]" if isinstance(key, int) else key
        return Node(self.value[key], (*self.path, part), self.source, self.lines)

    def mapping(self, what: str, allowed: Collection[str] | None = None) -> dict[str, Node]:
        """Return the values by key.

        Args:
            what: What the mapping holds, for the messages.
            allowed: The keys that it may have; None for any.

        Raises:
            ScheduleError: If it is no mapping, or a key is not allowed.
        """
        if not isinstance(self.value, Mapping):
            raise self.error(f"Expected a mapping with {what}, got {_shown(self.value)}.")
        if allowed is not None:
            for key in self.value:
                if key not in allowed:
                    raise self.child(key).error(
                        f"Expected {what} ({', '.join(allowed)}), got {key!r}.{nearest(key, allowed)}"
                    )
        return {key: self.child(key) for key in self.value}

    def sequence(self, what: str) -> list[Node]:
        """Return the items, or raise a `ScheduleError` if it is no list."""
        if isinstance(self.value, str) or not isinstance(self.value, Sequence):
            raise self.error(f"Expected {what}, got {_shown(self.value)}.")
        return [self.child(index) for index in range(len(self.value))]

    def name(self, what: str, names: Collection[str] | None = None) -> str:
        """Return a text, or raise a `ScheduleError` if it is none, or none of ``names``."""
        if not isinstance(self.value, str):
            raise self.error(f"Expected {what}, got {_shown(self.value)}.")
        if names is not None and self.value not in names:
            shown = ", ".join(names) or "there is none"
            raise self.error(f"Expected {what} ({shown}), got {self.value!r}.{nearest(self.value, names)}")
        return self.value


def _shown(value: Any) -> str:
    return "nothing" if value is None else repr(value)


def read_dict(schedule: Mapping[str, Any]) -> Node:
    """Return a schedule given as a dictionary; the dictionary itself is left alone."""
    if not isinstance(schedule, Mapping):
        raise ScheduleError(f"Expected a schedule as a dictionary, got {_shown(schedule)}.", source="<dict>")
    return Node(_plain(deepcopy(schedule)))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def read_file(filename: str | Path) -> tuple[Node, str]:
    """Return a schedule file's values and its text.

    Raises:
        ScheduleError: If the file cannot be read, is no YAML, or gives a key twice.
    """
    path = Path(filename)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ScheduleError(
            f"Expected a schedule file, but there is none.{_nearest_file(path)}", source=str(path)
        ) from None
    except UnicodeDecodeError as error:
        raise ScheduleError(
            f"Expected a text file in UTF-8, but {error.reason} at byte {error.start}.", source=str(path)
        ) from error
    except OSError as error:
        raise ScheduleError(
            f"Expected a schedule file that can be read: {error.strerror}.", source=str(path)
        ) from error
    return _Reader(str(path)).read(text), text


def scalar(text: str) -> Any:
    """Return what a text on the command line means in YAML: a number, a list, true, or the text itself."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe loader
    except yaml.YAMLError:
        return text


def _nearest_file(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f" The folder {str(folder)!r} is missing too."
    others = [item.name for item in folder.iterdir() if item.suffix in {".yaml", ".yml"}]
    close = get_close_matches(path.name, others, n=1, cutoff=0.5)
    return f" Did you mean {str(folder / close[0])!r}?" if close else ""


class _Reader:
    """Turns YAML nodes into values, and notes where each of them stands."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.lines: dict[_Path, int] = {}
        self._open: list[int] = []
        self._loader = _Loader("")

    def read(self, text: str) -> Node:
        try:
            loader = self._loader = _Loader(text)
            root = loader.get_single_node()
            if root is None:
                raise self._error("Expected a schedule, but the file is empty.", None)
            value = self._value(root, ())
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            what = ", ".join(part for part in (error.context, error.problem) if part)
            raise self._error(f"Expected plain YAML: {what}.", mark.line + 1 if mark else None) from error
        except yaml.YAMLError as error:
            raise self._error(f"Expected plain YAML: {error}.", None) from error
        except RecursionError:
            raise self._error("Expected a schedule, got one that is nested too deeply.", None) from None
        return Node(value, (), self.source, self.lines)

    def _error(self, problem: str, line: int | None, path: _Path = ()) -> ScheduleError:
        return ScheduleError(problem, source=self.source, line=line, key=Node(None, path).key)

    def _value(self, node: yaml.Node, path: _Path) -> Any:
        self.lines.setdefault(path, node.start_mark.line + 1)
        if id(node) in self._open:
            raise self._error(
                "Expected a value, got an alias of what it is part of.", node.start_mark.line + 1, path
            )
        self._open.append(id(node))
        try:
            if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
                return self._mapping(node, path)
            if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
                return [self._value(item, (*path, f"[{index}]")) for index, item in enumerate(node.value)]
            return self._scalar(node, path)
        finally:
            self._open.pop()

    def _scalar(self, node: yaml.Node, path: _Path) -> Any:
        try:
            return self._loader.construct_object(node, deep=True)
        except ValueError as error:  # such as a date that is none
            line = node.start_mark.line + 1
            raise self._error(
                f"Expected a value of YAML, got {node.value!r}: {error}.", line, path
            ) from error

    def _mapping(self, node: yaml.MappingNode, path: _Path) -> dict[str, Any]:
        values = {}
        for key, (key_node, value_node) in self._pairs(node, path).items():
            self.lines[(*path, key)] = key_node.start_mark.line + 1
            values[key] = self._value(value_node, (*path, key))
        return values

    def _pairs(self, node: yaml.MappingNode, path: _Path) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        merged: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == _MERGE:
                for source in self._merge_sources(value_node, path, line):
                    self._open.append(id(source))
                    merged = {**self._pairs(source, path), **merged}
                    self._open.pop()
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                raise self._error("Expected a name as key.", line, path)
            key = key_node.value
            if key in own:
                first = own[key][0].start_mark.line + 1
                raise self._error(
                    f"Expected each key once, got {key!r} on line {first} too.", line, (*path, key)
                )
            own[key] = (key_node, value_node)
        return {**merged, **own}

    def _merge_sources(self, node: yaml.Node, path: _Path, line: int) -> Iterable[yaml.MappingNode]:
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        for source in sources:
            if not isinstance(source, yaml.MappingNode) or id(source) in self._open:
                raise self._error("Expected a mapping, or a list of them, to merge with '<<'.", line, path)
        return list(sources)


def write(schedule: Mapping[str, Any]) -> str:
    """Return a schedule as YAML; `read_file` gives the same values back."""
    text: str = yaml.dump(schedule, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=100)
    return text
