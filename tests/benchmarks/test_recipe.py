"""The record recipe: real bytes that come back exactly, corrections that correct, files that keep to their limit."""

from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import brotli
import pytest
import torch
from recipe import coders, streams
from recipe.correct import Plan, correct, loss_of, plans
from recipe.file import RecipeFile, choices_of, decode, encode, file_of
from recipe.fit import ENOUGH, fit
from recipe.low_rank import LEFT, RIGHT, low_rank
from recipe.methods import recipe
from recipe.solve import INT5, INT6, Roles, Solved, Solver, hessian
from recipe.streams import Choice, Layout
from torch import Tensor, nn

from quantgolf.checkpoint import Checkpoint, fill
from quantgolf.compress import calibrate
from quantgolf.compress.matrices import Matrices, choose
from quantgolf.data import Tokenizer, read_corpus
from quantgolf.errors import BudgetError, FormatError
from quantgolf.types import Block, Calibration, WeightStats, WeightUse

FAST = ("none", "brotli")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Brotli that saves less and no ZPAQ, so that whole models are coded in a moment."""
    monkeypatch.setitem(coders.CODERS, "brotli", (lambda raw: brotli.compress(raw, quality=5), brotli.decompress))
    monkeypatch.setattr(coders, "present", lambda wanted=coders.NAMES: tuple(n for n in wanted if n != "zpaq"))
    monkeypatch.setattr("recipe.streams.present", coders.present)
    monkeypatch.setattr("recipe.file.LARGE", 1000)


@pytest.fixture
def learned(tiny: Checkpoint, prose: Path, tokenizer: Tokenizer) -> Calibration:
    return calibrate(tiny, read_corpus(prose, tokenizer), tokens=2048, length=64)


def use(column: Tensor, rows: int, kind: Any = "linear") -> WeightUse:
    return WeightUse(kind, torch.ones(rows), column, visits=1)


def covariance(columns: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4 * columns, columns, generator=generator) * torch.linspace(0.1, 3, columns)
    return x.T @ x / len(x)


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("blocks.0.q.weight", "attention"), ("model.layers.3.self_attn.o_proj.weight", "attention"),
        ("h.1.attn.c_proj.weight", "attention"), ("blocks.1.c_q.weight", "attention"), ("qo_bank.3", "attention"),
        ("emb.weight", "embedding"), ("model.embed_tokens.weight", "embedding"), ("tok_emb.weight", "embedding"),
        ("lm_head.weight", "embedding"), ("transformer.wte.weight", "embedding"),
        ("blocks.0.fc.weight", "mlp"), ("model.layers.0.mlp.gate_proj.weight", "mlp"), ("mlp_up_bank.2", "mlp"),
        ("blocks.0.headless.weight", "mlp"), ("equation.weight", "mlp"),
    ],
)  # fmt: skip
def test_roles_by_name(name: str, role: str) -> None:
    assert Roles().of(name, WeightStats(name, (use(torch.eye(2), 2),), 1)) == role


def test_roles_by_use_and_by_option() -> None:
    looked_up = WeightStats("table", (use(torch.eye(2), 2, "lookup"),), 1)
    assert Roles().of("table", looked_up) == "embedding"
    plain = WeightStats("w", (use(torch.eye(2), 2),), 1)
    assert Roles(attention="^mixer").of("mixer.3", plain) == "attention"
    assert Roles(attention="^mixer").of("attn.3", plain) == "mlp"


def test_hessian_is_that_of_the_linear_uses_alone() -> None:
    one, two, gradients = covariance(4, 0), covariance(4, 1), 100 * covariance(4, 2)
    stats = WeightStats("w", (use(one, 3), use(two, 3), use(gradients, 3, "lookup")), 1)
    assert torch.equal(hessian(stats), one + two)
    assert torch.equal(hessian(WeightStats("w", (use(gradients, 3, "lookup"),), 1)), torch.eye(4))


@pytest.mark.parametrize("recipe", [INT6, INT5])
def test_steps_and_codes_are_the_published_ones(tiny: Checkpoint, learned: Calibration, recipe: Any) -> None:
    matrices, _ = choose(tiny, learned)
    solver = Solver(matrices, learned.stats, recipe)
    clips = {"mlp": 11.5, "attention": 13.0, "embedding": 14.0}
    assert set(solver.roles.values()) == set(clips)
    for factor in (0.2, 1.0):
        for name, solved in solver.solve(factor).items():
            role = solver.roles[name]
            top = 2 ** (recipe.bits - (role != "embedding")) - 1
            expected = (matrices[name].double().std(1) * clips[role] * factor / top).half()
            assert torch.allclose(solved.step.double(), expected.double(), rtol=2e-3)
            assert int(solved.codes.abs().max()) <= top


def test_bytes_are_predicted_as_rounding_to_nearest_makes_them(tiny: Checkpoint, learned: Calibration) -> None:
    matrices, _ = choose(tiny, learned)
    solver = Solver(matrices, learned.stats, INT6)
    by_role: dict[str, list[Tensor]] = {}
    for name, weight in matrices.items():
        step = weight.std(1, keepdim=True) * INT6.step(solver.roles[name]) * 0.9
        by_role.setdefault(solver.roles[name], []).append((weight / step).round().reshape(-1))
    counts = [torch.cat(codes).unique(return_counts=True)[1].double() for codes in by_role.values()]
    bits = sum(float(-(n * (n / n.sum()).log2()).sum()) for n in counts)
    assert solver.predicted_bytes(0.9) == pytest.approx(bits / 8, rel=2e-3)
    assert solver.predicted_bytes(0.9) > solver.predicted_bytes(0.901)


def everything() -> tuple[RecipeFile, dict[str, Tensor]]:
    """A file with all there can be, and the tensors it stands for."""
    generator = torch.Generator().manual_seed(0)

    def solved(rows: int, columns: int) -> Solved:
        codes = torch.randint(-63, 64, (rows, columns), generator=generator, dtype=torch.int8)
        return Solved(codes, torch.rand(rows, generator=generator).half())

    source = SimpleNamespace(
        tensors={
            "bank": torch.randn(3, 20, 18, generator=generator), "mixed": torch.randn(30, 17, generator=generator),
            "smear_gate": torch.randn(8, 12, generator=generator), "scale": torch.randn(7, generator=generator),
            "one": torch.randn((), generator=generator), "steps": torch.arange(5), "empty": torch.empty(0, 3),
            "large": torch.randn(40, 30, generator=generator), "flags": torch.tensor([True, False]),
        },
        aliases={"mixed": ("tied",)},
    )  # fmt: skip
    blocks = {
        "mixed.4-24": Block("mixed", 1, 4, 24, True), "bank.0": Block("bank", 2, 0, 20),
        "bank.2": Block("bank", 2, 40, 60),
    }  # fmt: skip
    found = {"mixed.4-24": solved(17, 20), "bank.0": solved(20, 18), "bank.2": solved(20, 18)}
    low = {"bank.2": low_rank(torch.randn(20, 18, generator=generator))}
    matrices: Any = SimpleNamespace(blocks=blocks)
    checkpoint: Any = source
    expected = {name: tensor.clone() for name, tensor in source.tensors.items()}
    for name in ("mixed", "scale", "one", "bank"):
        expected[name] = expected[name].half().float()
    for name in ("smear_gate", "large"):
        step = (expected[name].abs().amax(1) / 127).half().float()[:, None]
        expected[name] = (expected[name] / step).round().clamp(-127, 127) * step
    expected["bank"][0], expected["bank"][2] = found["bank.0"].weight(), found["bank.2"].weight()
    expected["bank"][2] += low["bank.2"].correction()
    expected["mixed"][4:24] = found["mixed.4-24"].weight().T
    expected["tied"] = expected["mixed"]
    return file_of(checkpoint, matrices, found, low), expected


@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("coder", ["none", "brotli", "lzma", "zstd"])
def test_files_come_back_exactly(number: int, coder: str) -> None:
    file, expected = everything()
    choices = {stream: Choice(Layout.of(number), coder, 1.0) for stream in ("mixed.*-*", "bank.*")}
    data = encode(file, choices)
    assert encode(file, choices) == data
    decoded = decode(data)
    assert decoded.keys() == expected.keys()
    for name, tensor in expected.items():
        assert decoded[name].dtype == tensor.dtype and torch.equal(decoded[name], tensor), name


def test_damaged_files_are_refused() -> None:
    file, _ = everything()
    data = encode(file, choices_of(file, FAST))
    for broken in (b"", data[:3], b"XXXX" + data[4:], data[:-1], data + b"\0"):
        with pytest.raises(FormatError):
            decode(broken)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_correction_lowers_the_error_it_aims_at(weighted: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    h = covariance(80, 3)
    error = 0.2 * torch.randn(50, 80, generator=generator)
    error += torch.randn(50, 2, generator=generator) @ torch.randn(2, 80, generator=generator)
    found = low_rank(error, h if weighted else None)
    assert LEFT[0] <= int(found.left.min()) and int(found.left.max()) <= LEFT[1]
    assert RIGHT[0] <= int(found.right.min()) and int(found.right.max()) <= RIGHT[1]
    seen = h if weighted else torch.eye(80)

    def lost(rest: Tensor) -> float:
        return float(((rest @ seen) * rest).sum())

    values = torch.linalg.svdvals(error.double() @ torch.linalg.cholesky(seen.double()))
    best = float(values[4:].square().sum())
    assert best < lost(error - found.correction()) < best + 0.35 * (lost(error) - best)
    other = low_rank(error, None if weighted else h)
    assert lost(error - found.correction()) < lost(error - other.correction())


def test_a_correction_of_nothing_is_nothing() -> None:
    assert torch.equal(low_rank(torch.zeros(8, 70)).correction(), torch.zeros(8, 70))


def test_the_plan_that_saves_most_is_first_and_saves_what_it_says(tiny: Checkpoint, learned: Calibration) -> None:
    matrices, _ = choose(tiny, learned)
    solver = Solver(matrices, learned.stats, INT6)
    solved = solver.solve(2.0)
    found = plans(solver, solved)
    assert [plan.way for plan in found] == [p.way for p in sorted(found, key=lambda plan: -plan.saves)]
    assert {plan.way for plan in found} == {"none", "published", "under H"}
    far = {name: float((weight - solved[name].weight()).norm()) for name, weight in matrices.items()}
    published = next(plan for plan in found if plan.way == "published")
    assert list(published.names) == sorted(far, key=lambda name: -far[name])[:3]
    under = Plan("under H", tuple(matrices), True)
    before, after = loss_of(solver, solved, {}), loss_of(solver, solved, correct(solver, solved, under))
    assert after < before


@pytest.mark.parametrize("recipe", [INT6, INT5])
@pytest.mark.parametrize("limit", [12_000, 17_321, 22_000])
def test_files_keep_to_the_limit_and_use_it(tiny: Checkpoint, learned: Calibration, limit: int, recipe: Any) -> None:
    fitted = fit(tiny, learned, recipe, limit, coders=FAST)
    assert limit * (1 - 0.005) <= len(fitted.data) <= limit
    again = fit(tiny, learned, recipe, limit, coders=FAST)
    assert again.data == fitted.data


def test_a_file_of_the_demo_model(demo: Any) -> None:
    limit = 1_147_783
    fitted = fit(demo.source, demo.calibration, INT6, limit, coders=FAST)
    assert limit * (1 - ENOUGH) <= len(fitted.data) <= limit
    assert fitted.solves <= 6 and fitted.encodes <= 4
    module: nn.Module = deepcopy(demo.source.module)
    fill(module, decode(fitted.data), "the file")
    matrices = Matrices(demo.source, demo.calibration.blocks)
    restored = dict(module.named_parameters())
    loss = sum(stats.loss(restored[name].detach() - matrices[name]) for name, stats in demo.calibration.stats.items())
    assert loss == pytest.approx(fitted.loss, rel=1e-4)


def test_limits_that_cannot_be_met_are_refused(tiny: Checkpoint, learned: Calibration) -> None:
    with pytest.raises(BudgetError, match="budget of 500 bytes"):
        fit(tiny, learned, INT6, 500, coders=FAST)


def test_a_large_limit_does_not_clip_the_weights_away(tiny: Checkpoint, learned: Calibration) -> None:
    # 5 bits cannot fill this file; the least loss is not at the clips that come nearest.
    fitted = fit(tiny, learned, INT5, 60_000, coders=FAST)
    narrow = fit(tiny, learned, INT5, 26_000, coders=FAST)
    assert len(fitted.data) <= 60_000 and fitted.loss <= narrow.loss * 1.05


def test_the_method_gives_a_module_of_the_bytes(tiny: Checkpoint, learned: Calibration) -> None:
    before = {name: value.clone() for name, value in tiny.module.state_dict().items()}
    made = recipe(INT6)(tiny, learned, 20_000)
    decoded = decode(made.data)
    assert all(torch.equal(value, decoded[name].float()) for name, value in made.module.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in tiny.module.state_dict().items())


def test_streams_are_by_role_in_a_layer() -> None:
    assert streams.stream_of("model.layers.12.mlp.up_proj.weight") == "model.layers.*.mlp.up_proj.weight"
