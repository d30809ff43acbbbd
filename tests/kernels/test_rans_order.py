"""Levels between the order of matrices and that of lanes: the kernels, and whole files that go through all of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quantgolf.encode import decode_codes, encode_codes, gpu
from quantgolf.encode.diagonals import rolled, unrolled
from quantgolf.encode.lanes import classes_of
from quantgolf.encode.levels import Levels, decode_levels_on, encode_levels
from quantgolf.encode.stream import decode_codes_on
from quantgolf.solve.trellis import Trellis
from quantgolf_kernels import rans_op

pytest.importorskip("triton", reason="kernels need triton")
from quantgolf_kernels import rans as kernels

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Laid:
    """Matrices in a sequence that is cut into lanes anywhere."""

    matrices: gpu.Matrices
    starts: Tensor
    restart: int

    def order(self, aside: bool) -> dict[str, int]:
        """Stride, size and steps."""
        steps, count = int(self.starts.diff().max()), int(self.starts[-1])
        stride = -(-(len(self.starts) - 1) // 16) * 16 if aside else 0
        return {"stride": stride, "size": stride * steps if aside else count, "steps": steps}

    def arguments(self, device: torch.device) -> dict[str, Tensor]:
        arrays = {"matrices": self.matrices.table(), "rows": self.matrices.row, "columns": self.matrices.column}
        arrays["class_at"] = self.matrices.class_at
        return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}


@st.composite
def laid(draw: st.DrawFn) -> Laid:
    shapes = draw(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=5))
    rng, count = np.random.default_rng(draw(st.integers(0, 2**32))), sum(n * k for n, k in shapes)
    cuts = sorted(draw(st.lists(st.integers(0, count), max_size=40)))
    matrices = gpu.Matrices(
        tuple(shapes), tuple(draw(st.booleans()) for _ in shapes),
        rng.integers(0, 30, sum(n for n, _ in shapes), dtype=np.int32),
        rng.integers(30, 60, sum(k for _, k in shapes), dtype=np.int32), rng.integers(0, 64, 60, dtype=np.uint8),
    )  # fmt: skip
    return Laid(matrices, torch.tensor([0, *cuts, count]), draw(st.integers(1, 50)))


@given(laid(), st.booleans())
@settings(deadline=None, max_examples=15)
def test_entries_are_those_of_the_compiled_loop(sequence: Laid, aside: bool) -> None:
    order, starts = sequence.order(aside), sequence.starts
    found = kernels.fill_entries(starts.to(DEVICE), **sequence.arguments(DEVICE), restart=sequence.restart, **order)
    reference = rans_op.level_entries(
        starts, **sequence.arguments(torch.device("cpu")), restart=sequence.restart, **order
    )  # fmt: skip
    assert torch.equal(found.cpu(), reference)
    expected, given, at = [], sequence.matrices, [0, 0]
    for (n, k), diagonal in zip(given.shapes, given.diagonal, strict=True):
        classes = np.empty(n * k, dtype=np.uint8)
        row, column = given.row[at[0] : at[0] + n], given.column[at[1] : at[1] + k]
        steps = row.astype(np.int64), column.astype(np.int64)
        classes_of(*steps, given.class_at, sequence.restart, classes, diagonal)
        expected.append(classes)
        at = [at[0] + n, at[1] + k]
    in_order = rans_op._in_memory(np.arange(int(starts[-1])), starts, order["stride"])
    assert np.array_equal(reference.numpy()[in_order], np.concatenate(expected))


@given(laid(), st.booleans())
@settings(deadline=None, max_examples=15)
def test_levels_are_placed_as_the_cpu_unrolls_them(sequence: Laid, aside: bool) -> None:
    order, starts, base = sequence.order(aside), sequence.starts, 0
    for (n, k), diagonal in zip(sequence.matrices.shapes, sequence.matrices.diagonal, strict=True):
        expected = np.random.default_rng(n).integers(-(2**31), 2**31, (n, k)).astype(np.int32)
        coded = rolled(expected) if diagonal else np.ascontiguousarray(expected.T)
        levels = torch.zeros(order["size"], dtype=torch.int32)
        levels[rans_op._in_memory(base + np.arange(n * k), starts, order["stride"])] = torch.from_numpy(coded.ravel())
        shape = order["stride"], base, n, k, diagonal
        found = kernels.place(levels.to(DEVICE), starts.to(DEVICE), *shape)
        assert found.is_contiguous() and np.array_equal(found.cpu().numpy(), expected)
        assert torch.equal(rans_op.place_levels(levels, starts, *shape), found.cpu())
        base += n * k


def test_a_file_is_decoded_by_kernels_alone(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, launcher in (
        ("rans_levels", kernels.decode_levels), ("level_entries", kernels.fill_entries), ("place_levels", kernels.place)
    ):  # fmt: skip
        monkeypatch.setattr(gpu, name, launcher)
    trellis, rng = Trellis(32, 7), np.random.default_rng(0)
    matrices = []
    for shape, diagonal in (((20, 9), True), ((0, 3), False), ((5, 31), False), ((3, 40), True)):
        row, column = (rng.integers(-6, 6, size).astype(np.int16) for size in shape)
        coded = [trellis.quantize(each) for each in rng.normal(0, 60, shape[::-1])]
        levels = np.stack(coded)
        levels = unrolled(levels) if diagonal else np.ascontiguousarray(levels.T)
        matrices.append(Levels(levels, 0, row, column, diagonal))
    found = decode_levels_on(device, encode_levels(matrices, trellis), [each.frame for each in matrices], trellis)
    for levels, each in zip(found, matrices, strict=True):
        assert levels.device.type == device.type and np.array_equal(levels.cpu().numpy(), each.levels)


def test_codes_are_decoded_by_kernels_alone(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "rans_streams", kernels.decode_streams)
    given = [torch.from_numpy(np.random.default_rng(n).normal(0, 3, (n, 9)).astype(np.int8)) for n in (20, 45, 31)]
    found = decode_codes_on(device, [(encode_codes(each), tuple(each.shape), "codes") for each in given])
    for codes, each in zip(found, given, strict=True):
        assert codes.device.type == device.type and torch.equal(codes.cpu(), each)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_large_file_on_a_gpu() -> None:
    """1.2M levels in 36 lanes of 32,768 steps, and codes in 18, through the ops themselves."""
    device, trellis, rng = torch.device("cuda"), Trellis(128, 256), np.random.default_rng(0)
    matrices = []
    for n, k, diagonal in ((1000, 700, True), (513, 1001, False)):
        targets = rng.normal(0, 3, (k, n)) * np.exp(rng.normal(0, 1, (k, n)))
        coded = np.stack([trellis.quantize(each) for each in targets])
        row, column = (rng.integers(-6, 6, size).astype(np.int16) for size in (n, k))
        matrices.append(Levels(unrolled(coded) if diagonal else coded.T.copy(), 0, row, column, diagonal))
    payload = encode_levels(matrices, trellis)
    found = decode_levels_on(device, payload, [each.frame for each in matrices], trellis)
    for levels, each in zip(found, matrices, strict=True):
        assert levels.is_cuda and np.array_equal(levels.cpu().numpy(), each.levels)
    stream = encode_codes(torch.from_numpy(rng.normal(0, 3, (1000, 600)).astype(np.int8)))
    (codes,) = decode_codes_on(device, [(stream, (1000, 600), "codes")])
    assert codes.is_cuda and torch.equal(codes.cpu(), decode_codes(stream, (1000, 600)))


def test_ops_are_what_torch_expects(device: torch.device) -> None:
    check = torch.library.opcheck
    sequence = Laid(
        gpu.Matrices(
            ((3, 4), (2, 5)), (True, False), np.zeros(5, np.int32), np.ones(9, np.int32), np.zeros(3, np.uint8)
        ), torch.tensor([0, 9, 22]), 2,
    )  # fmt: skip
    starts, order = sequence.starts.to(device), sequence.order(True)
    check(rans_op.level_entries, (starts,), {**sequence.arguments(device), "restart": 2, **order})
    levels = torch.arange(order["size"], dtype=torch.int32, device=device)
    check(rans_op.place_levels, (levels, starts, order["stride"], 12, 2, 5, False))


LAUNCHES = """
from quantgolf_kernels import rans

def of(dtype, *shape):
    return torch.empty(shape, dtype=dtype)

for stride in (1104, 0):
    starts, steps = of(torch.int64, 1097), (of(torch.int32, 10**4), of(torch.int32, 10**4))
    rans.fill_entries(starts, of(torch.int64, 6, 40), *steps, of(torch.uint8, 50), 256, stride, 32800 * 1104, 32800)
    for diagonal in (False, True):
        rans.place(of(torch.int32, 64), starts, stride, 12345, 512, 2048, diagonal)
"""


def test_compiled_for_hopper(ahead: Callable[[str], list[dict[str, Any]]]) -> None:
    names = [kernel["name"] for kernel in ahead(LAUNCHES)]
    assert names == 2 * ["entries_kernel", "place_kernel", "place_kernel"]
