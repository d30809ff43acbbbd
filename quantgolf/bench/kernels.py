"""Times the kernels of packed matrices, each after it was found right, beside the bf16 dense product and the roofline.

Right means near fp64 products of the same codes, on inputs drawn for this check, in memory that was full of NaN. `warm`
runs one matrix again and again, so that a small one stays in L2. `flushed` runs so many copies of it in turn that they
are three times L2 together: when a copy's turn comes again, the others have gone through the cache. Activations are the
same all along in both. The dense product has the same treatment at each shape and number of rows, in the same run.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from quantgolf.bench.cases import Case, Made, clones, make
from quantgolf.bench.clock import Call, Timer, Timing, copies, measure
from quantgolf.bench.peers import Peer
from quantgolf.bench.roofline import Ceilings, goal, operations, product_bytes
from quantgolf.errors import QuantGolfError
from quantgolf_kernels.ops import lookup, matmul, weights
from quantgolf_kernels.packing import Packed

STATES = ("warm", "flushed")
# ‖result - fp64‖ / ‖fp64‖ that is taken to be right: the result is rounded to the dtype, as are activations times steps
# and, in a dense product, weights; fp32 only adds up.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
PEER_TOLERANCE = 0.5  # they quantize by themselves: this tells a product from something that is none
POISONED = 8  # blocks of memory filled with NaN before a check, since a kernel also takes some for itself

Row = dict[str, Any]


@dataclass
class Bench:
    """What cases are measured with.

    Attributes:
        device, dtype: of activations and results.
        cache_bytes: L2, which the flushed state exceeds.
        conditions: go into every line as they are.
        dense: times of the dense product by (m, n, k, state), filled as they are measured.
    """

    timer: Timer
    device: torch.device
    dtype: torch.dtype
    cache_bytes: int
    ceilings: Ceilings
    conditions: Row
    states: Sequence[str] = STATES
    seed: int = 0
    dense: dict[tuple[int, int, int, str], Timing] = field(default_factory=dict)
    gains: dict[tuple[str, str, int, int, int, int, str], float] = field(default_factory=dict)

    def generator(self) -> torch.Generator:
        self.seed += 1
        return torch.Generator(self.device).manual_seed(self.seed)


def run_shape(bench: Bench, shape: tuple[int, int], matrices: list[list[Case]], peers: Sequence[Peer]) -> Iterator[Row]:
    """Lines of results for the cases of one shape, as they are measured.

    Raises:
        QuantGolfError: a kernel's result is not right.
    """
    n, k = shape
    rows = sorted({case.m for cases in matrices for case in cases if case.m})
    if any(case.op in ("product", "materialised") for cases in matrices for case in cases):
        weight = torch.randn(n, k, device=bench.device, generator=bench.generator()).mul(k**-0.5).to(bench.dtype)
        yield from _dense(bench, weight, rows)
        for peer in peers:
            yield from _peer(bench, peer, weight, rows)
        del weight
    for cases in matrices:
        made = make(cases[0], bench.device, bench.generator())
        for case in cases:
            yield from run_case(bench, case, made)


def run_case(bench: Bench, case: Case, made: Made) -> Iterator[Row]:
    """Checks a case, then times it in every state."""
    error = check(bench, case, made)
    for state in bench.states:
        held = bench.dtype.itemsize * case.n * case.k if case.op == "materialised" else made.packed.nbytes
        count = 1 if state == "warm" else copies(bench.cache_bytes, held)
        timing = measure(bench.timer, _calls(bench, case, made.packed, count))
        nbytes, work = cost(case, made.packed.nbytes, bench.dtype.itemsize)
        floor = bench.ceilings.seconds(nbytes, work)
        dense = bench.dense.get((case.m, case.n, case.k, state)) if case.op in ("product", "materialised") else None
        gain = None if dense is None else dense.seconds / timing.seconds
        if gain is not None:
            bench.gains[case.op, case.kind, case.bits, case.m, case.n, case.k, state] = gain
        one = partial(bench.gains.get, (case.op, case.kind, case.bits, 1, case.n, case.k, state))
        shape = case.m, case.n, case.k
        yield line(bench, case.op, case.kind, case.bits, shape, state, count, timing, floor, nbytes) | {
            "dense_us": None if dense is None else dense.seconds * 1e6,
            "gain": gain,
            "goal": goal(case.op, case.kind, case.bits, case.m, case.n, case.k, state, one),
            "error": error,
            "packed_bpw": made.packed.bpw,
        }  # fmt: skip


def cost(case: Case, packed_bytes: int, item: int) -> tuple[int, int]:
    """Bytes that a case has to move and operations that it has to do."""
    if case.op == "unpack":
        return packed_bytes + item * case.n * case.k, 0
    if case.op == "lookup":
        return case.m * (packed_bytes // case.n + item * case.k + 8), 0
    weight_bytes = item * case.n * case.k if case.op == "materialised" else packed_bytes
    return product_bytes(case.m, case.n, case.k, weight_bytes, item), operations(case.m, case.n, case.k)


def check(bench: Bench, case: Case, made: Made) -> float:
    """Relative error of a case against fp64.

    Raises:
        QuantGolfError: it is larger than the dtype explains, or no number.
    """
    generator = bench.generator()
    x = _inputs(bench, case, generator)
    _poison(bench, case)
    if case.op == "unpack":
        found, wanted = weights(made.packed, bench.dtype), made.weights
    elif case.op == "lookup":
        found, wanted = lookup(x, made.packed, bench.dtype), made.weights[x]
    else:
        multiply = matmul if case.op == "product" else _materialised
        found, wanted = multiply(x, made.packed), linear(x.double(), made.weights)
    error = relative_error(found, wanted)
    if not error <= TOLERANCE[bench.dtype]:
        raise QuantGolfError(
            f"{case.name}: the result is {error:.2e} from that in fp64, expected at most {TOLERANCE[bench.dtype]:g}; "
            "nothing is timed that is wrong"
        )
    return error


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """‖found - wanted‖ / ‖wanted‖ in fp64; NaN or infinity in `found` stays one."""
    return float((found.double() - wanted).norm() / wanted.norm())


def line(
    bench: Bench, op: str, kind: str, bits: int, shape: tuple[int, int, int], state: str, count: int, timing: Timing,
    floor: float, nbytes: int,
) -> Row:  # fmt: skip
    """What every line of results has; times in µs, bandwidth in GB/s."""
    m, n, k = shape
    return {
        "name": f"kernels {op}", "op": op, "kind": kind, "bits": bits, "m": m, "n": n, "k": k, "state": state,
        "copies": count, "dtype": str(bench.dtype).removeprefix("torch."), "us": timing.seconds * 1e6,
        "us_low": timing.low * 1e6, "us_high": timing.high * 1e6, "runs": timing.runs, "calls": timing.calls,
        "bytes": nbytes, "gbps": nbytes / timing.seconds / 1e9, "roofline_us": floor * 1e6,
        "of_roofline": floor / timing.seconds, "copy_gbps": bench.ceilings.bandwidth / 1e9,
        "dense_tflops": bench.ceilings.rate / 1e12, **bench.conditions,
    }  # fmt: skip


def _dense(bench: Bench, weight: Tensor, rows: Sequence[int]) -> Iterator[Row]:
    n, k = weight.shape
    for m in rows:
        x = _activations(bench, m, k, bench.generator())
        for state in bench.states:
            count = 1 if state == "warm" else copies(bench.cache_bytes, weight.nbytes)
            kept = [weight, *(weight.clone() for _ in range(count - 1))]
            timing = measure(bench.timer, [partial(linear, x, one) for one in kept])
            bench.dense[m, n, k, state] = timing
            nbytes = product_bytes(m, n, k, weight.nbytes, weight.element_size())
            floor = bench.ceilings.seconds(nbytes, operations(m, n, k))
            bits = 8 * weight.element_size()
            yield line(bench, "dense", "float", bits, (m, n, k), state, count, timing, floor, nbytes)


def _peer(bench: Bench, peer: Peer, weight: Tensor, rows: Sequence[int]) -> Iterator[Row]:
    n, k = weight.shape
    if n % peer.multiple or k % peer.multiple:
        return
    nbytes = n * k * peer.bits // 8  # scales are not counted
    most = copies(bench.cache_bytes, nbytes) if "flushed" in bench.states else 1
    with torch.no_grad():
        layers = [peer.make(weight) for _ in range(most)]
        for m in rows:
            x = _activations(bench, m, k, bench.generator())
            error = relative_error(layers[0](x), linear(x.double(), weight.double()))
            if not error <= PEER_TOLERANCE:
                raise QuantGolfError(f"{peer.name} m={m} {n}x{k}: its result is {error:.2e} from the dense product's")
            for state in bench.states:
                several = layers[:1] if state == "warm" else layers
                timing = measure(bench.timer, [partial(layer, x) for layer in several])
                moved = product_bytes(m, n, k, nbytes, bench.dtype.itemsize)
                floor = bench.ceilings.seconds(moved, operations(m, n, k))
                dense = bench.dense[m, n, k, state]
                shape = m, n, k
                yield line(bench, "peer", peer.name, peer.bits, shape, state, len(several), timing, floor, moved) | {
                    "dense_us": dense.seconds * 1e6, "gain": dense.seconds / timing.seconds, "error": error,
                }  # fmt: skip


def _calls(bench: Bench, case: Case, packed: Packed, count: int) -> list[Call]:
    """The case on `count` copies of the weights."""
    x = _inputs(bench, case, bench.generator())
    if case.op == "materialised":
        return [partial(linear, x, weights(packed, bench.dtype)) for _ in range(count)]
    several = clones(packed, count)
    if case.op == "product":
        return [partial(matmul, x, one) for one in several]
    if case.op == "lookup":
        return [partial(lookup, x, one, bench.dtype) for one in several]
    return [partial(weights, one, bench.dtype) for one in several]


def _materialised(x: Tensor, packed: Packed) -> Tensor:
    return linear(x, weights(packed, x.dtype))


def _inputs(bench: Bench, case: Case, generator: torch.Generator) -> Tensor:
    if case.op == "lookup":
        return torch.randint(0, case.n, (case.m,), device=bench.device, generator=generator)
    return _activations(bench, max(1, case.m), case.k, generator)


def _activations(bench: Bench, m: int, k: int, generator: torch.Generator) -> Tensor:
    return torch.randn(m, k, device=bench.device, generator=generator).to(bench.dtype)


def _poison(bench: Bench, case: Case) -> None:
    """Fills memory with NaN and gives it back, so that the allocator hands it to the result."""
    shape = (case.n, case.k) if case.op == "unpack" else (case.m, case.k if case.op == "lookup" else case.n)
    blocks = [torch.full(shape, torch.nan, dtype=bench.dtype, device=bench.device) for _ in range(POISONED)]
    del blocks
