"""Names of tensors that mean something to what prints or stores them: they are printed as they are, escaped, or
refused."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

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


def test_names_reach_terminals_escaped(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    """In tables and errors, of safetensors, pickles and shards; and JSON says what they are."""
    names = {"a": "a\x1b[31m\x9b\u202e", "b": "b\x1b]0;t\x07\n", "c": "c\ud800"}
    save_file({names["a"]: torch.ones(2)}, tmp_path / "a.safetensors")
    torch.save({names["b"]: torch.ones(2), names["c"]: torch.ones(3)}, tmp_path / "b.pt")
    status, out, err = run("diff", "a.safetensors", "b.pt")
    assert status == 1 and all(line.isprintable() for line in (out + err).split("\n"))
    assert all(shown in out for shown in (r"a\x1b[31m\x9b\u202e", r"b\x1b]0;t\x07\n", r"c\ud800"))
    status, out, _ = run("diff", "a.safetensors", "b.pt", "--json")
    assert status == 1 and out.isascii() and set(json.loads(out)["tensors"]) == set(names.values())
    (tmp_path / "x.index.json").write_text(json.dumps({"weight_map": {"w": f"{names['b']}{names['c']}"}}))
    status, _, err = run("diff", "x.index.json", "b.pt")
    assert status == 2 and r"shard b\x1b]0;t\x07 c\ud800 is missing" in err and err.count("\n") == 1


def test_descriptions_reach_terminals_escaped(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    model = {"family": "golf", "config": {"\x1b[31mx\x9b\u202e": 1}}
    write_blob(tmp_path / "a.qg", pack(encode_model([Entry("a", torch.zeros(3))]), model))
    status, _, err = run("eval", "a.qg", "--data", "demo", "--tokenizer", "demo")
    assert status == 2 and r"keyword argument '\x1b[31mx\x9b\u202e'" in err
    assert all(line.isprintable() for line in err.split("\n"))
