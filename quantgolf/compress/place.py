"""Where matrices are solved: on the device of the model, where kernels run there; on the CPU otherwise.

One place for all of them. Weights and statistics, which may lie on a disk or on the CPU, are moved there matrix by
matrix. On a GPU matrices of equal shape are solved in batches, because one does not fill it, and all of them from one
thread, in one stream; what is counted and coded of them stays on the CPU and its threads. What comes back lies on the
CPU in any case. A GPU's results are those of the CPU but for ties and the order of sums. They are equal for any number
of ranks with a GPU of one kind each, whose batches do not depend on that number.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import nn

from quantgolf.calibrate.record import MOST_OUTPUTS
from quantgolf.solve.device import on_gpu
from quantgolf.types import WeightStats

AT_ONCE = 4 << 30  # bytes a batch may take: eighty matrices of [512, 1536], or four of [4096, 4096]
SHARE = 4  # of a GPU's free memory one part in so many

Item = TypeVar("Item")


@dataclass(frozen=True)
class Place:
    """A device, and how matrices are solved on it.

    Attributes:
        device: where weights and statistics are moved to.
        batched: whether kernels solve batches there; if not, the CPU's loops solve matrices one by one.
    """

    device: torch.device
    batched: bool

    @staticmethod
    def of(module: nn.Module) -> "Place":
        """That of a model's matrices: where its first parameter lies. A GPU without kernels says so in a warning."""
        parameter = next(module.parameters(), None)
        if parameter is not None and on_gpu(parameter):
            return Place(parameter.device, True)
        return Place(torch.device("cpu"), False)

    def entered(self) -> AbstractContextManager[object]:
        """While entered, this is the current GPU: kernels are launched on that one, not on the one of their tensors."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def room(self, most: int) -> int:
        """`most` bytes, or that share of the GPU's free memory which is lent to one use where it is less."""
        if self.device.type != "cuda":
            return most
        free, _ = torch.cuda.mem_get_info(self.device)
        free += torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return min(most, free // SHARE)

    def moved(self, stats: WeightStats) -> WeightStats:
        """Statistics of a matrix where it is solved; for the CPU they stay where calibration left them."""
        if not self.batched:
            return stats
        uses = (
            replace(
                use, row=use.row.to(self.device), column=use.column.to(self.device),
                outputs=None if use.outputs is None else use.outputs.to(self.device),
            )
            for use in stats.uses
        )  # fmt: skip
        return replace(stats, uses=tuple(uses))

    def wait(self) -> None:
        """Until all that was launched is done; only who measures time needs that."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def batches(items: Iterable[Item], key: Callable[[Item], tuple[int, ...]], most: int) -> list[list[Item]]:
    """Items of equal keys, which begin with the size [N, K] of a matrix, as many at once as `most` bytes hold, and at
    least one."""
    alike: dict[tuple[int, ...], list[Item]] = {}
    for item in items:
        alike.setdefault(key(item), []).append(item)
    found = []
    for (rows, columns, *_), group in alike.items():
        at_once = max(1, most // working_bytes(rows, columns))
        found += [group[start : start + at_once] for start in range(0, len(group), at_once)]
    return found


def working_bytes(rows: int, columns: int) -> int:
    """Memory that a matrix [N, K] takes in a batch: ten times itself in fp32 (targets and errors are fp64), and its
    factors (GPTQ's in fp64), by themselves and beside those of others, with the statistics."""
    return 40 * rows * columns + 40 * columns**2 + 4 * factor_bytes(rows, 0)


def factor_bytes(rows: int, columns: int) -> int:
    """Memory of the factors of one slope in fp32, that of G where calibration may have kept it."""
    return 4 * (columns**2 + (rows**2 if rows <= MOST_OUTPUTS else 0))
