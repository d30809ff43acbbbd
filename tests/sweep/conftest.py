"""What the tests of sweeps share: a text to calibrate on and one to measure on."""

from pathlib import Path

import pytest

from quantgolf.data import Corpus, Tokenizer, corpus_from_texts


@pytest.fixture
def texts(prose: Path, tokenizer: Tokenizer) -> tuple[Corpus, Corpus]:
    lines = prose.read_text(encoding="utf-8").splitlines()
    half = len(lines) // 2
    return tuple(corpus_from_texts(part, tokenizer, max_tokens=600) for part in (lines[:half], lines[half:]))  # type: ignore[return-value]
