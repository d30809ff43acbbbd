"""The reference model: causal, sensitive to order, and the size its config says, whatever its options."""

import json
from dataclasses import asdict, replace

import pytest
import torch

from quantgolf.errors import QuantGolfError
from quantgolf.models.golf import Golf, GolfConfig, rotary, rotate

CONFIG = GolfConfig(vocab_size=64, dim=32, layers=2, heads=4, kv_heads=2)
EVERYTHING = replace(CONFIG, layers=3, loop_first=1, loop_last=2, loop_times=2, banks=True, tied=False, gates=True)


def drawn(config: GolfConfig = CONFIG) -> Golf:
    model = Golf(config)
    generator = torch.Generator().manual_seed(0)
    model.initialise(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.mark.parametrize("config", [CONFIG, EVERYTHING])
def test_no_token_sees_the_future(config: GolfConfig) -> None:
    model, tokens = drawn(config), torch.arange(20)[None]
    changed = tokens.clone()
    changed[0, 12] = 63
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :12], after[:, :12])
    assert not torch.allclose(before[:, 12:], after[:, 12:])
    assert before.shape == (1, 20, 64) and float(before.abs().max()) <= 30


def test_rotation_depends_on_distance_alone() -> None:
    cos, sin = rotary(CONFIG, 50, torch.device("cpu"))
    q, k = torch.randn(2, 8, generator=torch.Generator().manual_seed(1))
    near = rotate(q, cos[7], sin[7]) @ rotate(k, cos[3], sin[3])
    far = rotate(q, cos[44], sin[44]) @ rotate(k, cos[40], sin[40])
    torch.testing.assert_close(near, far)
    torch.testing.assert_close(rotate(q, cos[9], sin[9]).norm(), q.norm())


def test_fresh_weights_are_repeatable_and_start_as_the_identity() -> None:
    first, second = Golf(CONFIG), Golf(CONFIG)
    for model in (first, second):
        model.initialise(torch.Generator().manual_seed(5))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not first.blocks[0].attn.o.weight.any() and not first.blocks[1].down.weight.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 0}, "dim is 0"),
        ({"layers": 10**9}, "layers is 1000000000"),
        ({"kv_heads": 3}, "heads is 4, expected a multiple"),
        ({"dim": 12}, "dim is 12"),
        ({"layers": 2.5}, r"layers is 2\.5, expected a positive whole number"),
        ({"layers": True}, "layers is True"),
        ({"dim": "256"}, "dim is '256'"),
        ({"logit_softcap": float("nan")}, "logit_softcap is nan, expected a positive number"),
        ({"rope_base": 10**400}, "rope_base is 1000"),
        ({"banks": 1}, "banks is 1, expected true or false"),
        ({"tied": None}, "tied is None"),
        ({"loop_first": -1}, "loop_first is -1, expected the number of a layer"),
        ({"loop_last": 4}, "loop_last 4, expected a range within layers 0 to 3"),
        ({"loop_first": 2, "loop_last": 1}, "loop_first is 2 and loop_last 1"),
        ({"loop_times": 0}, "loop_times is 0"),
        ({"loop_times": 10**9}, "loop_times 1000000000, 1000000003 runs of a layer, expected at most 1000"),
        ({"layers": 500, "loop_last": 499, "loop_times": 3}, "layers is 500 and loop_times 3, 1500 runs"),
        ({"gates": True, "dim": 8, "heads": 2, "kv_heads": 1}, "dim is 8, expected at least 12 with gates"),
    ],
)
def test_impossible_shapes_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(QuantGolfError, match=message):
        GolfConfig(**{"heads": 4, **changes})


def test_configs_survive_json_and_cards_from_before_the_options_stay_valid() -> None:
    assert GolfConfig(**json.loads(json.dumps(asdict(EVERYTHING)))) == EVERYTHING
    card = {"vocab_size": 64, "dim": 32, "layers": 2, "heads": 4, "kv_heads": 2, "mlp_mult": 3}
    model = Golf(GolfConfig(**card, logit_softcap=30.0, rope_base=10000.0))
    assert model.config == CONFIG and model.config.order == (0, 1)
    layer = [
        "attn_scale",
        "mlp_scale",
        "attn.gain",
        *(f"{m}.weight" for m in ["attn.q", "attn.k", "attn.v", "attn.o", "up", "down"]),
    ]
    assert sorted(model.state_dict()) == sorted(
        ["emb.weight", *(f"blocks.{i}.{name}" for i in (0, 1) for name in layer)]
    )


def test_options_add_the_parameters_of_contest_checkpoints() -> None:
    shapes = {name: list(p.shape) for name, p in Golf(EVERYTHING).named_parameters() if p.ndim >= 2}
    blocks = {name: shape for name, shape in shapes.items() if name.startswith("blocks.")}
    assert {name: shape for name, shape in shapes.items() if name not in blocks} == {
        "emb.weight": [64, 32], "head.weight": [64, 32], "skip_weights": [2, 32],
        "qo_bank": [6, 32, 32], "kv_bank": [6, 16, 32], "up_bank": [3, 96, 32], "down_bank": [3, 32, 96],
    }  # fmt: skip
    assert blocks == {
        f"blocks.{i}.{name}": shape
        for i in range(3)
        for name, shape in (("attn.gain", [4, 1, 1]), ("attn.gate", [4, 12]), ("mix", [2, 32]))
    }
    assert "skip_weights" not in dict(Golf(replace(CONFIG, layers=1, gates=True)).named_parameters())


def test_looped_layers_are_the_stack_written_out() -> None:
    looped = drawn(replace(CONFIG, layers=4, loop_first=1, loop_last=2, loop_times=3, gates=True))
    assert looped.config.order == (0, 1, 2, 1, 2, 1, 2, 3)
    stack = Golf(replace(CONFIG, layers=8, gates=True))
    state = {name: value for name, value in looped.state_dict().items() if not name.startswith("blocks.")}
    for run, layer in enumerate(looped.config.order):
        block = looped.blocks[layer].state_dict()
        state.update({f"blocks.{run}.{name}": value for name, value in block.items()})
    stack.load_state_dict(state)
    tokens = torch.arange(24).reshape(2, 12)
    assert torch.equal(looped(tokens), stack(tokens))


def test_gates_start_open_and_every_one_of_them_matters() -> None:
    plain, gated = Golf(CONFIG), Golf(replace(CONFIG, gates=True))
    gated.load_state_dict(drawn().state_dict(), strict=False)
    plain.load_state_dict(drawn().state_dict())
    assert gated.skip_weights is not None
    tokens = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        gated.skip_weights.zero_()  # the one control that a model without gates lacks when all are fresh
    torch.testing.assert_close(gated(tokens), plain(tokens))
    controls = [gated.skip_weights, *(p for block in gated.blocks for p in (block.mix, block.attn.gate))]
    for control in controls:
        before = gated(tokens).detach()
        with torch.no_grad():
            control.add_(0.3)
        assert not torch.allclose(before, gated(tokens), atol=1e-3)


def test_tied_heads_are_untied_by_a_copy() -> None:
    tied, untied = drawn(), Golf(replace(CONFIG, tied=False))
    untied.load_state_dict({**tied.state_dict(), "head.weight": tied.emb.weight})
    tokens = torch.arange(20)[None]
    assert torch.equal(tied(tokens), untied(tokens))
    with torch.no_grad():
        untied.head.weight[5].zero_()
    assert not untied(tokens)[..., 5].any() and untied.emb.weight[5].any()


def test_initialise_covers_every_option_and_leaves_gates_open() -> None:
    model = Golf(EVERYTHING)
    for seed in (4, 5):
        model.initialise(torch.Generator().manual_seed(seed))
    again = Golf(EVERYTHING)
    again.initialise(torch.Generator().manual_seed(5))
    for (name, first), second in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(first, second), name
    assert not model.down_bank.any() and not model.qo_bank[3:].any()
    assert all(matrix.std() > 0.1 for bank in (model.qo_bank[:3], model.kv_bank, model.up_bank) for matrix in bank)
    assert model.head is not None and 0.015 < float(model.head.weight.detach().std()) < 0.025
    assert not model.blocks[0].attn.gate.any() and model.blocks[0].mix.sum() == 32
