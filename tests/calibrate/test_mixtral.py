"""Experts as Hugging Face runs them: one grouped product over tokens sorted by expert, or a product for each."""

import copy

import pytest
import torch

from quantgolf.calibrate import collect

transformers = pytest.importorskip("transformers")


def test_grouped_experts_have_the_statistics_of_experts_run_one_by_one() -> None:
    config = transformers.MixtralConfig(
        vocab_size=48, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=4, num_experts_per_tok=2, use_cache=False,
    )  # fmt: skip
    torch.manual_seed(0)
    grouped = transformers.AutoModelForCausalLM.from_config(config, experts_implementation="grouped_mm").eval()
    with torch.no_grad():
        for parameter in grouped.parameters():
            parameter.normal_(0, 0.3)
    eager = copy.deepcopy(grouped)
    eager.set_experts_implementation("eager")
    batches = [(tokens, tokens) for tokens in torch.randint(48, (3, 2, 20), generator=torch.Generator().manual_seed(1))]
    found, expected = collect(grouped, batches), collect(eager, batches)
    assert set(found.stats) == set(expected.stats)
    name = "model.layers.1.mlp.experts.down_proj"
    assert {f"{name}.{expert}" for expert in range(4)} <= set(found.stats)
    visits = [found.stats[f"{name}.{expert}"].uses[0].visits for expert in range(4)]
    assert sum(visits) == 2 * 120 and len(set(visits)) > 1
    for key, stats in expected.stats.items():
        for use, other in zip(stats.uses, found.stats[key].uses, strict=True):
            assert use.visits == other.visits
            torch.testing.assert_close(use.row, other.row, rtol=1e-4, atol=1e-5 * float(use.row.max()))
            torch.testing.assert_close(use.column, other.column, rtol=1e-4, atol=1e-5 * float(use.column.max()))
