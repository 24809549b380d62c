"""Users' own classes in schedules: found by dotted path, refused with their place, run unchanged."""

from __future__ import annotations

import ast
import copy
import importlib
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sgc_distiller
from sgc_distiller import class_lookup
from sgc_distiller.errors import ScheduleError, UserError
from sgc_distiller.import_errors import COUNTERPARTS
from sgc_distiller.schedule import CLASSES, Schedule, dict_config, file_config, read_schedule

Write = Callable[..., Path]

PLAIN_POLICY = '''
    class Recorder:
        """Written for Distiller: six methods, nothing of anybody's."""

        def __init__(self, model, name, weight=1.0):
            self.model, self.name, self.weight, self.calls = model, name, weight, []

        def on_epoch_begin(self, *args, **kwargs):
            self.note("on_epoch_begin", args, kwargs)

        def on_minibatch_begin(self, *args, **kwargs):
            self.note("on_minibatch_begin", args, kwargs)

        def before_backward_pass(self, *args, **kwargs):
            self.note("before_backward_pass", args, kwargs)

        def before_parameter_optimization(self, *args, **kwargs):
            self.note("before_parameter_optimization", args, kwargs)

        def on_minibatch_end(self, *args, **kwargs):
            self.note("on_minibatch_end", args, kwargs)

        def on_epoch_end(self, *args, **kwargs):
            self.note("on_epoch_end", args, kwargs)

        def note(self, hook, args, kwargs):
            self.calls.append((hook, [self.plain(item) for item in args], self.plain(kwargs)))

        def plain(self, item):
            if item is self.model:
                return "the model"
            if hasattr(item, "param_groups"):
                return "the optimizer"
            if hasattr(item, "detach"):
                return item.item()
            if hasattr(item, "keys"):
                return {key: self.plain(item[key]) for key in item}
            if hasattr(item, "mask"):
                return "a masker"
            return item
'''


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write a module into a folder of the test; what a test imported is forgotten afterwards."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    before, path, found = set(sys.modules), list(sys.path), dict(class_lookup._FOUND_IN)

    def put(name: str, text: str, folder: Path = tmp_path) -> Path:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text), encoding="utf-8")
        return file

    yield put
    assert sys.path == path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
    class_lookup._FOUND_IN.clear()
    class_lookup._FOUND_IN.update(found)


@pytest.fixture
def no_distiller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make Distiller missing, also where it is installed."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "distiller"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "distiller", None)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def schedule(
    path: str, section: str = "extensions", kind: str = "extension", **arguments: Any
) -> dict[str, Any]:
    return {
        section: {"mine": {"class": path, **arguments}},
        "policies": [
            {kind: {"instance_name": "mine"}, "starting_epoch": 0, "ending_epoch": 3, "frequency": 2}
        ],
    }


def schedule_file(folder: Path, path: str, **arguments: Any) -> Path:
    extra = "".join(f"    {name}: {value}\n" for name, value in arguments.items())
    file = folder / "schedule.yaml"
    file.write_text(
        f"extensions:\n  mine:\n    class: {path}\n{extra}policies:\n"
        "  - extension: {instance_name: mine}\n    epochs: [0]\n",
        encoding="utf-8",
    )
    return file


def drive(scheduler: Any, model: nn.Module, epochs: int = 3, steps: int = 2) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(epochs):
        scheduler.on_epoch_begin(epoch, optimizer, metrics={"min": 2.0})
        for step in range(steps):
            scheduler.on_minibatch_begin(epoch, step, steps, optimizer)
            loss = model(torch.ones(2, 3)).pow(2).mean()
            loss = scheduler.before_backward_pass(epoch, step, steps, loss, optimizer)
            optimizer.zero_grad()
            loss.backward()
            scheduler.before_parameter_optimization(epoch, step, steps, optimizer)
            optimizer.step()
            scheduler.on_minibatch_end(epoch, step, steps, optimizer)
        scheduler.on_epoch_end(epoch, optimizer, metrics={"min": 1.0})


class TestFound:
    @pytest.mark.parametrize("file", ["own_policies.py", "own_package/policies.py"])
    def test_beside_the_schedule(self, write: Write, tmp_path: Path, file: str):
        write(file, PLAIN_POLICY)
        path = file.removesuffix(".py").replace("/", ".") + ".Recorder"
        model = network()
        scheduler = file_config(model, None, schedule_file(tmp_path, path, weight=0.5))
        (policy,) = scheduler.policies[0]
        assert (policy.model, policy.name, policy.weight) == (model, "mine", 0.5)

    def test_in_the_current_directory(self, write: Write):
        write("own_here.py", PLAIN_POLICY, folder=Path.cwd())
        scheduler = dict_config(network(), None, schedule("own_here.Recorder"))
        assert type(scheduler.policies[2][0]).__name__ == "Recorder"

    def test_pythons_path_comes_before_both(
        self, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        write("own_order.py", "class Mine:\n    where = 'schedule'\n")
        write("own_order.py", "class Mine:\n    where = 'here'\n", folder=Path.cwd())
        first = write("own_order.py", "class Mine:\n    where = 'path'\n", folder=tmp_path / "path").parent
        assert class_lookup.import_class("own_order.Mine", tmp_path).where == "schedule"
        del sys.modules["own_order"]
        with monkeypatch.context() as patch:
            patch.syspath_prepend(str(first))
            assert class_lookup.import_class("own_order.Mine", tmp_path).where == "path"

    def test_a_class_inside_a_class(self, write: Write, tmp_path: Path):
        write("own_nested.py", "class Outer:\n    class Inner: pass\n")
        assert class_lookup.import_class("own_nested.Outer.Inner", tmp_path).__qualname__ == "Outer.Inner"

    def test_ours_by_its_path_is_ours(self):
        kind = CLASSES["pruners"]["AutomatedGradualPruner"]
        assert class_lookup.import_class(f"{kind.__module__}.AutomatedGradualPruner") is kind

    def test_two_modules_of_one_name_are_not_mixed_up(self, write: Write, tmp_path: Path):
        write("own_twice.py", PLAIN_POLICY)
        write("own_twice.py", PLAIN_POLICY, folder=tmp_path / "other")
        read_schedule(schedule_file(tmp_path, "own_twice.Recorder"))
        read_schedule(schedule_file(tmp_path, "own_twice.Recorder"))
        message = r"Expected one module 'own_twice', but \S+own_twice.py was .* means \S+other/own_twice.py"
        with pytest.raises(ScheduleError, match=message):
            read_schedule(schedule_file(tmp_path / "other", "own_twice.Recorder"))


SECTIONS: dict[str, tuple[str, str, str]] = {
    "pruners": (
        "pruner",
        """
        class Mine:
            def __init__(self, name, model, share):
                self.given = (name, model, share)
                self.name = name

            def set_param_mask(self, param, param_name, zeros_mask_dict, meta):
                zeros_mask_dict[param_name].mask = param.detach().abs().gt(self.given[2]).to(param)
        """,
        "share",
    ),
    "lr_schedulers": (
        "lr_scheduler",
        """
        from torch.optim.lr_scheduler import LRScheduler

        class Mine(LRScheduler):
            def __init__(self, name, model, optimizer, factor, last_epoch=-1):
                self.given = (name, model, factor)
                super().__init__(optimizer, last_epoch)

            def get_lr(self):
                return [base * self.given[2] ** self.last_epoch for base in self.base_lrs]
        """,
        "factor",
    ),
}


class TestSections:
    @pytest.mark.parametrize("section", SECTIONS)
    def test_get_model_name_and_their_arguments(self, write: Write, section: str):
        kind, text, argument = SECTIONS[section]
        write(f"own_{section}.py", text, folder=Path.cwd())
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        given = schedule(f"own_{section}.Mine", section, kind, **{argument: 0.25})
        scheduler = dict_config(model, optimizer, given)
        (policy,) = scheduler.policies[0]
        assert getattr(policy, kind).given == ("mine", model, 0.25)
        drive(scheduler, model)
        if section == "pruners":
            weight = model[0].weight.detach()
            assert torch.equal(scheduler.zeros_mask_dict["0.weight"].mask == 0, weight == 0)
            assert 0 < int((weight == 0).sum()) < weight.numel()
        else:
            scheduler.on_epoch_end(2, optimizer)
            assert optimizer.param_groups[0]["lr"] == 0.25**3

    def test_a_learning_rate_without_model_is_rehearsed(self, write: Write):
        text = (
            SECTIONS["lr_schedulers"][1]
            .replace("name, model, optimizer", "optimizer")
            .replace("name, model", "0, 0")
        )
        write("own_rate.py", text, folder=Path.cwd())
        given = schedule("own_rate.Mine", "lr_schedulers", "lr_scheduler", factor=-1)
        with pytest.raises(ScheduleError, match=r"lr_schedulers.mine: .* learning rate of at least 0"):
            Schedule.from_dict(given)


# what the module holds, the path, and the message that follows the place
MISTAKES: dict[str, tuple[str, str, str]] = {
    "no module": (
        "",
        "own_mistaken.Mine",
        r"got 'own_mistaken.Mine', but there is no module 'own_mistaken': looked on Python's path and in "
        r"\S+ and in \S+elsewhere\. Did you mean 'own_mistake'\? "
        r"Set PYTHONPATH to the folder that holds it\.$",
    ),
    "no attribute": (
        "class Minus: pass",
        "own_mistake.Mines",
        r"but module 'own_mistake' \(\S+own_mistake.py\) has no 'Mines'. Did you mean 'Minus'\?$",
    ),
    "no attribute of a class": ("class Mine: pass", "own_mistake.Mine.Inner", "but 'Mine' has no 'Inner'"),
    "a function": (
        "def Mine(): pass",
        "own_mistake.Mine",
        r"Expected a class at 'own_mistake.Mine', got <function Mine",
    ),
    "a module": (
        "import os\nclass Mine: pass",
        "own_mistake.os",
        r"Expected a class at 'own_mistake.os', got a module. Add the class: own_mistake.os.\w+\.$",
    ),
    "a package's module": (
        "import os",
        "own_mistakes_package.inner",
        "got a module. Add the class: own_mistakes_package.inner.Mine.$",
    ),
    "a syntax error": (
        "x = 1\nclass Mine(:\n",
        "own_mistake.Mine",
        r"The module 'own_mistake' cannot be imported: \S+own_mistake.py:2: SyntaxError: \w",
    ),
    "an exception": (
        "import math\n\ndef f():\n    return math.sqrt(-1)\n\nf()\nclass Mine: pass\n",
        "own_mistake.Mine",
        r"The module 'own_mistake' cannot be imported: \S+own_mistake.py:4: ValueError: \w.*$",
    ),
    "a bare assertion": (
        "assert 1 > 2",
        "own_mistake.Mine",
        "own_mistake.py:1: AssertionError at `assert 1 > 2`$",
    ),
    "an exit": ("import sys\nsys.exit('bye')", "own_mistake.Mine", r"own_mistake.py:2: SystemExit: bye$"),
    "another module": (
        "import no_such_module",
        "own_mistake.Mine",
        r"own_mistake.py:1: ModuleNotFoundError: .*'no_such_module'",
    ),
    "not a path": (
        "",
        "own-mistake.Mine",
        r"Expected the dotted path of a class, such as \S+, got 'own-mistake.Mine'",
    ),
    "a relative path": (
        "",
        ".own_mistake.Mine",
        r"Expected the dotted path of a class, such as \S+, got '.own_mis",
    ),
    "two dots": (
        "",
        "own_mistake..Mine",
        r"Expected the dotted path of a class, such as \S+, got 'own_mistake..M",
    ),
    "no hooks": (
        "class Mine:\n    def on_epoch_begin(self, *args, **kwargs): pass\n",
        "own_mistake.Mine",
        "but Mine has no on_minibatch_begin, .* Derive it from sgc_distiller.ScheduledTrainingPolicy",
    ),
    "another section's": (
        "",
        "torch.optim.lr_scheduler.StepLR",
        "but StepLR has no on_epoch_begin, .* It belongs under 'lr_schedulers'.$",
    ),
    "a constructor that hides its arguments": (
        "",
        "builtins.dict",
        "Expected a class for 'extensions', but dict has",
    ),
    "needs an optimizer": (
        textwrap.dedent(PLAIN_POLICY).replace("name, weight=1.0", "name, optimizer, weight=1.0"),
        "own_mistake.Recorder",
        "Recorder needs 'optimizer', which only classes under 'lr_schedulers' get",
    ),
    "positional only": (
        textwrap.dedent(PLAIN_POLICY).replace("name, weight=1.0", "/, name='x', weight=1.0"),
        "own_mistake.Recorder",
        "Recorder takes 'model' by position only",
    ),
}


class TestMistakes:
    @pytest.mark.parametrize("what", MISTAKES)
    def test_of_a_path_are_placed(self, write: Write, tmp_path: Path, what: str):
        text, path, message = MISTAKES[what]
        write("own_mistake.py", text)
        write("own_mistakes_package/inner.py", "class Mine: pass")
        file = schedule_file(tmp_path, path)
        with pytest.raises(ScheduleError, match=message) as caught:
            read_schedule(file)
        assert (caught.value.line, caught.value.key) == (3, "extensions.mine.class")
        assert "\n" not in str(caught.value)

    def test_of_a_package_name_the_nearest_module(self, write: Write, tmp_path: Path):
        write("own_package_b/__init__.py", "")
        write("own_package_b/policies.py", PLAIN_POLICY)
        with pytest.raises(ScheduleError, match=r"has no 'policy'. Did you mean 'policies'\?"):
            read_schedule(schedule_file(tmp_path, "own_package_b.policy.Recorder"))

    def test_of_arguments(self, write: Write, tmp_path: Path):
        write("own_arguments.py", PLAIN_POLICY)
        path = "own_arguments.Recorder"
        message = (
            r"4: extensions.mine.wait: Expected an argument of \S+Recorder \(class, weight\), got 'wait'"
        )
        with pytest.raises(ScheduleError, match=message):
            read_schedule(schedule_file(tmp_path, path, wait=1))
        with pytest.raises(ScheduleError, match=r"4: extensions.mine.model: Expected an argument"):
            read_schedule(schedule_file(tmp_path, path, model=1))

    def test_of_a_constructor(self, write: Write, tmp_path: Path):
        text = textwrap.dedent(PLAIN_POLICY).replace(
            "self.model,", "assert weight < 1, 'too heavy'\n        self.model,"
        )
        file = write("own_constructor.py", text)
        line = text[: text.index("assert")].count("\n") + 1
        schedule = read_schedule(schedule_file(tmp_path, "own_constructor.Recorder"))
        message = rf"2: extensions.mine: Expected .* Recorder can use, but {file}:{line}: AssertionError: too"
        with pytest.raises(ScheduleError, match=message):
            schedule.build(network())

    def test_a_registered_class_is_checked_too(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setitem(CLASSES["pruners"], "Mine", type("Mine", (), {}))
        with pytest.raises(ScheduleError, match="pruners.mine.class: .* but Mine has no set_param_mask"):
            dict_config(network(), None, schedule("Mine", "pruners", "pruner"))

    def test_an_unknown_name_is_told_of_dotted_paths(self):
        with pytest.raises(
            ScheduleError, match=r"dotted path of your own, such as my_package.my_module.Mine, got"
        ):
            dict_config(network(), None, schedule("Mine"))


MISSING = "needs Intel's Distiller, which is not installed."
OR = "or install Distiller (see README)"
# a module that wants Distiller, and what follows "FILE:LINE: " in the message
IMPORTS: dict[str, tuple[str, str]] = {
    "from a module": (
        "\nfrom distiller.policy import PolicyLoss, LossComponent\n",
        f"2: 'from distiller.policy import PolicyLoss, LossComponent' {MISSING} "
        f"Write 'from sgc_distiller import PolicyLoss, LossComponent', {OR}.",
    ),
    "from the package": (
        "from distiller import ScheduledTrainingPolicy as Base",
        f"1: 'from distiller import ScheduledTrainingPolicy as Base' {MISSING} "
        f"Write 'from sgc_distiller import ScheduledTrainingPolicy as Base', {OR}.",
    ),
    "over several lines": (
        "from distiller.policy import (\n    PolicyLoss,\n    LossComponent,\n)\n",
        f"1: 'from distiller.policy import PolicyLoss, LossComponent' {MISSING}",
    ),
    "from two modules of ours": (
        "from distiller import PolicyLoss, AutomatedGradualPruner",
        "Write 'from sgc_distiller import PolicyLoss; "
        f"from sgc_distiller.element_pruners import AutomatedGradualPruner', {OR}.",
    ),
    "everything": ("from distiller.policy import *", f"Write 'from sgc_distiller import *', {OR}."),
    "the package": (
        "import distiller\n\nclass Mine(distiller.ScheduledTrainingPolicy): loss = distiller.PolicyLoss\n",
        f"1: 'import distiller' {MISSING} Write 'import sgc_distiller as distiller', {OR}.",
    ),
    "beside another module": (
        "import os, distiller\n",
        f"1: 'import os, distiller' {MISSING} Write 'import os; import sgc_distiller as distiller', {OR}.",
    ),
    "a module": (
        "import distiller.policy\n\nclass Mine(distiller.policy.ScheduledTrainingPolicy): pass\n",
        f"Write 'import sgc_distiller as distiller', {OR}. "
        "distiller.policy.ScheduledTrainingPolicy is distiller.ScheduledTrainingPolicy then.",
    ),
    "a module under another name": (
        "import distiller.policy as p\n\nclass Mine(p.ScheduledTrainingPolicy): pass\n",
        f"Write 'import sgc_distiller as p', {OR}.",
    ),
    "a module from the package": (
        "from distiller import policy\n\nclass Mine(policy.ScheduledTrainingPolicy): pass\n",
        f"Write 'import sgc_distiller as policy', {OR}.",
    ),
    "a name of another place": (
        "import distiller\n\nmasker = distiller.scheduler.ParameterMasker\n",
        "distiller.scheduler.ParameterMasker is distiller.masks.ParameterMasker then.",
    ),
    "without a counterpart": (
        "from distiller import SummaryGraph, PolicyLoss",
        f"Write 'from sgc_distiller import PolicyLoss', {OR}. But 'SummaryGraph' has no counterpart here.",
    ),
    "only without a counterpart": (
        "from distiller.thinning import execute_thinning_recipe",
        f"{MISSING} 'execute_thinning_recipe' has no counterpart here: install Distiller (see README).",
    ),
    "uses without a counterpart": (
        "import distiller as d\nd.PolicyLoss\nd.utils.sparsity(1)\n",
        f"1: 'import distiller as d' {MISSING} 'd.utils.sparsity' has no counterpart here: install",
    ),
    "more than one line": (
        "import distiller\nfrom distiller.policy import PolicyLoss\nfrom distiller import LossComponent\n",
        f"1: 'import distiller' {MISSING} So do lines 2, 3. Write 'import",
    ),
}


@pytest.mark.usefixtures("no_distiller")
class TestWithoutDistiller:
    @pytest.mark.parametrize("what", IMPORTS)
    def test_the_message_names_the_line_and_what_to_write(self, write: Write, tmp_path: Path, what: str):
        text, message = IMPORTS[what]
        file = write("own_import.py", text)
        with pytest.raises(ScheduleError, match=re.escape(message)) as caught:
            read_schedule(schedule_file(tmp_path, "own_import.Mine"))
        assert f"The module 'own_import' cannot be imported: {file}:" in str(caught.value)
        assert caught.value.line == 3

    @pytest.mark.parametrize("what", [name for name, (_, message) in IMPORTS.items() if "Write '" in message])
    def test_what_to_write_works(self, write: Write, tmp_path: Path, what: str):
        text, _ = IMPORTS[what]
        write("own_change.py", text)
        with pytest.raises(UserError, match="needs Intel's Distiller") as caught:
            read_schedule(schedule_file(tmp_path, "own_change.Mine"))
        old, new = re.search(r": '(.*)' needs.*Write '(.*?)', or", str(caught.value)).groups()
        namespace: dict[str, Any] = {}
        exec(new, namespace)
        wanted = {alias.asname or alias.name.partition(".")[0] for alias in ast.parse(old).body[0].names}
        assert wanted - {"*", "SummaryGraph"} <= namespace.keys()

    def test_the_module_is_the_one_that_imports_distiller(self, write: Write, tmp_path: Path):
        write("own_outer.py", "from own_inner import Mine\n")
        file = write("own_inner.py", "from distiller import PolicyLoss\nclass Mine: pass\n")
        with pytest.raises(UserError, match=rf"{file}:1: 'from distiller import PolicyLoss' needs"):
            class_lookup.import_class("own_outer.Mine", tmp_path)

    def test_a_class_of_distillers_own(self):
        for name, rest in (
            ("AutomatedGradualPruner", f"Write 'AutomatedGradualPruner', {OR}."),
            ("ParameterMasker", f"Write 'sgc_distiller.masks.ParameterMasker', {OR}."),
            ("Unheard", "Install it (see README)."),
        ):
            path = f"distiller.pruning.{name}"
            with pytest.raises(ScheduleError, match=re.escape(f"mine.class: {path!r} {MISSING} {rest}")):
                dict_config(network(), None, schedule(path, "pruners", "pruner"))


def test_another_project_of_the_name_is_told_apart(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in [name for name in sys.modules if name.partition(".")[0] == "distiller"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(write("path/distiller/__init__.py", "Keywords = object\n").parents[1]))
    write("own_other.py", "x = 1\nimport distiller\n\nclass Mine(distiller.ScheduledTrainingPolicy): pass\n")
    message = r"own_other.py:2: 'import distiller' needs .* \(\S+distiller/__init__.py is another project of"
    try:
        with pytest.raises(UserError, match=message):
            class_lookup.import_class("own_other.Mine", tmp_path)
    finally:
        monkeypatch.undo()


def test_counterparts_exist():
    for name, module in COUNTERPARTS.items():
        assert hasattr(importlib.import_module(module), name)
        assert module != "sgc_distiller" or name in sgc_distiller.__all__


def recorded(config: Callable[..., Any], given: dict[str, Any]) -> list[Any]:
    model = network()
    scheduler = config(model, torch.optim.SGD(model.parameters(), lr=0.1), copy.deepcopy(given))
    drive(scheduler, model)
    (policy,) = scheduler.policies[0]
    return policy.calls


class TestHooks:
    def test_come_in_distillers_order(self, write: Write):
        write("own_order_of_hooks.py", PLAIN_POLICY, folder=Path.cwd())
        calls = recorded(dict_config, schedule("own_order_of_hooks.Recorder"))
        step = [
            "on_minibatch_begin",
            "before_backward_pass",
            "before_parameter_optimization",
            "on_minibatch_end",
        ]
        assert [call[0] for call in calls] == ["on_epoch_begin", *step, *step, "on_epoch_end"] * 2
        maskers = dict.fromkeys(("0.weight", "0.bias", "2.weight", "2.bias"), "a masker")
        meta = {"starting_epoch": 0, "ending_epoch": 3, "frequency": 2, "current_epoch": 0}
        assert calls[0] == ("on_epoch_begin", ["the model", maskers, meta], {"metrics": {"min": 2.0}})
        assert calls[1][1:] == (["the model", 0, 0, 2, maskers, meta, "the optimizer"], {})
        assert calls[9][1][2] == {**meta, "optimizer": "the optimizer"}

    @pytest.mark.distiller
    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("is_registered", [False, True])
    def test_are_called_as_distiller_calls_them(
        self, write: Write, monkeypatch: pytest.MonkeyPatch, is_registered
    ):
        import distiller.config

        torch.manual_seed(0)
        write("own_hooks.py", PLAIN_POLICY, folder=Path.cwd())
        kind = class_lookup.import_class("own_hooks.Recorder")
        monkeypatch.setattr(distiller.config, "Recorder", kind, raising=False)
        torch.manual_seed(0)
        theirs = recorded(distiller.config.dict_config, schedule("Recorder", weight=0.5))
        if is_registered:
            monkeypatch.setitem(CLASSES["extensions"], "Recorder", kind)
        torch.manual_seed(0)
        ours = recorded(
            dict_config, schedule("Recorder" if is_registered else "own_hooks.Recorder", weight=0.5)
        )
        assert len(theirs) == 20
        assert ours == theirs


WITH_DISTILLER = """
    import distiller
    from distiller.policy import LossComponent, PolicyLoss

    class Shrink(distiller.ScheduledTrainingPolicy):
        def __init__(self, strength):
            super().__init__()
            self.strength = strength

        def before_backward_pass(self, model, epoch, step, steps, loss, zeros_mask_dict, optimizer=None):
            added = self.strength * sum(param.abs().sum() for param in model.parameters())
            return PolicyLoss(loss + added, LossComponent("shrink", added))
"""


@pytest.mark.distiller
@pytest.mark.filterwarnings("ignore")
def test_a_module_that_imports_distiller_runs_as_it_is_where_it_is_installed(write: Write, monkeypatch):
    import distiller.config

    write("own_with_distiller.py", WITH_DISTILLER, folder=Path.cwd())
    weights = []
    given = schedule("own_with_distiller.Shrink", strength=0.01)
    for config in (dict_config, distiller.config.dict_config):
        torch.manual_seed(0)
        model = network()
        scheduler = config(model, None, given)
        drive(scheduler, model)
        weights.append([param.detach().clone() for param in model.parameters()])
        loss = scheduler.before_backward_pass(0, 0, 2, torch.zeros(()), return_loss_components=True)
        assert [part.name for part in loss.loss_components] == ["shrink"]
        kind = class_lookup.import_class("own_with_distiller.Shrink")
        monkeypatch.setattr(distiller.config, "Shrink", kind, raising=False)
        given = schedule("Shrink", strength=0.01)
    assert all(map(torch.equal, *weights))


@pytest.mark.usefixtures("no_distiller")
def test_where_distiller_is_missing_that_module_says_so(write: Write):
    write("own_with_distiller.py", WITH_DISTILLER, folder=Path.cwd())
    with pytest.raises(
        ScheduleError, match="own_with_distiller.py:2: 'import distiller' needs Intel's Distiller"
    ):
        dict_config(network(), None, schedule("own_with_distiller.Shrink", strength=0.01))


def test_the_example_of_the_documentation_runs(write: Write, tmp_path: Path):
    text = (Path(__file__).resolve().parents[1] / "docs" / "schedule.md").read_text(encoding="utf-8")
    write("my_policies.py", re.search(r"```python\n(# my_policies.py\n.*?)```", text, re.DOTALL)[1])
    entry = re.search(r"`(mine: {class: my_policies.*?})` under `extensions`", text)[1]
    policy = "{extension: {instance_name: mine}, epochs: [0]}"
    file = write("schedule.yaml", f"extensions:\n  {entry}\npolicies: [{policy}]\n")
    model = network()
    scheduler = file_config(model, None, file)
    loss = scheduler.before_backward_pass(0, 0, 1, torch.zeros(()))
    total = sum(float(param.detach().abs().sum()) for param in model.parameters())
    assert float(loss.detach()) == pytest.approx(0.01 * total)
