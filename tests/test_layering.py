"""Imports go one way, files and functions stay small; read from the source without importing it."""

from __future__ import annotations

import ast
import io
import tokenize
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "sgc_distiller"
LEAVES = {"_version", "errors", "seeding"}  # these import nothing of ours, and all may import them

# Everything of ours that a module may import, beside the leaves.
ONLY: dict[str, set[str]] = {
    **{leaf: set() for leaf in LEAVES},
    **{
        name: set()
        for name in ("charts", "compute", "interrupts", "losses", "metrics", "pictures", "wording")
    },
    **{name: set() for name in ("checks", "import_errors", "resources", "runs", "selection", "structures")},
    **{name: set() for name in ("compact_weights", "nm_patterns", "optional_packages")},
    "class_lookup": {"import_errors", "policies", "yaml_source"},
    "curves": {"charts", "runs", "wording"},
    "data": {"interrupts"},
    "feature_networks": {"data", "resources"},
    "image_pool": set(),
    "measuring": {"data", "extractors", "feature_networks", "metrics", "picture_quality", "tasks.evaluation"},
    "module_state": set(),
    "picture_quality": {"metrics"},
    "term_meter": set(),
    "distiller_plugin": {"dependent_masks", "schedule_reader"},
    "epochs": {"checks"},
    "experiment_spec": {"checks"},
    "extractors": {
        *("data", "extractor_training", "feature_networks", "labelled_pictures", "metrics"),
        *("picture_network", "resources"),
    },
    "lr_schedulers": {"checks"},
    "masks": {"names", "selection"},
    "names": {"structures"},
    "neighbours": set(),
    "pruners": {"checks", "epochs", "masks", "names", "structures"},
    "element_pruners": {"checks", "masks", "names", "pruners", "structures"},
    "structure_pruners": {"checks", "masks", "names", "pruners", "structures"},
    "channel_flow": set(),
    "channel_operations": {"channel_flow", "channel_values"},
    "channel_tracing": {"channel_flow", "channel_operations", "channel_values", "neighbours"},
    "channel_values": {"channel_flow"},
    "coupled_filters": {
        *("channel_flow", "channel_tracing", "checks", "module_state", "names", "structures"),
    },
    "ranked_pruners": {
        *("checks", "coupled_filters", "masks", "pruners", "structure_pruners", "structures"),
    },
    "thinning": {"channel_flow", "channel_tracing", "channel_values"},
    "filter_pruners": {"checks", "masks", "names", "pruners", "structure_pruners", "structures"},
    "policies": {"lr_schedulers", "masks"},
    "pruning_policy": {"checks", "element_pruners", "epochs", "masks", "neighbours", "policies", "pruners"},
    "regularization_policy": {"checks", "epochs", "masks", "policies", "pruners", "regularizers"},
    "regularizers": {"checks", "masks", "names", "pruners", "structures"},
    "report": {"charts", "curves", "resources", "runs", "wording"},
    "supervision": {
        *("checks", "experiment_spec", "image_pool", "losses", "module_state", "names"),
        *("step_context", "tasks", "tasks.base"),
    },
    "step_context": {"checks", "experiment_spec", "module_state", "tasks", "tasks.base"},
    "studies.comparing": set(),
    "loss_policies": {
        *("checks", "losses", "masks", "names", "policies", "step_context", "supervision", "tasks"),
        "tasks.base",
    },
    "removal": {"channel_tracing", "masks", "module_state", "names", "thinning"},
    "removers": {"checks", "masks", "policies", "removal", "thinning"},
    "remover_checks": {"removers", "schedule_reader"},
    "student_sizes": {"module_state", "names", "thinning"},
    "weight_files": {"compact_weights", "optional_packages"},
    "yaml_source": {"checks"},
}
# What a module must not import, by the start of its name: what stands above it.
NEVER: dict[str, set[str]] = {
    "": {"app"},
    "data": {"tasks", "networks", "training", "extractors"},
    "networks": {"tasks", "training", "data", "supervision"},
    "tasks": {"experiment", "schedule", "scheduler", "supervision", "training"},
    "training": {"experiment", "schedule", "schedule_reader"},
    "recording": {"experiment", "schedule", "schedule_reader"},
    "scheduler": {"loss_policies", "schedule", "schedule_reader", "supervision"},
    "schedule": {"experiment", "training"},
}


def modules() -> dict[str, Path]:
    """Return the package's modules by dotted name below the package; the package itself is ``__init__``."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name or "__init__"] = path
    return found


MODULES = modules()


def imports(path: Path) -> set[str]:
    """Return the modules of ours that a file imports, at its top or inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: imports are absolute"
            names.add(str(node.module))
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    ours = {name.removeprefix("sgc_distiller.") for name in names if name.startswith("sgc_distiller.")}
    return {name for name in ours if name in MODULES}


def is_under(name: str, top: str) -> bool:
    return top == "" or name == top or name.startswith(f"{top}.")


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_go_one_way(name: str):
    found = imports(MODULES[name])
    if name in ONLY:
        own = {item for item in MODULES if item.startswith(f"{name}.")}
        allowed = ONLY[name] | LEAVES | own
        assert found <= allowed, f"{name} may import {sorted(allowed)} of ours"
    for top, forbidden in NEVER.items():
        if is_under(name, top) and name != "__main__":
            wrong = {item for item in found for bad in forbidden if is_under(item, bad)}
            assert not wrong, f"{name} must not import {sorted(wrong)}"


def test_no_module_imports_itself_through_others():
    graph = {name: imports(path) - {name} for name, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"circular imports: {' -> '.join(error.args[1])}")


def code_lines(source: str, first: int, last: int, docstrings: set[int]) -> int:
    """Return the number of lines with code between two lines, without comments and docstrings."""
    skipped = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in skipped:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len({line for line in lines if first <= line <= last} - docstrings)


def docstring_lines(tree: ast.AST) -> set[int]:
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                lines.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return lines


@pytest.mark.parametrize("name", sorted(MODULES))
def test_files_and_functions_stay_small(name: str):
    source = MODULES[name].read_text(encoding="utf-8")
    assert len(source.splitlines()) < 400, f"{name}: split a file at its second reason to change"
    tree = ast.parse(source)
    documentation = docstring_lines(tree)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            count = code_lines(source, node.lineno, node.end_lineno or node.lineno, documentation)
            assert count <= 50, f"{name}.{node.name}: {count} lines of code, expected at most 50"
