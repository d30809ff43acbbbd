"""Files made of modules by rounding alone, which is enough for whatever reads them."""

import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from quantgolf.blob import pack, write_blob
from quantgolf.checkpoint import describe_model
from quantgolf.data import Corpus
from quantgolf.encode import Entry, Leveled, Quantized, encode_codes, encode_model
from quantgolf.models.golf import Golf, GolfConfig
from quantgolf.solve.trellis import Trellis
from quantgolf.types import Block, CodedGroups, Exponents, Groups

TESTS = Path(__file__).parents[1]
Make = Callable[..., Path]


def golf(**options: Any) -> Golf:
    """A small model of random weights that all matter."""
    model = Golf(GolfConfig(**{"vocab_size": 96, "dim": 32, "layers": 2, "heads": 2, "kv_heads": 1} | options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2, generator=torch.Generator().manual_seed(parameter.numel()))
    return model.eval()


def blocks_of(model: nn.Module) -> dict[str, list[Block]]:
    """The whole of every matrix and each slice of every bank; what golf models only scale with is left out."""
    found = {}
    for name, tensor in model.state_dict().items():
        if tensor.ndim in (2, 3) and min(tensor.shape[-2:]) > 4:
            lead, rows = tensor.ndim - 1, tensor.shape[-2]
            count = tensor.shape[0] if tensor.ndim == 3 else 1
            found[name] = [Block(name, lead, i * rows, (i + 1) * rows) for i in range(count)]
    return found


def rounded(tensor: Tensor, block: Block, levels: bool) -> Quantized | Leveled:
    """A block to 4 bits with a step for each row, or to levels with steps of rows and columns."""
    weight = block.matrix(tensor.float())
    if levels:
        generator = torch.Generator().manual_seed(len(weight))
        row, column = (torch.randint(-24, -12, (n,), generator=generator).short() for n in weight.shape)
        exponents = Exponents(row, column + 16, -8)
        steps = exponents.steps()
        assert steps.column is not None
        return Leveled(block, exponents, (weight / (steps.row[:, None] * steps.column)).round().int())
    row = (weight.abs().amax(1) / 7).half()
    codes = (weight / row[:, None].float()).round().clamp(-7, 7).to(torch.int8)
    return Quantized(block, row, 4, encode_codes(codes))


def by_groups(tensor: Tensor, block: Block, groups: CodedGroups) -> Quantized:
    """A block to 4 bits with a scale and maybe a zero for some neighbouring columns; `base` says that it is a log."""
    weight = block.matrix(tensor.float())
    size = min(groups.size, weight.shape[1])
    parts = weight.split(size, dim=1)
    low = torch.stack([part.amin(1) for part in parts], 1).clamp(max=0)
    high = torch.stack([part.amax(1) for part in parts], 1).clamp(min=0)
    scale = ((high - low) / 15 if groups.zeros else torch.maximum(high, -low) / 7).clamp(min=1e-4)
    scale = scale.half() if groups.base is None else (16 * scale.log2()).round().short()
    made = Groups(scale, None, size)
    if groups.zeros:
        made = Groups(scale, (-8 - low / made.scales()).round().clamp(-8, 7).to(torch.int8), size)
    of = torch.arange(weight.shape[1]) // size
    codes = (weight / made.scales()[:, of]).round() + (0 if made.zero is None else made.zero[:, of])
    return Quantized(block, made, 4, encode_codes(codes.clamp(-8 if groups.zeros else -7, 7).to(torch.int8)))


@pytest.fixture
def made(tmp_path: Path) -> Make:
    """A file of a module: `blocks` by parameter, those of `blocks_of` if None; `aliases` as in `Entry`; of 4 bits with
    a step a row, of levels, or of 4 bits by `groups`."""

    def make(
        model: nn.Module, levels: bool = False, blocks: Mapping[str, list[Block]] | None = None,
        aliases: Mapping[str, tuple[str, ...]] | None = None, groups: CodedGroups | None = None,
    ) -> Path:  # fmt: skip
        chosen, aliases = blocks_of(model) if blocks is None else blocks, aliases or {}
        tied = {name for names in aliases.values() for name in names}

        def coded_as(tensor: Tensor, block: Block) -> Quantized | Leveled:
            return rounded(tensor, block, levels) if groups is None else by_groups(tensor, block, groups)

        entries = [
            Entry(name, t, tuple(coded_as(t, b) for b in chosen.get(name, ())), aliases.get(name, ()))
            for name, t in model.state_dict().items()
            if name not in tied
        ]
        path = tmp_path / "made.qg"
        coded = encode_model(entries, Trellis(1) if levels else None)
        write_blob(path, pack(coded, describe_model(model)), overwrite=True)
        return path

    return make


@pytest.fixture
def corpus() -> Callable[[int], Corpus]:
    """Random tokens of a vocabulary, as text to calibrate on."""

    def draw(vocab: int) -> Corpus:
        tokens = torch.randint(vocab, (1100,), generator=torch.Generator().manual_seed(4))
        return Corpus(tokens, torch.zeros(1100, dtype=torch.int64), np.array([1100]), None, vocab, 0, 0, "utf-8 text")

    return draw


@pytest.fixture(scope="session")
def shared() -> Callable[[str], ModuleType]:
    """What tests of another room share; test files cannot import each other."""

    def read(path: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"runtime_{Path(path).stem}", TESTS / path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module

    return read


@pytest.fixture
def built() -> Callable[..., Golf]:
    return golf
