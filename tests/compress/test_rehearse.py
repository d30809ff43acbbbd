"""Memory of statistics and of solving, against what is really held."""

import pytest
import torch
from torch import Tensor, nn

import quantgolf.calibrate.record as record
from quantgolf.calibrate import collect, survey
from quantgolf.compress.rehearse import held_sizes, solver_bytes, statistics_bytes
from quantgolf.models.golf import Golf, GolfConfig
from quantgolf.types import Calibration


def drawn(**options: bool) -> Golf:
    model = Golf(GolfConfig(vocab_size=13, dim=16, layers=2, heads=2, kv_heads=1, mlp_mult=3, **options))
    for index, parameter in enumerate(model.parameters()):
        nn.init.normal_(parameter, 0, 0.3, generator=torch.Generator().manual_seed(index))
    return model


def held_bytes(calibration: Calibration) -> int:
    tensors: list[Tensor] = []
    for name in calibration.stats:
        for use in calibration.stats[name].uses:
            tensors += [use.row, use.column] + ([] if use.outputs is None else [use.outputs])
    return sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize("limit", [8192, 32, 0])
@pytest.mark.parametrize("banks", [False, True])
def test_statistics_take_what_is_said(limit: int, banks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "MOST_OUTPUTS", limit)
    model = drawn(banks=banks, tied=False)
    tokens = torch.randint(13, (2, 2, 8), generator=torch.Generator().manual_seed(0))
    seen, found = survey(model, tokens[0][:1]), collect(model, [(each, each) for each in tokens])
    assert not seen.stats and seen.outputs == found.outputs and bool(found.outputs) == (limit > 0)
    shapes = {report.name: torch.empty(report.shape) for report in seen.parameters}
    matrices = {name: block.matrix(shapes[block.parameter]) for name, block in seen.blocks.items()}
    sizes = held_sizes({name: (matrix.shape[0], matrix.shape[1]) for name, matrix in matrices.items()}, seen)
    assert statistics_bytes(sizes) == 2 * held_bytes(found)  # a part of the text, and the total


def test_solving_takes_the_largest_matrix_and_what_is_factorised() -> None:
    seen = Calibration({}, {}, (), 1, "sampled", frozenset({"up"}))
    sizes = held_sizes({"up": (300, 100), "down": (100, 300), "wide": (900, 10)}, seen)
    assert sizes == [(300, 100, 300), (100, 300), (900, 10)]
    up, down, wide = (solver_bytes([size]) for size in sizes)
    assert up == 16 * 30_000 + 40 * (10_000 + 90_000) and down == 16 * 30_000 + 40 * 90_000
    assert solver_bytes(sizes) == max(up, down, wide) == up and solver_bytes([]) == statistics_bytes([]) == 0
