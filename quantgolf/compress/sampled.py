"""What every choice for every matrix would cost, from some rows of it and without text."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from quantgolf.allocate import Cost
from quantgolf.compress.candidates import as_coded
from quantgolf.compress.matrices import Matrices
from quantgolf.compress.refuse import uniform
from quantgolf.compress.sizes import predicted_bytes
from quantgolf.encode import Codec, side_bytes
from quantgolf.solve import WIDTHS, SolveOptions, predict, prepare
from quantgolf.solve.grid import Grid
from quantgolf.types import Choice, Steps

SAMPLE = 24  # rows of a matrix that stand for all of it


def sampled_costs(
    matrices: Matrices, grid: Grid, group_sizes: Sequence[int | None], codec: Codec
) -> dict[str, dict[Choice, Cost]]:
    """Costs of every width and every size of groups from some rows of each matrix: all inputs count alike."""
    step_bytes, costs = bytes_of_step(matrices), {}
    for name, matrix in matrices.items():
        rows, columns = matrix.shape
        sample = matrix[torch.linspace(0, rows - 1, min(rows, SAMPLE)).long()].contiguous()
        stats, scale = uniform(name, len(sample), columns), rows / len(sample)
        choices = {}
        for size in group_sizes:
            prepared = prepare(sample, stats, "gptq_lite", SolveOptions(grid=replace(grid, group_size=size)))
            for bits in WIDTHS:
                found = predict(prepared, bits)
                coded = predicted_bytes((found.counts * scale).round().astype(found.counts.dtype), codec)
                plain = isinstance(found.steps, Steps)
                side = step_bytes * rows if plain else side_bytes(as_coded(found.steps)) * scale
                choices[Choice(bits, size)] = Cost(coded + int(side), found.loss * scale)
        costs[name] = choices
    return costs


def bytes_of_step(matrices: Matrices) -> float:
    """Bytes of an fp16 step once coded, taking the largest number of each row for its step: the lower half is noise,
    the upper one takes its entropy. On the demo that says 1.34 where steps take 1.21 to 1.29."""
    largest = [matrix.abs().amax(1).half().view(torch.int16) >> 8 for matrix in matrices.values()]
    counts = np.unique(torch.cat(largest).numpy(), return_counts=True)[1]
    share = counts / counts.sum()
    return 1 - float(share @ np.log2(share)) / 8
