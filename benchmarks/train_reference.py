"""Trains the demo model that quantgolf ships, from nothing but the running Python's own text.

    python benchmarks/train_reference.py --minutes 75 --stable-in python3.12 --stable-in python3.13

Texts come from `quantgolf.data.stdlib`. Those that are the same in every interpreter named by --stable-in are
held out, because a user's Python has to carry them unchanged for calibration and validation; every other
text is trained on. Files are never shared between the three parts. The optimisers are those of Parameter
Golf's baseline: Muon for matrices, Adam for the embedding and the small parameters, linear warm-down to
zero, and an exponential average of the weights, which is what gets stored (fp16).
"""

import json
import math
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Annotated

import sentencepiece
import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from quantgolf.data import Tokenizer, corpus_from_texts, stdlib
from quantgolf.evaluate import evaluate
from quantgolf.models.golf import Golf, GolfConfig

DEMO = Path(__file__).parent.parent / "quantgolf" / "models" / "demo"
CALIBRATION_BYTES = 160_000
console = Console()


def split(texts: dict[str, str], interpreters: list[str]) -> dict[str, dict[str, str]]:
    """Listings (name → sha256) of the three parts: disjoint, together every text, equal ones once."""
    digests = {name: stdlib.digest(text) for name, text in texts.items()}
    first = {sha: name for name, sha in reversed(digests.items())}
    listing = {name: sha for name, sha in digests.items() if first[sha] == name}
    stable = set(listing.items())
    for interpreter in interpreters:
        printed = subprocess.run([interpreter, stdlib.__file__], capture_output=True, text=True, check=True).stdout
        stable &= set(json.loads(printed).items())
    # Sorting by the hash of the name mixes packages, so that no part is one author's style.
    pool = sorted(name for name, _ in stable)
    pool.sort(key=stdlib.digest)
    held_out: dict[str, dict[str, str]] = {"calibration": {}, "validation": {}}
    filled = 0
    for name in pool:
        part = "calibration" if filled < CALIBRATION_BYTES else "validation"
        held_out[part][name] = listing[name]
        filled += len(texts[name].encode())
    return {"train": {name: sha for name, sha in listing.items() if name not in dict(stable)}, **held_out}


def train_tokenizer(texts: list[str], pieces: int) -> bytes:
    """A SentencePiece BPE model that keeps every space and line break and falls back to bytes.

    On the validation texts BPE makes 2.53 bytes a token, unigram 2.46; without the line breaks that carry
    their indentation, 2.35.
    """
    model = BytesIO()
    breaks = ["\n" + "▁" * indent for indent in range(0, 24, 4)] + ["\n\n" + "▁" * indent for indent in (0, 4, 8)]
    lines = [line for text in texts for line in text.splitlines(keepends=False) if line]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=pieces,
        byte_fallback=True,
        character_coverage=0.9999,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        user_defined_symbols=breaks,
        bos_id=1,
        eos_id=-1,
        num_threads=os.cpu_count() or 1,
        minloglevel=2,
    )
    return model.getvalue()


def windows(stream: Tensor, length: int, batch: int, generator: torch.Generator) -> Tensor:
    """Random windows [batch, length + 1] of the stream."""
    starts = torch.randint(len(stream) - length - 1, (batch, 1), generator=generator)
    return stream[starts + torch.arange(length + 1)]


def train(
    model: Golf, stream: Tensor, minutes: float, steps: int, batch: int, length: int, seed: int, device: str
) -> tuple[AveragedModel, int]:
    """Trains until `steps` or `minutes` are spent, whichever comes first; returns the average and the steps."""
    generator = torch.Generator().manual_seed(seed)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and name != "emb.weight"]
    small = [p for p in model.parameters() if p.ndim != 2]
    groups = [
        torch.optim.Muon(matrices, lr=0.02, momentum=0.95, weight_decay=0.02),
        torch.optim.Adam([model.emb.weight], lr=6e-3, betas=(0.9, 0.95), eps=1e-10),
        torch.optim.Adam(small, lr=6e-3, betas=(0.9, 0.95), eps=1e-10),
    ]
    progress, started = 0.0, time.monotonic()

    def learning_rate(_: int) -> float:
        warm_up = min(1.0, (step + 1) / 50)
        return warm_up * min(1.0, max(0.0, (1.0 - progress) / 0.6))

    step = 0
    schedulers = [torch.optim.lr_scheduler.LambdaLR(group, learning_rate) for group in groups]
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.995))  # type: ignore[no-untyped-call]
    running = math.nan
    while progress < 1.0:
        tokens = windows(stream, length, batch, generator).to(device)
        with torch.autocast("cuda", torch.bfloat16, enabled=device == "cuda"):
            logits = model(tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group, scheduler in zip(groups, schedulers, strict=True):
            group.step()
            group.zero_grad(set_to_none=True)
            scheduler.step()
        average.update_parameters(model)
        running = loss.item() if math.isnan(running) else 0.98 * running + 0.02 * loss.item()
        step += 1
        elapsed = time.monotonic() - started
        progress = max(step / steps, elapsed / (60 * minutes))
        if step % 50 == 0:
            rate = step * batch * length / elapsed
            console.print(f"step {step}  {progress:6.1%}  loss {running:.4f} nats  {rate:,.0f} tokens/s")
    return average, step


def main(
    stable_in: Annotated[list[str], typer.Option(help="Interpreters whose texts the held-out parts must share.")],
    minutes: float = 75.0,
    steps: int = 100_000,
    batch: int = 8,
    length: int = 512,
    seed: int = 1,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
    out: Path = DEMO,
) -> None:
    texts = stdlib.read_stdlib()
    parts = split(texts, stable_in)
    config = GolfConfig()
    chosen = {part: [texts[name] for name in listing] for part, listing in parts.items()}
    sizes = {part: sum(len(text.encode()) for text in some) for part, some in chosen.items()}
    console.print(", ".join(f"{part}: {len(chosen[part])} texts, {size:,} bytes" for part, size in sizes.items()))

    out.mkdir(parents=True, exist_ok=True)
    (out / "tokenizer.model").write_bytes(train_tokenizer(chosen["train"], config.vocab_size))
    tokenizer = Tokenizer.load(out / "tokenizer.model")
    corpora = {part: corpus_from_texts(some, tokenizer) for part, some in chosen.items()}
    for part, corpus in corpora.items():
        console.print(f"{part}: {len(corpus.tokens):,} tokens, {sizes[part] / len(corpus.tokens):.3f} bytes each")

    model = Golf(config)
    model.initialise(torch.Generator().manual_seed(seed))
    average, taken = train(model.to(device), corpora["train"].tokens, minutes, steps, batch, length, seed, device)
    stored = {name: value.to(torch.float16).cpu() for name, value in average.module.state_dict().items()}
    model.load_state_dict(stored)
    bpb = {part: evaluate(model, corpora[part], length=length).bpb for part in ("calibration", "validation")}
    console.print(f"BPB {bpb}")

    save_file(stored, out / "model.safetensors")
    card = {
        "family": "golf",
        "config": asdict(config),
        "bpb": {part: round(value, 5) for part, value in bpb.items()},
        "bytes": sizes,
        "tokens": {part: len(corpus.tokens) for part, corpus in corpora.items()},
        "training": {
            "steps": taken, "batch": batch, "length": length, "seed": seed, "device": device,
            "minutes": minutes, "python": platform.python_version(), "torch": torch.__version__,
            "held_out_shared_by": [version(interpreter) for interpreter in [sys.executable, *stable_in]],
        },
        "files": parts,
    }  # fmt: skip
    (out / "card.json").write_text(json.dumps(card, indent=1) + "\n")


def version(interpreter: str) -> str:
    return subprocess.run([interpreter, "-V"], capture_output=True, text=True, check=True).stdout.split()[-1]


if __name__ == "__main__":
    typer.run(main)
