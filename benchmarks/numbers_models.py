"""Small models of heavy-tailed weights, drawn: what `hard_numbers.py` asks for bytes, for slopes and for statistics."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from quantgolf.calibrate import collect
from quantgolf.checkpoint import Checkpoint, open_checkpoint
from quantgolf.compress.matrices import choose
from quantgolf.compress.slope import OneSlope
from quantgolf.solve import SolveOptions
from quantgolf.solve.trellis import Trellis
from quantgolf.types import Calibration

Batch = tuple[Tensor, Tensor]


class Net(nn.Module):
    """Lookup, layers of any widths with tanh between them, and a head; given targets, its loss."""

    def __init__(self, vocab: int, widths: list[int]) -> None:
        super().__init__()
        self.emb = nn.Embedding(vocab, widths[0])
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, [*widths[1:], vocab], strict=True))

    def forward(self, tokens: Tensor) -> Tensor:
        x: Tensor = self.emb(tokens)
        for layer in self.layers:
            x = layer(torch.tanh(x))
        return x


class Losing(Net):
    """Gives its loss alone, so that statistics are taken at the text's own labels and nothing is drawn."""

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:  # type: ignore[override]
        # Not by `F.cross_entropy`, which would be asked for its logits.
        return -super().forward(tokens).log_softmax(-1).gather(-1, targets[..., None]).mean()


@dataclass(frozen=True)
class Drawn:
    """A model with its statistics."""

    checkpoint: Checkpoint
    calibration: Calibration
    generator: torch.Generator

    def between(self, low: int, high: int) -> int:
        """A number from `low` to `high`."""
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def one_slope(self, states: int, code_bytes: int = 0) -> OneSlope:
        """Files of it."""
        matrices, kept = choose(self.checkpoint, self.calibration)
        trellis = Trellis(states, 64)
        return OneSlope(
            self.checkpoint, matrices, kept, self.calibration.stats, SolveOptions(), trellis, code_bytes
        )  # fmt: skip


def fill(module: nn.Module, generator: torch.Generator, tails: float) -> None:
    """Student's t of so many degrees of freedom, the rows of a matrix by factors of up to 30 apart."""
    with torch.no_grad():
        for parameter in module.parameters():
            normal, square = (torch.randn(parameter.shape, generator=generator) for _ in range(2))
            # A cheap heavy tail: normal over a power of another normal's magnitude.
            values = normal / square.abs().clamp(min=1e-3) ** (1 / tails)
            if parameter.ndim == 2:
                values *= 30 ** -torch.rand(len(parameter), 1, generator=generator) / parameter.shape[1] ** 0.5
            parameter.copy_(values.clamp(-4, 4))


def batches(vocab: int, generator: torch.Generator, count: int, length: int = 24) -> list[Batch]:
    """Random text, tokens by Zipf's law, one window a batch."""
    weights = 1 / torch.arange(1, vocab + 1)
    drawn = [torch.multinomial(weights, length + 1, replacement=True, generator=generator) for _ in range(count)]
    return [(each[None, :-1], each[None, 1:]) for each in drawn]


def draw(seed: int, folder: Path, *, largest: int = 48, windows: int = 8, length: int = 24) -> Drawn:
    """A model of random widths, dtype and tails, and its statistics on random text."""
    generator = torch.Generator().manual_seed(seed)

    def between(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    vocab, widths = between(40, 300), [between(16, largest) for _ in range(between(1, 4))]
    dtype = (torch.float16, torch.bfloat16, torch.float32)[seed % 3]
    module = Net(vocab, widths)
    fill(module, generator, (1.0, 2.0, 4.0, 50.0)[between(0, 3)])
    path = folder / f"{seed}.safetensors"
    save_file({name: value.to(dtype) for name, value in module.state_dict().items()}, path)
    checkpoint = open_checkpoint(path, Net(vocab, widths))
    learned = collect(checkpoint.module, batches(vocab, generator, windows, length), seed=seed)
    return Drawn(checkpoint, learned, generator)
