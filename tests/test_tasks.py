"""DCGAN against its baseline: recorded outputs, counts, key names, losses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sgc_distiller.errors import UserError
from sgc_distiller.module_state import frozen_statistics, same_randomness
from sgc_distiller.tasks import build_task
from sgc_distiller.tasks.dcgan import DCGAN, Discriminator, Generator

NETWORKS = Path(__file__).parent / "golden" / "networks"


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("role", ["generator", "discriminator"])
def test_dcgan_computes_what_the_baselines_own_code_computes(
    role: str, mode: str, device: torch.device
) -> None:
    recorded = torch.load(NETWORKS / f"dcgan_{role}.pt", weights_only=True, map_location=device)
    config = recorded["config"]
    build = Generator if role == "generator" else Discriminator
    network = build(**{key: config[key] for key in ("nc", "nz", "ngf", "ndf") if key in config}).to(device)
    network.load_state_dict(recorded["state_dict"], strict=True)
    network.train(mode == "train")
    for given, expected in zip(recorded["inputs"], recorded[f"output_{mode}"], strict=True):
        got = network(given)
        torch.testing.assert_close(got, expected.view_as(got), atol=1e-5, rtol=0)


def test_dcgan_has_the_baselines_counts_and_keys() -> None:
    task = DCGAN()
    generator, discriminator = task.build("generator"), task.build("discriminator")
    assert sum(p.numel() for p in generator.parameters()) == 3_574_656
    assert sum(p.numel() for p in discriminator.parameters()) == 2_763_520
    assert [n for n, p in generator.named_parameters() if p.dim() == 4] == [
        f"main.{i}.weight" for i in (0, 3, 6, 9, 12)
    ]
    assert [n for n, p in discriminator.named_parameters() if p.dim() == 4] == [
        f"main.{i}.weight" for i in (0, 2, 5, 8, 11)
    ]


def test_dcgan_initialises_as_the_baseline() -> None:
    torch.manual_seed(0)
    generator = DCGAN().build("generator")
    assert generator.main[3].weight.std().item() == pytest.approx(0.02, rel=0.01)
    assert generator.main[3].weight.mean().item() == pytest.approx(0.0, abs=1e-4)
    assert generator.main[1].weight.mean().item() == pytest.approx(1.0, abs=0.01)
    assert generator.main[1].weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert not generator.main[1].bias.any()


@pytest.mark.parametrize(("size", "channels"), [(16, 1), (32, 1), (64, 3), (128, 1)])
def test_dcgan_has_the_size_that_was_asked(size: int, channels: int) -> None:
    task = DCGAN(size, channels, width=4)
    batch = task.prepare({"real": torch.zeros(3, channels, size, size)}, torch.Generator())
    outputs = task.generate(task.build("generator"), batch)
    assert outputs["fake"].shape == (3, channels, size, size)
    assert task.judge_fake(task.build("discriminator"), batch, outputs)["score"].shape == (3,)
    assert DCGAN.options_of(task.build("generator").state_dict()) == task.options


def test_dcgan_terms_are_the_baselines_losses() -> None:
    task = DCGAN(16, width=4)
    rng = np.random.RandomState(0)
    real, fake = (1 / (1 + np.exp(-rng.standard_normal(5))) for _ in range(2))
    judged = [{"score": torch.tensor(value)} for value in (real, fake)]
    batch, outputs, network = {}, {}, nn.Identity()
    gen = task.generator_terms(network, batch, outputs, judged[1])["gen"]
    dis = task.discriminator_terms(network, batch, outputs, *judged)["dis"]
    np.testing.assert_allclose(gen.numpy(), -np.log(fake))
    np.testing.assert_allclose(dis.numpy(), -np.log(real) - np.log(1 - fake))
    assert task.total({"dis": dis}, "discriminator").item() == pytest.approx(dis.mean().item())


def test_dcgan_optimizer_is_the_baselines_adam() -> None:
    task = DCGAN(16, width=4)
    group = task.optimizer("generator", task.build("generator")).param_groups[0]
    assert (group["lr"], group["betas"]) == (2e-4, (0.5, 0.999))
    assert task.optimizer("generator", task.build("generator"), 1e-3).param_groups[0]["lr"] == 1e-3


def test_samples_depend_on_seed_and_weights_alone_and_move_no_buffer(device: torch.device) -> None:
    task = DCGAN(16, width=4)
    generator = task.build("generator").to(device).eval()
    before = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    first = torch.cat(list(task.sample(generator, 10, 3, device, batch_size=4)))
    again = torch.cat(list(task.sample(generator, 10, 3, device, batch_size=4)))
    other = torch.cat(list(task.sample(generator, 10, 4, device, batch_size=4)))
    assert first.shape == (10, 1, 16, 16)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not generator.training
    assert all(torch.equal(before[name], tensor) for name, tensor in generator.state_dict().items())


def test_samples_are_drawn_with_the_batchs_own_statistics() -> None:
    task = DCGAN(16, width=4)
    generator = task.build("generator")
    few = next(task.sample(generator, 4, 3, torch.device("cpu"), batch_size=4))
    many = next(task.sample(generator, 4, 3, torch.device("cpu"), batch_size=8))
    assert not torch.equal(few, many)
    assert task.protocol(4) == "train mode, batch 4"


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d(3), nn.InstanceNorm2d(3, affine=True, track_running_stats=True)]
)
def test_frozen_statistics_change_neither_buffers_nor_outputs(norm: nn.Module) -> None:
    x = torch.randn(4, 3, 5, 5)
    before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    with frozen_statistics(norm):
        inside = norm(x)
    assert all(torch.equal(before[name], buffer) for name, buffer in norm.named_buffers())
    torch.testing.assert_close(inside, norm(x), rtol=1e-6, atol=1e-6)
    assert not torch.equal(before["running_mean"], norm.running_mean)


def test_same_randomness_repeats_dropout_and_leaves_the_global_stream_alone(device: torch.device) -> None:
    x = torch.ones(100, device=device)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with same_randomness(1, device):
        first = nn.functional.dropout(x)
    with same_randomness(1, device):
        second = nn.functional.dropout(x)
    with same_randomness(2, device):
        third = nn.functional.dropout(x)
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert torch.equal(torch.rand(3), expected)


def test_unknown_tasks_and_options_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"unknown task 'dcgam'; expected one of dcgan.* Did you mean 'dcgan'\?"
    ):
        build_task("dcgam")
    with pytest.raises(
        UserError, match="task 'dcgan' has no option 'depth'; expected one of image_size, .*noise"
    ):
        build_task("dcgan", {"depth": 3})
    with pytest.raises(
        UserError, match="expected an image size that is a power of two and at least 16, got 48"
    ):
        build_task("dcgan", {"image_size": 48})
    with pytest.raises(UserError, match="dcgan: expected width to be a whole number of at least 1, got 0"):
        build_task("dcgan", {"width": 0})
