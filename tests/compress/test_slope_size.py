"""Sizes from counts against the coder itself, and the search by them: the same file for any number of threads."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import quantgolf.compress.slope_solver as slope_solver
from quantgolf.checkpoint import Checkpoint
from quantgolf.compress import calibrate, compress
from quantgolf.compress.matrices import Matrices, choose
from quantgolf.compress.slope_budget import CLOSE, SlopeFit
from quantgolf.compress.slope_size import Histogram, bits_by_segment, histogram_of, predicted_spreads, summed_spreads
from quantgolf.compress.slope_solver import Draft, SlopeSolver, bits_of
from quantgolf.data import Tokenizer, read_corpus
from quantgolf.encode.levels import Levels, encode_levels, predicted_bits
from quantgolf.errors import QuantGolfError
from quantgolf.solve import SolveOptions
from quantgolf.solve.trellis import Trellis
from quantgolf.types import Calibration


def solved(
    trellis: Trellis, rows: int = 300, columns: int = 40, seed: int = 0, scale: float = 3.0, spread: int = 6
) -> Levels:
    """Levels of Gaussian weights on steps that scatter over two octaves; some beyond what has a symbol."""
    generator = np.random.default_rng(seed)
    row = generator.integers(-4, 5, rows).astype(np.int16)
    column = generator.integers(-4, 5, columns).astype(np.int16)
    targets = generator.normal(0, scale, (rows, columns)) / 2 ** ((row[:, None] + column.astype(np.int64)) / 4)
    targets[::50, 3] *= 400
    levels = np.stack([trellis.quantize(targets[:, j]) for j in range(columns)], axis=1)
    return Levels(levels, spread, row, column)


def histogram(matrix: Levels, trellis: Trellis) -> Histogram:
    return histogram_of(np.ascontiguousarray(matrix.levels.T), matrix.row, matrix.column, matrix.spread, trellis)


@pytest.mark.parametrize("states", [1, 4, 8])
def test_bits_from_counts_are_those_of_the_coder(states: int) -> None:
    trellis = Trellis(states, 64)
    matrices = [solved(trellis), solved(trellis, 200, 30, 1, 2.0, 4)]
    bits, _ = Histogram.sum([histogram(matrix, trellis) for matrix in matrices]).coded(trellis)
    assert bits == pytest.approx(predicted_bits(matrices, trellis), abs=16)  # varints of their number
    assert bits == pytest.approx(8 * len(encode_levels(matrices, trellis)), rel=2e-3)


def test_bits_of_segments_are_those_of_the_tables() -> None:
    trellis = Trellis(8, 64)
    matrix = solved(trellis)
    counted = histogram(matrix, trellis)
    bits, contexts = counted.coded(trellis)
    flat = np.ascontiguousarray(matrix.levels.T)
    found = bits_by_segment(flat, matrix.row, matrix.column, matrix.spread, trellis, contexts)
    assert found.shape == (5,)
    # The state of a lane is no weight's, and each escape counts as one byte.
    assert found.sum() == pytest.approx(bits - 8 * len(contexts.write(odd=True)) - 24, abs=8 * 6)
    narrow = bits_by_segment(flat.astype(np.int16), matrix.row, matrix.column, matrix.spread, trellis, contexts)
    assert np.array_equal(narrow, found)
    alone = bits_by_segment(flat[:, 64:128], matrix.row[64:128], matrix.column, matrix.spread, trellis, contexts)
    assert alone == pytest.approx(found[1:2])


def test_counts_scale_and_add_up() -> None:
    trellis = Trellis(8)
    a, b = (histogram(solved(trellis, seed=seed, spread=spread), trellis) for seed, spread in ((0, 6), (1, -3)))
    both = Histogram.sum([a, b])
    assert both.counts.sum() == 2 * 300 * 40 and both.excess == a.excess + b.excess > 0
    assert both.lowest == min(a.lowest, b.lowest)
    assert a.times(3).counts.sum() == 3 * 300 * 40


def test_predicted_spreads_are_counted_once_each() -> None:
    generator = np.random.default_rng(0)
    row, column = (generator.integers(-9, 9, count).astype(np.int16) for count in (50, 30))
    lowest, many = predicted_spreads(row, column, 7)
    slow = (7 - row[:, None].astype(np.int64) - column).ravel()
    assert lowest == slow.min() and np.array_equal(many, np.bincount(slow - lowest))
    low, total = summed_spreads([(3, np.array([1, 2])), (1, np.array([5]))])
    assert low == 1 and total.tolist() == [5, 0, 1, 2]


@pytest.mark.parametrize("states", [1, 8])
@pytest.mark.parametrize("largest", [3, 2**24])
def test_entropy_of_levels(states: int, largest: int) -> None:
    levels = np.array([[0, 0], [0, 0], [1, -1], [largest, largest]], dtype=np.int32)
    assert bits_of(levels, Trellis(states)) == pytest.approx(0.5 * 1 + 0.25 * 2 + 0.125 * 3 + 0.125 * 3)


@pytest.fixture
def learned(tiny: Checkpoint, prose: Path, tokenizer: Tokenizer) -> Calibration:
    return calibrate(tiny, read_corpus(prose, tokenizer), tokens=2048, length=64)


def solver_of(tiny: Checkpoint, learned: Calibration, trellis: Trellis) -> tuple[SlopeSolver, Matrices]:
    matrices, _ = choose(tiny, learned)
    return SlopeSolver(matrices, learned.stats, SolveOptions(), trellis), matrices


def levels_of(draft: Draft) -> Levels:
    steps = draft.exponents
    return Levels(draft.levels.astype(np.int32), steps.spread, steps.row.numpy(), steps.column.numpy(), draft.diagonal)


def test_files_are_equal_for_any_number_of_threads_and_with_factors_made_anew(
    tiny: Checkpoint, learned: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantgolf.solve.slope.ROWS_AT_ONCE", 16)
    before, files = torch.get_num_threads(), set()
    try:
        for threads, kept in ((1, 1 << 30), (2, 20_000), (5, 0)):
            torch.set_num_threads(threads)
            monkeypatch.setattr(slope_solver, "KEPT", kept)
            files.add(compress(tiny, learned, max_bytes=14_000, solver="slope", trellis=Trellis(8, 16)).data)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert len(files) == 1


def test_a_failure_in_a_thread_is_told_and_leaves_torch_as_it_was(
    tiny: Checkpoint, learned: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise QuantGolfError("it does not work")

    solver, _ = solver_of(tiny, learned, Trellis())
    solver.grids()
    monkeypatch.setattr(slope_solver, "solve_slope", fail)
    before = torch.get_num_threads()
    with pytest.raises(QuantGolfError, match="it does not work"):
        solver.draft(0.01)
    assert torch.get_num_threads() == before


def test_samples_say_how_large_all_is(demo: Any) -> None:
    matrices, _ = choose(demo.source, demo.calibration)
    solver = SlopeSolver(matrices, demo.calibration.stats, SolveOptions(), Trellis())
    for slope in (1e-4, 1e-3):
        drafts = solver.draft(slope)
        levels = [levels_of(draft) for draft in drafts.values()]
        real = predicted_bits(levels, Trellis())
        assert solver.sampled(slope)[0] == pytest.approx(real, rel=0.02)
        assert solver.predicted_bits(slope) == pytest.approx(real, rel=0.2)


def test_two_solutions_are_mixed_by_what_is_independent(tiny: Checkpoint, learned: Calibration) -> None:
    """What is returned is one of the two solutions on either side of the budget, run of rows by run of rows, or whole
    where errors go across rows; or such a matrix solved between the two."""
    trellis = Trellis(8, 16)
    solver, matrices = solver_of(tiny, learned, trellis)
    drafts: list[dict[str, Draft]] = []
    original = solver.draft
    solver.draft = lambda slope, progress=None: drafts.append(original(slope, progress)) or drafts[-1]  # type: ignore[method-assign, func-returns-value]
    between = solver.draft_of
    solver.draft_of = lambda name, slope: drafts.append({name: between(name, slope)}) or drafts[-1][name]  # type: ignore[method-assign, func-returns-value]

    def size_of(solution: Any) -> int:
        return len(encode_levels([levels_of(draft) for draft in solution.values()], trellis))

    weights = sum(math.prod(matrices.size(name)) for name in matrices)
    limit = weights * 3 // 8
    found = solver.priced(SlopeFit(solver).within(limit, size_of))
    assert limit * (1 - CLOSE) - 64 <= size_of(found) <= limit
    sources = set()
    for name, one in found.items():
        height = len(one.levels) if one.diagonal else 16
        for start in range(0, len(one.levels), height):
            run = slice(start, start + height)
            same = [
                index
                for index, each in enumerate(drafts)
                if name in each
                and np.array_equal(each[name].levels[run], one.levels[run])
                and torch.equal(each[name].exponents.row[run], one.exponents.row[run])
            ]
            assert same
            sources.add(tuple(same))
        weight, steps = matrices[name], one.exponents.steps()
        assert steps.column is not None
        error = torch.from_numpy(one.levels).float() * (steps.row[:, None] * steps.column) - weight
        assert one.report.loss == pytest.approx(learned.stats[name].loss(error), rel=1e-5)
    assert len(sources) > 1
