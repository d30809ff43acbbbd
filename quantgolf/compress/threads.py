"""Threads that solve side by side, torch with one in each, and what a matrix becomes once all its parts are."""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import TypeVar

import torch

Value = TypeVar("Value")
Found = TypeVar("Found")


def joined(name: str, parts: list[Future[Value]], join: Callable[[str, Iterator[Value]], Found]) -> Callable[[], Found]:
    """The result of `join`, which runs as soon as the last part is done, in the thread that did it."""
    whole: Future[Found] = Future()
    lock, left = Lock(), len(parts)

    def done(_: Future[Value]) -> None:
        nonlocal left
        with lock:
            left -= 1
            if left:
                return
        try:
            whole.set_result(join(name, (part.result() for part in parts)))
        except BaseException as error:  # for whoever waits
            whole.set_exception(error)
        parts.clear()

    for part in tuple(parts):
        part.add_done_callback(done)
    return whole.result


@contextmanager
def pool_of(workers: int) -> Iterator[Executor]:
    """A pool of threads in which, as in this one, torch computes with a single thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)
