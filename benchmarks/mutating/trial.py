"""Tests, tried on each mutant: one session collects them and imports everything, and a fork of it turns a mutant on."""

import ast
import builtins
import contextlib
import importlib.machinery
import io
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import CodeType
from typing import Any

import numba
import pytest
from _pytest.runner import runtestprotocol

from mutating.change import ROOT, Mutant, all_mutants

TESTS = ("tests/encode", "tests/blob")
LOOPS = ("tests/encode/test_loops.py",)  # for mutants in functions that Numba compiles
BOUNDS = ("test_header", "test_container", "test_limits", "test_refusals", "test_bombs", "test_bounds")
SECONDS = 120  # for the tests of a mutant; one that hangs is found


class Trial:
    """Runs the tests once to see which checks each meets, and then those that may find a mutant, for each mutant.

    All in one session: a mutant is turned on in a fork of it, where the tests are collected and all is imported.
    """

    def __init__(self, chosen: list[Mutant]) -> None:
        self.chosen, self.here = chosen, set[int]()
        self.met: dict[int, dict[str, float]] = {}
        self.failed, self.found = "", dict[int, str]()

    def note(self, site: int) -> None:
        """The test that runs meets a check."""
        self.here.add(site)

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = [item for item in items if not getattr(item.obj, "is_hypothesis_test", False)]

    def pytest_runtestloop(self, session: Any) -> bool:
        following = [*session.items[1:], None]
        for item, after in zip(session.items, following, strict=True):
            self.here, begin = set(), time.perf_counter()
            if _fails(item, after):
                self.failed = item.nodeid
                return True
            for site in self.here:
                self.met.setdefault(site, {})[item.nodeid] = time.perf_counter() - begin
        for mutant in self.chosen:
            self.found[mutant.number] = self.judged(mutant, session.items)
            if not self.found[mutant.number]:
                print(f"survives so far: {mutant.path.name}: {mutant.what}", file=sys.stderr, flush=True)
        return True

    def judged(self, mutant: Mutant, items: list[Any]) -> str:
        """The test that finds a mutant; empty if none does."""
        meeting = self.met.get(mutant.site, {})
        tests = sorted((item for item in items if item.nodeid in meeting), key=lambda item: meeting[item.nodeid])
        if not mutant.looser or mutant.compiled:
            names = {*BOUNDS, f"test_{mutant.path.stem}"}
            tests += [item for item in items if item.path.stem in names or mutant.compiled]
        turn_on(mutant.number)
        found = forked(lambda: next((item.nodeid for item in tests if _fails(item, None)), ""), SECONDS)
        turn_on(0)
        return "a process that died or hung" if found is None else str(found)


def _fails(item: Any, following: Any) -> bool:
    return any(report.failed for report in runtestprotocol(item, nextitem=following, log=False))


def install(trees: dict[Path, ast.Module], interpreted: bool) -> None:
    """Has modules imported as these trees; only in a process that ends afterwards."""
    original = importlib.machinery.SourceFileLoader.get_code

    def get_code(loader: Any, name: str) -> CodeType | None:
        tree = trees.get(Path(loader.path))
        return original(loader, name) if tree is None else compile(tree, loader.path, "exec")

    importlib.machinery.SourceFileLoader.get_code = get_code  # type: ignore[method-assign,assignment]
    numba.config.DISABLE_JIT = interpreted  # type: ignore[attr-defined]
    turn_on(0)


def turn_on(mutant: int) -> None:
    """0 for none."""
    builtins.__mutant__ = mutant  # type: ignore[attr-defined]


def tried(chosen: list[Mutant], compiled: bool) -> dict[int, str]:
    """What finds each mutant, from a process of its own."""

    def session() -> list[Any]:
        trees, _ = all_mutants(compiled)
        install(trees, compiled)
        trial = Trial(chosen)
        builtins.__reader_site__ = trial.note  # type: ignore[attr-defined]
        os.chdir(ROOT)
        options = ["-q", "-s", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header", "-W", "ignore"]
        with contextlib.redirect_stdout(io.StringIO()):
            code = pytest.main([*options, *(LOOPS if compiled else TESTS)], plugins=[trial])
        return [trial.failed or ("" if trial.found else f"pytest ended with {code}"), list(trial.found.items())]

    ended: Any = forked(session, 7200) if chosen else ["", []]
    if ended is None or ended[0]:
        raise SystemExit(f"the tests fail without any mutant: {ended and ended[0]}")
    return {int(number): str(finder) for number, finder in ended[1]}


def forked(work: Callable[[], Any], seconds: float) -> Any:
    """What `work` gives in a process of its own, through JSON; None if it dies or takes longer."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.setsid()
        with contextlib.suppress(BaseException), os.fdopen(writing, "w") as pipe:
            json.dump(work(), pipe)
        os._exit(0)
    os.close(writing)
    found, end = b"", time.monotonic() + seconds
    os.set_blocking(reading, False)
    while time.monotonic() < end:
        with contextlib.suppress(BlockingIOError):
            part = os.read(reading, 1 << 20)
            if not part:
                break
            found += part
            continue
        time.sleep(0.02)
    else:
        os.killpg(child, 9)
    os.close(reading)
    os.waitpid(child, 0)
    return json.loads(found) if found else None
