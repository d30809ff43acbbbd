"""Packed modules in place of others: ties, hooks, state, training, errors."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantgolf.checkpoint.call import device_of
from quantgolf.errors import QuantGolfError
from quantgolf.models.golf import Golf
from quantgolf.runtime import PackedParameter, QuantEmbedding, QuantLinear, load, materialize, memory
from quantgolf.runtime.place import _twice
from quantgolf.types import CodedModel, CodedTensor

Make = Callable[..., Path]
TOKENS = torch.arange(2 * 20).reshape(2, 20) % 90
GOLF: list[dict[str, Any]] = [{}, {"banks": True}, {"tied": False, "gates": True}]


def close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert float((found - expected).norm()) <= 1e-5 * float(expected.norm())


def both(path: Path, model: Any = None) -> tuple[nn.Module, nn.Module]:
    """The file's module with packed weights, and with floating point ones."""
    other = copy.deepcopy(model) if isinstance(model, nn.Module) else model
    return load(path, model, materialize=False), load(path, other)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb, self.head = nn.Embedding(90, 16), nn.Linear(16, 90)
        self.head.weight = self.emb.weight
        self.norm = nn.LayerNorm(16)

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.head(self.norm(self.emb(tokens)))
        return found


def test_tied_weights_share_one_packed_storage(made: Make) -> None:
    model = Tied()
    path = made(model, aliases={"emb.weight": ("head.weight",)})
    packed, dense = both(path, model)
    assert isinstance(packed, Tied) and isinstance(packed.head, QuantLinear) and isinstance(packed.emb, QuantEmbedding)
    assert packed.head.weight is packed.emb.weight  # type: ignore[comparison-overlap]
    assert packed.head.bias is not None and packed.head.bias.requires_grad
    with torch.no_grad():
        close(packed(TOKENS), dense(TOKENS))
        close(packed.bfloat16()(TOKENS).float(), packed(TOKENS).float())
    assert packed.head.packed.row.dtype == torch.float32 and packed(TOKENS).dtype == torch.bfloat16
    assert packed.head.packed.data.data_ptr() == packed.emb.packed.data.data_ptr()
    assert sum(tensor.packed for tensor in memory(packed).tensors) == 90 * 16
    assert torch.equal(packed.float().emb.float_weights(), dense.emb.weight)
    assert "[90, 16], bits=4" in repr(packed.head) and "packed bits per weight" in repr(packed.head)


def test_ties_made_in_code_alone(made: Make) -> None:
    """A file with the head's name beside the table's, for a module that has the table only."""

    class InCode(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb = nn.Embedding(90, 16)

        def forward(self, tokens: Tensor) -> Tensor:
            return F.linear(self.emb(tokens), self.emb.weight)

    model = InCode()
    packed, dense = both(made(model, aliases={"emb.weight": ("lm_head.weight",)}), model)
    with torch.no_grad():
        close(packed(TOKENS), dense(TOKENS))
    assert not list(packed.parameters()) and device_of(packed) == torch.device("cpu")


class Asked(dict[str, Tensor]):
    """Counts how often a name is looked for."""

    times = 0

    def __contains__(self, name: object) -> bool:
        self.times += 1
        return super().__contains__(name)


def test_ties_of_many_tensors_take_no_longer_each() -> None:
    def entry(name: str, *aliases: str) -> CodedTensor:
        return CodedTensor(name, (1,), "F32", 0, (), aliases)

    tied = [entry("a", "b", "c"), entry("d", "e"), entry("f", "g")]
    state = Asked(dict.fromkeys(("b", "d", "e", "w7"), torch.ones(1)))
    coded = CodedModel((*tied, *(entry(f"w{i}") for i in range(5000))), b"", b"")
    assert _twice(coded, state) == {"a", "c"}
    assert state.times < 20


def test_subclasses_hooks_and_references_stay(made: Make) -> None:
    class Named(nn.Linear):
        pass

    class Own(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(2 * x, self.weight, self.bias)

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = Named(16, 16), Own(16, 16)
            self.order = [self.a, self.b]
            self.calls = 0
            self.a.register_forward_hook(self.count)

        def count(self, *_: Any) -> None:
            self.calls += 1

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.order:
                x = layer(x)
            return x

    model = Both()
    packed, dense = both(made(model), model)
    assert isinstance(packed, Both) and isinstance(packed.a, QuantLinear) and isinstance(packed.b, Own)
    assert packed.order[0] is packed.a and isinstance(packed.b.weight, PackedParameter)
    x = torch.randn(5, 16)
    with torch.no_grad():
        close(packed(x), dense(x))
    assert packed.calls == 1
    materialize(packed)
    assert type(packed.a) is Named and isinstance(packed.a.weight, nn.Parameter)


@pytest.mark.parametrize("options", GOLF[:2], ids=["plain", "banks"])
def test_materialized_modules_are_ordinary_and_train(made: Make, built: Callable[..., Golf], options: Any) -> None:
    packed, dense = both(made(built(**options)))
    materialize(packed)
    assert packed.state_dict().keys() == dense.state_dict().keys()
    assert all(torch.equal(tensor, dense.state_dict()[name]) for name, tensor in packed.state_dict().items())
    assert type(packed.emb) is nn.Embedding and "was" not in packed.emb.__dict__
    packed(TOKENS).square().mean().backward()
    assert all(parameter.grad is not None and parameter.requires_grad for parameter in packed.parameters())


def test_an_adapter_beside_a_packed_weight_trains(made: Make, built: Callable[..., Golf]) -> None:
    packed, dense = both(made(built(), levels=True))
    for model in (packed, dense):
        for parameter in model.parameters():
            parameter.requires_grad_(False)
    torch.manual_seed(1)
    down, up = nn.Parameter(torch.randn(4, 32)), nn.Parameter(torch.zeros(32, 4))

    class Adapted(nn.Module):
        def __init__(self, base: nn.Module) -> None:
            super().__init__()
            self.base = base

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.base(x) + x @ down.T @ up.T
            return found

    gradients, losses = [], []
    for model in (packed, dense):
        for block in model.blocks:
            block.attn.q = Adapted(block.attn.q)
        optimizer = torch.optim.SGD([down, up], lr=1.0)
        loss = F.cross_entropy(model(TOKENS).flatten(0, 1), TOKENS.flatten())
        loss.backward()
        gradients.append(up.grad)
        if model is packed:
            before = up.detach().clone()
            optimizer.step()
            with torch.no_grad():
                losses = [float(loss.detach()), float(F.cross_entropy(model(TOKENS).flatten(0, 1), TOKENS.flatten()))]
                up.copy_(before)
            up.grad = None
    assert losses[1] < losses[0]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-7)


def test_state_moves_and_copies(made: Make, built: Callable[..., Golf]) -> None:
    path = made(built(banks=True), levels=True)
    packed = load(path, materialize=False)
    twin, other = copy.deepcopy(packed), load(path, materialize=False)
    other.load_state_dict(packed.state_dict())
    packed.half().to("cpu", torch.float32)
    with torch.no_grad():
        for model in (twin, other, packed):
            assert torch.isfinite(model(TOKENS)).all()
        assert torch.equal(twin(TOKENS), other(TOKENS))
    assert twin.qo_bank.blocks[0].data is not packed.qo_bank.blocks[0].data
    for name, tensor in packed.named_buffers():
        assert tensor.dtype in (torch.int32, torch.float32), name


def test_errors_name_the_weight(made: Make, built: Callable[..., Golf]) -> None:
    path = made(built())
    packed = load(path, materialize=False)
    layer = packed.blocks[0].attn.q
    with pytest.raises(QuantGolfError, match=r"attn\.q\.weight was given torch.float32 \[2, 31\].*\[\.\.\., 32\]"):
        layer(torch.ones(2, 31))
    with pytest.raises(QuantGolfError, match=r"blocks\.0\.attn\.q\.weight was given torch.float64, expected fp32"):
        layer(torch.ones(2, 32).double())
    with pytest.raises(QuantGolfError, match=r"emb\.weight was given .* on meta, expected \[\.\.\., 32\] on cpu"):
        F.linear(torch.ones(2, 32, device="meta"), packed.emb.weight)
    with pytest.raises(QuantGolfError, match=r"emb\.weight was given tokens torch.float32 on cpu, expected int64"):
        packed.emb(torch.ones(3))
    with pytest.raises(IndexError):
        packed.emb(torch.tensor([96]))
    with pytest.raises(QuantGolfError, match=r"dtype is torch.float64, expected fp32, fp16 or bf16"):
        load(path, dtype=torch.float64)
    with pytest.raises(QuantGolfError, match=r"does not match the model: .*emb\.weight is \[96, 32\]"):
        load(path, built(vocab_size=97), materialize=False)
    for form in (False, True):
        with pytest.raises(QuantGolfError, match=r"holds packed weights already.*materialize\(module\)"):
            load(path, packed, materialize=form)
