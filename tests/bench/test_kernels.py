"""The benchmark of the kernels on a CPU, where their reference stands in: what is planned, checked and written down."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from quantgolf.bench import kernels
from quantgolf.bench.cases import KINDS, OPS, SHAPES, Case, clones, make, parse_shape, plan
from quantgolf.bench.kernels import Bench, cost, relative_error, run_case, run_shape
from quantgolf.bench.machine import conditions, open_gpu
from quantgolf.bench.peers import Peer
from quantgolf.bench.roofline import Ceilings
from quantgolf.errors import QuantGolfError
from quantgolf_kernels import ops
from quantgolf_kernels.packing import unpack

CPU = torch.device("cpu")
ALWAYS = {
    "name": str, "op": str, "kind": str, "bits": int, "m": int, "n": int, "k": int, "state": str, "copies": int,
    "dtype": str, "us": float, "us_low": float, "us_high": float, "runs": int, "calls": int, "bytes": int,
    "gbps": float, "roofline_us": float, "of_roofline": float, "copy_gbps": float, "dense_tflops": float,
    "versions": dict, "machine": str, "date": str,
}  # fmt: skip


@pytest.fixture
def bench(fake: Any) -> Callable[..., Bench]:
    def call(cost: float = 1e-3, cache: int = 10_000, **more: Any) -> Bench:
        return Bench(fake(cost), CPU, torch.float32, cache, Ceilings(1e9, 1e12), conditions(None), **more)

    return call


def test_a_shape_gives_lines_with_all_that_they_need(bench: Callable[..., Bench]) -> None:
    ((shape, matrices),) = plan([3, 8], [(48, 256)], [1, 130])
    rows = list(run_shape(bench(), shape, matrices, []))
    for row in rows:
        assert all(isinstance(row[key], kind) for key, kind in ALWAYS.items()), row
        assert json.loads(json.dumps(row)) == row
        assert row["op"] == "dense" or row["error"] < 1e-5
        assert row["us"] == pytest.approx(1e3, rel=0.2)
        assert row["gbps"] == pytest.approx(row["bytes"] / row["us"] / 1e3)
        assert row["of_roofline"] == pytest.approx(row["roofline_us"] / row["us"])
    # Of each width: products of four kinds, materialised, unpack of four, lookup of two; and dense once for both.
    assert len(rows) == 2 * (2 + 2 * (4 * 2 + 2 + 4 + 2 * 2))
    products = [row for row in rows if row["op"] == "product"]
    assert all(row["gain"] == pytest.approx(row["dense_us"] / row["us"]) for row in products)
    assert {row["copies"] for row in products if row["state"] == "warm"} == {1}
    assert all(row["copies"] >= 2 for row in products if row["state"] == "flushed")


def test_flushed_runs_more_copies_of_smaller_weights(bench: Callable[..., Bench]) -> None:
    case = Case("product", "steps", 4, 1, 16, 64)
    made = make(case, CPU, torch.Generator().manual_seed(0))
    (row,) = run_case(bench(cache=100_000, states=("flushed",)), case, made)
    assert row["copies"] == -(-300_000 // made.packed.nbytes)


@pytest.mark.parametrize("broken", [lambda y: y * 1.1, lambda y: y * float("nan"), lambda y: torch.zeros_like(y)])
@pytest.mark.parametrize("op", ["product", "unpack", "lookup"])
def test_what_is_wrong_is_not_timed(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch, op: str, broken: Callable[..., Any]
) -> None:
    name = {"product": "matmul", "unpack": "weights", "lookup": "lookup"}[op]
    right = getattr(ops, name)
    monkeypatch.setattr(kernels, name, lambda *given: broken(right(*given)))
    case = Case(op, "steps", 4, 3, 8, 32)
    with pytest.raises(QuantGolfError, match="nothing is timed that is wrong"):
        list(run_case(bench(), case, make(case, CPU, torch.Generator().manual_seed(0))))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [2, 5, 8])
def test_made_weights_are_those_of_the_codes(kind: str, bits: int) -> None:
    made = make(Case("product", kind, bits, 1, 24, 300), CPU, torch.Generator().manual_seed(bits))
    assert made.packed.bits == bits
    beyond = 0 if made.packed.outliers is None else (made.packed.outliers.numel() - 25) // 2
    assert (0 < beyond < 0.02 * 24 * 300) if kind == "outliers" else beyond == 0
    codes = unpack(made.packed).double()
    if made.packed.scale is not None and made.packed.zero is not None:
        group = torch.arange(300) // made.packed.group_size
        codes = (codes - made.packed.zero.double()[:, group]) * made.packed.scale.double()[:, group]
    for step in (made.packed.row[:, None], made.packed.column):
        codes = codes if step is None else codes * step.double()
    assert relative_error(codes, made.weights) < 1e-6


def test_copies_have_memory_of_their_own() -> None:
    packed = make(Case("product", "outliers", 4, 1, 8, 32), CPU, torch.Generator().manual_seed(0)).packed
    several = clones(packed, 3)
    for name, tensor in packed.tensors.items():
        assert len({one.tensors[name].data_ptr() for one in several}) == 3
        assert all(torch.equal(one.tensors[name], tensor) for one in several)


def test_bytes_and_operations_of_a_case() -> None:
    assert cost(Case("product", "steps", 4, 2, 8, 32), 1000, 2) == (1000 + 2 * 2 * 40, 2 * 2 * 8 * 32)
    assert cost(Case("materialised", "steps", 4, 2, 8, 32), 1000, 2) == (2 * 8 * 32 + 2 * 2 * 40, 2 * 2 * 8 * 32)
    assert cost(Case("unpack", "steps", 4, 0, 8, 32), 1000, 2) == (1000 + 2 * 8 * 32, 0)
    assert cost(Case("lookup", "steps", 4, 3, 8, 32), 1000, 2) == (3 * (125 + 64 + 8), 0)


def test_goals_know_the_gain_that_one_row_had(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float | None] = []
    monkeypatch.setattr(kernels, "goal", lambda *case: asked.append(case[-1]()))
    ((shape, matrices),) = plan([4], [(16, 32)], [1, 16], ["steps"], ["product"])
    rows = [row for row in run_shape(bench(), shape, matrices, []) if row["op"] == "product"]
    gains = {row["state"]: row["gain"] for row in rows if row["m"] == 1}
    assert asked[2:] == [gains["warm"], gains["flushed"]]


def test_a_peer_is_measured_where_its_shape_allows_and_refused_when_wrong(bench: Callable[..., Bench]) -> None:
    ((shape, matrices),) = plan([4], [(16, 32)], [1], ["steps"], ["product"])
    good = Peer("good", 4, 16, lambda weight: lambda x: 0.9 * torch.nn.functional.linear(x, weight))
    coarse = Peer("coarse", 4, 64, lambda weight: lambda x: x)
    rows = [row for row in run_shape(bench(), shape, matrices, [good, coarse]) if row["op"] == "peer"]
    assert [(row["kind"], row["state"]) for row in rows] == [("good", "warm"), ("good", "flushed")]
    assert rows[0]["error"] == pytest.approx(0.1, rel=1e-3) and rows[0]["gain"] > 0
    wrong = Peer("wrong", 4, 16, lambda weight: lambda x: x.new_zeros(len(x), len(weight)))
    with pytest.raises(QuantGolfError, match="wrong m=1"):
        list(run_shape(bench(), shape, matrices, [wrong]))


def test_the_plan_has_everything_once_and_refuses_what_it_does_not_know() -> None:
    cases = [case for _, matrices in plan(range(2, 9), SHAPES, [1, 16]) for same in matrices for case in same]
    assert len(set(cases)) == len(cases)
    assert cases[0].name == "product steps W2 512x512 m=1"
    assert {case.op for case in cases} == set(OPS) and {case.kind for case in cases} == set(KINDS)
    assert {(case.n, case.k) for case in cases if case.kind != "steps"} == {(8192, 8192), (2048, 512)}
    for arguments in (([9], [(8, 8)], [1]), ([4], [(8, 8)], [1], ["rest"]), ([4], [(8, 8)], [1], KINDS, ["sum"])):
        with pytest.raises(QuantGolfError, match="is not known"):
            list(plan(*arguments))  # type: ignore[arg-type]


def test_shapes_are_read() -> None:
    assert parse_shape("8192x512") == (8192, 512) and parse_shape("64") == (64, 64)
    for text in ("", "x", "8x", "0", "8x8x8", "-3", "1.5", "99999999"):
        with pytest.raises(QuantGolfError, match="expected ROWSxCOLUMNS"):
            parse_shape(text)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_no_gpu_is_said_in_one_line() -> None:
    with pytest.raises(QuantGolfError, match="retune is measured on a GPU, expected one that torch sees"):
        open_gpu("retune")
