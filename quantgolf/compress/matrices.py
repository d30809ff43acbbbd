"""Which matrices of a checkpoint are quantized, and their values one at a time."""

from collections.abc import Iterator, Mapping
from functools import cached_property

import torch
from torch import Tensor

from quantgolf.checkpoint import Checkpoint
from quantgolf.compress.place import Place
from quantgolf.encode import matrix_shape
from quantgolf.errors import QuantGolfError
from quantgolf.types import Block, Calibration

# Below these an fp16 step a row and a frequency table cost more than narrow codes save.
FEWEST_COLUMNS = 16
FEWEST_NUMBERS = 512
NOTHING_TO_QUANTIZE = (
    "calibration saw no matrix that can be quantized, expected at least one: `quantgolf inspect --capture` tells why "
    "each parameter is kept"
)


class Matrices(Mapping[str, Tensor]):
    """Matrices [N, K] in fp32 by name, made at each access: a model in 16 bits is never in memory a second time."""

    def __init__(self, checkpoint: Checkpoint, blocks: Mapping[str, Block]) -> None:
        self.checkpoint, self.blocks = checkpoint, blocks

    def __getitem__(self, name: str) -> Tensor:
        block = self.blocks[name]
        return block.matrix(self.checkpoint.tensors[block.parameter]).float()

    def __iter__(self) -> Iterator[str]:
        return iter(self.blocks)

    def __len__(self) -> int:
        return len(self.blocks)

    @cached_property
    def place(self) -> Place:
        """Where they are solved."""
        return Place.of(self.checkpoint.module)

    def there(self, name: str) -> Tensor:
        """A matrix [N, K] in fp32 where it is solved."""
        block = self.blocks[name]
        return block.matrix(self.checkpoint.tensors[block.parameter]).to(self.place.device).float()

    def dtype(self, name: str) -> torch.dtype:
        """Of the tensor a matrix lies in, and comes back in."""
        return self.checkpoint.tensors[self.blocks[name].parameter].dtype

    def size(self, name: str) -> tuple[int, int]:
        """[N, K] of a matrix."""
        block = self.blocks[name]
        return matrix_shape(self.checkpoint.tensors[block.parameter].shape, block)


def choose(checkpoint: Checkpoint, calibration: Calibration) -> tuple[Matrices, dict[str, str]]:
    """The matrices to quantize, and why each other parameter of two dimensions (or part of it) is kept as it is.

    Raises:
        QuantGolfError: a calibration of another model.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in checkpoint.tensors.items()}
    foreign = [r.name for r in calibration.parameters if shapes.get(r.name) != r.shape]
    if foreign:
        raise QuantGolfError(f"statistics of {', '.join(foreign[:5])} belong to another model; calibrate this one")
    chosen, kept = {}, {}
    for report in calibration.parameters:
        if report.status in ("not seen", "partly", "followed in part"):
            kept[report.name] = report.why
    # What a weight costs in uses that are not followed is not known: it may be anything.
    unknown = {report.name for report in calibration.parameters if report.status == "followed in part"}
    small: dict[str, int] = {}
    for name, block in calibration.blocks.items():
        if block.parameter in unknown:
            continue
        rows, columns = matrix_shape(shapes[block.parameter], block)
        if columns >= FEWEST_COLUMNS and rows * columns >= FEWEST_NUMBERS:
            chosen[name] = block
            continue
        small[block.parameter] = small.get(block.parameter, 0) + 1
        what = f"{small[block.parameter]} matrices such as " * (small[block.parameter] > 1) + f"{rows}×{columns}"
        kept[block.parameter] = f"{what} are too small for steps and tables to pay"
    return Matrices(checkpoint, chosen), kept
