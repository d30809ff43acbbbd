"""Whole models: tokens a second of decoding one token at a time and of evaluating text, packed and as bf16.

Both are compiled by torch.compile; a decode step is then captured in one CUDA graph and replayed, evaluation runs
batches as `quantgolf eval` would, the loss of every token included.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantgolf.bench.clock import Timer, Timing, measure
from quantgolf.bench.step import DecodeStep
from quantgolf.errors import QuantGolfError

Row = dict[str, Any]
EVALUATION_GOAL, DECODE_GOAL, MEMORY_GOAL = 0.95, 1.0, 0.5  # of bf16: speed, speed, and the most bytes
# ‖logits - those of the same weights in fp32‖ / ‖those‖. bf16 has eight bits, and layers add up what they lose.
TOLERANCE = {torch.bfloat16: 5e-2, torch.float32: 1e-4}


@dataclass(frozen=True)
class Setting:
    """How models are timed.

    Attributes:
        timer: for decode steps; `batches` for evaluation, which is not captured.
        compile: what makes a callable fast, `torch.compile` or the identity.
        length: positions of the decode step's memory, and tokens of a row of text.
        batch: rows of text at once.
    """

    timer: Timer
    batches: Timer
    device: torch.device
    dtype: torch.dtype
    compile: Callable[[Callable[..., Tensor]], Callable[..., Tensor]]
    length: int = 512
    batch: int = 64
    seed: int = 0


def timed_decode(setting: Setting, model: Any) -> Timing:
    """Seconds of one token of one text."""
    step = DecodeStep(model, 1, setting.length, setting.device, setting.dtype)
    token = _tokens(setting, model, (1,))
    run = setting.compile(step)
    with torch.no_grad():
        return measure(setting.timer, [lambda: run(token)])


def timed_evaluation(setting: Setting, model: Any) -> Timing:
    """Seconds of one batch of text [batch, length], its loss included."""
    tokens = _tokens(setting, model, (setting.batch, setting.length + 1))
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(model(inputs).flatten(0, 1).float(), targets.flatten(), reduction="none")

    run = setting.compile(loss)
    with torch.no_grad():
        return measure(setting.batches, [lambda: run(inputs, targets)])


def check(setting: Setting, model: Any, reference: Any) -> float:
    """Relative distance of a model's logits on random text from the reference's, fp32 on the same device.

    Raises:
        QuantGolfError: more than the dtype explains.
    """
    tokens = _tokens(setting, model, (2, min(64, setting.length)))
    with torch.no_grad():
        found, wanted = model(tokens).double(), reference(tokens).double()
        step = DecodeStep(model, 2, setting.length, setting.device, setting.dtype)
        stepped = torch.stack([step(tokens[:, at]) for at in range(tokens.shape[1])], 1).double()
    error = max(float((some - wanted).norm() / wanted.norm()) for some in (found, stepped))
    if not error <= TOLERANCE[setting.dtype]:
        raise QuantGolfError(
            f"logits are {error:.2e} from those in fp32, expected at most {TOLERANCE[setting.dtype]:g}; "
            "nothing is timed that is wrong"
        )
    return error


def stored_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, each storage counted once."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def compare(setting: Setting, form: str, packed: Any, dense: Any, reference: Any, what: tuple[str, ...]) -> list[Row]:
    """Lines of results for one file: each of `what` ("decode", "eval") packed, beside the dense model of the same
    weights in `setting.dtype`."""
    errors = check(setting, packed, reference), check(setting, dense, reference)
    held = stored_bytes(packed), stored_bytes(dense)
    rows = []
    for name in what:
        time = timed_decode if name == "decode" else timed_evaluation
        tokens = 1 if name == "decode" else setting.batch * setting.length
        packed_time, dense_time = time(setting, packed), time(setting, dense)
        rows.append({
            "name": f"model {name}", "form": form, "tokens": tokens, "length": setting.length,
            "dtype": str(setting.dtype).removeprefix("torch."), "us": packed_time.seconds * 1e6,
            "us_low": packed_time.low * 1e6, "us_high": packed_time.high * 1e6,
            "dense_us": dense_time.seconds * 1e6, "tokens_per_second": tokens / packed_time.seconds,
            "dense_tokens_per_second": tokens / dense_time.seconds, "gain": dense_time.seconds / packed_time.seconds,
            "goal": DECODE_GOAL if name == "decode" else EVALUATION_GOAL, "bytes": held[0], "dense_bytes": held[1],
            "of_dense_bytes": held[0] / held[1], "bytes_goal": MEMORY_GOAL, "error": errors[0],
            "dense_error": errors[1],
        })  # fmt: skip
    return rows


def _tokens(setting: Setting, model: Any, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(setting.seed)
    return torch.randint(0, model.config.vocab_size, shape, generator=generator).to(setting.device)
