"""Regularizers: their terms, their masks, what they name; and the policy that keeps pruners' masks."""
# ruff: noqa: E501  (messages stand on one line)

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TinyTask, tiny_supervision, tiny_trainer
from torch import Tensor, nn

from sgc_distiller import RegularizationPolicy, dict_config
from sgc_distiller.element_pruners import SparsityLevelParameterPruner
from sgc_distiller.errors import ScheduleError, UserError
from sgc_distiller.masks import MaskSet, ParameterMasker
from sgc_distiller.policies import PolicyLoss, ScheduledTrainingPolicy
from sgc_distiller.pruning_policy import PruningPolicy
from sgc_distiller.regularizers import (
    GroupLassoRegularizer,
    GroupVarianceRegularizer,
    L1Regularizer,
    ParameterRegularizer,
    group_lasso,
)
from sgc_distiller.schedule import CLASSES, read_schedule
from sgc_distiller.scheduler import CompressionScheduler

# which axes of a weight lie inside a group
INSIDE: dict[str, tuple[int, ...]] = {
    "2D": (2, 3),
    "1D": (3,),
    "3D": (1, 2, 3),
    "Filters": (1, 2, 3),
    "Channels": (0, 2, 3),
    "4D": (0, 1, 2, 3),
    "Rows": (1,),
    "Cols": (0,),
}


def lasso_by_hand(weight: np.ndarray, group: str) -> float:
    """Return the sum of the groups' norms in numpy's float64."""
    total = 0.0
    for part in group.split("+"):
        squares = np.square(weight.astype(np.float64)).sum(axis=INSIDE[part])
        total += np.sqrt(squares + (1e-8 if part == "Channels" else 0.0)).sum()
    return total


class Network(nn.Module):
    """Weights of all shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.up = nn.ConvTranspose2d(4, 5, 2)
        self.fc = nn.Linear(6, 2)
        self.one = nn.Conv2d(1, 2, 3)


def run_epochs(
    scheduler: CompressionScheduler, optimizer: torch.optim.Optimizer, epochs: range, steps: int = 3
) -> None:
    """Train a network of linear layers towards noise that depends on the step alone."""
    model = scheduler.model
    for epoch in epochs:
        scheduler.on_epoch_begin(epoch, optimizer)
        for step in range(steps):
            take_step(model, scheduler, optimizer, epoch, step, steps)
        scheduler.on_epoch_end(epoch, optimizer)


def take_step(
    model: nn.Module,
    scheduler: CompressionScheduler,
    optimizer: torch.optim.Optimizer,
    epoch: int,
    step: int,
    steps: int,
) -> None:
    where = (epoch, step, steps)
    scheduler.on_minibatch_begin(*where, optimizer)
    rng = torch.Generator().manual_seed(100 * epoch + step)
    loss = torch.zeros(())
    for param in model.parameters():
        loss = loss + (param - 0.2 * torch.randn(param.shape, generator=rng)).square().sum()
    loss = scheduler.before_backward_pass(*where, loss, optimizer)
    optimizer.zero_grad()
    loss.backward()
    scheduler.before_parameter_optimization(*where, optimizer)
    optimizer.step()
    scheduler.on_minibatch_end(*where, optimizer)


def momentum(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


class TestTerms:
    @pytest.mark.parametrize(
        "group", ["2D", "1D", "3D", "Filters", "Channels", "4D", "Channels+4D", "4D+Channels"]
    )
    def test_group_lasso_of_a_convolution(self, group: str, device: torch.device):
        weight = torch.randn(4, 3, 2, 5, device=device)
        regularizer = GroupLassoRegularizer("r", None, {"w": [0.3, group]})
        found = regularizer.loss(weight, "w", torch.tensor(2.0, device=device), {})
        expected = 2.0 + 0.3 * lasso_by_hand(weight.cpu().numpy(), group)
        assert found.item() == pytest.approx(expected, rel=1e-6)

    @pytest.mark.parametrize("group", ["Rows", "Cols", "Rows+Cols", "Cols+Rows"])
    def test_group_lasso_of_a_matrix(self, group: str):
        weight = torch.randn(4, 7)
        regularizer = GroupLassoRegularizer("r", None, {"w": [0.3, group]})
        found = regularizer.loss(weight, "w", torch.zeros(()), {})
        assert found.item() == pytest.approx(0.3 * lasso_by_hand(weight.numpy(), group), rel=1e-6)

    def test_by_hand(self):
        weight = torch.tensor([[3.0, 4.0], [0.0, -12.0]])  # rows 5 and 12, columns 3 and sqrt(160)
        assert group_lasso(weight, ["Rows"]).item() == 17.0
        assert group_lasso(weight, ["Cols"]).item() == pytest.approx(3 + 160**0.5)
        l1 = L1Regularizer("r", None, {"w": 0.5})
        assert l1.loss(weight, "w", torch.tensor(1.0), {}).item() == 1.0 + 0.5 * 19
        kernels = weight.reshape(1, 2, 1, 2)  # channels of norms 5 and 12: variance 49 / 2
        variance = GroupVarianceRegularizer("r", None, {"w": [0.5, "Channels"]})
        assert variance.loss(kernels, "w", torch.zeros(()), {}).item() == pytest.approx(0.5 / 24.5)

    @pytest.mark.parametrize("layer", [nn.Conv2d(4, 6, 3), nn.ConvTranspose2d(4, 6, 3)])
    def test_with_axes_of_modules_groups_are_true_outputs_and_inputs(self, layer: nn.Module):
        for group, count in (("Filters", 6), ("Channels", 4)):
            regularizer = GroupLassoRegularizer("r", layer, {"weight": [1.0, group]}, "Max")
            regularizer.bind(layer, convention="module")
            axis = list(layer.weight.shape).index(count)
            inside = tuple(dim for dim in range(4) if dim != axis)
            expected = np.sqrt(np.square(layer.weight.detach().double().numpy()).sum(axis=inside)).sum()
            assert regularizer.loss(layer.weight, "weight", torch.zeros(()), {}).item() == pytest.approx(
                expected, rel=1e-6
            )
            masks = MaskSet(layer)
            weight = torch.zeros_like(layer.weight)
            weight.select(axis, 1).fill_(2.0)
            regularizer.threshold(weight, "weight", masks)
            assert torch.equal(masks["weight"].mask, weight / 2)

    def test_variance_with_axes_of_modules(self):
        layer = nn.ConvTranspose2d(4, 6, 3)
        norms = np.sqrt(np.square(layer.weight.detach().double().numpy()).sum(axis=(1, 2, 3)))
        regularizer = GroupVarianceRegularizer("r", layer, {"weight": [1.0, "Channels"]})
        regularizer.bind(layer, convention="module")
        found = regularizer.loss(layer.weight, "weight", torch.zeros(()), {}).item()
        assert found == pytest.approx(1 / norms.var(ddof=1), rel=1e-4)

    @pytest.mark.parametrize("group", ["2D", "1D", "3D", "Channels", "4D", "Channels+4D"])
    def test_gradients_of_groups_of_zeros_are_zero(self, group: str, device: torch.device):
        weight = torch.zeros(2, 2, 2, 2, device=device, requires_grad=True)
        GroupLassoRegularizer("r", None, {"w": [1.0, group]}).loss(
            weight, "w", torch.zeros((), device=device), {}
        ).backward()
        assert torch.equal(weight.grad, torch.zeros_like(weight))

    @settings(deadline=None, max_examples=30)
    @given(scale=st.floats(0.01, 100), seed=st.integers(0, 1000))
    def test_group_lasso_grows_with_the_weights_and_does_not_see_their_order(self, scale: float, seed: int):
        weight = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for kinds in (["Filters"], ["Kernels"], ["Vectors"], ["4D"]):
            once = group_lasso(weight, kinds).item()
            assert group_lasso(scale * weight, kinds).item() == pytest.approx(scale * once)
            assert group_lasso(weight[[2, 0, 1]], kinds).item() == pytest.approx(once)
            assert group_lasso(-weight, kinds).item() == pytest.approx(once)

    def test_other_parameters_add_nothing(self):
        so_far = torch.tensor(2.0)
        assert L1Regularizer("r", None, {"w": 1.0}).loss(torch.ones(3), "v", so_far, {}) is so_far


class TestThresholds:
    def mask(self, regularizer: ParameterRegularizer, weight: Tensor) -> list[Any]:
        masks = {"w": ParameterMasker("w")}
        regularizer.threshold(weight, "w", masks)
        assert masks["w"].is_regularization_mask
        return masks["w"].mask.tolist()

    def test_elements_go_where_they_are_at_most_the_strength(self):
        weight = torch.tensor([0.5, -0.5, 0.75, -0.25, 0.0])
        assert self.mask(L1Regularizer("r", None, {"w": 0.5}, "any"), weight) == [0, 0, 1, 0, 0]

    @pytest.mark.parametrize(
        ("group", "criterion", "expected"),
        [
            ("Rows", "Max", [[1, 1, 1], [0, 0, 0]]),
            ("Cols", "Max", [[1, 0, 0], [1, 0, 0]]),
            ("Rows", "Mean_Abs", [[1, 1, 1], [0, 0, 0]]),  # means 2 and 1 1/3; Distiller: 6 / 2 and 4 / 2
            (
                "Cols",
                "Mean_Abs",
                [[1, 1, 0], [1, 1, 0]],
            ),  # means 2.5, 2 and 0.5; Distiller: thirds of 5, 4, 1
        ],
    )
    def test_groups_by_hand(self, group: str, criterion: str, expected: list[list[int]]):
        weight = torch.tensor([[-3.0, 2.0, 1.0], [2.0, 2.0, 0.0]])
        threshold = 2.0 if criterion == "Max" else 1.5
        regularizer = GroupLassoRegularizer("r", None, {"w": [threshold, group]}, criterion)
        assert self.mask(regularizer, weight) == expected

    @pytest.mark.parametrize("criterion", ["Max", "Mean_Abs"])
    @pytest.mark.parametrize("group", ["2D", "1D", "Filters", "Channels"])
    def test_groups_of_a_convolution(self, group: str, criterion: str, device: torch.device):
        weight = torch.randn(4, 3, 2, 5, device=device)
        sizes = np.abs(weight.cpu().numpy())
        reduce = np.max if criterion == "Max" else np.mean
        sizes = reduce(sizes, axis=INSIDE[group], keepdims=True)
        threshold = float(np.median(sizes)) + 1e-4
        regularizer = GroupLassoRegularizer("r", None, {"w": [threshold, group]}, criterion)
        expected = np.broadcast_to(sizes > threshold, weight.shape)
        assert 0 < expected.sum() < expected.size
        np.testing.assert_array_equal(self.mask(regularizer, weight), expected)

    def test_without_criteria_nothing_is_dropped(self):
        masks = {"w": ParameterMasker("w")}
        L1Regularizer("r", None, {"w": 0.5}).threshold(torch.zeros(3), "w", masks)
        L1Regularizer("r", None, {"w": 0.5}, "Max").threshold(torch.zeros(3), "v", masks)
        assert masks["w"].mask is None
        assert not masks["w"].is_regularization_mask


class TestNames:
    def test_a_name_in_full_goes_before_patterns_and_the_model_gives_the_order(self):
        model = nn.DataParallel(Network())
        regularizer = GroupLassoRegularizer(
            "r", model, {"[uf]*.weight": [0.2, "3D"], "fc.weight": [0.3, "Rows"], "conv.weight": [0.1, "2D"]}
        )
        regularizer.bind(model)
        assert list(regularizer.reg_regims.items()) == [
            ("module.conv.weight", (0.1, "2D")),
            ("module.up.weight", (0.2, "3D")),
            ("module.fc.weight", (0.3, "Rows")),
        ]

    def test_a_norm_named_in_full(self):
        model = Network()
        regularizer = L1Regularizer("r", model, {"norm.weight": 0.25})
        regularizer.bind(model)
        assert regularizer.loss(model.norm.weight, "norm.weight", torch.zeros(()), {}).item() == 1.0

    def test_spared_weights_are_not_matched(self):
        model = Network()
        regularizer = L1Regularizer("r", model, {"*.weight": 0.25})
        regularizer.bind(model, spared={"up.weight", "one.weight"})
        assert list(regularizer.reg_regims) == ["conv.weight", "fc.weight"]

    def test_no_dimension_of_a_transposed_convolution_with_groups_is_its_outputs(self):
        layer = nn.ConvTranspose2d(4, 6, 3, groups=2)
        regularizer = GroupLassoRegularizer("r", layer, {"weight": [0.1, "Filters"]})
        with pytest.raises(UserError, match=r"of shape \(4, 3, 3, 3\) has \(Vectors, 1D, Kernels, 2D, 4D\)"):
            regularizer.bind(layer, convention="module")
        regularizer.bind(layer)

    def test_the_callers_dictionary_is_not_changed_nor_followed(self):
        asked = {"c*.weight": [0.5, "2D"]}
        regularizer = GroupLassoRegularizer("r", None, asked)
        regularizer.bind(Network())
        assert asked == {"c*.weight": [0.5, "2D"]}
        asked["c*.weight"][0] = 9.0
        assert regularizer.reg_regims == {"conv.weight": (0.5, "2D")}


LASSO, VARIANCE, L1 = "GroupLassoRegularizer", "GroupVarianceRegularizer", "L1Regularizer"
GROUPS = (
    r"\(Vectors, 1D, Kernels, 2D, Filters, 3D, Channels, Rows, Cols, 4D, Rows\+Cols, Cols\+Rows, "
    r"Channels\+4D, 4D\+Channels\)"
)
MISTAKES_OF_ARGUMENTS: list[tuple[str, str, str]] = [
    (L1, "{}", "4: regularizers.r.reg_regims: Expected at least one weight, such as {'main.*'.*, got {}"),
    (L1, "[conv.weight]", "4: regularizers.r.reg_regims: Expected at least one weight, .* got \\['conv"),
    (
        L1,
        "{conv.weight: high}",
        "4: regularizers.r.reg_regims.conv.weight: Expected a number of at least 0, got 'high'",
    ),
    (L1, "{conv.weight: -0.1}", "regims.conv.weight: Expected a number of at least 0, got -0.1"),
    (L1, "{conv.weight: [0.1, 2D]}", r"regims.conv.weight: Expected a number of at least 0, got \[0.1, '2D'"),
    (LASSO, "{conv.weight: 0.1}", r"regims.conv.weight: Expected \[strength, group type\], got 0.1"),
    (LASSO, "{conv.weight: 2D}", r"regims.conv.weight: Expected \[strength, group type\], got '2D'"),
    (LASSO, "{conv.weight: [2D, 0.1]}", r"weight\[0\]: Expected a number of at least 0, got '2D'"),
    (
        LASSO,
        "{conv.weight: [0.1, Foo]}",
        rf"4: regularizers.r.reg_regims.conv.weight\[1\]: Expected a group type {GROUPS}, got 'Foo'",
    ),
    (LASSO, "{conv.weight: [0.1, Filter]}", r"got 'Filter'. Did you mean 'Filters'\?"),
    (LASSO, "{conv.weight: [0.1, [2D]]}", r"weight\[1\]: Expected a group type .*, got \['2D'\]"),
    (
        LASSO,
        "{conv.weight: [0.1, 4D]}\n    threshold_criteria: Max",
        r"4: regularizers.r.reg_regims.conv.weight\[1\]: Expected a group type that can have a threshold "
        r"\(Vectors, 1D, Kernels, 2D, Filters, 3D, Channels, Rows, Cols\), got '4D'. Leave out",
    ),
    (
        LASSO,
        "{fc.weight: [0.1, Rows+Cols]}\n    threshold_criteria: Mean_Abs",
        r"regims.fc.weight\[1\]: Expected a group type that can have a threshold .* got 'Rows\+Cols'",
    ),
    (
        LASSO,
        "{conv.weight: [0.1, 3D]}\n    threshold_criteria: L2",
        "5: regularizers.r.threshold_criteria: Expected one of Max, Mean_Abs, got 'L2'",
    ),
    (
        VARIANCE,
        "{conv.weight: [0.1, Filters]}",
        r"regims.conv.weight\[1\]: Expected a group type \(Channels\), got 'Filters'",
    ),
    (
        VARIANCE,
        "{conv.weight: [0.1, Channels]}\n    threshold_criteria: Max",
        r"5: regularizers.r.threshold_criteria: Expected an argument of GroupVarianceRegularizer \(class, "
        r"reg_regims\), got 'threshold_criteria'",
    ),
    ("L1Regulariser", "{}", "3: regularizers.r.class: Expected a class .* Did you mean 'L1Regularizer'"),
    (
        "SparsityLevelParameterPruner",
        "{}",
        "3: regularizers.r.class: Expected a class for 'regularizers'; .* belongs under 'pruners'",
    ),
]
MISTAKES_OF_NAMES: list[tuple[str, str, str]] = [
    (
        L1,
        "{conv.wieght: 0.1}",
        "4: regularizers.r.reg_regims.conv.wieght: Expected the name of a parameter .* Did you mean 'conv.weight'",
    ),
    (L1, "{'x*': 0.1}", r"4: regularizers.r.reg_regims.x\*: Expected a pattern that matches a weight"),
    (
        L1,
        "{'c*': 0.1, '*v.weight': 0.2}",
        r"regims.\*v.weight: Expected one value for 'conv.weight', got 0.2 and, from 'c\*', 0.1",
    ),
    (
        LASSO,
        "{conv.weight: [0.1, 2D], module.conv.weight: [0.1, 3D]}",
        r"regims.module.conv.weight: Expected one value for 'conv.weight', got \[0.1, 3D\] and, .* \[0.1, 2D\]",
    ),
    (
        LASSO,
        "{fc.weight: [0.1, 3D]}",
        r"4: regularizers.r.reg_regims.fc.weight\[1\]: Expected a group type that 'fc.weight' of shape \(2, 6\) "
        r"has \(Channels, Rows, Cols, Rows\+Cols, Cols\+Rows\), got '3D'",
    ),
    (
        LASSO,
        "{'*.weight': [0.1, Rows]}",
        r"regims.\*.weight\[1\]: Expected a group type that 'conv.weight' of shape .* got 'Rows'",
    ),
    (
        LASSO,
        "{norm.bias: [0.1, Channels]}",
        r"a group type that 'norm.bias' of shape \(4,\) has \(there is none\)",
    ),
    (
        VARIANCE,
        "{one.weight: [0.1, Channels]}",
        r"regims.one.weight: Expected a weight with two or more channels, got 'one.weight' of shape \(2, 1, 3, 3\)",
    ),
]
POLICY = "policies:\n- regularizer: {instance_name: r}\n  epochs: [0]\n"


def write(folder: Path, kind: str, regims: str, policy: str = POLICY, rest: str = "") -> Path:
    path = folder / "schedule.yaml"
    path.write_text(
        f"regularizers:\n  r:\n    class: {kind}\n    reg_regims: {regims}\n{policy}{rest}", encoding="utf-8"
    )
    return path


class TestMistakes:
    @pytest.mark.parametrize(("kind", "regims", "message"), MISTAKES_OF_ARGUMENTS)
    def test_in_arguments_are_refused_when_the_file_is_read(
        self, kind: str, regims: str, message: str, tmp_path: Path
    ):
        path = write(tmp_path, kind, regims)
        with pytest.raises(ScheduleError, match=message) as caught:
            read_schedule(path)
        assert str(caught.value).startswith(f"{path}:")

    @pytest.mark.parametrize(("kind", "regims", "message"), MISTAKES_OF_NAMES)
    def test_in_names_are_refused_when_the_schedule_is_built(
        self, kind: str, regims: str, message: str, tmp_path: Path
    ):
        schedule = read_schedule(write(tmp_path, kind, regims))
        with pytest.raises(ScheduleError, match=message) as caught:
            schedule.build(Network())
        assert str(caught.value).startswith(f"{tmp_path / 'schedule.yaml'}:4: regularizers.r.reg_regims")

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (
                "{no_such: 1}",
                r"6: policies\[0\].regularizer.args.no_such: Expected an option of a regularization policy "
                r"\(keep_mask\), got 'no_such'",
            ),
            ("{keep_masks: true}", r"args.keep_masks: .* Did you mean 'keep_mask'\?"),
            (
                "{keep_mask: 1}",
                r"6: policies\[0\].regularizer.args.keep_mask: Expected true or false, got 1",
            ),
        ],
    )
    def test_in_options_are_refused_when_the_file_is_read(self, args: str, message: str, tmp_path: Path):
        policy = f"policies:\n- regularizer: {{instance_name: r, args: {args}}}\n  epochs: [0]\n"
        with pytest.raises(ScheduleError, match=message):
            read_schedule(write(tmp_path, L1, "{conv.weight: 0.1}", policy))

    def test_a_policy_that_replaces_the_loss_must_come_first(self):
        class Replacing(ScheduledTrainingPolicy):
            mode = "replace"

        schedule = {
            "regularizers": {"r": {"class": L1, "reg_regims": {"conv.weight": 0.1}}},
            "extensions": {"x": {"class": "Replacing"}},
            "policies": [
                {"regularizer": {"instance_name": "r"}, "epochs": [0]},
                {"extension": {"instance_name": "x"}, "epochs": [0]},
            ],
        }
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(CLASSES["extensions"], "Replacing", Replacing)
            with pytest.raises(
                ScheduleError, match="Expected 'x', which replaces the loss, before 'r', .* Swap the two"
            ):
                dict_config(Network(), None, schedule)
            schedule["policies"].reverse()
            dict_config(Network(), None, schedule)

    @pytest.mark.parametrize("regularizer", [object(), SparsityLevelParameterPruner("p", {"w": 0.5})])
    def test_what_has_no_loss_is_no_regularizer(self, regularizer: Any):
        with pytest.raises(UserError, match=r"Expected a regularizer with loss\(\), but .* has no loss"):
            RegularizationPolicy(regularizer)

    def test_criteria_without_a_threshold_are_refused(self):
        class Half:
            threshold_criteria = "Max"

            def loss(self, *args: Any) -> None:
                pass

        with pytest.raises(UserError, match=r"with loss\(\) and threshold\(\), but Half has no threshold"):
            RegularizationPolicy(Half())


class Matrices(nn.Module):
    """Two matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 4, bias=False)
        self.b = nn.Linear(4, 5, bias=False)


def policy_schedule(regularizer: dict[str, Any], args: dict[str, Any], **epochs: Any) -> dict[str, Any]:
    usual = {"starting_epoch": 0, "ending_epoch": 3, "frequency": 1}
    policy = {"regularizer": {"instance_name": "r", "args": args}, **(epochs or usual)}
    return {"regularizers": {"r": regularizer}, "policies": [policy]}


def with_pruner(schedule: dict[str, Any], args: dict[str, Any] | None = None, first: bool = True) -> None:
    """Add a pruner that takes half of ``a.weight``, before or after the regularizer."""
    schedule["pruners"] = {"p": {"class": "SparsityLevelParameterPruner", "levels": {"a.weight": 0.5}}}
    policy = {"pruner": {"instance_name": "p", "args": args or {}}, "epochs": [0]}
    schedule["policies"].insert(0 if first else 1, policy)


HALF_L1 = {"class": L1, "reg_regims": {"a.weight": 0.1, "b.weight": 0.05}, "threshold_criteria": "Max"}


class TestPolicy:
    def before_backward(self, policy: Any, model: nn.Module, loss: Tensor) -> PolicyLoss:
        found: PolicyLoss = policy.before_backward_pass(model, 0, 0, 1, loss, MaskSet(model))
        return found

    def test_the_term_has_the_classs_name_and_joins_the_loss(self):
        model = Matrices()
        regularizer = L1Regularizer("r", model, {"a.*": 0.5, "b.weight": 0.25})
        loss = torch.tensor(2.0)
        found = self.before_backward(RegularizationPolicy(regularizer), model, loss)
        expected = 0.5 * model.a.weight.abs().sum() + 0.25 * model.b.weight.abs().sum()
        torch.testing.assert_close(found.overall_loss, 2.0 + expected)
        (component,) = found.loss_components
        assert component.name == "L1Regularizer_loss"
        assert not component.value.requires_grad
        torch.testing.assert_close(component.value, expected.detach())
        assert loss.item() == 2.0

    def test_a_term_of_nothing_is_named_too(self):
        model = Matrices()
        policy = RegularizationPolicy(L1Regularizer("r", model, {"a.weight": 0.0}))
        found = self.before_backward(policy, model, torch.tensor(2.0))
        assert [(part.name, part.value.item()) for part in found.loss_components] == [
            ("L1Regularizer_loss", 0.0)
        ]

    def test_only_what_is_named_is_looked_at(self):
        seen = []

        class Watching(L1Regularizer):
            def loss(self, param: Tensor, param_name: str, *rest: Any) -> Tensor:
                seen.append(param_name)
                return super().loss(param, param_name, *rest)

        model = Network()
        policy = RegularizationPolicy(Watching("r", model, {"up.weight": 0.5}))
        self.before_backward(policy, model, torch.tensor(0.0))
        assert seen == ["up.weight"]

    def test_keep_mask_without_a_threshold_is_said_to_do_nothing(self, caplog: pytest.LogCaptureFixture):
        schedule = policy_schedule({"class": L1, "reg_regims": {"a.weight": 0.5}}, {"keep_mask": True})
        with caplog.at_level(logging.WARNING):
            dict_config(Matrices(), None, schedule)
        assert "keep_mask has no effect: the regularizer r makes no masks" in caplog.text

    def test_what_is_small_becomes_zero_once(self):
        model = Matrices()
        optimizer = momentum(model)
        scheduler = dict_config(model, optimizer, policy_schedule(HALF_L1, {}))
        run_epochs(scheduler, optimizer, range(3))
        for param, threshold in ((model.a.weight, 0.1), (model.b.weight, 0.05)):
            size = param.detach().abs()
            assert bool(((size == 0) | (size > threshold)).all())
            assert 0 < int((size == 0).sum()) < size.numel()
        assert all(masker.mask is None for masker in scheduler.zeros_mask_dict.values())
        run_epochs(scheduler, optimizer, range(3, 4))
        assert bool((model.a.weight != 0).all())

    @pytest.mark.parametrize(
        "epochs",
        [
            {"starting_epoch": 0, "ending_epoch": 3, "frequency": 1},
            {"starting_epoch": 0, "ending_epoch": 4, "frequency": 2},  # active in 0 and 2
            {"epochs": [1, 2]},
        ],
    )
    def test_kept_masks_last_from_the_last_active_epoch_on(self, epochs: dict[str, Any]):
        model = Matrices()
        optimizer = momentum(model)
        scheduler = dict_config(model, optimizer, policy_schedule(HALF_L1, {"keep_mask": True}, **epochs))
        run_epochs(scheduler, optimizer, range(2))
        assert scheduler.zeros_mask_dict["a.weight"].mask is None
        run_epochs(scheduler, optimizer, range(2, 3))
        masks = {name: masker.mask.clone() for name, masker in scheduler.zeros_mask_dict.items()}
        zeros = {name: param == 0 for name, param in model.named_parameters()}
        assert all(torch.equal(mask == 0, zeros[name]) for name, mask in masks.items())
        run_epochs(scheduler, optimizer, range(3, 5))
        for name, param in model.named_parameters():
            assert torch.equal(param == 0, zeros[name])
            assert 0 < int(zeros[name].sum()) < param.numel()

    def test_masks_are_kept_where_an_epoch_ends_before_its_last_step(self):
        model = Matrices()
        optimizer = momentum(model)
        scheduler = dict_config(model, optimizer, policy_schedule(HALF_L1, {"keep_mask": True}, epochs=[0]))
        scheduler.on_epoch_begin(0, optimizer)
        take_step(model, scheduler, optimizer, 0, 0, steps=100)
        assert scheduler.zeros_mask_dict["a.weight"].mask is None
        zeros = model.a.weight == 0
        scheduler.on_epoch_end(0, optimizer)
        assert torch.equal(scheduler.zeros_mask_dict["a.weight"].mask == 0, zeros)

    @pytest.mark.parametrize("first", [True, False])
    @pytest.mark.parametrize("keep", [True, False])
    def test_a_pruners_mask_stays_in_force(self, first: bool, keep: bool):
        model = Matrices()
        optimizer = momentum(model)
        schedule = policy_schedule(HALF_L1, {"keep_mask": keep})
        with_pruner(schedule, first=first)
        scheduler = dict_config(model, optimizer, schedule)
        scheduler.on_epoch_begin(0, optimizer)
        mask = scheduler.zeros_mask_dict["a.weight"].mask.clone()
        assert int((mask == 0).sum()) == 12
        run_epochs(scheduler, optimizer, range(2))
        assert torch.equal(scheduler.zeros_mask_dict["a.weight"].mask, mask)
        assert bool((model.a.weight[mask == 0] == 0).all())
        run_epochs(scheduler, optimizer, range(2, 3))
        zeros = model.a.weight == 0
        assert bool(zeros[mask == 0].all())
        assert int(zeros.sum()) > 12
        run_epochs(scheduler, optimizer, range(3, 4))
        expected = (zeros == 0).float() if keep else mask
        assert torch.equal(scheduler.zeros_mask_dict["a.weight"].mask, expected)
        assert torch.equal(model.a.weight == 0, expected == 0)

    def test_weights_masked_on_the_forward_pass_only_stay_dense(self):
        model = Matrices()
        optimizer = momentum(model)
        schedule = policy_schedule({**HALF_L1, "reg_regims": {"b.weight": 0.1}}, {"keep_mask": True})
        with_pruner(schedule, {"mask_on_forward_only": True})
        scheduler = dict_config(model, optimizer, schedule)
        run_epochs(scheduler, optimizer, range(3))
        assert bool((model.a.weight != 0).all())  # the regularizer does not touch it
        zeros = model.b.weight == 0
        run_epochs(scheduler, optimizer, range(3, 4))
        assert torch.equal(model.b.weight == 0, zeros)  # kept is kept
        assert 0 < int(zeros.sum()) < zeros.numel()

    def test_a_kept_mask_on_a_forward_only_weight_is_lasting(self):
        model = Matrices()
        optimizer = momentum(model)
        schedule = policy_schedule(HALF_L1, {"keep_mask": True})
        with_pruner(schedule, {"mask_on_forward_only": True, "use_double_copies": True})
        scheduler = dict_config(model, optimizer, schedule)
        scheduler.on_epoch_begin(0, optimizer)
        mask = scheduler.zeros_mask_dict["a.weight"].mask.clone()
        for step in range(3):
            take_step(model, scheduler, optimizer, 0, step, 3)
        run_epochs(scheduler, optimizer, range(1, 2))
        assert bool((model.a.weight[mask == 0] != 0).any())  # dense: only what is small was dropped
        run_epochs(scheduler, optimizer, range(2, 3))
        zeros = model.a.weight == 0
        assert int((mask == 0).sum()) == 12
        assert bool(zeros[mask == 0].all())
        assert int(zeros.sum()) > 12
        run_epochs(scheduler, optimizer, range(3, 4))
        masker = scheduler.zeros_mask_dict["a.weight"]
        assert torch.equal(model.a.weight == 0, zeros)
        assert torch.equal(masker.mask == 0, zeros)
        assert not masker.use_double_copies

    @pytest.mark.parametrize("epoch", [0, 1, 2])
    @pytest.mark.parametrize("step", [0, 1, 2])
    def test_a_run_resumed_after_any_step_goes_on_as_if_it_had_not_stopped(self, epoch: int, step: int):
        def start() -> tuple[nn.Module, torch.optim.Optimizer, CompressionScheduler]:
            torch.manual_seed(5)
            model = Matrices()
            optimizer = momentum(model)
            schedule = policy_schedule(HALF_L1, {"keep_mask": True})
            with_pruner(schedule)
            return model, optimizer, dict_config(model, optimizer, schedule)

        def go_on(run: Any, epoch: int, step: int) -> None:
            model, optimizer, scheduler = run
            for index in range(step, 3):
                take_step(model, scheduler, optimizer, epoch, index, 3)
            scheduler.on_epoch_end(epoch, optimizer)
            run_epochs(scheduler, optimizer, range(epoch + 1, 5))

        whole, stopped, resumed = start(), start(), start()
        run_epochs(whole[2], whole[1], range(5))
        run_epochs(stopped[2], stopped[1], range(epoch))
        stopped[2].on_epoch_begin(epoch, stopped[1])
        for index in range(step + 1):
            take_step(*(stopped[0], stopped[2], stopped[1]), epoch, index, 3)
        file = io.BytesIO()
        torch.save([part.state_dict() for part in stopped], file)
        file.seek(0)
        states = torch.load(file, weights_only=True)
        for part, state in zip(resumed, states, strict=True):
            part.load_state_dict(state)
        go_on(resumed, epoch, step + 1)
        for name, param in whole[0].named_parameters():
            assert torch.equal(param, dict(resumed[0].named_parameters())[name])
            masks = [run[2].zeros_mask_dict[name].mask for run in (whole, resumed)]
            assert torch.equal(*masks)
            assert int((masks[0] == 0).sum()) > 0

    def test_axes_are_stored_in_plain_files_and_the_modules_in_files_with_gan(self):
        regularizer = {"class": LASSO, "reg_regims": {"up.weight": [1.0, "Filters"]}}
        for section, axis in (({}, 0), ({"gan": {}}, 1)):
            model = Network()
            scheduler = dict_config(model, None, {**policy_schedule(regularizer, {}), **section})
            found = scheduler.before_backward_pass(0, 0, 1, torch.zeros(()))
            inside = tuple(dim for dim in range(4) if dim != axis)
            expected = np.sqrt(np.square(model.up.weight.detach().double().numpy()).sum(axis=inside)).sum()
            assert found.item() == pytest.approx(expected, rel=1e-6)


class InPlace:
    """A regularizer as Distiller's users write them: the term is added in place, masks are used once."""

    def __init__(self, name: str, model: nn.Module, reg_regims: Any, threshold_criteria: Any = None) -> None:
        self.reg_regims, self.threshold_criteria = reg_regims, threshold_criteria

    def loss(self, param: Tensor, param_name: str, regularizer_loss: Tensor, zeros_mask_dict: Any) -> Any:
        if param_name in self.reg_regims:
            regularizer_loss += self.reg_regims[param_name] * param.square().sum()
        return self.answer(regularizer_loss)

    def answer(self, regularizer_loss: Tensor) -> Any:
        return regularizer_loss

    def threshold(self, param: Tensor, param_name: str, zeros_mask_dict: Any) -> None:
        if param_name in self.reg_regims:
            zeros_mask_dict[param_name].mask = param.abs() > 0.1
            zeros_mask_dict[param_name].is_regularization_mask = True


class AnswersNothing(InPlace):
    def answer(self, regularizer_loss: Tensor) -> Any:
        return None


class AnswersElse(InPlace):
    def answer(self, regularizer_loss: Tensor) -> Any:
        return torch.tensor(100.0)  # what Distiller does not look at


class Returning(InPlace):
    def loss(self, param: Tensor, param_name: str, regularizer_loss: Tensor, zeros_mask_dict: Any) -> Any:
        if param_name in self.reg_regims:
            return regularizer_loss + self.reg_regims[param_name] * param.square().sum()
        return regularizer_loss


class Lasting(InPlace):
    """Sets masks as a pruner does, looking at the mask that is there."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.seen: list[Tensor | None] = []

    def threshold(self, param: Tensor, param_name: str, zeros_mask_dict: Any) -> None:
        if param_name in self.reg_regims:
            masker = zeros_mask_dict[param_name]
            self.seen.append(masker.mask)
            small = (param.abs() > 0.1).float()
            masker.mask = small if masker.mask is None else small * masker.mask


class TestRegularizersOfUsers:
    @pytest.mark.parametrize("kind", [InPlace, AnswersNothing, Returning])
    def test_terms_are_added_in_place_or_returned(self, kind: type[InPlace]):
        model = Matrices()
        policy = RegularizationPolicy(kind("r", model, {"a.weight": 0.5, "b.weight": 2.0}))
        loss, (part,) = policy.before_backward_pass(model, 0, 0, 1, torch.tensor(1.0), MaskSet(model))
        expected = 0.5 * model.a.weight.square().sum() + 2.0 * model.b.weight.square().sum()
        torch.testing.assert_close(loss, 1.0 + expected)
        assert part.name == f"{kind.__name__}_loss"
        loss.backward()
        torch.testing.assert_close(model.b.weight.grad, 4.0 * model.b.weight.detach())

    def test_what_is_returned_beside_adding_in_place_does_not_count(self):
        model = nn.Linear(3, 2, bias=False)
        policy = RegularizationPolicy(AnswersElse("r", model, {"weight": 0.5}))
        loss, _ = policy.before_backward_pass(model, 0, 0, 1, torch.tensor(1.0), MaskSet(model))
        torch.testing.assert_close(loss, 1.0 + 0.5 * model.weight.square().sum())

    @pytest.mark.parametrize("kind", [InPlace, Returning])
    def test_run_from_a_schedule_and_leave_pruners_masks(self, kind: type[InPlace]):
        model = Matrices()
        optimizer = momentum(model)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(CLASSES["regularizers"], "Mine", kind)
            schedule = policy_schedule(
                {
                    "class": "Mine",
                    "reg_regims": {"a.weight": 0.1, "b.weight": 0.1},
                    "threshold_criteria": "mine",
                },
                {"keep_mask": True},
            )
            with_pruner(schedule)
            scheduler = dict_config(model, optimizer, schedule)
        scheduler.on_epoch_begin(0, optimizer)
        mask = scheduler.zeros_mask_dict["a.weight"].mask.clone()
        run_epochs(scheduler, optimizer, range(2))
        assert torch.equal(scheduler.zeros_mask_dict["a.weight"].mask, mask)
        assert scheduler.zeros_mask_dict["b.weight"].mask is None
        run_epochs(scheduler, optimizer, range(2, 5))
        for name, param in model.named_parameters():
            kept = scheduler.zeros_mask_dict[name].mask
            assert torch.equal(param == 0, kept == 0)
            assert 0 < int((kept == 0).sum()) < param.numel()
        assert int((model.a.weight == 0).sum()) > 12

    def test_masks_that_are_not_marked_stay_at_once(self):
        model = Matrices()
        optimizer = momentum(model)
        scheduler = CompressionScheduler(model)
        pruner = SparsityLevelParameterPruner("p", {"a.weight": 0.5})
        scheduler.add_policy(PruningPolicy(pruner), epochs=[0])
        regularizer = Lasting("r", model, {"a.weight": 0.0, "b.weight": 0.0}, "mine")
        scheduler.add_policy(RegularizationPolicy(regularizer), epochs=[0])
        scheduler.on_epoch_begin(0, optimizer)
        mask = scheduler.zeros_mask_dict["a.weight"].mask
        assert regularizer.seen == []
        take_step(model, scheduler, optimizer, 0, 0, 3)
        assert torch.equal(regularizer.seen[0], mask)
        assert torch.equal(scheduler.zeros_mask_dict["b.weight"].mask == 0, model.b.weight == 0)
        assert torch.equal(scheduler.zeros_mask_dict["a.weight"].mask == 0, model.a.weight == 0)
        assert bool((model.a.weight[mask == 0] == 0).all())
        assert 0 < int((model.b.weight == 0).sum()) < model.b.weight.numel()

    @pytest.mark.parametrize("stop", [None, 0, 1, 2])
    def test_a_threshold_is_asked_once_a_step(self, stop: int | None):
        class Halving(InPlace):
            """Drops half of what is left, so that one call too many shows."""

            def threshold(self, param: Tensor, param_name: str, zeros_mask_dict: Any) -> None:
                limit = param[param != 0].abs().median()
                zeros_mask_dict[param_name].mask = param.abs() > limit
                zeros_mask_dict[param_name].is_regularization_mask = True

        def start() -> RegularizationPolicy:
            policy = RegularizationPolicy(Halving("r", layer, {}, "half"), keep_mask=True)
            policy.on_epoch_begin(layer, masks, {**meta, "current_epoch": 0})
            return policy

        layer = nn.Linear(16, 4, bias=False)
        masks, meta = MaskSet(layer), {"starting_epoch": 0, "ending_epoch": 1, "frequency": 1}
        policy = start()
        for step in range(3):
            policy.on_minibatch_end(layer, 0, step, 3, masks, None)
            assert (masks["weight"].mask is not None) == (step == 2)
            if step == stop:
                state = policy.state_dict()
                policy = RegularizationPolicy(Halving("r", layer, {}, "half"), keep_mask=True)
                policy.load_state_dict(state)
        policy.on_epoch_end(layer, masks, {**meta, "current_epoch": 0})
        assert int((layer.weight != 0).sum()) == 8  # of 64: 32, 16, 8
        assert int(masks["weight"].mask.sum()) == 8

    def test_a_policy_that_applies_such_masks_itself_uses_them_once(self):
        class OfDistillersKind(ScheduledTrainingPolicy):
            def on_minibatch_end(self, model: nn.Module, *rest: Any) -> None:
                maskers = rest[3]
                for name, param in model.named_parameters():
                    maskers[name].mask = (param.abs() > 0.1).float()
                    maskers[name].is_regularization_mask = True
                    maskers[name].apply_mask(param)

        model = Matrices()
        optimizer = momentum(model)
        scheduler = CompressionScheduler(model)
        scheduler.add_policy(OfDistillersKind(), epochs=[0])
        run_epochs(scheduler, optimizer, range(1))
        assert 0 < int((model.a.weight == 0).sum()) < model.a.weight.numel()
        assert scheduler.zeros_mask_dict["a.weight"].mask is None
        scheduler.zeros_mask_dict["a.weight"].mask = torch.zeros(4, 6)  # one of a pruner, later
        scheduler.zeros_mask_dict["a.weight"].apply_mask(model.a.weight)
        assert scheduler.zeros_mask_dict["a.weight"].mask is not None


def test_terms_of_one_name_are_logged_as_their_sum(device: torch.device):
    supervision = tiny_supervision(TinyTask(), device)
    strengths = {"one": {"0.weight": 0.5}, "two": {"2.weight": 2.0}}
    policies = [{"regularizer": {"instance_name": name}, "epochs": [0]} for name in strengths]
    kinds = {name: {"class": L1, "reg_regims": regims} for name, regims in strengths.items()}
    trainer = tiny_trainer(supervision, epochs=1, steps_per_epoch=1)
    trainer.scheduler = dict_config(
        supervision.generator, trainer.generator_optimizer, {"regularizers": kinds, "policies": policies}
    )
    weights = dict(supervision.generator.named_parameters())
    expected = (0.5 * weights["0.weight"].abs().sum() + 2.0 * weights["2.weight"].abs().sum()).item()
    trainer.run()
    (report,) = trainer.observer.reports
    assert report.means["L1Regularizer_loss"] == pytest.approx(expected, rel=1e-6)
