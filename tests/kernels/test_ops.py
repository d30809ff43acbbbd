"""The operators of packed matrices: what torch asks of them, gradients, and what they refuse."""

import subprocess
import sys

import pytest
import torch
from packed_cases import arguments, case, far

from quantgolf_kernels import lookup, matmul, pack, weights
from quantgolf_kernels.packing import Packed

CPU = torch.device("cpu")


def flat(packed: Packed) -> tuple[object, ...]:
    return (*arguments(packed), packed.bits, packed.offset, packed.columns, packed.group_size)


def cases(device: torch.device) -> list[Packed]:
    return [
        case((5, 70), 3, device, outliers=3).packed,
        case((4, 32), 8, device, column=False).packed,
        case((3, 64), 4, device, group_size=32, zero=True).packed,
    ]


def test_torch_accepts_the_ops(device: torch.device) -> None:
    for packed in cases(device):
        x = torch.randn(3, packed.columns, device=device)
        ops = torch.ops.quantgolf
        torch.library.opcheck(ops.packed_matmul.default, (x, *flat(packed)))
        torch.library.opcheck(ops.packed_matmul.default, (x.requires_grad_(), *flat(packed)))
        tokens = torch.tensor([2, 0, 2], device=device)
        torch.library.opcheck(ops.packed_lookup.default, (tokens, *flat(packed), torch.float16))
        torch.library.opcheck(ops.packed_weights.default, (*flat(packed), torch.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_values(dtype: torch.dtype, device: torch.device) -> None:
    bound = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    made = case((9, 130), 5, device, outliers=4)
    assert far(weights(made.packed), made.weight) < 1e-6
    assert torch.equal(weights(made.packed, dtype), weights(made.packed).to(dtype))
    tokens = torch.tensor([[1, 8], [0, 1]], device=device)
    assert torch.equal(lookup(tokens, made.packed, dtype), weights(made.packed, dtype)[tokens])
    for shape in ((130,), (2, 130), (2, 3, 130), (0, 130)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
        found = matmul(x, made.packed)
        assert found.shape == (*shape[:-1], 9) and found.dtype == dtype
        if len(shape) != 2 or shape[0]:
            assert far(found, x.double() @ made.weight.T) < bound


@pytest.mark.parametrize("shape", [(0, 8), (4, 0), (0, 0)])
def test_nothing_times_nothing(shape: tuple[int, int], device: torch.device) -> None:
    packed = pack(torch.zeros(shape, dtype=torch.int8, device=device), torch.ones(shape[0], device=device))
    found = matmul(torch.ones(3, shape[1], device=device), packed)
    assert found.shape == (3, shape[0]) and not found.any()
    assert weights(packed).shape == shape


def test_the_gradient_goes_to_the_activations(device: torch.device) -> None:
    made = case((6, 40), 4, device, outliers=2)
    x = torch.randn(3, 40, device=device, requires_grad=True)
    weight = torch.randn(3, 6, device=device)
    (matmul(x, made.packed) * weight).sum().backward()
    assert x.grad is not None and far(x.grad, weight.double() @ made.weight) < 1e-5
    compiled = torch.compile(lambda x: matmul(x, made.packed).relu(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), matmul(x, made.packed).relu())


def test_what_does_not_fit_is_refused_before_anything_runs() -> None:
    packed = case((5, 70), 3, CPU).packed
    for x, said in (
        (torch.ones(2, 69), r"x is torch.float32 \[2, 69\] on cpu, expected fp32, fp16 or bf16 \[..., 70\]"),
        (torch.ones(2, 70, dtype=torch.int32), "x is torch.int32"),
        (torch.ones(2, 70, dtype=torch.float64), "x is torch.float64"),
        (torch.ones(2, 70, device="meta"), "on meta, expected .* on cpu"),
        (torch.ones(()), r"x is torch.float32 \[\]"),
    ):
        with pytest.raises(ValueError, match=said):
            matmul(x, packed)
    with pytest.raises(ValueError, match=r"tokens are torch\.float32"):
        lookup(torch.ones(2), packed)
    with pytest.raises(ValueError, match=r"torch\.float64 is asked for"):
        lookup(torch.ones(2, dtype=torch.int64), packed, torch.float64)
    with pytest.raises(IndexError, match="tokens reach from -1 to 5, expected 0 to 4"):
        lookup(torch.tensor([5, -1]), packed)
    with pytest.raises(ValueError, match=r"weights were asked for in torch\.int8"):
        weights(packed, torch.int8)


def test_importing_the_package_imports_no_triton() -> None:
    code = "import sys, quantgolf_kernels, quantgolf; sys.exit('triton' in sys.modules)"
    # torch itself may import triton on machines with a GPU.
    alone = "import sys, torch; sys.exit('triton' in sys.modules)"
    run = [subprocess.run([sys.executable, "-c", text], check=False).returncode for text in (alone, code)]
    assert run[0] == run[1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_large_batches_and_graphs_on_a_gpu() -> None:
    device = torch.device("cuda")
    for bits in (3, 4, 6, 8):
        made = case((520, 1000), bits, device, outliers=20)
        for many in (1, 2, 16, 64, 127, 128, 1000):
            x = torch.randn(many, 1000, device=device, dtype=torch.bfloat16)
            assert far(matmul(x, made.packed), x.double() @ made.weight.T) < 1e-2
            assert torch.equal(matmul(x, made.packed), matmul(x, made.packed))
        x = torch.randn(1, 1000, device=device, dtype=torch.bfloat16)
        wanted, graph = matmul(x, made.packed), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = matmul(x, made.packed)
        graph.replay()
        assert torch.equal(found, wanted)
