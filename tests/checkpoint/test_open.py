"""A checkpoint must fit its module; whatever does not is said in one line."""

import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from quantgolf.checkpoint import build_model, describe_model, fill, open_checkpoint, read_state, write_state
from quantgolf.errors import QuantGolfError
from quantgolf.models.golf import Golf, GolfConfig

SCRIPT = """
from __future__ import annotations
from dataclasses import dataclass
import torch
from torch import nn

@dataclass
class Config:
    size: int = 3

class Net(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.a = nn.Linear(config.size, config.size)

def build():
    return Net(Config())

def wrong():
    return 3

def broken():
    raise ValueError("no weights today")
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "net.py"
    path.write_text(SCRIPT)
    return path


def test_card_and_script_build_modules(tmp_path: Path, script: Path) -> None:
    card = tmp_path / "card.json"
    card.write_text(json.dumps({"family": "golf", "config": {"vocab_size": 16, "dim": 16, "layers": 1}}))
    for place in (card, tmp_path):
        model = build_model(place)
        assert isinstance(model, Golf) and model.config.dim == 16 and not model.training
    assert describe_model(card) == {"family": "golf", "config": {"vocab_size": 16, "dim": 16, "layers": 1}}
    assert type(build_model(f"{script}:build")).__name__ == "Net"
    assert describe_model(f"{script}:build") is None


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere.json", "expected a card.json"),
        ("nowhere.py:build", "no such file"),
        ("{script}:nothing", "has no function 'nothing'"),
        ("{script}:wrong", "returned int"),
        ("{script}:broken", "no weights today"),
    ],
)
def test_bad_models_are_refused(script: Path, spec: str, message: str) -> None:
    with pytest.raises(QuantGolfError, match=message):
        build_model(spec.format(script=script))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "no 'family'"),
        ('{"family": "llama", "config": {}}', "family 'llama' is unknown"),
        ('{"family": "golf", "config": {"width": 3}}', "unexpected keyword argument 'width'"),
        ('{"family": "golf", "config": {"dim": -4}}', "dim is -4"),
        ('{"family": "golf", "config": {"heads": 3, "kv_heads": 2}}', "multiple of kv_heads"),
        ('{"family": "golf", "config": {"dim": 20}}', "multiple of 2"),
    ],
)
def test_bad_cards_are_refused(tmp_path: Path, text: str, message: str) -> None:
    card = tmp_path / "card.json"
    card.write_text(text)
    with pytest.raises(QuantGolfError, match=message):
        build_model(card)


def test_all_mismatches_come_at_once(tmp_path: Path, script: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_file({"a.weight": torch.zeros(3, 4), "b": torch.zeros(1)}, path)
    with pytest.raises(QuantGolfError) as caught:
        open_checkpoint(path, f"{script}:build")
    for part in ("missing a.bias", "surplus b", "a.weight is [3, 4] where the model has [3, 3]"):
        assert part in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, script: Path, value: float) -> None:
    path = tmp_path / "c.safetensors"
    save_file({"a.weight": torch.full((3, 3), value), "a.bias": torch.zeros(3)}, path)
    with pytest.raises(QuantGolfError, match=r"a\.weight has 9 values that are NaN or infinite"):
        open_checkpoint(path, f"{script}:build")


def test_half_precision_is_kept_as_stored_and_computed_in_fp32(tmp_path: Path) -> None:
    model = Golf(GolfConfig(vocab_size=16, dim=16, layers=1))
    path = tmp_path / "c.safetensors"
    save_file({name: value.half() for name, value in model.state_dict().items()}, path)
    checkpoint = open_checkpoint(path, model)
    assert all(p.dtype == torch.float32 for p in checkpoint.module.parameters())
    assert all(t.dtype == torch.float16 for t in checkpoint.tensors.values())
    assert checkpoint.description == describe_model(model)
    assert checkpoint.parameters == sum(p.numel() for p in model.parameters())


def test_tied_storage_is_kept_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb = nn.Embedding(4, 3)
            self.head = nn.Linear(3, 4, bias=False)
            self.head.weight = self.emb.weight

    state = {"emb.weight": torch.ones(4, 3), "head.weight": torch.ones(4, 3)}
    assert fill(Tied(), state, "test") == {"emb.weight": ("head.weight",)}
    assert fill(Tied(), {"emb.weight": torch.ones(4, 3)}, "test") == {}
    fill(Tied(), {"head.weight": torch.ones(4, 3)}, "test")
    with pytest.raises(QuantGolfError, match=r"head\.weight differs from emb\.weight"):
        fill(Tied(), state | {"head.weight": torch.zeros(4, 3)}, "test")


def test_torch_files_load_without_their_pickle(tmp_path: Path) -> None:
    good, more, code = tmp_path / "good.pt", tmp_path / "more.pt", tmp_path / "code.pt"
    torch.save(OrderedDict(a=torch.ones(2)), good)
    assert read_state(good)["a"].tolist() == [1, 1]
    torch.save({"model": {"a": torch.ones(2)}, "step": 3}, more)
    with pytest.raises(QuantGolfError, match="alone, without optimizer"):
        read_state(more)
    torch.save({"a": nn.Linear(2, 2)}, code)
    with pytest.raises(QuantGolfError, match="weights_only=True"):
        read_state(code)


@pytest.mark.parametrize("name", ["missing.safetensors", "text.safetensors", "empty.safetensors", "text.pt", "x.bin"])
def test_unreadable_checkpoints_are_refused(tmp_path: Path, name: str) -> None:
    if not name.startswith("missing"):
        (tmp_path / name).write_text("" if name.startswith("empty") else "hello, this is not a checkpoint")
    with pytest.raises(QuantGolfError, match="checkpoint "):
        read_state(tmp_path / name)


def test_writing_never_replaces_unasked_and_leaves_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "out.safetensors"
    write_state(path, {"a": torch.ones(2)})
    with pytest.raises(QuantGolfError, match="exists already"):
        write_state(path, {"a": torch.zeros(2)})
    assert load_file(path)["a"].tolist() == [1, 1]
    write_state(path, {"a": torch.zeros(2)}, overwrite=True)
    with pytest.raises(QuantGolfError, match="cannot be written"):
        write_state(tmp_path / "no" / "folder.safetensors", {"a": torch.ones(2)})
    assert [p.name for p in tmp_path.iterdir()] == ["out.safetensors"]
