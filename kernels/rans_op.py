"""Decoding rANS as torch ops: levels of a file, streams of codes, and the two orders that levels have in memory.

On a CPU the bodies here run, NumPy over all lanes at once: obvious and slow, what the kernels of `rans` have to equal.
quantgolf decodes with compiled loops of its own there. Whatever the words say, nothing is read or written out of
bounds; whether they were a whole stream is for the caller to judge by `ends`, int64 [streams, 4]: the place after the
last word used, escapes used, lanes that met what no encoder writes, lanes whose state is not 2^16. The first two count
on where a sequence runs out, so that they tell.

Unsigned words, states and shares travel in signed dtypes of as many bits, which torch supports everywhere.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PRECISION = 14
LOWEST = 1 << 16
ZERO, LAST = 127, 254


@torch.library.custom_op("quantgolf::rans_levels", mutates_args=())
def rans_levels(
    words: Tensor, excess: Tensor, entries: Tensor, starts: Tensor, stride: int, shares: Tensor, slots: Tensor,
    feedback: int, forward: int, states: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The levels of a file: one stream of L lanes, a table for each context, a trellis. Returns levels and `ends`.

    Weight t of lane l, and what belongs to it, lies at t · stride + l, so that the weights of a step lie side by side;
    with a stride of 0 at starts[l] + t, where it comes in the sequence. That takes less memory where a few lanes are
    much longer than the others.

    Args:
        words: int16 [words].
        excess: int32 [escapes], at least 0: what each adds to a magnitude of 127.
        entries: uint8 [places]: 2 · class of each weight, 1 more where the trellis begins again.
        starts: int64 [L + 1], ascending from 0: where lanes begin in the sequence of all weights, and its length.
        stride: at least L and such that `entries` are so many for each step of the longest lane; or 0, and they are as
            many as the weights.
        shares: int32 [contexts · 256]: frequency + 2^16 · start; a context is 2 · class + odd.
        slots: uint8 [contexts · 2^14]: the symbol of each slot, 255 where a context has no table.
        feedback, forward: the next state is ⌊s / 2⌋ xor feedback if s is odd xor forward if k is; both 0 for one state.
        states: int32 [L], in the beginning.

    Returns:
        Levels int32 [places], zeros where no lane has one, and `ends` [1, 4].

    Raises:
        ValueError: tensors of other dtypes, not contiguous, or on different devices.
    """
    _check_levels(words, excess, entries, starts, shares, slots, states)
    levels, length = np.zeros(entries.shape[0], dtype=np.int32), starts.diff().numpy()
    begin, step = (np.arange(len(length)), stride) if stride else (starts[:-1].numpy(), 1)
    ends = _decode(
        words, states, begin, length, step, shares, slots, levels, entries, excess, (feedback, forward)
    )  # fmt: skip
    return torch.from_numpy(levels), torch.tensor([ends])


@rans_levels.register_fake
def _(
    words: Tensor, excess: Tensor, entries: Tensor, starts: Tensor, stride: int, shares: Tensor, slots: Tensor,
    feedback: int, forward: int, states: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return entries.new_empty(entries.shape, dtype=torch.int32), starts.new_empty(1, 4)


@rans_levels.register_kernel("cuda")
def _(
    words: Tensor, excess: Tensor, entries: Tensor, starts: Tensor, stride: int, shares: Tensor, slots: Tensor,
    feedback: int, forward: int, states: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    from quantgolf_kernels.rans import decode_levels

    _check_levels(words, excess, entries, starts, shares, slots, states)
    with torch.cuda.device(words.device):
        return decode_levels(words, excess, entries, starts, stride, shares, slots, feedback, forward, states)


@torch.library.custom_op("quantgolf::rans_streams", mutates_args=())
def rans_streams(
    words: Tensor, streams: Tensor, shares: Tensor, slots: Tensor, states: Tensor, count: int, most: int
) -> tuple[Tensor, Tensor]:
    """The symbols of S streams with a table each; symbol i of a stream belongs to its lane i mod lanes.

    Args:
        words: int16 [words] of all streams.
        streams: int64 [S, 6]: of each its first word and the one after its last, its first lane and how many it has,
            its first symbol and how many it has. Every stream has a lane.
        shares: int32 [S · 256]: frequency + 2^16 · start.
        slots: uint8 [S · 2^14]: the symbol of each slot.
        states: int32 [lanes] of all streams, in the beginning.
        count: symbols of all streams.
        most: lanes of the stream that has most.

    Returns:
        Symbols uint8 [count] and `ends` [S, 4].

    Raises:
        ValueError: tensors of other dtypes, not contiguous, or on different devices.
    """
    _check_streams(words, streams, shares, slots, states)
    symbols = np.zeros(count, dtype=np.uint8)
    ends = torch.zeros(streams.shape[0], 4, dtype=torch.int64)
    for s, (word, last, lane, lanes, first, total) in enumerate(streams.tolist()):
        begin = np.arange(lanes)
        found = _decode(
            words[word:last], states[lane : lane + lanes], begin, (total - begin + lanes - 1) // lanes, lanes,
            shares[s << 8 : (s + 1) << 8], slots[s << PRECISION : (s + 1) << PRECISION], symbols[first : first + total],
        )  # fmt: skip
        ends[s] = torch.tensor([word + found[0], *found[1:]])
    return torch.from_numpy(symbols), ends


@rans_streams.register_fake
def _(
    words: Tensor, streams: Tensor, shares: Tensor, slots: Tensor, states: Tensor, count: int, most: int
) -> tuple[Tensor, Tensor]:
    return slots.new_empty(count), streams.new_empty(streams.shape[0], 4)


@rans_streams.register_kernel("cuda")
def _(
    words: Tensor, streams: Tensor, shares: Tensor, slots: Tensor, states: Tensor, count: int, most: int
) -> tuple[Tensor, Tensor]:
    from quantgolf_kernels.rans import decode_streams

    _check_streams(words, streams, shares, slots, states)
    with torch.cuda.device(words.device):
        return decode_streams(words, streams, shares, slots, states, count, most)


@torch.library.custom_op("quantgolf::level_entries", mutates_args=())
def level_entries(
    starts: Tensor, matrices: Tensor, rows: Tensor, columns: Tensor, class_at: Tensor, restart: int, stride: int,
    size: int, steps: int,
) -> Tensor:  # fmt: skip
    """The entries uint8 [size] of `rans_levels`, zeros where no lane has a weight.

    Args:
        starts: int64 [L + 1], where lanes begin in the sequence of all weights, and its length.
        matrices: int64 [6, M]: where each begins in the sequence, N, K, where its steps begin in `rows` and in
            `columns`, and 1 where it is coded along its diagonals. None is empty.
        rows, columns: int32; the class of weight (i, j) is class_at[columns[j] - rows[i]].
        class_at: uint8.
        restart: rows after which the trellis begins again.
        stride: as in `rans_levels`.
        size: stride · steps, or all weights if it is 0.
        steps: weights of the longest lane.
    """
    out = np.zeros(size, dtype=np.uint8)
    bases, n, k, row, column, diagonal = matrices.numpy()
    place = np.arange(int(starts[-1]))
    m = np.searchsorted(bases, place, side="right") - 1
    d, i = np.divmod(place - bases[m], n[m])
    j = np.where(diagonal[m] != 0, (d - i) % k[m], d)
    classes = class_at.numpy()[columns.numpy()[column[m] + j] - rows.numpy()[row[m] + i]]
    out[_in_memory(place, starts, stride)] = 2 * classes + (i % restart == 0)
    return torch.from_numpy(out)


@level_entries.register_fake
def _(
    starts: Tensor, matrices: Tensor, rows: Tensor, columns: Tensor, class_at: Tensor, restart: int, stride: int,
    size: int, steps: int,
) -> Tensor:  # fmt: skip
    return class_at.new_empty(size)


@level_entries.register_kernel("cuda")
def _(
    starts: Tensor, matrices: Tensor, rows: Tensor, columns: Tensor, class_at: Tensor, restart: int, stride: int,
    size: int, steps: int,
) -> Tensor:  # fmt: skip
    from quantgolf_kernels.rans import fill_entries

    with torch.cuda.device(starts.device):
        return fill_entries(starts, matrices, rows, columns, class_at, restart, stride, size, steps)


@torch.library.custom_op("quantgolf::place_levels", mutates_args=())
def place_levels(
    levels: Tensor, starts: Tensor, stride: int, base: int, rows: int, columns: int, diagonal: bool
) -> Tensor:
    """The levels int32 [N, K] of one matrix, contiguous, from those that `rans_levels` gave.

    Args:
        levels: int32 [places].
        starts, stride: as there.
        base: where the matrix begins in the sequence.
        rows, columns: N and K, at least 1.
        diagonal: whether it is coded along its diagonals (i + j) mod K and not down its columns.
    """
    i, j = np.ogrid[:rows, :columns]
    place = base + ((i + j) % columns if diagonal else j) * rows + i
    return levels[torch.from_numpy(_in_memory(place, starts, stride))]


@place_levels.register_fake
def _(levels: Tensor, starts: Tensor, stride: int, base: int, rows: int, columns: int, diagonal: bool) -> Tensor:
    return levels.new_empty(rows, columns)


@place_levels.register_kernel("cuda")
def _(levels: Tensor, starts: Tensor, stride: int, base: int, rows: int, columns: int, diagonal: bool) -> Tensor:
    from quantgolf_kernels.rans import place

    with torch.cuda.device(levels.device):
        return place(levels, starts, stride, base, rows, columns, diagonal)


def _in_memory(place: NDArray[np.int64], starts: Tensor, stride: int) -> NDArray[np.int64]:
    """Where weights of these places in the sequence lie."""
    if stride == 0:
        return place
    lane = np.searchsorted(starts.numpy(), place, side="right") - 1
    found: NDArray[np.int64] = (place - starts.numpy()[lane]) * stride + lane
    return found


def _decode(
    words: Tensor, states: Tensor, begin: NDArray[np.int64], length: NDArray[np.int64], stride: int, shares: Tensor,
    slots: Tensor, out: NDArray[np.int32] | NDArray[np.uint8], entries: Tensor | None = None,
    excess: Tensor | None = None, trellis: tuple[int, int] = (0, 0),
) -> list[int]:  # fmt: skip
    """Fills `out` with symbols, or with levels where there are `entries`; returns a row of `ends`."""
    given = words.numpy().view(np.uint16).astype(np.int64)
    more = np.zeros(0, dtype=np.int64) if excess is None else excess.numpy().astype(np.int64)
    share, symbol_of = shares.numpy().view(np.uint32).astype(np.int64), slots.numpy().astype(np.int64)
    x, machine = states.numpy().view(np.uint32).astype(np.int64), np.zeros(states.shape[0], dtype=np.int64)
    bad, word, escaped = np.zeros(len(x), dtype=np.bool_), 0, 0
    for t in range(length.max(initial=0)):
        lane = np.flatnonzero(t < length)
        at = begin[lane] + t * stride
        entry = np.zeros(len(lane), dtype=np.int64) if entries is None else entries.numpy()[at].astype(np.int64)
        s = np.where(entry & 1, 0, machine[lane])
        odd, slot = s & 1, x[lane] % (1 << PRECISION)
        context = entry & ~1 | odd
        symbol = symbol_of[(context << PRECISION) + slot]
        part = share[(context << 8) + symbol]
        y = (part & 0xFFFF) * (x[lane] >> PRECISION) + slot - (part >> 16)
        low = np.flatnonzero(y < LOWEST)
        y[low] = y[low] << 16 | _taken(given, word, len(low))
        x[lane], word = y, word + len(low)
        if entries is None:
            out[at] = symbol
            continue
        k = symbol - ZERO
        escape = np.flatnonzero((symbol == 0) | (symbol >= LAST))
        scalar = trellis == (0, 0)
        largest = np.full(len(escape), (1 << 31) - 1 - ZERO) if scalar else (1 << 30) - 1 - ZERO + odd[escape]
        beyond = _taken(more, escaped, len(escape))
        bad[lane[escape]] |= (beyond > largest) | (symbol[escape] > LAST)
        k[escape] += np.sign(k[escape]) * np.minimum(beyond, largest)
        escaped += len(escape)
        out[at] = k if scalar else 2 * k - odd * np.sign(k)
        machine[lane] = s >> 1 ^ odd * trellis[0] ^ (k & 1) * trellis[1]
    return [word, escaped, int(bad.sum()), int((x != LOWEST).sum())]


def _taken(values: NDArray[np.int64], start: int, count: int) -> NDArray[np.int64]:
    """The next `count` values, zeros where they run out."""
    found = values[start : start + count]
    return np.pad(found, (0, count - len(found)))


def _check_levels(
    words: Tensor, excess: Tensor, entries: Tensor, starts: Tensor, shares: Tensor, slots: Tensor, states: Tensor
) -> None:
    named = {"words": words, "excess": excess, "entries": entries, "starts": starts}
    _check({**named, "shares": shares, "slots": slots, "states": states})


def _check_streams(words: Tensor, streams: Tensor, shares: Tensor, slots: Tensor, states: Tensor) -> None:
    _check({"words": words, "streams": streams, "shares": shares, "slots": slots, "states": states})


DTYPES = {
    "words": torch.int16, "shares": torch.int32, "slots": torch.uint8, "states": torch.int32, "excess": torch.int32,
    "entries": torch.uint8, "starts": torch.int64, "streams": torch.int64,
}  # fmt: skip


def _check(tensors: dict[str, Tensor]) -> None:
    device = tensors["words"].device
    for name, tensor in tensors.items():
        if tensor.dtype != DTYPES[name] or not tensor.is_contiguous() or tensor.device != device:
            raise ValueError(
                f"{name} is {tensor.dtype} on {tensor.device} with strides {tensor.stride()}, expected {DTYPES[name]} "
                f"on {device}, where the words are, contiguous"
            )
