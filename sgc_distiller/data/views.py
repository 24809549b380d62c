"""The same pictures at several sizes: larger for random crops, at their final size for tests."""

from __future__ import annotations

from collections.abc import Callable

from sgc_distiller.data.decoding import Store
from sgc_distiller.errors import UserError

__all__ = ["Views", "default_load_size"]


class Views:
    """Stores of the same pictures by their size, each made when it is first asked for.

    Args:
        make: Returns the store of a size; a module's function or a `functools.partial` of one, so that worker
            processes can be sent it.
    """

    def __init__(self, make: Callable[[int], Store]) -> None:
        self._make = make
        self._made: dict[int, Store] = {}

    def at(self, size: int) -> Store:
        """Return the pictures at a size in pixels.

        Raises:
            UserError: A file cannot be decoded.
        """
        if size not in self._made:
            self._made[size] = self._make(size)
        return self._made[size]


def default_load_size(image_size: int, load_size: int | None) -> int:
    """Return the size that pictures are resized to before they are cropped: by default 286 for 256 pixels.

    Raises:
        UserError: It is smaller than the crop.
    """
    if load_size is None:
        return round(image_size * 286 / 256)
    if load_size < image_size:
        raise UserError(
            f"Expected load_size, to which pictures are resized before they are cropped to {image_size} "
            f"pixels, to be at least that, got {load_size}."
        )
    return load_size
