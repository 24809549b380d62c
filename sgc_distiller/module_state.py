"""What training does to networks and tensors around a pass, and undoes after it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "Part",
    "captured",
    "deployed",
    "drawing",
    "frozen_statistics",
    "parts_of",
    "same_randomness",
    "to_device",
    "trainable",
    "unwrapped",
    "without_graph",
]

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


@contextlib.contextmanager
def frozen_statistics(*networks: nn.Module) -> Iterator[None]:
    """Keep the running statistics of normalisation layers in training mode from moving.

    The layers still normalise by the batch's own statistics: an extra forward pass in training mode then
    leaves the network as it was.
    """
    taken: list[tuple[dict[str, Tensor | None], dict[str, Tensor | None]]] = []
    waiting: list[nn.Module | None] = list(networks)
    while waiting:  # several times a step: four times as fast as `nn.Module.modules`
        module = waiting.pop()
        if module is None:
            continue
        waiting.extend(module._modules.values())
        buffers = module._buffers
        if buffers and module.training and getattr(module, "track_running_stats", False):
            own = {name: buffers[name] for name in _BUFFERS if buffers.get(name) is not None}
            taken.append((buffers, own))
            buffers.update(dict.fromkeys(own))
    try:
        yield
    finally:
        for buffers, own in taken:
            buffers.update(own)


@contextlib.contextmanager
def captured(chains: Sequence[Sequence[nn.Module]]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Note what goes into and comes out of chains of modules in a forward pass inside the block.

    Yields:
        A list that holds, after the pass, input and output of each chain, copied and without graph. Of a
        chain that is passed more than once, the first time counts.
    """
    inputs: dict[int, Tensor] = {}
    outputs: dict[int, Tensor] = {}
    handles = []
    for index, chain in enumerate(chains):

        def enter(module: nn.Module, given: tuple[Any, ...], index: int = index) -> None:
            inputs.setdefault(index, given[0].detach().clone())  # a module may work in place

        def leave(module: nn.Module, given: Any, made: Tensor, index: int = index) -> None:
            outputs.setdefault(index, made.detach().clone())

        handles.append(chain[0].register_forward_pre_hook(enter))
        handles.append(chain[-1].register_forward_hook(leave))
    found: list[tuple[Tensor, Tensor]] = []
    try:
        yield found
        found += [(inputs[index], outputs[index]) for index in range(len(chains))]
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def same_randomness(seed: int | None, device: torch.device) -> Iterator[None]:
    """Draw dropout masks from ``seed`` inside the block and leave the global generators untouched.

    Two passes inside blocks with the same seed draw the same masks. ``None`` does nothing.
    """
    if seed is None:
        yield
        return
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Move a tensor without making the host wait for the device."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@contextlib.contextmanager
def drawing(generator: nn.Module) -> Iterator[None]:
    """Draw inside the block in training mode without gradients, and leave the network as it was.

    What `deployed` returned is drawn with as it is.
    """
    was_training = generator.training
    if not getattr(generator, "is_deployed", False):
        generator.train()
    try:
        with torch.no_grad(), frozen_statistics(generator):
            yield
    finally:
        generator.train(was_training)


def deployed(generator: nn.Module, own_statistics: type | tuple[type, ...] = ()) -> nn.Module:
    """Return a copy of a network in evaluation mode that `drawing` leaves in it.

    Args:
        generator: The network.
        own_statistics: Classes of norms over pictures that normalise every picture by its own mean and
            variance instead of what training kept, as the baseline does when it draws one at a time.
    """
    network: nn.Module = copy.deepcopy(unwrapped(generator)).eval()
    if own_statistics:
        for module in list(network.modules()):
            for name, child in module.named_children():
                if isinstance(child, own_statistics):
                    module.register_module(name, _by_own_statistics(child))
    network.is_deployed = True  # type: ignore[assignment]
    return network.requires_grad_(False)


def _by_own_statistics(norm: Any) -> nn.Module:
    made = nn.InstanceNorm2d(norm.num_features, norm.eps, affine=norm.affine)
    if norm.affine:
        made.weight, made.bias = norm.weight, norm.bias
    return made.eval()


@contextlib.contextmanager
def trainable(network: nn.Module) -> Iterator[None]:
    """Record the network's forward passes inside the block for its own update."""
    frozen = [item for item in network.parameters() if not item.requires_grad]
    for item in frozen:
        item.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        for item in frozen:
            item.requires_grad_(False)


def without_graph(values: Any) -> Any:
    """Return tensors in nested dictionaries and lists without their graph."""
    if isinstance(values, Tensor):
        return values.detach()
    if isinstance(values, dict):
        return {name: without_graph(value) for name, value in values.items()}
    if isinstance(values, list):
        return [without_graph(value) for value in values]
    return values


def unwrapped(network: nn.Module) -> Any:
    """Return the network inside ``DataParallel``, ``DistributedDataParallel`` or ``torch.compile``.

    It is a module with methods of its own, which the wrappers do not pass on.
    """
    while True:
        inner = getattr(network, "_orig_mod", None) or getattr(network, "module", None)
        if not isinstance(inner, nn.Module):
            return network
        network = inner


@dataclass(frozen=True)
class Part:
    """One network that is called by itself; CycleGAN's generator has two, all others one.

    Attributes:
        name: ``generator``, or its name in the `torch.nn.ModuleDict` that holds several (``G_A``).
        prefix: What the names of its parameters begin with in the whole generator, such as ``G_A.``.
        network: The network.
    """

    name: str
    prefix: str
    network: nn.Module


def parts_of(generator: nn.Module) -> list[Part]:
    """Return the networks that a generator consists of."""
    network = unwrapped(generator)
    if isinstance(network, nn.ModuleDict):
        return [Part(name, f"{name}.", part) for name, part in network.items()]
    return [Part("generator", "", network)]
