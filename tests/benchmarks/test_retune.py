"""What `retune.py` launches, and the options that it refuses."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import retune
import torch

from quantgolf.errors import QuantGolfError

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("options, said", [
    ({"kernel": "conv"}, "--kernel is conv, expected some of gemv, gemm, unpack"),
    ({"bits": "9"}, "--bits is 9, expected widths from 2 to 8"), ({"bits": "x"}, "--bits is x"),
    ({"m": "1;2"}, "--m 1;2"), ({"shape": "8x8x8"}, "shape '8x8x8' is not understood"),
])  # fmt: skip
def test_what_is_not_understood_is_said_before_a_gpu_is_looked_for(options: dict[str, str], said: str) -> None:
    usual = {"kernel": "gemv", "bits": "4", "shape": "512", "m": "1"}
    with pytest.raises(QuantGolfError, match=said):
        retune.retune(**{**usual, **options})


@pytest.mark.skipif(torch.cuda.is_available(), reason="under the interpreter, which a GPU has no need of")
def test_launches_are_the_kernels_and_give_what_the_ops_give() -> None:
    # In a process of its own: an interpreter's kernels are made where TRITON_INTERPRET is set.
    script = f"""
import sys
sys.path.insert(0, {str(FOLDER)!r})
import torch
import retune
from quantgolf.bench.cases import Case, make
from quantgolf_kernels import ops, tuning
made = make(Case("product", "steps", 4, 2, 24, 64), torch.device("cpu"), torch.Generator().manual_seed(0)).packed
x = torch.randn(2, 64)
cpu = x.device
for kernel, given in (("gemv", x[:1]), ("gemm", x), ("unpack", None), ("unpack", torch.tensor([3, 3, 7]))):
    found = retune.launch(kernel, given, made, tuning.choose(kernel, cpu, 4, 2, 24, 64))
    if kernel != "unpack":
        wanted = ops.matmul(given, made)
    elif given is None:
        wanted = ops.weights(made, torch.bfloat16)
    else:
        wanted = ops.lookup(given, made, torch.bfloat16)
    # The interpreter's rounding to bf16 is not torch's, by a last place.
    assert torch.allclose(found.float(), wanted.float(), rtol=1e-2, atol=1e-4), kernel
    assert found.dtype == wanted.dtype and found.shape == wanted.shape
assert all(issubclass(kind, Exception) for kind in retune.impossible_errors())
"""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done: Any = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
