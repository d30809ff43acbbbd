"""Whatever way a weight is written, its statistics are those of the same model written plainly."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from quantgolf.calibrate import collect
from quantgolf.calibrate.collect import sampled_loss
from quantgolf.models.golf import Golf
from quantgolf.types import Calibration, ParameterReport, WeightUse


def text(vocab: int = 13, batches: int = 2, length: int = 6) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(7)
    streams = [torch.randint(vocab, (4, length + 1), generator=generator) for _ in range(batches)]
    return [(stream[:, :-1], stream[:, 1:]) for stream in streams]


def assert_close(found: Tensor, expected: Tensor) -> None:
    """To 1e-5 of the largest element, which is not zero."""
    assert expected.any()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def assert_same(found: WeightUse, *expected: WeightUse) -> None:
    """The same use of one matrix, or of several with the same inputs whose rows stand one below the other."""
    assert all(found.kind == other.kind and found.visits == other.visits for other in expected)
    assert_close(found.row, torch.cat([other.row for other in expected]))
    for other in expected:
        assert_close(found.column, other.column)
    start = 0
    for other in expected:
        assert (found.outputs is None) == (other.outputs is None)
        if found.outputs is not None and other.outputs is not None:
            rows = slice(start, start := start + len(other.row))
            assert_shrunk_alike(found.outputs[rows, rows], other.outputs, exactly=len(expected) == 1)


def assert_shrunk_alike(found: Tensor, expected: Tensor, exactly: bool) -> None:
    """The same, or, of a part of a larger matrix, the same but for what all off the diagonal is scaled by."""
    assert_close(found.diagonal(), expected.diagonal())
    off, other = found - found.diagonal().diag(), expected - expected.diagonal().diag()
    if not other.any():  # so few visits that all of it counts as noise
        assert not off.any()
    elif exactly:
        assert_close(off, other)
    else:
        assert_close(off / off.norm(), other / other.norm())


def assert_sum(found: WeightUse, *expected: WeightUse) -> None:
    """One use that stands for several of copies of the matrix."""
    visits = sum(other.visits for other in expected)
    assert found.visits == visits
    assert_close(found.column, torch.stack([other.column for other in expected]).sum(0))
    assert_close(found.row, torch.stack([other.row * other.visits for other in expected]).sum(0) / visits)


def report(calibration: Calibration, name: str) -> ParameterReport:
    (parameter,) = (p for p in calibration.parameters if p.name == name)
    return parameter


def middle(subjects, forward, **shapes: tuple[int, ...]) -> nn.Module:
    return subjects.draw(subjects.Sandwich(subjects.Written(forward, **shapes)))


def test_same_statistics_as_the_plain_module_twin_to_1e_5(twins) -> None:
    batches = text(13 if hasattr(twins.twin, "middle") else 32)
    found, plain = collect(twins.model, batches), collect(twins.twin, batches)
    assert found.tokens == plain.tokens == 48 and found.labels == plain.labels == "sampled"
    assert set(found.stats) == set(twins.same)
    named, others = dict(twins.model.named_parameters()), dict(twins.twin.named_parameters())
    for name, mine in twins.same.items():
        block = found.blocks[name]
        matrix = block.matrix(named[block.parameter])
        assert torch.equal(matrix, torch.cat([others[other] for other in mine])), f"{name} is not where it says"
        assert report(found, block.parameter).status == "captured"
        assert len(found.stats[name].uses) == len(plain.stats[mine[0]].uses)
        for use, *rest in zip(found.stats[name].uses, *(plain.stats[other].uses for other in mine), strict=True):
            assert_same(use, *rest)


def test_looped_layers_count_once_a_pass(pairs) -> None:
    looped = pairs["golf with banks, recurrence and tied embedding"]().model
    order = looped.config.order
    assert order == (0, 1, 2, 1, 2, 1, 2)
    written_out = replace(looped.config, layers=len(order), loop_first=0, loop_last=0, loop_times=1)
    stack = Golf(written_out)
    state = {name: value for name, value in looped.state_dict().items() if not name.startswith("blocks.")}
    for run, layer in enumerate(order):
        state |= {f"blocks.{run}.{name}": value for name, value in looped.blocks[layer].state_dict().items()}
    for bank, halves in (("qo_bank", 2), ("kv_bank", 2), ("up_bank", 1), ("down_bank", 1)):
        state[bank] = state[bank][[layer + half * 3 for half in range(halves) for layer in order]]
    stack.load_state_dict(state)
    found, plain = collect(looped, text(32)).stats, collect(stack, text(32)).stats
    for layer in range(3):
        runs = [run for run, other in enumerate(order) if other == layer]
        assert len(runs) == (1, 3, 3)[layer]
        for bank, halves in (("qo_bank", 2), ("kv_bank", 2), ("up_bank", 1), ("down_bank", 1)):
            for half in range(halves):
                (use,) = found[f"{bank}.{layer + 3 * half}"].uses
                assert_sum(use, *(plain[f"{bank}.{run + 7 * half}"].uses[0] for run in runs))


def test_a_shared_module_called_three_times_is_three_uses(subjects) -> None:
    def thrice(m, x: Tensor) -> Tensor:
        for call in (m.a, m.b, m.c):
            x = torch.tanh(call(x)) + x
        return x

    shapes = dict.fromkeys("abc", (8, 8))
    shared = subjects.draw(subjects.Sandwich(subjects.Linears(thrice, a=(8, 8))))
    shared.middle.b = shared.middle.c = shared.middle.a
    copies = subjects.Sandwich(subjects.Linears(thrice, **shapes))
    copies.load_state_dict(shared.state_dict())
    found, plain = collect(shared, text()), collect(copies, text())
    assert list(found.stats) == ["emb.weight", "middle.a.weight", "head.weight"]
    (use,) = found.stats["middle.a.weight"].uses
    assert_sum(use, *(plain.stats[f"middle.{name}.weight"].uses[0] for name in "abc"))
    assert use.visits == 3 * 48


def test_a_weight_used_whole_here_and_by_rows_there(subjects) -> None:
    def both(m, x: Tensor) -> Tensor:
        low, high = m.low(x), m.high(torch.sin(x))
        return torch.cat([torch.tanh(m.whole(x)), low, high], -1)

    model = middle(subjects, lambda m, x: torch.cat([
        torch.tanh(F.linear(x, m.w)), F.linear(x, m.w[:8]), F.linear(torch.sin(x), m.w[8:]),
    ], -1), w=(16, 8))  # fmt: skip
    twin = subjects.Sandwich(subjects.Linears(both, whole=(16, 8), low=(8, 8), high=(8, 8)))
    w = model.middle.w
    twin.load_state_dict({
        "emb.weight": model.emb.weight, "head.weight": model.head.weight, "middle.whole.weight": w,
        "middle.low.weight": w[:8], "middle.high.weight": w[8:],
    })  # fmt: skip
    found, plain = collect(model, text()), collect(twin, text()).stats
    assert list(found.stats) == ["emb.weight", "middle.w.0-8", "middle.w.8-16", "head.weight"]
    (whole,) = plain["middle.whole.weight"].uses
    for rows, name in (((0, 8), "low"), ((8, 16), "high")):
        (use,) = found.stats[f"middle.w.{rows[0]}-{rows[1]}"].uses
        part = replace(whole, row=whole.row[slice(*rows)])
        assert_sum(use, part, plain[f"middle.{name}.weight"].uses[0])
    assert report(found, "middle.w").status == "captured"


def test_a_weight_used_both_ways_has_a_crossed_use(subjects) -> None:
    """An autoencoder: x @ W there, y @ W.T back."""
    model = middle(subjects, lambda m, x: torch.tanh(x @ m.w) @ m.w.T, w=(8, 16))
    twin = subjects.Sandwich(subjects.Linears(lambda m, x: m.back(torch.tanh(m.there(x))), there=(16, 8), back=(8, 16)))
    w = model.middle.w
    own = {"emb.weight": model.emb.weight, "head.weight": model.head.weight}
    twin.load_state_dict({**own, "middle.there.weight": w.T, "middle.back.weight": w})
    found, plain = collect(model, text()), collect(twin, text()).stats
    uses = {use.kind: use for use in found.stats["middle.w"].uses}
    assert set(uses) == {"linear", "crossed"} and found.blocks["middle.w"].transposed
    assert_same(uses["linear"], replace(plain["middle.there.weight"].uses[0], outputs=None))
    (back,) = plain["middle.back.weight"].uses
    assert uses["crossed"].visits == 48
    assert_close(uses["crossed"].row, back.column.diagonal())
    assert_close(uses["crossed"].column.diagonal(), back.row)
    gradients = squared_gradients(twin, twin.middle.back)
    assert_close(uses["crossed"].column, gradients / 48)


def squared_gradients(model: nn.Module, module: nn.Module) -> Tensor:
    """Σ g gᵀ at a module's output under the labels that `collect` draws, by asking autograd."""
    total = torch.zeros(())
    for index, (tokens, _) in enumerate(text()):
        outputs: list[Tensor] = []
        handle = module.register_forward_hook(lambda _module, _args, output, kept=outputs: kept.append(output))
        loss = sampled_loss(model(tokens), torch.Generator().manual_seed(index))
        handle.remove()
        (g,) = torch.autograd.grad(loss, outputs)
        total = total + torch.einsum("bli,blj->ij", g, g)
    return total


def test_a_weight_whose_every_use_is_without_gradient_has_no_statistics(subjects) -> None:
    def forward(m, x: Tensor) -> Tensor:
        with torch.no_grad():
            frozen = torch.tanh(F.linear(x, m.w))
        return frozen + F.linear(x, m.v)

    model = middle(subjects, forward, w=(16, 8), v=(16, 8))
    found = collect(model, text())
    assert "middle.w" not in found.stats and "no gradient reaches" in report(found, "middle.w").why
    (v,) = found.stats["middle.v"].uses
    assert v.visits == 48 and v.row.any()


def test_a_weight_without_any_gradient_is_reported(subjects) -> None:
    """Row weights of zero would say that it may be anything."""
    model = middle(subjects, lambda m, x: F.linear(x.detach(), m.w).detach() + x.repeat(1, 1, 2), w=(16, 8))
    assert "gradient" in report(collect(model, text()), "middle.w").why


def test_functions_with_their_own_backward_are_not_silently_worthless(subjects, networks) -> None:
    model = middle(subjects, lambda m, x: networks.Unmixed.apply(x, m.w), w=(16, 8))
    plain = middle(subjects, lambda m, x: F.linear(x, m.w), w=(16, 8))
    found = collect(model, text())
    if report(found, "middle.w").status == "captured":
        assert_same(found.stats["middle.w"].uses[0], collect(plain, text()).stats["middle.w"].uses[0])
    else:
        assert report(found, "middle.w").why


@pytest.mark.parametrize(
    "mention",
    [
        lambda x, w: x.type_as(w),
        lambda x, w: x.to(w),
        lambda x, w: x + torch.zeros_like(w)[0],
        lambda x, w: x + w.new_zeros(8),
        lambda x, w: x * w.shape[0] / w.size(0),
    ],
    ids=["type_as", "to another", "zeros_like", "new_zeros", "shape"],
)
def test_asking_a_weight_for_its_dtype_is_no_use_of_it(subjects, mention) -> None:
    found = report(
        collect(middle(subjects, lambda m, x: F.linear(mention(x, m.w), m.w), w=(16, 8)), text()), "middle.w"
    )
    assert (found.status, found.why) == ("captured", "")


def test_autocast_banks_have_the_statistics_of_autocast_modules(pairs) -> None:
    twins = pairs["golf with banks, recurrence, gates and a head"]()
    with torch.autocast("cpu", torch.bfloat16):
        found, plain = collect(twins.model, text(32)).stats, collect(twins.twin, text(32)).stats
    for name, (other,) in twins.same.items():
        for use, twin in zip(found[name].uses, plain[other].uses, strict=True):
            assert use.column.dtype == use.row.dtype == torch.float32
            assert_same(use, twin)


@pytest.mark.parametrize("reentrant", [True, False])
def test_only_some_parameters_of_a_checkpointed_part(subjects, reentrant: bool) -> None:
    """The first weight to learn of may lie inside the checkpointed part, and be all that asks for a gradient."""

    def part(m, x: Tensor) -> Tensor:
        return torch.tanh(F.linear(torch.tanh(F.linear(x, m.v)), m.w)) * torch.sigmoid(x)

    model = middle(subjects, lambda m, x: checkpoint(part, m, x, use_reentrant=reentrant), v=(8, 8), w=(8, 8))
    whole, some = collect(model, text()).stats, collect(model, text(), only=["middle.w"]).stats
    assert set(some) == {"middle.w"}
    assert_same(some["middle.w"].uses[0], whole["middle.w"].uses[0])


def test_weights_tied_by_their_memory_alone_are_one(subjects) -> None:
    model = subjects.draw(subjects.Sandwich(nn.Tanh()))
    tied = subjects.Sandwich(nn.Tanh())
    tied.load_state_dict(model.state_dict())
    tied.head.weight = tied.emb.weight
    model.head.weight = nn.Parameter(model.emb.weight.data)
    with torch.no_grad():
        tied.emb.weight.copy_(model.emb.weight)
    found, plain = collect(model, text()).stats, collect(tied, text()).stats
    assert set(found) == set(plain) == {"emb.weight"}
    for use, other in zip(found["emb.weight"].uses, plain["emb.weight"].uses, strict=True):
        assert_same(use, other)


@pytest.mark.parametrize(
    "change",
    [
        lambda w: 3 * w,
        lambda w: w.clone().mul_(3),
        lambda w: w.double().sub_(w.double().mean()).float(),
        lambda w: torch.where(w > 0, w, 0),
        lambda w: w.clone().fill_diagonal_(0),
    ],
    ids=["product", "product in place", "centred in place", "masked", "zeros in place"],
)
def test_a_weight_changed_on_its_way_is_not_taken_for_itself(subjects, change) -> None:
    """Its own error reaches the output changed, so the plain statistics would be wrong ones."""
    model = middle(subjects, lambda m, x: F.linear(x, change(m.w)), w=(16, 8))
    found = collect(model, text())
    assert "middle.w" not in found.stats
    assert report(found, "middle.w").status == "not seen" and report(found, "middle.w").why
