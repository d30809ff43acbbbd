"""Whole models through their streams: nothing is lost, and what does not fit is refused by name."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from quantgolf.encode import (
    Entry,
    Leveled,
    Quantized,
    block_bytes,
    decode_model,
    encode_codes,
    encode_model,
    tensor_bytes,
)
from quantgolf.encode.dtypes import DTYPES, stored_name
from quantgolf.errors import FormatError
from quantgolf.solve.trellis import Trellis
from quantgolf.types import Block, Exponents, QTensor, Steps


def solved(rows: int, columns: int, bits: int, seed: int = 0) -> QTensor:
    generator = torch.Generator().manual_seed(seed)
    top = 2 ** (bits - 1) - 1
    codes = torch.randint(-top, top + 1, (rows, columns), generator=generator).to(torch.int8)
    return QTensor(codes, Steps((torch.rand(rows, generator=generator) + 0.01).half()), bits)


def coded_as(block: Block, tensor: QTensor) -> Quantized:
    return Quantized(block, tensor.steps.row, tensor.bits, encode_codes(tensor.codes))


def whole(name: str, tensor: QTensor) -> tuple[Quantized, ...]:
    return (coded_as(Block(name, 1, 0, len(tensor.codes)), tensor),)


# A bank of four matrices [5, 7]: the last comes first, the third stays, the second is transposed.
BANK = {
    Block("bank", 2, 15, 20): solved(5, 7, 3, seed=3),
    Block("bank", 2, 0, 5): solved(5, 7, 4, seed=4),
    Block("bank", 2, 5, 10, transposed=True): solved(7, 5, 5, seed=5),
}
WHOLE = {"a": solved(5, 7, 4), "conv": solved(4, 6, 8)}


def entries() -> list[Entry]:
    generator = torch.Generator().manual_seed(1)
    kept = [
        Entry(f"kept.{name}", torch.ones(2, 3).to(dtype), aliases=("other",) if name == "F16" else ())
        for name, dtype in DTYPES.items()
    ]
    return [
        Entry("a", torch.zeros(5, 7), whole("a", WHOLE["a"])),
        *kept,
        Entry("bank", torch.arange(140).reshape(4, 5, 7).float(), tuple(coded_as(*part) for part in BANK.items())),
        Entry("conv", torch.zeros(4, 3, 2, dtype=torch.bfloat16), whole("conv", WHOLE["conv"])),
        Entry("noise", torch.randn(300, generator=generator)),
        Entry("exact", torch.randn(300, generator=generator, dtype=torch.float64)),
        Entry("scalar", torch.tensor(7)),
        Entry("nothing", torch.empty(0, 3)),
    ]


TRELLIS = Trellis(8, 4)


def leveled(block: Block, rows: int, columns: int, seed: int = 0) -> Leveled:
    rng = np.random.default_rng(seed)
    targets = rng.normal(0, 3, (rows, columns))
    levels = np.stack([TRELLIS.quantize(targets[:, j]) for j in range(columns)], axis=1)
    row, column = (torch.from_numpy(rng.integers(-20, 5, size).astype(np.int16)) for size in (rows, columns))
    return Leveled(block, Exponents(row, column, -9), torch.from_numpy(levels))


# The same bank, with two matrices of levels around one of codes, and a tensor that is nothing else.
MIXED = {
    part.block: part
    for part in (
        leveled(Block("mixed", 2, 15, 20), 5, 7, seed=3),
        leveled(Block("mixed", 2, 5, 10, transposed=True), 7, 5, seed=5),
        leveled(Block("ladder", 1, 0, 9), 9, 4, seed=6),
    )
}
MIXED_CODES = Block("mixed", 2, 10, 15)


def mixed_entries() -> list[Entry]:
    bank = tuple(part for part in MIXED.values() if part.block.parameter == "mixed")
    codes = coded_as(MIXED_CODES, solved(5, 7, 4))
    return [
        *entries(),
        Entry("mixed", torch.arange(140).reshape(4, 5, 7).float(), (bank[0], codes, bank[1])),
        Entry("ladder", torch.zeros(9, 2, 2), (MIXED[Block("ladder", 1, 0, 9)],)),
        Entry("last", torch.ones(3)),
    ]


def test_models_with_levels_return() -> None:
    coded = encode_model(mixed_entries(), TRELLIS)
    assert (coded.states, coded.restart) == (8, 4) and coded.levels and coded.exponents
    assert sum(block.levels for tensor in coded.tensors for block in tensor.blocks) == 3
    found = dict(decode_model(coded))
    for block, part in MIXED.items():
        weight = found[block]
        assert weight.bits is None and weight.codes.dtype == torch.int32 and weight.codes.is_contiguous()
        assert torch.equal(weight.codes, part.levels)
        row, column = (2 ** (each.double() / 4) for each in (part.exponents.row, part.exponents.column))
        expected = part.levels.double() * row[:, None] * column
        torch.testing.assert_close(weight.dequantize().double(), expected, rtol=3e-7, atol=0)
    assert torch.equal(found[MIXED_CODES].codes, solved(5, 7, 4).codes)
    assert torch.equal(found[Block("mixed", 2, 0, 5)], torch.arange(35).reshape(5, 7).float())
    assert encode_model(mixed_entries(), TRELLIS) == coded


def test_models_without_levels_keep_their_bytes() -> None:
    coded = encode_model(entries())
    assert encode_model(entries(), TRELLIS) == coded and not coded.has_levels
    assert (coded.exponents, coded.levels, coded.states, coded.restart) == (b"", b"", 0, 0)


def test_levels_are_decoded_when_the_first_is_asked_for() -> None:
    coded = encode_model(mixed_entries(), TRELLIS)
    broken = decode_model(replace(coded, levels=coded.levels[:-1]))
    first = sum(len(tensor.blocks) for tensor in coded.tensors if tensor.name not in ("mixed", "ladder", "last"))
    assert len([next(broken) for _ in range(first + 1)]) == first + 1  # and the rows of the bank that stay
    with pytest.raises(FormatError, match="the stream of levels"):
        next(broken)


def test_models_return() -> None:
    made = entries()
    coded = encode_model(made)
    assert [t.name for t in coded.tensors] == [e.name for e in made]
    for entry, tensor in zip(made, coded.tensors, strict=True):
        assert tensor.shape == entry.original.shape and DTYPES[tensor.dtype] == entry.original.dtype
        assert tensor.aliases == entry.aliases
    found = dict(decode_model(coded))
    weights = {Block(name, 1, 0, len(tensor.codes)): tensor for name, tensor in WHOLE.items()} | BANK
    for place, tensor in weights.items():
        assert torch.equal(found[place].codes, tensor.codes) and torch.equal(found[place].steps.row, tensor.steps.row)
        assert found[place].bits == tensor.bits
    assert torch.equal(found[Block("bank", 2, 10, 15)], torch.arange(70, 105).reshape(5, 7).float())
    kept = {entry.name: entry.original for entry in made if not entry.quantized}
    assert len(found) == len(kept) + len(weights) + 1
    for name, original in kept.items():
        tensor = found[Block(name, 0, 0, 1)]
        assert tensor.dtype == original.dtype and tensor.shape == (1, original.numel())
        torch.testing.assert_close(tensor[0].double(), original.flatten().double(), rtol=2**-11, atol=1e-3)
    assert encode_model(made) == coded


def test_rows_beside_each_other_that_stay_are_one_block() -> None:
    tensor = solved(2, 3, 4)
    entry = Entry("b", torch.zeros(5, 2, 3), (coded_as(Block("b", 2, 4, 6), tensor),))
    assert [(b.rows, b.bits) for b in encode_model([entry]).tensors[0].blocks] == [(4, None), (2, 4), (4, None)]


def test_bytes_of_levels_add_up() -> None:
    coded = encode_model(mixed_entries(), TRELLIS)
    spent, blocks = tensor_bytes(coded), block_bytes(coded)
    assert sum(s.codes + s.steps + s.small for s in spent) == pytest.approx(len(coded.streams()))
    names = [tensor.name for tensor in coded.tensors]
    mixed, (alone,) = blocks[names.index("mixed")], blocks[names.index("ladder")]
    total = 35 + 35 + 36
    assert mixed[1].codes == mixed[3].codes == pytest.approx(len(coded.levels) * 35 / total)
    assert alone.codes == pytest.approx(len(coded.levels) * 36 / total)
    assert alone.steps == pytest.approx(len(coded.exponents) * 13 / 37) and alone.small == 0
    assert mixed[2].codes == len(coded.tensors[names.index("mixed")].blocks[2].codes)
    assert mixed[2].steps == pytest.approx(blocks[names.index("a")][0].steps)


def test_bytes_add_up() -> None:
    coded = encode_model(entries())
    spent, blocks = tensor_bytes(coded), block_bytes(coded)
    streams = sum(len(b.codes) for t in coded.tensors for b in t.blocks) + len(coded.steps) + len(coded.small)
    assert sum(s.codes + s.steps + s.small for s in spent) == pytest.approx(streams)
    assert sum(s.codes + s.steps + s.small for each in blocks for s in each) == pytest.approx(streams)
    for tensor, whole, each in zip(coded.tensors, spent, blocks, strict=True):
        assert whole.codes == sum(len(block.codes) for block in tensor.blocks)
        for block, share in zip(tensor.blocks, each, strict=True):
            assert share.codes == len(block.codes)
            assert (share.steps > 0) == (block.bits is not None)
    (bank,) = (each for tensor, each in zip(coded.tensors, blocks, strict=True) if tensor.name == "bank")
    assert bank[1].steps / bank[0].steps == pytest.approx(7 / 5) and bank[2].small > 0


@pytest.mark.parametrize(
    ("tensor", "name"),
    [
        (torch.tensor([1.0, -0.5, 3.14159, 0.0]), "F16"),
        (torch.randn(999, generator=torch.Generator().manual_seed(0)) * 1e-2, "F16"),
        (torch.tensor([1e5]), "F32"),
        (torch.tensor([torch.nan]), "F32"),
        (torch.randn(999, generator=torch.Generator().manual_seed(0)) * 1e-6, "F32"),
        (torch.tensor([1e5], dtype=torch.float64), "F32"),
        (torch.tensor([1e300], dtype=torch.float64), "F64"),
        (torch.tensor([1.0], dtype=torch.bfloat16), "BF16"),
        (torch.tensor([2**40]), "I64"),
    ],
)
def test_values_are_stored_as_narrow_as_they_survive(tensor: Tensor, name: str) -> None:
    (original,) = (key for key, dtype in DTYPES.items() if dtype == tensor.dtype)
    assert stored_name(tensor, original) == name
