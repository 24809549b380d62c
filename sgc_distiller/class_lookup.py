"""The class that a schedule names: one of ours, a registered one, or a user's own by its dotted path."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import pkgutil
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from sgc_distiller.errors import UserError, nearest
from sgc_distiller.import_errors import describe, missing_distiller, shown_path
from sgc_distiller.policies import ScheduledTrainingPolicy
from sgc_distiller.yaml_source import Node

__all__ = ["construct", "find_class", "import_class"]

_HOOKS = tuple(
    name
    for name in vars(ScheduledTrainingPolicy)
    if name.startswith(("on_", "before_")) and name != "on_thinned"  # which Distiller's policies do not have
)
_SHAPES: dict[str, tuple[str, ...]] = {
    "pruners": ("set_param_mask",),
    "regularizers": ("loss",),
    "lr_schedulers": ("step", "state_dict", "load_state_dict"),
    "extensions": _HOOKS,
}
"""Methods that the runtime calls, by section; classes are accepted by these, not by what they derive from."""

_FOUND_IN: dict[str, str] = {}  # top-level modules that were found beside a schedule, and their files


def find_class(node: Node, section: str, classes: Mapping[str, Mapping[str, type]]) -> type:
    """Return the class that a schedule's ``class:`` names.

    Args:
        node: The value of ``class:``, a name in ``classes`` or a dotted path such as
            ``my_package.my_policies.MyPolicy``, which is imported. Modules are looked for on Python's path,
            then in the schedule's folder, then in the current directory.
        section: The section in which it stands.
        classes: The named classes of each section.

    Raises:
        ScheduleError: If there is no such class, its module cannot be imported, it lacks what the section's
            objects need, or its constructor needs what no schedule can pass.
    """
    name = node.name("a class")
    named = classes[section].get(name)
    if named is not None and _is_under(named, ("sgc_distiller", "torch")):
        return named
    kind = named or _own_class(node, section, classes)
    try:
        _check_shape(kind, section)
        _check_constructor(kind, section)
    except UserError as error:
        raise node.error(str(error)) from error
    return kind


def _own_class(node: Node, section: str, classes: Mapping[str, Mapping[str, type]]) -> type:
    """Return the class at a dotted path, or refuse what is neither that nor a name of the section."""
    name = str(node.value)
    for other, named in classes.items():
        if name in named:
            raise node.error(f"Expected a class for {section!r}; {name} belongs under {other!r}.")
    if "." not in name:
        known = sorted(classes[section])
        raise node.error(
            f"Expected a class ({', '.join(known)}), or the dotted path of your own, such as "
            f"my_package.my_module.{name}, got {name!r}.{nearest(name, known)}"
        )
    ours = {
        name: kind.__module__
        for named in classes.values()
        for name, kind in named.items()
        if _is_under(kind, ("sgc_distiller",))
    }
    try:
        return import_class(name, _folder(node), ours)
    except UserError as error:
        raise node.error(str(error)) from error


def _folder(node: Node) -> Path | None:
    """Return the folder of the schedule's file, None for a dictionary."""
    return None if node.source == "<dict>" else Path(node.source).resolve().parent


def import_class(path: str, folder: Path | None = None, ours: Mapping[str, str] | None = None) -> type:
    """Return the class at a dotted path.

    Args:
        path: Module and class, such as ``my_package.my_policies.MyPolicy``.
        folder: Where modules are looked for beside Python's path, before the current directory.
        ours: Classes of ours that schedules can name, and their modules, to name in messages.

    Raises:
        UserError: If there is none; the message says what is missing and where it was looked for.
    """
    parts = path.split(".")
    if not all(part.isidentifier() for part in parts):
        raise UserError(
            f"Expected the dotted path of a class, such as my_package.my_module.MyClass, got {path!r}."
        )
    places = list(dict.fromkeys(str(place) for place in (folder, Path.cwd()) if place is not None))
    with _behind_the_path(places):
        found: Any = _import_top(path, places, ours or {})
        for index, part in enumerate(parts[1:], 1):
            found = _inside(found, part, ".".join(parts[: index + 1]), path, ours or {})
    if not isinstance(found, type):
        kind = "a module" if isinstance(found, ModuleType) else f"{found!r:.60}, which is none"
        hint = f" Add the class: {path}.{_example(found)}." if isinstance(found, ModuleType) else ""
        raise UserError(f"Expected a class at {path!r}, got {kind}.{hint}")
    return found


@contextlib.contextmanager
def _behind_the_path(places: Sequence[str]) -> Iterator[None]:
    """Look for modules in ``places`` too, behind everywhere else, inside the block."""
    added = [place for place in places if place not in sys.path]
    sys.path.extend(added)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        for place in added:
            with contextlib.suppress(ValueError):  # the module took it away itself
                sys.path.remove(place)


def _import_top(path: str, places: Sequence[str], ours: Mapping[str, str]) -> ModuleType:
    """Import the first part of a dotted path, and keep in mind where it was found.

    Raises:
        UserError: If there is no such module, it cannot be imported, or another one of its name was.
    """
    top, _, _ = path.partition(".")
    spec = PathFinder.find_spec(top, list(places))
    beside = os.path.realpath(spec.origin) if spec and spec.origin else None
    before = _FOUND_IN.get(top)
    if top in sys.modules and before and beside and before != beside:
        raise UserError(
            f"Expected one module {top!r}, but {shown_path(before)} was imported under that name before, and "
            f"this schedule means {shown_path(beside)}. Rename one of them."
        )
    module = _import(top, ours)
    if module is None and top == "distiller":
        raise UserError(missing_distiller(path, ours))
    if module is None:
        looked = " and in ".join(["on Python's path", *places])
        close = nearest(top, _modules_in(places))
        raise UserError(
            f"Expected the dotted path of a class, got {path!r}, but there is no module {top!r}: looked "
            f"{looked}.{close} Set PYTHONPATH to the folder that holds it."
        )
    if beside and os.path.realpath(getattr(module, "__file__", None) or "") == beside:
        _FOUND_IN[top] = beside
    return module


def _import(name: str, ours: Mapping[str, str]) -> ModuleType | None:
    """Return a module, or None if there is none of that name.

    Raises:
        UserError: If it cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            return None
        raise UserError(f"The module {name!r} cannot be imported: {describe(error, ours)}") from error


def _inside(owner: Any, part: str, name: str, path: str, ours: Mapping[str, str]) -> Any:
    """Return a submodule or an attribute."""
    if not hasattr(owner, part) and isinstance(owner, ModuleType) and hasattr(owner, "__path__"):
        module = _import(name, ours)
        if module is not None:
            return module
    if hasattr(owner, part):
        return getattr(owner, part)
    if isinstance(owner, ModuleType):
        file = getattr(owner, "__file__", None)
        what = f"module {owner.__name__!r}" + (f" ({shown_path(file)})" if file else "")
        within = [item.name for item in pkgutil.iter_modules(getattr(owner, "__path__", []))]
    else:
        what, within = f"{getattr(owner, '__name__', owner)!r}", []
    public = [key for key in dir(owner) if not key.startswith("_")]
    raise UserError(
        f"Expected a class at {path!r}, but {what} has no {part!r}.{nearest(part, [*public, *within], 3)}"
    )


def _modules_in(places: Sequence[str]) -> list[str]:
    return [item.name for item in pkgutil.iter_modules(list(places))]


def _example(module: ModuleType) -> str:
    """Return the name of a class that a module defines."""
    own = (
        name
        for name, item in vars(module).items()
        if isinstance(item, type) and item.__module__ == module.__name__
    )
    return next(own, "MyClass")


def _check_shape(kind: type, section: str) -> None:
    """Refuse a class without the methods that the runtime calls."""
    if hasattr(kind, "__getattr__"):
        return  # it answers for itself
    missing = [name for name in _SHAPES.get(section, ()) if not callable(getattr(kind, name, None))]
    if missing:
        others = [
            other
            for other, names in _SHAPES.items()
            if other != section and all(callable(getattr(kind, name, None)) for name in names)
        ]
        hint = f" It belongs under {others[0]!r}." if others else ""
        if section == "extensions" and not others:
            hint = " Derive it from sgc_distiller.ScheduledTrainingPolicy, which has all of them."
        raise UserError(
            f"Expected a class for {section!r}, but {kind.__name__} has no {', '.join(missing)}.{hint}"
        )


def _check_constructor(kind: type, section: str) -> None:
    """Refuse a constructor that a schedule cannot call."""
    try:
        parameters = inspect.signature(kind).parameters
    except (TypeError, ValueError) as error:
        raise UserError(
            f"Expected a class whose constructor tells its arguments, but {kind.__name__} does not."
        ) from error
    is_rate = section == "lr_schedulers"
    if is_rate and "optimizer" not in parameters:
        raise UserError(
            f"Expected a learning-rate schedule that takes 'optimizer', but {kind.__name__} does not."
        )
    for name, parameter in parameters.items():
        if parameter.default is not parameter.empty:
            continue
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise UserError(
                f"Expected a constructor that takes arguments by name, but {kind.__name__} takes {name!r} by "
                "position only."
            )
        if name in ("optimizer", "last_epoch") and not is_rate:
            raise UserError(
                f"Expected a constructor that needs what a schedule can give, but {kind.__name__} needs "
                f"{name!r}, which only classes under 'lr_schedulers' get. Hooks are given the optimizer."
            )


def construct(node: Node, kind: type, arguments: Mapping[str, Any]) -> Any:
    """Return an object of a class.

    Args:
        node: The instance's place in the schedule.
        kind: The class.
        arguments: Everything that its constructor gets.

    Raises:
        ScheduleError: If the constructor refuses its arguments or, being a user's own, fails.
    """
    try:
        return kind(**arguments)
    except UserError as error:
        raise node.error(error) from error
    except Exception as error:
        if _is_under(kind, ("sgc_distiller", "torch")):
            raise
        raise node.error(f"Expected arguments that {kind.__name__} can use, but {describe(error)}") from error


def _is_under(kind: type, packages: Collection[str]) -> bool:
    return kind.__module__.partition(".")[0] in packages
