"""What statistics say an error costs, against what it costs: for odd ways of using a weight, and those not followed."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantgolf.calibrate import collect, survey
from quantgolf.errors import QuantGolfError

VOCABULARY, WIDTH = 17, 12


class Around(nn.Module):
    """An embedding, `use(x, w)` as a residual, and a head."""

    def __init__(self, use: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...] = (WIDTH, WIDTH)) -> None:
        super().__init__()
        self.emb = nn.Embedding(VOCABULARY, WIDTH)
        self.w = nn.Parameter(torch.empty(shape))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.use = use
        for index, parameter in enumerate(self.parameters()):
            nn.init.normal_(parameter, 0, 0.5, generator=torch.Generator().manual_seed(index))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.emb(tokens)
        return self.head(x + torch.tanh(self.use(x, self.w)))


def text(count: int = 24) -> list[tuple[Tensor, Tensor]]:
    tokens = torch.randint(VOCABULARY, (count, 2, 33), generator=torch.Generator().manual_seed(9))
    return [(each[:, :-1], each[:, 1:]) for each in tokens]


def measured_over_predicted(model: Around) -> float:
    """KL of a small random error of `w`, in nats a token, over what the statistics say of it."""
    batches = text()
    found = collect(model, batches)
    error = 0.02 * torch.randn(model.w.shape, generator=torch.Generator().manual_seed(4))
    predicted = sum(
        found.stats[name].loss(block.matrix(error)) for name, block in found.blocks.items() if block.parameter == "w"
    )
    kl = 0.0
    with torch.no_grad():
        for tokens, _ in batches:
            before = model(tokens).double().log_softmax(-1)
            model.w += error
            after = model(tokens).double().log_softmax(-1)
            model.w -= error
            kl += float((before.exp() * (before - after)).sum())
    return kl / found.tokens / predicted


def padded(x: Tensor, w: Tensor) -> Tensor:
    """Half of the tokens to either expert, each with as many rows of zeros behind them."""
    inputs = x.reshape(2, -1, WIDTH)
    rows = inputs.shape[1]
    return torch.bmm(F.pad(inputs, (0, 0, 0, rows)), w)[:, :rows].reshape(x.shape)


USES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], tuple[int, ...]]] = {
    "linear": (F.linear, (12, 12)),
    "addmm with alpha": (
        lambda x, w: torch.addmm(x.new_zeros(12), x.flatten(0, 1), w, alpha=0.25).view_as(x), (12, 12)
    ),
    "addmm by keywords": (
        lambda x, w: torch.addmm(x.new_zeros(12), mat2=w, mat1=x.flatten(0, 1), alpha=2.0).view_as(x), (12, 12)
    ),
    "matmul by keywords in another order": (lambda x, w: torch.matmul(other=w, input=x), (12, 12)),
    "mm by keywords in another order": (lambda x, w: torch.mm(mat2=w, input=x.flatten(0, 1)).view_as(x), (12, 12)),
    "a matrix a head, by a product of four dimensions": (
        lambda x, w: (x.view(*x.shape[:2], 3, 4).transpose(1, 2) @ w).transpose(1, 2).reshape(x.shape), (3, 4, 4)
    ),
    "a matrix a head, by einsum": (
        lambda x, w: torch.einsum("blhd,hde->blhe", x.view(*x.shape[:2], 3, 4), w).reshape(x.shape), (3, 4, 4)
    ),
    "einsum with dots": (lambda x, w: torch.einsum("...d,ed->...e", x, w), (12, 12)),
    "columns apart": (lambda x, w: F.linear(x[..., :5], w[:, :5]) + F.linear(x[..., 5:], w[:, 5:]), (12, 12)),
    "experts padded to a capacity": (padded, (2, 12, 12)),
}  # fmt: skip


@pytest.mark.parametrize("use", USES)
def test_an_error_costs_what_statistics_say(use: str) -> None:
    """The quadratic model of the loss, labels sampled: within 25%. With G's diagonal alone three are 33% off."""
    assert abs(math.log(measured_over_predicted(Around(*USES[use])))) < math.log(1.25)


UNKNOWN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mul": lambda x, w: 0.01 * F.linear(x, w) + F.linear(x, w * 1.0),
    "div": lambda x, w: 0.01 * F.linear(x, w) + F.linear(x, w / w.norm()),
    "linear under torch.func": lambda x, w: torch.vmap(lambda row: F.linear(row, w))(x),
}


@pytest.mark.parametrize("operation", UNKNOWN)
def test_uses_that_are_not_followed_are_named(operation: str) -> None:
    found = {report.name: report for report in collect(Around(UNKNOWN[operation]), text(2)).parameters}["w"]
    assert found.status == ("not seen" if "func" in operation else "followed in part") and operation in found.why


def test_weights_that_the_model_changes_are_put_back() -> None:
    def normalised(x: Tensor, w: Tensor) -> Tensor:
        with torch.no_grad():
            w.div_(w.norm(dim=1, keepdim=True))
        return F.linear(x, w)

    def replaced(x: Tensor, w: Tensor) -> Tensor:
        w.data = w.data * 0.5
        return F.linear(x, w)

    for use in (normalised, replaced):
        model = Around(use)
        before, place = model.w.detach().clone(), model.w.data_ptr()
        collect(model, text(3))
        survey(model, text(1)[0][0])
        assert torch.equal(model.w, before) and model.w.data_ptr() == place
    limited = Around(F.linear)
    limited.emb = nn.Embedding(VOCABULARY, WIDTH, max_norm=0.1)
    before = limited.emb.weight.detach().clone()
    collect(limited, text(3))
    assert torch.equal(limited.emb.weight, before)


def test_inference_mode_is_no_gradient() -> None:
    def without(x: Tensor, w: Tensor) -> Tensor:
        with torch.inference_mode():
            y = F.linear(x, w)
        return y.clone()

    found = collect(Around(without), text(2))
    report = {report.name: report for report in found.parameters}["w"]
    assert report.status == "not seen" and "no gradient reaches" in report.why

    class Sealed(Around):
        @torch.inference_mode()
        def forward(self, tokens: Tensor) -> Tensor:
            return super().forward(tokens)

    with pytest.raises(QuantGolfError, match="the model's output has no gradient"):
        collect(Sealed(F.linear), text(2))


def test_a_model_without_parameters_is_refused() -> None:
    class Bare(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            return F.one_hot(tokens, VOCABULARY).float()

    with pytest.raises(QuantGolfError, match="no parameters"):
        collect(Bare(), text(1))
