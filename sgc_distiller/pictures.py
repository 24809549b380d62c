"""Pictures for people to look at: grids, and dense beside sparse with what differs between them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

__all__ = ["boxed", "comparison", "enlargement", "grid", "save_comparison", "save_grid"]

_SMALL = 64  # pixels; pictures up to this size are enlarged
_COMFORTABLE = 128  # pixels; small pictures are enlarged up to this size
_GAP = 2  # pixels between pictures, before they are enlarged
_GAIN = 10  # how much the second residual is amplified


def enlargement(size: int) -> int:
    """Return the whole factor by which pictures of ``size`` pixels are enlarged to be looked at."""
    return max(1, _COMFORTABLE // size) if size <= _SMALL else 1


def grid(images: Tensor, columns: int = 8, scale: int | None = None) -> Image.Image:
    """Lay pictures out in rows, first picture at the top left.

    Args:
        images: Shape (N, C, H, W) with 1 or 3 channels, values in [-1, 1]; what lies outside is clamped.
        columns: Pictures in a row.
        scale: Whole factor of enlargement without smoothing; by default `enlargement` of the picture's size.

    Returns:
        A grey or RGB picture with transparent gaps between the pictures, and none around them.

    Raises:
        ValueError: If the shape is another one.
    """
    if images.ndim != 4 or images.shape[0] == 0 or images.shape[1] not in (1, 3) or columns < 1:
        raise ValueError(
            "Expected pictures of shape (N, 1 or 3, H, W) with N > 0 and at least one column, "
            f"got {tuple(images.shape)} and {columns} columns."
        )
    count, channels, height, width = images.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    unit = images.detach().to("cpu", torch.float32).nan_to_num(nan=0.0).clamp(-1, 1)
    pixels = ((unit + 1) * 127.5).round().to(torch.uint8)
    sheet = np.zeros((rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 4), dtype=np.uint8)
    for index, picture in enumerate(pixels):
        top, left = (index // columns) * (height + _GAP), (index % columns) * (width + _GAP)
        place = sheet[top : top + height, left : left + width]
        place[..., :3] = picture.permute(1, 2, 0).numpy()  # (H, W, C); a grey channel spreads over three
        place[..., 3] = 255
    factor = enlargement(max(height, width)) if scale is None else scale
    drawn = Image.fromarray(sheet).convert("LA" if channels == 1 else "RGBA")
    return drawn.resize((drawn.width * factor, drawn.height * factor), Image.Resampling.NEAREST)


def boxed(picture: Tensor, factor: int = 3) -> Tensor:
    """Return a picture with a box marked in its middle, and the box's content enlarged beside it.

    Args:
        picture: Shape (3, H, W), values in [-1, 1].
        factor: How many times the box is enlarged, without smoothing.

    Returns:
        Shape (3, H, W + factor * (W // factor)).
    """
    height, width = picture.shape[1] // factor, picture.shape[2] // factor
    top, left = (picture.shape[1] - height) // 2, (picture.shape[2] - width) // 2
    box = picture[:, top : top + height, left : left + width]
    large = box.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    beside = torch.full((3, picture.shape[1], large.shape[2]), -1.0).to(picture)
    beside[:, : large.shape[1]] = large
    marked = picture.clone()
    frame = torch.tensor([1.0, -1.0, -1.0]).to(picture).view(3, 1, 1)
    marked[:, [top, top + height - 1], left : left + width] = frame
    marked[:, top : top + height, [left, left + width - 1]] = frame
    return torch.cat([marked, beside], 2)


def comparison(
    dense: Tensor, sparse: Tensor, columns: int = 8, given: Tensor | None = None
) -> dict[str, Image.Image]:
    """Return grids of dense and sparse pictures of the same noise or inputs, and of their residual.

    The residual is (sparse - dense) / 2, shown around mid grey, once as it is and once amplified ten times
    (arXiv:2007.01491 shows its pictures so).

    Args:
        dense: Pictures of the dense generator, shape (N, C, H, W), values in [-1, 1].
        sparse: Those of the sparse generator, same shape.
        columns: Pictures in a row.
        given: Inputs and truths that stand in front of each row of the first two grids, shape (rows, columns,
            C, H, W).

    Returns:
        Pictures by name: ``dense``, ``sparse``, ``residual``, ``residual_x10``.

    Raises:
        ValueError: If the shapes differ.
    """
    if dense.shape != sparse.shape:
        raise ValueError(
            f"Expected dense and sparse pictures of one shape, got {tuple(dense.shape)} and "
            f"{tuple(sparse.shape)}."
        )
    residual = (sparse.detach() - dense.detach()) / 2
    panels = {"dense": (dense, columns), "sparse": (sparse, columns)}
    if given is not None:
        for name, (images, _) in panels.items():
            made = images.reshape(-1, columns, *images.shape[1:])  # (rows, columns, C, H, W)
            rows = torch.cat([given, made], 1)
            panels[name] = (rows.flatten(0, 1), rows.shape[1])
    panels |= {"residual": (residual, columns), f"residual_x{_GAIN}": (residual * _GAIN, columns)}
    return {name: grid(*panel) for name, panel in panels.items()}


def save_grid(images: Tensor, path: str | Path, columns: int = 8, scale: int | None = None) -> Path:
    """Write `grid` of pictures to a PNG file, and return its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    grid(images, columns, scale).save(path, format="PNG", optimize=True)
    return path


def save_comparison(
    dense: Tensor, sparse: Tensor, folder: str | Path, columns: int = 8, given: Tensor | None = None
) -> dict[str, Path]:
    """Write `comparison` to ``dense.png``, ``sparse.png``, ... and return the paths by name."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, picture in comparison(dense, sparse, columns, given).items():
        paths[name] = folder / f"{name}.png"
        picture.save(paths[name], format="PNG", optimize=True)
    return paths
