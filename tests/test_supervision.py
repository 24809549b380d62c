"""The supervision: zero at equality, the paper's formula, who gets gradients, what is refused."""

from __future__ import annotations

import copy
import gc
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sgc_distiller.errors import UserError
from sgc_distiller.experiment_spec import DiscriminatorSpec
from sgc_distiller.loss_policies import OutputDistillationPolicy, SelfSupervisedPolicy
from sgc_distiller.module_state import unwrapped
from sgc_distiller.supervision import Supervision
from sgc_distiller.tasks.base import Batch, GANTask, Judgement, Outputs, Role, Terms
from sgc_distiller.tasks.dcgan import DCGAN


class ToyTask(GANTask):
    """A GAN with two terms on each side, dropout in the generator and batch norm in both networks."""

    name = "toy"
    generator_weights = {"gen": 1.0, "rec": 10.0}
    discriminator_weights = {"dis": 1.0, "gp": 2.0}
    image_size, channels = 4, 1

    def build(self, role: Role, width: float = 1.0) -> nn.Module:
        sizes = (3, 16) if role == "generator" else (16, 1)
        middle = round(8 * width)
        layers: list[nn.Module] = [nn.Linear(sizes[0], middle), nn.BatchNorm1d(middle), nn.Tanh()]
        if role == "generator":
            layers.append(nn.Dropout(0.3))
        return nn.Sequential(*layers, nn.Linear(middle, sizes[1]))

    def prepare(self, raw: dict[str, Tensor], rng: torch.Generator) -> Batch:
        real = raw["real"]
        return {"real": real, "z": torch.randn(len(real), 3, generator=rng).to(real.device)}

    def generate(self, generator: nn.Module, batch: Batch) -> Outputs:
        return {"fake": generator(batch["z"])}

    def generator_terms(self, generator: nn.Module, batch: Batch, outputs: Outputs, fake: Judgement) -> Terms:
        return {
            "gen": -fake["score"].flatten(),
            "rec": (outputs["fake"] - batch["real"]).abs().mean(1),
        }

    def discriminator_terms(
        self, discriminator: nn.Module, batch: Batch, outputs: Outputs, real: Judgement, fake: Judgement
    ) -> Terms:
        return {
            "dis": (fake["score"] - real["score"]).flatten(),
            "gp": (fake["score"].flatten() - 1).square(),
        }

    def optimizer(self, role: Role, network: nn.Module, lr: float | None = None) -> torch.optim.Optimizer:
        return torch.optim.SGD(network.parameters(), lr=lr or 0.1)

    def sample(
        self, generator: nn.Module, count: int, seed: int, device: torch.device, batch_size: Any = None
    ):
        raise NotImplementedError

    def protocol(self, batch_size: int | None = None) -> str:
        return "toy"


def _toy(device: torch.device, seed: int = 0, same: bool = False, **spec: Any):
    torch.manual_seed(seed)
    task = ToyTask()
    teacher = task.build("generator").to(device)
    student = copy.deepcopy(teacher) if same else task.build("generator").to(device)
    judge = task.build("discriminator").to(device)
    supervision = Supervision(task, student, judge, teacher, discriminator_spec=DiscriminatorSpec(**spec))
    raw = {"real": torch.randn(6, 16, generator=torch.Generator().manual_seed(seed)).to(device)}
    batch = {"dropout_seed": 7, **task.prepare(raw, torch.Generator().manual_seed(seed))}
    return supervision, batch


def _loss(supervision: Supervision, batch: Batch, policy: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Run one generator step through a policy as a scheduler would."""
    model = supervision.generator
    policy.on_minibatch_begin(model, 0, 0, 1, {}, {})
    loss = supervision.step(batch)
    result = policy.before_backward_pass(model, 0, 0, 1, loss, {})
    return result.overall_loss, {part.name: part.value for part in result.loss_components}


@pytest.mark.parametrize("distance", ["batch", "sample"])
@pytest.mark.parametrize("normalizer", ["batch", "ema"])
@pytest.mark.parametrize("make", ["toy", "dcgan"])
def test_student_equal_to_teacher_has_zero_loss_and_zero_gradient(
    make: str, distance: str, normalizer: str, device: torch.device
) -> None:
    if make == "toy":
        supervision, batch = _toy(device, same=True)
    else:
        task = DCGAN(16, width=4)
        teacher = task.build("generator").to(device)
        supervision = Supervision(
            task, copy.deepcopy(teacher), task.build("discriminator").to(device), teacher
        )
        raw = {"real": torch.rand(5, 1, 16, 16, device=device) * 2 - 1}
        batch = task.prepare(raw, torch.Generator())
    features = 1.0 if make == "dcgan" else 0.0
    policy = SelfSupervisedPolicy(
        supervision.generator, distance=distance, normalizer=normalizer, features=features
    )
    loss, parts = _loss(supervision, batch, policy)
    supervision.discriminator.requires_grad_(False)
    loss.backward()
    assert loss.item() == 0.0
    assert all(part.item() == 0.0 for part in parts.values())
    assert all(not p.grad.any() for p in supervision.generator.parameters() if p.grad is not None)
    assert any(p.grad is not None for p in supervision.generator.parameters())


class _Given(ToyTask):
    """Terms are given, so that the policy's arithmetic stands alone."""

    def __init__(self, values: dict[str, np.ndarray]) -> None:
        self.values = {name: torch.tensor(value) for name, value in values.items()}

    def _terms(self, outputs: Outputs, names: tuple[str, ...]) -> Terms:
        who = "student" if outputs["fake"].requires_grad else "teacher"
        bind = outputs["fake"].sum() * 0
        return {name: self.values[f"{who}.{name}"] + bind for name in names}

    def generator_terms(self, generator: nn.Module, batch: Batch, outputs: Outputs, fake: Judgement) -> Terms:
        return self._terms(outputs, ("gen", "rec"))

    def discriminator_terms(self, discriminator, batch, outputs, real, fake) -> Terms:
        return self._terms(outputs, ("dis", "gp"))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    lambda_dc=st.sampled_from([0.0, 0.5, 2.0]),
    distance=st.sampled_from(["batch", "sample"]),
    epsilon=st.sampled_from([1e-8, 0.7]),
    gen_weight=st.sampled_from([None, 3.0]),
)
def test_loss_is_the_papers_formula(
    seed: int, lambda_dc: float, distance: str, epsilon: float, gen_weight: float | None
) -> None:
    rng = np.random.RandomState(seed)
    terms = ("gen", "rec", "dis", "gp")
    values = {f"{who}.{name}": rng.standard_normal(6) for who in ("teacher", "student") for name in terms}
    weights = {"gen": gen_weight or 1.0, "rec": 10.0, "dis": 1.0, "gp": 2.0}

    def part(name: str) -> float:
        dense, sparse = values[f"teacher.{name}"], values[f"student.{name}"]
        gap = abs(dense.mean() - sparse.mean()) if distance == "batch" else np.abs(dense - sparse).mean()
        return weights[name] * gap / max(abs(dense.mean()), epsilon)

    expected = part("gen") + part("rec") + lambda_dc * (part("dis") + part("gp"))
    torch.manual_seed(seed)
    task = _Given(values)
    supervision = Supervision(
        task, task.build("generator"), task.build("discriminator"), task.build("generator")
    )
    batch = {"dropout_seed": 1, "real": torch.zeros(6, 16), "z": torch.randn(6, 3)}
    policy = SelfSupervisedPolicy(
        supervision.generator,
        lambda_dc=lambda_dc,
        distance=distance,
        epsilon=epsilon,
        term_weights={"gen": gen_weight} if gen_weight else None,
    )
    loss, _ = _loss(supervision, batch, policy)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("distance", ["batch", "sample"])
@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_gradient_points_to_the_teachers_value_from_both_sides(side: float, distance: str) -> None:
    """One free parameter moves every term; a small step against the gradient must come closer."""

    class Shift(ToyTask):
        generator_weights = {"gen": 1.0}
        discriminator_weights = {"dis": 1.0}

        def generator_terms(self, generator, batch, outputs, fake) -> Terms:
            return {"gen": outputs["fake"].flatten() + 2.0}

        def discriminator_terms(self, discriminator, batch, outputs, real, fake) -> Terms:
            return {"dis": outputs["fake"].flatten() - 5.0}

    class Constant(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = nn.Parameter(torch.tensor(value))

        def forward(self, z: Tensor) -> Tensor:
            return self.value.expand(len(z), 1)

    student, teacher = Constant(0.3 + side), Constant(0.3)
    supervision = Supervision(Shift(), student, nn.Identity(), teacher)
    batch = {"real": torch.zeros(4, 1), "z": torch.zeros(4, 1)}
    loss, parts = _loss(supervision, batch, SelfSupervisedPolicy(student, distance=distance))
    loss.backward()
    assert np.sign(student.value.grad.item()) == side
    expected = 1 / 2.3 + 0.5 * 1 / 4.7
    assert student.value.grad.item() == pytest.approx(side * expected, rel=1e-5)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert set(parts) == {"self_supervised.total", "self_supervised.gc.gen", "self_supervised.dc.dis"}


@pytest.mark.parametrize("features", [0.0, 1.0])
def test_nothing_of_teacher_or_discriminator_moves_in_the_generators_phase(
    features: float, device: torch.device
) -> None:
    task = DCGAN(16, width=4)
    student, teacher, judge = (
        task.build(role).to(device) for role in ("generator", "generator", "discriminator")
    )
    supervision = Supervision(task, student, judge, teacher)
    policy = SelfSupervisedPolicy(student, features=features)
    judge.requires_grad_(False)
    before = {name: t.clone() for name, t in teacher.state_dict().items()}
    batch = task.prepare({"real": torch.rand(5, 1, 16, 16, device=device)}, torch.Generator())
    loss, _ = _loss(supervision, batch, policy)
    loss.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is None for p in judge.parameters())
    assert all(torch.equal(before[name], t) for name, t in teacher.state_dict().items())
    assert all(
        p.grad is not None and p.grad.any() for n, p in student.named_parameters() if n.endswith("0.weight")
    )


def test_extra_passes_leave_the_discriminators_statistics_as_a_plain_step_does() -> None:
    task = DCGAN(16, width=4)
    student, teacher, judge = (task.build(r) for r in ("generator", "generator", "discriminator"))
    plain = copy.deepcopy(judge)
    batch = task.prepare({"real": torch.rand(5, 1, 16, 16)}, torch.Generator())
    supervision = Supervision(task, student, judge, teacher)
    _loss(supervision, batch, SelfSupervisedPolicy(student))
    plain(student(batch["z"]))
    for name, buffer in judge.named_buffers():
        torch.testing.assert_close(buffer, dict(plain.named_buffers())[name], msg=name)


def test_every_value_is_computed_once_and_on_demand() -> None:
    supervision, batch = _toy(torch.device("cpu"))
    calls: dict[str, int] = {}
    for network, name in (
        (supervision.generator, "G"),
        (supervision.teacher, "T"),
        (supervision.discriminator, "D"),
    ):
        network.register_forward_hook(lambda *_, name=name: calls.update({name: calls.get(name, 0) + 1}))
    _loss(supervision, batch, SelfSupervisedPolicy(supervision.generator))
    assert calls == {"G": 1, "T": 1, "D": 3}  # D(real), D(dense), D(sparse)
    calls.clear()
    supervision.step(batch)
    assert calls == {"G": 1, "D": 1}


def test_ema_normalizer_averages_and_survives_its_state_dict() -> None:
    supervision, batch = _toy(torch.device("cpu"))
    policy = SelfSupervisedPolicy(supervision.generator, normalizer="ema", ema_decay=0.75)
    means = []
    for step in range(3):
        moved = {**batch, "z": batch["z"] + step}
        _loss(supervision, moved, policy)
        means.append(abs(supervision.context(object()).teacher_generator_terms["gen"].mean().item()))
    expected = means[0]
    for value in means[1:]:
        expected = 0.75 * expected + 0.25 * value
    assert policy.state_dict()["scales"]["gc.gen"].item() == pytest.approx(expected, rel=1e-5)
    resumed = SelfSupervisedPolicy(supervision.generator, normalizer="ema", ema_decay=0.75)
    resumed.load_state_dict(policy.state_dict())
    assert _loss(supervision, batch, resumed)[0].item() == _loss(supervision, batch, policy)[0].item()


def test_mode_add_keeps_the_gans_own_loss() -> None:
    supervision, batch = _toy(torch.device("cpu"))
    replaced, _ = _loss(supervision, batch, SelfSupervisedPolicy(supervision.generator))
    added, _ = _loss(supervision, batch, SelfSupervisedPolicy(supervision.generator, mode="add"))
    own = supervision.step(batch)
    assert added.item() == pytest.approx((own + replaced).item(), rel=1e-6)
    supervision.objective = "none"
    alone, _ = _loss(supervision, batch, SelfSupervisedPolicy(supervision.generator, mode="add"))
    assert alone.item() == pytest.approx(replaced.item(), rel=1e-6)


@pytest.mark.parametrize("kind", ["l1", "mse"])
def test_output_distillation_weighs_loss_and_distance(kind: str) -> None:
    supervision, batch = _toy(torch.device("cpu"))
    policy = OutputDistillationPolicy(
        supervision.generator, distill_weight=3.0, student_weight=0.5, kind=kind, mode="add"
    )
    loss, parts = _loss(supervision, batch, policy)
    dense, sparse = supervision.generate_dense(batch)["fake"], supervision.generate(batch)["fake"]
    gap = (dense - sparse).abs().mean() if kind == "l1" else (dense - sparse).square().mean()
    assert loss.item() == pytest.approx((0.5 * supervision.step(batch) + 3 * gap).item(), rel=1e-5)
    assert parts[f"output_distillation.{kind}"].item() == pytest.approx(gap.item(), rel=1e-5)


def test_discriminator_loss_is_the_baselines_on_the_students_pictures() -> None:
    supervision, batch = _toy(torch.device("cpu"))
    outputs = supervision.generate(batch)
    loss, logged = supervision.discriminator_loss(batch, outputs)
    loss.backward()
    assert all(p.grad is None for p in supervision.generator.parameters())
    assert all(p.grad is not None for p in supervision.discriminator.parameters())
    total = logged["discriminator.dis"] + 2 * logged["discriminator.gp"]
    assert loss.item() == pytest.approx(total.item(), rel=1e-5)


def test_discriminator_can_be_shown_the_teachers_pictures() -> None:
    supervision, batch = _toy(torch.device("cpu"), fake="teacher")
    loss, _ = supervision.discriminator_loss(batch, supervision.generate(batch))
    dense = supervision.generate_dense(batch)
    plain, _ = _toy(torch.device("cpu"))
    plain.discriminator = supervision.discriminator
    assert loss.item() == pytest.approx(plain.discriminator_loss(batch, dense)[0].item(), rel=1e-5)
    real, _ = _toy(torch.device("cpu"), real="teacher")
    got, _ = real.discriminator_loss(batch, real.generate(batch))
    batch_of_dense = {**batch, "real": real.generate_dense(batch)["fake"]}
    plain, _ = _toy(torch.device("cpu"))
    assert got.item() == pytest.approx(
        plain.discriminator_loss(batch_of_dense, plain.generate(batch))[0].item()
    )


@pytest.mark.parametrize("objective", ["consistency", "both"])
def test_discriminator_objectives(objective: str) -> None:
    supervision, batch = _toy(torch.device("cpu"), objective=objective)
    outputs = supervision.generate(batch)
    loss, logged = supervision.discriminator_loss(batch, outputs)
    loss.backward()
    context = supervision
    context.step(batch)
    step = supervision.context(object())
    expected = 0.0
    for name, weight in ToyTask.discriminator_weights.items():
        dense = step.teacher_discriminator_terms[name].mean().item()
        sparse = step.student_discriminator_terms[name].mean().item()
        expected += weight * abs(dense - sparse) / abs(dense)
    assert logged["discriminator.consistency"].item() == pytest.approx(expected, rel=1e-4)
    own = (logged["discriminator.dis"] + 2 * logged["discriminator.gp"]).item()
    assert loss.item() == pytest.approx(expected + (own if objective == "both" else 0.0), rel=1e-4)


def test_supervision_is_found_through_wrappers_and_forgotten_with_its_owner() -> None:
    supervision, _ = _toy(torch.device("cpu"))
    generator = supervision.generator
    assert Supervision.of(nn.DataParallel(generator)) is supervision
    assert unwrapped(nn.DataParallel(generator)) is generator
    del supervision
    gc.collect()
    with pytest.raises(UserError, match=r"build `supervision = Supervision\(task, generator"):
        Supervision.of(generator)


def test_missing_stale_and_used_contexts_are_refused() -> None:
    supervision, batch = _toy(torch.device("cpu"))
    model = supervision.generator
    policy = SelfSupervisedPolicy(model)
    policy.on_minibatch_begin(model, 0, 3, 9, {}, {})
    with pytest.raises(UserError, match=r"no step context of minibatch 3: expected `loss = supervision.step"):
        policy.before_backward_pass(model, 0, 3, 9, torch.zeros(()), {})
    loss = supervision.step(batch)
    policy.on_minibatch_begin(model, 0, 4, 9, {}, {})
    with pytest.raises(UserError, match="no step context of minibatch 4"):
        policy.before_backward_pass(model, 0, 4, 9, loss, {})
    loss = supervision.step(batch)
    policy.before_backward_pass(model, 0, 4, 9, loss, {})
    with pytest.raises(UserError, match="this step's context was used before"):
        policy.before_backward_pass(model, 0, 4, 9, loss, {})


def test_mistakes_in_arguments_are_refused_by_name() -> None:
    supervision, batch = _toy(torch.device("cpu"))
    model = supervision.generator
    wrong = {
        r"lambda_dc: Expected a number of at least 0, got -1": {"lambda_dc": -1},
        r"epsilon: Expected a number greater than 0, got 0": {"epsilon": 0},
        r"distance: Expected one of batch, sample, got 'smaple'. Did you mean 'sample'\?": {
            "distance": "smaple"
        },
        r"normalizer: Expected one of batch, ema": {"normalizer": "mean"},
        r"mode: Expected one of replace, add": {"mode": "both"},
        r"term_weights: Expected one of gen, rec, dis, gp, got 'recc'. Did you mean 'rec'\?": {
            "term_weights": {"recc": 1.0}
        },
        r"term_weights.rec: Expected a number": {"term_weights": {"rec": "1"}},
        r"ema_decay: Expected a number between 0 and 1": {"ema_decay": 1.5},
    }
    for message, arguments in wrong.items():
        with pytest.raises(UserError, match=message):
            SelfSupervisedPolicy(model, **arguments)
    with pytest.raises(UserError, match="kind: Expected one of l1, mse"):
        OutputDistillationPolicy(model, kind="l2")
    with pytest.raises(UserError, match="expected objective 'task' or 'none'"):
        Supervision(supervision.task, model, supervision.discriminator, objective="nothing")
    with pytest.raises(UserError, match="teacher and student are the same module"):
        Supervision(supervision.task, model, supervision.discriminator, model)
    alone = Supervision(supervision.task, model, supervision.discriminator)
    with pytest.raises(UserError, match="this run has no teacher"):
        SelfSupervisedPolicy(model)
    with pytest.raises(UserError, match="offers no discriminator features"):
        alone.task.features({"score": torch.zeros(1)})
    with pytest.raises(UserError, match="the batch names no 'dropout_seed'"):
        alone.generate({key: value for key, value in batch.items() if key != "dropout_seed"})
