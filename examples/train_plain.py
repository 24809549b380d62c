"""The GAN of own_gan.py in a training loop of one's own, plain PyTorch; train_supervised.py is its twin."""

import argparse

import torch
from own_gan import OwnGAN
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import interpolate, one_hot, relu

parser = argparse.ArgumentParser()
parser.add_argument("out", help="file to write the trained networks to")
parser.add_argument("--start", help="file of networks to begin from")
parser.add_argument("--epochs", type=int, default=24)
parser.add_argument("--steps", type=int, default=29, help="updates of each network in an epoch")
args = parser.parse_args()

torch.manual_seed(0)
gan = OwnGAN()
generator, judge = gan.build("generator"), gan.build("discriminator")
if args.start:
    trained = torch.load(args.start, weights_only=True)
    for network, weights in zip((generator, judge), trained, strict=True):
        network.load_state_dict(weights)
optimizer, judge_optimizer = (
    torch.optim.Adam(network.parameters(), lr=1e-3, betas=(0.0, 0.9)) for network in (generator, judge)
)
digits = load_digits()
pictures = interpolate(torch.from_numpy(digits.images[:, None]).float() / 8 - 1, size=16, mode="bilinear")
classes = torch.from_numpy(digits.target)


def score(x: Tensor, digit: Tensor) -> Tensor:
    """Return how true pictures look for their class, shape (B,)."""
    return judge(x).gather(1, digit[:, None])[:, 0]


for epoch in range(args.epochs):
    order = torch.randint(len(pictures), (args.steps, 64))
    for step in range(args.steps):
        real, digit = pictures[order[step]], classes[order[step]]
        z = torch.cat([torch.randn(64, gan.noise), one_hot(digit, 10)], 1)
        fake = generator(z)

        loss = (relu(1 - score(real, digit)) + relu(1 + score(fake.detach(), digit))).mean()
        judge_optimizer.zero_grad()
        loss.backward()
        judge_optimizer.step()

        loss = -score(fake, digit).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    zeros = torch.cat([p.flatten() == 0 for p in generator.parameters() if p.dim() > 1]).float().mean()
    print(f"epoch {epoch}: loss {loss.item():.3f}, {zeros:.1%} of the weights are 0")

torch.save([generator.state_dict(), judge.state_dict()], args.out)
