"""Train the digits extractor that the package ships (sgc_distiller/assets/digits_cnn.pt).

    python tools/train_digits_extractor.py --output sgc_distiller/assets/digits_cnn.pt

The only pictures are the first 80 % of scikit-learn's bundled digits, moved, scaled, turned, slanted,
sharpened, blurred and dimmed at random, so that the features make sense on thinner and smaller digits too;
the last 20 % (360 pictures) are held out for the accuracy that is printed and stored beside the weights.
About 15 s on one CPU core; for so small a network more threads do not pay (OMP_NUM_THREADS=1).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from sgc_distiller.data import normalise, open_images
from sgc_distiller.extractors import DigitsNetwork
from sgc_distiller.metrics import FeatureStatistics

TRAINING_SHARE = 0.8
BATCH_SIZE = 128
LEARNING_RATE = 3e-3
TOTAL_VARIANCE = 100.0


def train(epochs: int, seed: int) -> tuple[DigitsNetwork, float]:
    """Train the network.

    Args:
        epochs: Passes over the training pictures.
        seed: Seed of initialisation, order and augmentation.

    Returns:
        The network in evaluation mode with its ``scale`` set, and its accuracy on the held-out pictures.
    """
    torch.manual_seed(seed)
    digits = open_images("digits", 32, 1)
    assert digits.labels is not None
    pictures, labels = normalise(digits.pixels(range(len(digits)))), digits.labels
    kept = int(len(pictures) * TRAINING_SHARE)
    network = DigitsNetwork()
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
    steps = epochs * -(-kept // BATCH_SIZE)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    for _ in range(epochs):
        for chosen in torch.randperm(kept).split(BATCH_SIZE):
            logits = network(augment(pictures[chosen]))
            loss = F.cross_entropy(logits, labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
    network.eval()
    set_scale(network, pictures)
    return network, accuracy(network, pictures[kept:], labels[kept:])


@torch.no_grad()
def accuracy(network: DigitsNetwork, pictures: Tensor, labels: Tensor) -> float:
    """Return the share in [0, 1] of pictures (N, 1, 32, 32) whose label the network names."""
    return float((network(pictures).argmax(dim=1) == labels).double().mean())


@torch.no_grad()
def set_scale(network: DigitsNetwork, pictures: Tensor) -> None:
    """Scale the features such that their total variance over the pictures is `TOTAL_VARIANCE`."""
    statistics = FeatureStatistics()
    statistics.update(network.trunk(pictures))
    network.scale.fill_((TOTAL_VARIANCE / statistics.compute()[1].trace()) ** 0.5)


def augment(pictures: Tensor) -> Tensor:
    """Return pictures (B, 1, 32, 32) in [-1, 1], each changed at random."""
    changed = _move(pictures)
    changed = torch.where(_uniform(changed, 0, 1) < 0.6, _sharpen(changed), changed)
    changed = (changed + 1) * _uniform(changed, 0.6, 1) - 1
    share = _uniform(changed, 0, 1) * (_uniform(changed, 0, 1) < 0.3)
    return changed + (_blur(changed) - changed) * share


def _uniform(pictures: Tensor, low: float, high: float) -> Tensor:
    return torch.empty(len(pictures), 1, 1, 1).uniform_(low, high)


def _move(pictures: Tensor) -> Tensor:
    """Turn by up to 11 degrees, slant, scale by 0.6 to 1.2, stretch, shift by up to a tenth."""

    def draw(low: float, high: float) -> Tensor:
        return _uniform(pictures, low, high).flatten()

    angle, size, stretch = draw(-0.2, 0.2), draw(0.85, 1.6), draw(0.9, 1.1)
    cosine, sine = angle.cos() * size, angle.sin() * size
    across = torch.stack([cosine * stretch, draw(-0.2, 0.2) - sine, draw(-0.2, 0.2)], dim=1)
    down = torch.stack([sine, cosine / stretch, draw(-0.2, 0.2)], dim=1)
    grid = F.affine_grid(torch.stack([across, down], dim=1), list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures + 1, grid, align_corners=False) - 1


def _sharpen(pictures: Tensor) -> Tensor:
    """Steepen edges about a random level, black staying -1 and white 1: strokes get thinner or thicker."""
    gain, level = _uniform(pictures, 0, 1.8).exp(), _uniform(pictures, -0.3, 0.3)
    black, white = torch.tanh(gain * (-1 - level)), torch.tanh(gain * (1 - level))
    return (torch.tanh(gain * (pictures - level)) - black) / (white - black) * 2 - 1


def _blur(pictures: Tensor) -> Tensor:
    weights = torch.tensor([[1.0, 2.0, 1.0]]) / 4
    return F.conv2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), (weights.T @ weights)[None, None])


def main() -> None:
    """Train, print the held-out accuracy, and write the weights."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, help="file to write; without it only the accuracy is printed")
    parser.add_argument("--epochs", type=int, default=40, help="passes over the training pictures")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random")
    arguments = parser.parse_args()
    network, held_out_accuracy = train(arguments.epochs, arguments.seed)
    print(f"accuracy on the held-out digits: {held_out_accuracy:.4f}")
    if arguments.output is not None:
        content = {
            "state_dict": network.state_dict(),
            "accuracy": held_out_accuracy,
            "epochs": arguments.epochs,
            "seed": arguments.seed,
        }
        torch.save(content, arguments.output)
        print(f"wrote {arguments.output} ({arguments.output.stat().st_size:,} bytes)")


if __name__ == "__main__":
    main()
