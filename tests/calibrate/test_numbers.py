"""Statistics of a text cut anywhere, and of next to no text."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from quantgolf.calibrate import collect
from quantgolf.calibrate.collect import Batch
from quantgolf.types import Calibration, WeightUse


class Losing(nn.Module):
    """Gives a loss and no logits, so that statistics are taken at the text's own labels and nothing is drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.hidden = nn.Embedding(11, 6), nn.Linear(6, 5, bias=False)
        self.head = nn.Linear(5, 11, bias=False)
        with torch.no_grad():
            for index, parameter in enumerate(self.parameters()):
                parameter.normal_(0, 0.7, generator=torch.Generator().manual_seed(index))

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        logits = self.head(torch.tanh(self.hidden(self.emb(tokens))))
        return -logits.log_softmax(-1).gather(-1, targets[..., None]).mean()


class Speaking(Losing):
    """Gives logits."""

    def forward(self, tokens: Tensor) -> Tensor:  # type: ignore[override]
        logits: Tensor = self.head(torch.tanh(self.hidden(self.emb(tokens))))
        return logits


def windows(count: int, length: int, seed: int) -> list[Batch]:
    stream = torch.randint(11, (count, length + 1), generator=torch.Generator().manual_seed(seed))
    return [(window[None, :-1], window[None, 1:]) for window in stream]


def together(batches: list[Batch]) -> Batch:
    inputs, targets = zip(*batches, strict=True)
    return torch.cat(inputs), torch.cat(targets)


def joined(parts: list[WeightUse], tokens: list[int]) -> tuple[Tensor, Tensor]:
    """Row weights and column matrix of all of a text from those of its parts, weighed by what they are means over."""
    visits = [part.visits for part in parts]
    rows, columns = (visits, tokens) if parts[0].kind == "linear" else (tokens, visits)
    row = torch.stack([part.row * n for part, n in zip(parts, rows, strict=True)]).sum(0) / sum(rows)
    return row, torch.stack([part.column * n for part, n in zip(parts, columns, strict=True)]).sum(0) / sum(columns)


@settings(deadline=None, max_examples=20)
@given(
    count=st.integers(2, 20), length=st.integers(1, 7), seed=st.integers(0, 999),
    edges=st.sets(st.integers(1, 19), max_size=4),
)  # fmt: skip
def test_split_and_merged_equal_whole(count: int, length: int, seed: int, edges: set[int]) -> None:
    text, cuts = windows(count, length, seed), [0, *sorted(edge for edge in edges if edge < count), count]
    parts = [text[start:stop] for start, stop in itertools.pairwise(cuts)]
    model = Losing()
    whole, rebatched = collect(model, text), collect(model, [together(part) for part in parts])
    alone = [collect(model, part) for part in parts]
    assert whole.labels == "targets" and set(whole.stats) == {"emb.weight", "hidden.weight", "head.weight"}
    for name, stats in whole.stats.items():
        for index, use in enumerate(stats.uses):
            row, column = joined([each.stats[name].uses[index] for each in alone], [each.tokens for each in alone])
            other = rebatched.stats[name].uses[index]
            for found, expected in (
                (row, use.row),
                (other.row, use.row),
                (column, use.column),
                (other.column, use.column),
            ):
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))
            assert other.visits == use.visits == sum(each.stats[name].uses[index].visits for each in alone)


def all_numbers(calibration: Calibration) -> list[Tensor]:
    uses = [use for stats in calibration.stats.values() for use in stats.uses]
    return [tensor for use in uses for tensor in (use.row, use.column, use.outputs) if tensor is not None]


@pytest.mark.parametrize("model", [Losing(), Speaking()])
@pytest.mark.parametrize("length", [1, 2])
def test_a_single_token_teaches_matrices_of_rank_one(model: nn.Module, length: int) -> None:
    found = collect(model, windows(1, length, 5))
    assert found.tokens == length and set(found.stats) == {"emb.weight", "hidden.weight", "head.weight"}
    for tensor in all_numbers(found):
        assert tensor.isfinite().all()
    use = found.stats["head.weight"].uses[0]
    assert torch.linalg.matrix_rank(use.column.double(), rtol=1e-6) == length
    if length == 1:  # one visit says nothing of how outputs go together
        assert use.outputs is not None and torch.equal(use.outputs, use.row.diag())
