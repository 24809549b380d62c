"""Networks, initial weights and inputs of the recorded training loops, from numpy's legacy RandomState."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Case = dict[str, Any]


class DcganTiny(nn.Module):
    """A generator like DCGAN's; dim 0 of its weights are input channels."""

    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.ConvTranspose2d(4, 8, 4, 1, 0, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(True),
            nn.ConvTranspose2d(8, 6, 4, 2, 1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(True),
            nn.ConvTranspose2d(6, 3, 4, 2, 1, bias=False),
            nn.Tanh(),
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.main(z)


class ResBlock(nn.Module):
    """Two convolutions with a connection around them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
            nn.InstanceNorm2d(channels, affine=True),
            nn.ReLU(True),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
            nn.InstanceNorm2d(channels, affine=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.main(x)


class StarganTiny(nn.Module):
    """A generator like StarGAN's: down, two residual blocks, up, out."""

    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(4, 4, 3, 1, 1, bias=False),  # 0
            nn.InstanceNorm2d(4, affine=True),
            nn.ReLU(True),
            nn.Conv2d(4, 6, 4, 2, 1, bias=False),  # 3
            nn.InstanceNorm2d(6, affine=True),
            nn.ReLU(True),
            ResBlock(6),  # 6
            ResBlock(6),  # 7
            nn.ConvTranspose2d(6, 4, 4, 2, 1, bias=False),  # 8
            nn.InstanceNorm2d(4, affine=True),
            nn.ReLU(True),
            nn.Conv2d(4, 3, 3, 1, 1, bias=False),  # 11
            nn.Tanh(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x)


class PlainTiny(nn.Module):
    """Two convolutions and two linear layers, all with biases, for pictures of (2, 6, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 6, 3)
        self.conv2 = nn.Conv2d(6, 8, 3)
        self.fc1 = nn.Linear(32, 12)
        self.fc2 = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv2(torch.relu(self.conv1(x))))
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))


MODELS = {"dcgan": DcganTiny, "stargan": StarganTiny, "plain": PlainTiny}


def initial_arrays(model: nn.Module, seed: int, init: Case) -> dict[str, np.ndarray]:
    """Return initial values by parameter name.

    Args:
        model: The network.
        seed: Seed of the stream.
        init: ``scale`` of tensors with two or more dimensions, ``round`` to multiples of a step,
            ``norm_weight`` and ``bias`` (``noisy``, else ones and zeros).
    """
    stream = np.random.RandomState(seed)
    arrays = {}
    for name, param in model.named_parameters():
        normal = stream.standard_normal(tuple(param.shape))
        if param.dim() >= 2:
            array = normal * init.get("scale", 0.1)
            if init.get("round"):
                array = np.round(array / init["round"]) * init["round"]
        elif name.endswith("weight"):
            array = np.ones_like(normal) if init.get("norm_weight") == "ones" else 1.0 + 0.05 * normal
        else:
            array = np.zeros_like(normal) if init.get("bias") == "zeros" else 0.05 * normal
        arrays[name] = array.astype(np.float32)
    return arrays


def build_model(case: Case) -> nn.Module:
    """Return the case's network with its initial weights."""
    model: nn.Module = MODELS[case["model"]]()
    if case.get("wrap") == "DataParallel":
        model = nn.DataParallel(model)
    arrays = initial_arrays(model, case["seed"], case.get("init", {}))
    with torch.no_grad():
        for name, param in model.named_parameters():
            param.copy_(torch.from_numpy(arrays[name]))
    return model


def build_optimizer(case: Case, model: nn.Module) -> torch.optim.Optimizer:
    """Return the case's optimizer."""
    options = dict(case["loop"]["optimizer"])
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[options.pop("kind")]
    params: list[Any] = list(model.parameters())
    if "betas" in options:
        options["betas"] = tuple(options["betas"])
    rates = options.pop("group_lrs", None)
    if rates:
        half = len(params) // 2
        params = [{"params": params[:half], "lr": rates[0]}, {"params": params[half:], "lr": rates[1]}]
    return kind(params, **options)


def targets(case: Case, model: nn.Module) -> list[Tensor]:
    """Return the targets of `quadratic_loss`, one for each parameter."""
    stream = np.random.RandomState(case["loop"]["target_seed"])
    scale = case["loop"].get("target_scale", 0.1)
    return [
        torch.from_numpy((stream.standard_normal(tuple(param.shape)) * scale).astype(np.float32)).to(
            param.device
        )
        for param in model.parameters()
    ]


def quadratic_loss(case: Case, model: nn.Module, goals: list[Tensor], step: int) -> Tensor:
    """Return half the squared distance of all parameters from ``factor * goal``; factors go by step."""
    factors = case["loop"]["target_factors"]
    factor = factors[step % len(factors)]
    loss = torch.zeros((), device=goals[0].device)
    for param, goal in zip(model.parameters(), goals, strict=True):
        loss = loss + 0.5 * ((param - goal * factor) ** 2).sum()
    return loss


def noise(case: Case, step: int, index: int, shape: tuple[int, ...]) -> Tensor:
    """Return what is added to parameter number ``index`` in loops of the kind ``noise``."""
    stream = np.random.RandomState(case["loop"]["noise_seed"] + 1000 * step + index)
    return torch.from_numpy(
        (stream.standard_normal(tuple(shape)) * case["loop"]["noise_scale"]).astype(np.float32)
    )
