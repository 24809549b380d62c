"""Every loss term against formulas in float64 NumPy, and the gradients of both networks' losses."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from gans import GANS, make_batch, supervise
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sgc_distiller import losses
from sgc_distiller.experiment_spec import DiscriminatorSpec
from sgc_distiller.image_pool import ImagePool
from sgc_distiller.tasks.base import Terms
from sgc_distiller.tasks.cyclegan import CycleGAN
from sgc_distiller.tasks.srgan import SRGAN
from sgc_distiller.tasks.stargan import StarGAN


def array(tensor: Tensor) -> Any:
    return tensor.detach().cpu().numpy().astype(np.float64)


def per_sample(values: Any) -> Any:
    return values.reshape(len(values), -1).mean(1)


def softplus(x: Any) -> Any:
    return np.logaddexp(0.0, x)


def l1(a: Tensor, b: Tensor) -> Any:
    return per_sample(np.abs(array(a) - array(b)))


class Setting:
    """A task in float64 with its networks, a batch, and all that they say of it."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        self.task = GANS[name]()
        self.supervision = supervise(self.task, torch.device("cpu"))
        for network in (self.supervision.generator, self.supervision.discriminator):
            network.double()
        if hasattr(self.task, "_perceptual_network"):
            self.task._perceptual_network.double()
        batch = make_batch(self.task, torch.device("cpu"))
        self.batch = {k: v.double() if isinstance(v, Tensor) else v for k, v in batch.items()}
        generator, judge = self.supervision.generator, self.supervision.discriminator
        self.generator, self.judge = generator, judge
        self.outputs = self.supervision.generate(self.batch)
        self.real = self.task.judge_real(judge, self.batch)
        self.fake = self.task.judge_fake(judge, self.batch, self.outputs)

    def generator_terms(self) -> Terms:
        return self.task.generator_terms(self.generator, self.batch, self.outputs, self.fake)

    def discriminator_terms(self) -> Terms:
        terms = self.task.discriminator_terms(self.judge, self.batch, self.outputs, self.real, self.fake)
        return {**terms, **self.task.own_terms(self.judge, self.batch, self.outputs, self.real)}


def check(found: Terms, expected: dict[str, Any]) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(array(found[name]), value, rtol=1e-9, atol=1e-12, err_msg=name)


def test_pix2pix():
    s = Setting("pix2pix")
    fake, real = array(s.fake["score"]), array(s.real["score"])
    check(
        s.generator_terms(), {"gen": per_sample(softplus(-fake)), "l1": l1(s.outputs["fake"], s.batch["B"])}
    )
    judged = 0.5 * (per_sample(softplus(fake)) + per_sample(softplus(-real)))
    check(s.discriminator_terms(), {"dis": judged})
    assert s.task.generator_weights == {"gen": 1.0, "l1": 100.0}


def test_cyclegan():
    s = Setting("cyclegan")
    a, b, out = s.batch["A"], s.batch["B"], s.outputs
    g_a, g_b, d_a, d_b = s.generator["G_A"], s.generator["G_B"], s.judge["D_A"], s.judge["D_B"]
    assert torch.equal(out["fake_B"], g_a(a))
    assert torch.equal(out["fake_A"], g_b(b))
    check(
        s.generator_terms(),
        {
            "gen_A": per_sample((array(d_a(out["fake_B"])) - 1) ** 2),
            "gen_B": per_sample((array(d_b(out["fake_A"])) - 1) ** 2),
            "cyc_A": l1(g_b(out["fake_B"]), a),
            "cyc_B": l1(g_a(out["fake_A"]), b),
            "idt_A": l1(g_a(b), b),
            "idt_B": l1(g_b(a), a),
        },
    )
    check(
        s.discriminator_terms(),
        {
            "dis_A": 0.5 * per_sample((array(d_a(b)) - 1) ** 2 + array(d_a(out["fake_B"])) ** 2),
            "dis_B": 0.5 * per_sample((array(d_b(a)) - 1) ** 2 + array(d_b(out["fake_A"])) ** 2),
        },
    )
    assert list(s.task.generator_weights.values()) == [1.0, 1.0, 10.0, 10.0, 5.0, 5.0]


def attribute_loss(logits: Tensor, labels: Tensor) -> Any:
    x, y = array(logits), array(labels)
    return (softplus(x) - x * y).sum(1)


def test_stargan():
    s = Setting("stargan")
    fake, real = array(s.fake["score"]), array(s.real["score"])
    back = s.generator(s.outputs["fake"], s.batch["labels"])
    check(
        s.generator_terms(),
        {
            "gen": -per_sample(fake),
            "cla": attribute_loss(s.fake["logits"], s.batch["targets"]),
            "rec": l1(back, s.batch["real"]),
        },
    )
    terms = s.discriminator_terms()
    penalty = penalty_by_hand(s.judge, s.batch, s.outputs["fake"])
    np.testing.assert_allclose(array(terms["gp"]), penalty, rtol=1e-5)
    check(
        {name: value for name, value in terms.items() if name != "gp"},
        {
            "dis": per_sample(fake) - per_sample(real),
            "cla_real": attribute_loss(s.real["logits"], s.batch["labels"]),
        },
    )
    assert s.task.generator_weights == {"gen": 1.0, "cla": 1.0, "rec": 10.0}
    assert s.task.discriminator_weights == {"dis": 1.0, "cla_real": 1.0, "gp": 10.0}


def penalty_by_hand(judge: nn.Module, batch: dict[str, Any], fake: Tensor) -> Any:
    """The penalty with its gradient by central differences, pixel by pixel."""
    alpha = batch["alpha"]
    between = (alpha * batch["real"] + (1 - alpha) * fake).detach()
    flat, step = between.flatten(1), 1e-6
    slopes = np.zeros(tuple(flat.shape))
    with torch.no_grad():
        for pixel in range(flat.shape[1]):
            moved = []
            for sign in (1, -1):
                shifted = flat.clone()
                shifted[:, pixel] += sign * step
                moved.append(array(judge.judge(shifted.view_as(between))[0].flatten(1).sum(1)))
            slopes[:, pixel] = (moved[0] - moved[1]) / (2 * step)
    return (np.sqrt((slopes**2).sum(1)) - 1) ** 2


def test_the_penaltys_gradient_in_the_discriminators_weights():
    s = Setting("stargan")
    with torch.no_grad():  # LeakyReLU is piecewise linear: smooth it out, so that differences converge
        for module in s.judge.modules():
            for name, child in list(module.named_children()):
                if isinstance(child, nn.LeakyReLU):
                    setattr(module, name, nn.Softplus())
    alpha = s.batch["alpha"]

    def penalty() -> Tensor:
        score = losses.gradient_penalty(
            lambda x: first_score(s.judge, x), s.batch["real"], s.outputs["fake"], alpha
        )
        return score.mean()

    value = penalty()
    value.backward()
    for weight in (s.judge.main[0].weight, s.judge.conv1.weight):
        place = (0,) * weight.dim()
        step, values = 1e-6, []
        for sign in (1, -1):
            with torch.no_grad():
                weight[place] += sign * step
            values.append(penalty().item())
            with torch.no_grad():
                weight[place] -= sign * step
        assert weight.grad[place].item() == pytest.approx(
            (values[0] - values[1]) / (2 * step), rel=1e-4, abs=1e-9
        )
    assert s.judge.conv2.weight.grad is None  # the attributes' head takes no part in the penalty


def first_score(judge: nn.Module, pictures: Tensor) -> Tensor:
    """The real/fake head after the layers, without `judge`, which looks for LeakyReLU."""
    score: Tensor = judge.conv1(judge.main(pictures))
    return score


def test_srgan():
    s = Setting("srgan")
    fake, real = array(s.fake["score"]), array(s.real["score"])
    perceive = s.task._perceptual_network
    check(
        s.generator_terms(),
        {
            "pix": l1(s.outputs["fake"], s.batch["high"]),
            "gen": softplus(-fake.reshape(-1)),
            "vgg": l1(perceive(s.outputs["fake"]), perceive(s.batch["high"])),
        },
    )
    check(s.discriminator_terms(), {"dis": softplus(-real.reshape(-1)) + softplus(fake.reshape(-1))})
    assert s.task.generator_weights == {"gen": 5e-3, "pix": 1e-2, "vgg": 1.0}
    assert s.batch["low"].min() >= 0
    assert s.batch["high"].max() <= 1


@pytest.mark.parametrize("name", list(GANS))
def test_gradients_of_both_losses_by_finite_differences(name: str):
    s = Setting(name)
    if name == "pix2pix":
        s.generator.eval()  # no dropout: the loss is a function of the weights alone

    def generator_loss() -> Tensor:
        s.outputs = s.task.generate(s.generator, s.batch)
        s.fake = s.task.judge_fake(s.judge, s.batch, s.outputs)
        return s.task.total(s.generator_terms())

    def discriminator_loss() -> Tensor:
        s.outputs = {key: value.detach() for key, value in s.outputs.items()}
        s.real = s.task.judge_real(s.judge, s.batch)
        s.fake = s.task.judge_fake(s.judge, s.batch, s.outputs)
        return s.task.total(s.discriminator_terms(), "discriminator")

    for network, loss in ((s.generator, generator_loss), (s.judge, discriminator_loss)):
        network.zero_grad()
        loss().backward()
        weights = [p for p in network.parameters() if p.dim() == 4]
        checked = 0
        for weight in (weights[0], weights[-1]):
            assert weight.grad is not None
            place = tuple(int(i) for i in np.unravel_index(int(weight.grad.abs().argmax()), weight.shape))
            step, values = 1e-8, []  # small: L1 terms have a kink wherever a pixel is right
            for sign in (1, -1):
                with torch.no_grad():
                    weight[place] += sign * step
                values.append(loss().item())
                with torch.no_grad():
                    weight[place] -= sign * step
            slope = (values[0] - values[1]) / (2 * step)
            assert weight.grad[place].item() == pytest.approx(slope, rel=1e-4, abs=1e-6)
            checked += 1
        assert checked == 2


def test_a_generators_step_computes_what_it_shares_with_the_discriminators_once(monkeypatch: Any):
    """CycleGAN: D(real) is computed once for both phases, and the gradients are as without sharing."""
    s = Setting("cyclegan")
    counts = {"real": 0}
    judge_real = s.task.judge_real

    def counted(discriminator: nn.Module, batch: Any) -> Any:
        counts["real"] += 1
        return judge_real(discriminator, batch)

    monkeypatch.setattr(s.task, "judge_real", counted)
    gradients = []
    for shares in (True, False):
        s.judge.zero_grad()
        s.judge.requires_grad_(False)
        s.supervision.pools = {}
        s.supervision.begin(0)
        s.supervision.step(s.batch)
        context = s.supervision.context(object())
        assert all(
            not value.requires_grad for value in (context.real_judgement["A"], context.real_judgement["B"])
        )
        context.student_discriminator_terms["dis_A"].mean().backward()
        assert all(parameter.grad is None for parameter in s.judge.parameters())
        s.judge.requires_grad_(True)
        before = counts["real"]
        batch = s.batch if shares else dict(s.batch)
        outputs = {key: value.detach() for key, value in context.student_outputs.items()}
        loss, _ = s.supervision.discriminator_loss(batch, outputs)
        assert counts["real"] - before == (0 if shares else 1)
        loss.backward()
        gradients.append([parameter.grad.clone() for parameter in s.judge.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_the_students_own_terms_are_left_out_of_a_generators_step(monkeypatch: Any):
    s = Setting("stargan")

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a generator's step computed the gradient penalty")

    monkeypatch.setattr(StarGAN, "own_terms", refuse)
    s.supervision.begin(0)
    s.supervision.step(s.batch)
    context = s.supervision.context(object())
    assert set(context.student_discriminator_terms) == {"dis"}


@given(
    size=st.integers(1, 6),
    counts=st.lists(st.integers(1, 4), min_size=1, max_size=12),
    seed=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_a_pool_hands_out_new_or_stored_pictures(size: int, counts: list[int], seed: int):
    pool = ImagePool(size)
    number, stored = 0, []
    for step, count in enumerate(counts):
        new = [float(number + i) for i in range(count)]
        number += count
        shown = pool.query(torch.tensor(new).view(-1, 1, 1, 1), seed + step).flatten().tolist()
        stream = random.Random(seed + step)
        for given_, seen in zip(new, shown, strict=True):
            if len(stored) < size:
                stored.append(given_)
                assert seen == given_
            elif stream.random() < 0.5:
                place = stream.randrange(size)
                assert seen == stored[place]
                stored[place] = given_
            else:
                assert seen == given_
        assert len(pool) == len(stored)
    again = ImagePool(size)
    again.load_state_dict(pool.state_dict())
    picture = torch.tensor([-1.0]).view(1, 1, 1, 1)
    assert torch.equal(again.query(picture, 3), pool.query(picture, 3))


def test_half_of_a_full_pools_answers_are_stored_pictures():
    pool = ImagePool(50)
    old = 0
    for number in range(2050):
        shown = pool.query(torch.full((1, 1, 1, 1), float(number)), number).item()
        old += number >= 50 and shown != number
    assert 0.46 < old / 2000 < 0.54


def test_learning_rates_of_the_baselines():
    pix2pix = GANS["pix2pix"]()
    for task in (pix2pix, CycleGAN(32)):
        factors = [task.lr_factor(epoch, 200) for epoch in range(200)]
        assert factors == pytest.approx([1 - max(0, e + 1 - 100) / 101 for e in range(200)])
    linear = StarGAN(lr_decay="linear")
    assert [linear.lr_factor(e, 10) for e in (0, 5, 6, 9)] == pytest.approx([1, 1, 0.8, 0.2])
    assert StarGAN().lr_factor(199, 200) == pytest.approx(1 - 0.001 * 0.99)
    steps = [
        SRGAN(perceptual="none").lr_factor(e, 400) for e in (0, 49, 50, 99, 100, 199, 200, 299, 300, 399)
    ]
    assert steps == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125, 0.0625, 0.0625]
    pretraining = SRGAN(loss="l1")
    assert pretraining.lr == 2e-4
    assert pretraining.lr_factor(0, 8) == 1
    assert pretraining.lr_factor(1, 8) == pytest.approx(0.5 + 0.5 * 1e-7 / 2e-4)
    assert pretraining.lr_factor(2, 8) == 1


def test_targets_of_translations_follow_the_baseline():
    """A hair colour is set and the others are cleared; anything else is flipped."""
    task = StarGAN()
    labels = torch.tensor([[1.0, 0, 0, 1, 0], [0, 0, 0, 0, 1]])
    expected = [
        [[1, 0, 0, 1, 0], [0, 1, 0, 1, 0], [0, 0, 1, 1, 0], [1, 0, 0, 0, 0], [1, 0, 0, 1, 1]],
        [[1, 0, 0, 0, 1], [0, 1, 0, 0, 1], [0, 0, 1, 0, 1], [0, 0, 0, 1, 1], [0, 0, 0, 0, 0]],
    ]
    assert task.translations(labels).tolist() == expected


def test_stargan_translates_to_the_labels_of_other_pictures():
    s = Setting("stargan")
    order = [row.tolist() for row in s.batch["labels"]]
    assert sorted(order) == sorted(row.tolist() for row in s.batch["targets"])
    assert s.batch["alpha"].shape == (3, 1, 1, 1)


def test_attributes_are_learned_from_the_data_where_teachers_pictures_are_shown_as_real():
    s = Setting("stargan")
    for network in (s.supervision.teacher, s.supervision.generator):
        network.double()
    s.supervision.spec = DiscriminatorSpec(real="teacher")
    dense = s.supervision.generate_dense(s.batch)["fake"]
    _, logged = s.supervision.discriminator_loss(s.batch, s.outputs)
    expected = attribute_loss(s.judge(s.batch["real"])[1], s.batch["labels"]).mean()
    assert logged["discriminator.cla_real"].item() == pytest.approx(expected, rel=1e-9)
    other = attribute_loss(s.judge(dense)[1], s.batch["targets"]).mean()
    assert other != pytest.approx(expected, rel=1e-3)  # else the test could not tell
