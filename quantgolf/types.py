"""The frozen dataclasses that travel between the rooms.

Weights are [N out, K in] everywhere. Losses are nats per token of text, bytes are decimal, `bits` is the
width of a code, `step` the distance between two neighbouring levels.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantgolf.coded import BlobHeader as BlobHeader
from quantgolf.coded import CodedBlock as CodedBlock
from quantgolf.coded import CodedGroups as CodedGroups
from quantgolf.coded import CodedModel as CodedModel
from quantgolf.coded import CodedTensor as CodedTensor
from quantgolf.steps import Exponents as Exponents
from quantgolf.steps import Groups as Groups
from quantgolf.steps import QTensor as QTensor
from quantgolf.steps import Steps as Steps

ROWS_AT_ONCE = 1 << 22  # numbers of a weight's error that are priced at once
# Traces and losses within these are summed in fp32 without any part that matters being lost or infinite.
LEAST, MOST = 1e-30, 1e30


@dataclass(frozen=True)
class WeightUse:
    """One way a weight meets activations.

    Attributes:
        kind: "linear"; "lookup" for the rows of an embedding table; "crossed" for y = x W where another use of the
            weight is y = x Wᵀ, so that its rows are inputs here.
        row: [N] fp32. Linear: mean over visits of the squared gradient of the summed token loss at output i
            (the diagonal of G). Lookup: how often row i is read per token of text. Crossed: sum over visits of
            x_i², divided by the text's tokens.
        column: [K, K] fp32. Linear: sum over visits of x xᵀ, divided by the text's tokens (H). Lookup and crossed:
            mean over visits of g gᵀ, g the gradient at the output.
        visits: rows of activations that were seen.
        outputs: [N, N] fp32, linear only: the mean over visits of g gᵀ (G), g the gradient of the summed token loss at
            the output, shrunk towards its diagonal, which is `row`: (1 - ρ) G + ρ diag(G). None where it was not
            summed: other kinds, a weight with more than one kind of use, too many rows, uses of parts of the rows.
    """

    kind: Literal["linear", "lookup", "crossed"]
    row: Tensor
    column: Tensor
    visits: int
    outputs: Tensor | None = None


@dataclass(frozen=True)
class Block:
    """A weight matrix inside a parameter, which may hold several (a bank of layers, experts, q and k and v).

    The parameter, seen as [R, C] with its first `lead` dimensions merged into R, holds the block in its rows
    `start` to `stop`: as [N out, K in] where it stands upright, as [K in, N out] where it is transposed.
    """

    parameter: str
    lead: int
    start: int
    stop: int
    transposed: bool = False

    def matrix(self, tensor: Tensor) -> Tensor:
        """The block [N, K] of a tensor of the parameter's shape, a view where the tensor is contiguous."""
        rows = tensor.reshape(math.prod(tensor.shape[: self.lead]), -1)[self.start : self.stop]
        return rows.T if self.transposed else rows

    def name(self, shape: Sequence[int]) -> str:
        """What the block of a parameter of this shape is called: the parameter's name where it is all of it,
        `bank.3` where it is one entry of the first dimension, `qkv.0-512` for rows of several or of a part."""
        rows = math.prod(shape[: self.lead])
        if self.start == 0 and self.stop == rows:
            return self.parameter
        each = rows // shape[0]
        if self.start % each == 0 and self.stop - self.start == each and self.lead > 1:
            return f"{self.parameter}.{self.start // each}"
        return f"{self.parameter}.{self.start}-{self.stop}"


@dataclass(frozen=True)
class WeightStats:
    """What calibration learned about one weight matrix: all its uses, and the tokens of text behind them.

    Changing the weight by E raises the loss by about ½ Σ_u tr(outputs_u E column_u Eᵀ) nats per token; where outputs_u
    is not known, diag(row_u) stands for it.
    """

    name: str
    uses: tuple[WeightUse, ...]
    tokens: int

    def hessian(self) -> Tensor:
        """H̄ = Σ_u mean(row_u) · column_u, [K, K] fp32: the one column matrix the solvers work with. Where that is so
        large or so small that fp32 does not hold it, it is fp64."""
        total = self._hessian(torch.float32)
        return total if LEAST < float(total.trace()) < MOST else self._hessian(torch.float64)

    def _hessian(self, dtype: torch.dtype) -> Tensor:
        total = self.uses[0].row.to(dtype).mean() * self.uses[0].column.to(dtype)
        for use in self.uses[1:]:
            total += use.row.to(dtype).mean() * use.column.to(dtype)
        return total

    def row_weight(self) -> Tensor:
        """r_i⁻² = Σ_u row_u[i] · tr column_u / tr H̄, [N] fp32: how much the loss feels each output row."""
        hessian = self.hessian()
        trace, dtype = hessian.trace(), hessian.dtype
        if trace == 0:
            return torch.ones_like(self.uses[0].row)
        felt = torch.stack([use.row.to(dtype) * use.column.to(dtype).trace() for use in self.uses]).sum(0) / trace
        return felt.float()

    def outputs(self) -> Tensor | None:
        """G of the only use divided by mean(row), [N, N] fp32: its diagonal is `row_weight()` and its mean 1. None
        where there are several uses, G is not known, or nothing was felt."""
        use = self.uses[0]
        if len(self.uses) > 1 or use.outputs is None:
            return None
        hessian = self.hessian()
        if hessian.trace() == 0:
            return None
        return (use.outputs.to(hessian.dtype) / use.row.to(hessian.dtype).mean()).float()

    def loss(self, error: Tensor) -> float:
        """Predicted rise of the loss in nats per token for a weight error [N, K]; in fp32, and in fp64 where that is
        not enough."""
        total = self._loss(error, torch.float32)
        return total if LEAST < total < MOST else self._loss(error, torch.float64)

    def _loss(self, error: Tensor, dtype: torch.dtype) -> float:
        total, device = 0.0, self.uses[0].column.device
        at_once = max(1, ROWS_AT_ONCE // error.shape[1])
        whole = error.to(device, dtype) if any(use.outputs is not None for use in self.uses) else error
        for start in range(0, len(error), at_once):
            rows = slice(start, start + at_once)
            part = whole[rows].to(device, dtype)
            for use in self.uses:
                spread = part @ use.column.to(dtype)
                if use.outputs is None:
                    total += 0.5 * float((spread * part).sum(1).double() @ use.row[rows].double())
                else:
                    total += 0.5 * float((spread * (use.outputs[rows].to(dtype) @ whole)).sum(1).double().sum())
        return total


@dataclass(frozen=True)
class ParameterReport:
    """What calibration saw of one parameter, and what becomes of it.

    Attributes:
        status: "captured", "small" (no matrix), "partly" (some rows were never used), "followed in part" (used in ways
            besides whose cost is not known), or "not seen".
        uses: where it was met and how often, `linear ×12 (49,152 rows)`; one entry a kind of operation.
        fewest: rows of activations that its least used block saw; 0 where it has none.
        why: why it is not (wholly) captured; empty where it is.
    """

    name: str
    shape: tuple[int, ...]
    status: Literal["captured", "small", "partly", "followed in part", "not seen"]
    uses: tuple[str, ...]
    fewest: int
    why: str


@dataclass(frozen=True)
class Calibration:
    """What one pass over text taught about a model.

    Attributes:
        stats: by the name of the matrix (`Block.name`), in the model's order; may read from disk at each access.
        blocks: which matrix of which parameter each is.
        parameters: what was seen of every parameter.
        tokens: of text.
        labels: "sampled" from the model's prediction (the Fisher information), or the "targets" of a model that
            gives nothing but a loss.
        outputs: names of the matrices whose G is kept (`WeightUse.outputs`), or, of a survey, would be.
    """

    stats: Mapping[str, WeightStats]
    blocks: dict[str, Block]
    parameters: tuple[ParameterReport, ...]
    tokens: int
    labels: Literal["sampled", "targets"]
    outputs: frozenset[str] = frozenset()


@dataclass(frozen=True)
class SolveReport:
    """How one weight was solved. `loss` is the predicted rise in nats per token (`WeightStats.loss`); `bits` the width
    of its codes, or with one slope their entropy."""

    name: str
    solver: str
    bits: float
    loss: float
    damp: float
    retries: int
    dead_columns: int


@dataclass(frozen=True)
class Choice:
    """One way to quantize a weight: the width of its codes, and how many columns share a scale (None: all of a row)."""

    bits: int
    group_size: int | None = None


@dataclass(frozen=True)
class BitPlan:
    """Width of each weight, with the file bytes and the rise of the loss (nats per token) it should cost.

    Attributes:
        bits: of its codes; of no weight with one slope.
        groups: columns of each weight that share a scale; None for all of a row.
    """

    bits: dict[str, int]
    predicted_bytes: int
    predicted_loss: float
    groups: dict[str, int | None] = field(default_factory=dict)

    @property
    def choices(self) -> dict[str, Choice]:
        """Both together."""
        return {name: Choice(bits, self.groups.get(name)) for name, bits in self.bits.items()}


@dataclass(frozen=True)
class EvalResult:
    """Loss of a model on text, one entry a document.

    Attributes:
        nats: summed negative log likelihood of each document's tokens, float64.
        bytes: raw UTF-8 bytes of each document, int64.
        tokens: scored tokens of each document, int64.
        kl: summed KL(reference ‖ model) in nats, float64; None where there was no reference.
        unknown: tokens that are the tokenizer's unknown piece.
        agree: scored tokens of each document whose likeliest prediction is the reference's, int64; a token that
            nothing predicts, and both are charged alike, counts. None where there was no reference.
    """

    nats: NDArray[np.float64]
    bytes: NDArray[np.int64]
    tokens: NDArray[np.int64]
    kl: NDArray[np.float64] | None
    unknown: int
    agree: NDArray[np.int64] | None = None

    @property
    def bpb(self) -> float:
        """Bits per byte: nats / ln 2 / bytes."""
        return float(self.nats.sum() / math.log(2) / self.bytes.sum())

    @property
    def kl_bpb(self) -> float | None:
        """KL to the reference in bits per byte of text."""
        return None if self.kl is None else float(self.kl.sum() / math.log(2) / self.bytes.sum())

    @property
    def top1(self) -> float | None:
        """Share of the scored tokens whose likeliest prediction is the reference's."""
        return None if self.agree is None else float(self.agree.sum() / self.tokens.sum())

    @property
    def worst_document(self) -> int | None:
        """Which document has the largest KL a byte; one without bytes is none. None where there was no reference."""
        if self.kl is None or not self.bytes.any():
            return None
        return int(np.where(self.bytes > 0, self.kl / np.maximum(self.bytes, 1), -np.inf).argmax())

    @property
    def worst(self) -> float | None:
        """KL of that document in bits per byte."""
        index = self.worst_document
        return None if index is None or self.kl is None else float(self.kl[index] / math.log(2) / self.bytes[index])


@dataclass(frozen=True)
class Interval:
    """A value with its 95% bootstrap interval."""

    value: float
    low: float
    high: float
