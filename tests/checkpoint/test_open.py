"""A checkpoint must fit its module; whatever does not is said in one line."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from quantgolf.checkpoint import build_model, describe_model, fill, open_checkpoint
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
    raise ValueError("no weights today\\nnor tomorrow")

def exits():
    raise SystemExit(2)

def compiled():
    return torch.compile(build(), backend="eager")

def with_sibling():
    import sibling_of_net
    return sibling_of_net.build()
"""


class Tied(nn.Module):
    """A head tied to the embedding by name, or, with `memory`, by another parameter on the same memory."""

    def __init__(self, memory: bool = False) -> None:
        super().__init__()
        self.emb = nn.Embedding(4, 3)
        self.head = nn.Linear(3, 4, bias=False)
        self.head.weight = nn.Parameter(self.emb.weight.data) if memory else self.emb.weight


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
        ("{script}:broken", "no weights today nor tomorrow; it is called without arguments"),
        ("{script}:exits", r"exits\(\) failed, SystemExit: 2"),
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
        ("[" * 100_000, "not JSON"),
        ('{"family": "golf", "config": {"dim": 4611686018427387904}}', "golf config {'dim': 46.*; expected the fields"),
        ('{"family": "golf", "config": {"vocab_size": 99999999999999999999999, "dim": 8}}', "golf config {'vocab"),
        (json.dumps({"family": "golf", "config": {"w" * 100_000: 1}}), "golf config {'www.*…: .*; expected the fields"),
        (json.dumps({"family": "w" * 100_000}), "model family 'www.*… is unknown"),
    ],
)
def test_bad_cards_are_refused(tmp_path: Path, text: str, message: str) -> None:
    card = tmp_path / "card.json"
    card.write_text(text)
    with pytest.raises(QuantGolfError, match=message) as caught:
        build_model(card)
    said = str(caught.value).replace(str(card), "")
    assert "\n" not in said and len(said) < 700 and "C++" not in said and "c10::" not in said


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


@pytest.mark.parametrize("memory", [False, True])
def test_tied_storage_is_kept_once(memory: bool) -> None:
    def tied() -> Tied:
        return Tied(memory)

    state = {"emb.weight": torch.ones(4, 3), "head.weight": torch.ones(4, 3)}
    assert fill(tied(), state, "test") == {"emb.weight": ("head.weight",)}
    assert fill(tied(), {"emb.weight": torch.ones(4, 3)}, "test") == {}
    fill(tied(), {"head.weight": torch.ones(4, 3)}, "test")
    with pytest.raises(QuantGolfError, match=r"head\.weight differs from emb\.weight"):
        fill(tied(), state | {"head.weight": torch.zeros(4, 3)}, "test")


def test_a_tie_survives_opening_and_loading(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_file({"emb.weight": torch.randn(4, 3)}, path)
    for memory in (False, True):
        module = open_checkpoint(path, Tied(memory)).module
        assert module.head.weight.data_ptr() == module.emb.weight.data_ptr()
        fill(module, {"head.weight": torch.ones(4, 3)}, "test")
        assert bool((module.emb.weight == 1).all()) and bool((module.head.weight == 1).all())


def test_storage_shared_in_the_file_alone_is_two_tensors(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)

    flat = torch.randn(18)
    shared, views = tmp_path / "shared.pt", tmp_path / "views.pt"
    torch.save({"a.weight": flat[:9].view(3, 3), "b.weight": flat[:9].view(3, 3)}, shared)
    torch.save({"a.weight": flat[:9].view(3, 3), "b.weight": flat[9:].view(3, 3).T}, views)
    checkpoint = open_checkpoint(shared, Two())
    assert list(checkpoint.tensors) == ["a.weight", "b.weight"] and checkpoint.aliases == {}
    checkpoint = open_checkpoint(views, Two())
    assert torch.equal(checkpoint.module.a.weight, flat[:9].view(3, 3))
    assert torch.equal(checkpoint.module.b.weight, flat[9:].view(3, 3).T)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_fp32_weights_exist_once_and_narrower_ones_are_widened(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"c.{suffix}"
    state = {"a.weight": torch.randn(3, 3), "a.bias": torch.randn(3).bfloat16()}
    (save_file if suffix == "safetensors" else torch.save)(state, path)
    checkpoint = open_checkpoint(path, nn.ModuleDict({"a": nn.Linear(3, 3)}))
    layer = checkpoint.module["a"]
    assert isinstance(layer.weight, nn.Parameter) and layer.weight.requires_grad
    assert layer.weight.data_ptr() == checkpoint.tensors["a.weight"].data_ptr()
    assert layer.bias.dtype == torch.float32 and checkpoint.tensors["a.bias"].dtype == torch.bfloat16
    assert torch.equal(layer.weight, state["a.weight"]) and torch.equal(layer.bias, state["a.bias"].float())
    with torch.no_grad():  # the mapping is private: whoever breaks the rule does not change the file
        layer.weight.zero_()
    again = open_checkpoint(path, nn.ModuleDict({"a": nn.Linear(3, 3)}))
    assert torch.equal(again.tensors["a.weight"], state["a.weight"])


def test_parameters_that_overlap_keep_their_memory(tmp_path: Path) -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            flat = torch.zeros(12)
            self.a, self.b = nn.Parameter(flat[:4].view(2, 2)), nn.Parameter(flat[4:].view(2, 4))

    state = {"a": torch.randn(2, 2), "b": torch.randn(2, 4)}
    save_file(state, tmp_path / "c.safetensors")
    module = open_checkpoint(tmp_path / "c.safetensors", Flat()).module
    assert module.b.data_ptr() == module.a.data_ptr() + 16
    assert torch.equal(module.a, state["a"]) and torch.equal(module.b, state["b"])


def test_the_callers_module_is_left_alone_where_weights_are_bad(tmp_path: Path) -> None:
    path, module = tmp_path / "c.safetensors", nn.Linear(2, 2)
    before = module.weight.detach().clone()
    save_file({"weight": torch.ones(2, 2), "bias": torch.tensor([0, float("nan")])}, path)
    with pytest.raises(QuantGolfError, match="bias has 1 values"):
        open_checkpoint(path, module)
    assert torch.equal(module.weight, before)


def test_factories_may_compile_and_import_their_siblings(script: Path) -> None:
    sibling = "from torch import nn\n\ndef build():\n    return nn.Linear(1, 1)\n"
    (script.parent / "sibling_of_net.py").write_text(sibling)
    assert type(build_model(f"{script}:compiled")).__name__ == "Net"
    assert type(build_model(f"{script}:with_sibling")) is nn.Linear


def test_a_card_is_described_through_compilation() -> None:
    model = Golf(GolfConfig(vocab_size=16, dim=16, layers=1))
    assert describe_model(torch.compile(model, backend="eager")) == describe_model(model)


def test_a_missing_model_option_is_asked_for(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "c.safetensors")
    with pytest.raises(QuantGolfError, match=r"--model is missing.*hf:PATH"):
        open_checkpoint(tmp_path / "c.safetensors")
