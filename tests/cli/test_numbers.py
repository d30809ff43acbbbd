"""Weights next to the largest numbers of their dtype, from `compress` to `decompress`: none comes back infinite."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.usefixtures("one_thread")

SCRIPT = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb, self.head = nn.Embedding(256, 16), nn.Linear(32, 256, bias=False)
        self.large = nn.Linear(16, 32, bias=False)

    def forward(self, tokens):
        x = self.large(self.emb(tokens).double().float() * SCALE)
        return self.head(torch.tanh(x))


def build():
    return Net()
"""
# What brings the products with weights of that size back to about 1.
SCALES = {torch.float16: 2.0**-16, torch.float32: 2.0**-60}
LARGEST = {torch.float16: 65504.0, torch.float32: 2.0**60}


def checkpoint(folder: Path, dtype: torch.dtype, prose: Path) -> list[object]:
    generator = torch.Generator().manual_seed(1)
    state = {"emb.weight": torch.randn(256, 16, generator=generator) * 0.3,
             "head.weight": torch.randn(256, 32, generator=generator) * 0.3,
             "large.weight": torch.randn(32, 16, generator=generator).sign()
             * (1 - 0.02 * torch.rand(32, 16, generator=generator)) * LARGEST[dtype]}  # fmt: skip
    state["large.weight"][3, 4] = LARGEST[dtype]
    save_file({name: value.to(dtype) for name, value in state.items()}, folder / "model.safetensors")
    (folder / "net.py").write_text(SCRIPT.replace("SCALE", repr(SCALES[dtype])))
    text = ["--tokenizer", "bytes", "--data", prose, "--length", 64, "--tokens", 1024, "--no-bos"]
    return ["model.safetensors", "--model", "net.py:build", *text]


@pytest.mark.parametrize(
    ("dtype", "asked", "close"),
    [
        (torch.float16, ["--solver", "rtn", "--bits", "*=8"], 0.01),
        (torch.float16, ["--solver", "rtn", "--bits", "*=2", "--asymmetric"], 0.6),
        (torch.float16, ["--solver", "gptq_lite", "--bits", "*=8", "--scales", "log"], 0.06),
        (torch.float16, ["--solver", "gptq", "--bits", "*=8", "--group-size", "5", "--asymmetric"], 0.2),
        (torch.float16, ["--solver", "slope", "--bpw", "9", "--tune-steps", "0"], 0.05),
        (torch.float16, ["--solver", "slope", "--bpw", "4", "--tune-steps", "2"], 0.3),
        (torch.float32, ["--solver", "gptq", "--bits", "*=8", "--scales", "log"], 0.06),
    ],
)
def test_what_is_restored_is_finite_in_its_own_dtype(
    ran: Callable[..., Any], tmp_path: Path, prose: Path, dtype: torch.dtype, asked: list[str], close: float
) -> None:
    ran("compress", *checkpoint(tmp_path, dtype, prose), *asked, "--out", "a.qg")
    ran("decompress", "a.qg", "--out", "b.safetensors")
    found, before = (load_file(tmp_path / name) for name in ("b.safetensors", "model.safetensors"))
    for name, tensor in found.items():
        assert tensor.dtype == dtype and tensor.isfinite().all(), name
    error = (found["large.weight"].double() - before["large.weight"].double()).abs() / LARGEST[dtype]
    assert error.median() < close and error.max() < 4 * close + 0.1
