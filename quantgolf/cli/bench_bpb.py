"""`quantgolf bench bpb`: methods of users beside ours, in files of the same bytes, on the same tokens."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import typer
from torch import Tensor

from quantgolf.bench.bpb import Bench
from quantgolf.bench.method import open_method
from quantgolf.checkpoint import Checkpoint
from quantgolf.cli import apart, bench_tables, inputs, show
from quantgolf.cli.inputs import Part, Solver, TextOptions
from quantgolf.compress import batches_of, calibrate
from quantgolf.compress.pipeline import TOKENS
from quantgolf.data import Corpus
from quantgolf.errors import QuantGolfError
from quantgolf.evaluate.interval import RESAMPLES
from quantgolf.json_lines import refuse_unlike
from quantgolf.sizes import parse_size
from quantgolf.sweep.measure import Yardstick
from quantgolf.sweep.point import FrontierPoint
from quantgolf.sweep.store import ResultsFile
from quantgolf.types import Calibration

OURS = "slope,gptq,rtn"


@inputs.reads_text
def bpb_verb(
    checkpoint: inputs.CheckpointArgument,
    text: TextOptions,
    method: Annotated[
        list[str],
        typer.Option(
            "--method",
            callback=inputs.tell_executed,
            help="path/to/script.py, or path/to/script.py:Name of a class or object in it, with compress(state_dict) "
            "-> bytes and decompress(bytes) -> state_dict; again for more. THE SCRIPT IS EXECUTED: name only your own. "
            "compress may ask by name for max_bytes, model, batches or calibration.",
        ),
    ],
    max_bytes: Annotated[
        list[str] | None, typer.Option("--max-bytes", help="Limit of a file, again for more: 16MB is 16,000,000.")
    ] = None,
    ours: Annotated[
        str, typer.Option("--ours", help="Of slope, gptq, gptq_lite, rtn, with commas; or the word none.")
    ] = OURS,
    model: inputs.ModelOption = None,
    calibration: Annotated[
        list[Path] | None,
        typer.Option("--calibration", help="Text to calibrate on, read as --data is; none for the demo's own."),
    ] = None,
    calibration_tokens: Annotated[int, typer.Option("--calibration-tokens", min=1, help="Tokens of it.")] = TOKENS,
    tokens: Annotated[int | None, typer.Option("--tokens", min=2, help="To measure on; default: all.")] = None,
    stride: Annotated[int | None, typer.Option("--stride", min=1, help="New tokens a window; default: all.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="JSON lines to append points to, as measured.")] = None,
    resamples: Annotated[
        int, typer.Option("--resamples", min=1, help="Of documents, for the differences.")
    ] = RESAMPLES,
    seed: inputs.SeedOption = 0,
    json: inputs.JsonOption = False,
) -> None:
    """Measure methods of your own (their code is executed) against ours at the bytes of their files.

    A file's bytes are read back in a fresh process that gets nothing else, the weights are checked, and everything is
    measured on the same tokens, with paired intervals on the differences. Ours are neither tuned nor guarded here.
    """
    read = {**apart.inputs_of(checkpoint, model, text), "--method": [apart.script_of(each) for each in method]}
    apart.refuse_same({"--out": out}, {**read, "--calibration": calibration})
    limits: list[int | None] = [None] if not max_bytes else [parse_size(each) for each in max_bytes]
    solvers = [] if ours == "none" else [_solver(each) for each in ours.split(",")]
    methods = [open_method(each) for each in method]
    names = [*Solver, *(each.name for each in methods)]
    for each in methods:
        if names.count(each.name) > 1:
            raise QuantGolfError(
                f"method {each.name} is the name of another one or of ours, expected a name of its own, since tables "
                "and pictures tell methods apart by it; rename the script or the class"
            )
        if None in limits and "max_bytes" in each.asks:
            raise QuantGolfError(f"--max-bytes is missing, expected a limit because {each.name} asks for one")
        if len(limits) > 1 and "max_bytes" not in each.asks:
            raise QuantGolfError(
                f"{len(limits)} limits for {each.name}, whose compress does not ask for max_bytes, expected at most one"
            )
    if out is not None and (out.is_dir() or not out.resolve().parent.is_dir()):
        raise QuantGolfError(f"output {out}: no such folder, or one itself, expected a file to write to")
    refuse_unlike(out)
    source = inputs.open_source(checkpoint, model)
    corpus = text.open(checkpoint, tokens, Part.validation)
    yardstick = Yardstick(
        source, corpus, model=checkpoint, length=text.length, stride=stride, context=text.context.value, seed=seed
    )
    with show.bars() as report:
        learned = Learned(source, text, checkpoint, calibration, calibration_tokens, seed, report)
        bench = Bench(source, yardstick, learned, solvers, _kept(out), report, seed, resamples)
        found = [bench.run(each, limit) for limit in limits for each in methods]
    drawn = {"seed": seed, "resamples": resamples}
    if json:
        show.print_json({"comparisons": [each.spelled() for each in found], "bootstrap": drawn})
    else:
        console = show.console(False)
        console.print(bench_tables.bpb_table(found, yardstick.text))
        console.print(
            f"intervals are of 95%, paired over documents, seed {seed}; those of the differences of {resamples:,} "
            "resamples; ours are neither tuned nor guarded"
        )
    if all(each.theirs.status == "failed" for each in found):
        raise QuantGolfError(f"no method gave a file that could be measured: {found[0].theirs.error}")


@dataclass
class Learned:
    """Calibration on the text of --calibration, made when it is first asked for."""

    source: Checkpoint
    text: TextOptions
    name: str
    paths: list[Path] | None
    tokens: int
    seed: int
    report: show.Report

    @cached_property
    def corpus(self) -> Corpus:
        if self.paths is None and self.text.data not in (None, [Path(inputs.DEMO)]):
            raise QuantGolfError(
                "--calibration is missing, expected text to calibrate on that is not measured on; or --ours none, and "
                "a method that asks for none"
            )
        text = TextOptions(**{**vars(self.text), "data": self.paths, "byte_counts": None})
        return text.open(self.name if self.paths is None else None, self.tokens, Part.calibration)

    @cached_property
    def batches(self) -> list[tuple[Tensor, Tensor]]:
        return batches_of(self.corpus, tokens=self.tokens, length=self.text.length, context=self.text.context.value)

    @cached_property
    def statistics(self) -> Calibration:
        return calibrate(
            self.source, self.corpus, tokens=self.tokens, length=self.text.length, context=self.text.context.value,
            seed=self.seed, progress=self.report,
        )  # fmt: skip


def _solver(name: str) -> str:
    if name not in Solver.__members__:
        raise QuantGolfError(f"--ours is {name!r}, expected of {', '.join(Solver)} with commas, or none")
    return name


def _kept(out: Path | None) -> Callable[[FrontierPoint], None]:
    """What is done with every point: with a file, half a last line that a killed run left there is cut off first."""
    return ResultsFile(out).append if out is not None else lambda _: None
