"""Packed models on a GPU: through the kernels, and a decode step in a CUDA graph."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from quantgolf.models.golf import Golf
from quantgolf.runtime import load

Make = Callable[..., Path]
TOKENS = torch.arange(2 * 20).reshape(2, 20) % 90
GOLF: list[dict[str, Any]] = [{}, {"banks": True}, {"tied": False, "gates": True}]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("levels", [False, True], ids=["widths", "levels"])
@pytest.mark.parametrize("options", GOLF, ids=["plain", "banks", "untied and gated"])
def test_golf_models_on_a_gpu(made: Make, built: Callable[..., Golf], options: dict[str, Any], levels: bool) -> None:
    path = made(built(**options), levels)
    exact = load(path)(TOKENS).detach()
    for form in (None, True):
        for dtype, most in ((torch.float32, 1e-3), (None, 0.05)):
            model = load(path, device="cuda", materialize=form, dtype=dtype)
            assert isinstance(model.emb, nn.Embedding) == bool(form)
            with torch.no_grad():
                found = model(TOKENS.cuda()).cpu()
            assert float((found - exact).norm() / exact.norm()) < most


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("options", GOLF[:2], ids=["plain", "banks"])
def test_a_decode_step_is_captured_in_a_graph(made: Make, built: Callable[..., Golf], options: Any) -> None:
    """One token through the whole model, replayed on other tokens."""
    model = load(made(built(**options), levels=True), device="cuda")
    token = torch.zeros(1, 1, dtype=torch.int64, device="cuda")
    with torch.no_grad():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                model(token)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = model(token)
        for each in (5, 77):
            token.fill_(each)
            graph.replay()
            assert torch.equal(found, model(token))
