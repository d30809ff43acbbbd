"""Files that somebody made to hurt: nothing but a `FormatError` or a model comes of them, and no memory beyond bounds.

`benchmarks/fuzz.py` looks for such files by the hour; here are a few hundred of its changes, and the inputs of its runs
that reach what no smaller one does. What random changes would not come upon is in `test_bombs.py`.
"""

import sys
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantgolf.blob import VERSION, parse
from quantgolf.errors import FormatError

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from fuzzing import exhaustive
from fuzzing.guard import tried, warm
from fuzzing.mutate import Parts, changed_bytes, changed_file, put_together, taken_apart
from fuzzing.seeds import BLOB, golden_files
from fuzzing.targets import TARGETS, Limits

LIMIT = 1_000_000
GOLDEN = golden_files()
SEEDS = {name: target.seeds(GOLDEN) for name, target in TARGETS.items()}
SMALLEST = sorted(GOLDEN, key=len)[:2]
CORPUS = sorted((BLOB / "corpus").glob("*/*"))


@pytest.fixture(scope="module", autouse=True)
def everything_is_loaded() -> None:
    for target in TARGETS:
        warm(target, SEEDS[target])


def test_the_corpus_covers_every_target() -> None:
    assert {path.parent.name for path in CORPUS} == {target.folder for target in TARGETS.values()}
    assert sum(path.stat().st_size for path in CORPUS) < 300_000


@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus_keeps_every_promise(target: str) -> None:
    kept = [path.read_bytes() for path in CORPUS if path.parent.name == TARGETS[target].folder]
    for data in (*SEEDS[target], *kept):
        found = tried(target, data, Limits(20_000, 3_000))
        assert found is None, found.what


@given(st.integers(0, 2**64 - 1), st.sampled_from(GOLDEN), st.integers(1, 3))
@settings(deadline=None, max_examples=250)
def test_nearly_right_files_keep_every_promise(seed: int, data: bytes, times: int) -> None:
    random = Random(seed)
    for _ in range(times):
        data = changed_file(data, random)
    for target in ("file", "openers"):
        found = tried(target, data, Limits(LIMIT))
        assert found is None, found.what


@given(st.integers(0, 2**64 - 1), st.sampled_from(GOLDEN))
@settings(deadline=None, max_examples=80)
def test_both_readers_agree_on_nearly_right_files(seed: int, data: bytes) -> None:
    found = tried("decoder", changed_file(data, Random(seed)), Limits(20_000))
    assert found is None, found.what


@pytest.mark.parametrize("target", [name for name, target in TARGETS.items() if target.mutate is None])
@given(st.integers(0, 2**64 - 1))
@settings(deadline=None, max_examples=25)
def test_nearly_right_streams_keep_every_promise(target: str, seed: int) -> None:
    random = Random(seed)
    data = random.choice(SEEDS[target])
    found = tried(target, changed_bytes(data, random), Limits(LIMIT, 10_000))
    assert found is None, found.what


@pytest.mark.parametrize("data", SMALLEST, ids=len)
def test_every_flipped_bit_cut_and_surplus_byte_is_noticed(data: bytes) -> None:
    for change in exhaustive.CHANGES.values():
        count, failed = exhaustive.unnoticed(change(data))
        assert count >= len(data) and not failed


def test_files_are_taken_apart_and_put_together_as_they_were() -> None:
    for data in GOLDEN:
        parts = taken_apart(data)
        assert parts is not None and put_together(parts) == data and parts.version == VERSION


def test_versions_beyond_are_refused_by_their_number() -> None:
    parts = taken_apart(GOLDEN[0])
    assert parts is not None
    with pytest.raises(FormatError, match=f"{VERSION + 1}"):
        parse(put_together(Parts(VERSION + 1, parts.header, parts.streams)))
