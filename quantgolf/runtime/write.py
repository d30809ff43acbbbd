"""A module writes on: tokens drawn one after the other, for a sanity check by eye.

Nothing is known of most modules but their logits, so that no keys and values are kept: every token is a forward pass
over the whole window before it.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from quantgolf.checkpoint.call import device_of, logits_of, reading
from quantgolf.errors import QuantGolfError


def write_on(
    module: nn.Module,
    tokens: list[int],
    count: int,
    *,
    vocab_size: int,
    length: int = 512,
    temperature: float = 1.0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[int]:
    """`count` tokens that a module writes behind `tokens`.

    Args:
        module: gives logits as `checkpoint.call` understands them, on any device.
        tokens: at least one.
        count: to write.
        vocab_size: of the tokenizer; logits of padding beyond it are never drawn.
        length: the last tokens that the module sees.
        temperature: logits are divided by it; 0 takes the likeliest.
        seed: of everything drawn.
        progress: called with (tokens written, tokens to write).

    Raises:
        QuantGolfError: settings out of range, tokens outside the vocabulary, fewer logits than it, or not finite ones.
    """
    if not (temperature >= 0 and math.isfinite(temperature)):
        raise QuantGolfError(f"temperature is {temperature}, expected 0 or a number above it")
    if count < 1 or length < 1:
        raise QuantGolfError(f"{count} tokens are asked for and a window of {length}, expected at least 1 of each")
    if not tokens or not 0 <= min(tokens) <= max(tokens) < vocab_size:
        raise QuantGolfError(f"the prompt is {len(tokens)} tokens, expected at least one, below {vocab_size:,} each")
    text = list(tokens)
    with reading(module):
        for written, token in enumerate(_drawn(module, text, count, vocab_size, length, temperature, seed)):
            text.append(token)
            if progress is not None:
                progress(written + 1, count)
    return text[len(tokens) :]


def _drawn(
    module: nn.Module, text: list[int], count: int, vocab_size: int, length: int, temperature: float, seed: int
) -> Iterator[int]:
    """The next token of `text`, `count` times; the caller appends each."""
    device, generator = device_of(module), torch.Generator().manual_seed(seed)
    for _ in range(count):
        window = torch.tensor([text[-length:]], device=device)
        logits = logits_of(module, window)[0, -1].double().cpu()
        if logits.shape[0] < vocab_size:
            raise QuantGolfError(
                f"the tokenizer has {vocab_size:,} pieces and the model {logits.shape[0]:,} logits, expected as many: "
                "give the tokenizer the model was trained with"
            )
        if not logits.isfinite().all():
            raise QuantGolfError("the model's logits on its own text are not all finite, expected finite values")
        yield _draw(logits[:vocab_size], temperature, generator)


def _draw(logits: Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    return int(torch.multinomial(((logits - logits.max()) / temperature).softmax(-1), 1, generator=generator))
