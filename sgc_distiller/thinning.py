"""Thinning: taking channels that say nothing out of a network, with everything that depends on them.

A channel goes where every layer that reads it gets the same constant for all inputs, or reads it with zero
weights only. Constants other than 0 are added to the reader's bias where that is exact, which it is not
where zeros are padded around the picture. Channels that are summed, or woven together otherwise, go together
or stay.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from sgc_distiller.channel_flow import ChannelFlow, LayerFlow, Numbers
from sgc_distiller.channel_tracing import trace
from sgc_distiller.channel_values import is_uniform
from sgc_distiller.errors import UserError

__all__ = ["Cut", "Thinning", "apply", "cut_tensor", "find_removable", "fit", "sizes_beside", "thin"]

log = logging.getLogger(__name__)

_OF_LAYERS = ("in_channels", "out_channels", "in_features", "out_features", "groups")
_TENSORS = ("weight", "bias", "running_mean", "running_var")
_OF_OTHERS = ("num_features", "num_channels", "num_groups", "num_parameters")


@dataclass(frozen=True)
class Cut:
    """What stays of a tensor.

    Attributes:
        dim: The dimension that gets smaller.
        kept: Which indices of it stay, int64.
    """

    dim: int
    kept: Tensor


@dataclass
class Thinning:
    """What is taken out of a network.

    Attributes:
        cuts: Of parameters and buffers, by name.
        sizes: New values of the modules' own attributes, such as ``out_channels``, by path.
        biases: What is added to a layer's bias for constants that it no longer reads, by path.
        stays: Why filters that are zero stay, by the layer's path.
        removed: How many filters go, by the layer's path.
    """

    cuts: dict[str, list[Cut]] = field(default_factory=dict)
    sizes: dict[str, dict[str, int]] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)
    stays: dict[str, list[str]] = field(default_factory=dict)
    removed: dict[str, int] = field(default_factory=dict)

    def include(self, found: Thinning, prefix: str) -> None:
        """Take up what is taken out of a part, whose names begin with ``prefix`` in the whole network."""
        self.cuts.update({f"{prefix}{name}": cuts for name, cuts in found.cuts.items()})
        self.sizes.update({f"{prefix}{path}": sizes for path, sizes in found.sizes.items()})
        self.biases.update({f"{prefix}{path}": shift for path, shift in found.biases.items()})
        self.stays.update({f"{prefix}{path}": reasons for path, reasons in found.stays.items()})
        self.removed.update({f"{prefix}{path}": count for path, count in found.removed.items()})


def thin(network: nn.Module, deployed: nn.Module | None = None, may_add_biases: bool = True) -> Thinning:
    """Take everything out of a network that says nothing, in place, until nothing more can go.

    Args:
        network: The network.
        deployed: The same network as it is deployed, which tells what its norms do; the network itself by
            default. It is made thinner with it.
        may_add_biases: Whether layers without a bias may be given one for the constants that they no longer
            read; else such channels stay.

    Returns:
        What was taken out, all rounds together; `fit` makes another network of the same kind as thin.

    Raises:
        UserError: If the network cannot be followed, see `trace`.
    """
    judged = network if deployed is None else deployed
    whole = Thinning()
    while True:
        found = find_removable(judged, may_add_biases)
        whole.stays = found.stays
        if not found.sizes:
            return whole
        for one in (judged,) if judged is network else (judged, network):
            apply(one, found)
        _add(whole, found)


def _add(whole: Thinning, found: Thinning) -> None:
    for name, cuts in found.cuts.items():
        whole.cuts.setdefault(name, []).extend(cuts)
    for path, sizes in found.sizes.items():
        whole.sizes.setdefault(path, {}).update(sizes)
    whole.biases.update(found.biases)
    for path, count in found.removed.items():
        whole.removed[path] = whole.removed.get(path, 0) + count


def find_removable(network: nn.Module, may_add_biases: bool = True) -> Thinning:
    """Return what can be taken out of a network at once; see `thin`."""
    flow = trace(network)
    silent = _silent(flow, may_add_biases)
    made = Thinning(stays=_reasons(flow, silent, may_add_biases))
    if not silent:
        return made
    for layer in flow.layers.values():
        _cut_layer(layer, flow, silent, made)
    for path, numbers in flow.others.items():
        gone = _gone(flow, numbers, silent)
        if gone.any():
            _cut_other(network.get_submodule(path), path, ~gone, made)
    return made


def _silent(flow: ChannelFlow, may_add_biases: bool) -> set[int]:
    """Return the roots of channels that can go; every layer keeps at least one of them."""
    candidates: set[int] = set()
    for layer in flow.layers.values():
        candidates.update(flow.channels.roots(layer.outputs).tolist())
    candidates = {root for root in candidates if not flow.channels.fixed(root)}
    for layer in flow.layers.values():
        if not layer.is_depthwise:  # what one of its filters reads goes with the filter
            heard = np.unique(flow.channels.roots(layer.inputs)[_heard(layer, may_add_biases)])
            candidates.difference_update(heard.tolist())
    for layer in flow.layers.values():
        for numbers in (layer.outputs, layer.inputs):
            roots = flow.channels.roots(numbers).tolist()
            if all(root in candidates for root in roots):
                candidates.discard(roots[0])
    return candidates


def _heard(layer: LayerFlow, may_add_biases: bool) -> Any:
    """Return for each input of a layer whether its outputs would differ without it."""
    reads = (layer.kernels() != 0).any(dim=2)  # (outputs, inputs of a group)
    used = reads.reshape(layer.groups, -1, reads.shape[1]).any(dim=1).reshape(-1).numpy()
    can_fold = is_uniform(layer.module) and (may_add_biases or layer.module.bias is not None)
    unknown = np.isnan(layer.values) if can_fold else layer.values != 0
    return used & unknown


def _gone(flow: ChannelFlow, numbers: Numbers, silent: set[int]) -> Any:
    return np.isin(flow.channels.roots(numbers), list(silent))


def _cut_layer(layer: LayerFlow, flow: ChannelFlow, silent: set[int], made: Thinning) -> None:
    """Note what goes of a layer: outputs, inputs, and what it would have read."""
    outputs, inputs = _gone(flow, layer.outputs, silent), _gone(flow, layer.inputs, silent)
    if not outputs.any() and not inputs.any():
        return
    module, path, groups = layer.module, layer.path, layer.groups
    is_linear = isinstance(module, nn.Linear)
    names = ("in_features", "out_features") if is_linear else ("in_channels", "out_channels")
    sizes = {names[0]: int((~inputs).sum()), names[1]: int((~outputs).sum())}
    within_inputs, within_outputs = ~inputs.reshape(groups, -1)[0], ~outputs.reshape(groups, -1)[0]
    if layer.is_depthwise:
        sizes["groups"] = sizes["in_channels"]
        within_inputs, within_outputs = np.array([True]), np.ones(len(outputs) // groups, bool)
    is_transposed = isinstance(module, _ConvTransposeNd)  # (inputs, outputs / groups, ...)
    kept = (~inputs, within_outputs) if is_transposed else (~outputs, within_inputs)
    _cut(made, _joined(path, "weight"), 0, kept[0])
    _cut(made, _joined(path, "weight"), 1, kept[1])
    if module.bias is not None:
        _cut(made, _joined(path, "bias"), 0, ~outputs)
    shift = _folded(layer, inputs)
    if shift is not None and bool((shift != 0).any()):
        made.biases[path] = shift[torch.from_numpy(~outputs)]
    made.sizes[path] = sizes
    made.removed[path] = int(outputs.sum())


def _folded(layer: LayerFlow, inputs: Any) -> Tensor | None:
    """Return what the inputs that go have added to each output, shape (outputs,), float64."""
    if layer.is_depthwise or not inputs.any():
        return None
    kernels = layer.kernels().sum(dim=2)
    values = torch.from_numpy(np.where(inputs, np.nan_to_num(layer.values), 0.0)).reshape(layer.groups, 1, -1)
    parts = kernels.reshape(layer.groups, -1, kernels.shape[1])
    return (parts * values).sum(dim=2).reshape(-1)


def _cut_other(module: Any, path: str, kept: Any, made: Thinning) -> None:
    for name in _TENSORS:  # as deployed it may lack statistics that it has in training
        _cut(made, _joined(path, name), 0, kept)
    count = int(kept.sum())
    made.sizes[path] = {name: count for name in _OF_OTHERS if hasattr(module, name)}


def _cut(made: Thinning, name: str, dim: int, kept: Any) -> None:
    if not kept.all():
        made.cuts.setdefault(name, []).append(Cut(dim, torch.from_numpy(np.flatnonzero(kept))))


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _reasons(flow: ChannelFlow, silent: set[int], may_add_biases: bool) -> dict[str, list[str]]:
    """Return why filters of zeros stay, by their layer's path."""
    readers: dict[int, list[LayerFlow]] = {}
    for layer in flow.layers.values():
        heard = np.unique(flow.channels.roots(layer.inputs)[_heard(layer, may_add_biases)])
        for root in heard.tolist():
            readers.setdefault(root, []).append(layer)
    found: dict[str, list[str]] = {}
    for layer in flow.layers.values():
        zero = (layer.kernels() == 0).flatten(1).all(dim=1).numpy()
        for root in np.unique(flow.channels.roots(layer.outputs[zero])).tolist():
            if root not in silent:
                found.setdefault(layer.path, []).append(_reason(flow, layer, root, readers))
    return found


def _reason(
    flow: ChannelFlow, layer: LayerFlow, root: int, readers: Mapping[int, Sequence[LayerFlow]]
) -> str:
    fixed = flow.channels.fixed(root)
    if fixed:
        return fixed
    for reader in readers.get(root, ()):
        values = reader.values[flow.channels.roots(reader.inputs) == root]
        if np.isnan(values).any():
            others = [
                item.path
                for item in flow.layers.values()
                if item is not layer and root in flow.channels.roots(item.outputs)
            ]
            summed = f", to which {others[0]} adds" if others else ""
            return f"{reader.path} reads something there that depends on the input{summed}"
        return f"{reader.path} reads the constant {values[0]:.3g} there, which no bias can replace exactly"
    return "the layer needs one filter"


def apply(network: nn.Module, thinning: Thinning) -> None:
    """Make a network thinner, in place: new parameters, and new sizes of its modules.

    Raises:
        UserError: If the network is not of the kind that it was found for.
    """
    for path in thinning.sizes:
        module = network.get_submodule(path)
        for own in _TENSORS:
            for cut in thinning.cuts.get(_joined(path, own), ()):
                tensor = getattr(module, own, None)
                if isinstance(tensor, Tensor):
                    _replace(module, own, cut_tensor(tensor, (cut,)))
    _resize(network, thinning.sizes)
    for path, shift in thinning.biases.items():
        layer: Any = network.get_submodule(path)
        weight = layer.weight
        before = torch.zeros(len(shift), dtype=weight.dtype) if layer.bias is None else layer.bias.detach()
        value = before.to(weight) + shift.to(weight)
        layer.bias = nn.Parameter(value, requires_grad=weight.requires_grad)


def cut_tensor(tensor: Tensor, cuts: Sequence[Cut]) -> Tensor:
    """Return what stays of a tensor."""
    tensor = tensor.detach()
    for cut in cuts:
        tensor = tensor.index_select(cut.dim, cut.kept.to(tensor.device))
    return tensor


def _replace(module: nn.Module, name: str, tensor: Tensor) -> None:
    before = getattr(module, name)
    if isinstance(before, nn.Parameter):
        setattr(module, name, nn.Parameter(tensor, requires_grad=before.requires_grad))
    else:
        setattr(module, name, tensor)


def _resize(network: nn.Module, sizes: Mapping[str, Mapping[str, int]]) -> None:
    for path, own in sizes.items():
        try:
            module = network.get_submodule(path)
        except AttributeError:
            raise UserError(
                f"expected a network with a layer {path!r}, which was made thinner, got none"
            ) from None
        for name, value in own.items():
            if name not in _OF_LAYERS + _OF_OTHERS or not isinstance(value, int) or value < 1:
                raise UserError(f"{path}: expected a size such as out_channels: 12, got {name}: {value!r}")
            setattr(module, name, value)


def sizes_beside(network: nn.Module, built: nn.Module) -> dict[str, dict[str, int]]:
    """Return the sizes of a network's modules that differ from those of another one, as `fit` takes them.

    Args:
        network: The network, perhaps thinner.
        built: One of the same kind, as its task builds it.
    """
    others = dict(built.named_modules())
    found: dict[str, dict[str, int]] = {}
    for path, module in network.named_modules():
        for name in _OF_LAYERS + _OF_OTHERS:
            value = getattr(module, name, None)
            if isinstance(value, int) and value != getattr(others.get(path), name, value):
                found.setdefault(path, {})[name] = value
    return found


def fit(network: nn.Module, sizes: Mapping[str, Mapping[str, int]], state: Mapping[str, Tensor]) -> None:
    """Make a newly built network as thin as another one of its kind, in place, so that it takes its weights.

    Args:
        network: As its task builds it.
        sizes: `Thinning.sizes` of the other one.
        state: Its state dictionary, whose shapes are followed in the layers of ``sizes``.

    Raises:
        UserError: If it is of another kind.
    """
    _resize(network, sizes)
    for path in sizes:
        module = network.get_submodule(path)
        for own in _TENSORS:
            wanted = state.get(_joined(path, own))
            before = getattr(module, own, None)
            if wanted is None or not (isinstance(before, Tensor) or own == "bias"):
                continue
            like: Any = before if isinstance(before, Tensor) else module.weight
            made = torch.zeros(wanted.shape, dtype=like.dtype, device=like.device)
            if isinstance(before, nn.Parameter) or before is None:
                setattr(module, own, nn.Parameter(made))
            else:
                setattr(module, own, made)
