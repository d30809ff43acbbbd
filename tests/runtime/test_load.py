"""Files become modules again, on their own where they can, and with the user's module where they must."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quantgolf import encode
from quantgolf.blob import pack, write_blob
from quantgolf.checkpoint import Checkpoint, open_checkpoint
from quantgolf.encode import Entry, Leveled, Quantized, decode_codes, encode_codes, encode_model
from quantgolf.errors import QuantGolfError
from quantgolf.models.golf import Golf
from quantgolf.runtime import load, restore
from quantgolf.solve.trellis import Trellis
from quantgolf.types import Block, Exponents


def quantized(codes: Tensor, rows: Tensor, block: Block) -> Quantized:
    return Quantized(block, rows, 4, encode_codes(codes))


def compressed(source: Checkpoint, path: Path) -> Path:
    """Every matrix rounded to 4 bits."""
    entries = []
    for name, tensor in source.tensors.items():
        parts: tuple[Quantized, ...] = ()
        if tensor.ndim == 2:
            rows = (tensor.float().abs().amax(1) / 7).half()
            codes = (tensor / rows[:, None]).round().clamp(-7, 7).to(torch.int8)
            parts = (quantized(codes, rows, Block(name, 1, 0, len(tensor))),)
        entries.append(Entry(name, tensor, parts, source.aliases.get(name, ())))
    write_blob(path, pack(encode_model(entries), source.description))
    return path


def test_reference_models_load_on_their_own(tiny: Checkpoint, tmp_path: Path) -> None:
    path = compressed(tiny, tmp_path / "a.qg")
    module = load(path)
    assert isinstance(module, Golf) and not module.training
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        near, far = module(tokens), tiny.module(tokens)
    assert near.shape == far.shape and not torch.equal(near, far)
    assert float((near - far).square().mean()) < 0.2 * float(far.square().mean())
    for name, tensor in module.state_dict().items():
        if tensor.ndim != 2:
            assert torch.equal(tensor, tiny.module.state_dict()[name])


def test_other_modules_are_filled_and_have_to_fit(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self, size: int = 6) -> None:
            super().__init__()
            self.emb, self.head = nn.Embedding(9, size), nn.Linear(size, 9, bias=False)
            self.head.weight = self.emb.weight
            self.register_buffer("count", torch.tensor(5))

    model = Tied()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.save(state, tmp_path / "c.pt")
    path = compressed(open_checkpoint(tmp_path / "c.pt", Tied()), tmp_path / "a.qg")
    with pytest.raises(QuantGolfError, match=r"give --model path/to/script\.py:factory"):
        load(path)
    with pytest.raises(QuantGolfError, match=r"emb\.weight is \[9, 6\] where the model has \[9, 7\]"):
        load(path, Tied(7))
    module = load(path, Tied())
    assert isinstance(module, Tied) and module.head.weight is module.emb.weight and int(module.count) == 5
    assert torch.allclose(module.emb.weight, model.emb.weight, atol=0.5)


def test_restored_tensors_have_names_shapes_and_exact_values() -> None:
    codes, rows = torch.arange(-6, 6).to(torch.int8).reshape(2, 6), torch.tensor([0.5, 0.25]).half()
    entry = Entry("w", torch.zeros(2, 3, 2), (quantized(codes, rows, Block("w", 1, 0, 2)),), aliases=("again",))
    tensors = restore(encode_model([entry, Entry("b", torch.tensor([1.0, 2.0])), Entry("n", torch.tensor(3))]))
    assert list(tensors) == ["w", "again", "b", "n"]
    assert tensors["w"] is tensors["again"]
    assert tensors["w"].shape == (2, 3, 2) and tensors["w"].dtype == torch.float32
    assert tensors["again"].flatten().tolist() == [c * s for s, r in ((0.5, range(-6, 0)), (0.25, range(6))) for c in r]
    assert tensors["n"].shape == () and int(tensors["n"]) == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn])
def test_banks_are_put_together_again(dtype: torch.dtype) -> None:
    """Three slices [2, 3]: the first transposed, the second kept, the third upright."""
    codes, original = torch.tensor([[1, 2], [3, 4], [5, 6]]).to(torch.int8), torch.arange(18).reshape(3, 2, 3).to(dtype)
    parts = (
        quantized(codes, torch.tensor([1, 10, 100]).half(), Block("bank", 2, 0, 2, transposed=True)),
        quantized(codes.T.contiguous(), torch.tensor([1, -1]).half(), Block("bank", 2, 4, 6)),
    )
    bank = restore(encode_model([Entry("bank", original, parts)]))["bank"]
    assert bank.dtype == torch.float32
    assert bank.tolist() == [[[1, 30, 500], [2, 40, 600]], [[6, 7, 8], [9, 10, 11]], [[1, 3, 5], [-2, -4, -6]]]


def test_banks_with_levels_are_put_together_again() -> None:
    """Three slices [2, 3]: levels transposed, one kept, levels upright; steps are 2, 1/2 and √2."""
    scalar = Trellis(1)
    low = Exponents(torch.tensor([4, 0, -4]).short(), torch.tensor([0, 4]).short(), 0)
    parts = (
        Leveled(Block("bank", 2, 0, 2, transposed=True), low, torch.tensor([[1, 2], [3, -40000], [5, 6]]).int()),
        Leveled(
            Block("bank", 2, 4, 6), Exponents(torch.zeros(2).short(), torch.tensor([0, 2, 4]).short(), 0),
            torch.tensor([[1, 2, 3], [4, 5, 6]]).int(),
        ),
    )  # fmt: skip
    bank = restore(encode_model([Entry("bank", torch.arange(18).reshape(3, 2, 3).half(), parts)], scalar))["bank"]
    assert bank.dtype == torch.float32
    root = torch.tensor([2.0, 5.0]) * torch.tensor(0x3FB504F3, dtype=torch.int32).view(torch.float32)
    assert bank.tolist() == [
        [[2, 3, 2.5], [8, -80000, 6]], [[6, 7, 8], [9, 10, 11]], [[1, float(root[0]), 6], [4, float(root[1]), 12]]
    ]  # fmt: skip


def test_codes_are_dropped_one_matrix_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    codes, decoded, most = torch.ones(2, 3, dtype=torch.int8), [], 0
    blocks = [Block("bank", 2, 2 * at, 2 * at + 2) for at in range(8)]
    singles = [Block(f"w{at}", 1, 0, 2) for at in range(8)]
    rows = torch.ones(2).half()
    bank = Entry("bank", torch.zeros(8, 2, 3), tuple(quantized(codes, rows, block) for block in blocks))
    others = [Entry(block.parameter, torch.zeros(2, 3), (quantized(codes, rows, block),)) for block in singles]

    def watched(*arguments: Any) -> Tensor:
        nonlocal most
        most = max(most, sum(reference() is not None for reference in decoded))
        found = decode_codes(*arguments)
        decoded.append(weakref.ref(found))
        return found

    monkeypatch.setattr(encode.model, "decode_codes", watched)
    restore(encode_model([bank, *others]))
    assert len(decoded) == 16 and most == 1


def test_forged_descriptions_allocate_nothing(tmp_path: Path) -> None:
    """A terabyte of embedding, and more layers than a computer builds in a day."""
    coded = encode_model([Entry("emb.weight", torch.zeros(4, 8))])
    for config in ({"vocab_size": 2**30, "dim": 256}, {"vocab_size": 4, "dim": 8, "layers": 10**9}, {"dim": 2**62}):
        write_blob(tmp_path / "a.qg", pack(coded, {"family": "golf", "config": config}), overwrite=True)
        with pytest.raises(QuantGolfError):
            load(tmp_path / "a.qg")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_files_load_onto_the_gpu(tiny: Checkpoint, tmp_path: Path) -> None:
    path = compressed(tiny, tmp_path / "a.qg")
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            load(path, device="cuda", materialize=True, dtype=torch.float32)(tokens.cuda()).cpu(),
            load(path)(tokens),
            atol=1e-2,
            rtol=0,
        )
