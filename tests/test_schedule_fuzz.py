"""Schedules out of a grammar of all classes, valid and mangled: they run, or are refused without a trace."""
# ruff: noqa: E501  (grammars stand on one line)

from __future__ import annotations

import contextlib
import copy
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sgc_distiller.errors import ScheduleError, UserError
from sgc_distiller.policies import ScheduledTrainingPolicy
from sgc_distiller.schedule import CLASSES, Schedule, read_schedule
from sgc_distiller.scheduler import CompressionScheduler
from sgc_distiller.supervision import Supervision
from tests.tiny import TinyTask

EXAMPLES = int(os.environ.get("SGC_EXAMPLES", "100"))  # of each test; more of them by hand
quickly = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


class Tiny(nn.Module):
    """A layer of each kind, a norm, and an activation that has the name that Distiller's pruners look for."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.block = nn.Module()
        self.block.conv1 = nn.Conv2d(4, 4, 1)
        self.block.relu1 = nn.ReLU()
        self.up = nn.ConvTranspose2d(4, 6, 2)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block.relu1(self.block.conv1(self.norm(self.conv(x))))
        return self.fc(self.up(x).mean((2, 3)))


CONVS = ["conv.weight", "block.conv1.weight", "up.weight"]
MATRICES = [*CONVS, "fc.weight"]
ALL = [*MATRICES, "conv.bias", "norm.weight", "fc.bias"]
GROUPS = {
    "Elements": ALL, "0D": ALL, "Vectors": CONVS, "1D": CONVS, "Kernels": CONVS, "2D": CONVS,
    "Filters": CONVS, "3D": CONVS, "Channels": MATRICES, "Rows": MATRICES, "Blocks": CONVS,
}  # fmt: skip
share = st.floats(0, 1).map(lambda value: round(value, 3))
size = st.floats(0, 3).map(lambda value: round(value, 3))


def some(names: list[str]) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True)


def values(names: list[str], value: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(names), value, min_size=1, max_size=3)


@st.composite
def rising(draw: st.DrawFn) -> dict[str, float]:
    low = draw(st.floats(0, 0.8))
    return {"initial_sparsity": round(low, 3), "final_sparsity": round(low + draw(st.floats(0.1, 0.2)), 3)}


@st.composite
def ranked(draw: st.DrawFn, kind: str) -> dict[str, Any]:
    group_type = draw(st.sampled_from(sorted(GROUPS)))
    found: dict[str, Any] = {"group_type": group_type, "weights": draw(some(GROUPS[group_type]))}
    if group_type == "Blocks":
        found["kwargs"] = {
            "block_shape": draw(st.sampled_from([[1, 2, 1, 1], [1, 4, 1, 1], [2, 2, 1, 1], [4, 1, 1, 1]]))
        }
    if kind == "RandomLevel":
        return found | {"sparsity_range": sorted(draw(st.lists(share, min_size=2, max_size=2)))}
    found |= draw(rising()) if kind == "AGP" else {"desired_sparsity": draw(share)}
    if group_type in ("Filters", "3D") and draw(st.booleans()):  # with 4 filters each
        return found | {"group_dependency": "Leader"}
    if draw(st.booleans()):
        return found | {"scope": "global"}
    optional = {
        "noise": share,
        "rounding_fn": st.sampled_from(["floor", "ceil", "round"]),
        "group_size": st.sampled_from([1, 2]),
    }
    if group_type == "Blocks":
        optional.pop("group_size")
    return found | {key: draw(value) for key, value in optional.items() if draw(st.booleans())}


@st.composite
def filters(draw: st.DrawFn, kind: str) -> dict[str, Any]:
    names = ["block.conv1.weight"] if kind.startswith("Activation") else CONVS
    amount = draw(rising()) if kind.endswith("AGP") else {"desired_sparsity": draw(share)}
    return {"group_type": draw(st.sampled_from(["Filters", "3D"])), "weights": draw(some(names)), **amount}


thresholds = st.one_of(
    values(CONVS, st.tuples(size, st.sampled_from(["2D", "3D", "Channels"])).map(list)),
    values(["fc.weight"], st.tuples(size, st.sampled_from(["Rows", "Cols"])).map(list)),
)
PRUNERS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "AutomatedGradualPruner": st.builds(lambda rate, names: {**rate, "weights": names}, rising(), some([*ALL, "*", "c*"])),
    "BaiduRNNPruner": st.fixed_dictionaries(
        {"q": size, "ramp_epoch_offset": st.integers(0, 1), "ramp_slope_mult": size, "weights": some(ALL)}
    ),
    "MagnitudeParameterPruner": st.builds(lambda own, rest: {"thresholds": {**own, "*": rest}}, values(ALL, size), st.floats(-1, 0.1)),
    "NMPruner": st.sampled_from([{"n": n, "m": 2 * n, "weights": ["fc.weight", "conv.weight"]} for n in (1,)] + [{"n": 3, "m": 4, "weights": ["up.weight"]}]),
    "SensitivityPruner": st.fixed_dictionaries({"sensitivities": values([*ALL, "*"], size)}),
    "SparsityLevelParameterPruner": st.fixed_dictionaries({"levels": values([*ALL, "*"], share)}),
    "SplicingPruner": st.fixed_dictionaries(
        {"sensitivities": values([*ALL, "*"], size), "low_thresh_mult": share, "hi_thresh_mult": st.floats(1, 2)},
        optional={"sensitivity_multiplier": size},
    ),
    "StructureParameterPruner": st.fixed_dictionaries({"reg_regims": thresholds, "threshold_criteria": st.sampled_from(["Max", "Mean_Abs"])}),
    "RandomLevelStructureParameterPruner": ranked("RandomLevel"),
    **{f"L{order}RankedStructureParameterPruner{end}": ranked(end.lstrip("_")) for order in (1, 2) for end in ("", "_AGP")},
    **{
        f"{kind}FilterPruner{end}": filters(kind + end)
        for kind in ("ActivationAPoZRanked", "ActivationMeanRanked", "Bernoulli", "GradientRanked", "RandomRanked")
        for end in ("", "_AGP")
    },
}  # fmt: skip
lasso = st.sampled_from(["2D", "3D", "Filters", "Channels", "4D", "Channels+4D"])
REGULARIZERS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "L1Regularizer": st.fixed_dictionaries({"reg_regims": values(ALL, size)}, optional={"threshold_criteria": st.just("Mean_Abs")}),
    "GroupLassoRegularizer": st.one_of(
        st.fixed_dictionaries({"reg_regims": values(CONVS, st.tuples(size, lasso).map(list))}),
        st.fixed_dictionaries({"reg_regims": thresholds, "threshold_criteria": st.sampled_from(["Max", "Mean_Abs"])}),
    ),
    "GroupVarianceRegularizer": st.fixed_dictionaries({"reg_regims": values(["conv.weight", "fc.weight"], st.tuples(size, st.just("Channels")).map(list))}),
}  # fmt: skip
RATES: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "StepLR": st.fixed_dictionaries({"step_size": st.integers(1, 3)}, optional={"gamma": share}),
    "MultiStepLR": st.fixed_dictionaries({"milestones": st.just([1, 2])}, optional={"gamma": share}),
    "ConstantLR": st.fixed_dictionaries({}, optional={"factor": share, "total_iters": st.integers(1, 3)}),
    "LinearLR": st.fixed_dictionaries({}, optional={"start_factor": st.floats(0.1, 1), "end_factor": share}),
    "ExponentialLR": st.fixed_dictionaries({"gamma": st.floats(0.1, 1)}),
    "CosineAnnealingLR": st.fixed_dictionaries({"T_max": st.integers(1, 5)}),
    "ReduceLROnPlateau": st.fixed_dictionaries({}, optional={"mode": st.sampled_from(["min", "max"]), "patience": st.integers(0, 2)}),
    "CyclicLR": st.fixed_dictionaries({"base_lr": st.just(0.01), "max_lr": st.just(0.1), "step_size_up": st.integers(1, 4)}),
    "CosineAnnealingWarmRestarts": st.fixed_dictionaries({"T_0": st.integers(1, 3)}),
    "OneCycleLR": st.fixed_dictionaries({"max_lr": st.just(0.1), "total_steps": st.integers(5, 9)}),
    "PolynomialLR": st.fixed_dictionaries({"T_max": st.integers(5, 9), "power": st.floats(0.5, 2)}),
    "MultiStepMultiGammaLR": st.fixed_dictionaries({"milestones": st.just([1, 2]), "gammas": st.lists(share, min_size=2, max_size=2)}),
}  # fmt: skip
remover = st.fixed_dictionaries(
    {"thinning_func_str": st.just("remove_filters"), "arch": st.just("a"), "dataset": st.just("d")}
)
EXTENSIONS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "SelfSupervisedPolicy": st.fixed_dictionaries({}, optional={"lambda_dc": size, "distance": st.sampled_from(["batch", "sample"])}),
    "OutputDistillationPolicy": st.fixed_dictionaries({}, optional={"kind": st.sampled_from(["l1", "mse"]), "distill_weight": size}),
    "IntermediateDistillationPolicy": st.fixed_dictionaries({}, optional={"weight": size}),
    "DependentMasksPolicy": st.fixed_dictionaries({}, optional={"filters": some(["conv.weight", "block.conv1.weight"])}),
    "StructureRemover": remover, "FilterRemover": remover, "ChannelRemover": remover,
}  # fmt: skip
GRAMMAR = {"pruners": PRUNERS, "regularizers": REGULARIZERS, "lr_schedulers": RATES, "extensions": EXTENSIONS}
COMING_BACK = ("Random", "Bernoulli", "Gradient", "ActivationMean")  # their filters, in files with gan
LOSSES = ("SelfSupervisedPolicy", "OutputDistillationPolicy", "IntermediateDistillationPolicy")
gan = st.fixed_dictionaries(
    {},
    optional={
        "objective": st.sampled_from(["task", "none"]),
        "steps_per_epoch": st.integers(1, 3),
        "filter_axis": st.just("stored"),
        "epochs": st.integers(4, 6),
        "discriminator": st.fixed_dictionaries({}, optional={"train": st.booleans(), "real": st.sampled_from(["data", "teacher"])}),
    },
)  # fmt: skip


@st.composite
def options(draw: st.DrawFn, kind: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a pruning policy that go with a pruner."""
    names = [
        "keep_mask",
        "mask_on_forward_only",
        "use_double_copies",
        "discard_masks_at_minibatch_end",
        "skip_first_minibatch",
    ]
    found: dict[str, Any] = {name: draw(st.booleans()) for name in names if draw(st.booleans())}
    if found.get("mask_on_forward_only") and draw(st.booleans()):
        found["mask_gradients"] = True
    if draw(st.booleans()):
        found["mini_batch_pruning_frequency"] = draw(st.integers(0, 2))
    if not kind.endswith(("FilterPruner", "FilterPruner_AGP")) and "conv.weight" in arguments.get(
        "weights", []
    ):
        found["fold_batchnorm"] = draw(st.booleans())
    if kind == "SparsityLevelParameterPruner" and draw(st.booleans()):
        found["levels"] = draw(values(ALL, share))
    return found


@st.composite
def schedules(draw: st.DrawFn) -> dict[str, Any]:
    """Return a valid schedule."""
    made: dict[str, Any] = {}
    policies: list[dict[str, Any]] = []
    chosen = draw(
        st.lists(
            st.one_of(st.tuples(st.just(section), st.sampled_from(sorted(kinds))) for section, kinds in GRAMMAR.items()),
            min_size=1,
            max_size=4,
            unique_by=lambda pair: pair if pair[1] not in LOSSES else LOSSES,
        )
    )  # fmt: skip
    compares_layers = any(kind == "IntermediateDistillationPolicy" for _, kind in chosen)
    for section, kind in chosen:
        if compares_layers and kind.endswith("Remover"):
            continue  # refused together
        name = f"{section[0]}{len(policies)}"
        arguments = draw(GRAMMAR[section][kind])
        made.setdefault(section, {})[name] = {"class": kind, **arguments}
        entry: dict[str, Any] = {"instance_name": name}
        if section == "pruners" and draw(st.booleans()):
            entry["args"] = draw(options(kind, arguments))
        if section == "regularizers" and draw(st.booleans()):
            entry["args"] = {"keep_mask": draw(st.booleans())}
        policy: dict[str, Any] = {section[:-1]: entry}
        if (
            draw(st.booleans())
            or kind.endswith("_AGP")
            or kind in ("AutomatedGradualPruner", "BaiduRNNPruner")
        ):
            start = draw(st.integers(0, 1))
            policy |= {
                "starting_epoch": start,
                "ending_epoch": start + draw(st.integers(2, 3)),
                "frequency": 1,
            }
        else:
            policy["epochs"] = draw(st.sampled_from([[0], [0, 1], [1], [0, 2]]))
        policies.insert(0 if kind in LOSSES else len(policies), policy)  # what replaces the loss comes first
    made["policies"] = policies
    if draw(st.booleans()):
        made["version"] = 1
    if (
        draw(st.integers(0, 3)) == 0
        and "fc.weight" not in str(made.get("pruners"))
        and "Leader" not in str(made)
    ):
        made["gan"] = draw(gan)
        pruners = made.get("pruners", {}).values()
        if any(pruner.get("noise") or pruner["class"].startswith(COMING_BACK) for pruner in pruners):
            soft = {"mask_on_forward_only": True, "use_double_copies": True, "keep_mask": False}
            for policy in policies:  # options of one policy count for the weights of all
                if "pruner" in policy:
                    policy["pruner"]["args"] = {**policy["pruner"].get("args", {}), **soft}
                policy.get("regularizer", {}).pop("args", None)
    return made


class World:
    """A model with its optimizer, its supervision, and a scheduler that has a policy already."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = Tiny()
        task = TinyTask()
        task.sections = lambda generator: [[generator.conv]]
        self.supervision = Supervision(task, self.model, task.build("discriminator"), Tiny())
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.scheduler = CompressionScheduler(self.model)
        self.scheduler.add_policy(ScheduledTrainingPolicy(), ending_epoch=2)
        self.scheduler.zeros_mask_dict["fc.bias"].mask = torch.tensor([0.0, 1, 1, 1])

    def look(self) -> Any:
        """Return everything that a refused schedule must leave as it is, for comparison."""
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        modules = {
            name: ([len(getattr(part, hook)) for hook in hooks], sorted(vars(part)), part.training)
            for name, part in self.model.named_modules()
        }
        params = {
            name: (param.tolist(), param.requires_grad, len(param._backward_hooks or {}), param.grad)
            for name, param in [*self.model.named_parameters(), *self.model.named_buffers()]
        }
        maskers = {
            name: (None if masker.mask is None else masker.mask.tolist(), masker.use_double_copies, masker.mask_on_forward_only, masker.gradient_holders)
            for name, masker in self.scheduler.zeros_mask_dict.items()
        }  # fmt: skip
        optimizer = copy.deepcopy(self.optimizer.state_dict()), sorted(vars(self.optimizer))
        policies = {epoch: list(found) for epoch, found in self.scheduler.policies.items()}
        return modules, params, maskers, optimizer, policies, len(self.scheduler.sched_metadata)

    def run(self, schedule: Schedule) -> None:
        """Train two epochs with two steps each; losses that need a step of the supervision are left out."""
        needs_supervision = any(
            hasattr(policy, "mode") for policies in self.scheduler.policies.values() for policy in policies
        )
        for epoch in range(2):
            self.scheduler.on_epoch_begin(epoch, self.optimizer)
            for step in range(2):
                where = (epoch, step, 2)
                self.scheduler.on_minibatch_begin(*where, self.optimizer)
                loss = self.model(torch.ones(2, 2, 4, 4)).pow(2).mean()
                if not needs_supervision:
                    loss = self.scheduler.before_backward_pass(*where, loss, self.optimizer)
                self.optimizer.zero_grad()
                loss.backward()
                self.scheduler.before_parameter_optimization(*where, self.optimizer)
                self.optimizer.step()
                self.scheduler.on_minibatch_end(*where, self.optimizer)
            self.scheduler.on_epoch_end(epoch, self.optimizer, metrics={"min": 1.0, "max": 1.0})


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    """Warnings of so many schedules are not kept."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def test_the_grammar_has_every_class():
    assert {section: set(kinds) for section, kinds in GRAMMAR.items()} == {
        section: {
            name for name, kind in kinds.items() if kind.__module__.startswith(("sgc_distiller", "torch"))
        }
        for section, kinds in CLASSES.items()
    }


@quickly
@given(schedule=schedules())
def test_valid_schedules_run(schedule: dict[str, Any]):
    before = copy.deepcopy(schedule)
    world = World()
    found = Schedule.from_dict(schedule)
    found.build(world.model, world.optimizer, world.scheduler)
    found.sparsity_plan(world.model)
    with contextlib.suppress(ScheduleError):  # Distiller lacks much
        found.plain(world.model)
    try:
        world.run(found)
    except UserError as error:  # such as what is left of a weight being no multiple of the group size
        if "cannot go on after filters were taken out" not in str(error):
            raise
        return
    world.scheduler.load_state_dict(world.scheduler.state_dict())
    assert schedule == before


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of everything below the top."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, item in items for found in [(*path, key), *paths(item, (*path, key))]]


junk = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-3, 10), st.floats(), st.text(max_size=6), st.just(10**400),
        st.sampled_from(["*", "[", "conv.weight", "Filters", "class", "1e-1", "conv.*", ""]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["class", "*", "a", "weights", "conv.weight"]), inner, max_size=2)),
    max_leaves=4,
)  # fmt: skip


OTHERS = [
    *ALL,
    "nope.weight",
    "*.weight",
    "*",
    *GROUPS,
    "Cols",
    "4D",
    "Leader",
    "global",
    "replace",
    "add",
    *PRUNERS,
]


@st.composite
def mangled(draw: st.DrawFn) -> dict[str, Any]:
    """Return a schedule of which some parts are missing, renamed, swapped or replaced."""
    schedule = copy.deepcopy(draw(schedules()))
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        depth = draw(st.sampled_from([3, 3, 3, 4, 1]))  # most mistakes are made in arguments
        places = [path for path in paths(schedule) if len(path) >= depth] or paths(schedule)
        if not places:
            break
        *above, key = draw(st.sampled_from(places))
        parent: Any = schedule
        for part in above:
            parent = parent[part]
        action = draw(
            st.sampled_from(
                ["drop", "rename", "replace", "replace", "other", "other", "other", "swap", "nest", "twice"]
            )
        )
        if action == "drop":
            del parent[key]
        elif action == "rename" and isinstance(parent, dict):
            new = draw(
                st.one_of(
                    st.text(max_size=5),
                    st.just(f"{key}s"),
                    st.integers(0, 3),
                    st.sampled_from(["args", "epochs", "class", "levels"]),
                )
            )
            parent[new] = parent.pop(key)
        elif action == "swap":
            *others, other_key = draw(st.sampled_from(places))
            other: Any = schedule
            for part in others:
                other = other[part] if isinstance(other, (dict, list)) else other
            if isinstance(other, (dict, list)) and other is not parent:
                parent[key] = copy.deepcopy(other[other_key])
        elif action == "other" and (key in ALL or isinstance(parent[key], (str, int, float))):
            if key in ALL:  # a name in a mapping
                parent[draw(st.sampled_from(sorted({*OTHERS} - {*parent})))] = parent.pop(key)
            elif isinstance(parent[key], str):
                parent[key] = draw(st.sampled_from(OTHERS))
            else:
                parent[key] = draw(st.sampled_from([-1, 0, 1, 2, 3, 0.5, 1.5, True]))
        elif action == "nest":
            parent[key] = draw(st.sampled_from([[parent[key]], {"a": parent[key]}, [[parent[key]]]]))
        elif action == "twice" and isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
        else:
            parent[key] = copy.deepcopy(draw(junk))
    return schedule


@st.composite
def misfits(draw: st.DrawFn) -> dict[str, Any]:
    """Return a schedule of which one or two names are those of other weights or other structures."""
    schedule = copy.deepcopy(draw(schedules().filter(lambda made: made.keys() & {"pruners", "regularizers"})))
    for _ in range(draw(st.integers(1, 2))):
        places = []
        for *above, key in paths(schedule):
            parent: Any = schedule
            for part in above:
                parent = parent[part]
            names = [*ALL, "*"] if key in ALL or str(parent[key]) in ALL else sorted(GROUPS)
            if key in ALL or str(parent[key]) in names:
                places.append((parent, key, names))
        parent, key, names = draw(st.sampled_from(places)) if places else (schedule, "version", ["1"])
        new = draw(st.sampled_from(names))
        if key in ALL:
            parent[new] = parent.pop(key)
        else:
            parent[key] = new
    return schedule


def assert_all_or_nothing(read: Any) -> None:
    world = World()
    before = world.look()
    refusal: ScheduleError | None = None
    try:
        schedule = read()
        schedule.build(world.model, world.optimizer, world.scheduler)
    except ScheduleError as error:
        refusal = error
    if refusal is None:
        world.run(schedule)
        return
    assert refusal.source
    assert str(refusal).startswith(refusal.source)
    assert world.look() == before


@quickly
@given(schedule=st.one_of(mangled(), misfits()))
def test_mangled_schedules_run_or_are_refused_without_a_trace(schedule: dict[str, Any]):
    assert_all_or_nothing(lambda: Schedule.from_dict(schedule))


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """Return a schedule's text with some characters or lines missing, twice, or in the wrong place."""
    flow = draw(st.booleans())
    text = yaml.safe_dump(
        draw(st.one_of(schedules(), misfits())), default_flow_style=flow, allow_unicode=True
    )
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(text)))
        length = draw(st.integers(0, 8))
        action = draw(st.sampled_from(["cut", "insert", "end", "line"]))
        if action == "cut":
            text = text[:place] + text[place + length :]
        elif action == "insert":
            text = (
                text[:place]
                + draw(st.text(alphabet=":{}[]-\t&*!|>'\"%@`\n #,?<=~0a.ü", max_size=4))
                + text[place:]
            )
        elif action == "end":
            text = text[:place]
        else:
            lines = text.splitlines(keepends=True) or [""]
            line = draw(st.sampled_from(lines))
            lines.insert(draw(st.integers(0, len(lines))), line)
            text = "".join(lines)
    return text


@quickly
@given(text=damaged())
def test_damaged_texts_run_or_are_refused_without_a_trace(
    tmp_path_factory: pytest.TempPathFactory, text: str
):
    path: Path = tmp_path_factory.getbasetemp() / "damaged.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    assert_all_or_nothing(lambda: read_schedule(path))
