"""Tracing a network for `sgc_distiller.channel_flow`: what each operation does to the channels."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase

from sgc_distiller.channel_flow import (
    Activation,
    ChannelFlow,
    LayerFlow,
    Numbers,
    Values,
    is_layer,
)
from sgc_distiller.channel_operations import (
    BINARY_FUNCTIONS,
    BINARY_METHODS,
    CONSTANT_PADS,
    DROPOUT_FUNCTIONS,
    DROPOUTS,
    IN_PLACE,
    JOINING_FUNCTIONS,
    NOT_A_TENSOR,
    PRODUCTS,
    SAME_METHODS,
    SHUFFLING_FUNCTIONS,
    SPATIAL_FUNCTIONS,
    SPATIAL_MODULES,
    UNARY_FUNCTIONS,
    UNARY_METHODS,
    UNARY_MODULES,
    ZERO_FUNCTIONS,
    ZERO_MODULES,
    activations,
    averaged,
    changed,
    flattened,
    padded,
    same,
    unknown,
    unshuffled,
)
from sgc_distiller.channel_values import (
    after_layer,
    after_norm,
    of_both,
    of_one,
    only_where,
    only_zeros,
)
from sgc_distiller.errors import UserError
from sgc_distiller.neighbours import LayerTracer, untouched, untraceable_part

__all__ = ["trace"]


def trace(network: nn.Module) -> ChannelFlow:
    """Follow every channel through a network, symbolically (`torch.fx`).

    Args:
        network: One that is called with tensors. Which statistics its norms use depends on its mode.

    Returns:
        Layers that the network never calls are not in it.

    Raises:
        UserError: If Python code in the network looks at its inputs' values or sizes, which hides the way;
            the message names what stopped it.
    """
    try:
        with untouched(network):
            graph = LayerTracer().trace(network)
    except Exception as error:  # whatever the network's own code does with a value that is none
        raise UserError(
            f"{untraceable_part(network)}: the way of its channels cannot be followed, since its code looks "
            f"at what comes in: {error}. Put what does so into a function of its own, with @torch.fx.wrap"
        ) from error
    flow = ChannelFlow()
    rules = _Rules(flow, network)
    found: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        found[node] = rules.apply(node, found)
    return flow


class _Rules:
    """What each node does; see `trace`."""

    def __init__(self, flow: ChannelFlow, network: nn.Module) -> None:
        self.flow = flow
        self.network = network
        self.channels = flow.channels

    def apply(self, node: fx.Node, found: Mapping[fx.Node, Any]) -> Any:
        """Return an `Activation`, or what stands for something that is no tensor."""
        if node.op == "placeholder":
            return unknown()
        if node.op == "get_attr":
            return self._attribute(str(node.target))
        given = fx.node.map_arg((node.args, node.kwargs), lambda item: found[item])
        args, kwargs = given
        if node.op == "output":
            for item in activations(args):
                self.channels.fix(item.known, "it is a channel of the output")
            return None
        if not node.users and node.op == "call_function":
            return None  # a check: nobody reads what comes of it
        if node.op == "call_module":
            made = self._module(node, self.network.get_submodule(str(node.target)), args)
        elif node.op == "call_function":
            made = self._function(node.target, args, kwargs)
        else:
            made = self._method(str(node.target), args, kwargs)
        return self._not_followed(node, args, kwargs) if made is None else made

    def _attribute(self, target: str) -> Any:
        value: Any = self.network
        for name in target.split("."):
            value = getattr(value, name)
        is_number = isinstance(value, Tensor) and value.numel() == 1
        return float(value.detach()) if is_number and value.is_floating_point() else unknown()

    def _not_followed(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        inside = list(activations((args, kwargs)))
        if not inside:
            return NOT_A_TENSOR if _has_other(args) else unknown()
        reason = f"its way through {_described(node, self.network)} cannot be followed"
        for item in inside:
            self.channels.fix(item.known, reason)
        return unknown()

    def _module(self, node: fx.Node, module: nn.Module, args: Any) -> Activation | None:
        if len(args) != 1 or not isinstance(args[0], Activation):
            return None
        value: Activation = args[0]
        path = str(node.target)
        if is_layer(module):
            return self._layer(path, module, value)
        if isinstance(module, (_NormBase, nn.GroupNorm)):
            return self._norm(path, module, value)
        if isinstance(module, nn.PReLU):
            return self._rectifier(path, module, value)
        if isinstance(module, DROPOUTS):
            return same(value) if not module.training else changed(value, only_zeros)
        if isinstance(module, UNARY_MODULES):
            return changed(value, lambda values: of_one(module, values), getattr(module, "inplace", False))
        return self._spatial(module, value)

    def _spatial(self, module: nn.Module, value: Activation) -> Activation | None:
        if isinstance(module, SPATIAL_MODULES):
            return same(value)
        if isinstance(module, ZERO_MODULES):
            return changed(value, only_zeros)
        if isinstance(module, CONSTANT_PADS):
            return changed(value, lambda values: only_where(values, float(module.value)))
        if isinstance(module, nn.PixelShuffle):
            return self._shuffled(value, module.upscale_factor)
        if isinstance(module, nn.PixelUnshuffle):
            return unshuffled(value, module.downscale_factor)
        if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
            return flattened(value)
        return None

    def _function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is getattr or target is operator.getitem:
            return self._looked_up(target, args)
        if target in JOINING_FUNCTIONS:
            return self._joined(args, kwargs)
        if target in BINARY_FUNCTIONS:
            return self._both(target, args, kwargs)
        if not args or not isinstance(args[0], Activation):
            return None
        value: Activation = args[0]
        rest = args[1:]
        if activations((rest, kwargs)):
            return None
        if target in UNARY_FUNCTIONS:
            in_place = bool(kwargs.get("inplace")) or str(getattr(target, "__name__", "")).endswith("_")
            return changed(value, lambda values: of_one(target, values, *rest, **kwargs), in_place)
        if target in DROPOUT_FUNCTIONS:
            training = kwargs.get("training", rest[1] if len(rest) > 1 else True)
            return changed(value, only_zeros) if training else same(value)
        if target in SPATIAL_FUNCTIONS:
            return same(value)
        if target in ZERO_FUNCTIONS:
            return changed(value, only_zeros)
        if target in SHUFFLING_FUNCTIONS:
            return self._shuffled(value, *rest)
        if target is F.pad:
            return padded(value, *rest, **kwargs)
        if target is torch.flatten:
            return flattened(value) if (*rest, *kwargs.values()) in ((1,), (1, -1)) else None
        if target is torch.mean:
            return averaged(value, *rest, **kwargs)
        return None

    def _method(self, name: str, args: Any, kwargs: Any) -> Any:
        value = args[0]
        if not isinstance(value, Activation):
            return NOT_A_TENSOR
        if name in ("size", "dim", "numel"):
            return NOT_A_TENSOR
        if name in BINARY_METHODS:
            return self._both(name, args, kwargs)
        if activations((args[1:], kwargs)):
            return None
        if name in SAME_METHODS:
            return same(value)
        if name in UNARY_METHODS:
            return changed(
                value,
                lambda values: of_one(getattr(Tensor, name), values, *args[1:], **kwargs),
                name.endswith("_"),
            )
        if name == "flatten":
            return flattened(value) if (*args[1:], *kwargs.values()) in ((1,), (1, -1)) else None
        if name in ("view", "reshape") and len(args) == 3 and args[1] is NOT_A_TENSOR and args[2] == -1:
            return flattened(value)
        if name == "mean":
            return averaged(value, *args[1:], **kwargs)
        return None

    def _looked_up(self, target: Any, args: Any) -> Any:
        value, key = args[:2]
        if not isinstance(value, Activation):
            return NOT_A_TENSOR
        if target is getattr:
            return NOT_A_TENSOR if key in ("shape", "dtype", "device", "ndim") else None
        is_crop = (
            isinstance(key, tuple)
            and len(key) > 2
            and key[:2] == (slice(None), slice(None))
            and all(isinstance(item, slice) for item in key)
        )
        return same(value) if is_crop else None

    def _layer(self, path: str, module: Any, value: Activation) -> Activation | None:
        is_linear = isinstance(module, nn.Linear)
        if (value.kind == "map") == is_linear and value.known.size:
            return None
        count = module.in_features if is_linear else module.in_channels
        repeats = count // len(value.known) if value.kind == "flat" and value.known.size else 1
        numbers, values = self._resolved(value, count, repeats, path)
        known = self.flow.layers.get(path)
        if known is None:
            outputs = self.channels.new(module.out_features if is_linear else module.out_channels)
            known = self.flow.layers[path] = LayerFlow(path, module, numbers, outputs, values, repeats)
            self._tie_groups(known)
        else:  # called before: what comes in there and here can only go together
            self.channels.tie(known.inputs, numbers)
            known.values = np.where(known.values == values, values, np.nan)
        made = after_layer(known, values)
        return Activation([known.outputs], [made], "vector" if is_linear else "map")

    def _resolved(self, value: Activation, count: int, repeats: int, path: str) -> tuple[Numbers, Values]:
        """Return the number and value of each input of a layer, where pieces of unknown length must stay."""
        known, values = np.repeat(value.known, repeats), np.repeat(value.all_values, repeats)
        missing = count - len(known)
        pieces = [piece for piece in value.numbers if piece is None]
        if missing == 0 and not pieces:
            return known, values
        if len(pieces) != 1 or missing < 0 or repeats > 1:
            if known.size:
                self.channels.fix(known, f"its place among the inputs of {path} cannot be told")
            return self.channels.new(count, "it comes in from outside"), np.full(count, np.nan)
        before = value.numbers[: value.numbers.index(None)]
        place = sum(len(piece) for piece in before if piece is not None)
        outside = self.channels.new(missing, "it comes in from outside")
        unknown = np.full(missing, np.nan)
        return np.insert(known, [place] * missing, outside), np.insert(values, [place] * missing, unknown)

    def _tie_groups(self, layer: LayerFlow) -> None:
        """Let channels go together whose loss leaves the groups of a layer equally large."""
        groups = layer.groups
        if groups == 1:
            return
        inputs, outputs = layer.inputs.reshape(groups, -1), layer.outputs.reshape(groups, -1)
        if layer.is_depthwise:
            for own, made in zip(inputs[:, 0], outputs, strict=True):
                self.channels.tie(np.full(len(made), own), made)
            return
        for sides in (inputs, outputs):
            for other in sides[1:]:
                self.channels.tie(sides[0], other)

    def _norm(self, path: str, module: Any, value: Activation) -> Activation:
        is_group = isinstance(module, nn.GroupNorm)
        count = module.num_channels if is_group else module.num_features
        numbers, values = self._resolved(value, count, 1, path)
        if path in self.flow.others:
            self.channels.tie(self.flow.others[path], numbers)
        self.flow.others[path] = numbers
        if is_group and module.num_groups != count:
            self.channels.fix(numbers, f"{path} normalises it together with others")
            return Activation([numbers], [np.full(count, np.nan)], value.kind)
        return Activation([numbers], [after_norm(module, values)], value.kind)

    def _rectifier(self, path: str, module: nn.PReLU, value: Activation) -> Activation:
        if module.num_parameters == 1:
            return changed(
                value, lambda values: of_one(F.prelu, values, module.weight.detach().double().cpu())
            )
        numbers, values = self._resolved(value, module.num_parameters, 1, path)
        if path in self.flow.others:
            self.channels.tie(self.flow.others[path], numbers)
        self.flow.others[path] = numbers
        made = of_one(F.prelu, values, module.weight.detach().double().cpu())
        return Activation([numbers], [made], value.kind)

    def _joined(self, args: Any, kwargs: Any) -> Activation | None:
        pieces = args[0] if args else kwargs.get("tensors")
        dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
        if dim != 1 or not all(isinstance(item, Activation) for item in pieces):
            return None
        kinds = {item.kind for item in pieces if item.known.size}
        if len(kinds) > 1 or "flat" in kinds:
            return None
        return Activation(
            [part for item in pieces for part in item.numbers],
            [part for item in pieces for part in item.values],
            kinds.pop() if kinds else "map",
        )

    def _both(self, target: Any, args: Any, kwargs: Any) -> Any:
        inside = list(activations(args[:2]))
        function = target if callable(target) else getattr(Tensor, target)
        in_place = target in IN_PLACE or str(target).endswith("_")
        if not inside:
            return None
        if len(inside) == 1:
            number = next(item for item in args[:2] if not isinstance(item, Activation))
            if not isinstance(number, int | float):
                return None
            order = (lambda values: (values, number)) if args[0] is inside[0] else (lambda v: (number, v))
            return changed(inside[0], lambda values: of_both(function, *order(values), **kwargs), in_place)
        one, other = inside
        if (
            not one.is_known
            or not other.is_known
            or one.kind != other.kind
            or "flat" in (one.kind, other.kind)
        ):
            return None
        first, second = one.known, other.known
        if len(first) != len(second):
            return self._broadcast(target, one, other)
        self.channels.tie(first, second)
        made = of_both(function, one.all_values, other.all_values, **kwargs)
        if target in PRODUCTS:
            made = np.where((one.all_values == 0) | (other.all_values == 0), 0.0, made)
        if in_place:
            one.numbers, one.values = [first], [made]
            return one
        return Activation([first], [made], one.kind)

    def _broadcast(self, target: Any, one: Activation, other: Activation) -> Activation | None:
        """Let a single channel that all others are combined with stay."""
        wide, narrow = (one, other) if len(one.known) > len(other.known) else (other, one)
        if len(narrow.known) != 1:
            return None
        self.channels.fix(narrow.known, "all channels are combined with it")
        return changed(wide, only_zeros if target in PRODUCTS else lambda values: values * np.nan)

    def _shuffled(self, value: Activation, factor: int) -> Activation | None:
        square = factor * factor
        if not value.is_known or len(value.known) % square:
            return None
        numbers, values = value.known.reshape(-1, square), value.all_values.reshape(-1, square)
        for column in range(1, square):
            self.channels.tie(numbers[:, 0], numbers[:, column])
        alike = (values == values[:, :1]).all(axis=1)
        return Activation([numbers[:, 0]], [np.where(alike, values[:, 0], np.nan)], value.kind)


def _has_other(args: Any) -> bool:
    return any(item is NOT_A_TENSOR for item in args)


def _described(node: fx.Node, network: nn.Module) -> str:
    if node.op == "call_module":
        kind = type(network.get_submodule(str(node.target))).__name__
        return f"{node.target} ({kind})"
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return f"{node.name} ({name})"
