"""Dependent (trellis-coded) quantization of a column of weights (Marcellin & Fischer 1990, doi:10.1109/26.46532; the
form for entropy-coded integers is that of video coding, Schwarz et al. 2021, doi:10.1109/TCSVT.2021.3072202).

Levels are integers. A state allows either the even ones, or the odd ones and zero, and the level taken decides the
next state, so that a path of levels lies twice as dense as what any one state has to choose from. Without overload
that is worth up to 0.25 bit a weight. Zero is in both quantizers, which is what keeps the gain at low rates.

Bits above the rate-distortion bound of a Gaussian source at 3.5 and at 2.6 bits, levels coded under the quantizer's
own histogram (200,000 samples, restarts every 128): scalar 0.264 and 0.293, 4 states 0.133 and 0.175, 8 states 0.118
and 0.157, 32 states 0.098 and 0.137. Labels follow the magnitude of odd levels (±1, ±5, … and 0, ±3, ±7, …); by
residue, as the theory for a uniform source has it, 8 states lose 0.012 and 0.023 bit more.

Segments do not know of each other, so `LANES` of them are worked on side by side: 52 M weights/s with 4 and 8 states,
35 with 16 and 24 with 32, against 22, 17, 10 and 6 one after another (one core of an EPYC 9004, shared; lanes of 8
and 16 are a tenth and a quarter faster again, but most columns have hardly 4 segments).
"""

from dataclasses import dataclass
from functools import cached_property

import numba
import numpy as np
from numpy.typing import NDArray

from quantgolf.errors import QuantGolfError

LANES = 4  # segments side by side: one vector of doubles

# Parity-check polynomials of Ungerboeck's codes for amplitude modulation (1982, doi:10.1109/TIT.1982.1056454, table I).
CODES = {4: (0o5, 0o2), 8: (0o13, 0o4), 16: (0o23, 0o4), 32: (0o45, 0o10)}


@dataclass(frozen=True)
class Trellis:
    """A machine that runs down the rows of a column; with one state it is the plain scalar quantizer.

    Attributes:
        states: 1, 4, 8, 16 or 32.
        restart: rows after which it begins again in state 0, so that segments can be worked on side by side.
    """

    states: int = 32
    restart: int = 256

    def __post_init__(self) -> None:
        if self.states != 1 and self.states not in CODES:
            raise QuantGolfError(f"states is {self.states}, expected 1 (scalar) or one of {', '.join(map(str, CODES))}")
        if self.restart < 1:
            raise QuantGolfError(f"restart is {self.restart}, expected at least 1 row, for example 128")

    @cached_property
    def after(self) -> NDArray[np.int64]:
        """Next state by state and label of the level, [states, 2]."""
        after = np.zeros((self.states, 2), dtype=np.int64)
        if self.states == 1:
            return after
        memory, (feedback, forward) = self.states.bit_length() - 1, CODES[self.states]
        for state in range(self.states):
            for label in range(2):
                for bit in range(memory):
                    above = state >> (bit + 1) & 1
                    fed = (feedback >> (bit + 1) & 1) & (state & 1)
                    after[state, label] |= (above ^ fed ^ ((forward >> (bit + 1) & 1) & label)) << bit
        return after

    @cached_property
    def arrivals(self) -> NDArray[np.int64]:
        """The two ways into each state, the lower state first: [states, 2, 2] of state before, 2 · odd + label."""
        if self.states == 1:
            return np.zeros((1, 2, 2), dtype=np.int64)
        ways: list[list[tuple[int, int]]] = [[] for _ in range(self.states)]
        for state in range(self.states):
            for label in range(2):
                ways[self.after[state, label]].append((state, 2 * (state & 1) + label))
        return np.array(ways, dtype=np.int64)

    def odd(self, state: int) -> bool:
        """Whether a state allows the odd levels and zero, and not the even ones: the odd states do."""
        return bool(state & 1)

    def quantize(self, targets: NDArray[np.float64]) -> NDArray[np.int32]:
        """The levels [n] with the least summed squared distance to `targets` [n] on allowed paths (exact Viterbi)."""
        levels = np.empty(len(targets), dtype=np.int32)
        quantize_column(np.ascontiguousarray(targets, dtype=np.float64), self.arrivals, self.restart, levels)
        return levels


@numba.njit(inline="always")
def label_of(level: int) -> int:
    """The label of an allowed level: of even ones by their halves, of odd ones by magnitude (±1, ±5, … have 1)."""
    magnitude = abs(level)
    return (magnitude >> 1) & 1 if magnitude & 1 == 0 else 1 - ((magnitude >> 1) & 1)


@numba.njit(cache=True, nogil=True)
def quantize_column(
    targets: NDArray[np.float64], arrivals: NDArray[np.int64], restart: int, levels: NDArray[np.int32]
) -> None:
    """Fills `levels` [n], `LANES` segments at a time; one state rounds to the nearest integer."""
    rows, states = len(targets), len(arrivals)
    if states == 1:
        for i in range(rows):
            levels[i] = np.int32(np.rint(targets[i]))
        return
    longest = min(restart, rows)
    aim = np.empty((longest, LANES))
    nearest, distance = np.empty((longest, 4, LANES)), np.empty((4, LANES))
    second = np.empty((longest, states, LANES), dtype=np.uint8)
    cost, reached = np.empty((states, LANES)), np.empty((states, LANES))
    last = np.empty(LANES, dtype=np.int64)
    for start in range(0, rows, restart * LANES):
        for lane in range(LANES):
            begin = start + lane * restart
            for i in range(longest):
                aim[i, lane] = targets[begin + i] if begin + i < rows else 0.0
        cost[:] = np.inf
        cost[0] = 0.0
        for i in range(min(longest, rows - start)):
            for lane in range(LANES):
                _find_nearest(aim[i, lane], nearest[i], distance, lane)
            for state in range(states):
                a, b = arrivals[state, 0, 0], arrivals[state, 1, 0]
                by_a, by_b = arrivals[state, 0, 1], arrivals[state, 1, 1]
                for lane in range(LANES):
                    from_a, from_b = cost[a, lane] + distance[by_a, lane], cost[b, lane] + distance[by_b, lane]
                    second[i, state, lane] = from_b < from_a
                    reached[state, lane] = min(from_a, from_b)
            cost, reached = reached, cost
            for lane in range(LANES):
                if i == min(restart, rows - start - lane * restart) - 1:  # where its segment ends
                    last[lane] = np.argmin(cost[:, lane])
        for lane in range(LANES):
            begin = start + lane * restart
            state = last[lane]
            for i in range(min(restart, rows - begin) - 1, -1, -1):
                way = second[i, state, lane]
                levels[begin + i] = np.int32(nearest[i, arrivals[state, way, 1], lane])
                state = arrivals[state, way, 0]


@numba.njit(inline="always")
def _find_nearest(target: float, nearest: NDArray[np.float64], distance: NDArray[np.float64], lane: int) -> None:
    """Of each quantizer and label, 2 · odd + label, the level nearest to a target and its squared distance."""
    magnitude = abs(target)
    sign = 1.0 if target >= 0 else -1.0
    three = max(3.0, 4.0 * np.rint((magnitude - 3.0) / 4.0) + 3.0)
    nearest[0, lane] = 4.0 * np.rint(target / 4.0)
    nearest[1, lane] = 4.0 * np.rint((target - 2.0) / 4.0) + 2.0
    nearest[2, lane] = sign * three if abs(magnitude - three) < magnitude else 0.0
    nearest[3, lane] = sign * max(1.0, 4.0 * np.rint((magnitude - 1.0) / 4.0) + 1.0)
    for kind in range(4):
        distance[kind, lane] = (target - nearest[kind, lane]) ** 2
