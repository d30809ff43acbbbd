"""The guard: what is written is the better of two files on text that neither has seen, and a line says which."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from quantgolf.checkpoint import Checkpoint
from quantgolf.compress import Compressed, HeldOut, calibrate, compress, guard, split_calibration
from quantgolf.compress.slope import OneSlope
from quantgolf.data import Corpus, Tokenizer, read_corpus
from quantgolf.errors import QuantGolfError
from quantgolf.evaluate import evaluate_against
from quantgolf.ranks import Ranks
from quantgolf.types import Calibration


@pytest.fixture
def text(prose: Path, tokenizer: Tokenizer) -> Corpus:
    return read_corpus(prose, tokenizer)


@pytest.fixture
def learned(tiny: Checkpoint, text: Corpus) -> tuple[Calibration, HeldOut]:
    learn, held = split_calibration(text, 2048, 2048, length=64)
    return calibrate(tiny, learn, tokens=2048, length=64), HeldOut(held, 64)


def kl(result: Compressed, source: Checkpoint, held: HeldOut) -> float:
    found, _ = evaluate_against(result.module(), source.module, held.text, length=held.length)
    assert found.kl_bpb is not None
    return found.kl_bpb


@pytest.mark.parametrize("limit", [14_000, 23_000])
def test_one_slope_is_compared_with_the_widest_width_that_fits(
    tiny: Checkpoint, learned: tuple[Calibration, HeldOut], limit: int
) -> None:
    stats, held = learned
    result = compress(tiny, stats, max_bytes=limit + 777, code_bytes=777, held_out=held)
    assert result.data == compress(tiny, stats, max_bytes=limit + 777, code_bytes=777, guard=False).data
    verdict = result.guard
    assert verdict is not None and verdict.chosen == verdict.solver == "slope" and verdict.uniform_bits is not None
    plain = compress(tiny, stats, rules=[("*", verdict.uniform_bits)])
    assert len(plain.data) == verdict.uniform_bytes <= limit
    assert len(compress(tiny, stats, rules=[("*", verdict.uniform_bits + 1)]).data) > limit
    assert verdict.uniform_kl == pytest.approx(kl(plain, tiny, held)) and verdict.kl == pytest.approx(
        kl(result, tiny, held)
    )
    assert result.held_out is not None and result.held_out.kl == verdict.kl < verdict.uniform_kl
    assert "guard: slope is kept: KL " in verdict.line() and f"{verdict.uniform_bits} bits everywhere" in verdict.line()


def spoilt(monkeypatch: pytest.MonkeyPatch) -> None:
    """One slope solved for a limit that leaves its weights next to nothing."""
    within = OneSlope.within
    monkeypatch.setattr(OneSlope, "within", lambda self, limit, tuning=None: within(self, 5000 + self.code_bytes))


def test_a_worse_result_is_replaced(
    tiny: Checkpoint, learned: tuple[Calibration, HeldOut], monkeypatch: pytest.MonkeyPatch
) -> None:
    stats, held = learned
    spoilt(monkeypatch)
    result = compress(tiny, stats, max_bytes=18_000, held_out=held)
    verdict = result.guard
    assert verdict is not None and verdict.chosen == "uniform" and set(result.plan.bits.values()) == {3}
    assert result.data == compress(tiny, stats, rules=[("*", 3)]).data
    assert verdict.uniform_kl is not None and verdict.uniform_kl < verdict.kl
    assert result.held_out is not None and result.held_out.kl == verdict.uniform_kl == pytest.approx(
        kl(result, tiny, held)
    )  # fmt: skip
    assert verdict.line().startswith("guard: gptq with 3 bits everywhere (") and "not slope" in verdict.line()
    unguarded = compress(tiny, stats, max_bytes=18_000, held_out=held, guard=False)
    assert len(unguarded.data) <= 5000 and unguarded.guard is None and unguarded.held_out is None


def test_a_promise_of_loss_binds_the_guard_too(
    tiny: Checkpoint, learned: tuple[Calibration, HeldOut], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan of less KL whose loss is above what was promised is not written."""
    stats, held = learned
    judged = guard._judged

    def flattering(result: Compressed, *rest: Any) -> Any:
        if result.plan.bits:
            return replace(judged(result, *rest), kl=0.0, dbpb=9.0)
        return replace(judged(result, *rest), dbpb=1000 / len(result.data))

    monkeypatch.setattr(guard, "_judged", flattering)
    promised = compress(tiny, stats, max_dbpb=0.05, held_out=held)
    assert promised.guard is not None and promised.guard.uniform_kl == 0 and promised.guard.chosen == "slope"
    assert promised.held_out is not None and promised.held_out.dbpb <= 0.05
    limited = compress(tiny, stats, max_bytes=20_000, held_out=held)
    assert limited.guard is not None and limited.guard.chosen == "uniform"


def test_where_no_width_fits_there_is_nothing_to_compare(
    tiny: Checkpoint, learned: tuple[Calibration, HeldOut]
) -> None:
    stats, held = learned
    result = compress(tiny, stats, max_bytes=8000, held_out=held)
    assert result.guard is not None and result.guard.uniform_bits is None
    assert "no width everywhere fits" in result.guard.line()


def test_fixed_widths_are_guarded_by_their_own_solver(tiny: Checkpoint, learned: tuple[Calibration, HeldOut]) -> None:
    stats, held = learned
    result = compress(tiny, stats, max_bytes=18_000, held_out=held, solver="rtn")
    assert result.guard is not None and result.guard.uniform_solver == "rtn" and result.guard.uniform_bits == 3
    narrowest = compress(tiny, stats, rules=[("*", 2)])
    same = compress(tiny, stats, max_bytes=len(narrowest.data), held_out=held, solver="gptq")
    assert same.data == narrowest.data and same.guard is not None and same.guard.chosen == "gptq"
    assert same.guard.uniform_kl == same.guard.kl


def test_ranks_all_take_what_the_first_measured(tiny: Checkpoint, learned: tuple[Calibration, HeldOut]) -> None:
    """The other ranks do not measure: their number could differ in its last bit and with it what they write."""

    class Second(Ranks):
        def spread(self, costs: Any, work: Any, done: Any = None) -> Any:
            if costs == [1.0]:
                asked.append(work)
                return [judged]
            return super().spread(costs, work, done)

    stats, held = learned
    first = compress(tiny, stats, max_bytes=18_000, held_out=held)
    assert first.held_out is not None
    judged, asked = replace(first.held_out, kl=1.5), list[Any]()
    second = compress(tiny, stats, max_bytes=18_000, held_out=held, ranks=Second())
    assert second.guard is not None and (second.guard.kl, second.guard.uniform_kl) == (1.5, 1.5) and len(asked) == 2
    assert second.guard.chosen == "slope" and second.data == first.data


def test_text_given_whole_is_divided_and_notes_say_when_it_cannot_be(tiny: Checkpoint, text: Corpus) -> None:
    result = compress(tiny, text, max_bytes=18_000, solver="rtn")
    assert result.guard is not None and result.held_out is not None and not result.notes
    assert result.held_out.tokens == len(text.tokens) // 4 - 1  # shorter than what would be learned from alone
    stats = calibrate(tiny, text, tokens=2048, length=64)
    assert (
        compress(tiny, stats, max_bytes=18_000, solver="rtn")
        .notes[0]
        .startswith("no guard, no tuning: statistics alone come without text")
    )
    short = replace(text, tokens=text.tokens[:1000], document=text.document[:1000])
    blind = compress(tiny, short, max_bytes=18_000, solver="rtn")
    assert blind.guard is None and blind.notes[0].startswith("no guard, no tuning: calibration text has 1,000")
    assert compress(tiny, short, max_bytes=18_000, solver="rtn", guard=False).notes == ()
    for source, message in ((stats, "statistics alone"), (short, "1,000 tokens, expected at least 2,052")):
        with pytest.raises(QuantGolfError, match=f"--guard compares on held-out text: .*{message}"):
            compress(tiny, source, max_bytes=18_000, solver="rtn", guard=True)
    with pytest.raises(QuantGolfError, match="expected no widths by hand; leave --guard out"):
        compress(tiny, stats, rules=[("*", 3)], guard=True)


class Plain(nn.Module):
    """A model that no card describes."""

    def __init__(self, losses: bool = False) -> None:
        super().__init__()
        self.emb, self.head, self.losses = nn.Embedding(64, 32), nn.Linear(32, 64, bias=False), losses

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.emb(tokens))


class LossOnly(Plain):
    """Gives the loss and nothing to tell it apart from another model's by."""

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:  # type: ignore[override]
        logits = super().forward(tokens)
        return -logits.log_softmax(-1).gather(-1, targets[..., None]).mean()


class Unlike(Plain):
    """Holds what cannot be copied."""

    def __deepcopy__(self, memo: Any) -> "Unlike":
        raise TypeError("cannot pickle a connection")


def opened(kind: type[Plain]) -> Checkpoint:
    torch.manual_seed(3)
    model = kind().eval()
    return Checkpoint(model, {name: t.half() for name, t in model.state_dict().items()}, {}, None)


def noise(count: int = 4000) -> Corpus:
    tokens = torch.randint(64, (count,), generator=torch.Generator().manual_seed(4))
    return Corpus(tokens, torch.zeros(count, dtype=torch.int64), np.array([count]), None, 64, 0, 0, "utf-8 text")


def test_models_of_any_kind_are_measured_and_left_alone() -> None:
    source = opened(Plain)
    before = copy.deepcopy(source.module.state_dict())
    result = compress(source, noise(), max_bytes=2500)
    assert result.guard is not None and 0 < result.guard.kl < 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in source.module.state_dict().items())


def test_models_that_cannot_be_measured() -> None:
    note = compress(opened(LossOnly), noise(), max_bytes=2500).notes[0]
    assert note == "no guard, no tuning: the model gives its loss and no logits, which KL needs"
    with pytest.raises(QuantGolfError, match="--max-kl is kept on held-out text: the model gives its loss"):
        compress(opened(LossOnly), noise(), max_kl=0.1)
    with pytest.raises(QuantGolfError, match=r"cannot be copied \(TypeError: .*; mend it or pass --no-guard"):
        compress(opened(Unlike), noise(), max_bytes=2500)
    assert compress(opened(Unlike), noise(), max_bytes=2500, guard=False).guard is None
