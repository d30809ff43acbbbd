"""Models run straight from packed weights have the numbers of the dequantized model."""

import copy
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantgolf.blob import read_blob
from quantgolf.checkpoint import Checkpoint
from quantgolf.checkpoint.call import logits_of
from quantgolf.compress import calibrate, compress
from quantgolf.data import Corpus
from quantgolf.encode import block_bytes
from quantgolf.models.golf import Golf
from quantgolf.runtime import QuantLinear, load, memory
from quantgolf.solve.trellis import Trellis
from quantgolf.types import Block
from quantgolf_kernels import pack

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


@pytest.mark.parametrize("levels", [False, True], ids=["widths", "levels"])
@pytest.mark.parametrize("options", GOLF, ids=["plain", "banks", "untied and gated"])
def test_golf_models(made: Make, built: Callable[..., Golf], options: dict[str, Any], levels: bool) -> None:
    packed, dense = both(made(built(**options), levels))
    assert isinstance(packed, Golf) and not packed.training
    with torch.no_grad():
        close(packed(TOKENS), dense(TOKENS))
    assert not any("bank" in name or "emb" in name for name, _ in packed.named_parameters())
    assert {name for name, _ in packed.named_parameters()} <= {name for name, _ in dense.named_parameters()}


@pytest.mark.parametrize("solver", ["slope", "gptq"])
@pytest.mark.parametrize("script", ["contest", "banks"])
def test_compressed_files(
    shared: Callable[[str], ModuleType], corpus: Callable[[int], Corpus], built: Callable[..., Golf], tmp_path: Path,
    solver: str, script: str,
) -> None:  # fmt: skip
    """What the whole of quantgolf makes of a contest's script and of banks, at widths and with one slope."""
    model = shared("calibrate/contest_script.py").build() if script == "contest" else built(banks=True)
    vocab = 1024 if script == "contest" else 96
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    source = Checkpoint(model, state, {}, None)
    stats = calibrate(source, corpus(vocab), tokens=512, length=32)
    asked: dict[str, Any] = (
        {"rules": [("*", 4)]} if solver == "gptq" else {"max_bytes": 40_000, "guard": False, "trellis": Trellis(8)}
    )
    compress(source, stats, **asked).write(tmp_path / "a.qg")
    packed, dense = both(tmp_path / "a.qg", model)
    with torch.no_grad():
        close(logits_of(packed, TOKENS), logits_of(dense, TOKENS))
        if script == "contest":
            close(packed(TOKENS, TOKENS), dense(TOKENS, TOKENS))
    held = memory(packed)
    assert {tensor.name for tensor in held.tensors if tensor.packed} == {
        block.parameter for block in stats.blocks.values()
    }


@pytest.mark.parametrize("kind", ["ConvNet", "SwitchMoE", "Gathered", "Stateful", "LossOnly"])
@pytest.mark.filterwarnings("ignore:packed weight .* is unpacked")
def test_networks_of_every_kind(
    shared: Callable[[str], ModuleType], corpus: Callable[[int], Corpus], tmp_path: Path, kind: str
) -> None:
    networks = shared("calibrate/networks.py")
    model = networks.drawn(getattr(networks, kind)(64, 16)).eval()
    source = Checkpoint(model, {name: tensor.clone() for name, tensor in model.state_dict().items()}, {}, None)
    compress(source, calibrate(source, corpus(64), tokens=512, length=32), rules=[("*", 5)]).write(tmp_path / "a.qg")
    packed, dense = both(tmp_path / "a.qg", model)
    tokens = torch.arange(32)[None]
    with torch.no_grad():
        for arguments in [(tokens, tokens)] if kind == "LossOnly" else [(tokens,)]:
            close(packed(*arguments), dense(*arguments))


class Transposed(nn.Module):
    """Weights stored [in, out] and in a stack, applied as `x @ w` and by einsum; a head tied in code alone."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(90, 16)
        self.up = nn.Parameter(torch.randn(16, 40))
        self.down = nn.Parameter(torch.randn(3, 40, 16))
        self.qkv = nn.Parameter(torch.randn(24, 16))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.emb(tokens)
        x = F.relu(x @ self.up.to(x.dtype))
        x = sum(torch.matmul(x, self.down[i]) for i in (0, 2)) + torch.einsum("btk,kn->btn", x, self.down[1])
        q, k = self.qkv.view(2, 12, 16).unbind()
        x = torch.cat([F.linear(x, q), F.linear(x, k)[..., :4]], -1)
        return F.linear(x, self.emb.weight)


def test_transposed_and_partial_blocks(made: Make) -> None:
    torch.manual_seed(0)
    model = Transposed()
    blocks = {
        "emb.weight": [Block("emb.weight", 1, 0, 90)],
        "up": [Block("up", 1, 0, 16, transposed=True)],
        "down": [Block("down", 2, 40, 80, transposed=True), Block("down", 2, 80, 120, transposed=True)],
        "qkv": [Block("qkv", 1, 0, 20)],  # one use across a block's end and the rows kept behind it
    }
    path = made(model, blocks=blocks)
    packed, dense = both(path, model)
    with torch.no_grad():
        close(packed(TOKENS), dense(TOKENS))
    held = {tensor.name: tensor for tensor in memory(packed).tensors}
    assert held["down"].packed == 2 * 640 and held["down"].float_bytes == 640 * 4 and held["qkv"].float_bytes == 256


@pytest.mark.parametrize("options", GOLF[:2], ids=["plain", "banks"])
def test_activations_decide_the_dtype(made: Make, built: Callable[..., Golf], options: Any) -> None:
    """In bf16, and under autocast, as the dequantized model does."""
    path = made(built(**options))
    packed, dense = (load(path, materialize=form, dtype=torch.bfloat16) for form in (False, True))
    assert {p.dtype for p in packed.parameters()} == {torch.bfloat16} == {p.dtype for p in dense.parameters()}
    with torch.no_grad():
        exact = load(path)(TOKENS)
        for model in (packed, dense):
            assert float((model(TOKENS) - exact).norm() / exact.norm()) < 0.05
        packed, dense = both(path)
        with torch.autocast("cpu", torch.bfloat16):
            found, expected = packed(TOKENS), dense(TOKENS)
    assert not torch.equal(found, exact) and not torch.equal(expected, exact)
    assert float((found - exact).norm() / exact.norm()) < 0.05
    linear = QuantLinear(pack(torch.ones(3, 4, dtype=torch.int8), torch.ones(3)))
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(torch.ones(2, 4)).dtype == torch.bfloat16 == F.linear(torch.ones(2, 4), linear.weight).dtype
    assert linear(torch.ones(2, 4).half()).dtype == torch.float16


def test_memory_counts_everything_once(made: Make, built: Callable[..., Golf]) -> None:
    path = made(built(banks=True), levels=True)
    packed, dense = both(path)
    held, coded = memory(packed), read_blob(path)[1]
    stored = [*packed.parameters(), *packed.buffers()]
    assert held.packed_bytes + held.float_bytes == sum(tensor.nbytes for tensor in stored)
    spent = sum(each.codes + each.steps for blocks in block_bytes(coded) for each in blocks)
    count = sum(tensor.packed for tensor in held.tensors)
    assert held.file_bpw == pytest.approx(8 * spent / count) and held.bpw == pytest.approx(
        8 * held.packed_bytes / count
    )
    bank = next(tensor for tensor in held.tensors if tensor.name == "qo_bank")
    assert bank.shape == (4, 32, 32) and len(bank.bits) == 4 and bank.bpw is not None and bank.bpw > 4
    nothing = memory(dense)
    assert nothing.bpw is nothing.file_bpw is None and nothing.packed_bytes == 0
    assert memory(QuantLinear(pack(torch.ones(3, 4, dtype=torch.int8), torch.ones(3)))).file_bpw is None


def test_levels_beyond_packing_are_kept_and_said(built: Callable[..., Golf], made: Make) -> None:
    """A step so small that a weight is a level of more than 24 bits."""
    model = built(banks=True)
    with torch.no_grad():
        model.up_bank[1, 3, 5] = 2.0**21
    path = made(model, levels=True)
    with pytest.warns(UserWarning, match=r"not packed: up_bank\.1 \(codes reach beyond 2\^24\)"):
        packed = load(path, materialize=False)
    dense = load(path)
    with torch.no_grad():
        close(packed(TOKENS), dense(TOKENS))
    bank = next(tensor for tensor in memory(packed).tensors if tensor.name == "up_bank")
    assert len(bank.bits) == 1 and bank.float_bytes == 4 * model.up_bank[1].numel()


def test_weights_that_cannot_be_packed_in_place(made: Make) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb, self.rnn = nn.Embedding(90, 16, max_norm=3.0), nn.GRU(16, 16, batch_first=True)
            self.register_buffer("table", torch.randn(16, 16))

        def forward(self, tokens: Tensor) -> Tensor:
            found: Tensor = self.rnn(self.emb(tokens))[0] @ self.table
            return found

    model = Recurrent()
    path = made(model)
    other = copy.deepcopy(model)
    with pytest.warns(UserWarning) as said:
        packed = load(path, model, materialize=False)
    text = str(said[0].message)
    assert (
        "emb.weight (max_norm" in text
        and "rnn.weight_ih_l0, rnn.weight_hh_l0 (recurrent" in text
        and "table (it is a buffer)" in text
    )
    with torch.no_grad():
        close(packed(TOKENS), load(path, other)(TOKENS))
