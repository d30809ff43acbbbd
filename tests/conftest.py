"""What several rooms' tests share: the demo model's statistics, and a model small enough to do anything with."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers are as many as cores: with more threads than that they wait for one another. Before torch is imported,
    # and for the processes that tests start.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from safetensors.torch import save_file

from quantgolf.checkpoint import Checkpoint, open_checkpoint, read_demo
from quantgolf.cli.inputs import Part, demo_texts
from quantgolf.compress import calibrate
from quantgolf.data import Corpus, Tokenizer, corpus_from_texts
from quantgolf.models.golf import Golf, GolfConfig
from quantgolf.types import Calibration, WeightStats

TINY = GolfConfig(vocab_size=1024, dim=32, layers=2, heads=2, kv_heads=1, mlp_mult=2)


@dataclass(frozen=True)
class DemoCase:
    """The demo model, calibrated, with text to measure on."""

    source: Checkpoint
    calibration: Calibration
    text: Corpus
    tokenizer: Tokenizer

    @property
    def stats(self) -> Mapping[str, WeightStats]:
        return self.calibration.stats


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Models of tests are so small that threads only wait for each other: 15 s a test, not 0.2, on busy cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def demo() -> DemoCase:
    tokenizer, texts = Tokenizer.load(read_demo().tokenizer), demo_texts()
    source = open_checkpoint(read_demo().checkpoint, read_demo().card_path)
    learn = corpus_from_texts(texts.parts[Part.calibration], tokenizer, max_tokens=17_000)
    text = corpus_from_texts(texts.parts[Part.validation], tokenizer, max_tokens=24_000)
    return DemoCase(source, calibrate(source, learn, tokens=16_384), text, tokenizer)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(read_demo().tokenizer)


@pytest.fixture
def tiny_path(tmp_path: Path) -> Path:
    """An untrained model's checkpoint; its card lies beside it as card.json."""
    path = tmp_path / "tiny.safetensors"
    save_file({name: value.half() for name, value in tiny_model().state_dict().items()}, path)
    (tmp_path / "card.json").write_text('{"family": "golf", "config": {"vocab_size": 1024, "dim": 32, "layers": 2, '
                                        '"heads": 2, "kv_heads": 1, "mlp_mult": 2}}')  # fmt: skip
    return path


@pytest.fixture
def tiny(tiny_path: Path) -> Checkpoint:
    return open_checkpoint(tiny_path, tiny_path.parent)


def tiny_model() -> Golf:
    """Random weights that all matter: the projections that training starts at zero are drawn too."""
    model = Golf(TINY)
    generator = torch.Generator().manual_seed(3)
    model.initialise(generator)
    with torch.no_grad():
        for block in model.blocks:
            for projection in (block.attn.o, block.down):
                projection.weight.normal_(0, 0.1, generator=generator)
        model.emb.weight.normal_(0, 0.3, generator=generator)
    return model.eval()


@pytest.fixture
def prose(tmp_path: Path) -> Path:
    """Text enough to calibrate on: numbered sentences, a blank line after every third."""
    path = tmp_path / "prose.txt"
    lines = [f"Sentence {i} says that {i * i} is the square of {i}.{chr(10) * (1 + (i % 3 == 0))}" for i in range(400)]
    path.write_text("".join(lines), encoding="utf-8")
    return path
