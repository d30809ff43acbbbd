"""Options of `compress` that name what is asked for and what it is judged on, and where that text comes from."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from quantgolf.calibrate.store import read_calibration
from quantgolf.checkpoint import Checkpoint
from quantgolf.cli import inputs, learn, show
from quantgolf.cli.learn import Learning
from quantgolf.compress import HeldOut, Tuning, Wish
from quantgolf.compress.heldout import HELD_OUT, behind, part_of
from quantgolf.compress.promise import divided, refuse_blind, refuse_uncounted, wants_held_out
from quantgolf.compress.tune import SECONDS, STEPS, TOKENS_AT_ONCE
from quantgolf.data import Corpus
from quantgolf.errors import QuantGolfError
from quantgolf.types import Calibration

MaxBytesOption = Annotated[
    str | None, typer.Option("--max-bytes", help="Limit of the complete file plus --code: 16MB is 16,000,000.")
]
BpwOption = Annotated[
    float | None, typer.Option("--bpw", help="The same limit in bits per parameter of the checkpoint.")
]
MaxKlOption = Annotated[
    float | None,
    typer.Option("--max-kl", help="The smallest file whose KL on held-out text is at most so many bits per byte."),
]
MaxDbpbOption = Annotated[
    float | None, typer.Option("--max-dbpb", help="The same for the rise of bits per byte over the float model.")
]
HeldOutOption = Annotated[
    int, typer.Option("--held-out", min=1, help="Tokens behind the calibration text to judge on, if there are so many.")
]
GuardOption = Annotated[
    bool | None,
    typer.Option(
        "--guard/--no-guard",
        help="Compare with one width everywhere in the same bytes on held-out text, and write the better; one more "
        "solve. Default: where there is text and no --bits.",
    ),
]
TuneStepsOption = Annotated[
    int | None,
    typer.Option(
        "--tune-steps", min=0,
        help=f"slope: steps of tuning norms, gains, biases and quantization steps by KL on the calibration text, 0 for "
        f"none; default: {STEPS} where there is a limit and text.",
    ),
]  # fmt: skip
TuneSecondsOption = Annotated[
    float | None,
    typer.Option(
        "--tune-seconds",
        min=0.0,
        help=f"Most time for that; fewer steps are made where it is short; default: {SECONDS:g}.",
    ),
]
HELD_OUT_TOKENS = HELD_OUT
OF_TEXT = ("data", "tokenizer", "documents", "text_field", "byte_counts", "bos", "device")


@dataclass(frozen=True)
class Judging:
    """How a result is judged: what is asked for, whether there is a guard, how much text is held out, and how many
    steps of tuning it is for, None for the default."""

    wish: Wish
    guard: bool | None
    tokens: int
    steps: int | None = 0

    def __post_init__(self) -> None:
        wants_held_out(self.wish, self.guard)  # says no at once

    @property
    def wanted(self) -> bool:
        """Whether held-out text has a use."""
        return wants_held_out(self.wish, self.guard, self.steps != 0)

    def open(
        self, learning: Learning, source: Checkpoint, name: str, report: show.Report
    ) -> tuple[Corpus, HeldOut | None, tuple[str, ...]]:
        """The calibration text, what is held out of it, and notes; see `divided`."""
        if not self.wanted:
            return learning.open(source, name, report), None, ()
        self.refuse_own(learning)
        tokens = max(learning.tokens, self.tune_tokens(learning))
        text = replace(learning, tokens=tokens + self.tokens + 1).open(source, name, report)
        return divided(
            source, text, self.wish, self.guard, tokens=tokens, held_out_tokens=self.tokens,
            length=learning.text.length, context=learning.text.context.value,
        )  # fmt: skip

    def stored(
        self, folder: Path, source: Checkpoint, call: typer.Context, learning: Learning, name: str, report: show.Report
    ) -> tuple[Calibration, dict[str, Any], Corpus | None, HeldOut | None, tuple[str, ...]]:
        """Statistics of an earlier run, their settings, the text of --data, as many tokens of it as they are of and
        those behind, and notes.

        Raises:
            QuantGolfError: as `learn.stored`, or `behind`.
        """
        if not self.wanted or learning.text.data is None:
            calibration, settings = learn.stored(folder, source, call)
            why = "statistics alone come without text, expected some beside them; give it with --data"
            return calibration, settings, None, None, (refuse_blind(self.wish, self.guard, why),) if self.wanted else ()
        refuse_decided(call)
        self.refuse_own(learning)
        calibration, origin = read_calibration(folder, source.fingerprint)
        settings = origin.settings
        learn.open_on(source, learning.device)
        tokens = max(settings["tokens"], self.tune_tokens(learning))
        text = replace(learning, tokens=tokens + self.tokens + 1).open(source, name, report)
        tokens = max(settings["tokens"], min(tokens, len(text.tokens) - self.tokens - 1))
        held_out = behind(text, tokens, self.tokens, length=settings["length"], context=settings["context"])
        learned = part_of(text, 0, min(tokens, len(text.tokens) - len(held_out.tokens)))
        return calibration, settings, learned, HeldOut(held_out, settings["length"], settings["context"]), ()

    def tune_tokens(self, learning: Learning) -> int:
        """Tokens of text that tuning has a use for; the model does not write any more for it."""
        if self.steps == 0 or learning.text.data == [Path(inputs.SELF)]:
            return 0
        return TOKENS_AT_ONCE * (STEPS if self.steps is None else self.steps)

    def tuning(self, text: Corpus | None, held_out: HeldOut | None, seconds: float | None) -> Tuning | Literal[False]:
        """What to tune on, if at all.

        Raises:
            QuantGolfError: steps were asked for, and there is no text for them.
        """
        if self.steps == 0:
            return False
        if text is None or held_out is None:
            if self.steps is not None or seconds is not None:
                raise QuantGolfError(
                    "tuning needs text to tune on and some to hold out, expected it beside statistics and long "
                    "enough; give it with --data"
                )
            return False
        steps = STEPS if self.steps is None else self.steps
        return Tuning(text, held_out, steps, SECONDS if seconds is None else seconds)

    def refuse_own(self, learning: Learning) -> None:
        """Refuses a promise on text that the model is to write, before it writes any.

        Raises:
            QuantGolfError: that.
        """
        if learning.text.data == [Path(inputs.SELF)]:
            refuse_uncounted(self.wish, "none: self-generated")


def refuse_decided(call: typer.Context) -> None:
    """Refuses options that statistics have decided, but for those that name the text beside them and where it is read.

    Raises:
        QuantGolfError: one was given.
    """
    sources = {name: call.get_parameter_source(name) for name in learn.DECIDED if name not in OF_TEXT}
    given = [name for name, origin in sources.items() if origin is not None and origin.name == "COMMANDLINE"]
    if given:
        options = ", ".join("--" + name.replace("_", "-") for name in given)
        raise QuantGolfError(f"{options} has no effect with --stats, expected neither or no --stats; leave one out")
