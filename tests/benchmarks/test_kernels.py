"""The scripts that time kernels and models, started as their docstrings say."""

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"
Script = Callable[..., tuple[int, str, str]]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Script:
    """Runs a script of that name: exit status, standard output, standard error."""

    def call(name: str, *arguments: str) -> tuple[int, str, str]:
        path = str(FOLDER / f"{name}.py")
        monkeypatch.setattr(sys, "argv", [path, *arguments])
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(path, run_name="__main__")
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return call


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
@pytest.mark.parametrize("name, what", [("kernels", "--static"), ("decode", "bench decode"), ("retune", "retune")])
def test_without_a_gpu_scripts_end_with_one_line(script: Script, name: str, what: str) -> None:
    status, out, err = script(name)
    assert status == 2 and out == ""
    assert len(err.splitlines()) == 1 and what in err and "none is here" in err


def test_static_mode_takes_the_commands_options(script: Script) -> None:
    status, out, err = script("kernels", "--static", "--shape", "64", "--bits", "8", "--m", "1", "--json")
    assert status == 0, err
    (row,) = json.loads(out)["rows"]
    assert (row["n"], row["k"], row["kernel"]) == (64, 64, "gemv")
