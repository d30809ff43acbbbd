"""Weights and statistics that no training makes and files may hold: what `hard_numbers.py` puts to the solvers."""

from collections.abc import Callable

import torch
from torch import Tensor

from quantgolf.types import WeightStats, WeightUse

Made = Callable[[int, int, torch.Generator, torch.dtype], Tensor]
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
ORDINARY = "gaussian"


def _normal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def _near_the_end(rows: int, columns: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Every magnitude within two per cent of the dtype's largest number, of both signs."""
    signs = torch.sign(_normal(rows, columns, generator))
    return signs * torch.finfo(dtype).max * (1 - 0.02 * torch.rand(rows, columns, generator=generator))


def _one_at_the_end(rows: int, columns: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    weight = _normal(rows, columns, generator)
    weight[rows // 2, columns // 2] = -torch.finfo(dtype).max
    return weight


def _outliers(rows: int, columns: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """A weight in a hundred is 1e6 (fp16: 6e4) times the others."""
    weight = 0.02 * _normal(rows, columns, generator)
    far = torch.rand(rows, columns, generator=generator) < 0.01
    far.view(-1)[0] = True
    return torch.where(far, torch.sign(weight) * min(1e6, 6e4 if dtype == torch.float16 else 1e6), weight)


def _denormal(rows: int, columns: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    return _normal(rows, columns, generator) * torch.finfo(dtype).tiny / 8


def _one_row_apart(rows: int, columns: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Rows from denormal to large in one matrix."""
    powers = torch.linspace(-14, 4, rows, dtype=torch.float64)
    return _normal(rows, columns, generator) * 10.0 ** powers[:, None].clamp(max=3)


WEIGHTS: dict[str, Made] = {
    ORDINARY: lambda n, k, g, _: 0.05 * _normal(n, k, g),
    "zero": lambda n, k, *_: torch.zeros(n, k),
    "constant": lambda n, k, *_: torch.full((n, k), -0.37),
    "near the dtype's end": _near_the_end,
    "one at the dtype's end": _one_at_the_end,
    "outliers of 1e6": _outliers,
    "denormal": _denormal,
    "rows decades apart": _one_row_apart,
    "one sign": lambda n, k, g, _: _normal(n, k, g).abs() + 3,
    "zeros but one": lambda n, k, *_: torch.eye(n * k, 1).reshape(n, k),
    "tails of a Cauchy": lambda n, k, g, _: (0.01 * _normal(n, k, g) / _normal(n, k, g)).clamp(-6e4, 6e4),
    "integers": lambda n, k, g, _: (4 * _normal(n, k, g)).round(),
}

SHAPES = {
    "ordinary": (40, 24), "one row": (1, 33), "one column": (29, 1), "one weight": (1, 1), "wide": (3, 160),
    "tall": (300, 4),
}  # fmt: skip


def _second_moment(size: int, generator: torch.Generator, samples: int | None = None) -> Tensor:
    x = _normal(samples or 3 * size, size, generator)
    x = x * torch.logspace(0, -1.5, size, dtype=torch.float64)
    return x.T @ x / len(x)


def _of_decades(size: int, generator: torch.Generator) -> Tensor:
    """Eigenvalues over 16 decades, in a random basis."""
    basis = torch.linalg.qr(_normal(size, size, generator))[0]
    found: Tensor = basis @ torch.diag(torch.logspace(0, -16, size, dtype=torch.float64)) @ basis.T
    return found


def _dead(size: int, generator: torch.Generator) -> Tensor:
    h = _second_moment(size, generator)
    dead = torch.arange(size) % 3 == 1
    h[dead], h[:, dead] = 0, 0
    return h


def _one_column_felt(size: int, generator: torch.Generator) -> Tensor:
    h = torch.zeros(size, size, dtype=torch.float64)
    h[size // 2, size // 2] = 5.0
    return h


MOMENTS: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    ORDINARY: _second_moment,
    "zero": lambda k, _: torch.zeros(k, k),
    "one token": lambda k, g: _second_moment(k, g, 1),
    "rank deficient": lambda k, g: _second_moment(k, g, max(1, k // 3)),
    "16 decades": _of_decades,
    "identical columns": lambda k, _: torch.ones(k, k),
    "dead columns": _dead,
    "one column": _one_column_felt,
    "1e30": lambda k, g: 1e30 * _second_moment(k, g),
    "1e-30": lambda k, g: 1e-30 * _second_moment(k, g),
    "1e36": lambda k, g: 1e36 * _second_moment(k, g),
    "denormal": lambda k, g: 1e-40 * _second_moment(k, g),
}
BAD = {"NaN": float("nan"), "inf": float("inf"), "-inf": float("-inf")}


def statistics(moment: str, rows: int, columns: int, generator: torch.Generator, across: bool) -> WeightStats:
    """Of one linear use, with a moment of that kind on its inputs; on its outputs too where that is `across`."""
    column = MOMENTS[moment](columns, generator).float()
    kind = moment if across and moment not in ("1e36", "denormal") else ORDINARY
    outputs = MOMENTS[kind](rows, generator).float()
    outputs = (outputs + outputs.T) / 2
    row = outputs.diagonal().clone()
    return WeightStats("w", (WeightUse("linear", row, (column + column.T) / 2, 7, outputs if across else None),), 7)


def loss_of(stats: WeightStats, error: Tensor) -> float:
    """½ Σ tr(G E H Eᵀ) in fp64, written out."""
    e, total = error.double(), 0.0
    for use in stats.uses:
        felt = use.row.double().diag() if use.outputs is None else use.outputs.double()
        total += 0.5 * float(((felt @ e) * (e @ use.column.double())).sum())
    return total
