"""A model of the reference family in a file, made without training or calibration: for timing, where only shapes and
levels matter.

Weights have rows and columns of unequal size, as trained ones do. `slope` gives every matrix steps of rows and columns
and unclipped levels whose spread is that of a trellis at about 3.5 bits a weight: a trellis's steps are half as wide as
a scalar quantizer's at that rate, so levels reach twice as far. A number gives all matrices that width, RTN with the
row's largest weight on the last level, as the classical files have it.
"""

import math

import torch
from torch import Tensor

from quantgolf.blob import pack
from quantgolf.encode import Entry, Leveled, Quantized, encode_codes, encode_model
from quantgolf.errors import QuantGolfError
from quantgolf.models.golf import Golf, GolfConfig
from quantgolf.solve.grid import Grid, Rounding, nearest, range_steps
from quantgolf.solve.trellis import Trellis
from quantgolf.types import Block, Exponents, Steps

CONFIG_36M = GolfConfig(vocab_size=8192, dim=512, layers=11, heads=8, kv_heads=4, mlp_mult=4)
SLOPE = "slope"
# A bell curve of this deviation in steps has 2.05 + log2 of it bits: 3.5 by a scalar quantizer, and twice as far.
DEVIATION = 2 * 2 ** (3.5 - 2.05)
SCATTER = 0.3  # natural logarithm, of rows and of columns


def forms(text: str) -> list[str]:
    """`slope,4,6` → its parts.

    Raises:
        QuantGolfError: one is neither `slope` nor a width.
    """
    found = [part.strip() for part in text.split(",")]
    for part in found:
        if part != SLOPE and part not in ("2", "3", "4", "5", "6", "7", "8"):
            raise QuantGolfError(f"form {part!r} is not known, expected {SLOPE} or a width from 2 to 8")
    return found


def random_file(config: GolfConfig, form: str, seed: int = 0) -> bytes:
    """The bytes of a quantgolf file with random weights; `form` is `slope` or a width.

    Raises:
        QuantGolfError: another form.
    """
    (form,) = forms(form)
    generator = torch.Generator().manual_seed(seed)
    model = Golf(config)
    entries = []
    for name, tensor in model.state_dict().items():
        if tensor.ndim < 2 or tensor.shape[-1] < 32:  # gains, gates, scales
            entries.append(Entry(name, tensor.half()))
            continue
        columns = tensor.shape[-1]
        matrix = _weights(math.prod(tensor.shape[:-1]), columns, generator)
        block = Block(name, tensor.ndim - 1, 0, len(matrix))
        if form == SLOPE:
            part: Leveled | Quantized = _leveled(block, matrix)
        else:
            bits = int(form)
            steps = range_steps(matrix, bits, Grid())
            assert isinstance(steps, Steps)
            codes = nearest(matrix, Rounding.of(steps, bits, columns))
            part = Quantized(block, steps.row, bits, encode_codes(codes))
        entries.append(Entry(name, tensor.half(), (part,)))
    coded = encode_model(entries, Trellis(states=1) if form == SLOPE else None)
    return pack(coded, {"family": "golf", "config": config.described()})


def _weights(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    matrix = torch.randn(rows, columns, generator=generator) * columns**-0.5
    matrix *= _scatter(rows * columns, generator).view(rows, columns)  # tails as trained weights have them
    scaled: Tensor = matrix * _scatter(rows, generator)[:, None] * _scatter(columns, generator)
    return scaled


def _scatter(count: int, generator: torch.Generator) -> Tensor:
    return torch.randn(count, generator=generator).mul(SCATTER).exp()


def _leveled(block: Block, matrix: Tensor) -> Leveled:
    """Levels under steps that follow the size of rows and of columns, in quarter octaves."""
    row, column = matrix.pow(2).mean(1).sqrt(), matrix.pow(2).mean(0).sqrt()
    spread = matrix.pow(2).mean().sqrt()
    exponents = Exponents(
        torch.round(4 * torch.log2(row / DEVIATION)).to(torch.int16),
        torch.round(4 * torch.log2(column / spread)).to(torch.int16),
        round(4 * math.log2(float(spread))),
    )
    steps = exponents.steps()
    assert steps.column is not None
    levels = torch.round(matrix / (steps.row[:, None] * steps.column)).to(torch.int32)
    return Leveled(block, exponents, levels)
