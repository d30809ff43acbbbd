"""The subjects of capture, for every test of this room: models as people write them, and their plain twins.

Test files do not import each other (pytest's importlib mode gives them no package), so what they share comes as
fixtures.
"""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from quantgolf.calibrate.store import write_calibration
from quantgolf.types import Calibration

HERE = Path(__file__).parent


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"calibrate_{name}", HERE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


SUBJECTS = load("subjects")
PAIRS: dict[str, Callable[[], object]] = load("pairs").PAIRS


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for `twins` runs on every pair there is."""
    if "twins" in metafunc.fixturenames:
        metafunc.parametrize("twins", [pytest.param(make, id=name) for name, make in PAIRS.items()], indirect=True)


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path, calibration: Calibration) -> Path:
    """Where the statistics lie that a test file has under `calibration`, of its `ORIGIN`."""
    write_calibration(tmp_path / "stats", calibration, request.module.ORIGIN)
    return tmp_path / "stats"


@pytest.fixture(autouse=True)
def all_on_one_thread(one_thread: None) -> None:
    """Of every test here."""


@pytest.fixture
def twins(request: pytest.FixtureRequest) -> object:
    """A model and its plain twin, a `subjects.Twins`."""
    return request.param()


@pytest.fixture(scope="session")
def subjects() -> ModuleType:
    return SUBJECTS


@pytest.fixture(scope="session")
def pairs() -> dict[str, Callable[[], object]]:
    """What makes each pair of twins, by name."""
    return PAIRS


@pytest.fixture(scope="session")
def networks() -> ModuleType:
    """Whole models: convolutions, experts, what cannot be followed."""
    return load("networks")


@pytest.fixture(scope="session")
def contest_script() -> ModuleType:
    """A contest's training script, executed."""
    return load("contest_script")
