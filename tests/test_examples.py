"""The examples and docs/add_a_task.md: they run, they are as short as they say, and their errors are real."""

from __future__ import annotations

import ast
import copy
import difflib
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sgc_distiller import SelfSupervisedPolicy, Supervision, dict_config
from sgc_distiller.arguments import parse, sgc_parser
from sgc_distiller.checkpoints import load_checkpoint
from sgc_distiller.errors import UserError
from sgc_distiller.experiment import resolve, train
from sgc_distiller.seeding import generator_for
from sgc_distiller.tasks import find_task
from sgc_distiller.tasks.base import GANTask

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
GUIDE = (ROOT / "docs" / "add_a_task.md").read_text(encoding="utf-8")
QUICK = {"epochs": 1, "steps_per_epoch": 2, "epoch_images": 0, "test_images": 100, "device": "cpu"}


@pytest.fixture
def own_gan(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The example's module, imported as a user in its folder imports it."""
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield __import__("own_gan")
    sys.modules.pop("own_gan", None)


def _batch(task: GANTask, count: int = 20) -> dict[str, Any]:
    raw = {"real": torch.rand(count, 1, 16, 16) * 2 - 1, "digit": torch.arange(count) % 10}
    return {"dropout_seed": 1, **task.prepare(raw, generator_for(0, "test"))}


def _supervised_loss(supervision: Supervision, policy: Any, batch: dict[str, Any]) -> Tensor:
    model = supervision.generator
    policy.on_minibatch_begin(model, 0, 0, 1, {}, {})
    return policy.before_backward_pass(model, 0, 0, 1, supervision.step(batch), {}).overall_loss


# --- own_gan.py ---


def test_own_gan_is_under_a_hundred_lines_and_no_copy_of_ours() -> None:
    text = (EXAMPLES / "own_gan.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 100
    assert not re.search(r"sgc_distiller\.(networks|tasks\.(?!base|evaluation))", text)


def test_own_gan_trains_compresses_and_compares(
    own_gan: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own_gan.main(str(tmp_path), **QUICK)
    said = capsys.readouterr().out
    assert re.search(r"│ dense +│ +0 % │ +135,312", said)
    assert re.search(r"│ sparse +│ +4\.99 % │", said)  # the first epoch of the schedule
    assert "FID[digits-" in said
    assert {"dense.png", "sparse.png", "residual.png"} <= {
        file.name for file in (tmp_path / "sparse" / "samples").iterdir()
    }
    assert (tmp_path / "sparse" / "report.html").is_file()
    content = load_checkpoint(tmp_path / "sparse")
    assert find_task(content["arch"]) is own_gan.OwnGAN  # the name leads back to the class

    with pytest.raises(UserError, match="dense: holds a run already"):
        own_gan.main(str(tmp_path), **QUICK)
    again = {"task": "own_gan.OwnGAN", "extractor": "digits", **QUICK, "folder": str(tmp_path / "again")}
    train(resolve(again))
    first, second = (load_checkpoint(tmp_path / name)["state_dict"] for name in ("dense", "again"))
    assert all(torch.equal(first[name], value) for name, value in second.items())


def test_own_schedule_prunes_three_quarters_of_all_but_the_output_layer(own_gan: ModuleType) -> None:
    from sgc_distiller import file_config
    from sgc_distiller.schedule import read_schedule

    task = own_gan.OwnGAN()
    generator = task.build("generator")
    supervision = Supervision(task, generator, task.build("discriminator"), copy.deepcopy(generator))
    scheduler = file_config(supervision.generator, None, "own_gan.yaml")
    last = read_schedule("own_gan.yaml").sparsity_plan(generator)[-1]
    assert last == {name: 0.75 for name in ("0.weight", "2.weight", "6.weight")}
    assert scheduler.policies


def test_own_pictures_show_the_digit_of_their_column_and_fit_any_size(own_gan: ModuleType) -> None:
    task = own_gan.OwnGAN(image_size=32, width=4)
    generator = task.build("generator")
    device = torch.device("cpu")
    sheet = task.sheet(generator, task.open_data("digits", "test", 0.1), 0, device)
    assert sheet.made.shape == (4, 10, 1, 32, 32)
    torch.testing.assert_close(sheet.made.flatten(0, 1), next(task.sample(generator, 40, 0, device)))
    data = task.open_data("digits", "train")
    sample = data.load([3, 4, 15])
    assert sample["digit"].tolist() == [3, 4, 5]  # the set begins with 0 to 9, 0 to 9
    assert sample["real"].shape == (3, 1, 32, 32)


def test_own_gan_refuses_pictures_without_classes(own_gan: ModuleType, tmp_path: Path) -> None:
    from tests.tiny import picture_folder

    folder = picture_folder(tmp_path / "pictures", count=2)
    with pytest.raises(UserError, match=r"folder:pictures-2: expected pictures with classes; take 'digits'"):
        own_gan.OwnGAN().open_data(str(folder), "train")


def test_own_terms_are_the_hinge_loss_of_the_projected_class(own_gan: ModuleType) -> None:
    task = own_gan.OwnGAN(width=4)
    generator, judge = task.build("generator"), task.build("discriminator")
    batch = _batch(task)
    outputs = task.generate(generator, batch)
    real, fake = task.judge_real(judge, batch), task.judge_fake(judge, batch, outputs)
    matrix, bias = (p.detach().double().numpy() for p in judge[-1].parameters())
    for judged in (real, fake):
        hidden = judged["features"][0].detach().double().numpy()  # (B, d)
        expected = [hidden[i] @ matrix[i % 10] + bias[i % 10] for i in range(20)]
        assert judged["score"].tolist() == pytest.approx(expected, abs=1e-5)
    given = {"score": torch.tensor([2.0, 0.5, -3.0])}, {"score": torch.tensor([-2.0, -0.5, 3.0])}
    assert task.discriminator_terms(judge, {}, {}, *given)["dis"].tolist() == [0.0, 1.0, 8.0]
    assert task.generator_terms(generator, {}, {}, given[1])["gen"].tolist() == [2.0, 0.5, -3.0]


@pytest.mark.parametrize("distance", ["batch", "sample"])
def test_student_equal_to_teacher_has_zero_loss_and_zero_gradient(own_gan: ModuleType, distance: str) -> None:
    task = own_gan.OwnGAN(width=4)
    student = task.build("generator")
    supervision = Supervision(task, student, task.build("discriminator"), copy.deepcopy(student))
    policy = SelfSupervisedPolicy(student, distance=distance, features=30.0, normalizer="ema")
    loss = _supervised_loss(supervision, policy, _batch(task))
    loss.backward()
    assert loss.item() == 0.0
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert all(not parameter.grad.any() for parameter in student.parameters())
    with torch.no_grad():
        student[0].weight.mul_(0.5)
    assert _supervised_loss(supervision, policy, _batch(task)).item() > 0.01


def test_spectral_norm_is_judged_as_the_guide_says(own_gan: ModuleType) -> None:
    class Spectral(own_gan.OwnGAN):
        def build(self, role: Any, width: float = 1.0) -> nn.Module:
            network = super().build(role, width)
            if role == "discriminator":
                for layer in network:
                    if isinstance(layer, nn.Conv2d | nn.Linear):
                        nn.utils.parametrizations.spectral_norm(layer)
            return network

        def judge_real(self, discriminator, batch):
            return super().judge_fake(discriminator, batch, {"fake": batch["real"]})

        def judge_fake(self, discriminator, batch, outputs):
            discriminator.eval()
            judged = super().judge_fake(discriminator, batch, outputs)
            discriminator.train()
            return judged

    task = Spectral(width=4)
    student = task.build("generator")
    judge = task.build("discriminator")
    supervision = Supervision(task, student, judge, copy.deepcopy(student))
    policy = SelfSupervisedPolicy(student, distance="sample", features=1.0)
    before = {name: value.clone() for name, value in judge.named_buffers()}
    assert _supervised_loss(supervision, policy, _batch(task)).item() == 0.0
    supervision.discriminator_loss(_batch(task), task.generate(student, _batch(task)))
    assert any(not torch.equal(before[name], value) for name, value in judge.named_buffers())


# --- the twin scripts ---


def _code(name: str) -> list[str]:
    """Return a script's lines of code, without blank ones, comments and docstrings."""
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    tree = ast.parse(text)
    tree.body = tree.body[1:]  # the module's docstring
    first = tree.body[0].lineno - 1
    lines = text.splitlines()[first:]
    return [line for line in lines if line.strip() and not line.lstrip().startswith(("#", '"""'))]


def test_supervision_adds_twelve_lines_to_a_loop_and_takes_one_away() -> None:
    changes = list(difflib.ndiff(_code("train_plain.py"), _code("train_supervised.py")))
    added = [line[2:].strip() for line in changes if line.startswith("+ ")]
    removed = [line[2:].strip() for line in changes if line.startswith("- ")]
    assert removed == ["loss = -score(fake, digit).mean()"]
    assert len(added) == 12  # the docstring and docs/add_a_task.md say so
    ours = ("supervision", "scheduler", "sgc_distiller", "copy", "where")
    assert all(any(word in line for word in ours) for line in added)


def test_the_plain_twin_takes_nothing_of_ours_but_the_networks() -> None:
    tree = ast.parse((EXAMPLES / "train_plain.py").read_text(encoding="utf-8"))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name for name in modules if name and not name.startswith(("torch", "sklearn"))} == {"own_gan"}
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "gan"
    }
    assert used == {"build", "noise"}


def test_the_twins_run_one_after_the_other(
    own_gan: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(script: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        return capsys.readouterr().out

    dense, sparse = str(tmp_path / "dense.pt"), str(tmp_path / "sparse.pt")
    assert "epoch 1: loss" in run("train_plain.py", dense, "--epochs", "2", "--steps", "3")
    said = run("train_supervised.py", sparse, "--start", dense, "--epochs", "6", "--steps", "1")
    assert said.splitlines()[-1].endswith("74.9% of the weights are 0")
    state, _ = torch.load(sparse, weights_only=True)
    assert (state["2.weight"] == 0).float().mean().item() == pytest.approx(0.75, abs=1e-3)
    assert not (state["10.weight"] == 0).any()


# --- docs/add_a_task.md ---


def test_the_guides_blocks_run_one_after_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    names: dict[str, Any] = {"__name__": "guide"}
    for number, block in enumerate(blocks):
        exec(compile(block, f"docs/add_a_task.md, block {number}", "exec"), names)
    weights = [p for p in names["generator"].parameters() if p.dim() == 2]
    assert [round((p == 0).float().mean().item(), 2) for p in weights] == [0.75, 0.75]
    assert "FID[digits-" in capsys.readouterr().out

    task = names["Translator"]()
    data = task.open_data("digit-outlines", "test", 0.02)
    generator, device = task.build("generator"), torch.device("cpu")
    (evaluation,) = task.evaluations(data)
    drawn = list(evaluation.draw(generator, 2, 0, device))
    assert [item.pairs[0][0].shape for item in drawn] == [(3, 32, 32)] * 2
    assert task.sheet(generator, data, 0, device).rows.shape == (4, 3, 3, 32, 32)
    supervision = Supervision(task, generator, task.build("discriminator"), copy.deepcopy(generator))
    batch = {name: torch.rand(2, 3, 32, 32) for name in "AB"}
    assert _supervised_loss(supervision, SelfSupervisedPolicy(generator), batch).item() == 0.0


@pytest.mark.parametrize("file", ["docs/add_a_task.md", "examples/README.md", "examples/own_gan.yaml"])
def test_commands_that_are_shown_are_understood(own_gan: ModuleType, file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    commands = re.findall(r"sgc ((?:train|compress|evaluate|schedule) [^\n`;]*own_gan[^\n`;]*)", text)
    assert len(commands) >= 2
    for command in commands:
        parsed = parse(sgc_parser(), command.split())
        if getattr(parsed, "schedule", None):
            assert (EXAMPLES / parsed.schedule).is_file()


def test_links_of_guide_and_readme_lead_somewhere() -> None:
    for file in (ROOT / "docs" / "add_a_task.md", EXAMPLES / "README.md"):
        targets = re.findall(r"\]\(([^)#:]+)\)", file.read_text(encoding="utf-8"))
        assert targets
        assert [target for target in targets if not (file.parent / target).exists()] == []


def test_the_guide_names_what_the_contract_has() -> None:
    own = {name for name in vars(GANTask) if not name.startswith("_")} | set(GANTask.__annotations__)
    beside = {"usual_options", "options", "batches_per_step", "total"}  # nobody implements these
    assert [name for name in sorted(own - beside) if f"`{name}" not in GUIDE] == []
    assert "docs/add_a_task.md" in (GANTask.__doc__ or "")


# --- what is missing says so, in the guide's words ---


class Bare(GANTask):
    """The five methods and nothing else."""

    name, image_size, channels = "bare", 2, 1

    def build(self, role: Any, width: float = 1.0) -> nn.Module:
        return nn.Linear(2, 2)

    def prepare(self, raw, rng):
        return {"real": raw["real"]}

    def generate(self, generator, batch):
        return {"fake": generator(batch["real"])}

    def generator_terms(self, generator, batch, outputs, fake):
        return {"gen": fake["score"].mean(1)}

    def discriminator_terms(self, discriminator, batch, outputs, real, fake):
        return {"dis": real["score"].mean(1) - fake["score"].mean(1)}


class Dropping(Bare):
    def build(self, role: Any, width: float = 1.0) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))


class Pooling(Bare):
    pools = {"fake": 5}


PICTURES = {"real": torch.ones(3, 2)}
SCHEDULE = {
    "extensions": {"s": {"class": "SelfSupervisedPolicy"}},
    "policies": [
        {"extension": {"instance_name": "s"}, "starting_epoch": 0, "ending_epoch": 1, "frequency": 1}
    ],
}


def _supervise(task: GANTask, has_teacher: bool = True) -> Supervision:
    teacher = task.build("generator") if has_teacher else None
    return Supervision(task, task.build("generator"), task.build("discriminator"), teacher)


def _without_features() -> None:
    supervision = _supervise(Bare())
    policy = SelfSupervisedPolicy(supervision.generator, features=1.0)
    _supervised_loss(supervision, policy, PICTURES)


def _without_teacher() -> None:
    supervision = _supervise(Bare(), has_teacher=False)
    dict_config(supervision.generator, None, SCHEDULE)


def _without_step() -> None:
    supervision = _supervise(Bare())
    policy = SelfSupervisedPolicy(supervision.generator)
    policy.before_backward_pass(supervision.generator, 0, 0, 1, torch.zeros(()), {})


def _without_sample() -> None:
    list(Bare().sample(nn.Identity(), 1, 0, torch.device("cpu")))


MISSING = {
    "cannot be measured or drawn: implement sample(generator, count, seed, device)": _without_sample,
    "implement evaluations(data), since its data are more than pictures": lambda: Bare().evaluations([]),
    "offers no discriminator features: expected 'features' in what judge_fake() returns": _without_features,
    "the generator has dropout, but the batch names no 'dropout_seed'": lambda: _supervise(
        Dropping()
    ).generate(PICTURES),
    "the discriminator is shown pictures out of pools, but the batch names no 'pool_seed'": lambda: (
        _supervise(Pooling()).discriminator_loss(PICTURES, {"fake": torch.ones(3, 2)})
    ),
    "no supervision is registered for this model": lambda: dict_config(nn.Linear(2, 2), None, SCHEDULE),
    "this run has no teacher, but a policy of the schedule compares with one": _without_teacher,
    "no step context": _without_step,
    "there is no module 'nowhere'": lambda: find_task("nowhere.Task"),
}


@pytest.mark.parametrize("message", MISSING)
def test_what_is_missing_says_so_as_the_guide_quotes_it(message: str) -> None:
    assert f"| `{message}` |" in GUIDE
    with pytest.raises(UserError, match=re.escape(message)):
        MISSING[message]()


def test_the_guide_quotes_no_message_that_is_not_tested() -> None:
    quoted = re.findall(r"^\| `(.+?)` \| ", GUIDE.partition("## When something is missing")[2], re.MULTILINE)
    by_path = {text for text in quoted if "GANTask" in text or "own_gan" in text}  # tested below
    assert set(quoted) - by_path == set(MISSING)
    assert len(by_path) == 2


def test_classes_that_are_no_task_are_refused(own_gan: ModuleType) -> None:
    class Half(GANTask):
        build = prepare = generate = generator_terms = None

    own_gan.Half = Half
    lacking = "expected a GANTask, which this class is not: it lacks discriminator_terms"
    assert lacking in GUIDE
    with pytest.raises(UserError, match=f"own_gan.Half: {lacking}$"):
        find_task("own_gan.Half")
    with pytest.raises(UserError, match="own_gan.Digits: .* it lacks GANTask as its base"):
        find_task("own_gan.Digits")
    with pytest.raises(
        UserError, match=r"class at 'own_gan.Own', but module .* has no 'Own'. Did you mean 'OwnGAN'"
    ):
        find_task("own_gan.Own")
