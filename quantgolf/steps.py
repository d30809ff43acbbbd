"""The frozen dataclasses of quantized weights, codes and what makes weights of them; `quantgolf.types` has them too."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantgolf_kernels import dequantize

# The fp32 numbers nearest to 2^(i / 128); part of format version 1, to the bit. None lies closer than 1e-4 of a last
# place to the middle of two, so that any exp2 good to 1e-11 gives the same ones.
MANTISSAS = np.exp2(np.arange(128) / 128).astype(np.float32)
FINE = 32  # parts of a quarter octave, of which MANTISSAS has 128 an octave
SIXTEENTH = 8  # the same parts of a sixteenth of an octave
# Of a scale of `Groups`, in sixteenths of an octave: 255 times the largest is finite, and the smallest no subnormal.
LARGEST_SIXTEENTHS = 119 * 16


@dataclass(frozen=True)
class Steps:
    """Step of weight (i, j) is row[i] · column[j].

    As stored: row [N] fp16 and no column, which stands for ones; of `Exponents`, row [N] and column [K] fp32.
    """

    row: Tensor
    column: Tensor | None = None


@dataclass(frozen=True)
class Groups:
    """Scales, and zeros of asymmetric grids, by groups of neighbouring columns.

    Weight (i, j) is (codes[i, j] - zero[i, g]) · scale[i, g] with g = ⌊j / size⌋: whole numbers are subtracted, and the
    one product is rounded to fp32.

    Attributes:
        scale: [N, G], G = ⌈K / size⌉: fp16 from 0, or int16 exponents e within ±1,904 that stand for 2^(e / 16), as
            `Exponents` has them.
        zero: int8 [N, G], the code that stands for 0, within the range of the codes; None for symmetric grids.
        size: columns of a group, 1 to K (1 where K is 0); the last may have fewer. Of one group a row it is K.
    """

    scale: Tensor
    zero: Tensor | None
    size: int

    def scales(self) -> Tensor:
        """fp32 [N, G], the same bits on every machine."""
        if self.scale.dtype != torch.int16:
            return self.scale.float()
        return _power(self.scale, None, SIXTEENTH)


@dataclass(frozen=True)
class Exponents:
    """Steps as whole quarter octaves: that of weight (i, j) is about 2^((row[i] + column[j]) / 4).

    Attributes:
        row: int16 [N].
        column: int16 [K].
        spread: standard deviation of the weights, about 2^(spread / 4); only the coder of levels uses it.
        fine_row, fine_column: int8 [N] and [K], what tuning adds to them in 32nds of a quarter octave; None for
            zeros. They scale the weights and nothing else: the coder of levels does not look at them.
    """

    row: Tensor
    column: Tensor
    spread: int
    fine_row: Tensor | None = None
    fine_column: Tensor | None = None

    def steps(self) -> Steps:
        """The fp32 steps these stand for, the same bits on every machine; infinite where they overflow."""
        return Steps(_power(self.row, self.fine_row), _power(self.column, self.fine_column))

    def largest(self) -> np.float32:
        """The largest step of a weight, of a matrix that has any, without the others; infinite where it overflows."""
        row, column = _parts(self.row, self.fine_row, FINE).max(), _parts(self.column, self.fine_column, FINE).max()
        with np.errstate(over="ignore", under="ignore"):
            product: np.float32 = _ldexp(row) * _ldexp(column)
        return product


def _power(exponents: Tensor, fine: Tensor | None, parts: int = FINE) -> Tensor:
    return torch.from_numpy(_ldexp(_parts(exponents, fine, parts)))


def _parts(exponents: Tensor, fine: Tensor | None, parts: int) -> NDArray[np.int32]:
    """Exponents in 128ths of an octave."""
    found = parts * exponents.detach().cpu().numpy().astype(np.int32)
    if fine is not None:
        found += fine.detach().cpu().numpy()
    return found


def _ldexp(parts: Any) -> Any:
    # NumPy's ldexp rounds once; torch's multiplies by a power of two that may itself underflow.
    with np.errstate(over="ignore", under="ignore"):
        return np.ldexp(MANTISSAS[parts & 127], parts >> 7)


@dataclass(frozen=True)
class QTensor:
    """A quantized weight: codes [N, K] times its steps.

    Of `bits` bits the codes are int8 within ±(2^(bits-1) - 1), on an asymmetric grid from -2^(bits-1) to
    2^(bits-1) - 1; with `bits` None they are int32 levels, unclipped.
    """

    codes: Tensor
    steps: Steps | Groups
    bits: int | None

    def dequantize(self) -> Tensor:
        """The weight these codes stand for, [N, K] fp32."""
        if isinstance(self.steps, Groups):
            return _dequantize_groups(self.codes, self.steps)
        weight: Tensor = dequantize(self.codes, self.steps.row, self.steps.column)
        return weight


def _dequantize_groups(codes: Tensor, groups: Groups) -> Tensor:
    weight = codes.to(torch.float32, copy=True)
    scale, whole = groups.scales().to(codes.device), codes.shape[1] // groups.size
    # In place, group by group, and the columns of a last one that is shorter: nothing else is as large as the weight.
    full, rest = weight[:, : whole * groups.size], weight[:, whole * groups.size :]
    full = full.view(len(weight), whole, groups.size)
    if groups.zero is not None:
        full -= groups.zero[:, :whole, None]
        rest -= groups.zero[:, whole:]
    full *= scale[:, :whole, None]
    rest *= scale[:, whole:]
    return weight
