"""Banks are another way to store the same model: bit for bit, there and back."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantgolf.errors import QuantGolfError
from quantgolf.models.banks import from_banks, to_banks
from quantgolf.models.golf import Golf, GolfConfig

CONFIG = GolfConfig(vocab_size=40, dim=32, layers=3, heads=4, kv_heads=2)


def plain_model(config: GolfConfig = CONFIG) -> Golf:
    model = Golf(config)
    generator = torch.Generator().manual_seed(0)
    model.initialise(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


@settings(max_examples=8, deadline=None)
@given(
    layers=st.integers(1, 4), kv_heads=st.sampled_from([1, 2, 4]), mlp_mult=st.integers(1, 3), times=st.integers(1, 3),
    tied=st.booleans(), gates=st.booleans(),
)  # fmt: skip
def test_banked_logits_are_those_of_the_plain_model_bit_for_bit(
    layers: int, kv_heads: int, mlp_mult: int, times: int, tied: bool, gates: bool
) -> None:
    config = replace(CONFIG, layers=layers, kv_heads=kv_heads, mlp_mult=mlp_mult, tied=tied, gates=gates)
    config = replace(config, loop_first=layers // 2, loop_last=layers - 1, loop_times=times)
    plain, banked = plain_model(config), Golf(replace(config, banks=True))
    banked.load_state_dict(to_banks(plain.state_dict(), config))
    tokens = torch.arange(30).reshape(2, 15)
    with torch.no_grad():
        assert torch.equal(plain(tokens), banked(tokens))
    back = from_banks(banked.state_dict(), config)
    assert back.keys() == plain.state_dict().keys()
    assert all(torch.equal(back[name], value) for name, value in plain.state_dict().items())


def test_queries_come_before_outputs_and_keys_before_values() -> None:
    plain = plain_model().state_dict()
    banks = to_banks(plain, CONFIG)
    for layer in range(3):
        for bank, index, name in (
            ("qo_bank", layer, "attn.q"), ("qo_bank", 3 + layer, "attn.o"), ("kv_bank", layer, "attn.k"),
            ("kv_bank", 3 + layer, "attn.v"), ("up_bank", layer, "up"), ("down_bank", layer, "down"),
        ):  # fmt: skip
            assert torch.equal(banks[bank][index], plain[f"blocks.{layer}.{name}.weight"])


def test_the_same_seed_draws_the_same_model_with_banks() -> None:
    plain, banked = Golf(CONFIG), Golf(replace(CONFIG, banks=True))
    for model in (plain, banked):
        model.initialise(torch.Generator().manual_seed(2))
    drawn = to_banks(plain.state_dict(), CONFIG)
    assert drawn.keys() == banked.state_dict().keys()
    assert all(torch.equal(drawn[name], value) for name, value in banked.state_dict().items())


def test_half_precision_banks_are_cast_at_use() -> None:
    banked = Golf(replace(CONFIG, banks=True))
    banked.load_state_dict(to_banks(plain_model().state_dict(), CONFIG))
    banked.emb.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        logits = banked(torch.arange(10)[None])
    assert logits.dtype == torch.float32 and logits.isfinite().all() and banked.qo_bank.dtype == torch.float32


def test_banks_that_do_not_fit_are_refused() -> None:
    plain = plain_model().state_dict()
    with pytest.raises(QuantGolfError, match=r"blocks\.3\.attn\.q\.weight, .* … missing, expected 24 entries"):
        to_banks(plain, replace(CONFIG, layers=4))
    banks = to_banks(plain, CONFIG)
    with pytest.raises(QuantGolfError, match="qo_bank holds 6 matrices, expected 8 for 4 layers"):
        from_banks(banks, replace(CONFIG, layers=4))
    with pytest.raises(QuantGolfError, match="qo_bank, kv_bank, up_bank … missing"):
        from_banks(plain, CONFIG)
