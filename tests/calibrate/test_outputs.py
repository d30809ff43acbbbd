"""The covariance of gradients at a weight's outputs, against loops in float64 over tokens and rows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import quantgolf.calibrate.record as record
from quantgolf.calibrate import collect, survey
from quantgolf.models.golf import Golf, GolfConfig
from quantgolf.types import Calibration

VOCABULARY, WIDTH = 11, 6
Use = Callable[[Tensor, Tensor], Tensor]
Forward = Callable[[Tensor, Tensor, Use], Tensor]


class Model(nn.Module):
    """An embedding, what `forward` makes of x and w with `use(x, matrix [N, K])` for every product, and a head."""

    def __init__(self, written: Forward, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.emb, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.w, self.written = nn.Parameter(torch.empty(shape)), written
        for index, parameter in enumerate(self.parameters()):
            nn.init.normal_(parameter, 0, 0.6, generator=torch.Generator().manual_seed(index))

    def forward(self, tokens: Tensor, use: Use = F.linear) -> Tensor:
        x = self.emb(tokens)
        return self.head(x + self.written(x, self.w, use))


def text(count: int = 4) -> list[tuple[Tensor, Tensor]]:
    streams = torch.randint(VOCABULARY, (count, 3, 9), generator=torch.Generator().manual_seed(7))
    return [(stream[:, :-1], stream[:, 1:]) for stream in streams]


@dataclass
class Slow:
    """Sums of one matrix, and of the visits behind them."""

    outputs: Tensor
    fourth: float = 0.0
    visits: int = 0

    def add(self, g: Tensor) -> None:
        self.visits += 1
        for i in range(len(g)):
            for j in range(len(g)):
                self.outputs[i, j] += g[i] * g[j]
                self.fourth += float(g[i] ** 2 * g[j] ** 2) if i != j else 0.0

    def part(self, start: int, stop: int) -> "Slow":
        """Some rows, shrunk as the whole is: their share of `fourth` is that of the squares off the diagonal."""
        outputs = self.outputs[start:stop, start:stop]
        return Slow(outputs, self.fourth * off(outputs) / off(self.outputs), self.visits)

    def plus(self, other: "Slow") -> "Slow":
        return Slow(self.outputs + other.outputs, self.fourth + other.fourth, self.visits + other.visits)

    def shrinkage(self) -> float:
        mean = self.outputs / self.visits
        return min(max((self.fourth / self.visits - off(mean)) / (self.visits - 1) / off(mean), 0.0), 1.0)

    def shrunk(self) -> Tensor:
        kept, mean = 1 - self.shrinkage(), self.outputs / self.visits
        return torch.where(torch.eye(len(mean), dtype=torch.bool), mean, kept * mean)


def off(matrix: Tensor) -> float:
    return sum(float(matrix[i, j] ** 2) for i in range(len(matrix)) for j in range(len(matrix)) if i != j)


def slow_sums(model: Model, batches: list[tuple[Tensor, Tensor]]) -> dict[tuple[int, ...], Slow]:
    """Of every matrix, by where it begins in `w` and its shape: a gradient for each token's loss and each output, in
    float64, whose labels are those that `collect` draws."""
    double = Model(model.written, tuple(model.w.shape)).double()
    double.load_state_dict(model.state_dict())
    found: dict[tuple[int, ...], Slow] = {}
    for index, (tokens, _) in enumerate(batches):
        outputs: list[tuple[tuple[int, ...], Tensor]] = []

        def use(x: Tensor, matrix: Tensor, outputs: Any = outputs) -> Tensor:
            y = x @ matrix.T
            outputs.append(((matrix.storage_offset(), *matrix.shape), y))
            return y

        logits = double(tokens, use).flatten(0, 1)
        drawn = torch.Generator().manual_seed(index)
        labels = torch.multinomial(model(tokens).detach().flatten(0, 1).softmax(-1), 1, generator=drawn)[:, 0]
        losses = [F.cross_entropy(row[None], label[None]) for row, label in zip(logits, labels, strict=True)]
        for place, y in outputs:
            gradient = sum(torch.autograd.grad(loss, y, retain_graph=True)[0] for loss in losses)
            assert isinstance(gradient, Tensor)
            sums = found.setdefault(place, Slow(torch.zeros(place[1], place[1], dtype=torch.float64)))
            for g in gradient.flatten(0, 1):
                sums.add(g)
    return found


def assert_is(calibration: Calibration, name: str, slow: Slow) -> None:
    (use,) = calibration.stats[name].uses
    assert use.outputs is not None and use.visits == slow.visits and use.outputs.dtype == torch.float32
    assert 0.01 < slow.shrinkage() < 0.99, "either end would hide a wrong `fourth`"
    expected = slow.shrunk()
    torch.testing.assert_close(use.outputs.double(), expected, rtol=0, atol=2e-6 * float(expected.abs().max()))
    assert torch.equal(use.outputs.diagonal(), use.row) and name in calibration.outputs


def upright(x: Tensor, w: Tensor, use: Use) -> Tensor:
    return torch.tanh(use(x, w))


def looped(x: Tensor, w: Tensor, use: Use) -> Tensor:
    for _ in range(3):
        x = x + torch.tanh(use(x, w))
    return x


def turned(x: Tensor, w: Tensor, use: Use) -> Tensor:
    return torch.tanh(use(x, w.T))


def bank(x: Tensor, w: Tensor, use: Use) -> Tensor:
    return torch.tanh(use(torch.tanh(use(x, w[0])), w[1]))


def slices(x: Tensor, w: Tensor, use: Use) -> Tensor:
    """q, k and v of one parameter."""
    q, k, v = w.split(WIDTH)
    return torch.sigmoid(use(x, q)) * use(x, k) + use(x, v)


def whole_and_slices(x: Tensor, w: Tensor, use: Use) -> Tensor:
    q, k, _ = torch.tanh(use(x, w)).chunk(3, -1)
    return q * k + torch.tanh(use(q, w[:WIDTH]))


def whole_and_inputs(x: Tensor, w: Tensor, use: Use) -> Tensor:
    """w [K, N], its first four inputs used once more."""
    return torch.tanh(use(x, w.T)) + torch.sin(use(x[..., :4], w[:4].T))


@pytest.mark.parametrize(
    ("forward", "shape", "places"),
    [
        pytest.param(upright, (WIDTH, WIDTH), {"w": (0, 6, 6)}, id="upright"),
        pytest.param(looped, (WIDTH, WIDTH), {"w": (0, 6, 6)}, id="looped"),
        pytest.param(turned, (WIDTH, WIDTH), {"w": (0, 6, 6)}, id="transposed"),
        pytest.param(bank, (2, WIDTH, WIDTH), {"w.0": (0, 6, 6), "w.1": (36, 6, 6)}, id="bank"),
        pytest.param(slices, (3 * WIDTH, WIDTH), {"w.0-6": (0, 6, 6), "w.6-12": (36, 6, 6), "w.12-18": (72, 6, 6)},
                     id="slices"),
    ],
)  # fmt: skip
def test_outputs_are_those_of_the_oracle(
    forward: Forward, shape: tuple[int, ...], places: dict[str, tuple[int, ...]]
) -> None:
    model, batches = Model(forward, shape), text()
    found, slow = collect(model, batches), slow_sums(model, batches)
    assert set(places.values()) == set(slow) and set(found.stats) == {*places, "emb.weight", "head.weight"}
    for name, place in places.items():
        assert_is(found, name, slow[place])
    assert found.stats["emb.weight"].uses[0].outputs is None and found.outputs == {*places, "head.weight"}
    assert survey(model, batches[0][0]).outputs == found.outputs


def test_a_block_cut_at_edges_is_shrunk_as_the_whole_was() -> None:
    model, batches = Model(whole_and_slices, (3 * WIDTH, WIDTH)), text()
    found, slow = collect(model, batches), slow_sums(model, batches)
    whole, first = slow[0, 18, 6], slow[0, 6, 6]
    assert_is(found, "w.0-6", whole.part(0, 6).plus(first))
    assert_is(found, "w.6-18", whole.part(6, 18))
    assert whole.part(6, 18).shrinkage() == pytest.approx(whole.shrinkage())


def test_a_block_cut_between_inputs_keeps_all_outputs() -> None:
    model, batches = Model(whole_and_inputs, (WIDTH, WIDTH)), text()
    found, slow = collect(model, batches), slow_sums(model, batches)
    assert_is(found, "w.0-4", slow[0, 6, 6].plus(slow[0, 6, 4]))
    assert_is(found, "w.4-6", slow[0, 6, 6])


def outputs_apart(x: Tensor, w: Tensor, use: Use) -> Tensor:
    """w [K, N] by halves of its outputs: how those of one go with those of the other was never seen."""
    return torch.tanh(torch.cat([use(x, w[:, :3].T), use(x, w[:, 3:].T)], -1))


def outputs_once_apart(x: Tensor, w: Tensor, use: Use) -> Tensor:
    return torch.tanh(use(x, w.T)) + F.pad(torch.sin(use(x, w[:, :3].T)), (0, 3))


def both_ways(x: Tensor, w: Tensor, use: Use) -> Tensor:
    return torch.tanh(use(torch.tanh(use(x, w)), w.T))


def looked_up(x: Tensor, w: Tensor, use: Use) -> Tensor:
    return torch.tanh(use(x, w)) + w[x.argmax(-1)]


def looked_up_before(x: Tensor, w: Tensor, use: Use) -> Tensor:
    return w[x.argmax(-1)] + torch.tanh(use(x, w))


def looked_up_in_part(x: Tensor, w: Tensor, use: Use) -> Tensor:
    """The rows looked up are no block of their own where w is used whole."""
    return torch.tanh(use(x, w)) + w[:3][x[..., :3].argmax(-1)]


@pytest.mark.parametrize(
    ("forward", "without"),
    [
        (outputs_apart, {"w"}),
        (outputs_once_apart, {"w"}),
        (both_ways, {"w"}),
        (looked_up, {"w"}),
        (looked_up_before, {"w"}),
        (looked_up_in_part, {"w.0-3"}),
    ],
)
def test_weights_whose_outputs_are_not_known_together_have_none(forward: Forward, without: set[str]) -> None:
    model, batches = Model(forward, (WIDTH, WIDTH)), text()
    found = collect(model, batches)
    others = {name for name in found.stats if name.startswith("w")} - without
    for name in without:
        assert all(use.outputs is None for use in found.stats[name].uses) and found.stats[name].outputs() is None
    assert all(found.stats[name].uses[0].outputs is not None for name in others)
    assert found.outputs == survey(model, batches[0][0]).outputs == {"head.weight", *others}


@pytest.mark.parametrize("apart", [0, 3])
def test_one_batch_that_uses_a_part_of_the_rows_is_enough(apart: int) -> None:
    def sometimes(x: Tensor, w: Tensor, use: Use) -> Tensor:
        return (outputs_apart if x.shape[1] == 5 else turned)(x, w, use)

    batches = text()
    batches[apart] = (batches[apart][0][:, :5], batches[apart][1][:, :5])
    found = collect(Model(sometimes, (WIDTH, WIDTH)), batches)
    assert found.stats["w"].uses[0].outputs is None and found.outputs == {"head.weight"}


def test_what_is_known_to_have_none_is_not_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kind of use that comes second is known from the look before: a tied vocabulary would cost much memory."""
    widths: list[int] = []
    products = record.gram
    monkeypatch.setattr(record, "gram", lambda x: [widths.append(x.shape[1]), products(x)][1])

    def linear(x: Tensor, w: Tensor, use: Use) -> Tensor:
        return torch.tanh(use(x, w))[..., :WIDTH]

    def and_looked_up(x: Tensor, w: Tensor, use: Use) -> Tensor:
        return linear(x, w, use) + w[x.argmax(-1)]

    for forward, times in ((linear, 1), (and_looked_up, 0)):
        widths.clear()
        collect(Model(forward, (7, WIDTH)), text(1))
        assert widths.count(7) == times and VOCABULARY in widths


def test_more_rows_than_the_limit_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(whole_and_slices, (3 * WIDTH, WIDTH))
    monkeypatch.setattr(record, "MOST_OUTPUTS", 18)
    assert collect(model, text(1)).outputs == {"w.0-6", "w.6-18", "head.weight"}
    monkeypatch.setattr(record, "MOST_OUTPUTS", 17)  # of the whole there is none, and so of its parts
    found = collect(model, text(1))
    assert found.outputs == survey(model, text(1)[0][0]).outputs == {"head.weight"}
    assert {name for name in found.stats if found.stats[name].outputs() is not None} == {"head.weight"}
    monkeypatch.setattr(record, "MOST_OUTPUTS", VOCABULARY - 1)
    assert not collect(model, text(1)).outputs


def test_other_parameters_are_counted_and_not_summed() -> None:
    model = Model(bank, (2, WIDTH, WIDTH))
    found, whole = collect(model, text(), only=["w"]), collect(model, text())
    assert set(found.stats) == {"w.0", "w.1"}
    for name in found.stats:
        (mine,), (other,) = found.stats[name].uses, whole.stats[name].uses
        assert mine.outputs is not None and other.outputs is not None and torch.equal(mine.outputs, other.outputs)


def test_outputs_are_fp32_and_positive_semidefinite_under_autocast() -> None:
    model = Golf(GolfConfig(vocab_size=32, dim=32, layers=1, tied=False))
    for index, parameter in enumerate(model.parameters()):
        nn.init.normal_(parameter, 0, 0.3, generator=torch.Generator().manual_seed(index))
    tokens = torch.randint(32, (4, 2, 20), generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        found = collect(model, [(each, each) for each in tokens])
    assert len(found.outputs) == 7 and found.outputs == {n for n in found.stats if n != "emb.weight"}
    for name in found.outputs:
        outputs = found.stats[name].outputs()
        assert outputs is not None and outputs.dtype == torch.float32 and torch.equal(outputs, outputs.T)
        torch.testing.assert_close(outputs.diagonal(), found.stats[name].row_weight(), rtol=1e-5, atol=1e-7)
        eigenvalues = torch.linalg.eigvalsh(outputs.double())
        assert eigenvalues.min() >= -1e-6 * eigenvalues.max()
        assert float(outputs.trace()) == pytest.approx(len(outputs), rel=1e-5)
