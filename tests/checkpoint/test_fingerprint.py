"""Two checkpoints have one fingerprint exactly where they hold the same; bad numbers are found wherever they hide."""

import hashlib
import json
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from quantgolf.checkpoint import fingerprint, open_checkpoint
from quantgolf.checkpoint.finite import refuse_non_finite
from quantgolf.errors import QuantGolfError

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


def base() -> dict[str, Tensor]:
    return {"a": torch.arange(6.0).view(2, 3), "b": torch.arange(4, dtype=torch.int64), "c": torch.tensor(1.5)}


def test_fingerprint_is_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[fingerprint.__module__], "CHUNK", 10)
    whole = hashlib.blake2b(digest_size=16)
    for (name, tensor), dtype in zip(base().items(), ("float32", "int64", "float32"), strict=True):
        whole.update(json.dumps([name, dtype, list(tensor.shape)]).encode() + b"\n")
        data = tensor.numpy().tobytes()
        for start in range(0, len(data), 10):
            whole.update(hashlib.blake2b(data[start : start + 10], digest_size=32).digest())
    assert fingerprint(base()) == whole.hexdigest()


def test_fingerprint_depends_on_content_alone() -> None:
    first = fingerprint(base())
    assert fingerprint(dict(reversed(base().items()))) == first
    assert fingerprint(base() | {"a": torch.arange(6.0).view(2, 3).T.contiguous().T}) == first
    changed = (
        base() | {"a": torch.arange(6.0).view(3, 2)},
        base() | {"b": base()["b"].view(torch.float64)},
        base() | {"c": torch.tensor(1.5000001)},
        base() | {"d": torch.zeros(0)},
        {"a": base()["a"], "b": base()["b"], "e": base()["c"]},
    )
    assert len({first, *map(fingerprint, changed)}) == 6


@given(st.sampled_from(FLOATS), st.integers(1, 300), st.data())
def test_a_bad_value_is_found_wherever_it_is(dtype: torch.dtype, size: int, data: st.DataObject) -> None:
    tensor = torch.linspace(-1, 1, size).to(dtype)
    refuse_non_finite({"good": tensor, "none": tensor[:0], "integer": torch.ones(2, dtype=torch.int64)}, "test")
    places = data.draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=3))
    values = ("nan",) if dtype == torch.float8_e4m3fn else ("nan", "inf", "-inf")
    wide = tensor.float().clone()
    for place in places:
        wide[place] = float(data.draw(st.sampled_from(values)))
    with pytest.raises(QuantGolfError, match=f"test: bad has {len(places)} values that are NaN or infinite"):
        refuse_non_finite({"good": tensor, "bad": wide.to(dtype)}, "test")


def test_all_tensors_with_bad_values_are_named() -> None:
    bad = torch.tensor([[1.0, float("nan")], [float("inf"), 1.0]])
    with pytest.raises(QuantGolfError, match="a has 2 values, b has 2 values, c has 1 values that are NaN"):
        refuse_non_finite({"a": bad, "b": bad.T, "c": torch.complex(torch.ones(1), torch.ones(1) / 0)}, "test")


def test_another_computation_with_the_same_weights_has_another_fingerprint(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(3, 2)}, tmp_path / "a.safetensors")
    text = "from torch import nn\n\ndef build():\n    return nn.Linear(2, 3, bias=False)\n\nother = build\n"
    (tmp_path / "a.py").write_text(text)
    (tmp_path / "copy.py").write_text(text)
    (tmp_path / "b.py").write_text(text + "\nSCALE = 2\n")
    opened = {
        model: open_checkpoint(tmp_path / "a.safetensors", f"{tmp_path}/{model}").fingerprint
        for model in ("a.py:build", "copy.py:build", "a.py:other", "b.py:build")
    }
    assert opened["a.py:build"] == opened["copy.py:build"]
    assert len(set(opened.values())) == 3
