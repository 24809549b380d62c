"""Zeroed filters are taken out of a network in the middle of its training, with masks and moments."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from sgc_distiller.channel_tracing import trace
from sgc_distiller.errors import UserError
from sgc_distiller.masks import MaskSet, ParameterMasker
from sgc_distiller.module_state import parts_of, unwrapped
from sgc_distiller.names import canonical
from sgc_distiller.thinning import Thinning, cut_tensor, fit, thin

__all__ = ["check_removable", "make_as_thin", "remove_zeros"]

_Cut = Callable[[str, Tensor], Tensor]
_REMEDY = "Leave the remover out and take the zeros out of the finished run (`sgc thin`)."


def check_removable(model: nn.Module) -> None:
    """Refuse a model out of which nothing can be taken during training.

    Raises:
        UserError: If its channels cannot be followed, or processes share its training.
    """
    if isinstance(model, DistributedDataParallel):
        raise UserError(
            "Expected a model that one process trains: DistributedDataParallel goes on exchanging the "
            f"gradients of the parameters that it began with. {_REMEDY}"
        )
    for part in parts_of(model):
        trace(part.network)


def remove_zeros(model: nn.Module, maskers: MaskSet, optimizer: Optimizer | None) -> Thinning:
    """Take all zeros out of a model that can go, in place, between two steps of its training.

    What its norms do is judged in the mode that the model is in. Masks, dense copies, gradients, and what the
    optimizer remembers of each element are cut alike; masks of nothing but ones are dropped. No layer gets a
    bias that it had not.

    Args:
        model: The model, with its masks applied.
        maskers: Its maskers.
        optimizer: The one that trains it.

    Returns:
        What was taken out, with the names of the unwrapped model.

    Raises:
        UserError: If the model cannot be followed, there is no optimizer, or it remembers something else than
            a number, or one for each element. Nothing is changed then.
    """
    check_removable(model)
    before = dict(model.named_parameters())
    _check_optimizer(before, optimizer)
    whole = Thinning()
    for part in parts_of(model):
        whole.include(thin(part.network, may_add_biases=False), part.prefix)
    if whole.sizes:

        def cut(name: str, tensor: Tensor) -> Tensor:
            return cut_tensor(tensor.expand(before[name].shape), whole.cuts.get(canonical(name), ()))

        _cut_masks(model, maskers, cut)
        _follow(before, model, optimizer, cut)
    return whole


def make_as_thin(
    model: nn.Module,
    sizes: Mapping[str, Mapping[str, int]],
    state: Mapping[str, Tensor],
    optimizer: Optimizer,
) -> None:
    """Make a model as thin as a saved one in place, before its state and the optimizer's are loaded.

    Args:
        model: The model as it was when its training began.
        sizes: `Thinning.sizes` of the saved one.
        state: Its state dictionary.
        optimizer: The one that trains the model; it has taken no step yet.

    Raises:
        UserError: If the saved model is of another kind.
    """
    before = dict(model.named_parameters())
    fit(unwrapped(model), sizes, state)
    _follow(before, model, optimizer, lambda name, tensor: tensor)


def _check_optimizer(parameters: Mapping[str, nn.Parameter], optimizer: Optimizer | None) -> None:
    if optimizer is None:
        raise UserError(
            "Expected the optimizer in scheduler.on_minibatch_begin(epoch, step, steps, optimizer), got "
            "none: a remover gives it new parameters."
        )
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor) and value.dim() and value.shape != parameter.shape:
                raise UserError(
                    f"Expected an optimizer that remembers one number for each element, but {key!r} that "
                    f"{type(optimizer).__name__} keeps of {name!r} is of shape {tuple(value.shape)}, which "
                    f"cannot be cut as the weight is. {_REMEDY}"
                )


def _cut_masks(model: nn.Module, maskers: MaskSet, cut: _Cut) -> None:
    for name, parameter in model.named_parameters():
        if name in maskers:
            _cut_mask(maskers[name], parameter, cut)
    maskers.note_cut()


def _cut_mask(masker: ParameterMasker, parameter: nn.Parameter, cut: _Cut) -> None:
    name = masker.param_name
    if masker.mask is not None:
        mask = cut(name, masker.mask)
        masker.mask = None if bool((mask == 1).all()) else mask
    if masker.unmasked_copy is not None:
        masker.unmasked_copy = cut(name, masker.unmasked_copy)
    if masker.backward_hook_handle is not None:
        masker.backward_hook_handle.remove()
        masker.backward_hook_handle = None
    masker.hook_gradient(parameter)


def _follow(
    before: Mapping[str, nn.Parameter], model: nn.Module, optimizer: Optimizer | None, cut: _Cut
) -> None:
    """Give the optimizer the new parameters, with what it remembers of the old ones, and these gradients."""
    assert optimizer is not None
    after = dict(model.named_parameters())
    replaced = {before[name]: name for name in after if after[name] is not before[name]}
    for group in optimizer.param_groups:
        group["params"] = [after[replaced[old]] if old in replaced else old for old in group["params"]]
    for old, name in replaced.items():
        if old in optimizer.state:
            optimizer.state[after[name]] = {
                key: cut(name, value) if isinstance(value, Tensor) and value.dim() else value
                for key, value in optimizer.state.pop(old).items()
            }
        if old.grad is not None:
            with torch.no_grad():
                after[name].grad = cut(name, old.grad)
