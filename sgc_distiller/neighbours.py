"""Which normalisation layer takes the outputs of which layer, read from the way data goes through a model."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

__all__ = ["LayerTracer", "Norm", "folded_weights", "norms_after", "untouched", "untraceable_part"]

log = logging.getLogger(__name__)

_Layers = (_ConvNd, nn.Linear)
_Norms = (_NormBase, nn.GroupNorm)


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
    paths = {module: path for path, module in model.named_modules()}  # one path also for a shared layer
    found: dict[str, set[str | None]] = {}
    for part, graph in _graphs(model, ""):
        modules = dict(part.named_modules())
        for node in graph.nodes:
            if node.op == "call_module" and isinstance(modules[node.target], _Layers):
                after = _norm_behind(node, modules)
                norms = found.setdefault(paths[modules[node.target]], set())
                norms.add(None if after is None else paths[after])
    alone = {path: next(iter(norms)) for path, norms in found.items() if len(norms) == 1}
    return {
        f"{path}.weight" if path else "weight": Norm(norm, model.get_submodule(norm))
        for path, norm in alone.items()
        if norm is not None
    }


class LayerTracer(fx.Tracer):
    """Looks into no layer and no norm, also where they are a user's own subclasses."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a module is taken as a whole."""
        return isinstance(m, (*_Layers, *_Norms)) or super().is_leaf_module(m, module_qualified_name)


def untraceable_part(network: nn.Module) -> str:
    """Return the innermost part of a network whose code cannot be traced, by its path and class."""
    inner_first = sorted(network.named_modules(), key=lambda item: -item[0].count("."))
    for path, module in inner_first:
        if path and not isinstance(module, (*_Layers, *_Norms)):
            try:
                with untouched(module):
                    LayerTracer().trace(module)
            except Exception:  # whatever the part's own code does with a value that is none
                return f"{path} ({type(module).__name__})"
    return type(network).__name__


def _graphs(module: nn.Module, path: str) -> Iterator[tuple[nn.Module, fx.Graph]]:
    """Yield the largest parts that can be traced."""
    if not any(isinstance(part, _Layers) for part in module.modules()) or isinstance(module, _Layers):
        return
    try:
        with untouched(module):
            graph = LayerTracer().trace(module)
    except Exception as error:  # whatever the model's own code does with a value that is none
        log.debug("%s cannot be traced as a whole: %s", path or "The model", error)
    else:
        yield module, graph
        return
    for name, child in module.named_children():
        yield from _graphs(child, f"{path}.{name}" if path else name)


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Put back what a model's own code sets on it while it is traced, and the global random numbers."""
    states: list[dict[str, Any]] = [part.__dict__ for part in module.modules()]
    states += [state[key] for state in states for key in ("_parameters", "_buffers") if key in state]
    kept = [(state, dict(state)) for state in states]
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count()) if used else ()):
            yield
    finally:
        for state, before in kept:
            for key in state.keys() - before.keys():
                del state[key]
            state.update(before)


def _norm_behind(node: fx.Node, modules: Mapping[str, nn.Module]) -> nn.Module | None:
    if len(node.users) != 1:
        return None
    (user,) = node.users
    if user.op != "call_module" or not isinstance(user.target, str):
        return None
    norm = modules[user.target]
    return norm if isinstance(norm, _Norms) and user.args[:1] == (node,) else None


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
            folded[name] = _scaled(weights[name].detach(), factor, layer).to(weights[name].dtype)
    return folded


def _scaled(weight: Tensor, factor: Tensor, layer: nn.Module) -> Tensor:
    """Return a layer's weight with one factor for each of its outputs."""
    if not isinstance(layer, _ConvTransposeNd):
        return weight * factor.reshape(-1, *[1] * (weight.dim() - 1))
    grouped = weight.reshape(layer.groups, -1, *weight.shape[1:])  # outputs of a group lie on dimension 2
    ones = [1] * (weight.dim() - 2)
    return (grouped * factor.reshape(layer.groups, 1, -1, *ones)).reshape(weight.shape)
