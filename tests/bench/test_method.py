"""Methods of users: what they are given, that their files come back from a fresh process, and how each way to fail is
told."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from quantgolf.bench import method as room
from quantgolf.bench.method import compressed, filled, open_method, restored
from quantgolf.checkpoint import Checkpoint
from quantgolf.errors import QuantGolfError

PAGE = Path(__file__).parents[2] / "docs" / "evaluation.md"

EXACT = """
import io
import torch

def compress(state_dict, max_bytes=None, *, batches, model, level=3):
    assert batches == "text" and model == "module" and level == 3
    state_dict[next(iter(state_dict))].zero_()  # a copy, or it would show
    for name, tensor in state_dict.items():
        assert tensor.dtype == torch.float16, name
    return b"x" * (10 if max_bytes is None else max_bytes + 1)

def decompress(data):
    raise ValueError("never")
"""


def write(folder: Path, text: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def in_this_process(
    monkeypatch: pytest.MonkeyPatch, method: room.Method, source: Checkpoint, data: bytes = b""
) -> tuple[dict[str, torch.Tensor], float]:
    """`restored` without a process of its own: starting one takes seconds."""

    def ran(command: list[str], **_: Any) -> Any:
        room.restore_to(command[3], Path(command[4]), Path(command[5]))
        return type("Done", (), {"returncode": 0, "stderr": ""})

    monkeypatch.setattr(room.subprocess, "run", ran)
    return restored(method, data, source)


def test_the_documented_method_works(tmp_path: Path, tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    method = open_method(f"{write(tmp_path, code)}:FourBits")
    assert (method.name, method.asks) == ("FourBits", frozenset())
    before = {name: tensor.clone() for name, tensor in tiny.tensors.items()}
    made = compressed(method, tiny, {"max_bytes": None})
    assert len(made.data) < tiny.parameters
    weights, _ = in_this_process(monkeypatch, method, tiny, made.data)
    module = filled(tiny, weights)
    for name, tensor in tiny.tensors.items():
        assert torch.equal(tensor, before[name])
        error = (weights[name].float() - tensor.float()).abs().max()
        assert error <= tensor.float().abs().max() / 13 and (error > 0) == (tensor.ndim > 1)
        assert torch.equal(module.get_parameter(name).data, weights[name].float())


def test_functions_of_a_script_get_what_they_ask_for(tmp_path: Path, tiny: Checkpoint) -> None:
    method = open_method(str(write(tmp_path, EXACT)))
    assert method.name == "mine" and method.asks == {"max_bytes", "batches", "model"}
    given: dict[str, Any] = {"max_bytes": None, "batches": "text", "model": "module", "calibration": "unasked"}
    kept = {name: tensor.clone() for name, tensor in tiny.tensors.items()}
    assert len(compressed(method, tiny, given).data) == 10
    assert all(torch.equal(tensor, tiny.tensors[name]) for name, tensor in kept.items())
    with pytest.raises(QuantGolfError, match="compress\\(\\) returned 101 bytes, expected at most 100"):
        compressed(method, tiny, given | {"max_bytes": 100})


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("x = 1", "", "has no compress and decompress; expected compress"),
        ("def compress(s): pass", "", "has no decompress; expected"),
        ("class A: pass", "B", "the script has no 'B'"),
        ("class A:\n    def __init__(self): raise KeyError(3)", "A", r"mine.py, line 2: A\(\) failed, KeyError: 3"),
        ("import nothing_of_that_name", "", "line 1: the script failed, ModuleNotFoundError: No module"),
        ("raise SystemExit(4)", "", "the script failed, SystemExit: 4"),
        (
            "def compress(s, budget): pass\ndef decompress(d): pass",
            "",
            "asks for budget, expected any of max_bytes: the",
        ),
        ("def compress(): pass\ndef decompress(d): pass", "", "compress takes nothing"),
    ],
)
def test_what_is_no_method_is_refused(tmp_path: Path, text: str, name: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(QuantGolfError, match=message):
        open_method(f"{path}:{name}" if name else str(path))
    with pytest.raises(QuantGolfError, match="no such script, expected"):
        open_method(str(tmp_path / "other.py"))


HEAD = "import torch\ndef compress(s): return b''\ndef decompress(d):\n    "


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return [1]", r"decompress\(\) returned list, expected a dict of tensors by name"),
        ("return {'a': 1}", "returned something else in it, expected a dict"),
        (
            "return {}",
            "is not what compress\\(\\) got: missing emb.weight; .*; expected every name with its shape",
        ),
        ("return d.nothing", r"line 4: decompress\(\) failed, AttributeError"),
        ("return {'emb.weight': torch.zeros(3, 3), 'a': torch.ones(1)}", "is not what compress"),
    ],
)
def test_what_comes_back_wrong_is_refused(
    tmp_path: Path, tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch, body: str, message: str
) -> None:
    with pytest.raises(QuantGolfError, match=message):
        in_this_process(monkeypatch, open_method(str(write(tmp_path, HEAD + body))), tiny)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("s['emb.weight'][0, 0] = float('nan')", "emb.weight has NaN or infinity; expected"),
        ("s['emb.weight'] = s['emb.weight'].to(torch.int8)", "emb.weight is int8 where the model has float32"),
        ("s['emb.weight'] = s['emb.weight'].fill_(float('nan')).to(torch.float8_e4m3fn)", "emb.weight has NaN"),
        ("s['emb.weight'] = s['emb.weight'].to_sparse()", "writing what decompress\\(\\) returned failed"),
        ("s['emb.weight'] = s['emb.weight'].T", r"emb.weight is \[32, 1024\]|emb.weight.*32"),
        ("s['more'] = torch.ones(2)", "surplus more"),
    ],
)
def test_weights_that_are_none_are_refused(
    tmp_path: Path, tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch, change: str, message: str
) -> None:
    torch.save({name: tensor.float() for name, tensor in tiny.tensors.items()}, tmp_path / "all.pt")
    body = f"s = torch.load({str(tmp_path / 'all.pt')!r})\n    {change}\n    return s"
    with pytest.raises(QuantGolfError, match=message):
        in_this_process(monkeypatch, open_method(str(write(tmp_path, HEAD + body))), tiny)


def test_the_fresh_process_has_nothing_but_the_file_and_says_why_it_failed(tmp_path: Path, tiny: Checkpoint) -> None:
    text = (
        "import os\nHELD = []\ndef compress(s):\n    HELD.append(s)\n    return b'abc'\n"
        "def decompress(d):\n    raise RuntimeError(f'{d} {len(HELD)} {os.listdir()}')\n"
    )
    method = open_method(str(write(tmp_path, text)))
    made = compressed(method, tiny, {})
    with pytest.raises(QuantGolfError, match=r"line 7: decompress\(\) failed, RuntimeError: b'abc' 0 \[\]"):
        restored(method, made.data, tiny)
    wrong = open_method(str(write(tmp_path, text.replace("b'abc'", "'abc'"), "other.py")))
    with pytest.raises(QuantGolfError, match=r"compress\(\) returned str, expected bytes"):
        compressed(wrong, tiny, {})


@pytest.mark.parametrize(
    ("status", "stderr", "message"),
    [
        (0, "", r"mine: the fresh process ended with exit code 0 in decompress\(\), expected weights"),
        (-9, "a warning\n", r"exit code -9 in decompress\(\) after 'a warning', expected weights"),
        (QuantGolfError.exit_code, "", "ended with exit code 2"),
    ],
)
def test_a_process_that_ends_without_weights_is_told(
    tmp_path: Path, tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch, status: int, stderr: str, message: str
) -> None:
    done = type("Done", (), {"returncode": status, "stderr": stderr})
    monkeypatch.setattr(room.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(QuantGolfError, match=message):
        restored(open_method(str(write(tmp_path, HEAD + "return {}"))), b"", tiny)
