"""What holds for all five GANs: zero loss for equal networks, shapes, test protocols, schedules, resuming."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from gans import GANS, make_batch, samples, supervise
from PIL import Image
from torch import nn

from sgc_distiller.data import batches
from sgc_distiller.errors import UserError
from sgc_distiller.experiment import compress, evaluate, train, warm_up
from sgc_distiller.loss_policies import OutputDistillationPolicy, SelfSupervisedPolicy
from sgc_distiller.names import layer_axes, prunable_names
from sgc_distiller.recording import Console
from sgc_distiller.removers import is_remover
from sgc_distiller.resources import shipped_schedules
from sgc_distiller.schedule import read_schedule
from sgc_distiller.settings import resolve
from sgc_distiller.tasks import TASKS, build_task
from sgc_distiller.tasks.srgan import SRGAN
from sgc_distiller.training import StepReport, Trainer

OF_ALL = [(name, path) for name in GANS for path in (shipped_schedules() / "granularity").glob("*.yaml")]
SCHEDULES = sorted(
    (name, path) for name in GANS if name != "dcgan" for path in (shipped_schedules() / name).glob("*.yaml")
)
EACH = pytest.mark.parametrize("name", list(GANS))


def test_the_five_gans_of_the_paper_are_there():
    assert set(GANS) == set(TASKS)


def loss_of(policy: Any, supervision: Any, batch: Any) -> torch.Tensor:
    supervision.begin(0)
    loss = supervision.step(batch)
    shaped = policy.before_backward_pass(supervision.generator, 0, 0, 1, loss, None)
    value: torch.Tensor = shaped.overall_loss
    return value


@EACH
@pytest.mark.parametrize("distance", ["batch", "sample"])
def test_equal_networks_give_zero_loss_and_zero_gradient(name: str, distance: Any, device: torch.device):
    task = GANS[name]()
    supervision = supervise(task, device)
    supervision.discriminator.requires_grad_(False)
    for policy in (
        SelfSupervisedPolicy(supervision.generator, distance=distance, features=1.0),
        OutputDistillationPolicy(supervision.generator, mode="replace"),
    ):
        loss = loss_of(policy, supervision, make_batch(task, device))
        supervision.generator.zero_grad()
        loss.backward()
        assert loss.item() == 0.0
        gradients = [p.grad for p in supervision.generator.parameters() if p.grad is not None]
        assert gradients
        assert all(bool((gradient == 0).all()) for gradient in gradients)


@EACH
def test_a_changed_student_is_pulled_and_the_teacher_and_statistics_stay(name: str, device: torch.device):
    task = GANS[name]()
    supervision = supervise(task, device)
    supervision.discriminator.requires_grad_(False)
    with torch.no_grad():
        for parameter in supervision.generator.parameters():
            parameter.mul_(0.9)
    teacher = copy.deepcopy(supervision.teacher.state_dict())
    judged = copy.deepcopy(supervision.discriminator.state_dict())
    loss = loss_of(SelfSupervisedPolicy(supervision.generator), supervision, make_batch(task, device))
    loss.backward()
    assert loss.item() > 0
    assert any(bool((p.grad != 0).any()) for p in supervision.generator.parameters() if p.grad is not None)
    after = supervision.teacher.state_dict()
    assert all(torch.equal(after[key], value) for key, value in teacher.items())
    weights = dict(supervision.discriminator.named_parameters())
    assert all(torch.equal(weights[key], judged[key]) for key in weights)


@EACH
def test_terms_have_one_value_a_sample_and_the_names_of_their_weights(name: str, device: torch.device):
    task = GANS[name]()
    supervision = supervise(task, device)
    batch = make_batch(task, device)
    supervision.begin(0)
    supervision.step(batch)
    context = supervision.context("test")
    terms = context.student_generator_terms
    assert set(terms) == set(task.generator_weights)
    judged = {
        **context.student_discriminator_terms,
        **task.own_terms(supervision.discriminator, batch, context.student_outputs, context.real_judgement),
    }
    assert set(judged) == set(task.discriminator_weights)
    assert task.own_term_names == set(judged) - set(context.student_discriminator_terms)
    assert all(value.shape == (3,) for value in [*terms.values(), *judged.values()])


@EACH
def test_the_test_protocol_repeats_itself_and_leaves_the_generator_alone(name: str, device: torch.device):
    task = GANS[name]()
    generator = task.build("generator").to(device)
    before = copy.deepcopy(generator.state_dict())
    data = samples(task, "test")
    for evaluation in task.evaluations(data):
        first, again = (list(evaluation.draw(generator, 8, 5, device)) for _ in range(2))
        assert all(torch.equal(a.pictures, b.pictures) for a, b in zip(first, again, strict=True))
        size = (task.channels, task.image_size, task.image_size)
        assert all(item.pictures.shape[1:] == size for item in first)
        assert all(item.pictures.abs().max() <= 1 for item in first)
        assert evaluation.reference.pixels([0]).shape[1:] == size
    sheet = task.sheet(generator, data, 3, device)
    assert torch.equal(sheet.rows, task.sheet(generator, data, 3, device).rows)
    assert sheet.titles == () or len(sheet.titles) == sheet.columns
    assert generator.training
    after = generator.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


@EACH
def test_options_are_known_again_from_a_generators_weights(name: str):
    task = GANS[name]()
    state = task.build("generator").state_dict()
    told = TASKS[name].options_of(state)
    assert told is not None
    known = {key: value for key, value in told.items() if key not in ("attributes",)}
    assert known == {key: task.options[key] for key in known}
    assert [other for other, kind in TASKS.items() if kind.options_of(state) is not None] == [name]
    again = build_task(name, {**task.options, **told})
    again.build("generator").load_state_dict(state)


class _Quiet:
    def on_step(self, report: StepReport) -> None:
        pass

    def on_epoch(self, trainer: Trainer, report: StepReport) -> dict[str, float]:
        return {}

    def on_epoch_closed(self, trainer: Trainer, report: StepReport) -> None:
        pass


def trainer_of(task: Any, supervision: Any, device: torch.device, epochs: int, **more: Any) -> Trainer:
    data = samples(task)
    return Trainer(
        task,
        supervision,
        task.optimizer("generator", supervision.generator),
        task.optimizer("discriminator", supervision.discriminator),
        batches=lambda start: batches(data, 2, 0, start, device=device),
        steps_per_epoch=1,
        epochs=epochs,
        seed=0,
        observer=_Quiet(),
        **more,
    )


@pytest.mark.parametrize(
    ("name", "path"), [*SCHEDULES, *OF_ALL], ids=[f"{name}-{p.stem}" for name, p in [*SCHEDULES, *OF_ALL]]
)
def test_shipped_schedules_train_and_reach_their_sparsity(name: str, path: Path, device: torch.device):
    task = GANS[name]()
    schedule = read_schedule(path)
    assert schedule.gan is not None
    supervision = supervise(
        task, device, objective=schedule.gan.objective, discriminator_spec=schedule.gan.discriminator
    )
    trainer = trainer_of(task, supervision, device, schedule.epochs)
    trainer.scheduler = schedule.build(supervision.generator, trainer.generator_optimizer)
    trainer.run()
    named_target = re.search(r"_(\d+)$", path.stem)
    wanted = int(named_target[1]) / 100 if named_target else 0.5  # of the granularity study
    named = dict(supervision.generator.named_parameters())
    dense = task.output_layers(supervision.generator) if schedule.gan.output_layer == "dense" else []
    removes = any(is_remover(policy.instance.kind) for policy in schedule.policies)
    outputs = {"stored": 0, "outputs_first": 0, "inputs_first": 1}
    axes = layer_axes(supervision.generator)
    for weight in prunable_names(supervision.generator):
        zeros = int((named[weight] == 0).sum())
        if weight in dense or removes:
            assert zeros == 0
            was = supervision.teacher.get_parameter(weight).shape[outputs[axes[weight]]]
            is_now = named[weight].shape[outputs[axes[weight]]]
            assert is_now == (was if weight in dense else was - int(wanted * was))
        else:
            assert zeros == int(wanted * named[weight].numel()), weight


SMALL: dict[str, dict[str, Any]] = {
    "dcgan": {"image_size": 16, "width": 4},
    "pix2pix": {"image_size": 32, "width": 4},
    "cyclegan": {"image_size": 32, "width": 4, "blocks": 1, "pool_size": 2},
    "stargan": {"image_size": 16, "width": 4, "blocks": 1, "n_critic": 2},
    "srgan": {"image_size": 64, "width": 4, "blocks": 1, "perceptual": "none"},
}


def options(name: str, folder: Path, **more: Any) -> Any:
    return resolve(
        {
            "task": name,
            "task_options": SMALL[name],
            "folder": str(folder),
            "batch_size": 2,
            "steps_per_epoch": 2,
            "epochs": 2,
            "train_size": 0.05,
            "epoch_images": 0,
            "test_images": 8,
            "extractor": "digits",
            "device": "cpu",
            **more,
        }
    )


def load(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(folder / "checkpoint.pth.tar", weights_only=True)
    return content


@pytest.mark.parametrize("name", ["pix2pix", "cyclegan", "stargan", "srgan"])
def test_a_run_that_is_resumed_equals_one_that_is_not(name: str, tmp_path: Path):
    train(options(name, tmp_path / "whole"))
    # The learning rates of a task's own schedule depend on the length of the run: stop it, do not shorten it.
    stopped = options(name, tmp_path / "parts")
    stop = _stop_after_first_epoch()
    with stop, pytest.raises(KeyboardInterrupt):
        train(stopped)
    train(resolve({"resume_from": str(tmp_path / "parts"), "device": "cpu"}))
    whole, parts = load(tmp_path / "whole"), load(tmp_path / "parts")
    for key in ("state_dict", "discriminator_state_dict"):
        for weight, value in whole[key].items():
            assert torch.equal(parts[key][weight], value), f"{key}.{weight}"
    assert (
        whole["pools"].keys()
        == parts["pools"].keys()
        == ({"fake_A", "fake_B"} if name == "cyclegan" else set())
    )
    for pool, kept in whole["pools"].items():
        assert torch.equal(parts["pools"][pool]["pictures"], kept["pictures"])


def _stop_after_first_epoch() -> Any:
    from sgc_distiller.recording import Recorder

    patch = pytest.MonkeyPatch.context()

    class _Stop:
        def __enter__(self) -> None:
            self.patch = patch.__enter__()
            closed = Recorder.on_epoch_closed

            def stop(recorder: Recorder, trainer: Trainer, report: StepReport) -> None:
                closed(recorder, trainer, report)
                raise KeyboardInterrupt

            self.patch.setattr(Recorder, "on_epoch_closed", stop)

        def __exit__(self, *error: Any) -> None:
            patch.__exit__(*error)

    return _Stop()


@EACH
def test_warming_up_moves_the_discriminator_alone(name: str, tmp_path: Path):
    task = build_task(name, {**TASKS[name].options_for(None), **SMALL[name]})
    torch.save(task.build("generator").state_dict(), tmp_path / "G.pth")
    given = options(name, tmp_path / "run", weights_from=str(tmp_path / "G.pth"))
    fresh = resolve({**given.__dict__})
    result = warm_up(fresh)
    content = load(tmp_path / "run")
    before = torch.load(tmp_path / "G.pth", weights_only=True)
    assert all(
        torch.equal(content["state_dict"][key], value)
        for key, value in before.items()
        if not key.endswith(("running_mean", "running_var", "num_batches_tracked"))
    )
    assert result["method"] == "warm-up"
    start = build_like(task, "discriminator", content)
    assert any(
        not torch.equal(start[key], value) for key, value in content["discriminator_state_dict"].items()
    )


def build_like(task: Any, role: Any, content: dict[str, Any]) -> dict[str, torch.Tensor]:
    network: nn.Module = task.build(role)
    return network.state_dict()


def test_a_single_cyclegan_generator_is_measured_in_its_direction(tmp_path: Path):
    both = build_task("cyclegan", SMALL["cyclegan"]).build("generator")
    torch.save(both["G_B"].state_dict(), tmp_path / "zebra2horse.pth")
    given = {"weights_from": str(tmp_path / "zebra2horse.pth")}
    with pytest.raises(UserError, match=r"weights of one generator, and both directions are needed"):
        evaluate(options("cyclegan", tmp_path, **given))
    for direction, title in (("BtoA", "FID B to A["), ("AtoB", "FID A to B[")):
        sizes = {**SMALL["cyclegan"], "direction": direction}
        result = evaluate(options("cyclegan", tmp_path, **given, task_options=sizes))
        assert all(
            metric["name"].startswith((title, title.replace("FID", "KID"))) for metric in result["metrics"]
        )
        with pytest.raises(UserError, match="one generator can be measured only"):
            train(options("cyclegan", tmp_path / direction, **given, task_options=sizes))


def test_pictures_too_small_for_tiles_are_measured_one_by_one(tmp_path: Path):
    for split, size in (("train", 96), ("test", 48)):
        for index in range(2):
            folder = tmp_path / "sr" / split
            folder.mkdir(parents=True, exist_ok=True)
            pixels = torch.randint(0, 256, (size, size, 3), generator=torch.Generator().manual_seed(index))
            Image.fromarray(pixels.to(torch.uint8).numpy()).save(folder / f"{index}.png")
    task = SRGAN(64, width=4, blocks=1, loss="l1")
    state = task.build("generator").state_dict()
    torch.save(state, tmp_path / "g.pth")
    given = {"weights_from": str(tmp_path / "g.pth"), "data": str(tmp_path / "sr")}
    result = evaluate(options("srgan", tmp_path, **given))
    assert [metric["name"].partition(" ")[0] for metric in result["metrics"]] == [
        "PSNR",
        "PSNR",
        "SSIM",
        "SSIM",
    ]
    assert all("2 images" in metric["name"] for metric in result["metrics"])


def test_all_pictures_of_a_test_set_are_enlarged():
    task = SRGAN(64, width=4, blocks=1, loss="l1")
    data = samples(task, "test")
    (evaluation,) = task.evaluations(data)
    drawn = list(evaluation.draw(task.build("generator"), 5000, 0, torch.device("cpu")))
    assert len(drawn) == len(data)


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        (
            "stargan",
            {"layers": "foo"},
            "stargan: expected layers to be a whole number .* got 'foo'",
        ),
        ("stargan", {"layers": 0}, "stargan: expected layers to be a whole number of at least 1, got 0"),
        (
            "stargan",
            {"attributes": 5},
            "expected a list of names, or a text of names .* got 5",
        ),
        ("stargan", {"exclusive": ["Hat"]}, r"expected 'exclusive' to name attributes \(.*\), got 'Hat'"),
        ("stargan", {"lr_decay": "up"}, "stargan: expected lr_decay 'upstream' or 'linear', got 'up'"),
        ("stargan", {"image_size": 66}, "stargan: expected image_size to be a multiple of 4, got 66"),
        ("pix2pix", {"dropout": "maybe"}, "pix2pix: expected dropout to be true or false, got 'maybe'"),
        ("pix2pix", {"direction": "CtoD"}, "pix2pix: expected direction 'AtoB' or 'BtoA', got 'CtoD'"),
        ("pix2pix", {"image_size": 48}, "pix2pix: expected image_size to be a multiple of 32, got 48"),
        ("pix2pix", {"load_size": 10}, "expected load_size to be a whole number of at least 256, got 10"),
        ("cyclegan", {"direction": "up"}, "cyclegan: expected direction both, AtoB or BtoA, got 'up'"),
        ("cyclegan", {"pool_size": -1}, "cyclegan: expected pool_size to be a whole number of at least 0"),
        (
            "srgan",
            {"pixel_weight": float("inf")},
            "srgan: expected pixel_weight to be a number of at least 0",
        ),
        ("srgan", {"scale": 3}, "srgan: expected scale 2 or 4, got 3"),
        ("srgan", {"vgg_weights": 5}, "srgan: expected vgg_weights to be the path of a file, got 5"),
        ("srgan", {"perceptual": "vgg19", "vgg_weights": "gone.pth"}, "gone.pth: no such file"),
    ],
)
def test_options_that_mean_nothing_are_refused(name: str, wrong: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        build_task(name, wrong)


def test_a_run_of_another_task_is_told(tmp_path: Path):
    train(options("pix2pix", tmp_path / "run"))
    for given in ({"weights_from": str(tmp_path / "run")}, {"resume_from": str(tmp_path / "run")}):
        with pytest.raises(UserError, match=r"is of a run of 'pix2pix', expected 'stargan'"):
            resolve({"task": "stargan", **given})


def test_basicsr_v00_trains_as_it_did():
    task = SRGAN(64, width=4, blocks=1, generator="srresnet", perceptual="none")
    assert task.betas == (0.9, 0.999)
    assert [task.lr_factor(e, 500) for e in (49, 50, 100, 200, 300, 499)] == [
        1,
        0.5,
        0.25,
        0.125,
        0.0625,
        0.0625,
    ]
    before = SRGAN(64, width=4, blocks=1, generator="srresnet", loss="l1")
    assert [before.lr_factor(e, 10) for e in (0, 2, 4, 9)] == [1, 0.5, 0.25, 0.0625]
    assert (before.epochs, SRGAN(perceptual="none").epochs) == (491, 196)
    judge = task.build("discriminator")
    weight = judge.conv4_1.weight
    assert weight.std().item() == pytest.approx((2 / weight[0].numel()) ** 0.5, rel=0.05)


def test_training_goes_on_from_a_generator_that_comes_without_its_discriminator(tmp_path: Path):
    task = build_task("pix2pix", SMALL["pix2pix"])
    torch.save(task.build("generator").state_dict(), tmp_path / "latest_net_G.pth")
    notes: list[str] = []

    class Heard(Console):
        def note(self, text: str, once: bool = False) -> None:
            notes.append(text)

    given = options("pix2pix", tmp_path / "run", weights_from=str(tmp_path / "latest_net_G.pth"))
    train(given, Heard())
    assert f"{tmp_path / 'latest_net_G.pth'} holds no discriminator: it starts untrained" in notes
    with pytest.raises(UserError, match=r"holds a generator but no discriminator, .* warm-up-discriminator"):
        compress(
            options(
                "pix2pix",
                tmp_path / "sparse",
                weights_from=str(tmp_path / "latest_net_G.pth"),
                schedule=str(shipped_schedules() / "pix2pix" / "paper_50.yaml"),
            )
        )
