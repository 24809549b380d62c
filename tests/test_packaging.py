"""What a user installs is whole, and what the documents tell them to type exists."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from sgc_distiller import resources
from sgc_distiller._version import __version__
from sgc_distiller.arguments import compress_gan_parser, sgc_parser
from sgc_distiller.errors import UserError
from sgc_distiller.resources import asset, find_schedule, shipped_schedules, template_folder

ROOT = Path(__file__).resolve().parents[1]
IN_A_CHECKOUT = (ROOT / "pyproject.toml").is_file()
SCHEDULES = sorted(shipped_schedules().rglob("*.yaml"))
DOCUMENTS = sorted(
    path
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md"))
    if path.name != "CHANGELOG.md"
)
pytestmark = pytest.mark.skipif(not IN_A_CHECKOUT, reason="requires: a checkout")


@pytest.fixture
def folder_of_schedules(tmp_path, monkeypatch) -> Path:
    """A stand-in for an installed package, with two schedules."""
    (tmp_path / "schedules" / "dcgan").mkdir(parents=True)
    for name in ("recommended_75", "oneshot_75"):
        (tmp_path / "schedules" / "dcgan" / f"{name}.yaml").write_text("version: 1\n")
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path)
    return tmp_path / "schedules"


def test_a_wheel_has_its_schedules_inside_a_checkout_beside(folder_of_schedules, monkeypatch):
    assert shipped_schedules() == folder_of_schedules
    monkeypatch.setattr(resources, "_PACKAGE", folder_of_schedules.parent / "sgc_distiller")
    assert shipped_schedules() == folder_of_schedules
    monkeypatch.setattr(resources, "_PACKAGE", folder_of_schedules / "no" / "where")
    with pytest.raises(UserError, match="Expected the shipped schedules in .*Install the package again"):
        shipped_schedules()


@pytest.mark.parametrize(
    "name",
    [
        "dcgan/recommended_75",
        "dcgan/recommended_75.yaml",
        "schedules/dcgan/recommended_75.yaml",
        "./schedules/dcgan/recommended_75.yaml",
        Path("dcgan/recommended_75"),
    ],
)
def test_shipped_schedules_go_by_name(folder_of_schedules, tmp_path, monkeypatch, name):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert find_schedule(name) == folder_of_schedules / "dcgan" / "recommended_75.yaml"


def test_an_existing_file_wins(folder_of_schedules, tmp_path, monkeypatch):
    own = tmp_path / "dcgan" / "recommended_75"
    own.parent.mkdir()
    own.write_text("version: 1\n")
    monkeypatch.chdir(tmp_path)
    assert find_schedule("dcgan/recommended_75") == Path("dcgan/recommended_75")


@pytest.mark.parametrize("name", ["dcgan/recomended_75", "recommended_75", "recommended75.yaml"])
def test_an_unknown_schedule_names_the_nearest(folder_of_schedules, name):
    with pytest.raises(
        UserError, match=f"got '{name}', which is neither. Did you mean 'dcgan/recommended_75'?"
    ):
        find_schedule(name)


def test_a_folder_is_no_schedule(tmp_path):
    with pytest.raises(UserError, match="Expected a schedule file, got the folder"):
        find_schedule(tmp_path)


def test_a_missing_asset_is_named():
    with pytest.raises(UserError, match="Expected the shipped file .*nothing.pt, got none"):
        asset("nothing.pt")


def test_the_version_stands_in_one_place():
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", __version__)
    written = [
        path
        for path in (ROOT / "pyproject.toml", ROOT / "setup.py")
        if f'"{__version__}"' in path.read_text()
    ]
    assert written == []
    try:
        assert metadata.version("sgc-distiller") == __version__
    except metadata.PackageNotFoundError:
        pytest.skip("requires: the package to be installed (pip install -e .)")


def test_the_built_package_holds_schedules_templates_assets_and_all_modules(tmp_path):
    pytest.importorskip("setuptools", minversion="77", reason="requires: setuptools 77 or later")
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)]
    command += ["build_py", "--build-lib", str(tmp_path / "lib")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    built = tmp_path / "lib" / "sgc_distiller"
    package = ROOT / "sgc_distiller"
    wanted = {path.relative_to(package) for path in package.rglob("*.py")}
    wanted |= {path.relative_to(package) for path in template_folder().glob("*.html")}
    wanted |= {path.relative_to(package) for path in (package / "assets").glob("*")}
    wanted |= {Path("schedules") / path.relative_to(shipped_schedules()) for path in SCHEDULES}
    wanted |= {Path("py.typed")}
    assert {path.relative_to(built) for path in built.rglob("*") if path.is_file()} == wanted


@pytest.mark.parametrize("path", SCHEDULES, ids=lambda path: path.stem)
def test_a_schedule_says_what_it_is_for_how_to_run_it_and_what_came_out(path):
    header = re.match(r"(#[^\n]*\n)+", path.read_text(encoding="utf-8"))
    assert header, "a schedule begins with a comment"
    for part in ("Purpose:", "Command:", "Result:"):
        assert part in header[0]


def commands(text: str) -> list[list[str]]:
    """Return the command lines in a document's code blocks and in a schedule's header, in words."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    blocks += re.findall(r"`((?:sgc|make|python) [^`\n]*)`", text)
    blocks += re.findall(r"^# *(?:Command:)? *((?:sgc|make|python) .*)$", text, flags=re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    lines = [line.strip().removeprefix("$ ") for line in lines]
    return [shlex.split(line, comments=True) for line in lines if re.match(r"(sgc|make|python) ", line)]


def check_command(words: list[str]) -> None:
    words = [word for word in words if word not in {"...", "…"}]
    names = next(item.choices for item in sgc_parser()._actions if item.dest == "command")
    if len(words) == 2 and words[0] == "sgc" and words[1] in (names or ()):
        return  # the name of a command
    if words[0] == "sgc" and not {"-h", "--help", "--version"} & set(words):
        sgc_parser().parse_args(words[1:])
    elif words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        assert {word for word in words[1:] if "=" not in word} <= set(targets)
    elif words[0] == "python" and words[1].endswith(".py"):
        assert (ROOT / words[1]).is_file() or (ROOT / "examples" / words[1]).is_file()
        if Path(words[1]).name == "compress_gan.py":
            compress_gan_parser().parse_args(words[2:])


@pytest.mark.parametrize("path", [*DOCUMENTS, *SCHEDULES], ids=lambda path: path.name)
def test_commands_in_documents_and_schedules_are_understood(path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")  # where they are run, a user's own task is found
    for words in commands(path.read_text(encoding="utf-8")):
        try:
            check_command(words)
        except (UserError, argparse.ArgumentError, SystemExit, AssertionError) as error:
            pytest.fail(f"{path.name}: {shlex.join(words)}: {error}")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_paths_in_documents_exist(path):
    text = path.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if "://" not in link]
    missing = [link for link in links if not (path.parent / link).exists()]
    named = re.findall(r"`((?:sgc_distiller|schedules|docs|examples|benchmarks|tests|tools)/[\w./-]+)`", text)
    missing += [name for name in named if not (ROOT / name).exists()]
    assert missing == []


def test_commands_are_found_in_blocks_spans_and_headers():
    text = "Try `sgc quickstart --smoke`.\n```bash\n$ sgc train dcgan \\\n  --seed 1  # note\nls\n```\n"
    assert commands(text) == [["sgc", "train", "dcgan", "--seed", "1"], ["sgc", "quickstart", "--smoke"]]
    assert commands("# Command: make test\nversion: 1\n") == [["make", "test"]]
