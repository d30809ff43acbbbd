"""The byte contract: never over, refused early, and the nearest size named is one that works."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quantgolf.allocate import Cost, parse_bits
from quantgolf.checkpoint import Checkpoint
from quantgolf.compress import calibrate, compress, refuse_unreachable
from quantgolf.compress.budget import fit
from quantgolf.data import Tokenizer, read_corpus
from quantgolf.errors import BudgetError, QuantGolfError
from quantgolf.types import Choice


class Fake:
    """Candidates whose real bytes differ from the predicted ones by a known amount."""

    def __init__(self, real: dict[tuple[str, int], int]) -> None:
        self.real, self.solved = real, set()

    def solve(self, choices: dict[str, Choice], progress: Any = None) -> dict[str, Any]:
        self.solved.update(choices.items())
        return {name: type("Solved", (), {"size": self.real[name, c.bits]}) for name, c in choices.items()}


def costs(names: str) -> dict[str, dict[Choice, Cost]]:
    return {name: {Choice(bits): Cost(bits * 1000, 4.0**-bits) for bits in range(2, 9)} for name in names}


def bytes_of(real: dict[tuple[str, int], int], extra: int = 100, wobble: int = 0) -> Any:
    """The size of a file as `fit` asks for it."""

    def size(choices: dict[str, Choice]) -> int:
        bits = {name: choice.bits for name, choice in choices.items()}
        return extra + wobble * (bits["a"] % 2) + sum(real[item] for item in bits.items())

    return size


def plain(bits: dict[str, int]) -> dict[str, Choice]:
    return {name: Choice(width) for name, width in bits.items()}


def test_predictions_that_are_too_low_never_lead_over_the_budget() -> None:
    real = {
        (name, bits): int(bits * 1000 * factor) for name, factor in (("a", 1.1), ("b", 1.3)) for bits in range(2, 9)
    }
    fake = Fake(real)
    size = bytes_of(real)
    for limit in range(5000, 20_000, 777):
        plan = fit(fake, costs("ab"), size, limit)  # type: ignore[arg-type]
        assert size(plan.choices) == plan.predicted_bytes <= limit
        best = min(
            (4.0**-a + 4.0**-b for a in range(2, 9) for b in range(2, 9) if size(plain({"a": a, "b": b})) <= limit),
        )
        assert plan.predicted_loss == pytest.approx(best)
    assert len(fake.solved) <= 14


@pytest.mark.parametrize("seed", range(6))
def test_many_predictions_that_are_far_too_low_still_lead_to_a_plan(seed: int) -> None:
    """More choices than rounds, and every one a disappointment."""
    names, generator = "abcdefghijkl", random.Random(seed)
    real = {(name, b): int(b * 1000 * generator.uniform(1.05, 1.6)) for name in names for b in range(2, 9)}
    size = bytes_of(real)
    least = size(plain(dict.fromkeys(names, 2)))
    for limit in (least, least + 500, 60_000, 80_000):
        plan = fit(Fake(real), costs(names), size, limit)  # type: ignore[arg-type]
        assert size(plan.choices) == plan.predicted_bytes <= limit
        assert limit < least + 501 or plan.predicted_loss < len(names) * 4.0**-2 / 4


@pytest.mark.parametrize("wobble", [0, 7, 300])
def test_what_is_predicted_exactly_still_has_to_leave_room_for_the_rest(wobble: int) -> None:
    """Header, steps and kept tensors are learned from the first file, and may differ from plan to plan."""
    exact = {(name, bits): bits * 1000 for name in "ab" for bits in range(2, 9)}
    size = bytes_of(exact, 5000, wobble)
    for limit in range(9500, 22_000, 777):
        plan = fit(Fake(exact), costs("ab"), size, limit)  # type: ignore[arg-type]
        assert size(plan.choices) == plan.predicted_bytes <= limit
        every = [{"a": a, "b": b} for a in range(2, 9) for b in range(2, 9)]
        best = min(4.0 ** -bits["a"] + 4.0 ** -bits["b"] for bits in every if size(plain(bits)) + wobble <= limit)
        assert plan.predicted_loss <= best * (1 + 1e-9)


def test_unreachable_budgets_name_the_smallest_size() -> None:
    real = {(name, bits): bits * 1200 for name in "ab" for bits in range(2, 9)}
    size = bytes_of(real)
    for limit in (1, 4000, 4899):
        with pytest.raises(BudgetError) as caught:
            fit(Fake(real), costs("ab"), size, limit)  # type: ignore[arg-type]
        assert caught.value.nearest == 4900
    assert fit(Fake(real), costs("ab"), size, 4900).bits == {"a": 2, "b": 2}  # type: ignore[arg-type]


@pytest.mark.parametrize("solver", ["rtn", "gptq_lite", "gptq"])
def test_the_nearest_size_works(tiny: Checkpoint, prose: Path, tokenizer: Tokenizer, solver: Any) -> None:
    text = read_corpus(prose, tokenizer)
    stats = calibrate(tiny, text, tokens=2048, length=64)
    with pytest.raises(BudgetError) as caught:
        refuse_unreachable(tiny, 3000, solver=solver, code_bytes=1000)
    nearest = caught.value.nearest
    assert f"give --max-bytes {nearest} or more" in str(caught.value)
    result = compress(tiny, stats, max_bytes=nearest, solver=solver, code_bytes=1000)
    assert nearest * 0.9 < len(result.data) + 1000 <= nearest


def test_budgets_are_refused_before_any_text_is_read(tiny: Checkpoint) -> None:
    class Untouchable:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError("the text was touched")

    with pytest.raises(BudgetError, match="code and what is kept take"):
        compress(tiny, Untouchable(), max_bytes=100)  # type: ignore[arg-type]
    with pytest.raises(BudgetError, match="with 2 bits everywhere"):
        compress(tiny, Untouchable(), max_bytes=100, solver="gptq")  # type: ignore[arg-type]
    with pytest.raises(BudgetError, match="with 8 bits everywhere"):
        compress(tiny, Untouchable(), max_bytes=9000, rules=[("*", 8)])  # type: ignore[arg-type]


@pytest.mark.parametrize("limit", [14_000, 17_321, 25_000, 60_000])
def test_files_keep_to_the_budget_code_included(
    tiny: Checkpoint, prose: Path, tokenizer: Tokenizer, tmp_path: Path, limit: int
) -> None:
    text = read_corpus(prose, tokenizer)
    stats = calibrate(tiny, text, tokens=2048, length=64)
    result = compress(tiny, stats, max_bytes=limit, code_bytes=777, solver="gptq")
    path = tmp_path / "a.qg"
    result.write(path)
    assert path.stat().st_size + 777 <= limit
    assert path.stat().st_size == len(result.data) == result.plan.predicted_bytes
    assert result.bpw == 8 * len(result.data) / tiny.parameters


def test_widths_by_hand_are_taken(tiny: Checkpoint, prose: Path, tokenizer: Tokenizer) -> None:
    text = read_corpus(prose, tokenizer)
    stats = calibrate(tiny, text, tokens=2048, length=64)
    result = compress(tiny, stats, rules=parse_bits("attn.*=6,up.*=4,down.*=5,emb=7"))
    for name, report in result.reports.items():
        expected = 6 if ".attn." in name else 4 if ".up." in name else 5 if ".down." in name else 7
        assert report.bits == result.plan.bits[name] == expected
        assert {t.name: t.blocks[0].bits for t in result.coded.tensors}[name] == expected
    with pytest.raises(QuantGolfError, match="nothing is asked for"):
        compress(tiny, stats)


def test_what_calibration_cannot_use_is_refused(tiny: Checkpoint, prose: Path, tokenizer: Tokenizer) -> None:
    text = read_corpus(prose, tokenizer)
    with pytest.raises(QuantGolfError, match=r"has [\d,]+ tokens, expected at least one window of 1,000,001"):
        calibrate(tiny, text, length=1_000_000)
    with pytest.raises(QuantGolfError, match="calibration of 10 tokens is shorter than one window"):
        calibrate(tiny, text, tokens=10)
    stats = calibrate(tiny, text, tokens=512, length=64)
    foreign = replace(stats, parameters=(replace(stats.parameters[0], name="other"),))
    with pytest.raises(QuantGolfError, match="statistics of other belong to another model"):
        compress(tiny, foreign, rules=[("*", 3)])
