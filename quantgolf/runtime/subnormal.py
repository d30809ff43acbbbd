"""Weights below the normal range of fp32, which restoring makes zeros of where a caller has told torch to.

The format asks for them: a product of steps may be subnormal where the weight is not. `torch.set_flush_denormal` sets a
register of the calling thread, which NumPy's arithmetic follows as well.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

GRAIN = 32768  # values that torch gives a thread, of what it does one by one


@contextmanager
def subnormals(values: int | None = None) -> Iterator[None]:
    """While entered, this thread has subnormal numbers; afterwards it flushes them again if it did before.

    Threads of torch's pool have for good what the thread that started them had then. Where some flush, torch works in
    this thread alone meanwhile.

    Args:
        values: at most so many are worked on at once, which no more threads than those have to be asked for; None: any.
    """
    flushed, threads = _flushes(1), torch.get_num_threads()
    if flushed:
        torch.set_flush_denormal(False)
    every = GRAIN * threads
    alone = threads > 1 and _flushes(every if values is None else min(values, every))
    if alone:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if alone:
            torch.set_num_threads(threads)
        if flushed:
            torch.set_flush_denormal(True)


def _flushes(count: int) -> bool:
    """Whether one of so many products of a subnormal number, of which each thread has some, is zero."""
    least = torch.full((count,), 2.0**-140, dtype=torch.float32, device="cpu")
    return not bool((least * 1.0).all())
