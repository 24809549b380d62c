"""Sections of the generators, and the policy that trains them on the dense generator's activations (LIT)."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from sgc_distiller.errors import UserError
from sgc_distiller.loss_policies import IntermediateDistillationPolicy
from sgc_distiller.masks import MaskSet
from sgc_distiller.module_state import captured, unwrapped
from sgc_distiller.names import prunable_names
from sgc_distiller.networks.srgan import SRResNet
from sgc_distiller.supervision import Supervision
from sgc_distiller.tasks.base import GANTask
from tests.gans import GANS, make_batch, supervise
from tests.tiny import TinyTask, tiny_supervision


def _loss(policy: IntermediateDistillationPolicy, s: Supervision, batch: dict, start: float = 0.0) -> Tensor:
    s.begin(0)
    s.step(batch)
    given = torch.tensor(start)
    return policy.before_backward_pass(s.generator, 0, 0, 1, given, MaskSet(s.generator)).overall_loss


@pytest.mark.parametrize("name", GANS)
def test_sections_hold_every_prunable_weight_once(name: str):
    task = GANS[name]()
    generator = task.build("generator")
    names = {id(parameter): key for key, parameter in generator.named_parameters()}
    held = [
        names[id(parameter)]
        for chain in task.sections(generator)
        for module in chain
        for parameter in module.parameters()
    ]
    assert len(held) == len(set(held))
    assert set(prunable_names(generator)) <= set(held)


def test_sections_of_the_older_sr_generator_hold_every_weight_once():
    generator = SRResNet(nf=4, nb=2)
    held = [id(p) for chain in generator.sections() for module in chain for p in module.parameters()]
    assert sorted(held) == sorted(map(id, generator.parameters()))


def test_stargan_has_eight_sections_of_six_blocks():
    task = GANS["stargan"]()
    task.blocks = 6
    generator = task.build("generator")
    main = list(generator.main)
    assert task.sections(generator) == [main[:9], *([block] for block in main[9:15]), main[15:]]


@pytest.mark.parametrize("name", GANS)
def test_equal_generators_have_no_distance_and_no_gradient(name: str, device: torch.device):
    task = GANS[name]()
    s = supervise(task, device, objective="none")
    loss = _loss(IntermediateDistillationPolicy(s.generator), s, make_batch(task, device))
    assert loss.item() == 0.0
    loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in s.generator.parameters())


@pytest.mark.parametrize("name", GANS)
def test_every_section_learns_from_the_teachers_activations_alone(name: str, device: torch.device):
    """Spoiling one weight of the student gives its own section a gradient, and no other one."""
    task = GANS[name]()
    s = supervise(task, device, objective="none")
    chains = task.sections(s.generator)
    spoilt = chains[1]
    with torch.no_grad():
        next(parameter for module in spoilt for parameter in module.parameters()).mul_(1.5)
    loss = _loss(IntermediateDistillationPolicy(s.generator), s, make_batch(task, device))
    assert loss.item() > 0
    loss.backward()
    for index, chain in enumerate(chains):
        grads = [p.grad for module in chain for p in module.parameters() if p.grad is not None]
        assert any(bool(grad.any()) for grad in grads) == (index == 1)


def test_the_loss_is_the_sum_of_squared_distances_by_hand():
    task = GANS["dcgan"]()
    s = supervise(task, torch.device("cpu"))
    with torch.no_grad():
        for parameter in s.generator.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    batch = make_batch(task, torch.device("cpu"))
    student, teacher = copy.deepcopy(s.generator).double(), copy.deepcopy(s.teacher).double()
    hidden, wanted = batch["z"].double(), 0.0
    bounds = [0, 3, 6, 8]  # two hidden layers of three modules, and the last one with its Tanh
    for first, last in zip(bounds, bounds[1:], strict=False):
        target = teacher.main[first:last](hidden.clone())
        wanted += (student.main[first:last](hidden.clone()) - target).square().mean().item()
        hidden = target.detach()
    assert _loss(IntermediateDistillationPolicy(s.generator), s, batch).item() == pytest.approx(wanted, 1e-5)
    added = _loss(IntermediateDistillationPolicy(s.generator, weight=3.0), s, batch, start=2.0)
    assert added.item() == pytest.approx(2.0 + 3.0 * wanted, 1e-5)
    replaced = _loss(IntermediateDistillationPolicy(s.generator, mode="replace"), s, batch, start=2.0)
    assert replaced.item() == pytest.approx(wanted, 1e-5)


def test_teacher_and_discriminator_are_left_as_they_were():
    task = GANS["stargan"]()
    s = supervise(task, torch.device("cpu"))
    before = copy.deepcopy(s.teacher.state_dict()), copy.deepcopy(s.discriminator.state_dict())
    with torch.no_grad():
        next(s.generator.parameters()).mul_(0.5)
    _loss(IntermediateDistillationPolicy(s.generator), s, make_batch(task, torch.device("cpu"))).backward()
    for state, network in zip(before, (s.teacher, s.discriminator), strict=True):
        assert all(torch.equal(value, network.state_dict()[name]) for name, value in state.items())
        assert all(p.grad is None for p in network.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in s.teacher.modules())


def test_capturing_copies_what_modules_in_place_change_and_notes_the_first_pass():
    layers = nn.Sequential(nn.Linear(2, 2), nn.ReLU(True), nn.Linear(2, 2))
    x = torch.randn(3, 2)
    with captured([[layers[0]], [layers[1], layers[2]]]) as found:
        layers(x)
        layers(x + 1)
    first = layers[0](x)
    assert torch.equal(found[0][0], x)
    assert torch.equal(found[0][1], first)
    assert torch.equal(found[1][0], first)
    assert torch.equal(found[1][1], layers[2](first.relu()))


def test_what_has_no_sections_says_so():
    s = tiny_supervision(TinyTask(), torch.device("cpu"))
    with pytest.raises(UserError, match=r"task 'tiny' offers no sections.*implement sections\(generator\)"):
        IntermediateDistillationPolicy(s.generator)


def test_a_narrower_student_is_refused():
    task: GANTask = GANS["stargan"]()
    s = Supervision(
        task, task.build("generator", 0.5), task.build("discriminator"), teacher=task.build("generator")
    )
    with pytest.raises(
        UserError, match=r"expected a student as wide as the dense generator \(gan.student.wid"
    ):
        IntermediateDistillationPolicy(unwrapped(s.generator))
