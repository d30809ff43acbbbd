"""The golden files: one for every feature of the format, kept for ever; `python tests/blob/goldens.py` writes new ones.

A golden file is never written anew. What is added to the format gets a file of its own, by a maker of its own.
"""

import json
from functools import cache, partial
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from quantgolf.blob import VERSION, pack, parse
from quantgolf.encode import Codec, Entry, Leveled, Quantized, encode_codes, encode_model
from quantgolf.runtime import restore
from quantgolf.solve.trellis import Trellis
from quantgolf.types import Block, CodedModel, Exponents, Groups

FOLDER = Path(__file__).parent / "golden"

DESCRIPTION = {"family": "golf", "config": {"dim": 8}}


@cache
def small_model() -> CodedModel:
    """Weights that are one matrix, a bank with a slice that stays, transposed ones, a convolution and small tensors."""
    codes = (torch.arange(6 * 16) * 7 % 15 - 7).to(torch.int8).reshape(6, 16)
    rows = torch.linspace(0.01, 0.02, 16).half()

    def quantized(bits: int, name: str, lead: int, start: int, stop: int, transposed: bool = False) -> Quantized:
        return Quantized(
            Block(name, lead, start, stop, transposed), rows[: 16 if transposed else 6], bits,
            encode_codes(codes.T if transposed else codes),
        )  # fmt: skip

    bank = [quantized(4 + at, "bank", 2, 6 * at, 6 * at + 6, transposed=at == 3) for at in (0, 1, 3)]
    return encode_model(
        [
            Entry("blocks.0.up.weight", torch.zeros(6, 16), (quantized(4, "blocks.0.up.weight", 1, 0, 6),)),
            Entry("blocks.0.scale", torch.linspace(0.5, 1.5, 16)),
            Entry("emb.weight", torch.zeros(6, 16).half(), (quantized(5, "emb.weight", 1, 0, 6),), ("head.weight",)),
            Entry("steps", torch.tensor([3, 4])),
            Entry("bank", torch.arange(384).reshape(4, 6, 16) / 8, tuple(bank)),
            Entry("c_attn.weight", torch.zeros(6, 16), (quantized(4, "c_attn.weight", 1, 0, 6, transposed=True),)),
            Entry("conv.weight", torch.zeros(6, 4, 2, 2).bfloat16(), (quantized(6, "conv.weight", 1, 0, 6),)),
        ]
    )


TRELLIS = Trellis(8, 4)


def leveled(
    name: str, lead: int, start: int, stop: int, n: int, k: int, transposed: bool = False, diagonal: bool = False
) -> Leveled:
    targets = (torch.arange(n * k).reshape(n, k) * 37 % 101 - 50).double().numpy() / 8
    targets[-1, -1] = 400.0
    i, j = np.arange(n)[:, None], np.arange(k)
    coded = i, (j - i) % k if diagonal else j + 0 * i
    levels = np.empty((n, k), dtype=np.int32)
    levels[coded] = np.stack([TRELLIS.quantize(column) for column in targets[coded].T], axis=1)
    row, column = torch.arange(n).short() * 3 % 7 - 30, torch.arange(k).short() * 5 % 9 + 2
    block, scales = Block(name, lead, start, stop, transposed), Exponents(row, column, -21)
    return Leveled(block, scales, torch.from_numpy(levels), diagonal)


@cache
def leveled_model() -> CodedModel:
    """Levels beside codes: a whole matrix, a transposed one, a bank with a slice of codes and one that stays."""
    codes = encode_codes((torch.arange(96) % 15 - 7).to(torch.int8).reshape(6, 16))
    bank = (
        leveled("bank", 2, 0, 6, 6, 16),
        Quantized(Block("bank", 2, 6, 12), torch.linspace(0.01, 0.02, 6).half(), 4, codes),
        leveled("bank", 2, 18, 24, 16, 6, transposed=True),
    )
    entries = [
        Entry("emb.weight", torch.zeros(20, 8).half(), (leveled("emb.weight", 1, 0, 20, 20, 8),), ("head.weight",)),
        Entry("gain", torch.linspace(0.5, 1.5, 16)),
        Entry("bank", torch.arange(384).reshape(4, 6, 16) / 8, bank),
        Entry("c_fc.weight", torch.zeros(5, 9), (leveled("c_fc.weight", 1, 0, 5, 9, 5, transposed=True),)),
    ]
    return encode_model(entries, TRELLIS)


@cache
def diagonal_model() -> CodedModel:
    """Levels along diagonals, of wide, tall and transposed matrices, beside others down columns and codes."""
    codes = encode_codes((torch.arange(96) % 15 - 7).to(torch.int8).reshape(6, 16))
    bank = (
        leveled("bank", 2, 0, 6, 6, 16, diagonal=True),
        Quantized(Block("bank", 2, 6, 12), torch.linspace(0.01, 0.02, 6).half(), 4, codes),
        leveled("bank", 2, 12, 18, 6, 16),
        leveled("bank", 2, 18, 24, 16, 6, transposed=True, diagonal=True),
    )
    entries = [
        Entry("emb.weight", torch.zeros(20, 8).half(), (leveled("emb.weight", 1, 0, 20, 20, 8, diagonal=True),)),
        Entry("bank", torch.arange(384).reshape(4, 6, 16) / 8, bank),
        Entry("c_fc.weight", torch.zeros(5, 9), (leveled("c_fc.weight", 1, 0, 5, 9, 5, True, True),)),
    ]
    return encode_model(entries, TRELLIS)


def grouped(
    block: Block, n: int, k: int, bits: int, size: int, zeros: bool = False, logarithmic: bool = False
) -> Quantized:
    """Scales and zeros that reach both ends of what they may be, and codes that do as well."""
    at, half = torch.arange(n * -(-k // size)).reshape(n, -1), 2 ** (bits - 1)
    scale = (at * 5 % 37 - 200).short() if logarithmic else (at % 7 / 512 + 0.01).half()
    if logarithmic:
        scale[0, 0], scale[-1, -1] = 1904, -1904
    zero = (at * 3 % (2 * half) - half).to(torch.int8) if zeros else None
    codes = torch.arange(n * k).reshape(n, k) * 11 % (2 * half - (not zeros)) - half + (not zeros)
    return Quantized(block, Groups(scale, zero, size), bits, encode_codes(codes.to(torch.int8)))


@cache
def grouped_model() -> CodedModel:
    """Groups of every kind and width, whole, transposed and in a bank, beside steps of rows and levels."""
    bank = (
        grouped(Block("bank", 2, 0, 6), 6, 16, 4, 7),
        Quantized(
            Block("bank", 2, 6, 12), torch.linspace(0.01, 0.02, 6).half(), 4, encode_codes(torch.eye(6, 16).char())
        ),
        grouped(Block("bank", 2, 18, 24, transposed=True), 16, 6, 5, 4, zeros=True),
    )
    return encode_model(
        [
            Entry("emb.weight", torch.zeros(6, 9).half(), (grouped(Block("emb.weight", 1, 0, 6), 6, 9, 8, 1, True),)),
            Entry("gain", torch.linspace(0.5, 1.5, 16)),
            Entry("bank", torch.arange(384).reshape(4, 6, 16) / 8, bank),
            Entry("up", torch.zeros(5, 9), (grouped(Block("up", 1, 0, 5, True), 9, 5, 2, 5, True, True),)),
            Entry("down", torch.zeros(5, 9), (grouped(Block("down", 1, 0, 5), 5, 9, 5, 3, True, True),)),
            Entry("rows", torch.zeros(5, 9), (grouped(Block("rows", 1, 0, 5), 5, 9, 3, 9, False, True),)),
            Entry("c_fc.weight", torch.zeros(5, 9), (leveled("c_fc.weight", 1, 0, 5, 9, 5, transposed=True),)),
            *(Entry(f"w{bits}", torch.zeros(2, 3), (grouped(Block(f"w{bits}", 1, 0, 2), 2, 3, bits, 2, True),))
              for bits in (6, 7)),
        ],
        TRELLIS,
    )  # fmt: skip


@cache
def kept_model() -> CodedModel:
    """Every dtype, of no, one, and no size; values in narrower dtypes; a tie."""
    wide = [torch.bool, torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32, torch.uint64]
    wide += [torch.int64, torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16]
    entries = [Entry(f"kept.{at}", (torch.arange(6) * 5 % 7).to(dtype).reshape(2, 3)) for at, dtype in enumerate(wide)]
    return encode_model(
        [
            *entries,
            Entry("f32", torch.tensor([1e-30, torch.pi, 3e38, -torch.inf])),
            Entry("f32.in_f16", torch.linspace(-1, 1, 5), aliases=("tied.weight", "other")),
            Entry("f64", torch.tensor([1e-300, 0.1, 1e300, 2 / 3], dtype=torch.float64)),
            Entry("f64.in_f32", torch.linspace(1, 1e6, 5).double()),
            Entry("f64.in_f16", torch.linspace(-1, 1, 5).double()),
            Entry("scalar", torch.tensor(0.75)),
            Entry("empty", torch.zeros(2, 0, 3)),
        ]
    )


@cache
def tuned_model() -> CodedModel:
    """Fine steps, of rows and columns, of one side, of none; 256 states; a level far beyond a symbol."""
    entries, trellis = [], Trellis(256, 3)
    for at, (fine_row, fine_column) in enumerate([(True, True), (False, True), (False, False)]):
        name, targets = f"w{at}", np.linspace(-9, 9, 35).reshape(7, 5)
        targets[6, 2] = 1e6
        i, j = np.arange(7)[:, None], np.arange(5)
        coded = i, (j - i) % 5 if at == 2 else j + 0 * i
        levels = np.empty((7, 5), dtype=np.int32)
        levels[coded] = np.stack([trellis.quantize(column) for column in targets[coded].T], axis=1)
        steps = Exponents(
            torch.arange(7).short() - 20, torch.arange(5).short() * 2 - 9, -28,
            torch.tensor([-128, -1, 0, 0, 1, 64, 127], dtype=torch.int8) if fine_row else None,
            torch.tensor([0, 127, -128, 3, 0], dtype=torch.int8) if fine_column else None,
        )  # fmt: skip
        part = Leveled(Block(name, 1, 0, 7), steps, torch.from_numpy(levels), at == 2)
        entries.append(Entry(name, torch.zeros(7, 5), (part,)))
    return encode_model(entries, trellis)


@cache
def large_model() -> CodedModel:
    """Several lanes of codes and of levels; codes in each codec; one state."""
    trellis, entries = Trellis(1, 128), []
    each: list[tuple[Codec, Tensor]] = [
        ("rans", torch.arange(300 * 240) ** 2 % 13 % 7 - 3),
        ("zstd", torch.arange(300 * 240) % 15 - 7),
        ("auto", torch.arange(240) * 89 % 251 - 125),
    ]
    for codec, codes in each:
        matrix = codes.to(torch.int8).reshape(-1, 240)
        block = Block(codec, 1, 0, len(matrix))
        steps = torch.linspace(0.01, 0.02, len(matrix)).half()
        part = Quantized(block, steps, 8, encode_codes(matrix, codec))
        entries.append(Entry(codec, torch.zeros(matrix.shape).bfloat16(), (part,)))
    for name, (n, k), transposed in (("a", (300, 150), False), ("b", (129, 200), True)):
        row, column = -60 + torch.arange(n).short() % 11, -60 + torch.arange(k).short() % 10
        index = torch.arange(n * k).reshape(n, k)
        levels = (index * index % 31 % 9 - 4) * (index % 5 == 0) + index % 3 - 1
        block = Block(name, 1, 0, k if transposed else n, transposed)
        part = Leveled(block, Exponents(row, column, -100), levels.int())
        entries.append(Entry(name, torch.zeros((k, n) if transposed else (n, k)), (part,)))
    return encode_model(entries, trellis)


@cache
def states_model(states: int) -> CodedModel:
    """A trellis of so many states; F64 beside levels; a matrix without columns; fine steps of rows alone; codes
    of widths that have no groups."""
    trellis, n, k = Trellis(states, 5), 11, 6
    targets = (np.arange(n * k).reshape(n, k) * 41 % 67 - 33) / 4
    levels = torch.from_numpy(np.stack([trellis.quantize(column) for column in targets.T], axis=1).astype(np.int32))
    steps = Exponents(
        torch.arange(n).short() % 4 - 15, torch.arange(k).short() % 3 - 15, -30,
        (torch.arange(n) * 23 % 100 - 50).to(torch.int8),
    )  # fmt: skip
    wide = torch.arange(13 * 6).reshape(13, 6).double() / 3
    high = Exponents(torch.arange(3).short(), torch.empty(0).short(), 5), torch.empty((3, 0), dtype=torch.int32)
    codes = {
        bits: (torch.arange(4 * 9) * 7 % (2**bits - 1) - (2 ** (bits - 1) - 1)).to(torch.int8).reshape(4, 9)
        for bits in (2, 3, 7)
    }
    return encode_model(
        [
            Entry("f64", wide, (Leveled(Block("f64", 1, 2, 13), steps, levels),)),
            Entry("no.columns", torch.zeros(3, 0).half(), (Leveled(Block("no.columns", 1, 0, 3), *high),)),
            *(
                Entry(f"codes{bits}", torch.zeros(4, 9), (
                    Quantized(Block(f"codes{bits}", 1, 0, 4), torch.linspace(1, 2, 4).half(), bits, encode_codes(each)),
                ))
                for bits, each in codes.items()
            ),
        ],
        trellis,
    )  # fmt: skip


@cache
def lanes_model() -> CodedModel:
    """Four lanes of levels, of which two are empty; classes with even and odd states, one without odd ones; escapes in
    both lanes."""
    trellis, n = Trellis(8, 1 << 17), 70_000
    i = np.arange(n)
    steep = np.stack([(i * i % 1009 < 9) * (i % 13 - 6.0), (i * i % 509 < 40) * (i % 31 - 15.0)])
    steep[:, 1000::30011] = 777
    columns = [trellis.quantize(column) for column in steep]
    levels = torch.from_numpy(np.stack(columns, axis=1).astype(np.int32))
    long = Leveled(
        Block("long", 1, 0, n), Exponents(torch.full((n,), -40).short(), torch.tensor([-30, -50]).short(), -70), levels
    )
    first = Leveled(
        Block("first", 1, 0, 1), Exponents(torch.tensor([-40]).short(), torch.full((600,), 60).short(), 0),
        (torch.arange(600) % 9 * 2 - 8).int()[None],
    )  # fmt: skip
    return encode_model(
        [Entry("long", torch.zeros(n, 2), (long,)), Entry("first", torch.zeros(1, 600), (first,))], trellis
    )


@cache
def spreads_model() -> CodedModel:
    """Two classes nearly as far apart as predicted spreads can lie, twice which does not fit 16 bits."""
    entries, many = [], leveled("", 1, 0, 20, 20, 16).levels
    few = 0 * many
    few[-1] = torch.arange(16) % 3 * 2 - 2
    for name, row, column, spread, levels in (("a", 500, 0, -4096, few), ("b", -4096, -4096, 4096, many)):
        steps = Exponents(torch.full((20,), row).short(), torch.full((16,), column).short(), spread)
        entries.append(Entry(name, torch.zeros(20, 16), (Leveled(Block(name, 1, 0, 20), steps, levels),)))
    return encode_model(entries, TRELLIS)


MAKERS = {
    "codes": small_model, "levels": leveled_model, "diagonals": diagonal_model, "groups": grouped_model,
    "kept": kept_model, "tuned": tuned_model, "large": large_model, "lanes": lanes_model, "spreads": spreads_model,
    **{f"states{states}": partial(states_model, states) for states in (4, 16, 32, 64, 128)},
}  # fmt: skip


def tensors_of(data: bytes) -> dict[str, list[object]]:
    """Of each tensor of a file by name: dtype, shape, and a digest of the little-endian bytes."""
    return {name: [str(it.dtype), list(it.shape), digest(it)] for name, it in restore(parse(data)[1]).items()}


def digest(tensor: Tensor) -> str:
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return blake2b(flat.numpy().tobytes(), digest_size=16).hexdigest()


if __name__ == "__main__":
    for name, make in MAKERS.items():
        path = FOLDER / f"{name}_v{VERSION}.qg"
        if not path.exists():
            data = pack(make(), DESCRIPTION)
            path.write_bytes(data)
            lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(it)}" for key, it in tensors_of(data).items())
            path.with_suffix(".json").write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
