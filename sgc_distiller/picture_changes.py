"""Changes of pictures in training and testing an extractor: moved, mirrored, turned, blurred, noisy.

Everything random is drawn from a generator on the CPU, so that it is the same on every device.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["as_input", "augmented", "blurred", "damaged", "resized", "turned"]

MOST_BLUR = 2.5
"""The strongest blur of `damaged`: its deviation in pixels."""

MOST_NOISE = 0.3
"""The strongest noise of `damaged`: its deviation in units of pictures in [-1, 1]."""


def resized(pixels: Tensor, size: int) -> Tensor:
    """Return uint8 pixels (B, C, H, W) as uint8 (B, 3, size, size), antialiased."""
    if pixels.shape[2:] != (size, size):
        resized = F.interpolate(
            pixels.float(), size=(size, size), mode="bilinear", align_corners=False, antialias=True
        )
        pixels = resized.round().clamp(0, 255).to(torch.uint8)
    return pixels.expand(-1, 3, -1, -1)


def as_input(pixels: Tensor) -> Tensor:
    """Return uint8 pixels in [0, 255] as float32 in [-1, 1]."""
    return pixels.to(torch.float32).mul(2 / 255).sub(1)


def augmented(pixels: Tensor, chosen: Tensor, mirror: bool, generator: torch.Generator) -> Tensor:
    """Return the chosen pictures, each shifted by up to a sixteenth and half of them mirrored if allowed."""
    size, reach, count = pixels.shape[-1], pixels.shape[-1] // 16, len(chosen)
    shifts = torch.randint(-reach, reach + 1, (2, count, 1), generator=generator)
    rows, columns = (torch.arange(size) + shifts).clamp(0, size - 1).unbind(0)  # edges are repeated
    if mirror:
        mirrored = torch.rand(count, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, size - 1 - columns, columns)
    places = (chosen[:, None, None], rows[:, :, None], columns[:, None, :])
    which, row, column = (item.to(pixels.device) for item in places)
    moved: Tensor = pixels.permute(0, 2, 3, 1)[which, row, column]  # (B, size, size, 3)
    return moved.permute(0, 3, 1, 2)


def turned(pixels: Tensor, quarters: Tensor) -> Tensor:
    """Return pictures (B, C, size, size), each turned by its number of quarters."""
    turned = pixels.clone()
    for quarter in range(1, 4):
        these = (quarters == quarter).to(pixels.device)
        turned[these] = pixels[these].rot90(quarter, (2, 3))
    return turned


def blurred(pictures: Tensor, sigma: float) -> Tensor:
    """Return pictures (B, C, H, W) under a Gaussian blur with a deviation of ``sigma`` > 0 pixels."""
    reach = min(int(3 * sigma) + 1, pictures.shape[-1] - 1)
    distance = torch.arange(-reach, reach + 1, dtype=pictures.dtype, device=pictures.device)
    weights = (-(distance**2) / (2 * sigma**2)).exp()
    weights = weights / weights.sum()
    planes = pictures.reshape(-1, 1, *pictures.shape[2:])
    planes = F.pad(planes, (reach,) * 4, mode="reflect")
    planes = F.conv2d(F.conv2d(planes, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1))
    return planes.reshape(pictures.shape)


def damaged(pictures: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Blur a quarter of a batch by one strength and add noise to another quarter.

    Returns:
        The pictures (B, 3, size, size), and their blur and noise (B, 2) as shares of the most.
    """
    quarter = len(pictures) // 4
    blur, noise = (torch.rand(2, generator=generator) * 0.98 + 0.02).tolist()
    damage = torch.zeros(len(pictures), 2, device=pictures.device)
    if quarter == 0:
        return pictures, damage
    damage[:quarter, 0], damage[quarter : 2 * quarter, 1] = blur, noise
    smooth = blurred(pictures[:quarter], blur * MOST_BLUR)
    rough = torch.randn(smooth.shape, generator=generator).to(pictures.device) * (noise * MOST_NOISE)
    rough = (pictures[quarter : 2 * quarter] + rough).clamp(-1, 1)
    return torch.cat([smooth, rough, pictures[2 * quarter :]]), damage
