"""`quantgolf decompress` writes a tensor under each of its names, which a file has once."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from quantgolf.blob import pack, write_blob
from quantgolf.encode import Entry, encode_model

Run = Callable[..., tuple[int, str, str]]


def test_all_names_count(run: Run, tmp_path: Path) -> None:
    """1,000 values in fp64 under four names, and 100 in fp16 under one."""
    entries = [
        Entry("w", torch.ones(1000, dtype=torch.float64), aliases=("x", "y", "z")),
        Entry("v", torch.ones(10, 10).half()),
    ]
    write_blob(tmp_path / "a.qg", pack(encode_model(entries), None))
    size = 4 * 8000 + 200
    status, _, err = run("decompress", "a.qg", "--out", "o.safetensors", "--max-decoded-bytes", size - 1)
    assert status == 2 and not (tmp_path / "o.safetensors").exists()
    assert "file a.qg: its 2 tensors take 32,200 bytes under all of their 5 names, expected at most 32,199" in err
    assert "raise --max-decoded-bytes" in err
    status, _, err = run("decompress", "a.qg", "--out", "o.safetensors", "--max-decoded-bytes", size)
    assert status == 0, err
    assert sorted(load_file("o.safetensors")) == ["v", "w", "x", "y", "z"]


def test_many_names_of_one_tensor(run: Run, tmp_path: Path) -> None:
    """A file of a few hundred bytes whose 100,000 names would take 80 GB."""
    names = tuple(f"{i:05}" for i in range(100_000))
    entry = Entry("w", torch.zeros(200_000, dtype=torch.int32), aliases=names)
    write_blob(tmp_path / "a.qg", pack(encode_model([entry]), None))
    status, _, err = run("decompress", "a.qg", "--out", "o.safetensors")
    assert (
        status == 2 and "80,000,800,000 bytes under all of their 100001 names, expected at most 68,719,476,736" in err
    )
    assert [path.name for path in tmp_path.iterdir()] == ["a.qg"]
