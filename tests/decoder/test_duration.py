"""How many steps the stand-alone decoder takes, told beforehand, against those that it takes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quantgolf.blob import pack, parse
from quantgolf.decoder import duration, source
from quantgolf.decoder.duration import seconds_of
from quantgolf.encode import Entry, Leveled, encode_model, rans
from quantgolf.solve.trellis import Trellis
from quantgolf.types import Block, CodedModel, Exponents

GOLDEN = sorted((Path(__file__).parents[1] / "blob" / "golden").glob("*_v1.qg"))
MANY = 50_000


def column(restart: int) -> CodedModel:
    """Levels of a matrix of one column: a lane cannot begin within a run of the trellis."""
    steps = Exponents(torch.zeros(2 * MANY).short(), torch.zeros(1).short(), 0)
    part = Leveled(Block("w", 1, 0, 2 * MANY), steps, torch.ones(2 * MANY, 1).int())
    return encode_model([Entry("w", torch.zeros(2 * MANY, 1), (part,))], Trellis(1, restart))


def kept_in_one_lane() -> CodedModel:
    """As a forger would: 50,000 numbers in one lane."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rans, "lanes_for", lambda count: 1)
        values = (torch.arange(MANY) ** 2 % 13 % 5).to(torch.uint8)
        return encode_model([Entry("w", values)], codec="rans")


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Steps of the decoder for a file: of each stream those of its longest lane. None is gone."""
    taken: list[int] = []

    def counted(file: Any, tables: Any, spreads: Any, classes: Any, excess: Any, states: Any, at: Any, ends: Any,
                stride: int) -> Any:  # fmt: skip
        taken.append(int((-(-(ends - at) // stride)).max()))
        return np.full(len(spreads), -127, "i")

    def count(coded: CodedModel) -> int:
        taken.clear()
        with np.errstate(over="ignore"):
            source.load(pack(coded, None))
        return sum(taken)

    monkeypatch.setattr(source, "lanes", counted)
    return count


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_steps_of_golden_files(path: Path, steps: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    coded = parse(path.read_bytes())[1]
    for other in ("SYMBOL", "TABLE", "BLOCK", "BYTE"):
        monkeypatch.setattr(duration, f"SECONDS_A_{other}", 0)
    monkeypatch.setattr(duration, "SECONDS_A_STEP", 1)
    assert seconds_of(coded) == steps(coded)


def test_steps_of_long_lanes(steps: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for other in ("SYMBOL", "TABLE", "BLOCK", "BYTE"):
        monkeypatch.setattr(duration, f"SECONDS_A_{other}", 0)
    monkeypatch.setattr(duration, "SECONDS_A_STEP", 1)
    for coded, expected in ((column(128), 33_408), (column(10 * MANY), 2 * MANY), (kept_in_one_lane(), MANY)):
        assert seconds_of(coded) == steps(coded)
        assert steps(coded) == pytest.approx(expected, rel=0.01)


def test_everything_that_takes_time_is_counted() -> None:
    """Lanes beside each other, blocks and bytes that are no steps."""
    plain = seconds_of(kept_in_one_lane())
    assert plain > MANY * duration.SECONDS_A_STEP
    blocks = encode_model([Entry(f"w{i}", torch.rand(3)) for i in range(1000)])
    assert 1000 * duration.SECONDS_A_BLOCK < seconds_of(blocks) < 1
    noise = encode_model([Entry("w", torch.randint(256, (10**6,)).to(torch.uint8))])
    assert 10**6 * duration.SECONDS_A_BYTE < seconds_of(noise) < 1
    assert seconds_of(encode_model([])) == 0
