"""Streams calibration text through the model once and returns the statistics of every weight that was used.

Labels are drawn from the model's own prediction, not read from the text: that makes the gradients' second
moment the true Fisher information, which is what the quadratic model of the loss asks for (Kunstner et al.
2019, arXiv:1905.12558).
"""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantgolf.calibrate.capture import Capture, Recorder, weights
from quantgolf.errors import QuantGolfError
from quantgolf.types import WeightStats, WeightUse


def collect(
    model: nn.Module,
    batches: Iterable[Tensor],
    *,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> dict[str, WeightStats]:
    """Statistics of every matrix that `F.linear` or `F.embedding` used, by parameter name.

    Args:
        model: `forward(tokens)` → logits [B, L, V]. It leaves as it came: parameters, gradients and mode.
        batches: input tokens, int64 [B, L], on any device.
        seed: of the sampled labels.
        progress: called with the tokens of each finished batch.

    Returns:
        name → `WeightStats`, on the model's device. A matrix that never met activations is absent.

    Raises:
        QuantGolfError: no tokens, or statistics that are not finite.
    """
    named = weights(model)
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    recorder, tokens_seen = Recorder(), 0
    training = model.training
    model.eval()
    try:
        for tokens in batches:
            tokens = tokens.to(device)
            with torch.enable_grad():
                with Capture(named, recorder):
                    logits = model(tokens)
                recorder.backward(sampled_loss(logits, generator))
            tokens_seen += tokens.numel()
            if progress is not None:
                progress(tokens.numel())
    finally:
        model.train(training)
    if not tokens_seen:
        raise QuantGolfError("calibration got 0 tokens, expected at least one batch: give it more text")
    uses: dict[str, list[WeightUse]] = {}
    for (name, kind), sums in recorder.sums.items():
        if not (sums.row.isfinite().all() and sums.column.isfinite().all()):
            raise QuantGolfError(
                f"calibration of {name} ({kind}) gave values that are not finite, expected finite activations and "
                "gradients: run the model in fp32, on other calibration text if that does not help"
            )
        row, column = (sums.visits, tokens_seen) if kind == "linear" else (tokens_seen, sums.visits)
        uses.setdefault(name, []).append(WeightUse(sums.kind, sums.row / row, sums.column / column, sums.visits))
    return {name: WeightStats(name, tuple(uses[name]), tokens_seen) for name, _ in named if name in uses}


def sampled_loss(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Summed cross-entropy (nats) of `logits` [B, L, V] against labels drawn from their own softmax."""
    flat = logits.float().flatten(0, -2)
    if not flat.isfinite().all():
        raise QuantGolfError(
            "the model's logits on the calibration text are not all finite, expected finite values: check the "
            "checkpoint with `quantgolf eval`, and run it in fp32"
        )
    labels = torch.multinomial(flat.detach().softmax(-1), 1, generator=generator)
    return F.cross_entropy(flat, labels[:, 0], reduction="sum")
