"""What a dry run predicts, against what then happens."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from quantgolf.allocate import parse_bits
from quantgolf.calibrate import collect
from quantgolf.checkpoint import Checkpoint
from quantgolf.compress import DryRun, batches_of, calibrate, compress, dry_run
from quantgolf.compress.memory import resident_bytes
from quantgolf.compress.rehearse import statistics_bytes
from quantgolf.data import Corpus, Tokenizer, read_corpus
from quantgolf.errors import BudgetError, QuantGolfError
from quantgolf.types import Calibration

pytestmark = pytest.mark.usefixtures("one_thread")

CLOSE = 0.03
TOKENS, LENGTH = 2048, 64


@pytest.fixture
def text(prose: Path, tokenizer: Tokenizer) -> Corpus:
    return read_corpus(prose, tokenizer)


def predict(source: Checkpoint, text: Corpus, **options: Any) -> DryRun:
    batches = batches_of(text, tokens=TOKENS, length=LENGTH)
    return dry_run(source, text, batches, length=LENGTH, **options)


def refuse_nonsense(found: DryRun, source: Checkpoint, calibration: Calibration) -> None:
    sizes = [
        (len(stats.uses[0].row), len(stats.uses[0].column))
        for stats in (calibration.stats[n] for n in calibration.stats)
    ]
    assert found.memory_bytes > resident_bytes() / 2 + statistics_bytes(sizes) / 2
    assert found.available_bytes > resident_bytes() / 2
    assert 0 < found.calibrate_seconds < 600 and 0 < found.solve_seconds < 600
    assert found.smallest_bytes <= found.file_bytes
    assert found.bpw == pytest.approx(8 * found.file_bytes / source.parameters)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"max_bytes": 17_000, "solver": "gptq"}, id="narrow"),
        pytest.param({"max_bytes": 30_000, "solver": "gptq"}, id="wide"),
        pytest.param({"max_bytes": 17_000, "code_bytes": 2_000, "solver": "gptq"}, id="with code"),
        pytest.param({"max_bytes": 17_000}, id="one slope"),
        pytest.param({"max_bytes": 500_000, "code_bytes": 2_000}, id="one slope, more than has a use"),
        pytest.param({"rules": parse_bits("attn.*=6,up.*=4,down.*=5,emb=3")}, id="by hand"),
        pytest.param({"rules": parse_bits("*=2")}, id="by hand, smallest"),
        pytest.param({"rules": parse_bits("*=3"), "max_bytes": 30_000}, id="by hand within a budget"),
        pytest.param({"max_bytes": 20_000, "solver": "rtn"}, id="rtn"),
    ],
)
def test_bytes_of_an_untrained_model(tiny: Checkpoint, text: Corpus, options: dict[str, Any]) -> None:
    found, calibration = predict(tiny, text, **options), calibrate(tiny, text, tokens=TOKENS, length=LENGTH)
    real = compress(tiny, calibration, **options)
    assert found.file_bytes == pytest.approx(len(real.data), rel=CLOSE)
    assert found.tokens == TOKENS and found.batches == 1
    refuse_nonsense(found, tiny, calibration)


@pytest.mark.parametrize("options", [{"max_bytes": 700_000}, {"max_bytes": 1_100_000}, {"rules": [("*", 3)]}])
def test_bytes_of_a_trained_model(demo: Any, options: dict[str, Any]) -> None:
    limit = options.get("max_bytes")
    found = predict(demo.source, demo.text, **options)
    real = compress(demo.source, demo.calibration, solver="gptq_lite", **options)
    assert found.file_bytes == pytest.approx(len(real.data), rel=CLOSE)
    assert limit is None or found.file_bytes <= limit
    refuse_nonsense(found, demo.source, demo.calibration)


def test_the_smallest_file_is_predicted(tiny: Checkpoint, text: Corpus) -> None:
    smallest = len(compress(tiny, calibrate(tiny, text, tokens=TOKENS, length=LENGTH), rules=[("*", 2)]).data)
    found = predict(tiny, text, max_bytes=30_000, solver="gptq")
    assert found.smallest_bytes == pytest.approx(smallest, rel=CLOSE)


def test_the_smallest_file_of_one_slope_is_bounded_below(tiny: Checkpoint, text: Corpus) -> None:
    predicted = predict(tiny, text, max_bytes=30_000).smallest_bytes
    with pytest.raises(BudgetError, match="next to no bits") as caught:
        compress(tiny, calibrate(tiny, text, tokens=TOKENS, length=LENGTH), max_bytes=predicted)
    assert caught.value.nearest / 2 < predicted < caught.value.nearest
    with pytest.raises(BudgetError, match="next to no bits"):
        predict(tiny, text, max_bytes=predicted - 1)


def test_a_guard_takes_time(tiny: Checkpoint, text: Corpus) -> None:
    """Ten million tokens take longer than whatever two measurements of the rest differ by."""
    alone = predict(tiny, text, max_bytes=30_000).solve_seconds
    assert predict(tiny, text, max_bytes=30_000, judged=10**7).solve_seconds > alone + 10


@pytest.mark.parametrize(
    "options",
    [
        {"max_bytes": 5_000, "solver": "gptq"},
        {"max_bytes": 20_000, "code_bytes": 15_000, "solver": "gptq"},
        {"max_bytes": 20_000, "rules": [("*", 8)]},
    ],
)
def test_budgets_that_cannot_be_met_are_refused(tiny: Checkpoint, text: Corpus, options: dict[str, Any]) -> None:
    with pytest.raises(BudgetError, match="cannot be met: file and code would take about") as caught:
        predict(tiny, text, **options)
    assert caught.value.exit_code == 3
    nearest = caught.value.nearest
    assert options["max_bytes"] < nearest
    stats = calibrate(tiny, text, tokens=TOKENS, length=LENGTH)
    with pytest.raises(BudgetError):
        compress(tiny, stats, **{**options, "max_bytes": int(nearest * (1 - CLOSE))})
    compress(tiny, stats, **{**options, "max_bytes": int(nearest * (1 + CLOSE))})


def test_neither_budget_nor_widths_is_refused_as_compress_does(tiny: Checkpoint, text: Corpus) -> None:
    for attempt in (lambda: predict(tiny, text), lambda: compress(tiny, text)):
        with pytest.raises(QuantGolfError, match="nothing is asked for"):
            attempt()
    with pytest.raises(QuantGolfError, match="nothing decides no weight"):
        predict(tiny, text, rules=[("nothing", 3), ("*", 4)])


def test_statistics_are_in_the_predicted_memory(text: Corpus, tiny: Checkpoint) -> None:
    """A model of the same cost but for columns twice as many asks for the difference."""

    class Wide(nn.Module):
        def __init__(self, columns: int) -> None:
            super().__init__()
            self.emb, self.head = nn.Embedding(1024, 16), nn.Linear(columns, 1024, bias=False)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.head(self.emb(tokens).repeat(1, 1, self.head.in_features // 16))

    found = {}
    for columns in (256, 2048):
        model = Wide(columns)
        source = Checkpoint(model, dict(model.state_dict()), {}, None)
        found[columns] = predict(source, text, rules=[("*", 3)]).memory_bytes
    difference = statistics_bytes([(1024, 2048)]) - statistics_bytes([(1024, 256)])
    assert found[2048] - found[256] > difference / 2 > 10**7


def test_nothing_is_left_behind(tiny: Checkpoint, text: Corpus, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in tmp_path.rglob("*")}
    state = {name: tensor.clone() for name, tensor in tiny.module.state_dict().items()}
    predict(tiny, text, max_bytes=20_000)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*")} == before
    assert all(torch.equal(tensor, state[name]) for name, tensor in tiny.module.state_dict().items())
    assert not any(p.grad is not None for p in tiny.module.parameters())


def test_a_model_with_nothing_to_quantize_is_refused_alike(text: Corpus) -> None:
    class Bigrams(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1024))

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.one_hot(tokens, 1024) * self.scale

    model = Bigrams()
    source = Checkpoint(model, dict(model.state_dict()), {}, None)
    nothing = collect(model, batches_of(text, tokens=TOKENS, length=LENGTH), only=())
    for attempt in (lambda: predict(source, text, max_bytes=10**6), lambda: compress(source, nothing, max_bytes=10**6)):
        with pytest.raises(QuantGolfError, match="saw no matrix that can be quantized"):
            attempt()
