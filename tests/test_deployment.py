"""Generators as deployed: what they draw depends on the input alone, and is what the baseline draws."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from gans import GANS, make_batch, samples
from torch import Tensor, nn

from sgc_distiller.deployment import example_inputs
from sgc_distiller.errors import UserError
from sgc_distiller.module_state import drawing, parts_of
from sgc_distiller.tasks.base import GANTask

CPU = torch.device("cpu")


def built(name: str) -> tuple[GANTask, nn.Module]:
    """Return a task and a generator whose norms have seen something."""
    torch.manual_seed(0)
    task = GANS[name]()
    generator = task.build("generator").train()
    for seed in range(3):
        task.generate(generator, make_batch(task, CPU, 4, seed))
    return task, generator


@pytest.mark.parametrize("name", list(GANS))
def test_a_picture_depends_on_its_input_alone(name: str):
    task, generator = built(name)
    deployed = task.deploy(generator)
    inputs = example_inputs(task, deployed, samples(task), 4)
    for part in parts_of(deployed):
        together = part.network(*inputs[part.name])
        torch.manual_seed(9)
        again = part.network(*inputs[part.name])
        assert torch.equal(together, again)
        alone = torch.cat([part.network(*(item[n : n + 1] for item in inputs[part.name])) for n in range(4)])
        torch.testing.assert_close(alone, together, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", list(GANS))
def test_the_generator_itself_is_left_alone(name: str):
    task, generator = built(name)
    before = {key: value.clone() for key, value in generator.state_dict().items()}
    deployed = task.deploy(generator)
    for parameter in deployed.parameters():
        assert not parameter.requires_grad
        parameter.add_(1.0)
    assert all(torch.equal(value, before[key]) for key, value in generator.state_dict().items())
    assert generator.training
    assert {name for name, _ in deployed.named_parameters()} == {
        name for name, _ in generator.named_parameters()
    }


@pytest.mark.parametrize("name", ["pix2pix", "stargan", "cyclegan"])
def test_norms_are_those_of_training_for_single_pictures(name: str):
    """As the baselines draw in tests: one picture at a time in training mode, here without dropout."""
    task, generator = built(name)
    deployed = task.deploy(generator)
    inputs = example_inputs(task, deployed, samples(task), 3)
    for module in generator.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for part, own in zip(parts_of(deployed), parts_of(generator), strict=True):
        for number in range(3):
            one = tuple(item[number : number + 1] for item in inputs[part.name])
            torch.testing.assert_close(part.network(*one), own.network(*one), atol=2e-5, rtol=1e-4)


def test_dcgans_norms_use_what_they_have_seen():
    task, generator = built("dcgan")
    noise = torch.randn(5, 100, 1, 1)
    torch.testing.assert_close(task.deploy(generator)(noise), generator.eval()(noise))


def test_whoever_draws_leaves_a_deployed_generator_in_its_mode():
    task, generator = built("dcgan")
    deployed = task.deploy(generator)
    with drawing(deployed):
        assert not deployed.training
    with drawing(generator):
        assert generator.training
    drawn = [torch.cat(list(task.sample(network, 10, 3, CPU))) for network in (deployed, generator)]
    assert not torch.allclose(*drawn), "the test protocol of DCGAN is in training mode"


@pytest.mark.parametrize("name", list(GANS))
def test_inputs_are_what_generate_gives(name: str):
    task, generator = built(name)
    data = samples(task)
    first, other = (example_inputs(task, generator, data, 2, seed) for seed in (0, 1))
    for part in parts_of(generator):
        assert all(len(item) == 2 for item in first[part.name])
        part.network(*first[part.name])
    assert any(
        not torch.equal(one, two) for key in first for one, two in zip(first[key], other[key], strict=True)
    )


def test_samples_are_repeated_where_there_are_fewer():
    task, generator = built("stargan")
    data = task.open_data(task.built_in, "train", 0.002)
    count = len(data) + 3
    pictures, _ = example_inputs(task, generator, data, count)["generator"]
    assert len(pictures) == count
    assert torch.equal(pictures[: count - len(data)], pictures[len(data) :])


class Odd(GANTask):
    """A task whose generator has two networks, of which one is called, or with a word."""

    name = "odd"
    image_size, channels = 8, 1

    def __init__(self, word: bool) -> None:
        self.word = word

    def build(self, role: Any, width: float = 1.0) -> nn.Module:
        return nn.ModuleDict({"one": Speaking(), "two": Speaking()})

    def prepare(self, raw: Mapping[str, Tensor], rng: torch.Generator) -> Any:
        return dict(raw)

    def generate(self, generator: nn.Module, batch: Any) -> Any:
        return {"fake": generator["one"](batch["real"], "loud" if self.word else batch["real"])}  # type: ignore[index]

    def generator_terms(self, *_: Any) -> Any:
        return {}

    def discriminator_terms(self, *_: Any) -> Any:
        return {}


class Speaking(nn.Module):
    def forward(self, x: Tensor, how: Any) -> Tensor:
        return x


def test_networks_that_cannot_be_called_by_themselves_are_named():
    for word, message in (
        (True, "one: expected a network that is called with tensors, got Tensor, str"),
        (False, r"task 'odd': expected generate\(\) to call 'two', which it did not"),
    ):
        task = Odd(word)
        with pytest.raises(UserError, match=message):
            example_inputs(task, task.build("generator"), task.open_data("digits", "train", 0.01), 2)
