"""Restores the weights of a quantgolf file with numpy, torch and zstandard alone: what `export-decoder` makes small.

It is written to be short once its names are, and trusts its file: `docs/format.md` says what the bytes mean, and the
checks of a real reader are left out. All lanes of a stream are decoded side by side, in NumPy.
"""

# ruff: noqa: B905  (lists that are zipped here may differ by an empty part at the end)

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from zstandard import ZstdCompressionDict, ZstdDecompressor

# Features. An export for one file leaves out what that file has no use for: conditions on these are decided then, names
# of other dtypes are empty, and functions that nothing calls any more are gone.
LEVELS = True  # matrices of levels
DIAGONALS = True  # of which some lie along diagonals
CODES = True  # matrices of fixed-width codes
GROUPS = True  # of which some have scales, and zeros, by groups of columns
CUTS = True  # tensors of several blocks
DTYPES = (
    "bool uint8 int8 uint16 int16 uint32 int32 uint64 int64 float8_e4m3fn float8_e5m2 float16 bfloat16 float32 float64"
)


def take(file: Iterator[int], count: int, /) -> bytes:
    """The next so many bytes."""
    return bytes(next(file) for _ in range(count))


def varint(file: Iterator[int], /) -> int:
    """The next number."""
    byte = next(file)
    return byte if byte < 128 else byte - 128 + 128 * varint(file)


def varints(file: Iterator[int], count: int, /) -> list[int]:
    """The next so many numbers."""
    return [varint(file) for _ in range(count)]


def signed(number: int, /) -> int:
    """0, -1, 1, -2, … of 0, 1, 2, 3, …"""
    return number // 2 ^ -(number % 2)


def unpack(packed: bytes, size: int, /) -> bytes:
    """What a zstd frame holds; only the header's refers to the dictionary."""
    words = (
        b"model.layers.0.self_attn.q_proj.k_proj.v_proj.o_proj.mlp.gate_proj.up_proj.down_proj.input_layernorm.bias"
        b"transformer.h.0.attn.c_attn.c_proj.ln_1.wte.lm_head.norm.embed_tokens.emb.weightblocks.0.gain_scale"
        b'{"family":"golf","config":{"vocab_size":1024,"dim":512,"layers":12,"heads":8,"kv_heads":4,"mlp_mult":2,'
        b'"logit_softcap":30.0,"rope_base":10000.0}}'
    )
    return ZstdDecompressor(ZstdCompressionDict(words)).decompress(b"(\xb5/\xfd\0" + packed, size)


def table(file: Iterator[int], first: int, /) -> NDArray[np.int64]:
    """Symbol less 127, its frequency and the place within it of each slot, [2^14, 3]; `first` has been read."""
    last, root, listed = next(file), 0, [0] * (first + 1)
    bits = (byte >> i & 1 for byte in file for i in range(8))
    for _ in range(first, last + 1):
        width = 0
        while not next(bits):
            width += 1
        root += signed((1 << width) - 1 + sum(next(bits) << i for i in range(width)))
        listed += [root]
    roots, slot = np.array(listed), np.arange(16384)
    occurs = roots > 0
    share = np.cumsum((roots - occurs) ** 2)
    sums = share * (16384 - occurs.sum()) // share[-1] + np.cumsum(occurs)  # of all frequencies before a symbol
    at = np.searchsorted(sums, slot + 1)
    return np.stack([at - 128, sums[at] - sums[at - 1], slot - sums[at - 1]], 1)


def lanes(
    file: Iterator[int],
    tables: NDArray[Any],
    spreads: NDArray[np.int16],
    classes: list[int],
    excess: NDArray[Any],
    states: int,
    at: NDArray[np.int64],
    ends: NDArray[np.int64] | int,
    stride: int,
    /,
) -> NDArray[np.int32]:
    """Levels, the rest of the file: each lane has those from `at` to before its end. No trellis has 1 state.

    `spreads` are twice the predicted ones, and 1 more where the trellis does not begin again.
    """
    found = np.zeros(len(spreads), "i")
    kind = states.bit_length() - 3
    feedback, forward = b"\2\5\t\x12!N\xa6"[kind], b"\1\2\2\4\n+y"[kind]
    state = at * 0
    x = np.frombuffer(take(file, 4 * len(at)), "I").astype(int)
    words = np.frombuffer(bytes(file), "H").astype(int)
    used = escaped = 0
    while len(lane := np.flatnonzero(at < ends)):
        place, y = at[lane], x[lane]
        spread = spreads[place]
        s = state[lane] * (spread & 1)
        odd = s & 1
        k, frequency, within = tables[2 * np.searchsorted(classes, spread) + odd, y & 16383].T
        y = frequency * (y >> 14) + within
        low = y < 65536
        y[low] = y[low] << 16 | words[used : (used := used + low.sum())]
        beyond = abs(k) == 127
        sign = np.sign(k)
        k[beyond] += sign[beyond] * excess[escaped : (escaped := escaped + beyond.sum())]
        found[place] = k * (1 + (states > 1)) - odd * sign
        state[lane] = (s // 2 ^ odd * feedback ^ (k & 1) * forward) % states
        x[lane] = y
        at[lane] += stride
    return found


def stream(file: Iterator[int], count: int, size: int, /) -> Any:  # to mypy np.int32 of an array is a number
    """So many symbols, int32, from a stream of so many bytes; 128 where it has none."""
    inner = iter(take(file, size))
    codec = next(inner, 0)
    if codec > 1:
        tables, number, zeros = table(inner, next(inner))[None], varint(inner), np.zeros(count, "h")
        return lanes(inner, tables, zeros, [], zeros, 1, np.arange(number), count, number) + 127
    rest = bytes(inner) or b"\x80" * count
    return np.int32(np.frombuffer(unpack(rest, count) if codec else rest, "B"))


def split(values: NDArray[Any], sizes: Sequence[int], /) -> list[NDArray[Any]]:
    """Consecutive parts of values, one of each size."""
    return np.split(values, np.cumsum(sizes))


def planes(file: Iterator[int], counts: Sequence[int], size: int, /) -> list[NDArray[np.uint8]]:
    """For each count the bytes of so many values, of so many bytes each."""
    total = sum(counts)
    joined = np.array([stream(file, total, varint(file)) for _ in range(size * (total > 0))], "B").T.ravel()
    return split(joined, [count * size for count in counts])


def power(exponents: Any, /) -> Any:
    """The steps, fp32, of exponents in 128ths of an octave plus 128, int32."""
    return np.ldexp(np.float32(2 ** (exponents % 128 / 128)), exponents // 128 - 1)


def grouped(file: Iterator[int], header: Iterator[int], coded: list[Any], /) -> None:
    """Appends to each block of codes its weights [K, N]; `header` goes on with the groups of those that have any."""
    sides = []  # N, groups of a row, width of codes where there are zeros, base of logarithms, group of each column
    for n, k, kind, _ in coded:
        number = varint(header) if kind > 15 else 2 * k or 2
        base = signed(varint(header)) if kind > 31 else 0
        sides += [(n, max(1, -(-k // (number // 2))), kind % 16 * (number % 2), base, np.arange(k) // (number // 2))]
    codes = [stream(file, block[0] * block[1], varint(header)) for block in coded]
    scales = planes(file, [n * groups for n, groups, *_ in sides], 2)
    zeros = zip(
        *[planes(file, [n * groups * (width == bits) for n, groups, width, *_ in sides], 1) for bits in range(2, 9)]
    )
    for block, (n, groups, width, base, of), code, scale, zero in zip(coded, sides, codes, scales, zeros):
        step: Any = power(8 * (scale.view("h") + base) + 128) if block[2] > 31 else np.float32(scale.view("e"))
        shift = np.concatenate(zero) if width else np.full(n * groups, 128)
        code = code.reshape(block[:2]) - shift.reshape(n, groups)[:, of]
        block += [(np.float32(code) * step.reshape(n, groups)[:, of]).T]


def leveled(file: Iterator[int], header: Iterator[int], blocks: list[Any], /) -> None:
    """Appends to each block of levels its weights [K, N]; `header` goes on with where `file` has them."""
    _, _, states, restart, size, _ = varints(header, 6)
    scales = iter(take(file, size) + bytes(2))  # as if there were two empty streams of fine steps
    n, k, *_ = zip(*blocks)
    heads = [[signed(number) for number in varints(scales, 3)] for _ in n]
    parts = [planes(scales, sizes, 1) for sizes in (n, k, n, k)]
    spreads = []
    for block, (least, lowest, spread), r, c, fine, finer in zip(blocks, heads, *parts):
        row, column = np.int32(r) + least, np.int32(c[:, None]) + lowest
        predicted: Any = np.int16(2 * (spread - row - column) + (np.arange(block[0]) % restart > 0))
        if DIAGONALS and block[2] > 9:  # row i is rolled by i
            for i in range(block[0]):
                predicted[:, i] = np.roll(predicted[:, i], i)
        spreads += [predicted.ravel()]
        block += [power(32 * row + fine) * power(32 * column + finer[:, None])]
    found: NDArray[Any] = np.concatenate(spreads)
    if count := len(found):
        begin = int(found.min() - 2 | 1)  # twice the least, less 1
        classes = [begin := begin + 2 + 2 * more for more in varints(file, varint(file))]
        tables = np.zeros((2 * len(classes) + 2, 16384, 3), "i")
        for context in range(0, len(tables), 1 + (states < 2)):
            if (first := next(file)) < 255:
                tables[context] = table(file, first)
        excess = np.array(varints(file, varint(file)), "i")
        number, begins = max(1, count // 32768), np.append(np.flatnonzero(found % 2 < 1), count)
        at = begins[np.searchsorted(begins, np.arange(number) * count // number)]
        found = lanes(file, tables, found, classes, excess, states, at, np.append(at[1:], count), 1)
    for block, part in zip(blocks, split(found, [len(part) for part in spreads])):
        levels = part.reshape(block[4].shape)
        if DIAGONALS and block[2] > 9:
            for i in range(block[0]):
                levels[:, i] = np.roll(levels[:, i], -i)
        block[4] *= np.float32(levels)


def dtype(number: int, /) -> torch.dtype:
    """The dtype that the file gives this number, or 128 more."""
    return getattr(torch, DTYPES.split(" ")[number % 128])  # type: ignore[no-any-return]


def load(source: Any, /, exact: bool = False) -> tuple[dict[str, torch.Tensor], bytes]:
    """The tensors of a file by name, in the checkpoint's shapes and dtypes; and the JSON of its model, empty if none.

    Args:
        source: path or bytes of a file that `quantgolf compress` wrote.
        exact: leave tensors with quantized rows in fp32, as `quantgolf.load` does, and do not round them to the
            checkpoint's dtype.
    """
    file = iter(source if isinstance(source, bytes) else np.fromfile(source, "B").tobytes())
    *_, size, packed = varints(file, 8)  # magic and version pass for numbers
    header = iter(unpack(take(file, packed), size))
    model, more, name = take(header, varint(header)), varints(header, varint(header)), b""
    names = [[name := name[: varint(header)] + take(header, varint(header)) for _ in range(1 + n)] for n in more]
    shapes = [varints(header, varint(header)) for _ in more]
    dtypes = take(header, len(more))
    tensors: list[Any] = []
    for shape, storage in zip(shapes, take(header, len(more))):
        lead: int = storage < 128
        rows, kinds = [prod(shape[:lead])], [storage]
        if CUTS and storage == 1:
            lead = varint(header)
            rows = varints(header, varint(header))
            kinds = [*take(header, len(rows))]
        # Of each block N, K, storage, and whether it is transposed; its values [K, N] follow.
        tensors += [
            [
                [*[n, prod(shape[lead:])][:: 1 - (kind & 64) // 32], kind & 191, kind & 64]
                for n, kind in zip(rows, kinds)
            ]
        ]
    blocks = [block for tensor in tensors for block in tensor]
    if CODES:
        coded = [block for block in blocks if block[2] < 128 and block[2] % 16 < 9]
        if GROUPS:
            grouped(file, header, coded)
        else:
            codes = [stream(file, block[0] * block[1], varint(header)) - 128 for block in coded]
            for block, code, step in zip(coded, codes, planes(file, [block[0] for block in coded], 2)):
                block += [np.float32(code.reshape(block[:2]).T) * np.float32(step.view("e"))]
    for size in (1, 2, 4, 8):
        kept = [block for block in blocks if block[2] > 127 and dtype(block[2]).itemsize == size]
        for block, values in zip(kept, planes(file, [block[0] * block[1] for block in kept], size)):
            block += [torch.tensor(values).view(dtype(block[2])).reshape(block[:2]).T]
    if LEVELS and (ladders := [block for block in blocks if block[2] in (9, 10)]):
        leveled(file, header, ladders)
    found = {}
    for aliases, shape, number, blocks in zip(names, shapes, dtypes, tensors):
        kind = dtype(number)
        within = torch.float if any(block[2] < 128 for block in blocks) else kind
        parts = [torch.as_tensor(part if flip else part.T).to(within) for _, _, _, flip, part in blocks]
        whole = torch.cat(parts).reshape(shape).to(within if exact else kind)
        for name in aliases:
            found[name.decode()] = whole
    return found, model


if __name__ == "__main__":
    import sys

    torch.save(load(sys.argv[1])[0], sys.argv[2])
