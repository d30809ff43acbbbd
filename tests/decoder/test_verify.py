"""A decoder's process: each tensor is digested once, and a file that keeps it too long does not keep the others."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from quantgolf.blob import pack, write_blob
from quantgolf.decoder import export_decoder, features_of, verify
from quantgolf.decoder.verify import Seen, seen_by
from quantgolf.encode import Entry, encode_model

MODULE = sys.modules["quantgolf.decoder.verify"]  # the package has the function by this name
# In place of what runs a decoder, without torch, which takes seconds to import: hangs at some files.
STAND_IN = """
import sys, time
with open(sys.argv[2], "w") as out:
    for path in sys.argv[3:]:
        if "half" in path:
            print('{"w": ["torch.flo', end="", file=out, flush=True)
        if "slow" in path or "half" in path:
            time.sleep(600)
        if "dies" in path:
            raise SystemExit("no more")
        print('{"w": ["torch.float32", [2], "00"]}', file=out, flush=True)
"""
READ = {"w": Seen("torch.float32", (2,), "00")}
ONCE = b"""
import hashlib
import torch
real, made = hashlib.blake2b, []
def counted(*arguments, **more):
    made.append(arguments)
    assert len(made) < 4
    return real(*arguments, **more)
hashlib.blake2b = counted
class Passing(dict):
    def items(self):
        yield from super().items()
        for i in range(2):  # gone before the next, whose id may be the same
            yield f"p{i}", torch.full((2,), float(i))
def load(path, exact):
    one = torch.ones(2)
    return Passing({f"t{i}": one for i in range(99)}), b""
"""


def test_tensors_without_rows(tmp_path: Path) -> None:
    """`nn.Linear(5, 0)` has two."""
    coded = encode_model([Entry(str(shape), torch.empty(shape)) for shape in ((0, 5), (0, 2, 3), (0,), (2, 0))])
    write_blob(tmp_path / "a.qg", pack(coded, None))
    assert verify(export_decoder(features_of(coded)), tmp_path / "a.qg") > 0


def test_a_tensor_of_many_names_is_digested_once() -> None:
    (found,), _ = seen_by(ONCE, ["a"])
    assert isinstance(found, dict), found
    assert list(found) == [*(f"t{i}" for i in range(99)), "p0", "p1"]
    assert found["t0"] == found["t98"] == Seen.of(torch.ones(2)) == found["p1"]
    assert found["p0"] == Seen.of(torch.zeros(2))


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The processes that are started."""
    started: list[Any] = []
    real = subprocess.Popen

    def popen(*arguments: Any, **more: Any) -> Any:
        started.append(real(*arguments, **more))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", popen)
    monkeypatch.setattr(MODULE, "RUN", STAND_IN)
    return started


def test_it_is_stopped_at_a_file_and_goes_on_with_the_next(stand_in: list[Any]) -> None:
    begin = time.perf_counter()
    found, seconds = seen_by(b"", ["a", "slow", "b", "half", "dies", "c"], 3)
    assert found[:4] == [READ, None, READ, None]
    assert all(isinstance(each, str) and "exit code 1 (no more)" in each for each in found[4:]) and len(found) == 6
    assert 6 <= seconds <= time.perf_counter() - begin < 60
    assert len(stand_in) == 3 and all(process.returncode is not None for process in stand_in)


def test_without_patience_it_is_waited_for(stand_in: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "RUN", STAND_IN.replace("600", "2"))
    found, seconds = seen_by(b"", ["a", "slow"])
    assert found == [READ, READ] and seconds >= 2 and len(stand_in) == 1


def test_what_stops_us_stops_it(stand_in: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(MODULE, "_lines", interrupted)
    with pytest.raises(KeyboardInterrupt):
        seen_by(b"", ["slow"], 1.5)
    assert [process.poll() is None for process in stand_in] == [False]
