"""Sparse weights in less space: of each tensor the values that are not zero, and where they stand.

Nothing is rounded: what comes back is the same bit for bit. Three ways to store a tensor compete, and the
smallest wins:

- ``dense``: all values;
- ``bitmask``: one bit an element, lowest bit of the first byte first, and the values whose bit is 1;
- ``gaps``: one byte a value, the number of zeros before it, and the values. 255 stands for 255 zeros without
  a value behind them; the last byte counts the zeros after the last value. It wins below a density of 1/8.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sgc_distiller.errors import UserError

__all__ = ["Entries", "bits_of", "packed", "unpacked"]

Entries = dict[str, dict[str, Any]]
"""For each tensor ``how`` it is stored, its ``shape`` and the ``dtype`` that it comes back in."""

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes
_ESCAPE = 255
_HEADER = 100  # bytes that a second tensor costs in a file's header, about


def packed(state: Mapping[str, Tensor], half: bool = False) -> tuple[dict[str, Tensor], Entries]:
    """Return a state dictionary in less space.

    Args:
        state: Tensors by name.
        half: Store 32-bit values of tensors with two or more dimensions in 16 bits (IEEE half precision), to
            the nearest; norms and biases keep theirs.

    Returns:
        The tensors to store, named ``NAME/values``, ``NAME/mask`` and ``NAME/gaps``, and what `unpacked`
        must know beside them.

    Raises:
        UserError: If a value is too large for half precision.
    """
    tensors: dict[str, Tensor] = {}
    entries: Entries = {}
    for name, tensor in state.items():
        stored = _halved(name, tensor) if half and _can_be_halved(tensor) else tensor
        how, parts = _smallest(stored.detach().cpu().contiguous().flatten())
        tensors.update({f"{name}/{kind}": part for kind, part in parts.items()})
        entries[name] = {
            "how": how,
            "shape": list(tensor.shape),
            "dtype": str(tensor.dtype).removeprefix("torch."),
        }
    return tensors, entries


def bits_of(tensor: Tensor) -> NDArray[Any]:
    """Return the bits of a tensor's elements as whole numbers, shape (elements,)."""
    flat = tensor.detach().cpu().contiguous().flatten()
    return np.asarray(flat.view(_INTEGERS[flat.element_size()]).numpy())


def _can_be_halved(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.dim() >= 2


def _halved(name: str, tensor: Tensor) -> Tensor:
    made = tensor.half()
    if bool((made.isinf() & tensor.isfinite()).any()):
        raise UserError(
            f"{name}: holds values beyond 65,504, the largest of half precision; leave out --half"
        )
    return made


def _smallest(flat: Tensor) -> tuple[str, dict[str, Tensor]]:
    """Return the name of the way that takes the fewest bytes, and its parts."""
    size = flat.element_size()
    bits = bits_of(flat)  # -0.0 is not 0: it has a bit
    places = np.flatnonzero(bits)
    gaps = _gaps(places, len(bits))
    values = len(places) * size + _HEADER
    costs = {
        "dense": len(bits) * size,
        "bitmask": math.ceil(len(bits) / 8) + values,
        "gaps": len(gaps) + values,
    }
    how = min(costs, key=lambda name: costs[name])
    if how == "dense":
        return how, {"values": flat}
    kept = flat[torch.from_numpy(places)]
    if how == "gaps":
        return how, {"values": kept, "gaps": torch.from_numpy(gaps)}
    return how, {"values": kept, "mask": torch.from_numpy(np.packbits(bits != 0, bitorder="little"))}


def _gaps(places: NDArray[np.int64], count: int) -> NDArray[np.uint8]:
    """Return the zeros before each place and after the last one, in bytes."""
    zeros = np.diff(places, prepend=-1, append=count) - 1
    escapes = zeros // _ESCAPE
    gaps = np.full(len(zeros) + int(escapes.sum()), _ESCAPE, np.uint8)
    gaps[np.cumsum(escapes + 1) - 1] = zeros % _ESCAPE
    return gaps


def unpacked(tensors: Mapping[str, Tensor], entries: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the state dictionary that `packed` was given; of half precision its values.

    No more memory is asked for than the stored bytes can describe, 256 elements a byte.

    Raises:
        UserError: If the two do not belong together, as in a damaged file.
    """
    named = {f"{name}/{kind}" for name in entries for kind in ("values", "mask", "gaps")}
    strange = [name for name in tensors if name not in named]
    if strange:
        raise UserError(f"{strange[0]}: is not described")
    return {name: _tensor(name, tensors, entry) for name, entry in entries.items()}


def _tensor(name: str, tensors: Mapping[str, Tensor], entry: Any) -> Tensor:
    how, shape = _described(name, entry)
    values = _part(name, "values", tensors)
    count = math.prod(shape)
    if how == "dense":
        flat = values
    elif how == "bitmask":
        flat = _scattered(name, values, *_places_of_mask(_bytes(name, "mask", tensors)))
        if count <= len(flat) < count + 8 and not bits_of(flat[count:]).any():
            flat = flat[:count]  # the last byte may be wider than the tensor
    else:
        flat = _scattered(name, values, *_places_of_gaps(name, _bytes(name, "gaps", tensors)))
    if len(flat) != count:
        raise UserError(f"{name}: expected {count:,} elements for the shape {shape}, got {len(flat):,}")
    return flat.to(_type(name, entry, values)).reshape(shape)


def _described(name: str, entry: Any) -> tuple[str, list[int]]:
    """Return how a tensor is stored, and its shape, checked."""
    how, shape = (entry.get("how"), entry.get("shape")) if isinstance(entry, Mapping) else (None, None)
    if how not in ("dense", "bitmask", "gaps"):
        raise UserError(f"{name}: expected to be stored as dense, bitmask or gaps, got {how!r}")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise UserError(f"{name}: expected a shape, got {shape!r}")
    return how, shape


def _type(name: str, entry: Mapping[str, Any], values: Tensor) -> torch.dtype:
    """Return the type that a tensor comes back in: that of its values, or 32 bits for half precision."""
    allowed = [values.dtype] + [torch.float32] * (values.dtype == torch.float16)
    found = next((item for item in allowed if str(item) == f"torch.{entry.get('dtype')}"), None)
    if found is None:
        raise UserError(f"{name}: expected the type {values.dtype}, got {entry.get('dtype')!r}")
    return found


def _part(name: str, kind: str, tensors: Mapping[str, Tensor]) -> Tensor:
    found = tensors.get(f"{name}/{kind}")
    if found is None or found.dim() != 1:
        raise UserError(f"{name}: expected a list of {kind}, got {'none' if found is None else 'a table'}")
    return found


def _bytes(name: str, kind: str, tensors: Mapping[str, Tensor]) -> NDArray[np.uint8]:
    part = _part(name, kind, tensors)
    if part.dtype != torch.uint8:
        raise UserError(f"{name}: expected bytes as {kind}, got {part.dtype}")
    return np.asarray(part.cpu().numpy())


def _places_of_mask(mask: NDArray[np.uint8]) -> tuple[NDArray[np.int64], int]:
    return np.flatnonzero(np.unpackbits(mask, bitorder="little")), 8 * len(mask)


def _places_of_gaps(name: str, gaps: NDArray[np.uint8]) -> tuple[NDArray[np.int64], int]:
    """Return the places of the values, and how many elements there are."""
    if len(gaps) == 0 or gaps[-1] == _ESCAPE:
        raise UserError(f"{name}: the list of gaps breaks off")
    zeros = np.cumsum(gaps, dtype=np.int64)[gaps != _ESCAPE]
    places = zeros + np.arange(len(zeros))
    return places[:-1], int(places[-1])


def _scattered(name: str, values: Tensor, places: NDArray[np.int64], count: int) -> Tensor:
    if len(values) != len(places):
        raise UserError(f"{name}: expected {len(places):,} values, got {len(values):,}")
    flat = torch.zeros(count, dtype=values.dtype)
    flat[torch.from_numpy(places)] = values
    return flat
