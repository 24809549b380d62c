"""The rows of Table 1 are what their files say: networks, starts, training, pictures, losses, sparsity."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sgc_distiller import checkpoints
from sgc_distiller.data import batches
from sgc_distiller.errors import UserError
from sgc_distiller.experiment import compress, train
from sgc_distiller.names import prunable_names
from sgc_distiller.resources import find_schedule, shipped_schedules
from sgc_distiller.runs import RunFolder
from sgc_distiller.schedule import read_schedule
from sgc_distiller.settings import resolve
from sgc_distiller.studies.presets import table1_rows
from sgc_distiller.supervision import Supervision
from sgc_distiller.tasks.stargan import StarGAN
from sgc_distiller.training import Trainer
from tests.gans import COLOURS, GANS, make_batch, samples
from tests.tiny import Silent

SIZES = {"image_size": 16, "width": 8, "blocks": 1, "n_critic": 2}


@dataclasses.dataclass(frozen=True)
class Expected:
    """One row of the paper's table in the words of its files, written down by hand.

    ``share`` of the dense training's steps; what the networks start from; whether the discriminator is
    trained, and on whose pictures; the loss of the generator; sparsities reached.
    """

    share: float
    student: str = "dense"
    judge: str = "pretrained"
    trained: bool = True
    real: str = "data"
    fake: str = "student"
    loss: tuple[str, ...] = ("gan",)
    sparsity: float = 0.5
    judge_sparsity: float = 0.0
    teacher_draws: bool = False


ROWS = {
    "a": Expected(1.0, "random", "random", sparsity=0.0),
    "b": Expected(0.1, loss=("supervision",), teacher_draws=True),
    "b'": Expected(0.1, loss=("supervision",), teacher_draws=True),
    "c": Expected(1.0, "narrow", "random", sparsity=0.0),
    "d": Expected(0.1),
    "e": Expected(0.1, judge="random"),
    "e'": Expected(0.1),
    "f": Expected(1.0, "random", "random"),
    "g": Expected(0.1, trained=False, loss=("l1",), teacher_draws=True),
    "h": Expected(0.1, loss=("gan", "l1"), teacher_draws=True),
    "h'": Expected(0.1, loss=("gan", "l1"), teacher_draws=True),
    "i": Expected(0.1, trained=False, loss=("gan", "l1"), teacher_draws=True),
    "i'": Expected(0.1, trained=False, loss=("gan", "l1"), teacher_draws=True),
    "j": Expected(0.1, "random", "random", real="teacher", teacher_draws=True),
    "j'": Expected(1.0, "random", "random", real="teacher", teacher_draws=True),
    "k": Expected(0.1, judge="random", fake="teacher", loss=("gan", "mse"), teacher_draws=True),
    "k'": Expected(0.1, trained=False, loss=("mse",), teacher_draws=True),
    "l": Expected(0.1, trained=False, loss=("lit",), teacher_draws=True),
    "m": Expected(0.1, loss=("gan", "l1"), judge_sparsity=0.5, teacher_draws=True),
    "n": Expected(0.1, loss=("gan", "l1"), judge_sparsity=0.5, teacher_draws=True),
}
ONE_SHOT = {"d", "g", "h'", "i'", "k", "k'"}
FILES = {row.key: row.file for row in table1_rows([*"abcdefghijklmn", "variants"])}


def test_every_file_is_a_row_and_every_row_a_file():
    assert FILES.keys() == ROWS.keys()
    assert len(list((shipped_schedules() / "table1").glob("*.yaml"))) == len(ROWS)
    assert [row.key for row in table1_rows()] == list("abcdefghijklmn")


@pytest.mark.parametrize("row", ROWS)
def test_a_row_has_its_share_of_the_dense_trainings_steps(row: str):
    schedule = read_schedule(FILES[row])
    assert schedule.gan is not None
    assert schedule.gan.dense_steps == 40_000
    assert schedule.epochs == 20
    assert schedule.gan.steps_per_epoch * schedule.epochs / schedule.gan.dense_steps == ROWS[row].share


class _Witness:
    """Notes who draws, and whose pictures the discriminator is trained on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.drawers: set[str] = set()
        self.real: set[str] = set()
        self.fake: set[str] = set()
        self._makers: dict[int, tuple[str, Tensor]] = {}  # holds the pictures, so that no address comes twice
        generate, real, fake = StarGAN.generate, StarGAN.judge_real, StarGAN.judge_fake

        def generate_(task: StarGAN, generator: Any, batch: Any) -> Any:
            outputs = generate(task, generator, batch)
            who = "student" if next(generator.parameters()).requires_grad else "teacher"
            self.drawers.add(who)
            self._makers[outputs["fake"].data_ptr()] = (who, outputs["fake"])
            return outputs

        def real_(task: StarGAN, judge: Any, batch: Any) -> Any:
            if _is_trained(judge):
                self.real.add(self._maker(batch["real"]))
            return real(task, judge, batch)

        def fake_(task: StarGAN, judge: Any, batch: Any, outputs: Any) -> Any:
            if _is_trained(judge):
                self.fake.add(self._maker(outputs["fake"]))
            return fake(task, judge, batch, outputs)

        monkeypatch.setattr(StarGAN, "generate", generate_)
        monkeypatch.setattr(StarGAN, "judge_real", real_)
        monkeypatch.setattr(StarGAN, "judge_fake", fake_)

    def _maker(self, pictures: Tensor) -> str:
        return self._makers.get(pictures.data_ptr(), ("data", pictures))[0]


def _is_trained(judge: torch.nn.Module) -> bool:
    return torch.is_grad_enabled() and next(judge.parameters()).requires_grad


def _options(folder: Path, row: str, **more: Any) -> Any:
    given = {
        "folder": str(folder),
        "schedule": str(FILES[row]),
        "steps_per_epoch": 1,
        "batch_size": 4,
        "epoch_images": 0,
        "test_images": 8,
        "report_every": 1,
        "save_untrained": True,
        "device": "cpu",
    }
    return resolve({**given, **more})


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("table1") / "dense"
    train(_options(folder, "a", task="stargan", task_options=SIZES))
    return folder


def _states(folder: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    content = checkpoints.load_checkpoint(folder / name)
    return content["state_dict"], content["discriminator_state_dict"]


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("row", [row for row in ROWS if row != "a"])
def test_a_row_runs_as_the_table_says(row: str, dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    expected = ROWS[row]
    witness = _Witness(monkeypatch)
    folder = tmp_path / "run"
    compress(_options(folder, row, weights_from=str(dense)))
    teacher, pretrained = _states(dense, "checkpoint.pth.tar")
    student, judge = _states(folder, "untrained.pth.tar")
    trained_student, trained_judge = _states(folder, "checkpoint.pth.tar")

    assert _same(checkpoints.load_checkpoint(folder / "teacher.pth")["state_dict"], teacher)
    assert _same(student, teacher) == (expected.student == "dense")
    assert (student["main.0.weight"].shape[0] < 8) == (expected.student == "narrow")
    assert _same(judge, pretrained) == (expected.judge == "pretrained")
    assert not _same(trained_student, student)
    assert _same(trained_judge, judge) != expected.trained

    assert ("student" in witness.drawers) or expected.loss == ("lit",)
    assert witness.real == ({expected.real} if expected.trained else set())
    # the consistency loss of eq. 9 looks at both generators' pictures
    shown = {expected.fake} | ({"teacher"} if row == "b'" else set())
    assert witness.fake == (shown if expected.trained else set())

    zeros, sizes = 0, 0
    for name in prunable_names(StarGAN(**SIZES, attributes=COLOURS).build("generator")):
        weight = trained_student[name]
        if expected.sparsity:
            assert int((weight == 0).sum()) == int(expected.sparsity * weight.numel()), name
        zeros, sizes = zeros + int((weight == 0).sum()), sizes + weight.numel()
    result = RunFolder(folder).records("result")[-1]
    assert result["sparsity"] == pytest.approx(zeros / sizes)
    assert result.get("discriminator_sparsity", 0.0) == pytest.approx(expected.judge_sparsity, abs=0.01)
    assert result["steps"] == 20

    names = {name for record in RunFolder(folder).records("step") for name in record["terms"]}
    assert ("student.gen" in names) == (bool({"gan", "supervision"} & set(expected.loss)))
    assert any(name.endswith(".total") for name in names) == ("supervision" in expected.loss)
    for kind, end in (("l1", "distillation.l1"), ("mse", "distillation.mse"), ("lit", "sections.mse")):
        assert (end in names) == (kind in expected.loss), kind
    assert any(name.startswith("discriminator.") for name in names) == expected.trained

    sparsity = [record["sparsity"] for record in RunFolder(folder).records("epoch")]
    if row in ONE_SHOT or row == "m":
        assert sparsity[0] == pytest.approx(0.5, abs=0.01)
    elif expected.sparsity:
        assert sparsity[0] == pytest.approx(0.05, abs=0.01)
        assert sparsity[9] < 0.5
        assert sparsity[10] == pytest.approx(0.5, abs=0.01)


def test_m_lets_weights_return_and_d_does_not(dense: Path, tmp_path: Path):
    """E-M pruning chooses from dense weights in every step; a one-shot mask stays as it is."""
    masks = {}
    for row in ("m", "d"):
        first, whole = tmp_path / f"{row}1", tmp_path / row
        compress(_options(first, row, weights_from=str(dense), epochs=1, lr=0.01))
        compress(_options(whole, row, weights_from=str(dense), lr=0.01))
        masks[row] = [
            _states(folder, "checkpoint.pth.tar")[0]["main.0.weight"] != 0 for folder in (first, whole)
        ]
    assert torch.equal(*masks["d"])
    assert not torch.equal(*masks["m"])
    assert (masks["m"][1] & ~masks["m"][0]).any()


# The losses, by hand.


def _gan_loss(task: StarGAN, generator: Any, judge: Any, batch: Any) -> Tensor:
    made = generator(batch["real"], batch["targets"])
    score, logits = judge(made)
    cla = F.binary_cross_entropy_with_logits(logits, batch["targets"], reduction="sum") / len(logits)
    return -score.mean() + cla + 10 * (batch["real"] - generator(made, batch["labels"])).abs().mean()


def _generator_loss(row: str, s: Supervision, batch: Any) -> Tensor:
    task, student, judge, teacher = s.task, s.generator, s.discriminator, s.teacher
    assert isinstance(task, StarGAN)
    assert teacher is not None
    parts = ROWS[row].loss
    made, dense = (g(batch["real"], batch["targets"]) for g in (student, teacher))
    total = torch.zeros(())
    if "gan" in parts:
        total = total + _gan_loss(task, student, judge, batch)
    if "l1" in parts:
        total = total + 10 * (made - dense.detach()).abs().mean()
    if "mse" in parts:
        total = total + 10 * (made - dense.detach()).square().mean()
    if "lit" in parts:
        hidden = torch.cat(
            [batch["real"], batch["targets"][:, :, None, None].expand(-1, -1, *batch["real"].shape[-2:])], 1
        )
        layers = len(student.main)
        for first, last in ((0, 9), (9, 10), (10, layers)):
            wanted = teacher.main[first:last](hidden.clone()).detach()
            total = total + (student.main[first:last](hidden.clone()) - wanted).square().mean()
            hidden = wanted
    if "supervision" in parts:
        values = []
        for generator in (teacher, student):
            fake = generator(batch["real"], batch["targets"])
            score, logits = judge(fake)
            real_score, _ = judge(batch["real"])
            cla = F.binary_cross_entropy_with_logits(logits, batch["targets"], reduction="sum") / len(logits)
            rec = (batch["real"] - generator(fake, batch["labels"])).abs().mean()
            values.append((-score.mean(), cla, rec, score.mean() - real_score.mean()))
        for weight, o, c in zip((1, 1, 10, 0.5), *values, strict=True):
            total = total + weight * (o.detach() - c).abs() / o.detach().abs()
    return total


def _discriminator_loss(row: str, s: Supervision, batch: Any) -> Tensor:
    assert s.teacher is not None
    dense = s.teacher(batch["real"], batch["targets"]).detach()
    sparse = s.generator(batch["real"], batch["targets"]).detach()
    real = dense if ROWS[row].real == "teacher" else batch["real"]
    fake = dense if ROWS[row].fake == "teacher" else sparse
    judge = s.discriminator

    def loss(fake: Tensor) -> tuple[Tensor, Tensor]:
        between = (batch["alpha"] * real + (1 - batch["alpha"]) * fake).requires_grad_()
        (gradient,) = torch.autograd.grad(judge(between)[0].sum(), between, create_graph=True)
        penalty = (gradient.flatten(1).square().sum(1).sqrt() - 1).square().mean()
        return judge(fake)[0].mean() - judge(real)[0].mean(), penalty

    _, logits = judge(batch["real"])  # attributes are learned from the data in every row
    cla = F.binary_cross_entropy_with_logits(logits, batch["labels"], reduction="sum") / len(logits)
    dis, penalty = loss(fake)
    return dis + cla + 10 * penalty


def _supervision(row: str) -> Supervision:
    torch.manual_seed(4)
    task = StarGAN(**SIZES, attributes=COLOURS)
    schedule = read_schedule(FILES[row])
    assert schedule.gan is not None
    student, judge, teacher = (task.build(role) for role in ("generator", "discriminator", "generator"))
    return Supervision(
        task,
        student,
        judge,
        teacher,
        objective=schedule.gan.objective,
        discriminator_spec=schedule.gan.discriminator,
    )


@pytest.mark.parametrize("row", [row for row in ROWS if row not in ("a", "c")])
def test_the_losses_reach_the_parameters_as_the_row_says(row: str):
    s = _supervision(row)
    batch = make_batch(s.task, torch.device("cpu"))
    schedule = read_schedule(FILES[row]).build(s.generator, torch.optim.SGD(s.generator.parameters(), 0.1))
    s.discriminator.requires_grad_(False)
    schedule.on_epoch_begin(0, None)
    schedule.on_minibatch_begin(0, 0, 1, None)
    loss = schedule.before_backward_pass(0, 0, 1, s.step(batch), None)
    wanted = _generator_loss(row, s, batch)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-4)
    found = torch.autograd.grad(loss, list(s.generator.parameters()))
    by_hand = torch.autograd.grad(wanted, list(s.generator.parameters()))
    for one, other in zip(found, by_hand, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-5)
    assert all(item.grad is None for item in s.teacher.parameters())
    if not ROWS[row].trained:
        return
    s.discriminator.requires_grad_(True)
    loss, _ = s.discriminator_loss(batch, s.generate(batch))
    if row == "b'":  # of eq. 8 with the discriminator as the variable; tests of the supervision have it
        return
    wanted = _discriminator_loss(row, s, batch)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-4)
    found = torch.autograd.grad(loss, list(s.discriminator.parameters()))
    by_hand = torch.autograd.grad(wanted, list(s.discriminator.parameters()))
    for one, other in zip(found, by_hand, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-5)


def test_the_dense_gan_takes_a_schedule_that_says_how_long(dense: Path):
    config = RunFolder(dense).config()
    assert (config["epochs"], config["steps_per_epoch"], config["method"]) == (20, 1, "dense")
    assert RunFolder(dense).records("result")[-1]["method"] == "dense"


@pytest.mark.parametrize("row", ["b", "c", "e"])
def test_a_schedule_that_prunes_or_needs_a_teacher_is_none_of_a_dense_gan(row: str, tmp_path: Path):
    with pytest.raises(UserError, match="expected a schedule without policies, .*`sgc compress` it with"):
        train(_options(tmp_path / "run", row, task="stargan", task_options=SIZES))
    assert not (tmp_path / "run").exists()


def test_unknown_rows_are_named():
    with pytest.raises(UserError, match=r"--rows: expected letters out of a, b, b', .*got 'z'"):
        table1_rows(["b", "z"])
    with pytest.raises(UserError, match="Expected a schedule file or the name of a shipped schedule"):
        table1_rows(["nosuch"])
    assert [row.key for row in table1_rows(["b", "e'", "dcgan/agp_75"])] == ["b", "e'", "agp_75"]
    assert find_schedule("dcgan/agp_75") == table1_rows(["dcgan/agp_75"])[0].file


@pytest.mark.parametrize("name", [name for name in GANS if name != "stargan"])
@pytest.mark.parametrize("row", ROWS)
def test_every_row_trains_every_gan(row: str, name: str, device: torch.device):
    """The first epochs, to the first one that prunes fully where that is at once."""
    expected, task = ROWS[row], GANS[name]()
    schedule = read_schedule(FILES[row])
    gan = schedule.gan
    assert gan is not None
    torch.manual_seed(1)
    width = gan.student.width
    student = task.build("generator", width).to(device)
    teacher, judge = (task.build(role).to(device) for role in ("generator", "discriminator"))
    if gan.student.init == "dense":
        student.load_state_dict(teacher.state_dict())
    before = [copy.deepcopy(network.state_dict()) for network in (student, judge, teacher)]
    s = Supervision(
        task, student, judge, teacher, objective=gan.objective, discriminator_spec=gan.discriminator
    )
    optimizers = [
        task.optimizer(role, net, 0.01) for role, net in (("generator", student), ("discriminator", judge))
    ]
    own = schedule.discriminator
    data = samples(task)
    Trainer(
        task,
        s,
        *optimizers,
        batches=lambda start: batches(data, 2, 0, start, device=device),
        steps_per_epoch=1,
        epochs=2,
        seed=0,
        observer=Silent(),
        scheduler=schedule.build(student, optimizers[0]),
        discriminator_scheduler=own.build(judge, optimizers[1]) if own else None,
    ).run()
    moved = [
        any(not torch.equal(state[key], value) for key, value in network.state_dict().items())
        for state, network in zip(before, (student, judge, teacher), strict=True)
    ]
    assert moved == [True, expected.trained, False]
