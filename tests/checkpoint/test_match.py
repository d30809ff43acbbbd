"""Names decide which tensor belongs where; what wrappers add to them is seen through, everything else is said."""

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from quantgolf.checkpoint.match import match
from quantgolf.errors import QuantGolfError


class Net(nn.Module):
    """Two layers, an embedding that serves as head in code alone, and a buffer the module computes itself."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(5, 4)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.register_buffer("inv_freq", 10.0 ** -torch.arange(4), persistent=False)


def state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(t.shape, generator=generator) for name, t in Net().state_dict().items()}


def problems(module: nn.Module, stored: dict[str, Tensor]) -> str:
    with pytest.raises(QuantGolfError) as caught:
        match(module, stored).refuse_problems("test")
    return str(caught.value)


def test_a_perfect_match_says_nothing() -> None:
    found = match(Net(), state())
    assert (found.aliases, found.notes, found.problems, found.hint) == ({}, (), (), "")
    assert all(found.tensors[name] is not None and torch.equal(found.tensors[name], t) for name, t in state().items())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_taken_off_and_said(prefix: str) -> None:
    found = match(Net(), {prefix + name: tensor for name, tensor in state().items()})
    assert list(found.tensors) == list(state()) and found.problems == ()
    (note,) = found.notes
    assert note.startswith("matched 5 names regardless of") and all(repr(p) in note for p in prefix.split(".") if p)


def test_compiled_layers_match_plain_ones_both_ways() -> None:
    stored = {name.replace("layers.1.", "layers.1._orig_mod."): tensor for name, tensor in state().items()}
    found = match(Net(), stored)
    assert (
        set(found.tensors) == set(state()) and "stored layers.1._orig_mod.weight is layers.1.weight" in found.notes[0]
    )

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._orig_mod = nn.Linear(2, 2)

    outer = nn.ModuleDict({"a": Wrapped()})
    found = match(outer, {"a.weight": torch.ones(2, 2), "a.bias": torch.ones(2)})
    assert list(found.tensors) == ["a._orig_mod.weight", "a._orig_mod.bias"] and found.problems == ()


def test_a_prefix_alone_does_not_excuse_what_is_missing() -> None:
    stored = {f"module.{name}": tensor for name, tensor in state().items() if name != "layers.0.bias"}
    message = problems(Net(), stored)
    assert "missing layers.0.bias" in message and "surplus module.emb.weight" in message
    assert "All stored names begin with 'module.', which the model's do not" in message


def test_a_model_that_has_a_child_of_that_name_is_not_confused() -> None:
    outer = nn.ModuleDict({"module": nn.Linear(2, 2), "other": nn.Linear(2, 2)})
    stored = {name: torch.full(t.shape, float(i)) for i, (name, t) in enumerate(outer.state_dict().items())}
    found = match(outer, stored)
    assert found.notes == () and {n: t.mean().item() for n, t in found.tensors.items()} == {
        "module.weight": 0, "module.bias": 1, "other.weight": 2, "other.bias": 3,
    }  # fmt: skip


@pytest.mark.parametrize("prefix", ["model.", "model.language."])
def test_other_prefixes_are_suggested(prefix: str) -> None:
    stored = {prefix + name: tensor for name, tensor in state().items()}
    assert f"All stored names begin with {prefix!r}, which the model's do not" in problems(Net(), stored)
    inner: nn.Module = Net()
    for part in reversed(prefix.split(".")[:-1]):
        inner = nn.ModuleDict({part: inner})
    assert f"The model's names begin with {prefix!r}, which the stored ones lack" in problems(inner, state())


def test_shapes_and_kinds_that_differ_are_listed_with_names() -> None:
    stored = state() | {"emb.weight": torch.zeros(4, 5), "layers.0.weight": torch.zeros(4, 4, dtype=torch.int8)}
    del stored["layers.1.bias"]
    message = problems(Net(), stored | {"extra": torch.zeros(1)})
    for part in (
        "missing layers.1.bias",
        "surplus extra",
        "emb.weight is [4, 5] where the model has [5, 4]",
        "layers.0.weight is int8 where the model has float32",
    ):
        assert part in message


def test_a_surplus_head_that_repeats_the_embedding_is_its_alias() -> None:
    head = {"head.weight": state()["emb.weight"].clone()}
    found = match(Net(), head | state())
    assert found.aliases == {"emb.weight": ("head.weight",)} and found.problems == ()
    assert "surplus head.weight" in problems(Net(), state() | {"head.weight": head["head.weight"] + 1e-6})
    constant = torch.ones(5, 4)
    assert "surplus head.weight" in problems(Net(), state() | {"emb.weight": constant, "head.weight": constant.clone()})
    found = match(Net(), state() | {"emb.weight": constant, "head.weight": constant})
    assert found.aliases == {"emb.weight": ("head.weight",)} and found.problems == ()
    bias = state()["layers.0.bias"].clone()
    assert "surplus gate" in problems(Net(), state() | {"gate": bias})


VALUES = st.sampled_from([0.0, -0.0, 1.0, float("nan"), 1e-45])
MATRICES = st.lists(VALUES, min_size=4, max_size=4).map(lambda values: torch.tensor(values).reshape(2, 2))


@given(stored=st.lists(MATRICES, min_size=3, max_size=3), surplus=st.lists(MATRICES, max_size=4), half=st.booleans())
def test_aliases_are_those_of_a_slow_search(stored: list[Tensor], surplus: list[Tensor], half: bool) -> None:
    """Each surplus matrix compared with each stored one, number by number; names of one memory are tied at any rate."""
    module = nn.ModuleList(nn.Linear(2, 2, bias=False) for _ in range(3))
    have = {f"{i}.weight": tensor for i, tensor in enumerate(stored)}
    more = {f"s{i}": tensor.half() if half else tensor for i, tensor in enumerate(surplus)} | {"view": stored[1]}
    expected: dict[str, list[str]] = {}
    for name, tensor in more.items():
        flat = tensor.flatten().tolist()
        one = [other for other, value in have.items() if value is tensor]
        if len(set(flat)) > 1:
            one += [
                other
                for other, value in have.items()
                if value.dtype == tensor.dtype and value.flatten().tolist() == flat
            ]
        if one:
            expected.setdefault(one[0], []).append(name)
    found = match(module, have | more)
    assert found.aliases == {name: tuple(names) for name, names in expected.items()}
    assert len(found.problems) == len(more) - sum(map(len, expected.values()))


def test_very_many_names_take_no_quadratic_time() -> None:
    """Of one matrix, of matrices that are all alike in their first row, and of what has no place at all: each took
    between 8 s and minutes where every one was compared with every other."""
    begin = time.process_time()
    whole = torch.randn(300, 300)
    found = match(nn.Linear(300, 300, bias=False), {"weight": whole, **{f"a{i}": whole for i in range(40_000)}})
    assert len(found.aliases["weight"]) == 40_000 and found.problems == ()
    module = nn.ModuleList(nn.Linear(2, 2, bias=False) for _ in range(1000))
    stored = {name: torch.tensor([[0, 1], [0, i]]).float() for i, name in enumerate(module.state_dict())}
    surplus = {f"s{i}": torch.tensor([[0, 1], [1, i]]).float() for i in range(4000)}
    assert len(match(module, stored | surplus).problems) == 4000
    deep = nn.ModuleDict({f"a{i}": nn.ModuleDict({"b": nn.Linear(1, 1, bias=False)}) for i in range(1000)})
    assert len(match(deep, {f"q{i}.x.y": torch.ones(1, 1) for i in range(20_000)}).problems) == 21_000
    assert time.process_time() - begin < 6


def test_surplus_buffers_are_left_out_only_where_the_model_computes_the_same() -> None:
    same = 10.0 ** -torch.arange(4)
    for stored in (same, same.bfloat16()):
        found = match(Net(), state() | {"layers.0.rotary.inv_freq": stored})
        assert found.problems == () and list(found.tensors) == list(state())
        assert found.notes == ("left out layers.0.rotary.inv_freq: the model computes the same values itself",)
    for name, other in (("inv_freq", same * 1.001), ("inv_freq", same[:3]), ("freq", same), ("inv_freq", same.long())):
        assert f"surplus {name}" in problems(Net(), state() | {name: other})


def test_many_problems_stay_one_line() -> None:
    message = problems(nn.ModuleList(nn.Linear(1, 1) for _ in range(20)), {})
    assert "and 28 more" in message and "\n" not in message


def test_a_module_that_stores_more_than_tensors_is_refused() -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"step": 1}

    with pytest.raises(QuantGolfError, match="keeps _extra_state, which are no tensors"):
        match(Extra(1, 1), {})
