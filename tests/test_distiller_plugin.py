"""Our policies under Intel's Distiller: registered without harm, with the results of our own runtime."""

from __future__ import annotations

import collections
import copy
import inspect
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import sgc_distiller
from sgc_distiller import Supervision, register
from sgc_distiller.errors import UserError
from sgc_distiller.loss_policies import LOSS_POLICIES, OutputDistillationPolicy, SelfSupervisedPolicy
from sgc_distiller.schedule import CLASSES
from sgc_distiller.seeding import generator_for
from sgc_distiller.tasks.base import GANTask
from sgc_distiller.tasks.dcgan import DCGAN
from tests.tiny import Silent, TinyTask, tiny_supervision, tiny_trainer

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "intel_distiller.py"
EPOCHS, STEPS = 6, 2


def fake_distiller() -> Any:
    """Return what `register` needs of Distiller, for machines without it."""
    fake = types.ModuleType("distiller")
    fake.config = types.ModuleType("distiller.config")
    fake.config.AutomatedGradualPruner = type("AutomatedGradualPruner", (), {})
    fake.file_config = lambda: None
    fake.CompressionScheduler = type("CompressionScheduler", (), {})
    fake.PolicyLoss = collections.namedtuple("PolicyLoss", "overall_loss loss_components")
    fake.LossComponent = collections.namedtuple("LossComponent", "name value")
    fake.ScheduledTrainingPolicy = type("ScheduledTrainingPolicy", (), {"__init__": lambda self: None})
    return fake


def folder_of_the_name() -> types.ModuleType:
    """Return what ``import distiller`` gives beside a clone of the repository."""
    folder = types.ModuleType("distiller")
    folder.__path__ = ["/clones/distiller"]
    return folder


class Doubling:
    """A user's policy in nobody's types."""

    Loss = collections.namedtuple("Loss", "overall_loss loss_components")
    Part = collections.namedtuple("Part", "name value")

    def before_backward_pass(self, model, epoch, minibatch_id, minibatches_per_epoch, loss, zeros_mask_dict):
        return self.Loss(2 * loss, self.Part("doubled", loss))


class TestRegister:
    def test_adds_what_distiller_lacks_and_replaces_nothing(self):
        fake = fake_distiller()
        own = fake.config.AutomatedGradualPruner
        names = register(fake)
        assert {*LOSS_POLICIES, "NMPruner", "DependentMasksPolicy", "SplicingPruner"} <= set(names)
        assert "AutomatedGradualPruner" not in names
        assert fake.config.AutomatedGradualPruner is own
        for classes in CLASSES.values():
            for name in classes.keys() & set(names):
                assert issubclass(getattr(fake.config, name), classes[name])

    def test_twice_is_harmless(self):
        fake = fake_distiller()
        names = register(fake)
        before = dict(vars(fake.config))
        assert register(fake) == names
        assert vars(fake.config) == before

    def test_takes_up_what_came_into_the_table_since(self, monkeypatch: pytest.MonkeyPatch):
        fake = fake_distiller()
        names = register(fake)
        monkeypatch.setitem(CLASSES["extensions"], "Doubling", Doubling)
        assert set(register(fake)) == {*names, "Doubling"}
        other = type("Other", (Doubling,), {})
        monkeypatch.setitem(CLASSES["extensions"], "Doubling", other)
        register(fake)
        assert issubclass(fake.config.Doubling, other)

    def test_policies_are_distillers_and_ours(self):
        fake = fake_distiller()
        register(fake)
        for name, kind in LOSS_POLICIES.items():
            assert issubclass(getattr(fake.config, name), (kind, fake.ScheduledTrainingPolicy))
            assert issubclass(getattr(fake.config, name), fake.ScheduledTrainingPolicy)
            assert issubclass(getattr(fake.config, name), kind)

    def test_losses_are_distillers(self, monkeypatch: pytest.MonkeyPatch):
        fake = fake_distiller()
        monkeypatch.setitem(CLASSES["extensions"], "Doubling", Doubling)
        register(fake)
        answer = fake.config.Doubling().before_backward_pass(None, 0, 0, 1, 4.0, {})
        assert type(answer) is fake.PolicyLoss
        assert answer == (8.0, [("doubled", 4.0)])
        assert type(answer.loss_components[0]) is fake.LossComponent
        monkeypatch.setattr(Doubling, "before_backward_pass", lambda *_: None)
        assert fake.config.Doubling().before_backward_pass(None, 0, 0, 1, 4.0, {}) is None

    def test_what_is_distillers_already_stays_itself(self, monkeypatch: pytest.MonkeyPatch):
        fake = fake_distiller()
        theirs = type(
            "Theirs", (fake.ScheduledTrainingPolicy,), {"before_backward_pass": lambda *_: "as it is"}
        )
        monkeypatch.setitem(CLASSES["extensions"], "Theirs", theirs)
        register(fake)
        assert fake.config.Theirs().before_backward_pass() == "as it is"

    @pytest.mark.parametrize("kind", LOSS_POLICIES.values(), ids=LOSS_POLICIES)
    def test_arguments_pass_distillers_filter(self, kind: type):
        fake = fake_distiller()
        register(fake)
        adapted = getattr(fake.config, kind.__name__)
        parameters = inspect.signature(adapted.__init__).parameters
        assert parameters == inspect.signature(kind.__init__).parameters
        assert {"model", "name"} <= parameters.keys()
        assert {item.kind for item in parameters.values()} == {inspect.Parameter.POSITIONAL_OR_KEYWORD}

    @pytest.mark.parametrize(
        ("other", "given"),
        [
            (types.ModuleType("distiller"), r"got <module 'distiller'>, which has no config, file_config"),
            (sgc_distiller, r"got the module at .+__init__.py, which has no config"),
            (None, "got None, which has no config"),
            (folder_of_the_name(), r"got the module at /clones/distiller, which .*run from somewhere else"),
        ],
    )
    def test_refuses_what_is_not_intels(self, other: Any, given: str):
        with pytest.raises(UserError, match=f"Expected Intel's Distiller, {given}") as caught:
            register(other)
        if "somewhere else" not in given:
            assert "not on PyPI" in str(caught.value)
            assert "https://github.com/IntelLabs/distiller" in str(caught.value)


def test_a_policy_that_replaces_comes_first_in_any_runtime():
    supervision = tiny_supervision(TinyTask(), torch.device("cpu"))
    scheduler = sgc_distiller.CompressionScheduler(supervision.generator)
    scheduler.add_policy(OutputDistillationPolicy(supervision.generator), epochs=[0])
    scheduler.add_policy(SelfSupervisedPolicy(supervision.generator), epochs=[0])
    scheduler.on_epoch_begin(0)
    scheduler.on_minibatch_begin(0, 0, 1)
    loss = supervision.step({"real": torch.ones(2, 4), "z": torch.ones(2, 3), "number": 0})
    message = (
        "Expected 'self_supervised', which replaces the loss, before all others that shape it: in epoch 0"
    )
    with pytest.raises(UserError, match=message):
        scheduler.before_backward_pass(0, 0, 1, loss)


SELF = {"class": "SelfSupervisedPolicy", "lambda_dc": 0.5}
EVERY = {"starting_epoch": 0, "ending_epoch": EPOCHS, "frequency": 1}


def gradual(weights: list[str]) -> dict[str, Any]:
    return {
        "class": "AutomatedGradualPruner",
        "initial_sparsity": 0.2,
        "final_sparsity": 0.8,
        "weights": weights,
    }


def schedule(weights: list[str], supervising: dict[str, Any], **options: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "pruners": {"fine": gradual(weights)},
        "extensions": {
            "supervision": supervising,
            "teacher": {"class": "OutputDistillationPolicy", "distill_weight": 3.0, "mode": "add"},
        },
        "lr_schedulers": {
            "rate": {"class": "MultiStepMultiGammaLR", "milestones": [1, 3], "gammas": [0.5, 0.3]}
        },
        "policies": [
            {"lr_scheduler": {"instance_name": "rate"}, **EVERY},
            {"extension": {"instance_name": "supervision"}, **EVERY},
            {"pruner": {"instance_name": "fine", "args": options}, **EVERY, "ending_epoch": EPOCHS - 1},
            {"extension": {"instance_name": "teacher"}, "epochs": [1, 2, 4]},
        ],
    }


def dcgan_supervision() -> Supervision:
    torch.manual_seed(3)
    task = DCGAN(image_size=16, channels=1, width=4, noise=8)
    networks = [task.build(role) for role in ("generator", "discriminator", "generator")]
    return Supervision(task, *networks)


def raw_batch(task: GANTask, epoch: int, step: int) -> dict[str, Any]:
    rng = generator_for(0, "real", epoch, step)
    shape = (4, 4) if task.name == "tiny" else (4, 1, 16, 16)
    raw = {"real": torch.rand(*shape, generator=rng) * 2 - 1, "number": step}
    return task.prepare(raw, generator_for(0, "noise", epoch, step))


def trained(config: Callable[..., Any], supervision: Supervision, file: Path) -> list[Any]:
    """Train with hooks at their places; return names and values of everything after each of them."""
    task, generator = supervision.task, supervision.generator
    optimizer = task.optimizer("generator", generator)
    judge_optimizer = task.optimizer("discriminator", supervision.discriminator)
    scheduler = config(generator, optimizer, str(file))
    seen: list[Any] = []
    for epoch in range(EPOCHS):
        scheduler.on_epoch_begin(epoch, optimizer)
        for step in range(STEPS):
            scheduler.on_minibatch_begin(epoch, step, STEPS, optimizer)
            batch = raw_batch(task, epoch, step)
            outputs = supervision.generate(batch)
            loss, _ = supervision.discriminator_loss(batch, outputs)
            judge_optimizer.zero_grad()
            loss.backward()
            judge_optimizer.step()
            loss = supervision.step(batch, outputs)
            answer = scheduler.before_backward_pass(
                epoch, step, STEPS, loss, optimizer, return_loss_components=True
            )
            seen.append(("loss", answer.overall_loss.detach().clone()))
            seen += [(part.name, part.value.detach().clone()) for part in answer.loss_components]
            optimizer.zero_grad()
            answer.overall_loss.backward()
            scheduler.before_parameter_optimization(epoch, step, STEPS, optimizer)
            optimizer.step()
            scheduler.on_minibatch_end(epoch, step, STEPS, optimizer)
            seen += [(name, param.detach().clone()) for name, param in generator.named_parameters()]
            for name, _ in generator.named_parameters():
                mask = scheduler.zeros_mask_dict[name].mask
                seen.append((f"mask of {name}", torch.zeros(0) if mask is None else mask.clone()))
        scheduler.on_epoch_end(epoch, optimizer, metrics={"min": 1.0})
        seen.append(("rate", torch.tensor(optimizer.param_groups[0]["lr"], dtype=torch.float64)))
    return seen


def assert_same(ours: list[Any], theirs: list[Any]) -> None:
    assert [name for name, _ in ours] == [name for name, _ in theirs]
    for (name, mine), (_, other) in zip(ours, theirs, strict=True):
        assert mine.dtype == other.dtype
        assert torch.equal(mine, other), name


SUPERVISING = {
    "as printed": SELF,
    "by the moving average": {**SELF, "normalizer": "ema", "distance": "sample", "epsilon": 0.001},
    "added": {**SELF, "mode": "add", "term_weights": {"gen": 0.5}},
    "with features": {**SELF, "features": 3.0, "lambda_dc": 0},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "hard masks": {},
    "dense between steps": {"mask_on_forward_only": True, "use_double_copies": True, "keep_mask": True},
    "masks in the middle of an epoch": {"mini_batch_pruning_frequency": 1, "mask_on_forward_only": True},
}


@pytest.mark.distiller
@pytest.mark.filterwarnings("ignore")
class TestInDistiller:
    @pytest.fixture(autouse=True)
    def distiller(self) -> Any:
        import distiller

        register(distiller)
        return distiller

    def test_nothing_of_distillers_is_replaced(self, distiller: Any):
        names = register(distiller)
        assert {*LOSS_POLICIES, "NMPruner", "DependentMasksPolicy"} <= set(names)
        for name, item in vars(distiller.config).items():
            if isinstance(item, type) and name not in names:
                assert not item.__module__.startswith("sgc_distiller"), name
        assert distiller.config.AutomatedGradualPruner is distiller.pruning.AutomatedGradualPruner

    @pytest.mark.parametrize("options", OPTIONS)
    @pytest.mark.parametrize("supervising", SUPERVISING)
    def test_dcgan_is_trained_bit_for_bit_as_here(
        self, distiller: Any, tmp_path: Path, supervising: str, options: str
    ):
        weights = ["main.0.weight", "main.3.weight", "main.6.weight"]
        self.compare(
            distiller,
            tmp_path,
            dcgan_supervision,
            schedule(weights, SUPERVISING[supervising], **OPTIONS[options]),
        )

    def test_linear_networks_too(self, distiller: Any, tmp_path: Path):
        def supervision() -> Supervision:
            return tiny_supervision(TinyTask(), torch.device("cpu"))

        self.compare(distiller, tmp_path, supervision, schedule(["0.weight", "2.weight"], SELF))

    def test_our_pruner_too(self, distiller: Any, tmp_path: Path):
        given = schedule(["main.0.weight"], SELF)
        given["pruners"]["fine"] = {
            "class": "NMPruner",
            "n": 1,
            "m": 4,
            "weights": ["main.0.weight", "main.3.weight"],
        }
        seen = self.compare(distiller, tmp_path, dcgan_supervision, given)
        masks = [mask for name, mask in seen if name == "mask of main.3.weight"]
        assert torch.equal(masks[-1].sum(0), torch.full_like(masks[-1][0], 2.0))

    def compare(
        self, distiller: Any, folder: Path, supervision: Callable[[], Supervision], given: Any
    ) -> list[Any]:
        file = folder / "schedule.yaml"
        file.write_text(yaml.safe_dump(given, sort_keys=False), encoding="utf-8")
        ours = trained(sgc_distiller.file_config, supervision(), file)
        theirs = trained(distiller.file_config, supervision(), file)
        assert_same(ours, theirs)
        return ours

    def test_what_belongs_to_filters_is_masked_as_here(self, distiller: Any):
        path = "sgc_distiller.dependent_masks.DependentMasksPolicy"
        given = {
            "pruners": {
                "wide": {
                    "class": "L1RankedStructureParameterPruner",
                    "group_type": "Channels",
                    "desired_sparsity": 0.5,
                    "weights": ["main.0.weight"],
                }
            },
            "extensions": {"rest": {"class": path, "filters": ["main.0.weight"]}},
            "policies": [
                {"pruner": {"instance_name": "wide"}, "epochs": [0]},
                {"extension": {"instance_name": "rest"}, "epochs": [0]},
            ],
        }
        masks = []
        for config in (sgc_distiller.dict_config, distiller.config.dict_config):
            supervision = dcgan_supervision()
            scheduler = config(supervision.generator, None, copy.deepcopy(given))
            scheduler.on_epoch_begin(0)
            masks.append({name: masker.mask for name, masker in scheduler.zeros_mask_dict.items()})
            given["extensions"]["rest"]["class"] = "DependentMasksPolicy"
        masked = [name for name, mask in masks[0].items() if mask is not None]
        assert masked == ["main.0.weight", "main.1.weight", "main.1.bias"]
        for name in masks[0]:
            assert (masks[0][name] is None) == (masks[1][name] is None)
        assert all(torch.equal(masks[0][name], masks[1][name]) for name in masked)

    def test_our_trainer_drives_distillers_scheduler(self, distiller: Any, tmp_path: Path):
        given = schedule(["0.weight", "2.weight"], SELF, keep_mask=True)
        file = tmp_path / "schedule.yaml"
        file.write_text(yaml.safe_dump(given, sort_keys=False), encoding="utf-8")
        runs = []
        for config in (sgc_distiller.file_config, distiller.file_config):
            supervision = tiny_supervision(TinyTask(), torch.device("cpu"))
            optimizer = supervision.task.optimizer("generator", supervision.generator)
            observer = Silent()
            scheduler = config(supervision.generator, optimizer, str(file))
            trainer = tiny_trainer(
                supervision, observer, scheduler=scheduler, generator_optimizer=optimizer, epochs=EPOCHS
            )
            trainer.run()
            weights = [param.detach().clone() for param in supervision.generator.parameters()]
            runs.append((weights, [(report.terms, report.means, report.lr) for report in observer.reports]))
        (ours, our_reports), (theirs, their_reports) = runs
        assert all(map(torch.equal, ours, theirs))
        assert our_reports == their_reports
        assert "supervision.gc.gen" in our_reports[0][0]
        assert int((ours[0] == 0).sum()) == int(0.8 * ours[0].numel())

    def test_mistakes_keep_their_messages(self, distiller: Any):
        supervision = dcgan_supervision()
        given = schedule(["main.0.weight"], {**SELF, "lambda_dc": -1})
        with pytest.raises(UserError, match="lambda_dc: Expected a number of at least 0, got -1"):
            distiller.config.dict_config(supervision.generator, None, given)
        del supervision
        with pytest.raises(UserError, match="build `supervision = Supervision"):
            distiller.config.dict_config(
                DCGAN(16, 1, 4).build("generator"), None, schedule(["main.0.weight"], SELF)
            )

    def test_the_example_runs(self, distiller: Any):
        done = run_example()
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert lines[0].startswith("dense, epoch 0: loss ")
        assert lines[-1].startswith("sparse, epoch 9: loss ")
        assert lines[-1].split()[-4:] == ["75%", "75%", "75%", "0%"]


def run_example(before: str = "pass") -> subprocess.CompletedProcess[str]:
    """Run the example in a process of its own, after a statement."""
    code = f"import runpy, sys; sys.path.insert(0, {str(ROOT)!r}); {before}; runpy.run_path({str(EXAMPLE)!r})"
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_example_says_what_is_missing():
    done = run_example("sys.modules['distiller'] = None")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("Expected Intel's Distiller, which the README says how to install: ")


def test_the_example_is_short():
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) < 60
