"""How near pictures come to their targets, pixel by pixel, and how far translations lie apart.

PSNR and SSIM (Wang et al. 2004, https://ece.uwaterloo.ca/~z70wang/publications/ssim.pdf) follow the test of
super-resolution that BasicSR made customary: pictures are clamped and rounded to 8 bits, a border is cut off,
and both are computed in float64 on all colours ("rgb") and on luma alone ("y"). Luma is that of ITU-R BT.601
in studio range, 16 for black and 235 for white, as MATLAB's ``rgb2ycbcr`` has it; it is not rounded again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from sgc_distiller.errors import UserError
from sgc_distiller.metrics import MetricResult

__all__ = ["Channel", "PictureQuality", "mean_translation_distance", "psnr", "ssim"]

Channel = Literal["rgb", "y"]

_PEAK = 255.0
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * _PEAK) ** 2, (0.03 * _PEAK) ** 2
_LUMA = (65.481, 128.553, 24.966)  # of R, G and B in [0, 1]; their sum is 219 = 235 - 16
_FEWEST_FOR_INTERVAL = 5


def psnr(x: Tensor, y: Tensor, border: int = 0, channel: Channel = "rgb") -> Tensor:
    """Return the peak signal-to-noise ratio in decibels; higher is better.

    Args:
        x: Pictures (C, H, W) or (B, C, H, W) in [-1, 1] with 1 or 3 channels.
        y: Pictures of the same shape.
        border: Pixels to cut off at each side first.
        channel: ``rgb`` for the mean squared error over all channels, ``y`` for that of luma.

    Returns:
        float64, a scalar for one picture and (B,) for a batch; ``math.inf`` where the pictures are equal.

    Raises:
        ValueError: The shapes do not fit each other, or the channel is unknown.
        UserError: The border leaves nothing of the pictures.
    """
    first, second = _comparable(x, y, border, channel)
    return _decibels((first - second).square().mean(dim=(-3, -2, -1)))


def ssim(x: Tensor, y: Tensor, border: int = 0, channel: Channel = "rgb") -> Tensor:
    """Return the structural similarity, at most 1; higher is better.

    Means, variances and covariance are taken under an 11x11 Gaussian window with a deviation of 1.5 pixels
    wherever the window lies wholly inside the pictures; K1 is 0.01 and K2 is 0.03 on the scale 0 to 255.

    Args:
        x: Pictures (C, H, W) or (B, C, H, W) in [-1, 1] with 1 or 3 channels.
        y: Pictures of the same shape.
        border: Pixels to cut off at each side first.
        channel: ``rgb`` for the mean over the channels, ``y`` for the similarity of luma.

    Returns:
        float64, a scalar for one picture and (B,) for a batch.

    Raises:
        ValueError: The shapes do not fit each other, or the channel is unknown.
        UserError: Without the border the pictures are smaller than the window.
    """
    first, second = _comparable(x, y, border, channel, least=_WINDOW)
    mean1, mean2 = _windowed(first), _windowed(second)
    variance1 = _windowed(first * first) - mean1**2
    variance2 = _windowed(second * second) - mean2**2
    covariance = _windowed(first * second) - mean1 * mean2
    likeness = (2 * mean1 * mean2 + _C1) / (mean1**2 + mean2**2 + _C1)
    structure = (2 * covariance + _C2) / (variance1 + variance2 + _C2)
    return (likeness * structure).mean(dim=(-3, -2, -1))


class PictureQuality:
    """Mean PSNR and SSIM over pictures that arrive one after the other, of any sizes.

    Args:
        border: Pixels to cut off at each side; the customary number is the factor of the enlargement.
        reference: Name of the targets, such as ``set5``; part of the metrics' names.
    """

    def __init__(self, border: int, reference: str = "targets") -> None:
        self.border = border
        self.reference = reference
        self._values: dict[str, list[Tensor]] = {"PSNR[RGB": [], "PSNR[Y": [], "SSIM[RGB": [], "SSIM[Y": []}
        self._equal = 0

    def update(self, made: Tensor | Sequence[Tensor], target: Tensor | Sequence[Tensor]) -> None:
        """Add pictures and their targets.

        Args:
            made: (C, H, W) or (B, C, H, W) in [-1, 1], or a list of such tensors of different sizes.
            target: What they should be, in the same form.

        Raises:
            ValueError: The shapes do not fit each other.
            UserError: A picture is too small.
        """
        if not (isinstance(made, Tensor) and isinstance(target, Tensor)):
            if len(made) != len(target):
                raise ValueError(f"Expected a target for each of {len(made)} pictures, got {len(target)}.")
            for one, other in zip(made, target, strict=True):
                self.update(one, other)
            return
        channels: tuple[Channel, ...] = ("rgb", "y")
        new: dict[str, Tensor] = {}
        for channel in channels:
            decibels = psnr(made, target, self.border, channel).reshape(-1)
            most = _most_decibels(made, self.border, channel)
            new[f"PSNR[{channel.upper()}"] = decibels.clamp(max=most).cpu()
            new[f"SSIM[{channel.upper()}"] = ssim(made, target, self.border, channel).reshape(-1).cpu()
            if channel == "rgb":
                equal = int(decibels.isinf().sum())
        self._equal += equal
        for key, values in new.items():
            self._values[key].append(values)

    def compute(self) -> list[MetricResult]:
        """Return PSNR on RGB and on Y, then SSIM on RGB and on Y, as means over all pictures.

        A picture equal to its target would have an infinite PSNR and make the mean useless. It counts as if a
        single value of it were one level off, which is the largest finite PSNR on RGB, and the names say how
        many there were. From 5 pictures on there is the 95 % interval of Student's t for their mean.

        Raises:
            UserError: No pictures were added.
        """
        if not self._values["PSNR[Y"]:
            raise UserError("Expected at least 1 picture to compare with its target, got none.")
        results = []
        for key, parts in self._values.items():
            values = torch.cat(parts)
            noun = "image" if len(values) == 1 else "images"
            name = f"{key}; border {self.border}; reference {self.reference}, {len(values)} {noun}"
            if self._equal and key.startswith("PSNR"):
                name += f", {self._equal} of them equal to the target"
            results.append(MetricResult(f"{name}]", *_mean_and_interval(values), higher_is_better=True))
        return results


def mean_translation_distance(translations: Tensor) -> float:
    """Return how far the translations of one picture lie apart, averaged over pictures.

    It is the mean absolute difference of the values of two translations, over all pairs of translations of
    the same picture. A generator whose translations collapse onto each other has less of it than the dense
    generator that it was made from.

    Args:
        translations: (B, T, C, H, W) in [-1, 1]: T >= 2 translations of each of B >= 1 pictures.

    Returns:
        A number in [0, 2], in units of pictures in [-1, 1].

    Raises:
        ValueError: The shape is another one.
    """
    if translations.ndim != 5 or len(translations) < 1 or translations.shape[1] < 2:
        raise ValueError(
            f"Expected translations (B, T, C, H, W) with T of at least 2, got {tuple(translations.shape)}."
        )
    pairs = list(combinations(range(translations.shape[1]), 2))
    total = 0.0
    for one, other in pairs:
        difference = translations[:, one].to(torch.float64) - translations[:, other].to(torch.float64)
        total += float(difference.abs().mean())
    return total / len(pairs)


def _comparable(x: Tensor, y: Tensor, border: int, channel: str, least: int = 1) -> tuple[Tensor, Tensor]:
    """Return both as float64 (..., C, H, W) on the scale 0 to 255, in 8 bits, cropped, of the channel."""
    if channel not in ("rgb", "y"):
        raise ValueError(f"Expected the channel 'rgb' or 'y', got {channel!r}.")
    if x.shape != y.shape or x.ndim not in (3, 4) or x.shape[-3] not in (1, 3):
        raise ValueError(
            "Expected two tensors of pictures (C, H, W) or (B, C, H, W) of one shape with 1 or 3 channels, "
            f"got {tuple(x.shape)} and {tuple(y.shape)}."
        )
    height, width = x.shape[-2:]
    if border < 0 or min(height, width) - 2 * border < least:
        raise UserError(
            f"Expected pictures of at least {least}x{least} pixels inside a border of {max(border, 0)}, got "
            f"{height}x{width} and the border {border}. Choose a smaller border or larger pictures."
        )
    first, second = (_levels(item, border) for item in (x, y))
    return (first, second) if channel == "rgb" else (_luma(first), _luma(second))


def _levels(pictures: Tensor, border: int) -> Tensor:
    height, width = pictures.shape[-2:]
    inner = pictures[..., border : height - border, border : width - border]
    return ((inner.detach().to(torch.float64).clamp(-1, 1) + 1) * (_PEAK / 2)).round()


def _luma(levels: Tensor) -> Tensor:
    weights = levels.new_tensor(_LUMA).view(3, 1, 1) / _PEAK
    return (levels * weights).sum(dim=-3, keepdim=True) + 16  # a grey picture has three equal colours


def _decibels(squared_error: Tensor) -> Tensor:
    return 10 * torch.log10(_PEAK**2 / squared_error)


def _most_decibels(pictures: Tensor, border: int, channel: Channel) -> float:
    """Return the PSNR of a picture of which one value is one level off."""
    channels, height, width = pictures.shape[-3:]
    values = (height - 2 * border) * (width - 2 * border) * (channels if channel == "rgb" else 1)
    return 10 * math.log10(_PEAK**2 * values)


def _windowed(levels: Tensor) -> Tensor:
    """Return the means under the Gaussian window, valid area only: (..., C, H - 10, W - 10)."""
    distance = torch.arange(_WINDOW, dtype=levels.dtype, device=levels.device) - _WINDOW // 2
    weights = (-(distance**2) / (2 * _SIGMA**2)).exp()
    weights = weights / weights.sum()
    planes = levels.reshape(-1, 1, *levels.shape[-2:])
    planes = F.conv2d(F.conv2d(planes, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))
    return planes.reshape(*levels.shape[:-2], *planes.shape[-2:])


def _mean_and_interval(values: Tensor) -> tuple[float, float | None, float | None]:
    """Return the mean and its 95 % interval by Student's t; no interval for few values."""
    mean, count = float(values.mean()), len(values)
    if count < _FEWEST_FOR_INTERVAL:
        return mean, None, None
    from scipy.stats import t

    reach = float(t.ppf(0.975, count - 1)) * float(values.std()) / math.sqrt(count)
    return mean, mean - reach, mean + reach
