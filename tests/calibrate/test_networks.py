"""Whole models of other kinds: every parameter is captured or named, and the model leaves as it came."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from quantgolf.calibrate import collect
from quantgolf.checkpoint import build_model
from quantgolf.errors import QuantGolfError
from quantgolf.types import Calibration, ParameterReport


def text(vocab: int = 13, batches: int = 2, length: int = 6) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(7)
    streams = [torch.randint(vocab, (4, length + 1), generator=generator) for _ in range(batches)]
    return [(stream[:, :-1], stream[:, 1:]) for stream in streams]


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert expected.any()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def assert_same(found: Calibration, other: Calibration) -> None:
    assert list(found.stats) == list(other.stats)
    for name, stats in found.stats.items():
        for use, twin in zip(stats.uses, other.stats[name].uses, strict=True):
            assert use.kind == twin.kind and use.visits == twin.visits
            assert_close(use.row, twin.row)
            assert_close(use.column, twin.column)


def reports(calibration: Calibration, model: nn.Module) -> dict[str, ParameterReport]:
    found = {report.name: report for report in calibration.parameters}
    assert list(found) == [name for name, _ in model.named_parameters()]
    for name, parameter in model.named_parameters():
        assert found[name].shape == tuple(parameter.shape)
        assert found[name].why or found[name].status == "captured"
    taken = {block.parameter for block in calibration.blocks.values()}
    assert taken == {name for name, report in found.items() if report.status in ("captured", "partly")}
    return found


def test_a_convolutional_net_is_captured_whole(networks) -> None:
    model = networks.drawn(networks.ConvNet())
    calibration = collect(model, text())
    found = reports(calibration, model)
    assert {name for name, p in model.named_parameters() if p.ndim > 1} == set(calibration.stats)
    assert all(found[name].status == "captured" for name in calibration.stats)
    assert all(report.status == "small" for report in found.values() if len(report.shape) == 1)
    for name, size in {"causal.1": (8, 24, 48), "strided": (16, 32, 24), "picture": (3, 6, 8 * 48)}.items():
        (use,) = calibration.stats[f"{name}.weight"].uses
        assert (use.row.numel(), use.column.shape[0], use.visits) == size


def test_convolutions_feel_an_error_as_their_statistics_say(networks) -> None:
    """Σ over positions of (E x)² is E H Eᵀ, times the tokens, for each output channel."""
    model = networks.drawn(networks.ConvNet())
    stats = collect(model, text()).stats
    for name in ("strided", "picture", "causal.2", "pointwise"):
        module, moved = copy.deepcopy(model.get_submodule(name)), torch.zeros(())
        module.bias = None
        module.weight = nn.Parameter(torch.randn(module.weight.shape, generator=torch.Generator().manual_seed(1)))
        inputs: list[Tensor] = []
        handle = model.get_submodule(name).register_forward_pre_hook(
            lambda _module, args, kept=inputs: kept.append(args[0])
        )
        with torch.no_grad():
            for tokens, _ in text():
                model(tokens)
            handle.remove()
            for x in inputs:
                moved = moved + module(x).square().transpose(0, 1).flatten(1).sum(1)
            error = module.weight.flatten(1)
            (use,) = stats[f"{name}.weight"].uses
            assert_close(((error @ use.column) * error).sum(1) * 48, moved)


def test_routed_experts_count_by_their_share(networks) -> None:
    model = networks.drawn(networks.SwitchMoE())
    calibration = collect(model, text())
    found, tokens = reports(calibration, model), torch.cat([inputs for inputs, _ in text()]).flatten()
    x = model.emb(tokens).detach()
    choice = model.route(x).argmax(-1)
    shares = torch.bincount(choice, minlength=4)
    assert shares.sum() == 48 and (shares[:3] > 0).all() and shares[3] == 0
    for index in range(3):
        name = f"experts.{index}.up.weight"
        (use,) = calibration.stats[name].uses
        mine = x[choice == index]
        assert use.visits == shares[index] and found[name].fewest == shares[index]
        assert_close(use.column, mine.T @ mine / 48)
        assert found[name].status == "captured"
    total = sum(calibration.stats[f"experts.{index}.up.weight"].uses[0].column for index in range(3))
    assert_close(total, calibration.stats["router.weight"].uses[0].column)


def test_an_expert_without_tokens_is_reported(networks) -> None:
    model = networks.drawn(networks.SwitchMoE())
    calibration = collect(model, text())
    found = reports(calibration, model)
    for name in ("experts.3.up.weight", "experts.3.down.weight"):
        assert found[name].status == "not seen" and found[name].fewest == 0
        assert name not in calibration.stats
    assert all(use.row.isfinite().all() for stats in calibration.stats.values() for use in stats.uses)


def test_rows_that_no_text_met_are_named(subjects) -> None:
    """Experts one and two of four answer, a token each in turn."""
    written = subjects.Written(lambda m, x: torch.bmm(x.reshape(2, -1, 8), m.w[1:3]).view_as(x), w=(4, 8, 8))
    model = subjects.draw(subjects.Sandwich(written))
    calibration = collect(model, text())
    found = reports(calibration, model)["middle.w"]
    assert found.status == "partly" and found.fewest == 24
    assert "0-7" in found.why and "24-31" in found.why
    assert {name for name in calibration.stats if "middle" in name} == {"middle.w.1", "middle.w.2"}


def test_what_is_not_followed_is_named_with_the_reason(networks) -> None:
    model = networks.drawn(networks.Unfollowed())
    assert is_parametrized(model.normed)
    calibration = collect(model, text())
    found = reports(calibration, model)
    assert set(calibration.stats) == {"emb.weight", "gate.weight", "head.weight"}
    for name, why in {
        "lstm.weight_ih_l0": "lstm", "lstm.weight_hh_l0": "lstm", "scaled": "mul", "spare.weight": "never seen to use",
        "normed.parametrizations.weight.original1": "weight_norm", "factors": "mul",
    }.items():  # fmt: skip
        assert found[name].status == "not seen", name
        assert why in found[name].why
    assert found["spare.bias"].status == found["lstm.bias_ih_l0"].status == "small"
    assert found["gate.weight"].status == "captured"  # a matrix of one row


def test_gathered_experts_are_not_seen_rather_than_wrong(networks) -> None:
    model = networks.drawn(networks.Gathered())
    calibration = collect(model, text())
    assert reports(calibration, model)["w"].status == "not seen"
    assert set(calibration.stats) == {"emb.weight", "head.weight"}


def test_a_model_that_gives_nothing_but_a_loss_is_taken_at_its_targets(networks) -> None:
    model = networks.drawn(networks.LossOnly())
    batches = text()
    calibration = collect(model, batches)
    assert calibration.labels == "targets" and set(calibration.stats) == {"emb.weight", "head.weight"}
    row = torch.zeros(13)
    for tokens, targets in batches:
        logits = model.head(torch.tanh(model.emb(tokens))).flatten(0, 1).detach()
        g = logits.softmax(-1) - torch.nn.functional.one_hot(targets.flatten(), 13)  # of the summed loss
        row += g.square().sum(0)
    assert_close(calibration.stats["head.weight"].uses[0].row, row / 48)


class WithLogits(nn.Module):
    """A contest model asked for logits: everything but its last line, by way of a loss that keeps them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        kept: list[Tensor] = []
        entropy = torch.nn.functional.cross_entropy
        try:
            torch.nn.functional.cross_entropy = lambda logits, *args, **kwargs: kept.append(logits) or logits.sum()
            self.model(tokens, tokens)
        finally:
            torch.nn.functional.cross_entropy = entropy
        return kept[0].view(*tokens.shape, -1)


@pytest.mark.parametrize("factory", ["build", "build_autocast"])
def test_a_contest_script_is_captured_whole_from_its_loss(contest_script, factory: str) -> None:
    model = build_model(f"{contest_script.__file__}:{factory}")
    batches = text(1024)
    calibration = collect(model, batches)
    found = reports(calibration, model)
    assert calibration.labels == "sampled"
    matrices = ["tok_emb.weight", *(f"blocks.{i}.{name}.weight" for i in range(3) for name in (
        "attn.c_q", "attn.c_k", "attn.c_v", "attn.proj", "mlp.fc", "mlp.proj"))]  # fmt: skip
    assert list(calibration.stats) == matrices
    assert all(found[name].status == "captured" for name in matrices)
    assert all(found[name].status in ("small", "not seen") for name in set(found) - set(matrices))
    assert [use.kind for use in calibration.stats["tok_emb.weight"].uses] == ["lookup", "linear"]
    asked = collect(WithLogits(model), batches)
    for name in matrices:
        for use, twin in zip(calibration.stats[name].uses, asked.stats[f"model.{name}"].uses, strict=True):
            assert use.column.dtype == torch.float32
            assert_close(use.row, twin.row)
            assert_close(use.column, twin.column)


def test_statistics_do_not_depend_on_the_targets_where_labels_are_sampled(contest_script) -> None:
    batches = text(1024)
    others = [(inputs, inputs.flip(1)) for inputs, _ in batches]
    assert_same(collect(contest_script.build(), batches), collect(contest_script.build(), others))


def state(model: nn.Module) -> dict[str, object]:
    """Everything a user could notice of a model."""
    return {
        "tensors": {name: value.clone() for name, value in model.state_dict().items()},
        "identity": [id(value) for value in (*model.parameters(), *model.buffers())],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "grad identity": [id(p.grad) for p in model.parameters()],
        "asks": [p.requires_grad for p in model.parameters()],
        "training": [module.training for module in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "random": torch.get_rng_state(),
    }


def assert_unchanged(before: dict[str, object], model: nn.Module) -> None:
    after = state(model)
    for key in ("identity", "asks", "training", "hooks", "grad identity"):
        assert before[key] == after[key], key
    for name, value in before["tensors"].items():
        assert torch.equal(value, after["tensors"][name]), name
    for value, now in zip(before["grads"], after["grads"], strict=True):
        assert (value is None) == (now is None) and (value is None or torch.equal(value, now))
    assert torch.equal(before["random"], after["random"])


def unevenly_set(networks) -> nn.Module:
    """Training here, evaluation there, one part frozen, one with gradients of an earlier step."""
    model = networks.drawn(networks.Stateful()).train()
    model.norm.eval()
    model.inner.weight.requires_grad_(False)
    model.emb.eval()
    model.head.weight.grad = torch.full_like(model.head.weight, 0.25)
    return model


def test_the_model_leaves_bit_for_bit_as_it_came(networks) -> None:
    model = unevenly_set(networks)
    before = state(model)
    collect(model, text())
    assert_unchanged(before, model)


def test_the_model_leaves_as_it_came_from_a_failure_too(networks) -> None:
    model = unevenly_set(networks)
    before = state(model)
    batches = [*text(), (torch.full((1, 3), 99), torch.zeros(1, 3, dtype=torch.int64))]
    with pytest.raises(QuantGolfError, match=r"the model failed on tokens \[1, 3\] \(IndexError"):
        collect(model, batches)
    with torch.no_grad():
        model.head.bias.fill_(torch.nan)
    with pytest.raises(QuantGolfError, match="not all finite"):
        collect(model, text())
    with torch.no_grad():
        model.head.bias.copy_(before["tensors"]["head.bias"])
    assert_unchanged(before, model)


def test_a_second_calibration_is_the_first_to_the_last_bit(networks) -> None:
    model = networks.drawn(networks.SwitchMoE())
    first, second = collect(model, text()), collect(copy.deepcopy(model), text())
    for name, stats in first.stats.items():
        for use, other in zip(stats.uses, second.stats[name].uses, strict=True):
            assert torch.equal(use.row, other.row) and torch.equal(use.column, other.column)
    other = collect(model, text(), seed=1)
    assert not torch.equal(first.stats["head.weight"].uses[0].row, other.stats["head.weight"].uses[0].row)
    assert torch.equal(first.stats["head.weight"].uses[0].column, other.stats["head.weight"].uses[0].column)


def test_some_parameters_alone_have_the_statistics_they_have_among_all(networks) -> None:
    model = networks.drawn(networks.ConvNet())
    seen: list[int] = []
    whole = collect(model, text(), progress=seen.append)
    some = collect(model, text(), only=["picture.weight", "emb.weight"])
    assert sum(seen) == 48 and set(some.stats) == {"picture.weight", "emb.weight"}
    for name, stats in some.stats.items():
        for use, other in zip(stats.uses, whole.stats[name].uses, strict=True):
            assert_close(use.row, other.row)
            assert_close(use.column, other.column)
