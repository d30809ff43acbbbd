"""Dependent (trellis-coded) quantization of a column of weights (Marcellin & Fischer 1990, doi:10.1109/26.46532; the
form for entropy-coded integers is that of video coding, Schwarz et al. 2021, doi:10.1109/TCSVT.2021.3072202).

Levels are integers. A state allows either the even ones, or the odd ones and zero, and the level taken decides the
next state, so that a path of levels lies twice as dense as what any one state has to choose from. Without overload
that is worth up to 0.25 bit a weight. Zero is in both quantizers, which is what keeps the gain at low rates.

Bits above the rate-distortion bound of a Gaussian source at 3.5 and at 2.6 bits, levels coded under the quantizer's
own histogram (200,000 samples, restarts every 128): scalar 0.264 and 0.293, 4 states 0.133 and 0.175, 8 states 0.118
and 0.157, 32 states 0.098 and 0.137. Labels follow the magnitude of odd levels (±1, ±5, … and 0, ±3, ±7, …); by
residue, as the theory for a uniform source has it, 8 states lose 0.012 and 0.023 bit more.

A run of rows costs a step of all states each, which a processor does side by side: 65, 42, 36, 24, 11, 6 and 3 M
weights/s with 4, 8, 16, 32, 64, 128 and 256 states (one core of an EPYC 9004, shared).
"""

from dataclasses import dataclass
from functools import cached_property

import numba
import numpy as np
from numpy.typing import NDArray

from quantgolf.errors import QuantGolfError

# Parity-check polynomials of Ungerboeck's codes for amplitude modulation (1982, doi:10.1109/TIT.1982.1056454, table I).
CODES = {
    4: (0o5, 0o2), 8: (0o13, 0o4), 16: (0o23, 0o4), 32: (0o45, 0o10), 64: (0o103, 0o24), 128: (0o235, 0o126),
    256: (0o515, 0o362),
}  # fmt: skip


@dataclass(frozen=True)
class Trellis:
    """A machine that runs down the rows of a column; with one state it is the plain scalar quantizer.

    Attributes:
        states: 1, or a power of two from 4 to 256.
        restart: rows after which it begins again in state 0, so that segments can be worked on side by side.
    """

    states: int = 128
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
    def arrivals(self) -> NDArray[np.uint8]:
        """The two ways into each state, the lower state first: [4, states] of state before and 2 · odd + label of the
        one, and of the other."""
        if self.states == 1:
            return np.zeros((4, 1), dtype=np.uint8)
        ways: list[list[int]] = [[] for _ in range(self.states)]
        for state in range(self.states):
            for label in range(2):
                ways[self.after[state, label]] += [state, 2 * (state & 1) + label]
        return np.ascontiguousarray(np.array(ways, dtype=np.uint8).T)

    @cached_property
    def ways(self) -> NDArray[np.int32]:
        """`arrivals` in one word a state, as kernels read them: 8 bits each, the first of the four lowest."""
        return np.ascontiguousarray(self.arrivals.T).view("<u4").ravel().astype(np.int32)

    def odd(self, state: int) -> bool:
        """Whether a state allows the odd levels and zero, and not the even ones: the odd states do."""
        return bool(state & 1)

    def quantize(self, targets: NDArray[np.float64]) -> NDArray[np.int32]:
        """The levels [n] with the least summed squared distance to `targets` [n] on allowed paths (exact Viterbi)."""
        levels = np.empty(len(targets), dtype=np.int32)
        quantize_run(np.ascontiguousarray(targets, dtype=np.float64), 0, 0, self.arrivals, self.restart, levels)
        return levels


@numba.njit(inline="always")
def label_of(level: int) -> int:
    """The label of an allowed level: of even ones by their halves, of odd ones by magnitude (±1, ±5, … have 1)."""
    magnitude = abs(level)
    return (magnitude >> 1) & 1 if magnitude & 1 == 0 else 1 - ((magnitude >> 1) & 1)


@numba.njit(cache=True, nogil=True)
def quantize_run(
    targets: NDArray[np.float64],
    first: int,
    state: int,
    arrivals: NDArray[np.uint8],
    restart: int,
    levels: NDArray[np.int32],
) -> int:
    """Fills `levels` [n] of the rows from `first` on, begun in `state`; returns the state the best path ends in.

    One state rounds to the nearest integer.
    """
    rows, states = len(targets), arrivals.shape[1]
    if states == 1:
        for i in range(rows):
            levels[i] = np.int32(np.rint(targets[i]))
        return 0
    before_a, by_a, before_b, by_b = arrivals[0], arrivals[1], arrivals[2], arrivals[3]
    nearest, distance = np.empty((min(rows, restart), 4)), np.empty(4)
    second = np.empty((min(rows, restart), states), dtype=np.bool_)
    cost, reached = np.empty(states), np.empty(states)
    start = 0
    while start < rows:
        within = (first + start) % restart
        count = min(restart - within, rows - start)
        cost[:] = np.inf
        cost[state if within else 0] = 0.0
        for i in range(count):
            _find_nearest(targets[start + i], nearest[i], distance)
            for s in range(states):
                a, b = cost[before_a[s]] + distance[by_a[s]], cost[before_b[s]] + distance[by_b[s]]
                second[i, s] = b < a
                reached[s] = min(a, b)
            cost, reached = reached, cost
        state = int(np.argmin(cost))
        s = state
        for i in range(count - 1, -1, -1):
            if second[i, s]:
                levels[start + i], s = np.int32(nearest[i, by_b[s]]), int(before_b[s])
            else:
                levels[start + i], s = np.int32(nearest[i, by_a[s]]), int(before_a[s])
        start += count
    return state


@numba.njit(inline="always")
def _find_nearest(target: float, nearest: NDArray[np.float64], distance: NDArray[np.float64]) -> None:
    """Of each quantizer and label, 2 · odd + label, the level nearest to a target and its squared distance."""
    magnitude = abs(target)
    sign = 1.0 if target >= 0 else -1.0
    three = max(3.0, 4.0 * np.rint((magnitude - 3.0) / 4.0) + 3.0)
    nearest[0] = 4.0 * np.rint(target / 4.0)
    nearest[1] = 4.0 * np.rint((target - 2.0) / 4.0) + 2.0
    nearest[2] = sign * three if abs(magnitude - three) < magnitude else 0.0
    nearest[3] = sign * max(1.0, 4.0 * np.rint((magnitude - 1.0) / 4.0) + 1.0)
    for kind in range(4):
        distance[kind] = (target - nearest[kind]) ** 2
