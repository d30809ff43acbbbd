"""What a matrix does, from its name: `attn.q` of layer 3 for `model.layers.3.self_attn.q_proj.weight`."""

import re

ATTENTION, MLP = ("att", "mixer"), ("mlp", "ffn", "feed_forward", "feedforward", "ff", "expert", "moe")
# By what a name's last word is, its `c_`, `w` or `to_` and its `_proj` taken off.
OF_ATTENTION = {
    "q": "q", "query": "q", "k": "k", "key": "k", "v": "v", "value": "v", "o": "o", "out": "o", "output": "o",
    "proj": "o", "dense": "o", "qkv": "qkv", "query_key_value": "qkv", "attn": "qkv", "in": "qkv", "kv": "kv",
    "qo": "qo", "qk": "qk",
}  # fmt: skip
OF_MLP = {
    "up": "up", "fc": "up", "fc1": "up", "fc_in": "up", "in": "up", "3": "up", "i": "up", "dense_h_to_4h": "up",
    "1": "gate", "gate": "gate", "gate_up": "gate_up", "down": "down", "proj": "down", "fc2": "down", "fc_out": "down",
    "out": "down", "2": "down", "o": "down", "output": "down", "dense_4h_to_h": "down",
}  # fmt: skip
OUTSIDE = {
    "emb": "emb", "tok_emb": "emb", "wte": "emb", "embed_tokens": "emb", "token_embd": "emb", "embed": "emb",
    "word_embeddings": "emb", "token_embedding": "emb", "embeddings": "emb", "embed_in": "emb", "embedding": "emb",
    "wpe": "positions", "pos_emb": "positions", "position_embeddings": "positions",
    "lm_head": "head", "head": "head", "embed_out": "head", "output": "head",
}  # fmt: skip
AFFIX = re.compile(r"^(?:c_|w_?|to_)(?=.)|_(?:proj|bank|weight)$")
# Of a word that says both, such as GGUF's `attn_q`, `ffn_down`, or a contest's `mlp_up_bank`.
BOTH = re.compile(r"^(self_attn|attn|attention|mlp|ffn)_(.+)$")


def depth_of(name: str) -> int | None:
    """The layer that a matrix is in, or which of a bank it is; None outside of layers."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)


def role_of(name: str) -> str:
    """What a matrix does in its layer: `attn.q`, `mlp.up`, `experts.down`, `emb`, `head`; of a name that says none of
    these its last two words."""
    parts = [part for part in name.split(".") if not re.fullmatch(r"\d+-\d+", part)]
    if parts and parts[-1] in ("weight", "data"):
        parts.pop()
    at = next((index for index, part in enumerate(parts) if part.isdecimal()), None)
    words = [part for part in parts[0 if at is None else at + 1 :] if not part.isdecimal()]
    inside = at is not None and bool(words)
    if not words:
        words = [part for part in parts if not part.isdecimal()] or [name]
    if not inside and at is None and words[-1] in OUTSIDE:
        return OUTSIDE[words[-1]]
    both = BOTH.match(words[-1])
    if both:
        words[-1:] = [both[1], both[2]]
    last, above = _plain(words[-1]), ".".join(words[:-1]).lower()
    if any(part in above for part in MLP) and last in OF_MLP:
        if words[-1] == "gate" and both is None:
            return "mlp.router"
        return f"{'experts' if 'expert' in above else 'mlp'}.{OF_MLP[last]}"
    if any(part in above for part in ATTENTION) and last in OF_ATTENTION:
        return f"attn.{OF_ATTENTION[last]}"
    if above.endswith("intermediate") and last == "dense":
        return "mlp.up"
    if above == "output" and last == "dense":
        return "mlp.down"
    if last in ("qo", "kv", "qkv", "q", "k", "v", "o"):
        return f"attn.{last}"
    if last in ("up", "gate", "gate_up", "down"):
        return f"mlp.{last}"
    return ".".join(words[-2:]).removesuffix("_bank")


def _plain(word: str) -> str:
    """A word without what frameworks put around it."""
    before = ""
    while before != word:
        before, word = word, AFFIX.sub("", word)
    return word
