"""What is written is read back from the disk and compared with what was solved, before it gets its name."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from quantgolf import atomic
from quantgolf.blob import VERSION, pack, read_blob
from quantgolf.checkpoint import Checkpoint
from quantgolf.compress import Compressed, calibrate, compress
from quantgolf.compress.readback import Expected, expected_of, read_back, solved_digest
from quantgolf.data import Tokenizer, read_corpus
from quantgolf.encode import Entry, Leveled, encode_codes, encode_model
from quantgolf.encode.model import Quantized
from quantgolf.errors import QuantGolfError
from quantgolf.runtime import digest, restore
from quantgolf.solve.trellis import Trellis
from quantgolf.types import BitPlan, BlobHeader, Block, Exponents, Groups, Steps

HEADER = BlobHeader(VERSION, {"family": "golf", "sizes": [1, 2.5], "none": None})
LEVELS = torch.arange(-12, 12).reshape(6, 4).int()
CODES = (torch.arange(24).reshape(6, 4) % 7 - 3).char()
EXPONENTS = Exponents(torch.arange(6).short() - 20, torch.arange(4).short(), -12)
GROUPS = Groups(torch.arange(12).reshape(6, 2).short() - 60, torch.ones(6, 2).char(), 3)
STEPS = torch.arange(1, 7).half() / 64


def entries(
    levels: torch.Tensor = LEVELS, codes: torch.Tensor = CODES, groups: Groups = GROUPS, norm: float = 0.5,
    steps: torch.Tensor = STEPS, exponents: Exponents = EXPONENTS, aliases: tuple[str, ...] = ("tied",),
) -> list[Entry]:  # fmt: skip
    """A tensor of levels, a bank with codes in its middle and kept rows around it, groups, and vectors."""
    coded = encode_codes(codes)
    return [
        Entry("levels", torch.zeros(6, 4).half(), (Leveled(Block("levels", 1, 0, 6), exponents, levels),), aliases),
        Entry("bank", torch.linspace(-1, 1, 72).half().reshape(3, 4, 6),
              (Quantized(Block("bank", 2, 4, 8, transposed=True), steps, 4, coded),)),
        Entry("groups", torch.zeros(6, 4), (Quantized(Block("groups", 1, 0, 6), groups, 4, coded),)),
        Entry("norm", torch.tensor([norm, 2.0, 1e-3])),
        Entry("wide", torch.tensor([1.0, 1e30])),
        Entry("count", torch.tensor(3)),
        Entry("none", torch.zeros(2, 0)),
    ]  # fmt: skip


def expected() -> tuple[Expected, ...]:
    """What `entries()` have to give back."""
    found = {
        Block("levels", 1, 0, 6): solved_digest(LEVELS, EXPONENTS.steps()),
        Block("bank", 2, 4, 8, transposed=True): solved_digest(CODES, Steps(STEPS)),
        Block("groups", 1, 0, 6): solved_digest(CODES, GROUPS),
    }
    return expected_of(entries(), found)


def result(of: list[Entry], header: BlobHeader = HEADER) -> Compressed:
    """A result that was coded as `of`, and has to be `entries()`."""
    coded = encode_model(of, Trellis(1))
    plan = BitPlan({}, 0, 0.0)
    return Compressed(pack(coded, header.model), HEADER, coded, expected(), plan, {}, {}, 0, 1)


def test_digests_are_those_of_the_formula() -> None:
    """codes · (r · k), and (codes - zero) · scale, in fp32; the digest is of the bytes row by row."""
    row, column = (s.numpy() for s in (EXPONENTS.steps().row, EXPONENTS.steps().column) if s is not None)
    weights = LEVELS.numpy().astype(np.float32) * (row[:, None] * column[None, :])
    assert solved_digest(LEVELS, EXPONENTS.steps()) == digest(torch.from_numpy(weights))
    scale = np.repeat(GROUPS.scales().numpy(), 3, axis=1)[:, :4]
    assert solved_digest(CODES, GROUPS) == digest(torch.from_numpy((CODES.numpy() - np.float32(1)) * scale))
    assert digest(torch.ones(2, 3)) == digest(torch.ones(3, 2)) != digest(torch.ones(2, 3).half())
    assert digest(torch.arange(6).reshape(2, 3).T) == digest(torch.tensor([[0, 3], [1, 4], [2, 5]]))


def test_a_file_that_is_what_was_solved_gets_its_name(tmp_path: Path) -> None:
    found = result(entries()).write(tmp_path / "a.qg")
    assert found.tensors == 7 and found.line() == "verified: read back from disk, 7 tensors bit for bit"
    coded = read_blob(tmp_path / "a.qg")[1]
    assert list(restore(coded)) == ["levels", "tied", "bank", "groups", "norm", "wide", "count", "none"]


def moved(values: torch.Tensor) -> torch.Tensor:
    values = values.clone()
    values[3, 1] += 1
    return values


@pytest.mark.parametrize(
    ("coded", "why"),
    [
        (entries(levels=moved(LEVELS)), "other weights in levels"),
        (entries(codes=moved(CODES)), "other weights in bank.1"),
        (entries(groups=replace(GROUPS, zero=torch.zeros(6, 2).char())), "other weights in groups"),
        (entries(steps=STEPS.flip(0)), "other weights in bank.1"),
        (entries(exponents=replace(EXPONENTS, fine_row=torch.ones(6).char())), "other weights in levels"),
        (entries(norm=0.51), "other weights in norm"),
        (entries(aliases=()), "the tensor"),
        (entries()[::-1], "the tensor"),
        (entries()[:-1], "6 tensors, expected 7"),
        ([*entries()[:-2], Entry("count", torch.tensor(3, dtype=torch.int32)), entries()[-1]], "the tensor"),
        ([*entries()[:-1], Entry("none", torch.zeros(0, 2))], "the tensor"),
    ],
)  # fmt: skip
def test_what_an_encoder_did_otherwise_is_told(tmp_path: Path, coded: list[Entry], why: str) -> None:
    """In a file that is sound in itself, with a checksum that agrees."""
    path = tmp_path / "a.qg"
    path.write_text("old")
    with pytest.raises(QuantGolfError, match=f"does not read back as what was solved .*{why}"):
        result(coded).write(path, overwrite=True)
    assert path.read_text() == "old" and [each.name for each in tmp_path.iterdir()] == ["a.qg"]


def test_another_description_is_told(tmp_path: Path) -> None:
    with pytest.raises(QuantGolfError, match="does not read back"):
        result(entries(), BlobHeader(VERSION, {"family": "other"})).write(tmp_path / "a.qg")


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:50] + b"\0" + data[51:], lambda _: b""])
def test_what_a_disk_did_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[bytes], bytes]
) -> None:
    monkeypatch.setattr("quantgolf.compress.result.fill", lambda beside, data: atomic.fill(beside, damage(data)))
    with pytest.raises(QuantGolfError, match="does not read back"):
        result(entries()).write(tmp_path / "a.qg")
    assert list(tmp_path.iterdir()) == []


def test_what_would_lose_more_than_the_format_says_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantgolf.compress.readback.stored_name", lambda values, dtype: "F16")
    with pytest.raises(QuantGolfError, match="wide would be kept in F16 and lose inf"):
        expected_of([Entry("wide", torch.tensor([1.0, 1e30]))], {})


@pytest.mark.parametrize("asked", [{"solver": "slope"}, {"rules": [("*", 4)]}, {"solver": "gptq"}])
def test_solvers_say_what_they_solved(
    tiny: Checkpoint, prose: Path, tokenizer: Tokenizer, tmp_path: Path, one_thread: None, asked: dict[str, object]
) -> None:
    """What is expected is theirs: their own weights, decoded anew, have its digests."""
    text = read_corpus(prose, tokenizer)
    limit = {} if "rules" in asked else {"max_bytes": 20_000}
    made = compress(tiny, calibrate(tiny, text, tokens=1024, length=64), **limit, **asked)  # type: ignore[arg-type]
    assert made.write(tmp_path / "a.qg").tensors == len(tiny.tensors)
    assert [each.name for each in made.expected] == list(tiny.tensors)
    other = replace(made, expected=tuple(
        replace(each, parts=tuple((place, "0" * 32) for place, _ in each.parts)) for each in made.expected
    ))  # fmt: skip
    with pytest.raises(QuantGolfError, match="other weights"):
        read_back(tmp_path / "a.qg", other.expected, other.header)


def test_subnormal_weights_are_solved_and_read_alike_where_they_are_flushed() -> None:
    steps = Exponents(torch.full((6,), -280).short(), torch.full((4,), -280).short(), 0).steps()
    wanted = solved_digest(LEVELS, steps)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    try:
        assert solved_digest(LEVELS, steps) == wanted
    finally:
        torch.set_flush_denormal(False)
