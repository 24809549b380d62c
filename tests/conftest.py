"""What all tests share: the device, seeds, the folder of real data, and skips that say what they need."""

from __future__ import annotations

import importlib
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

# The networks here are tiny: threads would wait for each other, most of all on a busy machine. Before torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402


def shared_folder() -> Path | None:
    """Return the folder of real data and reference material, or None where there is none."""
    named = os.environ.get("SGC_SHARED")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared"
    return folder if folder.is_dir() else None


def has_distiller() -> bool:
    """Return whether Intel's Distiller (not the PyPI project of the same name) can be imported."""
    try:
        return hasattr(importlib.import_module("distiller"), "file_config")
    except ImportError:
        return False


# What a marker needs: whether it is there, and what to do where it is not.
REQUIREMENTS: dict[str, tuple[Callable[[], bool], str]] = {
    "gpu": (torch.cuda.is_available, "requires: a CUDA GPU"),
    "shared": (
        lambda: shared_folder() is not None,
        "requires: the folder of real data and reference material; name it in SGC_SHARED",
    ),
    "distiller": (has_distiller, "requires: Intel's Distiller on the Python path"),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device", default="cpu", help="device that the tests run on: cpu (default), cuda, cuda:1"
    )


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's cache out of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SGC_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def pytest_configure(config: pytest.Config) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs have none
    try:
        torch.zeros(1, device=config.getoption("--device"))
    except (RuntimeError, AssertionError) as error:
        raise pytest.UsageError(f"--device {config.getoption('--device')} cannot be used: {error}") from error


def pytest_runtest_setup(item: pytest.Item) -> None:
    for name, (is_there, reason) in REQUIREMENTS.items():
        if item.get_closest_marker(name) and not is_there():
            pytest.skip(reason)


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device of this test run, from ``--device``."""
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test starts from the same global seeds."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and reference material; skips the test where there is none."""
    folder = shared_folder()
    if folder is None:
        pytest.skip(REQUIREMENTS["shared"][1])
    return folder
