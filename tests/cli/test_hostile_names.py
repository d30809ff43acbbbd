"""Names of tensors that mean something to what prints or stores them: they are printed as they are, or refused."""

from collections.abc import Callable
from pathlib import Path

import torch

from quantgolf.blob import pack, write_blob
from quantgolf.encode import Entry, encode_model

NAMES = ["[/x]closes[red]nothing", "[link=http://x]y", ":smile:", "{0}%s\\n", "../../up", "-rf"]


def test_names_are_printed_as_they_are(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    coded = encode_model([Entry(name, torch.zeros(3)) for name in NAMES])
    write_blob(tmp_path / "names.qg", pack(coded, None))
    status, out, err = run("inspect", "names.qg")
    assert status == 0, err
    assert all(name in out for name in NAMES)
    status, _, err = run("decompress", "names.qg", "--out", "names.safetensors")
    assert status == 0, err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["names.qg", "names.safetensors"]


def test_a_name_that_safetensors_keeps_for_itself_is_refused(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    write_blob(tmp_path / "names.qg", pack(encode_model([Entry("__metadata__", torch.zeros(3))]), None))
    status, _, err = run("decompress", "names.qg", "--out", "out.safetensors")
    assert (
        status == 2 and "'__metadata__', expected another name" in err and not (tmp_path / "out.safetensors").exists()
    )
