"""Ours, the baselines and what other projects ship, at equal complete file bytes and on identical tokens.

    python benchmarks/frontier.py environments
    python benchmarks/frontier.py peers demo --peer hqq=PYTHON --peer gguf_numpy=PYTHON --points demo.jsonl
    python benchmarks/frontier.py ours demo --points demo.jsonl --baselines 3.5 --baselines 2.5
    python benchmarks/frontier.py publish demo.jsonl golf.jsonl --out benchmarks/results/frontier.jsonl
    python benchmarks/comparison_page.py benchmarks/results/frontier.jsonl

`peers` lets every peer (`peers/`) quantize the model in its own environment, takes its files' bytes as they lie on disk
and after `xz -9e`, lets it read them back from the files alone, and measures what came back. `ours` makes a file for
the smaller of both numbers, the friendlier to the peer. Points keep their documents until `publish` has paired them.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from frontier_points import OURS, RECIPE, SLOPE, TUNED, append, friendliest, paired, read
from peers import job, protocol
from recipe.coders import present
from recipe.methods import Made, ours, recipe
from recipe.solve import INT5, INT6, Roles
from record_recipe import SMOLLM2, learn
from smollm2 import find_model

from quantgolf.checkpoint import Checkpoint, fill
from quantgolf.cli import inputs
from quantgolf.cli.inputs import DEMO, Part, TextOptions
from quantgolf.compress import HeldOut, Tuning, split_calibration
from quantgolf.compress.heldout import HELD_OUT
from quantgolf.compress.tune import STEPS, TOKENS_AT_ONCE
from quantgolf.data import Corpus
from quantgolf.errors import QuantGolfError
from quantgolf.sweep.measure import Yardstick
from quantgolf.sweep.point import FrontierPoint
from quantgolf.types import Calibration

REQUIREMENTS = job.HOST.parent / "requirements"
PEERS = tuple(sorted(path.stem for path in REQUIREMENTS.glob("*.txt")))
SPARED = 0.005  # of a peer's bytes may be missing from the file of ours that it is compared with
FLOAT_LOGITS = 2 << 30  # bytes that are kept of them, so that the float model runs once and not for each file

APP = typer.Typer(add_completion=False, no_args_is_help=True)
PointsOption = Annotated[Path, typer.Option("--points", help="JSON lines with documents; appended to.")]
CalibrationOption = Annotated[list[Path] | None, typer.Option(help="Text to calibrate on; not the one of --data.")]
StatsOption = Annotated[Path | None, typer.Option(help="Folder that `quantgolf calibrate` wrote.")]
TokensOption = Annotated[int, typer.Option(help="Tokens to measure on.")]


class Subject:
    """One model with its calibration and its yardstick."""

    def __init__(
        self, checkpoint: str, model: str | None, text: TextOptions, name: str | None, tokens: int,
        calibration: list[Path] | None, stats: Path | None, calibration_tokens: int, seed: int,
    ) -> None:  # fmt: skip
        self.name = name or Path(checkpoint).stem
        if checkpoint == SMOLLM2:  # as benchmarks/smollm2.py opens it
            checkpoint = str(find_model())
            text = replace(text, tokenizer=Path(checkpoint), data=text.data or [Path(DEMO)], bos=False)
            calibration = calibration or [Path(DEMO)]
        self.source = inputs.open_source(checkpoint, model)
        self.learned = learn(self.source, text, checkpoint, calibration, stats, calibration_tokens, seed)
        self.yardstick = Yardstick(
            self.source, text.open(checkpoint, tokens, Part.validation), model=self.name, length=text.length,
            context=text.context.value, seed=seed, remember=FLOAT_LOGITS,
        )  # fmt: skip
        self.text, self.checkpoint, self.calibration = text, checkpoint, calibration

    def tuning(self) -> Tuning:
        """The calibration text, as much of it as tuning has a use for; what is behind that is held out."""
        text, tokens = replace(self.text, data=self.calibration, byte_counts=None), STEPS * TOKENS_AT_ONCE
        corpus: Corpus = text.open(self.checkpoint, tokens + HELD_OUT, Part.calibration)
        learn_on, held_out = split_calibration(corpus, tokens, length=text.length, context=text.context.value)
        return Tuning(learn_on, HeldOut(held_out, text.length, text.context.value), STEPS)

    def lay(self, folder: Path, variants: list[str]) -> None:
        """The model as a peer's job: whole matrices that calibration saw, and which of them are looked up."""
        stats = {
            name: known for name, known in self.learned.stats.items()
            if name in self.source.tensors and self.source.tensors[name].ndim == 2
        }  # fmt: skip
        moments = {
            name: next(use.column for use in known.uses if use.kind == "linear")
            for name, known in stats.items() if any(use.kind == "linear" for use in known.uses)
        }  # fmt: skip
        embeddings = [name for name, known in stats.items() if any(use.kind == "lookup" for use in known.uses)]
        protocol.write_job(folder, self.source.tensors, list(stats), embeddings, moments, variants)


def key_of(method: str, variant: str) -> str:
    """What tells a file from others of one model and text."""
    return f"{method}: {variant}"


@APP.command()
def environments() -> None:
    """Print the commands that make every peer's environment."""
    for peer in PEERS:
        listed = REQUIREMENTS / f"{peer}.txt"
        where = f"environments/{peer}"
        print(f"python3 -m venv {where} && {where}/bin/pip install -r {listed}")


@APP.command("peers")
@inputs.reads_text
def measure_peers(
    text: TextOptions,
    checkpoint: inputs.CheckpointArgument,
    points: PointsOption,
    peer: Annotated[list[str], typer.Option(help="NAME=PYTHON of its environment; again for more.")],
    model: inputs.ModelOption = None,
    name: Annotated[str | None, typer.Option(help="What the page calls the model.")] = None,
    calibration: CalibrationOption = None,
    stats: StatsOption = None,
    tokens: TokensOption = 40_000,
    calibration_tokens: int = 32_768,
    variant: Annotated[list[str] | None, typer.Option(help="Only these; again for more.")] = None,
    seed: inputs.SeedOption = 0,
) -> None:
    """Let peers quantize the model; variants that were measured before are not repeated."""
    subject = Subject(checkpoint, model, text, name, tokens, calibration, stats, calibration_tokens, seed)
    for given in peer:
        which, _, python = given.partition("=")
        if which not in PEERS or not python:
            raise QuantGolfError(f"--peer {given}: expected NAME=PYTHON, NAME one of {', '.join(PEERS)}")
        for point in of_peer(subject, which, Path(python), done(points, subject), variant):
            append(points, point)
            print(
                f"{point.key}: {point.error or f'{point.bytes:,} bytes, xz {point.xz_bytes:,}, {point.kl}'}", flush=True
            )


def of_peer(
    subject: Subject, which: str, python: Path, known: set[str], only: list[str] | None
) -> Iterator[FrontierPoint]:
    """Points of every variant of a peer that is not known yet."""
    peer: protocol.Peer = import_module(f"peers.{which}")
    title = peer.TITLE
    variants = {v.name: v for v in peer.VARIANTS if key_of(title, v.name) not in known and (not only or v.name in only)}
    if not variants:
        return
    with tempfile.TemporaryDirectory() as place:
        subject.lay(Path(place), list(variants))
        try:
            for answer in job.ask(which, python.absolute(), Path(place)):
                variant = variants[answer.variant]
                options = {"variant": variant.name, "embedding": "quantized" if variant.embedding else "16 bits",
                           "calibrated": variant.calibrated}  # fmt: skip
                yield measured(subject, title, answer, options)
                shutil.rmtree(Path(place) / variant.name, ignore_errors=True)
        except QuantGolfError as error:
            for variant in variants.values():
                yield subject.yardstick.failed(
                    key=key_of(title, variant.name), method=title, options={"variant": variant.name}, error=str(error)
                )


def measured(subject: Subject, method: str, answer: job.Answer, options: dict[str, Any]) -> FrontierPoint:
    """The point of what a peer made."""
    common: dict[str, Any] = {
        "key": key_of(method, answer.variant), "method": method, "options": options, "versions": answer.versions,
    }  # fmt: skip
    if answer.error:
        return subject.yardstick.failed(**common, error=answer.error)
    module = deepcopy(subject.source.module)
    try:
        fill(module, answer.tensors, f"what {method} read back", share=True)
        return subject.yardstick.point(
            module, **common, bytes=answer.bytes, xz_bytes=answer.xz_bytes, seconds=answer.seconds
        )
    except QuantGolfError as error:
        return subject.yardstick.failed(**common, error=str(error))


@APP.command("ours")
@inputs.reads_text
def measure_ours(
    text: TextOptions,
    checkpoint: inputs.CheckpointArgument,
    points: PointsOption,
    model: inputs.ModelOption = None,
    name: Annotated[str | None, typer.Option(help="What the page calls the model.")] = None,
    calibration: CalibrationOption = None,
    stats: StatsOption = None,
    tokens: TokensOption = 40_000,
    calibration_tokens: int = 32_768,
    ladder: Annotated[
        list[float] | None, typer.Option(help="Bits a parameter, in place of every peer's bytes.")
    ] = None,
    baselines: Annotated[list[float] | None, typer.Option(help="Bits a parameter for all our methods.")] = None,
    tuned: Annotated[list[float] | None, typer.Option(help="Bits a parameter for one slope with tuning.")] = None,
    seed: inputs.SeedOption = 0,
) -> None:
    """Make a file of one slope for each peer's bytes, and baselines at given rates."""
    subject = Subject(checkpoint, model, text, name, tokens, calibration, stats, calibration_tokens, seed)

    def limits(rates: list[float] | None) -> list[int]:
        return [int(subject.source.parameters * rate / 8) for rate in rates or ()]

    rungs = limits(ladder) if ladder else thinned(peer_limits(points, subject))
    wanted = [(SLOPE, limit) for limit in rungs]
    wanted += [(method, limit) for limit in limits(baselines) for method in OURS if method != TUNED]
    wanted += [(TUNED, limit) for limit in limits(tuned)]
    makers = makers_of(subject)
    for method, limit in wanted:
        key = key_of(method, f"{limit} bytes")
        if key in done(points, subject):
            continue
        point = of_ours(subject, method, limit, makers[method])
        append(points, point)
        print(f"{point.key}: {point.error or f'{point.bytes:,} bytes, {point.kl}'}", flush=True)


Maker = Callable[[Checkpoint, Calibration, int], Made]


def makers_of(subject: Subject) -> dict[str, Maker]:
    """Every method of ours; the recipe is the better of its two forms, by KL on the measured text: in its favour."""
    forms = [recipe(form, Roles(), present(("none", "brotli"))) for form in (INT6, INT5)]

    def better(source: Checkpoint, learned: Calibration, limit: int) -> Made:
        made = [form(source, learned, limit) for form in forms]
        losses = [measure(subject, RECIPE, limit, each, 0.0).kl for each in made]
        return min(zip(made, losses, strict=True), key=lambda pair: pair[1].value if pair[1] else np.inf)[0]

    makers: dict[str, Maker] = {SLOPE: ours(), RECIPE: better}
    makers[TUNED] = lambda source, learned, limit: ours(tuning=subject.tuning())(source, learned, limit)
    return makers | {solver: ours(solver) for solver in ("rtn", "gptq_lite", "gptq")}


def of_ours(subject: Subject, method: str, limit: int, maker: Maker) -> FrontierPoint:
    """A file of ours under a limit, read back and measured, or why there is none."""
    started = time.monotonic()
    try:
        return measure(subject, method, limit, maker(subject.source, subject.learned, limit), started)
    except QuantGolfError as error:
        return subject.yardstick.failed(
            key=key_of(method, f"{limit} bytes"), method=method, options={}, error=str(error), limit=limit
        )


def measure(subject: Subject, method: str, limit: int, made: Made, started: float) -> FrontierPoint:
    """The point of a file in memory."""
    return subject.yardstick.point(
        made.module, key=key_of(method, f"{limit} bytes"), method=method, options={"calibrated": method != "rtn"},
        bytes=len(made.data), limit=limit, seconds={"make": time.monotonic() - started},
    )  # fmt: skip


def peer_limits(path: Path, subject: Subject) -> Iterator[int]:
    """Bytes of every measured peer's file of this model."""
    for point in read(path):
        if point.model == subject.name and point.status == "done" and point.method not in OURS:
            yield friendliest(point)


def thinned(limits: Iterable[int]) -> list[int]:
    """The limits without those that have another one just below, whose file of ours is compared instead."""
    kept: list[int] = []
    for limit in sorted(set(limits)):
        if not kept or kept[-1] < (1 - SPARED) * limit:
            kept.append(limit)
    return kept


def done(path: Path, subject: Subject) -> set[str]:
    """Keys of this model that were measured."""
    return {point.key for point in read(path) if point.model == subject.name and point.status == "done"}


@APP.command()
def publish(
    points: Annotated[list[Path], typer.Argument(help="Files with documents.")],
    out: Annotated[Path, typer.Option(help="JSON lines to write.")],
    seed: inputs.SeedOption = 0,
) -> None:
    """Pair every file with ours at the same bytes, and leave the documents out."""
    last: dict[tuple[str, str], FrontierPoint] = {}
    for point in (point for path in points for point in read(path)):
        place = point.model, point.key
        if place not in last or point.status == "done" or last[place].status != "done":
            last[place] = point
    lines = [replace(paired(point, list(last.values()), seed), documents=None).line() for point in last.values()]
    out.write_text("".join(lines), "utf-8")
    print(f"{out}: {len(lines)} points")


if __name__ == "__main__":
    APP()
