"""The frozen dataclasses that travel between the rooms.

Weights are [N out, K in] everywhere. Losses are nats per token of text, bytes are decimal, `bits` is the
width of a code, `step` the distance between two neighbouring levels.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantgolf_kernels import dequantize


@dataclass(frozen=True)
class WeightUse:
    """One way a weight meets activations.

    Attributes:
        kind: "linear", or "lookup" for the rows of an embedding table.
        row: [N] fp32. Linear: mean over visits of the squared gradient of the summed token loss at output i
            (the diagonal of G). Lookup: how often row i is read per token of text.
        column: [K, K] fp32. Linear: sum over visits of x xᵀ, divided by the text's tokens (H). Lookup: mean
            over visits of g gᵀ, g the gradient at the embedding's output.
        visits: rows of activations that were seen.
    """

    kind: Literal["linear", "lookup"]
    row: Tensor
    column: Tensor
    visits: int


@dataclass(frozen=True)
class WeightStats:
    """What calibration learned about one weight: all its uses, and the tokens of text behind them.

    Changing the weight by E raises the loss by about ½ Σ_u Σ_i row_u[i] · E_i column_u E_iᵀ nats per token.
    """

    name: str
    uses: tuple[WeightUse, ...]
    tokens: int

    def hessian(self) -> Tensor:
        """H̄ = Σ_u mean(row_u) · column_u, [K, K] fp32: the one column matrix the solvers work with."""
        return torch.stack([use.row.mean() * use.column for use in self.uses]).sum(0)

    def row_weight(self) -> Tensor:
        """r_i⁻² = Σ_u row_u[i] · tr column_u / tr H̄, [N] fp32: how much the loss feels each output row."""
        trace = self.hessian().trace()
        if trace == 0:
            return torch.ones_like(self.uses[0].row)
        return torch.stack([use.row * use.column.trace() for use in self.uses]).sum(0) / trace

    def loss(self, error: Tensor) -> float:
        """Predicted rise of the loss in nats per token for a weight error [N, K]."""
        error = error.to(self.uses[0].column)
        return 0.5 * sum(float(((error @ use.column) * error).sum(1).double() @ use.row.double()) for use in self.uses)


@dataclass(frozen=True)
class Steps:
    """Step of weight (i, j) is row[i] · column[j]; row [N] fp16 as stored, column [K] or None for ones."""

    row: Tensor
    column: Tensor | None = None


@dataclass(frozen=True)
class QTensor:
    """A quantized weight: codes [N, K] (int8 here; wider integers once codes go unclipped) times its steps.

    `bits` is the width: codes lie in ±(2^(bits-1) - 1).
    """

    codes: Tensor
    steps: Steps
    bits: int

    def dequantize(self) -> Tensor:
        """The weight these codes stand for, [N, K] fp32."""
        weight: Tensor = dequantize(self.codes, self.steps.row, self.steps.column)
        return weight


@dataclass(frozen=True)
class SolveReport:
    """How one weight was solved. `loss` is the predicted rise in nats per token (`WeightStats.loss`)."""

    name: str
    solver: str
    bits: int
    loss: float
    damp: float
    retries: int
    dead_columns: int


@dataclass(frozen=True)
class BitPlan:
    """Width of each weight, with the file bytes and the rise of the loss (nats per token) it should cost."""

    bits: dict[str, int]
    predicted_bytes: int
    predicted_loss: float


@dataclass(frozen=True)
class CodedTensor:
    """One tensor of a file.

    Attributes:
        name: as in the checkpoint; `aliases` are further names of the same storage.
        shape: of the checkpoint's tensor; a quantized one is coded as [shape[0], product of the rest].
        dtype: the checkpoint's, as safetensors spells it ("F16", "BF16", "F32", "I64", …).
        stored: spelling of the dtype the values are kept in; None for a quantized weight.
        bits: width of the codes; None for a tensor kept as it is.
        codes: the coded codes of a quantized weight, empty otherwise.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    stored: str | None
    bits: int | None
    codes: bytes
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class CodedModel:
    """All tensors of a file in order, with the two streams they share: steps of rows, and small tensors."""

    tensors: tuple[CodedTensor, ...]
    steps: bytes
    small: bytes


@dataclass(frozen=True)
class BlobHeader:
    """What a file says of itself before its payloads: format version and the model it belongs to.

    `model` describes how to rebuild the module ({"family": "golf", "config": {…}}), or is None where the user
    has to bring the module along.
    """

    version: int
    model: dict[str, Any] | None


@dataclass(frozen=True)
class EvalResult:
    """Loss of a model on text, one entry a document.

    Attributes:
        nats: summed negative log likelihood of each document's tokens, float64.
        bytes: raw UTF-8 bytes of each document, int64.
        tokens: scored tokens of each document, int64.
        kl: summed KL(reference ‖ model) in nats, float64; None where there was no reference.
        unknown: tokens that are the tokenizer's unknown piece.
    """

    nats: NDArray[np.float64]
    bytes: NDArray[np.int64]
    tokens: NDArray[np.int64]
    kl: NDArray[np.float64] | None
    unknown: int

    @property
    def bpb(self) -> float:
        """Bits per byte: nats / ln 2 / bytes."""
        return float(self.nats.sum() / math.log(2) / self.bytes.sum())

    @property
    def kl_bpb(self) -> float | None:
        """KL to the reference in bits per byte of text."""
        return None if self.kl is None else float(self.kl.sum() / math.log(2) / self.bytes.sum())


@dataclass(frozen=True)
class Interval:
    """A value with its 95% bootstrap interval."""

    value: float
    low: float
    high: float
