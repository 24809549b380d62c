"""Which normalisation layer takes the outputs of which layer, read from the way data goes through a model."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

__all__ = ["Norm", "folded_weights", "norms_after"]

log = logging.getLogger(__name__)

_Layers = (_ConvNd, nn.Linear)


@dataclass(frozen=True)
class Norm:
    """A normalisation layer.

    Attributes:
        path: Its path in the model.
        module: The layer; channels of its inputs and of its weight and bias are the same.
    """

    path: str
    module: nn.Module


def norms_after(model: nn.Module) -> dict[str, Norm]:
    """Return the normalisation layers that alone take a layer's outputs, by the name of its weight.

    The model is traced symbolically. Where Python code decides what happens next, the parts inside are
    traced for themselves; what lies between such parts is not seen.

    Args:
        model: Convolutions, transposed convolutions and linear layers in it are looked at.

    Returns:
        Layers by names such as ``main.0.weight``; a layer that is used twice has one only if
        it is the same.
    """
    found: dict[str, set[str | None]] = {}
    for prefix, part, graph in _graphs(model, ""):
        modules = dict(part.named_modules())
        for node in graph.nodes:
            if node.op == "call_module" and isinstance(modules[node.target], _Layers):
                after = _norm_behind(node, modules)
                found.setdefault(prefix + node.target, set()).add(None if after is None else prefix + after)
    paths = {path: next(iter(norms)) for path, norms in found.items() if len(norms) == 1}
    return {
        f"{path}.weight": Norm(norm, model.get_submodule(norm))
        for path, norm in paths.items()
        if norm is not None
    }


def _graphs(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module, fx.Graph]]:
    """Yield the largest parts that can be traced, each with its path and a dot."""
    if not any(isinstance(part, _Layers) for part in module.modules()) or isinstance(module, _Layers):
        return
    try:
        graph = fx.Tracer().trace(module)
    except Exception as error:  # whatever the model's own code does with a value that is none
        log.debug("%s cannot be traced as a whole: %s", prefix or "The model", error)
    else:
        yield prefix, module, graph
        return
    for name, child in module.named_children():
        yield from _graphs(child, f"{prefix}{name}.")


def _norm_behind(node: fx.Node, modules: Mapping[str, nn.Module]) -> str | None:
    if len(node.users) != 1:
        return None
    (user,) = node.users
    if user.op != "call_module" or not isinstance(user.target, str):
        return None
    norm = modules[user.target]
    is_norm = isinstance(norm, _NormBase | nn.GroupNorm)
    return user.target if is_norm and user.args[:1] == (node,) else None


def folded_weights(
    weights: Mapping[str, Tensor], model: nn.Module, norms: Mapping[str, Norm]
) -> dict[str, Tensor]:
    """Return weights as they are once the batch norms behind them are folded in (arXiv 1806.08342, eq. 20).

    Args:
        weights: Parameters of ``model`` by name.
        model: Whose parameters they are.
        norms: What `norms_after` found.

    Returns:
        All of ``weights``; those of convolutions before a batch norm with running statistics times ``gamma /
        sqrt(running_var + eps)``, without a graph.
    """
    folded = dict(weights)
    for name, norm in norms.items():
        module: Any = norm.module
        layer = model.get_submodule(name.removesuffix(".weight"))
        if name not in folded or not isinstance(module, _BatchNorm) or module.running_var is None:
            continue
        with torch.no_grad():
            spread = (module.running_var + module.eps).sqrt()
            factor = 1.0 / spread if module.weight is None else module.weight / spread
            ones = [1] * (weights[name].dim() - 1)
            shape = (1, -1, *ones[1:]) if isinstance(layer, _ConvTransposeNd) else (-1, *ones)
            folded[name] = weights[name].detach() * factor.reshape(shape)
    return folded
