"""The network of SRGAN's perceptual loss: VGG19 (Simonyan and Zisserman, 2015) up to its last convolution.

As in BasicSR, features are taken before the ReLU of ``conv5_4``: the first 35 of torchvision's layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from sgc_distiller.errors import UserError

__all__ = ["VGG19_URL", "PerceptualNetwork", "vgg19_path"]

VGG19_URL = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"

_CONVOLUTIONS = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))  # channels and layers between two poolings
_MEAN = (0.485, 0.456, 0.406)  # of ImageNet, red, green, blue in [0, 1]
_STD = (0.229, 0.224, 0.225)


class PerceptualNetwork(nn.Module):
    """Pictures (B, 3, H, W), RGB in [0, 1], to features (B, 512, H // 16, W // 16), negative ones included.

    The network is frozen; gradients reach the pictures only.

    Args:
        weights: torchvision's ``vgg19-dcbb9e9d.pth``; ``None`` takes it from torch's cache.
        seed: Draw random weights instead, for tests: a loss with them says little about pictures.
        width: Channels of the first layer, 64 in VGG19; others with random weights only.

    Raises:
        UserError: If the file is missing or holds something else; nothing is ever downloaded.
    """

    def __init__(self, weights: Path | None = None, *, seed: int | None = None, width: int = 64) -> None:
        super().__init__()
        self.features = nn.Sequential(*_layers(width))
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1), persistent=False)
        if seed is None:
            _load(self.features, vgg19_path(weights))
        else:
            _draw(self.features, seed)
        self.requires_grad_(False).eval()

    @classmethod
    def random(cls, seed: int = 0, width: int = 64) -> PerceptualNetwork:
        """Return a network with random weights, for tests."""
        return cls(seed=seed, width=width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of pictures."""
        features: Tensor = self.features((x - self.mean) / self.std)
        return features


def vgg19_path(given: Path | None = None) -> Path:
    """Return the file with VGG19's weights: the given one, or that in torch's cache.

    Raises:
        UserError: If there is none.
    """
    path = given or Path(torch.hub.get_dir()) / "checkpoints" / VGG19_URL.rpartition("/")[2]
    if path.is_file():
        return path
    raise UserError(
        f"{path}: no such file; expected torchvision's weights of VGG19 for the perceptual loss. Fetch "
        f"{VGG19_URL} (0.5 GB) and put it there or name its place, or train without the perceptual term"
    )


def _layers(width: int) -> list[nn.Module]:
    """Return torchvision's ``features[:35]``: the last pooling and the ReLU before it are left out."""
    layers: list[nn.Module] = []
    before = 3
    for channels, count in _CONVOLUTIONS:
        after = max(1, channels * width // 64)
        for _ in range(count):
            layers += [nn.Conv2d(before, after, 3, 1, 1), nn.ReLU(True)]
            before = after
        layers.append(nn.MaxPool2d(2, 2))
    return layers[:-2]


def _load(features: nn.Module, path: Path) -> None:
    """Load what the file has for these layers; those behind them are passed over."""
    wrong = (
        f"{path}: cannot be read as torchvision's weights of VGG19; expected the file behind {VGG19_URL}. "
        "Fetch it anew"
    )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files make torch raise nearly anything
        raise UserError(wrong) from error
    names = features.state_dict()
    if not isinstance(state, Mapping) or any(f"features.{name}" not in state for name in names):
        raise UserError(wrong)
    try:
        features.load_state_dict({name: state[f"features.{name}"] for name in names})
    except RuntimeError as error:
        raise UserError(wrong) from error


def _draw(features: nn.Module, seed: int) -> None:
    """Draw weights that keep the size of activations (He's normal), from a generator of their own."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in features.parameters():
            if weight.dim() == 4:
                deviation = math.sqrt(2 / weight[0].numel())
                weight.copy_(torch.randn(weight.shape, generator=rng) * deviation)
            else:
                weight.zero_()
