"""rANS kernels against the compiled loops that decode on a CPU, and against the reference bodies of their ops."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from quantgolf.encode import rans
from quantgolf.encode.contexts import Contexts
from quantgolf.encode.lanes import decode_lanes, encode_lanes
from quantgolf.encode.rans import LOWEST
from quantgolf.encode.table import SYMBOLS, choose_roots, frequencies
from quantgolf.solve.trellis import CODES, Trellis
from quantgolf_kernels import rans_op

pytest.importorskip("triton", reason="kernels need triton")
from quantgolf_kernels import rans as kernels

STATES = (1, *CODES)
START = st.integers(0, 2**32 - 1)


@dataclass(frozen=True)
class Coded:
    """What `decode_lanes` takes, and the levels it gives."""

    words: NDArray[np.uint16]
    excess: NDArray[np.int64]
    entries: NDArray[np.uint8]
    starts: NDArray[np.int64]
    contexts: Contexts
    trellis: Trellis
    states: NDArray[np.uint64]

    def expected(self) -> tuple[NDArray[np.int32], bool]:
        """The levels of the compiled loop, and whether it finds the stream whole."""
        levels, states = np.zeros(len(self.entries), dtype=np.int32), self.states.copy()
        ends = decode_lanes(
            self.words, self.excess, self.entries, self.starts, self.contexts.shares(), self.contexts.slots(),
            self.trellis.after, states, levels,
        )  # fmt: skip
        return levels, ends == (len(self.words), len(self.excess)) and bool((states == LOWEST).all())

    def arguments(self, device: torch.device, aside: bool) -> dict[str, Any]:
        """Those of `rans_levels`, lanes side by side or one after another in memory."""
        starts = np.append(self.starts, len(self.entries))
        stride = -(-len(self.starts) // 16) * 16 if aside else 0
        entries = np.zeros(np.diff(starts).max() * stride if aside else len(self.entries), dtype=np.uint8)
        entries[self.places(stride)] = self.entries
        after = self.trellis.after
        arrays: dict[str, NDArray[Any]] = {
            "words": self.words.view(np.int16), "excess": self.excess.astype(np.int32), "entries": entries,
            "starts": starts, "shares": self.contexts.shares().view(np.int32),
            "slots": self.contexts.slots().ravel(), "states": self.states.astype(np.uint32).view(np.int32),
        }  # fmt: skip
        tensors = {name: torch.from_numpy(array.copy()).to(device) for name, array in arrays.items()}
        machine = {"feedback": int(after[1, 0]), "forward": int(after[0, 1])} if len(after) > 1 else {}
        return tensors | {"stride": stride, "feedback": 0, "forward": 0} | machine

    def places(self, stride: int) -> NDArray[np.int64]:
        """Where weights lie."""
        place = np.arange(len(self.entries))
        lane = np.searchsorted(self.starts, place, side="right") - 1
        return (place - self.starts[lane]) * stride + lane if stride else place


def coded(seed: int, states: int, lengths: Sequence[int], classes: int = 2, wide: float = 3.0) -> Coded:
    """Lanes of random levels; a `wide` bell curve has escapes."""
    rng, trellis = np.random.default_rng(seed), Trellis(states)
    starts, count = np.cumsum(lengths) - lengths, sum(lengths)
    k = (rng.normal(0, wide, count) * np.exp(rng.normal(0, 1, count))).round().astype(np.int64)
    entries = (2 * rng.integers(0, classes, count) + (rng.random(count) < 0.1)).astype(np.uint8)
    entries[starts[np.array(lengths) > 0]] |= 1
    odd, state = np.zeros(count, dtype=np.uint8), 0
    for i in range(count):
        state = 0 if entries[i] & 1 else state
        odd[i] = state & 1
        state = int(trellis.after[state, k[i] & 1])
    symbols, keys = (k.clip(-127, 127) + 127).astype(np.uint8), (entries & 254) | odd
    counts = np.zeros((2 * classes, SYMBOLS), dtype=np.int64)
    np.add.at(counts, (keys, symbols), 1)
    roots = tuple(choose_roots(each) if each.any() else None for each in counts)
    contexts = Contexts(0, np.arange(1, classes), roots)
    found, words = np.full(len(lengths), LOWEST, dtype=np.uint64), np.empty(count, dtype=np.uint16)
    first = encode_lanes(
        symbols, keys, np.arange(2 * classes, dtype=np.uint16), starts, contexts.shares(), found, words
    )  # fmt: skip
    escapes = np.flatnonzero(abs(k) >= 127)
    lane = np.searchsorted(starts, escapes, side="right") - 1
    order = np.lexsort((lane, escapes - starts[lane]))
    return Coded(words[first:], abs(k[escapes])[order] - 127, entries, starts, contexts, trellis, found)


def agree(
    stream: Coded, device: torch.device, aside: bool = True, most_lanes: int = kernels.MOST_LANES
) -> bool:  # fmt: skip
    """Whether the stream is whole; kernel and reference have to say what the compiled loop says."""
    arguments = stream.arguments(device, aside)
    levels, ends = kernels.decode_levels(**arguments, most_lanes=most_lanes)
    reference, reference_ends = rans_op.rans_levels(**stream.arguments(torch.device("cpu"), aside))
    expected, is_whole = stream.expected()
    assert torch.equal(levels.cpu(), reference) and torch.equal(ends.cpu(), reference_ends)
    assert (ends.tolist() == [[len(stream.words), len(stream.excess), 0, 0]]) == is_whole
    if is_whole:
        assert np.array_equal(levels.cpu().numpy()[stream.places(arguments["stride"])], expected)
    return is_whole


@pytest.mark.parametrize("aside", [True, False])
@pytest.mark.parametrize("states", STATES)
def test_levels_are_those_of_the_compiled_loop(states: int, aside: bool, device: torch.device) -> None:
    stream = coded(states, states, [30, 0, 40, 33, 0, 20, 26], wide=50)
    assert len(stream.excess) > 5
    assert agree(stream, device, aside)


@pytest.mark.parametrize("most_lanes", [32, 64])
def test_lanes_take_turns(most_lanes: int, device: torch.device) -> None:
    lengths = np.random.default_rng(1).integers(0, 14, 150).tolist()
    assert agree(coded(1, 8, lengths, classes=5, wide=30), device, most_lanes=most_lanes)


def test_a_single_weight_and_one_lane(device: torch.device) -> None:
    assert agree(coded(0, 8, [1], classes=1), device)
    assert agree(coded(0, 128, [90], classes=64), device)


@given(
    st.integers(0, 2**32), st.sampled_from(STATES), st.lists(st.integers(0, 40), min_size=1, max_size=40),
    st.integers(1, 6), st.sampled_from([0.1, 2.0, 60.0]), st.booleans(),
)  # fmt: skip
@settings(deadline=None, max_examples=10)
def test_any_lanes_come_back(
    seed: int, states: int, lengths: list[int], classes: int, wide: float, aside: bool
) -> None:
    lengths[0] += 1
    assert agree(coded(seed, states, lengths, classes, wide), DEVICE, aside, most_lanes=32)


DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@given(st.data(), st.sampled_from([1, 8]), st.booleans())
@settings(deadline=None, max_examples=12)
def test_damaged_streams_are_noticed_and_nothing_else_happens(data: st.DataObject, states: int, aside: bool) -> None:
    stream = coded(5, states, [20, 0, 31, 7], wide=40)
    words, states_of, excess = stream.words.copy(), stream.states.copy(), stream.excess.copy()
    what = data.draw(st.sampled_from(["cut words", "cut escapes", "words", "states", "escapes", "nothing"]))
    if what == "cut words":
        words = words[: data.draw(st.integers(0, len(words) - 1))]
    elif what == "cut escapes":
        excess = excess[: data.draw(st.integers(0, len(excess) - 1))]
    elif what == "words":
        words[data.draw(st.integers(0, len(words) - 1))] ^= data.draw(st.integers(1, 65535))
    elif what == "states":
        states_of[data.draw(st.integers(0, 3))] = data.draw(START)
    elif what == "escapes":
        excess[data.draw(st.integers(0, len(excess) - 1))] = data.draw(st.sampled_from([2**31 - 1, 2**30, 2**30 - 128]))
    is_whole = agree(replace(stream, words=words, states=states_of, excess=excess), DEVICE, aside)
    assert not (what.startswith("cut") and is_whole) and (what != "nothing" or is_whole)


@pytest.mark.parametrize(("states", "odd"), [(1, False), (8, False), (8, True)])
def test_the_largest_levels_and_one_more(states: int, odd: bool, device: torch.device) -> None:
    """The odd state allows 2^31 - 1 where the even one ends at 2^31 - 2."""
    trellis = Trellis(states)
    largest = (2**31 - 1 if states == 1 else 2**30 - 1 + odd) - 127
    roots = choose_roots(np.bincount([0, 127, 128, 254, 254], minlength=SYMBOLS))
    contexts = Contexts(0, np.zeros(0, np.int64), (roots, roots))
    indices = [1, 0, 127] if odd else [0, 127]  # after 1 and 0 the state of 8 is odd
    keys, state = [], 0
    for k in indices:
        keys.append(state & 1)
        state = int(trellis.after[state, k & 1])
    assert keys[-1] == odd
    for sign in (1, -1):
        symbols = np.array([*indices[:-1], sign * 127], dtype=np.int64) + 127
        entries, starts = np.zeros(len(symbols), np.uint8), np.zeros(1, np.int64)
        found, words = np.full(1, LOWEST, np.uint64), np.empty(len(symbols), np.uint16)
        first = encode_lanes(
            symbols.astype(np.uint8), np.array(keys, np.uint8), np.arange(2, dtype=np.uint16), starts,
            contexts.shares(), found, words,
        )  # fmt: skip
        for more, fits in ((largest, True), (largest + 1, False)):
            stream = Coded(words[first:], np.array([more]), entries, starts, contexts, trellis, found)
            assert agree(stream, device) == fits
        assert abs(stream.expected()[0][:-1]).max() <= 1


def test_a_context_without_a_table_is_noticed(device: torch.device) -> None:
    stream = coded(2, 8, [40, 40], classes=2)
    roots = (None, *stream.contexts.roots[1:])
    assert not agree(replace(stream, contexts=replace(stream.contexts, roots=roots)), device)


@pytest.mark.parametrize("lanes", [[1, 3, 8], [2], [40, 1, 5, 33]])
@pytest.mark.parametrize("most_lanes", [32, 64])
def test_streams_are_those_of_the_compiled_loop(lanes: list[int], most_lanes: int, device: torch.device) -> None:
    arguments, expected = streams(lanes, device)
    symbols, ends = kernels.decode_streams(**arguments, most_lanes=most_lanes)
    assert symbols.cpu().tolist() == expected
    assert ends.tolist() == [[end, 0, 0, 0] for end in arguments["streams"][:, 1].tolist()]
    reference = rans_op.rans_streams(**{k: v.cpu() if isinstance(v, Tensor) else v for k, v in arguments.items()})
    assert torch.equal(symbols.cpu(), reference[0]) and torch.equal(ends.cpu(), reference[1])


def streams(lanes: list[int], device: torch.device) -> tuple[dict[str, Any], list[int]]:
    """Arguments of `rans_streams` for streams with so many lanes, and the symbols of all."""
    rng, parts, rows = np.random.default_rng(len(lanes)), [], []
    word = lane = count = 0
    for each in lanes:
        symbols = (rng.normal(0, 1 + each, 40 + 3 * each).round() + 128).clip(0, 255).astype(np.uint8)
        frequency = frequencies(choose_roots(np.bincount(symbols, minlength=SYMBOLS)))
        start = (np.cumsum(frequency) - frequency).astype(np.uint64)
        states, words = np.full(each, LOWEST, dtype=np.uint64), np.empty(len(symbols), dtype=np.uint16)
        words = words[rans._encode(symbols, frequency.astype(np.uint64), start, states, words) :]
        back, slots = np.empty_like(symbols), np.repeat(np.arange(SYMBOLS, dtype=np.uint8), frequency)
        assert rans._decode(words, frequency.astype(np.uint64), start, slots, states.copy(), back) == len(words)
        assert np.array_equal(back, symbols)
        rows.append([word, word + len(words), lane, each, count, len(symbols)])
        word, lane, count = word + len(words), lane + each, count + len(symbols)
        shares = (frequency + (start.astype(np.int64) << 16)).astype(np.uint32)
        parts.append(
            (words.view(np.int16), shares.view(np.int32), slots, states.astype(np.uint32).view(np.int32), back)
        )
    joined = [torch.from_numpy(np.concatenate(each)) for each in zip(*parts, strict=True)]
    named = dict(zip(("words", "shares", "slots", "states"), joined[:4], strict=True)) | {"streams": torch.tensor(rows)}
    arguments = {name: tensor.to(device) for name, tensor in named.items()}
    return {**arguments, "count": count, "most": max(lanes)}, joined[4].tolist()


def test_streams_that_are_cut_or_changed_are_noticed(device: torch.device) -> None:
    arguments, _ = streams([4, 2, 7], device)
    table = arguments["streams"].clone()
    table[1, 1] -= 1  # its last word belongs to nobody now
    symbols, ends = kernels.decode_streams(**{**arguments, "streams": table})
    reference = rans_op.rans_streams(
        **{k: v.cpu() if isinstance(v, Tensor) else v for k, v in arguments.items()} | {"streams": table.cpu()}
    )
    assert torch.equal(symbols.cpu(), reference[0]) and torch.equal(ends.cpu(), reference[1])
    is_whole = (ends[:, 0] == table[:, 1]) & (ends[:, 1:] == 0).all(dim=1)
    assert is_whole.tolist() == [True, False, True]
    words = arguments["words"].clone()
    words[table[2, 0]] ^= 77
    _, ends = kernels.decode_streams(**{**arguments, "words": words})
    assert ends[:2, 3].tolist() == [0, 0] and ends[2].tolist() != [int(table[2, 1]), 0, 0, 0]


def test_ops_are_what_torch_expects(device: torch.device) -> None:
    check = torch.library.opcheck
    for aside in (True, False):
        check(rans_op.rans_levels, (), coded(1, 8, [9, 0, 12]).arguments(device, aside))
    check(rans_op.rans_streams, (), streams([2, 3], device)[0])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("words", Tensor.int), ("states", Tensor.long), ("entries", lambda tensor: tensor[::2]),
        ("slots", lambda tensor: tensor.to("meta")),
    ],
)  # fmt: skip
def test_other_tensors_are_refused(name: str, change: Callable[[Tensor], Tensor]) -> None:
    arguments = coded(1, 8, [9, 12]).arguments(torch.device("cpu"), True)
    arguments[name] = change(arguments[name])
    with pytest.raises(ValueError, match=f"{name} is .* expected torch"):
        rans_op._check_levels(*(arguments[each] for each in ORDER))


ORDER = ("words", "excess", "entries", "starts", "shares", "slots", "states")


LAUNCHES = """
from quantgolf_kernels import rans

def of(dtype, *shape):
    return torch.empty(shape, dtype=dtype)

words, excess = of(torch.int16, 10**6), of(torch.int32, 9)
tables = of(torch.int32, 80 << 8), of(torch.uint8, 80 << 14)
for lanes, stride in ((2000, 2000), (2000, 0), (100, 112), (5000, 5008)):
    starts, entries = of(torch.int64, lanes + 1), of(torch.uint8, 64 * 5008)
    for trellis in ((2, 1), (0, 0))[: 1 + (lanes == 100)]:
        rans.decode_levels(words, excess, entries, starts, stride, *tables, *trellis, of(torch.int32, lanes))
for lanes in (2000, 100, 5000):
    rans.decode_streams(words, of(torch.int64, 9, 6), *tables, of(torch.int32, 9 * lanes), 10**6, lanes)
"""


def test_compiled_for_hopper(ahead: Callable[[str], list[dict[str, Any]]]) -> None:
    found = ahead(LAUNCHES)
    assert [kernel["name"] for kernel in found] == 8 * ["rans_kernel"]
    assert len(found[0]["code"]) < 1300  # 1136, of which a step of 8 lanes a thread takes 768
