"""Which parameters of a model a name or a shell pattern in a schedule means."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from sgc_distiller.errors import UserError, nearest
from sgc_distiller.structures import Axes

__all__ = [
    "canonical",
    "find_all_names",
    "find_names",
    "is_pattern",
    "layer_axes",
    "prunable_names",
    "spell_out",
]

_WRAPPERS = frozenset({"module", "_orig_mod"})
_SHOWN = 8
_LISTS = ("weights", "filters")  # arguments that list parameters
_TABLES = ("levels", "sensitivities", "thresholds", "reg_regims")  # arguments that are keyed by parameters


def canonical(name: str) -> str:
    """Return ``name`` without the path elements that `DataParallel` and `torch.compile` add."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def is_pattern(name: str) -> bool:
    """Return whether ``name`` is a shell pattern (``*``, ``?``, ``[...]``)."""
    return any(sign in name for sign in "*?[")


def prunable_names(model: nn.Module) -> list[str]:
    """Return the names of the weights of convolutions, transposed convolutions and linear layers."""
    owners = _layers(model)
    return [name for name, _ in model.named_parameters() if name in owners]


def layer_axes(model: nn.Module) -> dict[str, Axes]:
    """Return how the weights of convolutions, transposed convolutions and linear layers are stored, by name.

    Transposed convolutions with groups are left out: no dimension of theirs numbers the outputs.
    """
    axes: dict[str, Axes] = {}
    for name, module in _layers(model).items():
        if not isinstance(module, _ConvTransposeNd):
            axes[name] = "outputs_first"
        elif module.groups == 1:
            axes[name] = "inputs_first"
    return axes


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    return {
        f"{path}.weight" if path else "weight": module
        for path, module in model.named_modules()
        if isinstance(module, (_ConvNd, nn.Linear))
    }


def find_names(model: nn.Module, asked: str, spared: Collection[str] = ()) -> list[str]:
    """Return the parameters of ``model`` that one entry of a schedule means.

    Args:
        model: The model whose ``named_parameters()`` are searched.
        asked: A parameter's full name, or a shell pattern. A pattern matches the weights of convolutions,
            transposed convolutions and linear layers only. ``module.`` and ``_orig_mod.`` are ignored in
            both.
        spared: Parameters that no pattern matches; they can be named in full only.

    Returns:
        At least one name, as ``named_parameters()`` gives it.

    Raises:
        UserError: If there is none; the message shows the nearest names.
    """
    names = [name for name, _ in model.named_parameters()]
    if asked in names:
        return [asked]
    candidates = [n for n in prunable_names(model) if n not in spared] if is_pattern(asked) else names
    bare = canonical(asked)
    if is_pattern(asked):
        found = [
            name for name in candidates if fnmatchcase(name, asked) or fnmatchcase(canonical(name), bare)
        ]
    else:
        found = [name for name in candidates if canonical(name) == bare]
    if found:
        return found
    kind = "a pattern that matches a weight" if is_pattern(asked) else "the name of a parameter"
    close = _nearest_pattern(bare, candidates) if is_pattern(asked) else ""
    close = close or nearest(asked, dict.fromkeys([*candidates, *map(canonical, candidates)]), 3)
    shown = ", ".join(candidates[:_SHOWN]) + (", ..." if len(candidates) > _SHOWN else "")
    raise UserError(
        f"Expected {kind} of the model, got {asked!r}.{close} The model has {shown or 'no parameters'}."
    )


def _nearest_pattern(asked: str, candidates: Iterable[str]) -> str:
    """Return a hint at the pattern that ``asked`` becomes with its misspelt path elements mended."""
    paths = [canonical(name).split(".") for name in candidates]
    mended = asked.split(".")
    for place, part in enumerate(mended):
        known = dict.fromkeys(path[place] for path in paths if place < len(path))
        if not is_pattern(part) and part not in known:
            mended[place] = next(iter(difflib.get_close_matches(part, known, n=1)), part)
    pattern = ".".join(mended)
    fits = any(fnmatchcase(".".join(path), pattern) for path in paths)
    return f" Did you mean {pattern!r}?" if fits else ""


def find_all_names(model: nn.Module, asked: Iterable[str], spared: Collection[str] = ()) -> list[str]:
    """Return what all entries of ``asked`` mean, each name once, as first mentioned; see `find_names`."""
    return list(dict.fromkeys(name for entry in asked for name in find_names(model, entry, spared)))


def spell_out(model: nn.Module, arguments: Mapping[str, Any], spared: Collection[str] = ()) -> dict[str, Any]:
    """Return arguments of a pruner or regularizer with every pattern replaced by the names that it means.

    That concerns lists of parameters (``weights``) and what is keyed by them (``levels`` and the like), where
    a parameter that is named in full keeps its own value, whatever patterns fit it. The key ``'*'`` stays.

    Args:
        model: The model whose parameters are meant.
        arguments: Arguments by name; they are not changed.
        spared: Parameters that no pattern matches.

    Raises:
        UserError: If a name or a pattern fits no parameter.
    """
    found = dict(arguments)
    for key, value in arguments.items():
        if key in _LISTS and isinstance(value, (list, tuple)):
            found[key] = find_all_names(model, value, spared)
        elif key in _TABLES and isinstance(value, Mapping):
            found[key] = _spell_out_keys(model, value, spared)
    return found


def _spell_out_keys(model: nn.Module, table: Mapping[str, Any], spared: Collection[str]) -> dict[str, Any]:
    by_pattern: dict[str, Any] = {}
    by_name: dict[str, Any] = {}
    for asked, value in table.items():
        chosen = by_pattern if is_pattern(asked) and asked != "*" else by_name
        names = [asked] if asked == "*" else find_names(model, asked, spared)
        chosen.update(dict.fromkeys(names, value))
    return {**by_pattern, **by_name}
