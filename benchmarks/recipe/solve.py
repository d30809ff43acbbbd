"""GPTQ with the recipe's row scales: k standard deviations of the row are the largest code, k by the matrix's role.

The solver is quantgolf's own GPTQ. What is the recipe's: scales that no search touches, 1% damping, columns in
descending order of the Hessian's diagonal, and H alone. The Hessian of a tied embedding is that of its inputs as a
head: the recipe does not see the lookup.
"""

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantgolf.compress.matrices import Matrices
from quantgolf.errors import QuantGolfError
from quantgolf.solve.gptq import Factor, factorise, feed_back
from quantgolf.solve.grid import Rounding
from quantgolf.types import WeightStats

from .streams import entropy_bytes

SMALLEST_STEP = 2.0**-14  # the smallest normal fp16: a row of zeros needs a step too
FINE, WIDE = 64, 32  # bins a standard deviation, and standard deviations to each side, of the histograms of weights


@dataclass(frozen=True)
class Recipe:
    """Widths and clips. The step of a row is k · factor · σ / (2^(bits - 1) - 1), σ the row's standard deviation.

    Attributes:
        name: as tables have it.
        bits, embedding_bits: widths of codes, which are clipped at ±(2^(bits - 1) - 1).
        mlp, attention, embedding: k of each role.
        damp: of GPTQ, as a share of the mean diagonal of H.
        block_size: columns that GPTQ solves at once.
    """

    name: str
    bits: int
    embedding_bits: int
    mlp: float = 11.5
    attention: float = 13.0
    embedding: float = 14.0
    damp: float = 0.01
    block_size: int = 128

    def top(self, role: str) -> int:
        """The largest code of a role."""
        top: int = 2 ** ((self.embedding_bits if role == "embedding" else self.bits) - 1) - 1
        return top

    def step(self, role: str) -> float:
        """Step of a role in standard deviations of its row, at factor 1."""
        return {"mlp": self.mlp, "attention": self.attention, "embedding": self.embedding}[role] / self.top(role)


INT6 = Recipe("int6/int7", 6, 7)
INT5 = Recipe("int5/int6", 5, 6)
# Not published: the steps of int6/int7 with clips twice as far out, for weights with outliers.
INT7 = Recipe("int7/int8", 7, 8, 23.0, 26.0, 28.0)


@dataclass(frozen=True)
class Roles:
    """The role of a matrix by its name: what `embedding` is found in (and whatever is looked up) is an embedding, what
    `attention` is found in is attention, everything else is an MLP. Regular expressions."""

    embedding: str = r"(?:^|[._])(?:emb|embed|embedding|embeddings|wte|lm_head|head|unembed)(?:[._]|$)"
    attention: str = r"(?:^|[._])(?:[cw]_?)?(?:q|k|v|o|qk|kv|qkv|qo|query|key|value|attn|attention)(?:[._]|$)"

    def of(self, name: str, stats: WeightStats) -> str:
        """ "embedding", "attention" or "mlp"."""
        if re.search(self.embedding, name) or any(use.kind == "lookup" for use in stats.uses):
            return "embedding"
        return "attention" if re.search(self.attention, name) else "mlp"


@dataclass(frozen=True)
class Solved:
    """A matrix's codes int8 [N, K] and row steps fp16 [N]."""

    codes: Tensor
    step: Tensor

    def weight(self) -> Tensor:
        """What they stand for, fp32 [N, K]."""
        return self.codes.float() * self.step.float()[:, None]


def hessian(stats: WeightStats) -> Tensor:
    """H [K, K] of all uses as a linear layer; the identity where there is none, which makes GPTQ round to nearest."""
    found = [use.column for use in stats.uses if use.kind == "linear"]
    if not found:
        return torch.eye(len(stats.uses[0].column))
    return torch.stack(found).sum(0) if len(found) > 1 else found[0]


def row_steps(weight: Tensor, share: float) -> Tensor:
    """Steps fp16 [N] of `share` standard deviations of each row of a weight [N, K]."""
    step = (weight.std(1) * share).clamp(min=SMALLEST_STEP)
    if float(step.max()) > torch.finfo(torch.float16).max:
        raise QuantGolfError(f"a row's step is {float(step.max()):g}, expected at most 65504: the recipe stores fp16")
    return step.half()


class Solver:
    """Solves all matrices at any factor; factors of Hessians are made once and kept in fp32."""

    def __init__(
        self, matrices: Matrices, stats: Mapping[str, WeightStats], recipe: Recipe, roles: Roles | None = None
    ) -> None:
        self.matrices, self.stats, self.recipe = matrices, stats, recipe
        self.roles = {name: (roles or Roles()).of(name, stats[name]) for name in matrices}
        self._factors: dict[str, Factor] = {}
        self._histograms: dict[str, NDArray[np.int64]] = {}

    def solve(self, factor: float) -> dict[str, Solved]:
        """Every matrix with all k's multiplied by `factor`."""

        def work(name: str) -> Solved:
            weight, role = self.matrices[name], self.roles[name]
            step = row_steps(weight, self.recipe.step(role) * factor)
            known = self._factors.get(name)
            if known is None:
                known = factorise(hessian(self.stats[name]), self.recipe.damp, True, name)
                known = self._factors[name] = replace(known, upper=known.upper.float())
            rounding = Rounding.rows(step, self.recipe.top(role), weight.shape[1])
            codes = feed_back(weight, known, rounding, self.recipe.block_size)
            return Solved(codes, step)

        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            return dict(zip(self.matrices, pool.map(work, self.matrices), strict=True))

    def predicted_bytes(self, factor: float) -> float:
        """Entropy of all codes if weights were rounded to nearest, a histogram for each role."""
        total = 0.0
        for role, counts in self.histograms().items():
            step, top = self.recipe.step(role) * factor, self.recipe.top(role)
            # Bins are spread evenly, so that the prediction changes with every change of the factor.
            below = np.concatenate([[0], np.cumsum(counts)])
            edges = (np.arange(len(below)) - len(counts) / 2) / FINE
            within = np.interp((np.arange(2 * top) - top + 0.5) * step, edges, below)
            total += entropy_bytes(np.diff(np.concatenate([[0], within, below[-1:]])))
        return total

    def histograms(self) -> dict[str, NDArray[np.int64]]:
        """How weights of each role lie in standard deviations of their rows."""
        if not self._histograms:
            for name, weight in self.matrices.items():
                unit = weight / weight.std(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
                bins = (unit * FINE).round_().clamp_(-FINE * WIDE, FINE * WIDE).to(torch.int32) + FINE * WIDE
                found = np.bincount(bins.reshape(-1).numpy(), minlength=2 * FINE * WIDE + 1)
                role = self.roles[name]
                self._histograms[role] = self._histograms.get(role, np.zeros_like(found)) + found
        return self._histograms
