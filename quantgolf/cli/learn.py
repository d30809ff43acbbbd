"""What verbs that calibrate share: where statistics come from, and how much memory and how many processes they get."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from quantgolf.calibrate.store import read_calibration
from quantgolf.checkpoint import Checkpoint
from quantgolf.cli import inputs, show
from quantgolf.cli.inputs import OwnText, Part, TextOptions
from quantgolf.compress import batches_of, calibrate_to
from quantgolf.compress.memory import available_bytes, resident_bytes
from quantgolf.compress.pipeline import calibrate
from quantgolf.data import Corpus, refuse_misfit
from quantgolf.errors import QuantGolfError
from quantgolf.ranks import Ranks, joined
from quantgolf.sizes import parse_size
from quantgolf.types import Calibration

TokensOption = Annotated[int, typer.Option("--tokens", min=1, help="Calibration tokens.")]
StatsOption = Annotated[
    Path | None, typer.Option("--stats", help="Folder that `quantgolf calibrate` wrote, instead of calibrating.")
]
OffloadOption = Annotated[
    bool,
    typer.Option("--offload", help="Groups of layers in passes of their own, statistics on disk, within --memory."),
]
MemoryOption = Annotated[
    str | None,
    typer.Option("--memory", help="With --offload: what the process may take; default: 80% of what is free."),
]
RankTimeoutOption = Annotated[
    float, typer.Option("--rank-timeout", min=0.01, help="Minutes to wait for the other processes of torchrun.")
]
RANK_TIMEOUT = 60.0
SHARE_OF_FREE = 0.8
# What statistics that lie there already have decided.
DECIDED = ("data", "tokenizer", "documents", "text_field", "byte_counts", "bos", "length", "context", "tokens", "seed",
           "offload", "memory", "device")  # fmt: skip


@dataclass(frozen=True)
class Learning:
    """How to calibrate: the options above, and those of the text."""

    text: TextOptions
    tokens: int
    seed: int
    device: str
    offload: bool
    memory: str | None

    def open(self, source: Checkpoint, name: str, report: show.Report) -> Corpus:
        """The calibration text; a model that writes it itself does so now."""
        own = OwnText(source.module, self.seed, lambda done, total: report("writing text", done, total))
        return self.text.open(name, self.tokens, Part.calibration, own)

    def batches(self, corpus: Corpus) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """As `batches_of`; window by window where memory is short."""
        return batches_of(
            corpus, tokens=self.tokens, length=self.text.length, context=self.text.context.value,
            one_by_one=self.offload,
        )  # fmt: skip

    def settings(self) -> dict[str, Any]:
        """What is kept with statistics."""
        return {"tokens": self.tokens, "length": self.text.length, "context": self.text.context.value,
                "seed": self.seed}  # fmt: skip

    def limit(self) -> int | None:
        """Bytes the process may take; None for all statistics at once."""
        if not self.offload:
            if self.memory is not None:
                raise QuantGolfError("--memory is a limit of --offload, expected both; add --offload or leave it out")
            return None
        if self.memory is not None:
            return parse_size(self.memory)
        return resident_bytes() + int(SHARE_OF_FREE * available_bytes())

    def learn(self, source: Checkpoint, corpus: Corpus, ranks: Ranks, report: show.Report) -> Calibration:
        """Statistics in memory."""
        return calibrate(
            source, corpus, tokens=self.tokens, length=self.text.length, context=self.text.context.value,
            seed=self.seed, ranks=ranks, progress=report,
        )  # fmt: skip

    def learn_to(
        self, folder: Path, source: Checkpoint, corpus: Corpus, ranks: Ranks, report: show.Report, overwrite: bool
    ) -> Calibration:
        """Statistics in a folder."""
        batches = self.batches(corpus)
        refuse_misfit(source.module, corpus, self.text.length, self.text.context.value, losses=True)
        return calibrate_to(
            folder, source, batches, self.settings(), memory=self.limit(), overwrite=overwrite,
            ranks=ranks, progress=report,
        )  # fmt: skip


def stored(folder: Path, source: Checkpoint, call: typer.Context) -> tuple[Calibration, dict[str, Any]]:
    """Statistics of an earlier run, which have to be of this checkpoint, and the settings they were made with.

    Raises:
        QuantGolfError: they are of another, or an option was given that they have decided already.
    """
    # A verb that solves does so on --device.
    decided = [name for name in DECIDED if name != "device" or "solver" not in call.params]
    sources = {name: call.get_parameter_source(name) for name in decided}
    given = [name for name, origin in sources.items() if origin is not None and origin.name == "COMMANDLINE"]
    if given:
        options = ", ".join("--" + name.replace("_", "-") for name in given)
        raise QuantGolfError(f"{options} has no effect with --stats, expected neither or no --stats; leave one out")
    calibration, origin = read_calibration(folder, source.fingerprint)
    return calibration, origin.settings


@contextmanager
def ranks_and_bars(minutes: float) -> Iterator[tuple[Ranks, show.Report]]:
    """The processes of this run, and progress bars that only the first of them shows."""
    with joined(timedelta(minutes=minutes)) as ranks:
        if ranks.writes:
            with show.bars() as report:
                yield ranks, report
        else:
            yield ranks, lambda stage, done, total: None


def open_on(source: Checkpoint, device: str) -> None:
    """Puts the module where calibration runs."""
    source.module.to(inputs.open_device(device))
