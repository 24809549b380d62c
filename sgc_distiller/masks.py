"""Masks of a model's parameters, and how they are applied all at once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sgc_distiller.errors import UserError, nearest
from sgc_distiller.names import canonical
from sgc_distiller.selection import drop_smallest, keep_largest

__all__ = ["MaskSet", "ParameterMasker", "drop_smallest", "keep_largest", "sparsity_table"]


class ParameterMasker:
    """The mask of one parameter and how it is used.

    Args:
        param_name: Name of the parameter.
        changed: Called when the mask or a flag is set to something else.
    """

    def __init__(self, param_name: str, changed: Callable[[], None] | None = None) -> None:
        self.param_name = param_name
        self.unmasked_copy: Tensor | None = None
        self.backward_hook_handle: RemovableHandle | None = None
        self.gradient_holders = 0
        self.statistics: dict[
            str, Tensor
        ] = {}  # what pruners measured of the weights when they first saw them
        self.is_regularization_mask = False  # `apply_mask` drops such a mask after using it once
        self.changed = changed
        self._mask: Tensor | None = None
        self._use_double_copies = False
        self._mask_on_forward_only = False

    @property
    def mask(self) -> Tensor | None:
        """Zeros and ones of the parameter's shape, or None for a dense parameter."""
        return self._mask

    @mask.setter
    def mask(self, mask: Tensor | None) -> None:
        if mask is not None or self._mask is not None:
            self._mask = mask
            self._notify()

    @property
    def use_double_copies(self) -> bool:
        """Whether the dense weights come back before the optimizer's step."""
        return self._use_double_copies

    @use_double_copies.setter
    def use_double_copies(self, use: bool) -> None:
        if use != self._use_double_copies:
            self._use_double_copies = use
            self._notify()

    @property
    def mask_on_forward_only(self) -> bool:
        """Whether the weights are left dense after the optimizer's step."""
        return self._mask_on_forward_only

    @mask_on_forward_only.setter
    def mask_on_forward_only(self, only: bool) -> None:
        if only != self._mask_on_forward_only:
            self._mask_on_forward_only = only
            self._notify()

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy takes over: all but the hook, which belongs to this parameter alone."""
        return {**self.__dict__, "backward_hook_handle": None}

    def _notify(self) -> None:
        if self.changed is not None:
            self.changed()

    def apply_mask(self, parameter: Tensor) -> Tensor:
        """Mask ``parameter`` in place for a forward pass, keeping a dense copy if double copies are used."""
        if self._mask is not None:
            self.keep_copy(parameter)
            self.mask_tensor(parameter)
            if self.is_regularization_mask:
                self.mask, self.is_regularization_mask = None, False
        return parameter

    def keep_copy(self, parameter: Tensor) -> None:
        """Keep the dense weights if double copies are used and none are kept yet."""
        if self._use_double_copies and self.unmasked_copy is None:
            self.unmasked_copy = parameter.detach().clone()

    def mask_tensor(self, tensor: Tensor) -> None:
        """Multiply ``tensor`` by the mask in place; nothing happens without a mask."""
        if self._mask is not None:
            tensor.data.mul_(self._mask)

    def mask_gradient(self, gradient: Tensor) -> Tensor | None:
        """Return ``gradient`` times the mask, or None (unchanged) without a mask."""
        return None if self._mask is None else gradient * self._mask

    def revert_weights(self, parameter: Tensor) -> None:
        """Bring back the dense weights kept by `apply_mask`; nothing happens without them."""
        if self.unmasked_copy is not None:
            parameter.detach().copy_(self.unmasked_copy)  # counted as a change, unlike a write to .data
            self.unmasked_copy = None

    def hold_gradient(self, parameter: Tensor) -> None:
        """Mask the gradients of ``parameter`` until `release_gradient` was called as often as this."""
        self.gradient_holders += 1
        self.hook_gradient(parameter)

    def hook_gradient(self, parameter: Tensor) -> None:
        """Put the hook on ``parameter`` if its gradients are to be masked and it is missing."""
        if self.gradient_holders and self.backward_hook_handle is None:
            learns = parameter.requires_grad
            parameter.requires_grad_(True)  # hooks are for tensors that learn; they survive the change
            self.backward_hook_handle = parameter.register_hook(self.mask_gradient)  # type: ignore[no-untyped-call]
            parameter.requires_grad_(learns)

    def release_gradient(self) -> None:
        """Take one hold of the gradients away, and the hook with the last one."""
        self.gradient_holders = max(0, self.gradient_holders - 1)
        if self.gradient_holders == 0 and self.backward_hook_handle is not None:
            self.backward_hook_handle.remove()
            self.backward_hook_handle = None


_Version = tuple[int, int, int]


class _Masked(NamedTuple):
    """Parameters with a mask, in the form in which they are masked together."""

    parameters: list[Tensor]
    masks: list[Tensor]

    def multiply(self) -> None:
        """Multiply the parameters by their masks."""
        if self.parameters:
            with torch.no_grad():
                torch._foreach_mul_(self.parameters, self.masks)

    def only(self, indices: Iterable[int]) -> _Masked:
        """Return some of them."""
        some = list(indices)
        return _Masked([self.parameters[index] for index in some], [self.masks[index] for index in some])

    def versions(self) -> list[_Version]:
        """Return what tells, without reading a value, that a parameter or its mask was changed."""
        return [
            (parameter._version, parameter.data_ptr(), mask._version)
            for parameter, mask in zip(self.parameters, self.masks, strict=True)
        ]


class _Plan(NamedTuple):
    """What applying the masks means until a mask or a flag changes."""

    every: _Masked  # all parameters with a mask, those of ``lasting`` first
    lasting: _Masked  # those that are masked after the optimizer's step too
    passing: _Masked  # the others, masked for the forward pass only
    copied: list[tuple[ParameterMasker, Tensor]]  # those whose dense weights are kept meanwhile


class MaskSet(dict[str, ParameterMasker]):
    """The maskers of a model by parameter name, applied together.

    It is an ordinary dictionary for whoever sets ``masks[name].mask``. Only parameters with a mask are
    touched, and the list of them is made anew only after a mask or a flag changed.

    `apply` leaves out what is masked already: torch counts the changes of a tensor, and a parameter with the
    same count, place in memory and mask as when it was masked last needs nothing. Writes through ``.data``
    and those of torch's fused optimizers are not counted. In an optimizer's step they do no harm, since
    `mask_weights`, which ends each step, leaves out nothing; who writes so elsewhere calls `forget_plan`
    afterwards.

    Args:
        model: The model whose parameters are masked, biases and norms included.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model
        self._is_cut = False
        self._plan: _Plan | None = None
        self._masked_at: Sequence[_Version | None] | None = None  # versions of those that are masked now
        for name, _ in model.named_parameters():
            self[name] = ParameterMasker(name)

    def __setitem__(self, name: str, masker: ParameterMasker) -> None:
        """Add or replace the masker of one parameter."""
        masker.changed = self.forget_plan
        super().__setitem__(name, masker)
        self.forget_plan()

    def forget_plan(self) -> None:
        """Look at masks, flags and parameters anew before masks are applied next, and leave out nothing."""
        self._plan = None
        self._masked_at = None

    def note_cut(self) -> None:
        """Note that the model was made thinner and the masks were cut alike, for `take_cut`."""
        self._is_cut = True
        self.forget_plan()

    def take_cut(self) -> bool:
        """Return whether masks were cut since this was asked last."""
        is_cut, self._is_cut = self._is_cut, False
        return is_cut

    def apply(self) -> None:
        """Mask the weights for a forward pass; double copies are kept where they are asked for."""
        plan = self._current_plan()
        for masker, parameter in plan.copied:
            masker.keep_copy(parameter)
        versions = plan.every.versions()
        if self._masked_at is None:
            plan.every.multiply()
        elif versions == self._masked_at:
            return
        else:
            pairs = enumerate(zip(versions, self._masked_at, strict=True))
            plan.every.only(index for index, (now, then) in pairs if now != then).multiply()
        self._masked_at = plan.every.versions()

    def mask_weights(self, is_forward: bool = True) -> None:
        """Mask the weights, whether they are known to be masked or not, keeping no copies.

        Args:
            is_forward: Whether weights that are masked on the forward pass only are masked too.
        """
        plan = self._current_plan()
        masked = plan.every if is_forward else plan.lasting
        masked.multiply()
        not_masked = len(plan.every.parameters) - len(masked.parameters)
        self._masked_at = [*masked.versions(), *[None] * not_masked]

    def mask_copy(self, model: nn.Module) -> None:
        """Multiply the parameters of a copy of the model, such as a moving average, by the masks.

        Every mask is used, also those for the forward pass only. Nothing is changed if a parameter does not
        fit.

        Args:
            model: A network with the same parameters. The path elements ``module`` and ``_orig_mod``, as in
                the names of `torch.optim.swa_utils.AveragedModel`, are ignored.

        Raises:
            UserError: If parameters are unknown, missing or of another shape.
        """
        own = {canonical(name): (self.get(name), param) for name, param in self._model.named_parameters()}
        copied = {canonical(name): param for name, param in model.named_parameters()}
        _check_copy({name: param.shape for name, (_, param) in own.items()}, copied)
        masked = [
            (masker, copied[name], _fitted(masker.mask.expand_as(param), copied[name]))
            for name, (masker, param) in own.items()
            if masker is not None and masker.mask is not None
        ]
        _together(masked).multiply()

    def revert(self) -> None:
        """Bring back the dense weights of every parameter that keeps them."""
        for masker, parameter in self._with_copies():
            masker.revert_weights(parameter)

    def drop_copies(self) -> None:
        """Forget the dense weights that are still kept."""
        for masker, _ in self._with_copies():
            masker.unmasked_copy = None

    @contextmanager
    def masked(self) -> Iterator[None]:
        """Show masked weights inside the block; those that are masked on the forward pass only come back."""
        passing = self._current_plan().passing.parameters
        saved = [parameter.detach().clone() for parameter in passing]
        self.mask_weights()
        try:
            yield
        finally:
            if saved:
                with torch.no_grad():
                    torch._foreach_copy_(passing, saved)

    def __deepcopy__(self, memo: dict[int, Any]) -> MaskSet:
        """Return a copy for a copy of the model, on whose parameters gradients are masked as on these."""
        copied = memo[id(self)] = type(self)(copy.deepcopy(self._model, memo))
        parameters = dict(copied._model.named_parameters())
        for name, masker in self.items():
            copied[name] = copy.deepcopy(masker, memo)
            if name in parameters:
                copied[name].hook_gradient(parameters[name])
        return copied

    def _with_copies(self) -> list[tuple[ParameterMasker, Tensor]]:
        return [pair for pair in self._current_plan().copied if pair[0].unmasked_copy is not None]

    def _current_plan(self) -> _Plan:
        if self._plan is None:
            self._plan = self._make_plan()
        return self._plan

    def _make_plan(self) -> _Plan:
        masked = []
        copied: list[tuple[ParameterMasker, Tensor]] = []
        for name, parameter in self._model.named_parameters():
            masker = self.get(name)
            if masker is None:
                continue
            if masker.mask is not None:
                masked.append((masker, parameter, _fitted(masker.mask, parameter)))
            if masker.unmasked_copy is not None or (masker.mask is not None and masker.use_double_copies):
                copied.append((masker, parameter))
        masked.reverse()  # what the optimizer has moved last is still in the processor's cache
        lasting = [entry for entry in masked if not entry[0].mask_on_forward_only]
        passing = [entry for entry in masked if entry[0].mask_on_forward_only]
        return _Plan(_together(lasting + passing), _together(lasting), _together(passing), copied)


def _fitted(mask: Tensor, parameter: Tensor) -> Tensor:
    if mask.shape != parameter.shape:
        mask = mask.expand_as(parameter)
    return mask.to(device=parameter.device, dtype=parameter.dtype)


def _together(entries: Iterable[tuple[ParameterMasker, Tensor, Tensor]]) -> _Masked:
    entries = list(entries)
    return _Masked([entry[1] for entry in entries], [entry[2] for entry in entries])


def _check_copy(shapes: Mapping[str, torch.Size], copied: Mapping[str, Tensor]) -> None:
    """Refuse parameters of a copy that are not those of the model."""
    again = "Mask a copy of the network that the masks were made for."
    for name in copied:
        if name not in shapes:
            raise UserError(
                f"Expected a copy of the model, got a parameter {name!r}, which the model does not have."
                f"{nearest(name, shapes)} {again}"
            )
    for name, shape in shapes.items():
        if name not in copied:
            raise UserError(f"Expected a copy of the model, got one without {name!r}. {again}")
        if copied[name].shape != shape:
            raise UserError(
                f"Expected {name!r} of shape {tuple(shape)} in a copy of the model, got "
                f"{tuple(copied[name].shape)}. {again}"
            )


def sparsity_table(model: nn.Module) -> list[dict[str, Any]]:
    """Return one row for each parameter with two or more dimensions: its size, its zeros, its spread.

    Returns:
        Rows with ``name``, ``shape`` (list), ``dense`` and ``nonzero`` (counts), ``sparsity`` (share of zeros
        in [0, 1]), ``std`` (unbiased), ``mean`` and ``abs_mean``, in the order of the model. Values are read
        from the device once for the whole table.
    """
    named = [
        (name, parameter.detach()) for name, parameter in model.named_parameters() if parameter.dim() >= 2
    ]
    if not named:
        return []
    numbers = []
    for _, weight in named:
        wide = weight.double()
        numbers.append(
            torch.stack([wide.count_nonzero().double(), wide.std(), wide.mean(), wide.abs().mean()])
        )
    values = torch.stack([row.to(numbers[0].device) for row in numbers]).tolist()
    return [
        {
            "name": name,
            "shape": list(weight.shape),
            "dense": weight.numel(),
            "nonzero": int(nonzero),
            "sparsity": 1.0 - nonzero / weight.numel(),
            "std": std,
            "mean": mean,
            "abs_mean": abs_mean,
        }
        for (name, weight), (nonzero, std, mean, abs_mean) in zip(named, values, strict=True)
    ]
