"""Hugging Face folders and GGUF files open as transformers itself opens them, bit for bit, and without a network."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from quantgolf.checkpoint import build_model, describe_model, fill, open_checkpoint
from quantgolf.cli.inputs import open_source
from quantgolf.errors import QuantGolfError

pytestmark = pytest.mark.usefixtures("one_thread")

transformers = pytest.importorskip("transformers")
transformers.logging.disable_progress_bar()
transformers.logging.set_verbosity_error()

SIZES = {"vocab_size": 96, "bos_token_id": 1, "eos_token_id": 2}
LLAMA = SIZES | {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500},
}  # fmt: skip
TOKENS = torch.arange(24).view(2, 12) * 7 % 96


def llama(**changes: Any) -> nn.Module:
    return seeded(transformers.LlamaConfig(**LLAMA | changes))


def gpt2(**changes: Any) -> nn.Module:
    sizes = SIZES | {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 16}
    return seeded(transformers.GPT2Config(**sizes | changes))


def mixtral() -> nn.Module:
    return seeded(transformers.MixtralConfig(**LLAMA, num_local_experts=3))


def seeded(config: Any) -> nn.Module:
    torch.manual_seed(0)
    module: nn.Module = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return module


def logits(module: nn.Module) -> Tensor:
    with torch.no_grad():
        result: Tensor = module(TOKENS).logits
    return result


@pytest.mark.parametrize("shard", ["1GB", "10KB"])
@pytest.mark.parametrize(
    "make", [llama, gpt2, lambda: llama(tie_word_embeddings=True), lambda: gpt2(tie_word_embeddings=False)]
)
def test_a_folder_opens_bit_for_bit(tmp_path: Path, make: Callable[[], nn.Module], shard: str) -> None:
    original = make()
    original.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "10KB")
    checkpoint = open_checkpoint(tmp_path)
    assert torch.equal(logits(checkpoint.module), logits(original))
    assert checkpoint.notes == () and checkpoint.aliases == {} and checkpoint.description is None
    assert not checkpoint.module.training
    assert open_source(str(tmp_path), None).fingerprint == checkpoint.fingerprint
    for name, parameter in checkpoint.module.named_parameters():
        assert parameter.data_ptr() == checkpoint.tensors[name].data_ptr(), name
    tied = make().config.tie_word_embeddings
    assert checkpoint.parameters == sum(parameter.numel() for parameter in original.parameters())
    assert tied == (checkpoint.module.lm_head.weight is checkpoint.module.get_input_embeddings().weight)


@pytest.mark.parametrize("make", [llama, gpt2])
def test_a_module_is_rebuilt_from_its_configuration_alone(tmp_path: Path, make: Callable[[], nn.Module]) -> None:
    original = make()
    original.save_pretrained(tmp_path)
    tensors = open_checkpoint(tmp_path).tensors
    (tmp_path / "model.safetensors").unlink()
    module = build_model(f"hf:{tmp_path}")
    assert describe_model(f"hf:{tmp_path}") is None
    fill(module, tensors, "test")
    assert torch.equal(logits(module), logits(original))
    assert {n: b.tolist() for n, b in module.named_buffers()} == {n: b.tolist() for n, b in original.named_buffers()}


def test_weights_may_lie_apart_from_the_configuration(tmp_path: Path) -> None:
    original, script = llama(), tmp_path / "make.py"
    original.save_pretrained(tmp_path / "a")
    (tmp_path / "a" / "model.safetensors").rename(tmp_path / "w.safetensors")
    script.write_text(
        "from transformers import AutoConfig, AutoModelForCausalLM\n\n\ndef build():\n"
        f"    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained({str(tmp_path / 'a')!r}))\n"
    )
    for model in (f"hf:{tmp_path / 'a'}", f"{script}:build"):
        assert torch.equal(logits(open_checkpoint(tmp_path / "w.safetensors", model).module), logits(original))


def test_half_precision_stays_as_stored_and_rotary_frequencies_are_exact(tmp_path: Path) -> None:
    original = llama()
    original.bfloat16().save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert {tensor.dtype for tensor in checkpoint.tensors.values()} == {torch.bfloat16}
    assert {tensor.dtype for tensor in checkpoint.module.state_dict().values()} == {torch.float32}
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert torch.equal(logits(checkpoint.module), logits(reference))


def test_names_of_another_time_are_mapped_by_transformers(tmp_path: Path) -> None:
    """Experts are stored one by one and live in one parameter; GPT-2 was saved without its head, masks included."""
    moe, gpt = mixtral(), gpt2()
    moe.save_pretrained(tmp_path / "moe")
    gpt.save_pretrained(tmp_path / "gpt")
    file = tmp_path / "gpt" / "model.safetensors"
    bare = {name.removeprefix("transformer."): tensor.half() for name, tensor in load_file(file).items()}
    save_file(bare | {"h.0.attn.bias": torch.ones(1, 1, 16, 16).half()}, file, metadata={"format": "pt"})
    checkpoint = open_checkpoint(tmp_path / "moe")
    assert torch.equal(logits(checkpoint.module), logits(moe))
    (note,) = checkpoint.notes
    assert note.startswith("transformers gave the stored tensors their module's names and shapes")
    assert any(tensor.ndim == 3 for tensor in checkpoint.tensors.values())
    checkpoint = open_checkpoint(tmp_path / "gpt")
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.copy_(parameter.half())
    assert torch.equal(logits(checkpoint.module), logits(gpt))
    assert {str(tensor.dtype) for tensor in checkpoint.tensors.values()} == {"torch.float16"}


def test_buffers_that_old_folders_store_are_left_out(tmp_path: Path) -> None:
    original = llama()
    original.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    save_file(tensors | {name: original.model.rotary_emb.inv_freq.clone()}, file, metadata={"format": "pt"})
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.notes == (f"left out {name}: the model computes the same values itself",)
    assert torch.equal(logits(checkpoint.module), logits(original))


def test_missing_weights_are_never_drawn_at_random(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.norm.weight"]
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(3, 3)
    save_file(tensors | {"other": torch.zeros(1)}, file, metadata={"format": "pt"})
    with pytest.raises(QuantGolfError) as caught:
        open_checkpoint(tmp_path)
    for part in ("missing model.norm.weight", "surplus other", "up_proj.weight is [3, 3] where the model has [48, 32]"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "has no config.json, expected hf:PATH"),
        ("{", "transformers cannot open it"),
        ('{"model_type": "no_such_model"}', "no_such_model"),
        ('{"model_type": "t5"}', "of a causal language model"),
        ('{"model_type": "x", "auto_map": {"AutoConfig": "c.C", "AutoModelForCausalLM": "m.M"}}', "code of its own"),
    ],
)
def test_folders_transformers_cannot_open_are_refused(tmp_path: Path, config: str | None, message: str) -> None:
    for name in ("c.py", "m.py"):
        (tmp_path / name).write_text("raise AssertionError('code beside the model was run')")
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(QuantGolfError, match=message) as caught:
        build_model(f"hf:{tmp_path}")
    assert "\n" not in str(caught.value) and "was run" not in str(caught.value)


def test_nothing_is_looked_up_elsewhere(tmp_path: Path) -> None:
    for path in ("gpt2", str(tmp_path / "gone"), str(tmp_path / "gone.gguf")):
        with pytest.raises(QuantGolfError, match="no such file or folder, expected hf:PATH"):
            build_model(f"hf:{path}")


def test_quantized_folders_are_refused(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    save_file({"model.norm.qweight": torch.zeros(1, dtype=torch.int32)}, tmp_path / "model.safetensors")
    with pytest.raises(QuantGolfError, match="has a quantization_config, expected a model in floating point"):
        open_checkpoint(tmp_path)


def test_without_transformers_the_remedy_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "m.gguf").write_text("GGUF")
    for absent, name in (("transformers", ""), ("gguf", "m.gguf"), ("accelerate", "m.gguf")):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, absent, None)
            with pytest.raises(QuantGolfError, match=r"pip install 'quantgolf\[hf\]'"):
                build_model(f"hf:{tmp_path / name}")


def test_transformers_is_imported_by_those_who_ask_alone() -> None:
    code = "import sys, quantgolf; sys.exit('transformers' in sys.modules or 'gguf' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def write_gguf(path: Path, module: nn.Module, half: bool = False, skip: str = "") -> None:
    """A llama as llama.cpp writes it: its own names, and q and k with the halves of each head interleaved."""
    gguf = pytest.importorskip("gguf")
    config: Any = module.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    parts = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
        "model.layers": "blk",
    }  # fmt: skip
    for name, tensor in module.state_dict().items():
        if name == skip or (name == "lm_head.weight" and config.tie_word_embeddings):
            continue
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        if heads is not None:
            tensor = tensor.view(heads, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
        for long, short in parts.items():
            name = name.replace(long, short)
        writer.add_tensor(name, tensor.half().numpy() if half and tensor.ndim == 2 else tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("half", [False, True])
def test_gguf_opens_as_the_model_it_was_written_from(tmp_path: Path, half: bool, tied: bool) -> None:
    original, path = llama(tie_word_embeddings=tied), tmp_path / "m.gguf"
    write_gguf(path, original, half)
    if half:
        with torch.no_grad():
            for parameter in original.parameters():
                if parameter.ndim == 2:
                    parameter.copy_(parameter.half())
    for checkpoint in (open_checkpoint(path), open_checkpoint(tmp_path), open_checkpoint(path, f"hf:{path}")):
        assert torch.equal(logits(checkpoint.module), logits(original))
        assert checkpoint.parameters == sum(parameter.numel() for parameter in original.parameters())
        for name, parameter in checkpoint.module.named_parameters():
            assert parameter.data_ptr() == checkpoint.tensors[name].data_ptr(), name
    module = build_model(f"hf:{path}")
    fill(module, checkpoint.tensors, "test")
    assert torch.equal(logits(module), logits(original))
    original.config.save_pretrained(tmp_path / "folder")
    assert torch.equal(logits(open_checkpoint(path, f"hf:{tmp_path / 'folder'}").module), logits(original))


def test_bad_gguf_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, llama(), skip="model.layers.1.mlp.up_proj.weight")
    with pytest.raises(QuantGolfError, match=r"missing model\.layers\.1\.mlp\.up_proj\.weight"):
        open_checkpoint(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(QuantGolfError, match="transformers cannot open it") as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(QuantGolfError, match=r"no such file or folder.*\.gguf"):
        open_checkpoint(tmp_path / "gone.gguf")
