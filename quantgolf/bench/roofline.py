"""The least time that a product can take on a GPU, and the goals for the time that it does take.

Williams, Waterman and Patterson 2009: every byte that has to move does so once, at the speed of a large copy, every
multiplication at that of a large dense product, and the slower of the two decides. Both speeds are measured in the run
that they are held against.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from quantgolf.bench.clock import Timer, measure

COPY_BYTES = 1 << 30
SQUARE = 8192  # of the dense product that sets the pace
# Gain over the bf16 dense product, 8192², one row of activations, caches flushed.
GAINS = {8: 1.8, 6: 2.2, 5: 2.6, 4: 3.0, 3: 3.6}
OF_ONE_ROW = 0.9  # of that gain, what 16 rows of activations are to have at 4 bits
MATERIALISED = 0.95
# Speed of packed weights beside the bf16 dense product, by rows of activations; between them they are only reported.
AT_1024, FROM_8192 = 0.75, 0.95


@dataclass(frozen=True)
class Ceilings:
    """Bytes a second of a large copy, read and written counted, and operations a second of a large bf16 product."""

    bandwidth: float
    rate: float

    def seconds(self, nbytes: float, operations: float = 0.0) -> float:
        """The least time for both."""
        return max(nbytes / self.bandwidth, operations / self.rate)


def measured_ceilings(
    timer: Timer, device: torch.device, *, nbytes: int = COPY_BYTES, square: int = SQUARE
) -> Ceilings:
    """Both ceilings of this device, on random numbers."""
    source = torch.randint(-128, 128, (nbytes,), dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    copied = measure(timer, [partial(target.copy_, source)])
    del source, target
    a, b = (torch.randn(square, square, device=device, dtype=torch.bfloat16) for _ in range(2))
    multiplied = measure(timer, [partial(torch.nn.functional.linear, a, b)])
    return Ceilings(2 * nbytes / copied.seconds, 2 * square**3 / multiplied.seconds)


def product_bytes(m: int, n: int, k: int, weight_bytes: int, item: int = 2) -> int:
    """Bytes that a product of activations [m, k] with a matrix [n, k] has to move: weights and both activations, of
    `item` bytes a number, once each."""
    return weight_bytes + item * (m * k + m * n)


def operations(m: int, n: int, k: int) -> int:
    """Multiplications and additions of a product."""
    return 2 * m * n * k


def goal(
    op: str, kind: str, bits: int, m: int, n: int, k: int, state: str, one_row: Callable[[], float | None]
) -> float | None:
    """What a case's gain over the bf16 dense product has to be, or None where there is no goal.

    Args:
        op, kind, bits, m, n, k, state: of the case, as in a line of results.
        one_row: gives the gain that the same weights had in this run at one row of activations, or None.
    """
    if op == "materialised":
        return MATERIALISED
    if op != "product" or kind != "steps":
        return None
    if m >= 1024:
        return FROM_8192 if m >= 8192 else AT_1024 if m == 1024 else None
    if (n, k, state) != (8192, 8192, "flushed"):
        return None
    if m == 1:
        return GAINS.get(bits)
    found = one_row() if (m, bits) == (16, 4) else None
    return None if found is None else OF_ONE_ROW * found
