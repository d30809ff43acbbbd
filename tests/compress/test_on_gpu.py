"""Compressing a model that is on a GPU: what comes out, beside the CPU's, and that equal shapes are solved together.

Without a GPU the ops' plain torch bodies stand in for the kernels; they are slow, and so most trellises have one state.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from quantgolf.calibrate.store import Origin, read_calibration, write_calibration
from quantgolf.checkpoint import Checkpoint
from quantgolf.compress import Tuning, batches_of, calibrate, candidates, compress, dry_run, place, slope_gpu
from quantgolf.compress.heldout import HeldOut, split_calibration
from quantgolf.compress.matrices import Matrices, choose
from quantgolf.compress.place import Place, batches, working_bytes
from quantgolf.compress.slope_gpu import GpuSlopeSolver
from quantgolf.compress.slope_solver import SlopeSolver
from quantgolf.data import Corpus, Tokenizer, read_corpus
from quantgolf.ranks import Ranks
from quantgolf.runtime import restore
from quantgolf.solve import SolveOptions, diagonals, gptq, slope, solver
from quantgolf.solve.trellis import Trellis
from quantgolf.types import Calibration, Choice

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
SOLVERS = ["slope", "gptq", "gptq_lite", "rtn"]
ROUNDED, SLOPE = Trellis(1), 0.02
# In each of two layers q and o are [32, 32], k and v [16, 32]; up is [64, 32] and down [32, 64]; the head is alone.
ALIKE = [1, 2, 2, 4, 4]


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From when it is called, every weight is solved as if it were on a GPU."""

    def start() -> None:
        for module in (gptq, slope, diagonals, solver, place):
            monkeypatch.setattr(module, "on_gpu", lambda weight: True)

    return start


@pytest.fixture
def text(prose: Path, tokenizer: Tokenizer) -> Corpus:
    return read_corpus(prose, tokenizer)


@pytest.fixture
def learned(tiny: Checkpoint, text: Corpus) -> Calibration:
    return calibrate(tiny, text, tokens=2048, length=64)


def counted(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[int]:
    """How many matrices each call of a function takes from now on."""
    original, found = getattr(module, name), []

    def call(weights: Any, *rest: Any) -> Any:
        found.append(len(weights))
        return original(weights, *rest)

    monkeypatch.setattr(module, name, call)
    return found


def true_loss(result: Any, source: Checkpoint, learned: Calibration) -> float:
    """Predicted rise of the loss by what the file holds, from statistics on the CPU."""
    tensors, total = restore(result.coded), 0.0
    for name in result.reports:
        block = learned.blocks[name]
        error = block.matrix(tensors[block.parameter]) - block.matrix(source.tensors[block.parameter]).float()
        total += learned.stats[name].loss(error)
    return total


@pytest.mark.parametrize("name", SOLVERS)
def test_files_are_as_good_as_the_cpus(
    tiny: Checkpoint, learned: Calibration, name: Any, everywhere: Callable[[], None]
) -> None:
    here = compress(tiny, learned, max_bytes=17_000, solver=name, trellis=ROUNDED)
    everywhere()
    there = compress(tiny, learned, max_bytes=17_000, solver=name, trellis=ROUNDED)
    assert len(there.data) <= 17_000 and (name != "slope" or len(there.data) >= 17_000 - 256)
    assert there.plan.predicted_loss == pytest.approx(here.plan.predicted_loss, rel=0.01)
    assert true_loss(there, tiny, learned) == pytest.approx(true_loss(here, tiny, learned), rel=0.01)
    assert sum(report.loss for report in there.reports.values()) == pytest.approx(
        true_loss(there, tiny, learned), rel=1e-3
    )


def test_levels_of_a_trellis_are_the_cpus(
    tiny: Checkpoint, learned: Calibration, everywhere: Callable[[], None]
) -> None:
    trellis, found = Trellis(4, 16), []
    small = {name: block for name, block in choose(tiny, learned)[0].blocks.items() if "emb" not in name}
    for kind in (SlopeSolver, GpuSlopeSolver):
        way = kind(Matrices(tiny, small), learned.stats, SolveOptions(), trellis)
        found.append((way.priced(way.draft(SLOPE)), way.draft_of(way.names[0], SLOPE), *way.sampled(SLOPE)))
        everywhere()
    for name, one in found[0][0].items():
        other = found[1][0][name]
        assert one.diagonal and one.levels.dtype == other.levels.dtype == np.int16
        assert (one.levels == other.levels).mean() > 0.99 and one.levels.any()
        assert other.report.loss == pytest.approx(one.report.loss, rel=0.01)
        assert other.report.bits == pytest.approx(one.report.bits, rel=0.01)
    assert (found[0][1].levels == found[1][1].levels).mean() > 0.99
    assert found[1][2] == pytest.approx(found[0][2], rel=1e-6)


@pytest.mark.parametrize("at_once", [1, 3, 99])
def test_equal_shapes_are_solved_together_within_a_bound(
    tiny: Checkpoint,
    learned: Calibration,
    at_once: int,
    everywhere: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    everywhere()
    most = at_once * working_bytes(32, 32)
    for module in (slope_gpu, candidates):
        monkeypatch.setattr(module, "AT_ONCE", most)
    expected = sorted(
        size
        for rows, columns, many in ((1024, 32, 1), (32, 32, 4), (16, 32, 4), (64, 32, 2), (32, 64, 2))
        for size in split(many, max(1, most // working_bytes(rows, columns)))
    )
    assert (expected == ALIKE) is (at_once == 99)
    matrices, _ = choose(tiny, learned)
    found = counted(monkeypatch, slope_gpu, "solve_slope_many")
    way = GpuSlopeSolver(matrices, learned.stats, SolveOptions(), ROUNDED)
    way.draft(SLOPE)
    assert sorted(found) == expected
    found = counted(monkeypatch, candidates, "feed_back_many")
    candidates.Candidates(matrices, learned.stats, "gptq", SolveOptions()).solve(dict.fromkeys(matrices, Choice(4)))
    assert sorted(found) == [many for many in expected if many > 1]  # one alone goes another way


def split(many: int, at_once: int) -> list[int]:
    return [min(at_once, many - start) for start in range(0, many, at_once)]


def test_batches_do_not_change_levels(
    tiny: Checkpoint, learned: Calibration, everywhere: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    everywhere()
    matrices, _ = choose(tiny, learned)
    found = []
    for most, kept in ((1, 0), (1 << 30, 20_000), (1 << 30, 1 << 30)):
        monkeypatch.setattr(slope_gpu, "AT_ONCE", most)
        monkeypatch.setattr(slope_gpu, "KEPT", kept)
        way = GpuSlopeSolver(matrices, learned.stats, SolveOptions(), ROUNDED)
        found.append(way.draft(SLOPE))
        assert bool(way._feedback) is (kept > 0) and (len(way._feedback) == len(matrices)) is (kept == 1 << 30)
    for name, draft in found[2].items():
        assert np.array_equal(draft.levels, found[1][name].levels) and draft.levels.any()
        assert (draft.levels == found[0][name].levels).mean() > 0.999


def test_widths_that_differ_are_not_solved_together() -> None:
    items = [("a", 4), ("b", 4), ("c", 3), ("d", 4)]
    size = {"a": (8, 16), "b": (8, 16), "c": (8, 16), "d": (16, 8)}
    found = batches(items, lambda item: (*size[item[0]], item[1]), 1 << 30)
    assert found == [[("a", 4), ("b", 4)], [("c", 3)], [("d", 4)]]


def test_the_cpu_is_where_there_is_no_gpu_and_no_parameter(tiny: Checkpoint) -> None:
    cpu = Place(torch.device("cpu"), False)
    assert Place.of(tiny.module) == Place.of(nn.Identity()) == cpu
    assert cpu.room(12) == 12
    with cpu.entered():
        cpu.wait()


def test_statistics_from_a_folder_tuning_and_the_guard(
    tiny: Checkpoint, text: Corpus, tmp_path: Path, everywhere: Callable[[], None]
) -> None:
    learn, held = split_calibration(text, 8192, 512, length=64)
    write_calibration(
        tmp_path / "stats", calibrate(tiny, learn, tokens=2048, length=64), Origin(tiny.fingerprint, "", {})
    )
    calibration, held_out = read_calibration(tmp_path / "stats")[0], HeldOut(held, 64, "dense")
    everywhere()
    tuning = Tuning(learn, held_out, steps=16)
    result = compress(tiny, calibration, max_bytes=17_000, trellis=ROUNDED, held_out=held_out, tuning=tuning)
    assert len(result.data) <= 17_000 and result.tuning is not None and result.tuning.steps >= 8
    assert result.guard is not None and result.guard.uniform_kl is not None
    assert result.held_out is not None and result.held_out.kl > 0


def test_ranks_have_a_share_of_the_batches(
    tiny: Checkpoint, learned: Calibration, everywhere: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks' shares, one after another, make up what one rank does, in the same batches."""
    everywhere()
    matrices, _ = choose(tiny, learned)
    alone = GpuSlopeSolver(matrices, learned.stats, SolveOptions(), ROUNDED)
    ways = []
    for rank in (0, 1):
        ranks = Ranks(rank, 2)
        monkeypatch.setattr(Ranks, "gather", lambda self, value: [value] * self.world)
        ways.append(GpuSlopeSolver(matrices, learned.stats, SolveOptions(), ROUNDED, ranks))
    assert ways[0]._jobs == ways[1]._jobs == alone._jobs
    assert sorted(ways[0]._mine + ways[1]._mine) == sorted(alone._mine) == sorted(matrices)
    for names in alone._jobs:
        assert len({name in ways[0]._mine for name in names}) == 1


@pytest.mark.parametrize("name", SOLVERS)
def test_a_dry_run_times_batches(
    tiny: Checkpoint, text: Corpus, name: Any, everywhere: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantgolf.compress.rehearse_gpu.Trellis", lambda: ROUNDED)
    everywhere()
    found = dry_run(tiny, text, batches_of(text, tokens=2048, length=64), max_bytes=17_000, solver=name, length=64)
    assert 0 < found.solve_seconds < 600


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("name", SOLVERS)
def test_files_of_a_gpu_are_as_good_as_the_cpus(tiny: Checkpoint, text: Corpus, name: Any) -> None:
    learned = calibrate(tiny, text, tokens=2048, length=64)
    here = compress(tiny, learned, max_bytes=17_000, solver=name)
    tiny.module.to("cuda")
    for calibration in (learned, calibrate(tiny, text, tokens=2048, length=64)):
        there = compress(tiny, calibration, max_bytes=17_000, solver=name)
        assert 17_000 * 0.9 < len(there.data) <= 17_000
        assert true_loss(there, tiny, learned) == pytest.approx(true_loss(here, tiny, learned), rel=0.01)
        again = compress(tiny, calibration, max_bytes=17_000, solver=name)
        assert again.data == there.data


@pytest.mark.gpu
@GPU
def test_a_gpu_tunes_guards_and_predicts(tiny: Checkpoint, text: Corpus) -> None:
    tiny.module.to("cuda")
    predicted = dry_run(tiny, text, batches_of(text, tokens=2048, length=64), max_bytes=17_000, length=64)
    result = compress(tiny, text, max_bytes=17_000)
    assert len(result.data) <= 17_000 and result.held_out is not None and result.guard is not None
    assert 0 < predicted.solve_seconds < 600
