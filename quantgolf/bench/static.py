"""What can be said of the kernels' speed without a GPU: what the compiler made for an H100, and a prediction from it.

A prediction, not a measurement. It is the largest of three times, each of them a lower bound if its numbers are right:
- bytes that have to move over `BANDWIDTH`, about what an H200 sustains;
- instructions over what four schedulers of `PROCESSORS` multiprocessors issue at `CLOCK`, one each a clock;
- those of the integer pipe (logic, shifts, permutations, integer additions) over its 64 lanes a multiprocessor.
Instructions are those of the largest loop, taken as often as the matrix needs it. What is not in it: what a launch
costs, waiting for memory, loops that are entered often and left early, tensor cores.
"""

from collections.abc import Sequence
from typing import Any

import torch

from quantgolf.bench.roofline import product_bytes
from quantgolf.errors import QuantGolfError
from quantgolf_kernels import ahead, tuning
from quantgolf_kernels.packing import part_columns, parts, row_words

BANDWIDTH = 4.3e12  # bytes a second
PROCESSORS, CLOCK, SCHEDULERS = 132, 1.75e9, 4
LANES, WARP = 64, 32
INTEGER = ("LOP3", "SHF", "SHL", "SHR", "PRMT", "LEA", "IADD3", "ISETP", "SEL", "IMNMX", "BFE", "BFI", "SGXT")
WHAT = "prediction, not a measurement"

Row = dict[str, Any]


def kernel_of(m: int) -> str:
    """The kernel that a product with m rows of activations takes, if packed weights are multiplied as they are."""
    return "gemv" if m == 1 else "gemm"


def predictions(
    widths: Sequence[int], shapes: Sequence[tuple[int, int]], rows: Sequence[int], timeout: float | None = None
) -> list[Row]:
    """A line for each width, shape and number of rows below that of the dense product, all compiled in one process.

    Raises:
        QuantGolfError: kernels cannot be compiled here.
    """
    from quantgolf_kernels.ops import DENSE_FROM

    cases = [(bits, m, n, k) for bits in widths for n, k in shapes for m in rows if m < DENSE_FROM]
    if not cases:
        raise QuantGolfError(f"no rows below {DENSE_FROM} are asked for, expected some: others unpack the weights")
    try:
        found = ahead.compiled(_script(cases), timeout)
    except (RuntimeError, OSError) as error:
        raise QuantGolfError(f"kernels cannot be compiled, expected triton: {str(error).splitlines()[0]}") from error
    products = [facts for facts in found if facts["name"] in ("gemv_kernel", "gemm_kernel")]
    if len(products) != len(cases):
        raise QuantGolfError(f"{len(products)} products were compiled, expected {len(cases)}")
    return [prediction(*case, facts) for case, facts in zip(cases, products, strict=True)]


def prediction(bits: int, m: int, n: int, k: int, facts: ahead.Facts) -> Row:
    """One line: what was compiled, and the times that follow from it, in µs."""
    kernel = kernel_of(m)
    tile = tuning.choose(kernel, torch.device("cpu"), bits, m, n, k)
    loop = main_loop(facts)
    weights = pass_weights(kernel, bits, k, tile)
    tiles = 1 if kernel == "gemv" else -(-m // tile["block_m"])
    stored = parts(bits) * part_columns(bits, k) * n
    warps = facts["warps"] / weights * stored * tiles  # passes of a warp through the loop
    integer = sum(opcode.split(".")[0] in INTEGER for opcode in loop)
    nbytes = product_bytes(m, n, k, 4 * row_words(bits, k) * n + 4 * (n + k))
    times = {
        "bytes_us": nbytes / BANDWIDTH * 1e6,
        "issue_us": len(loop) * warps / (PROCESSORS * SCHEDULERS * CLOCK) * 1e6,
        "integer_us": integer * warps * WARP / (PROCESSORS * LANES * CLOCK) * 1e6,
    }
    return {
        "name": "kernels static", "what": WHAT, "kernel": kernel, "bits": bits, "m": m, "n": n, "k": k, "tile": tile,
        "registers": facts["registers"], "spilled": facts["local"], "shared": facts["shared"], "warps": facts["warps"],
        "wgmma": facts["wgmma"], "instructions": len(facts["code"]), "loop": len(loop), "loop_integer": integer,
        "per_weight": len(loop) * WARP * facts["warps"] / weights,
        "per_weight_whole": len(facts["code"]) * WARP * facts["warps"] / weights, "bytes": nbytes, **times,
        "predicted_us": max(times.values()), "bound": max(times, key=lambda name: times[name]).removesuffix("_us"),
    }  # fmt: skip


def main_loop(facts: ahead.Facts) -> list[str]:
    """Opcodes of the largest loop that holds no other, or all if there is none."""
    spans = [tuple(span) for span in facts["loops"]]
    inner = [a for a in spans if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in spans)]
    if not inner:
        return list(facts["code"])
    first, last = max(inner, key=lambda span: span[1] - span[0])
    return list(facts["code"][first : last + 1])


def pass_weights(kernel: str, bits: int, k: int, tile: dict[str, int]) -> int:
    """Weights that a program takes in one pass of its innermost loop: `gemv` loops over words of the widest plane and
    takes all columns in them, `gemm` over blocks of all parts."""
    each = part_columns(bits, k)
    block = min(tile["block_k"], 1 << (each - 1).bit_length())
    if kernel == "gemv":
        return tile["block_n"] * block * (32 // (1 << (bits.bit_length() - 1)))
    return tile["block_n"] * max(16, block) * parts(bits)


def _script(cases: Sequence[tuple[int, int, int, int]]) -> str:
    return f"""
from quantgolf_kernels.gemm import gemm
from quantgolf_kernels.gemv import gemv
from quantgolf_kernels.packing import row_words
from quantgolf_kernels.tuning import choose
for bits, m, n, k in {list(cases)}:
    data = torch.empty(n, row_words(bits, k), dtype=torch.int32)
    x = torch.empty(m, k, dtype=torch.bfloat16)
    name, launch = ("gemv", gemv) if m == 1 else ("gemm", gemm)
    tile = choose(name, x.device, bits, m, n, k)
    launch(x, data, torch.empty(n), torch.empty(k), None, None, None, bits, 1 << (bits - 1), k, 0, tile)
"""
