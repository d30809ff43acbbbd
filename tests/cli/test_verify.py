"""`quantgolf verify` as it is typed: sound files, damaged ones among them, and readers that disagree."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from quantgolf.blob import pack, write_blob
from quantgolf.decoder import export_decoder
from quantgolf.encode import Entry, Leveled, Quantized, encode_codes, encode_model
from quantgolf.runtime import digest
from quantgolf.solve.trellis import Trellis
from quantgolf.types import Block, Exponents

Run = Callable[..., tuple[int, str, str]]
CODES = (torch.arange(24).reshape(6, 4) % 7 - 3).char()
MASK = torch.tensor([0.0, -torch.inf])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with codes, levels, a tie, and a buffer of infinities that the checkpoint had."""
    exponents = Exponents(torch.zeros(5).short(), torch.zeros(3).short(), 0)
    codes = Quantized(Block("a", 1, 0, 6), torch.ones(6).half(), 4, encode_codes(CODES))
    levels = Leveled(Block("b", 1, 0, 5), exponents, torch.ones(5, 3).int())
    entries = [
        Entry("a", torch.zeros(6, 4).half(), (codes,), ("tied",)),
        Entry("b", torch.zeros(5, 3), (levels,)),
        Entry("mask", MASK),
    ]
    path = tmp_path / "a.qg"
    write_blob(path, pack(encode_model(entries, Trellis(1)), None))
    return path


def test_a_sound_file(run: Run, ran: Callable[..., Any], file: Path) -> None:
    status, out, err = run("verify", file, "--digests")
    assert status == 0 and err.count("quantgolf:") == 0
    assert f"{file}: sound; {file.stat().st_size:,} bytes, format version" in out
    assert "2 quantized matrices, 41 numbers in all" in out and "restores the same bits" in out
    assert "infinities or NaN: mask" in out and digest(CODES.float()) in out

    document = ran("verify", file, "--digests", "--decoder", "none")
    (found,) = document["files"]
    assert document["sound"] and found["sound"] and found["error"] is None and found["bytes"] == file.stat().st_size
    assert [check["check"] for check in found["checks"]] == ["file", "streams", "values"]
    assert all(check["passed"] for check in found["checks"])
    assert found["digests"]["tied"] == found["digests"]["a"] == {
        "dtype": "float32", "shape": [6, 4], "digest": digest(CODES.float())
    }  # fmt: skip
    assert list(found["digests"]) == ["a", "tied", "b", "mask"] and found["tensors"] == 4
    assert len(found["digest"]) == 32


def test_one_bad_file_does_not_keep_the_others_from_being_checked(run: Run, file: Path, tmp_path: Path) -> None:
    data = file.read_bytes()
    files = {"cut": data[:-5], "flipped": data[:40] + bytes([data[40] ^ 4]) + data[41:], "other": b"something else"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    status, out, err = run(
        "verify", tmp_path / "cut", file, *(tmp_path / name for name in ("flipped", "other", "none"))
    )
    assert status == 2 and out.count("NOT SOUND") == 4 and f"{file}: sound" in out
    assert "FAILED: file" in out and "is truncated" in out and "checksum is" in out and "not a quantgolf file" in out
    (line,) = [line for line in err.splitlines() if line.startswith("quantgolf:")]
    assert "4 of 5 files not sound" in line
    status, out, _ = run("verify", tmp_path / "cut", file, "--json", "--decoder", "none")
    document = json.loads(out)
    assert status == 2 and not document["sound"] and [each["sound"] for each in document["files"]] == [False, True]
    assert [check["passed"] for check in document["files"][0]["checks"]] == [False]


def test_files_that_take_too_much_memory_are_refused(run: Run, file: Path) -> None:
    status, _, err = run("verify", file, "--max-decoded-bytes", "100")
    assert status == 2 and "expected at most 100" in err
    assert run("verify", file, "--max-decoded-bytes", "1kB", "--decoder", "none")[0] == 0


def test_another_decoder_has_to_agree(run: Run, file: Path, tmp_path: Path) -> None:
    off, broken = tmp_path / "off.py", tmp_path / "broken.py"
    code = export_decoder(readable=True)
    off.write_bytes(code + b"\nright = load\ndef load(source, exact):\n    found, model = right(source, exact)\n"
                    b"    found['b'][4, 2] *= -1\n    return found, model\n")  # fmt: skip
    broken.write_bytes(b"def load(source, exact):\n    raise OSError('no')\n")
    status, out, err = run("verify", file, "--decoder", off)
    assert status == 2 and "restores b otherwise than quantgolf" in err and "decoder  FAILED" in out
    assert f"note: {off} is executed" in err
    status, _, err = run("verify", file, "--decoder", broken)
    assert status == 2 and "(OSError: no)" in err
    status, _, err = run("verify", file, "--decoder", tmp_path / "none.py")
    assert status == 2 and "expected a decoder" in err


def test_what_would_take_long_is_left_out_unless_asked_for(
    run: Run, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantgolf.decoder.duration.SECONDS_A_BLOCK", 800.0)
    status, out, _ = run("verify", file)
    assert status == 0 and "not asked: it would take 40.0 min; --decoder always asks it" in out


def test_what_takes_long_all_the_same_is_stopped_unless_asked_for(
    run: Run, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float | None] = []

    def stopped(decoder: bytes, paths: list[Path], patience: float | None) -> tuple[list[None], float]:
        given.append(patience)
        return [None for _ in paths], 1.0

    monkeypatch.setattr("quantgolf.decoder.check.seen_by", stopped)
    status, out, _ = run("verify", file)
    assert status == 0 and f"{file}: sound" in out
    assert "decoder  stopped: it took more than 3.0 min; --decoder always waits for it" in out
    status, out, _ = run("verify", file, "--json")
    (found,) = json.loads(out)["files"]
    assert found["sound"] and [check["check"] for check in found["checks"]] == ["file", "streams", "values"]
    run("verify", file, "--decoder", "always")
    assert given == [180, 180, None]


def test_tensors_without_rows_and_numbers_beyond_fp32(run: Run, tmp_path: Path) -> None:
    entries = [Entry("w", torch.empty(0, 5)), Entry("wide", torch.tensor([1e300, 1.0], dtype=torch.float64))]
    write_blob(tmp_path / "a.qg", pack(encode_model(entries), None))
    status, out, _ = run("verify", tmp_path / "a.qg")
    assert status == 0 and "values   all are finite" in out and "restores the same bits" in out
    bad = Entry("wide", torch.tensor([torch.inf, 1.0], dtype=torch.float64))
    write_blob(tmp_path / "b.qg", pack(encode_model([bad]), None))
    assert "with infinities or NaN: wide" in run("verify", tmp_path / "b.qg", "--decoder", "none")[1]


def test_weights_that_are_not_finite_are_told(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No encoder of ours writes them, and the reader's own checks are switched off here."""
    steps = torch.tensor([1.0, torch.inf]).half()
    for where in ("quantgolf.encode.model.check_steps",):
        monkeypatch.setattr(where, lambda *_: None)
    part = Quantized(Block("a", 1, 0, 2), steps, 4, encode_codes(torch.ones(2, 2).char()))
    write_blob(tmp_path / "a.qg", pack(encode_model([Entry("a", torch.zeros(2, 2), (part,))]), None))
    status, _, err = run("verify", tmp_path / "a.qg", "--decoder", "none")
    assert status == 2 and "a decodes to infinities or NaN" in err
