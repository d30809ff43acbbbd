"""Roles and layers from the names that checkpoints of the field have."""

import pytest

from quantgolf.sweep.roles import depth_of, role_of


@pytest.mark.parametrize(
    ("name", "role", "depth"),
    [
        ("blocks.3.attn.q.weight", "attn.q", 3),
        ("blocks.0.up.weight", "mlp.up", 0),
        ("emb.weight", "emb", None),
        ("qo_bank.7", "attn.qo", 7),
        ("kv_bank.1", "attn.kv", 1),
        ("mlp_up_bank.2", "mlp.up", 2),
        ("down_bank.2", "mlp.down", 2),
        ("model.layers.11.self_attn.o_proj.weight", "attn.o", 11),
        ("model.layers.11.mlp.gate_proj.weight", "mlp.gate", 11),
        ("model.layers.5.mlp.experts.3.down_proj.weight", "experts.down", 5),
        ("model.layers.5.mlp.gate.weight", "mlp.router", 5),
        ("model.embed_tokens.weight", "emb", None),
        ("lm_head.weight", "head", None),
        ("transformer.h.2.attn.c_attn.weight", "attn.qkv", 2),
        ("transformer.h.2.attn.c_proj.weight", "attn.o", 2),
        ("transformer.h.2.mlp.c_fc.weight", "mlp.up", 2),
        ("transformer.h.2.mlp.c_proj.weight", "mlp.down", 2),
        ("transformer.wte.weight", "emb", None),
        ("blk.4.attn_output.weight", "attn.o", 4),
        ("blk.4.ffn_gate.weight", "mlp.gate", 4),
        ("token_embd.weight", "emb", None),
        ("encoder.layer.0.attention.self.query.weight", "attn.q", 0),
        ("encoder.layer.0.intermediate.dense.weight", "mlp.up", 0),
        ("encoder.layer.0.output.dense.weight", "mlp.down", 0),
        ("blocks.1.attn.qkv.0-512", "attn.qkv", 1),
        ("lora.a", "lora.a", None),
        ("x", "x", None),
    ],
)
def test_roles(name: str, role: str, depth: int | None) -> None:
    assert (role_of(name), depth_of(name)) == (role, depth)
