"""The rate-distortion limit against sums in plain loops, its closed form, and quantizers whose distance is known."""

import importlib.util
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import ndtr
from torch import Tensor
from typer.testing import CliRunner

from quantgolf.checkpoint import Checkpoint, read_demo
from quantgolf.compress import calibrate, compress
from quantgolf.data import Tokenizer, read_corpus
from quantgolf.encode import Leveled, decode_model
from quantgolf.encode.exponents import decode_exponents
from quantgolf.encode.leveled import encode_leveled
from quantgolf.errors import QuantGolfError
from quantgolf.runtime import restore
from quantgolf.solve import SolveOptions
from quantgolf.solve.slope import prepare_slope, solve_slope
from quantgolf.solve.trellis import Trellis
from quantgolf.types import WeightStats, WeightUse


def script(name: str) -> Any:
    """A benchmark as a module; the folder is no package."""
    path = Path(__file__).parents[2] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


limit = script("limit")


def slowly(components: list[float], loss: float) -> float:
    """Bits at a loss, one component at a time: the water rises until the loss is that."""
    low, high = 0.0, max(components)
    for _ in range(200):
        water = (low + high) / 2
        if sum(min(water, component) for component in components) < loss:
            low = water
        else:
            high = water
    return sum(max(0.0, 0.5 * math.log2(component / high)) for component in components if component > 0)


numbers = st.floats(0.0, 8.0).map(lambda x: 0.0 if x < 1 else 2.0 ** (3 * x - 12))


@settings(max_examples=60, deadline=None)
@given(
    matrices=st.lists(
        st.tuples(st.lists(numbers, min_size=1, max_size=5), st.lists(numbers, min_size=1, max_size=5)),
        min_size=1,
        max_size=3,
    ),
    share=st.floats(0.001, 1.2),
)
def test_limit_is_that_of_plain_loops(matrices: list[tuple[list[float], list[float]]], share: float) -> None:
    sources = [limit.Source(0.3, np.array(row), np.array(sorted(column)[::-1])) for row, column in matrices]
    components = [0.15 * g * eigenvalue for row, column in matrices for g in row for eigenvalue in column]
    most = sum(components)
    assert sum(source.most for source in sources) == pytest.approx(most)
    if most == 0:
        assert limit.limit_bits(sources, 1.0) == 0
        return
    assert limit.limit_bits(sources, share * most) == pytest.approx(
        slowly(components, share * most), abs=1e-6, rel=1e-6
    )
    if share < 0.999:
        water = limit.water_level(sources, share * most)
        assert sum(source.at(water)[1] for source in sources) == pytest.approx(share * most, rel=1e-6)


def test_at_high_rate_it_is_the_log_determinant() -> None:
    weight, stats = case(24, 16)
    source, loss = limit.source_of(weight, stats), 1e-7
    row, hessian = stats.row_weight().double(), stats.hessian().double()
    variance = float(weight.double().square().mean())
    logs = 16 * float(row.log2().sum()) + 24 * float(torch.linalg.slogdet(hessian)[1]) / math.log(2)
    expected = 0.5 * (logs + 24 * 16 * math.log2(variance / 2 * 24 * 16 / loss))
    assert limit.limit_bits([source], loss) == pytest.approx(expected, rel=1e-6)


def test_one_water_level_for_all_is_the_least() -> None:
    """At equal total loss any other division among matrices takes more bits."""
    sources = [limit.source_of(*case(12, 8, seed=seed, scale=scale)) for seed, scale in ((1, 1.0), (2, 0.2))]
    loss = 0.05 * sum(source.most for source in sources)
    least = limit.limit_bits(sources, loss)
    water = limit.water_level(sources, loss)
    own = [source.at(water)[1] for source in sources]
    assert sum(own) == pytest.approx(loss)
    assert sum(limit.limit_bits([s], part) for s, part in zip(sources, own, strict=True)) == pytest.approx(least)
    for move in (0.1, -0.1):
        parts = (own[0] + move * own[1], own[1] - move * own[1])
        assert sum(limit.limit_bits([s], part) for s, part in zip(sources, parts, strict=True)) > least


def test_directions_without_input_cost_no_bits() -> None:
    """Of a Hessian of rank 5 among 12 columns only five directions count."""
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(5, 12, generator=generator)
    stats = WeightStats("w", (WeightUse("linear", torch.ones(20), inputs.T @ inputs, 5),), 5)
    weight = torch.randn(20, 12, generator=generator)
    inside = limit.Source(
        float(weight.double().square().mean()),
        np.ones(20),
        np.linalg.eigvalsh((inputs @ inputs.T).double().numpy())[::-1],
    )
    loss = 1e-2
    assert limit.limit_bits([limit.source_of(weight, stats)], loss) == pytest.approx(
        limit.limit_bits([inside], loss), rel=2e-4
    )


def test_without_loss_there_is_no_limit() -> None:
    with pytest.raises(QuantGolfError, match="expected more than 0: without any loss"):
        limit.water_level([limit.source_of(*case(4, 4))], 0.0)


def test_loss_is_that_of_statistics_for_one_use_and_close_for_two() -> None:
    weight, stats = case(24, 16)
    error = 0.01 * weight.flip(0)
    assert limit.priced(error, stats) == pytest.approx(stats.loss(error), rel=1e-5)
    twice = WeightStats("w", (*stats.uses, WeightUse("lookup", stats.uses[0].row.flip(0), torch.eye(16), 9)), 9)
    plain = sum(0.5 * float(g) * float(e @ twice.hessian() @ e) for g, e in zip(twice.row_weight(), error, strict=True))
    assert limit.priced(error, twice) == pytest.approx(plain, rel=1e-5)


def test_a_scalar_quantizer_lies_a_quarter_bit_above() -> None:
    """½ log2(πe/6) = 0.2546 bit at high rate (Gish & Pierce 1968); quarter octaves of column steps add 0.0036."""
    weight, stats = case(512, 128, even_rows=True)
    levels, steps = solved(weight, stats, slope=0.04, trellis=Trellis(1))
    sigma = weight.double().square().mean().sqrt().numpy()
    share = ndtr((levels + 0.5) * steps / sigma) - ndtr((levels - 0.5) * steps / sigma)
    bits = -np.log2(share).sum()  # under the Gaussian itself: no table to pay
    assert 5 < bits / weight.numel() < 7
    assert above(weight, stats, levels, steps, bits) == pytest.approx(0.25, abs=0.0125)


@pytest.mark.parametrize(("states", "expected"), [(1, 0.264), (8, 0.118)])
def test_quantizers_at_three_and_a_half_bits(states: int, expected: float) -> None:
    """As measured where the trellis is defined: 200,000 Gaussian numbers, restarts every 128."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(1024, 192, generator=generator)
    stats = WeightStats("w", (WeightUse("linear", torch.ones(1024), torch.eye(192), 1),), 1)
    trellis = Trellis(states, restart=128)
    levels, steps = solved(weight, stats, 0.356 if states == 1 else 0.196, trellis)
    bits = 0.0
    for odd in (0, 1):
        coded = levels[odd_states(levels, trellis) == odd]
        counts = np.unique(coded, return_counts=True)[1]
        bits -= float((counts * np.log2(counts / max(1, counts.sum()))).sum())
    assert bits / weight.numel() == pytest.approx(3.5, abs=0.1)
    assert above(weight, stats, levels, steps, bits) == pytest.approx(expected, abs=0.006)


def test_bits_of_matrices_are_those_of_the_file(tiny: Checkpoint, prose: Path, tokenizer: Tokenizer) -> None:
    calibration = calibrate(tiny, read_corpus(prose, tokenizer), tokens=2048, length=64)
    result = compress(tiny, calibration, max_bytes=14_000, solver="slope")
    bits = limit.bits_by_matrix(result.coded)
    assert bits.keys() == result.reports.keys()
    assert sum(bits.values()) == pytest.approx(8 * (len(result.coded.levels) + len(result.coded.exponents)))
    decoded = [(place, part) for place, part in decode_model(result.coded) if not isinstance(part, Tensor)]
    frames = [(place.parameter, (part.codes.shape[0], part.codes.shape[1])) for place, part in decoded]
    known = decode_exponents(result.coded.exponents, frames)
    diagonal = [block.diagonal for tensor in result.coded.tensors for block in tensor.blocks if block.levels]
    for (place, part), exponents, along in zip(decoded, known, diagonal, strict=True):
        # In a file of its own a matrix has its own tables: they fit it better and cost a small one more.
        alone = encode_leveled([("w", Leveled(place, exponents, part.codes, along))], Trellis())
        assert 0.75 < bits[place.parameter] / (8 * sum(map(len, alone))) < 1.08
    found, whole = limit.judge(tiny, calibration, result.coded, calibration.stats)
    assert [matrix.name for matrix in found] == list(bits)
    assert whole <= sum(matrix.limit * matrix.weights for matrix in found) < sum(bits.values())
    tensors = restore(result.coded)
    loss = {m.name: calibration.stats[m.name].loss(tensors[m.name] - tiny.tensors[m.name].float()) for m in found}
    assert {m.name: m.loss for m in found if "emb" not in m.name} == pytest.approx(
        {name: value for name, value in loss.items() if "emb" not in name}, rel=1e-4
    )
    with pytest.raises(QuantGolfError, match="expected all matrices"):
        limit.judge(tiny, calibration, result.coded, {k: v for k, v in calibration.stats.items() if k != "emb.weight"})


def test_the_script_from_text_to_json(tiny_path: Path, prose: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(limit.main)
    options = ["--model", str(tiny_path.parent / "card.json"), "--tokenizer", str(read_demo().tokenizer)]
    options += ["--calibration", str(prose), "--data", str(prose), "--length", "64", "--tokens", "1000"]
    options += ["--max-bytes", "14kB", "--bpw", "3.5", "--out", str(tmp_path / "out.jsonl")]
    ran = CliRunner().invoke(app, [str(tiny_path), *options, "--calibration-tokens", "1024"], catch_exceptions=False)
    assert ran.exit_code == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["bar"] for row in rows] == [0.15, None] and rows[1]["limit"] == 14_000
    for row in rows:
        assert row["bytes"] <= row["limit"] and row["bpw"] == pytest.approx(8 * row["bytes"] / row["parameters"])
        assert row["above"] == pytest.approx(row["bpw"] - row["bound"]) and 0 < row["bound"] < row["bpw"]
        assert sum(row["parts"].values()) == pytest.approx(row["bpw"])
        matrices = sum(matrix["bits"] * matrix["weights"] for matrix in row["matrices"]) / row["parameters"]
        assert matrices + row["parts"]["kept"] + row["parts"]["header"] == pytest.approx(row["bpw"])
        assert row["above"] != row["above_own"] and row["judging_tokens"] == row["calibration_tokens"] == 1024
    assert "H undamped" in ran.output and "at most 0.15 asked" in ran.output
    with pytest.raises(QuantGolfError, match="more than 18,000"):
        CliRunner().invoke(app, [str(tiny_path), *options, "--calibration-tokens", "9000"], catch_exceptions=False)


def case(
    rows: int, columns: int, seed: int = 0, scale: float = 1.0, even_rows: bool = False
) -> tuple[Tensor, WeightStats]:
    """Gaussian weights, correlated inputs; `even_rows` weighs rows by whole powers of two, which steps meet exactly."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(4 * columns, columns, generator=generator) * torch.logspace(0, -0.5, columns)
    felt = 0.5 + torch.rand(rows, generator=generator)
    felt = felt.log2().round().exp2() if even_rows else felt
    use = WeightUse("linear", felt, inputs.T @ inputs / len(inputs), visits=len(inputs))
    return scale * torch.randn(rows, columns, generator=generator), WeightStats("w", (use,), tokens=len(inputs))


def solved(
    weight: Tensor, stats: WeightStats, slope: float, trellis: Trellis
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Levels of quantgolf's own solver with hardly any damping, and the step of each."""
    grid, factor = prepare_slope(weight, stats, SolveOptions(damp=1e-6))
    row, column, _ = grid.powers(slope)
    levels = solve_slope(weight, factor, row, column, trellis)
    return levels, np.exp2((row[:, None] + column[None].astype(np.float64)) / 4)


def above(
    weight: Tensor, stats: WeightStats, levels: NDArray[np.int32], steps: NDArray[np.float64], bits: float
) -> float:
    """Bits a weight above the limit at the loss these levels make."""
    loss = limit.priced(torch.from_numpy(levels * steps) - weight, stats)
    return (bits - float(limit.limit_bits([limit.source_of(weight, stats)], loss))) / weight.numel()


def odd_states(levels: NDArray[np.int32], trellis: Trellis) -> NDArray[np.int64]:
    """Whether each level is met in an odd state."""
    found, state = np.zeros(levels.shape, dtype=np.int64), np.zeros(levels.shape[1], dtype=np.int64)
    for i, row in enumerate(levels):
        state = np.zeros_like(state) if i % trellis.restart == 0 else state
        found[i] = state & 1
        half = np.abs(row) >> 1 & 1
        state = trellis.after[state, np.where(row % 2 == 0, half, 1 - half)]
    return found
