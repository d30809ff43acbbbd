"""Several processes at one job, as `torchrun` starts them; a single process is the case of one rank.

All ranks run the same program and exchange results by value, so that every rank knows all of them and only what is
slow is divided. Collectives time out: when a rank dies the others stop with one line.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from quantgolf.errors import QuantGolfError

TIMEOUT = timedelta(minutes=10)
Value = TypeVar("Value")


@dataclass(frozen=True)
class Ranks:
    """This process among `world` ones."""

    rank: int = 0
    world: int = 1

    @property
    def writes(self) -> bool:
        """Whether this is the rank that writes files and prints."""
        return self.rank == 0

    def gather(self, value: Value) -> list[Value]:
        """The value of every rank, in their order.

        Raises:
            QuantGolfError: a rank died or hangs.
        """
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        with _collective():
            dist.all_gather_object(found, value)
        return found

    def share(self, tensors: Sequence[Tensor], source: int) -> None:
        """Fills every rank's tensors, in place, with those of `source`.

        Raises:
            QuantGolfError: a rank died or hangs.
        """
        if self.world > 1:
            with _collective():
                for tensor in tensors:
                    dist.broadcast(tensor, source)

    def divide(self, costs: Sequence[float]) -> list[int]:
        """Which rank does each of several jobs: the dearest first, each to the rank with the least to do so far."""
        load = [0.0] * self.world
        owner = [0] * len(costs)
        for job in sorted(range(len(costs)), key=lambda job: -costs[job]):
            owner[job] = min(range(self.world), key=load.__getitem__)
            load[owner[job]] += costs[job]
        return owner

    def spread(
        self, costs: Sequence[float], work: Callable[[int], Value], done: Callable[[int], None] | None = None
    ) -> list[Value]:
        """Results of `work(job)` for every job, each done by one rank and known to all.

        A rank whose work raises tells the others, so that all of them raise instead of waiting for it.

        Raises:
            QuantGolfError: whatever a rank's work raised, or a rank that died.
        """
        owner, mine = self.divide(costs), {}
        failure: QuantGolfError | None = None
        try:
            for job in (job for job, rank in enumerate(owner) if rank == self.rank):
                mine[job] = work(job)
                if done is not None:
                    done(len(mine) * self.world)
        except QuantGolfError as error:
            failure = error
        parts = self.gather((mine, failure))
        for _, raised in parts:
            if raised is not None:
                raise raised
        if done is not None and self.world > 1:
            done(len(costs))  # ranks have unequal numbers of jobs
        return [parts[rank][0][job] for job, rank in enumerate(owner)]


@contextmanager
def joined(timeout: timedelta = TIMEOUT) -> Iterator[Ranks]:
    """The ranks this process belongs to while the block runs: those `torchrun` started, or it alone.

    Tensors on a CPU travel by gloo and those on a GPU by NCCL.

    Raises:
        QuantGolfError: the other ranks do not answer in time.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks()
        return
    if dist.is_initialized():  # a program that has its own group runs quantgolf inside it
        yield Ranks(dist.get_rank(), dist.get_world_size())
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    with _collective():
        dist.init_process_group(backend, timeout=timeout)
    try:
        yield Ranks(dist.get_rank(), world)
    finally:
        dist.destroy_process_group()


@contextmanager
def _collective() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:  # what the backends raise when a peer is gone or silent
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise QuantGolfError(
            f"the ranks lost each other ({reason}), expected all of them to answer: see which one stopped and why, and "
            "start torchrun again; nothing was written"
        ) from error
