"""How the tests of the command line type a command."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantgolf.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """A command typed in the test's folder: exit status, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["quantgolf", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return call


@pytest.fixture
def ran(run: Run) -> Callable[..., Any]:
    """The JSON of a command that has to work."""

    def call(*arguments: object) -> Any:
        status, out, err = run(*arguments, "--json")
        assert status == 0, err
        return json.loads(out)

    return call
