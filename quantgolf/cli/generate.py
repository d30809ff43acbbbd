"""`quantgolf generate`: a model writes on from a prompt, to see with one's own eyes that it still can."""

import time
from pathlib import Path
from typing import Annotated

import typer

from quantgolf.cli import inputs, show
from quantgolf.cli.eval import PackedOption, open_module
from quantgolf.cli.plain import plain
from quantgolf.data import Tokenizer
from quantgolf.data.corpus import bos_of
from quantgolf.data.huggingface import HuggingFaceTokenizer
from quantgolf.data.tokenizer import ByteTokenizer, SentencePieceTokenizer
from quantgolf.errors import QuantGolfError
from quantgolf.runtime.write import write_on


def generate_verb(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A compressed file, a checkpoint, or the word demo.")],
    prompt: Annotated[str, typer.Option("--prompt", help="What the text begins with.")] = "",
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="To write.")] = 64,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0 takes the likeliest.")] = 0.8,
    model: inputs.ModelOption = None,
    tokenizer: inputs.TokenizerOption = None,
    bos: inputs.BosOption = True,
    length: inputs.LengthOption = 512,
    packed: PackedOption = None,
    seed: inputs.SeedOption = 0,
    device: inputs.DeviceOption = "cpu",
    json: inputs.JsonOption = False,
) -> None:
    """Let a model write on from a prompt: a sanity check by eye.

    A file's weights are packed on a GPU and in floating point elsewhere, unless --packed or --float says otherwise. No
    keys and values are kept: every token is a forward pass over the last --length tokens.
    """
    reader = _tokenizer(file, tokenizer)
    begin = [bos_of(reader)] if bos else []
    given = begin + reader.encode(prompt)
    if not given:
        raise QuantGolfError("the prompt has no tokens, expected some with --no-bos; give it with --prompt")
    module = open_module(file, model, inputs.open_device(device), packed)
    started = time.perf_counter()
    with show.bars() as report:
        written = write_on(
            module, given, tokens, vocab_size=reader.size, length=length, temperature=temperature, seed=seed,
            progress=lambda done, total: report("writing", done, total),
        )  # fmt: skip
    seconds = time.perf_counter() - started
    text = text_of(reader, given[len(begin) :] + written)
    if json:
        show.print_json({"file": file, "prompt": prompt, "text": text, "tokens": written, "seconds": seconds})
    else:
        print(plain(text, breaks=True))


def text_of(tokenizer: Tokenizer, tokens: list[int]) -> str:
    """The text of tokens; bytes that are no UTF-8 come as replacement characters.

    Raises:
        QuantGolfError: a tokenizer of another kind, which does not turn tokens back.
    """
    if isinstance(tokenizer, SentencePieceTokenizer):
        return str(tokenizer.processor.decode(tokens))
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return str(tokenizer.backend.decode(tokens))
    if isinstance(tokenizer, ByteTokenizer):
        values = (token - tokenizer.offset for token in tokens)
        return bytes(value for value in values if 0 <= value < 256).decode("utf-8", errors="replace")
    raise QuantGolfError(
        f"a {type(tokenizer).__name__} does not turn tokens into text, expected SentencePiece, tokenizer.json or bytes"
    )


def _tokenizer(file: str, tokenizer: Path | None) -> Tokenizer:
    if tokenizer is None and file != inputs.DEMO:
        raise QuantGolfError("--tokenizer is missing, expected the tokenizer the model was trained with, or demo")
    return inputs.named_tokenizer(tokenizer or Path(inputs.DEMO))
