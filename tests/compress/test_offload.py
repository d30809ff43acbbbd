"""Statistics in groups of layers, a pass over the text each: the same to the last bit, within the limit."""

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import quantgolf.compress.offload as offload
import quantgolf.compress.rehearse as rehearsal
from quantgolf.calibrate import collect, survey
from quantgolf.calibrate.store import read_calibration, text_digest
from quantgolf.checkpoint import Checkpoint
from quantgolf.compress import calibrate_to, compress
from quantgolf.compress.matrices import Matrices
from quantgolf.compress.offload import plan_groups, sizes_by_parameter
from quantgolf.compress.rehearse import rehearse, statistics_bytes
from quantgolf.errors import QuantGolfError
from quantgolf.models.golf import Golf, GolfConfig
from quantgolf.types import Calibration

HELD = 10**9  # what the process is said to take, so that limits mean the same everywhere
SETTINGS: dict[str, object] = {"seed": 3, "tokens": 96, "length": 12, "context": "dense"}


class Experts(nn.Module):
    """Tokens below 8 go to one expert and the others to another: the first window knows only of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(13, 16)
        self.low, self.high = nn.Linear(16, 16, bias=False), nn.Linear(16, 32, bias=False)
        self.back = nn.Parameter(torch.empty(2, 16, 32))
        self.head = nn.Linear(16, 13, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.emb(tokens)
        flat, mine = x.flatten(0, 1), (tokens >= 8).flatten()
        y = flat.clone()
        if bool((~mine).any()):
            y[~mine] = F.linear(F.pad(torch.tanh(self.low(flat[~mine])), (0, 16)), self.back[0])
        if bool(mine.any()):
            y[mine] = F.linear(torch.tanh(self.high(flat[mine])), self.back[1])
        return self.head(y.view_as(x))


def opened(model: nn.Module) -> Checkpoint:
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(index))
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return Checkpoint(model.eval(), tensors, {}, None)


def golf(**options: Any) -> Checkpoint:
    return opened(Golf(GolfConfig(vocab_size=13, dim=16, layers=3, heads=2, kv_heads=1, mlp_mult=2, **options)))


def batches(least: int = 0, most: int = 13) -> list[tuple[Tensor, Tensor]]:
    streams = torch.randint(least, most, (4, 2, 13), generator=torch.Generator().manual_seed(least))
    return [(stream[:, :-1], stream[:, 1:]) for stream in streams]


def late_experts() -> list[tuple[Tensor, Tensor]]:
    return [*batches(0, 8), *batches(0, 13)]


@pytest.fixture(autouse=True)
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread, because these models are so small that two wait for each other."""
    monkeypatch.setattr(offload, "resident_bytes", lambda: HELD)
    monkeypatch.setattr(rehearsal, "growth_of", lambda work: [work(), 0][1])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def needs(source: Checkpoint, text: list[tuple[Tensor, Tensor]]) -> dict[str, int]:
    seen = survey(source.module, text[0][0][:1])
    sizes = sizes_by_parameter(Matrices(source, seen.blocks), seen)
    return {name: statistics_bytes(parts) for name, parts in sizes.items()}


def limit_for(source: Checkpoint, text: list[tuple[Tensor, Tensor]], share: float) -> int:
    """A memory that leaves room for the largest parameter's statistics and a share of the others'."""
    wanted, seen = needs(source, text), survey(source.module, text[0][0][:1])
    room = max(wanted.values()) + share * (sum(wanted.values()) - max(wanted.values()))
    return int((HELD + rehearse(source.module, seen, text[0]).activation_bytes + room) / (1 - offload.SPARE)) + 2


def assert_equal(found: Calibration, expected: Calibration) -> None:
    assert list(found.stats) == list(expected.stats)
    assert (found.parameters, found.blocks) == (expected.parameters, expected.blocks)
    assert (found.tokens, found.labels, found.outputs) == (expected.tokens, expected.labels, expected.outputs)
    for name, stats in expected.stats.items():
        for use, twin in zip(stats.uses, found.stats[name].uses, strict=True):
            assert (use.kind, use.visits) == (twin.kind, twin.visits)
            assert torch.equal(use.row, twin.row) and torch.equal(use.column, twin.column), name
            assert (use.outputs is None) == (twin.outputs is None)
            assert use.outputs is None or (twin.outputs is not None and torch.equal(use.outputs, twin.outputs)), name


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(golf, id="plain"),
        pytest.param(lambda: golf(banks=True, loop_first=1, loop_last=2, loop_times=2, gates=True), id="banks, looped"),
        pytest.param(lambda: golf(tied=False), id="untied"),
        pytest.param(lambda: opened(Experts()), id="experts"),
    ],
)
@pytest.mark.parametrize("share", [0, 0.4, 1])
def test_several_passes_give_the_statistics_of_one(tmp_path: Path, source: Any, share: float) -> None:
    checkpoint, text, seen = source(), late_experts(), []
    memory = limit_for(checkpoint, text, share)
    passes = len(plan_groups(checkpoint, text, memory))
    found = calibrate_to(
        tmp_path / "stats", checkpoint, text, SETTINGS, memory=memory, progress=lambda *step: seen.append(step)
    )
    expected = collect(checkpoint.module, text, seed=3)
    assert_equal(found, expected)
    late = isinstance(checkpoint.module, Experts)
    assert passes - late == 1 if share == 1 else passes - late > 1
    tokens = passes * sum(inputs.numel() for inputs, _ in text)
    assert seen[-1] == ("calibrating", tokens, tokens)
    assert len(list((tmp_path / "stats").glob("*.safetensors"))) == passes
    whole = calibrate_to(tmp_path / "whole", checkpoint, text, SETTINGS)
    assert_equal(whole, expected)
    if share == 0:
        files = [compress(checkpoint, stats, rules=[("*", 4)]).data for stats in (found, expected)]
        assert files[0] == files[1]


def test_an_expert_that_comes_late_is_collected_all_the_same(tmp_path: Path) -> None:
    checkpoint, text = opened(Experts()), late_experts()
    groups = plan_groups(checkpoint, text, limit_for(checkpoint, text, 0))
    assert groups[-1] == ["high.weight"] and list(chain(*groups)) == [
        "back", "emb.weight", "low.weight", "head.weight", "high.weight",
    ]  # fmt: skip
    found = calibrate_to(tmp_path / "stats", checkpoint, text, SETTINGS, memory=limit_for(checkpoint, text, 0))
    assert "high.weight" in found.stats and {"back.0", "back.1"} <= set(found.stats)
    assert {report.name: report.status for report in found.parameters} == dict.fromkeys(checkpoint.tensors, "captured")


@pytest.mark.parametrize("share", [0, 0.2, 0.4, 0.7, 0.99, 1, 5])
@pytest.mark.parametrize("banks", [False, True])
def test_groups_are_the_parameters_in_order_and_keep_to_the_limit(share: float, banks: bool) -> None:
    source, text = golf(banks=banks), batches()
    wanted, memory = needs(source, text), limit_for(source, text, share)
    groups = plan_groups(source, text, memory)
    assert list(chain(*groups)) == list(wanted) == [name for name, tensor in source.tensors.items() if name in wanted]
    room = max(wanted.values()) + share * (sum(wanted.values()) - max(wanted.values())) + 4
    sums = [sum(wanted[name] for name in group) for group in groups]
    assert max(sums) <= room and all(groups)
    assert all(first + wanted[following[0]] > room - 4 for first, following in zip(sums, groups[1:], strict=False))
    assert (len(groups) == 1) == (share >= 1)


def test_what_is_not_followed_is_worth_no_pass(tmp_path: Path) -> None:
    """Mixes and skips only scale; a model may have nothing else."""
    source, text = golf(gates=True), batches()
    (group,) = plan_groups(source, text, limit_for(source, text, 1))
    assert group[-3:] == ["blocks.0.mix", "blocks.1.mix", "blocks.2.mix"]

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.empty(13, 13))

        def forward(self, tokens: Tensor) -> Tensor:
            return F.one_hot(tokens, 13) * self.table.sum()

    checkpoint = opened(Table())
    assert plan_groups(checkpoint, text, 10**10) == [["table"]]
    found = calibrate_to(tmp_path / "stats", checkpoint, text, SETTINGS, memory=10**10)
    assert not found.stats and "used only in sum" in found.parameters[0].why
    with pytest.raises(QuantGolfError, match="calibration saw no matrix that can be quantized"):
        compress(checkpoint, found, rules=[("*", 4)])


@pytest.mark.parametrize("source", [golf, lambda: golf(banks=True), lambda: opened(Experts())])
def test_a_limit_too_small_names_one_that_works(tmp_path: Path, source: Any) -> None:
    checkpoint, text = source(), late_experts()
    with pytest.raises(QuantGolfError, match=r"a memory of 1,000,000,000 bytes is too small: .*or a smaller") as caught:
        calibrate_to(tmp_path / "stats", checkpoint, text, SETTINGS, memory=10**9)
    assert list(tmp_path.iterdir()) == [] and "\n" not in str(caught.value)
    (enough,) = re.findall(r"--memory (\d+)", str(caught.value))
    wanted = needs(checkpoint, text)
    assert max(wanted, key=wanted.__getitem__) in str(caught.value)
    assert set(chain(*plan_groups(checkpoint, text, int(enough)))) >= set(wanted)
    assert int(enough) < 1.1 * limit_for(checkpoint, text, 0)


def test_what_the_statistics_are_of_is_kept_with_them(tmp_path: Path) -> None:
    checkpoint, text = golf(), batches()
    calibrate_to(tmp_path / "stats", checkpoint, text, SETTINGS)
    origin = read_calibration(tmp_path / "stats", checkpoint.fingerprint)[1]
    assert (origin.model, origin.text, origin.settings) == (checkpoint.fingerprint, text_digest(text), SETTINGS)
    other = calibrate_to(tmp_path / "other", checkpoint, text, {**SETTINGS, "seed": 4})
    use = other.stats["emb.weight"].uses[1]
    assert not torch.equal(use.row, collect(checkpoint.module, text, seed=3).stats["emb.weight"].uses[1].row)


def test_a_pass_that_fails_leaves_nothing(tmp_path: Path) -> None:
    checkpoint, text = opened(Experts()), late_experts()
    calls = 0

    def failing(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        nonlocal calls
        calls += torch.is_grad_enabled()
        return output * float("nan") if calls > len(text) else output

    checkpoint.module.head.register_forward_hook(failing)
    with pytest.raises(QuantGolfError, match="not all finite"):
        calibrate_to(tmp_path / "stats", checkpoint, text, SETTINGS, memory=limit_for(checkpoint, text, 0))
    assert calls == len(text) + 1 and list(tmp_path.iterdir()) == []
    (tmp_path / "stats").mkdir()
    with pytest.raises(QuantGolfError, match="exists already"):
        calibrate_to(tmp_path / "stats", checkpoint, text, SETTINGS)
    assert calls == len(text) + 1, "the name was looked at after the work"
