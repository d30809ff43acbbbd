"""torch.compile takes packed models whole: one graph, the numbers of eager."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantgolf.errors import QuantGolfError
from quantgolf.models.golf import Golf
from quantgolf.runtime import PackedParameter, load
from quantgolf_kernels import pack

Make = Callable[..., Path]
TOKENS = torch.arange(2 * 12).reshape(2, 12)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(module: Any, backend: str = "aot_eager") -> Any:
    return torch.compile(module, fullgraph=True, backend=backend)


@pytest.mark.parametrize("levels", [False, True], ids=["widths", "levels"])
@pytest.mark.parametrize("options", [{}, {"banks": True}], ids=["plain", "banks"])
def test_golf_models_compile_to_one_graph(
    made: Make, built: Callable[..., Golf], options: dict[str, Any], levels: bool
) -> None:
    model = load(made(built(layers=1, **options), levels), materialize=False)
    with torch.no_grad():
        torch.testing.assert_close(compiled(model)(TOKENS), model(TOKENS), rtol=1e-5, atol=1e-5)


def test_shapes_that_change_compile_too() -> None:
    weight = stand_in(6, 4)
    run = compiled(lambda x: F.linear(x, weight[1:5]) @ weight[1:5])
    with pytest.warns(UserWarning, match="each call of matmul"):
        for count in (3, 5, 9):
            x = torch.randn(2, count, 4)
            dense = weight.dequantize()[1:5]
            torch.testing.assert_close(run(x), x @ dense.T @ dense)


@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, as Inductor is imported
def test_inductor() -> None:
    weight = stand_in(48, 32)

    def tied(tokens: Tensor) -> Tensor:
        return F.linear(F.embedding(tokens, weight).relu(), weight[8:24])

    torch.testing.assert_close(compiled(tied, "inductor")(TOKENS), tied(TOKENS), rtol=1e-4, atol=1e-4)


def test_contest_scripts_compile_under_autocast(made: Make, shared: Callable[[str], ModuleType]) -> None:
    model = shared("calibrate/contest_script.py").build(autocast=True)
    packed = load(made(model), model, materialize=False)
    packed(TOKENS, TOKENS)  # fills its cache of angles
    with torch.no_grad():
        torch.testing.assert_close(compiled(packed)(TOKENS, TOKENS), packed(TOKENS, TOKENS), rtol=1e-2, atol=1e-2)


def test_an_adapter_trains_compiled(made: Make, built: Callable[..., Golf]) -> None:
    model = load(made(built()), materialize=False)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    added = nn.Parameter(torch.zeros(96))

    def loss(tokens: Tensor) -> Tensor:
        x = F.rms_norm(model.emb(tokens) + model.blocks[0].attn.q(model.emb(tokens)) * added[:32], (32,))
        return F.linear(x, model.emb.weight).square().mean()

    compiled(loss)(TOKENS).backward()
    found, added.grad = added.grad, None
    loss(TOKENS).backward()
    assert found is not None and added.grad is not None and found.abs().sum() > 0
    torch.testing.assert_close(found, added.grad)


def stand_in(rows: int, columns: int) -> PackedParameter:
    codes = torch.randint(-5, 6, (rows, columns), generator=torch.Generator().manual_seed(2), dtype=torch.int32)
    return PackedParameter.of(pack(codes, torch.ones(rows)), "w", torch.float32)


def test_what_is_unpacked_is_said_while_compiling() -> None:
    weight = stand_in(6, 4)
    x = torch.randn(6, 4)
    with pytest.warns(UserWarning, match="packed weight w is unpacked to floating point at each call of mul"):
        found = compiled(lambda x: x * weight)(x)
    torch.testing.assert_close(found, x * weight.dequantize())
    found = compiled(lambda x: torch.mm(x, torch.transpose(torch.chunk(weight, 2)[1], 0, 1)))(x)
    torch.testing.assert_close(found, x @ weight.dequantize()[3:].T)  # views by function need no numbers


def test_operators_whose_order_dynamo_loses() -> None:
    """W @ x arrives as (x, W): shapes tell it from x @ W, and where they do not nothing is guessed."""
    weight = stand_in(6, 4)
    dense, x, z = weight.dequantize(), torch.randn(4, 5), torch.randn(5, 4)
    for call in (lambda w: w @ x, lambda w: z @ w.T, lambda w: w @ x[:, 0], lambda w: z[0] @ w.T):
        torch.testing.assert_close(compiled(lambda call=call: call(weight))(), call(dense))
    square, y = stand_in(4, 4), torch.randn(4, 4)
    with pytest.raises(Exception, match=r"torch.matmul\(x, W\)") as caught:
        compiled(lambda y: y @ square.T)(y)
    assert QuantGolfError.__name__ in str(caught.value) or isinstance(caught.value, QuantGolfError)
    run = compiled(lambda y: torch.matmul(y, square.T) + F.linear(y, square) + torch.matmul(square, y.T).T)
    torch.testing.assert_close(run(y), 3 * y @ square.dequantize().T)
    with torch.no_grad():  # with graph breaks allowed, it is left to eager, which knows
        loose = torch.compile(lambda y: y @ square.T, backend="aot_eager")(y)
    torch.testing.assert_close(loose, y @ square.dequantize().T)
