"""`quantgolf compress --plan`: the file that a point of a sweep measured, made again."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from quantgolf.atomic import refuse_unwritable
from quantgolf.calibrate.store import Origin, read_calibration, text_digest
from quantgolf.checkpoint import Checkpoint
from quantgolf.cli import inputs, learn, show, written
from quantgolf.cli.inputs import Context, TextOptions
from quantgolf.cli.learn import Learning
from quantgolf.cli.work import Work, working
from quantgolf.compress import Wish
from quantgolf.compress.workshop import Workshop
from quantgolf.errors import QuantGolfError
from quantgolf.ranks import Ranks
from quantgolf.sweep.plan import read_point, recipe_of
from quantgolf.sweep.point import FrontierPoint, digest_of
from quantgolf.sweep.recipe import make
from quantgolf.types import Calibration

PlanOption = Annotated[
    Path | None,
    typer.Option("--plan", help="A point of `quantgolf sweep`, whose file is made again; it has all options."),
]
PointOption = Annotated[
    str | None, typer.Option("--point", help="With --plan: which point of a results file, by the beginning of its key.")
]
# What may stand beside --plan: which text and model, and where the file goes. What the sweep calibrated with is meant
# where it is not given.
BESIDE = ("checkpoint", "plan", "point", "out", "model", "stats", "tokens", "seed", "code", "overwrite", "json", "data",
          "tokenizer", "documents", "text_field", "byte_counts", "bos", "length", "context")  # fmt: skip


@dataclass(frozen=True)
class Planned:
    """A plan and what it is made with; `code_bytes` as the files of --code lie there."""

    plan: Path
    point: str | None
    out: Path | None
    model: str | None
    stats: Path | None
    tokens: int
    seed: int
    code_bytes: int
    overwrite: bool
    json: bool

    def run(self, call: typer.Context, checkpoint: str, text: TextOptions) -> None:
        """Makes the file and says whether it is the measured one to the byte.

        Raises:
            QuantGolfError: options that the plan decides, a plan of another model or with other code, and as `make`.
        """
        given = {name for name in call.params if _given(call, name)}
        idle = sorted(given - set(BESIDE))
        if idle:
            raise QuantGolfError(
                f"--{idle[0].replace('_', '-')} is decided by --plan, expected one of them; leave it out"
            )
        if self.out is None:
            raise QuantGolfError("--out is missing, expected the name of the file to write")
        refuse_unwritable(self.out, self.overwrite)
        point = read_point(self.plan, self.point)
        source = inputs.open_source(checkpoint, self.model)
        recipe = recipe_of(point, source.fingerprint)
        if recipe.code_bytes != self.code_bytes:
            raise QuantGolfError(
                f"--code has {self.code_bytes:,} bytes, expected the {recipe.code_bytes:,} that the plan counts; give "
                "the files that were swept with"
            )
        with show.bars() as report, working(self.out, Ranks()) as desk:
            calibration, origin, unknown = self._learned(call, checkpoint, text, point, source, desk, report)
            before = torch.get_num_threads()
            torch.set_num_threads(1)  # as the sweep's processes have
            try:
                shop = Workshop(source, calibration, code_bytes=recipe.code_bytes, progress=report, shelf=desk.shelf)
                result = make(shop, recipe)
            finally:
                torch.set_num_threads(before)
            verified = desk.write(result, self.overwrite)
        wish = Wish(recipe.max_bytes, by_hand=recipe.bits is not None)
        document = written.summary(result, verified, self.out, wish, recipe.max_bytes) | {
            "calibration": {**origin.settings, "tokens": calibration.tokens, "labels": calibration.labels},
            "unknown_pieces": unknown,
            "notes": [*source.notes, verdict(point, origin, digest_of(result.data)), *desk.notes, *result.notes],
        }
        if self.json:
            show.print_json(document)
        else:
            written.print_summary(document)

    def _learned(
        self, call: typer.Context, checkpoint: str, text: TextOptions, point: FrontierPoint, source: Checkpoint,
        desk: Work, report: show.Report,
    ) -> tuple[Calibration, Origin, int | None]:  # fmt: skip
        """Statistics, what they are made of, and unknown pieces of the text."""
        if self.stats is not None:
            learn.stored(self.stats, source, call)  # refuses what they have decided
            return *read_calibration(self.stats, source.fingerprint, check=False), None
        asked: dict[str, Any] = {
            "tokens": self.tokens, "length": text.length, "context": text.context.value, "seed": self.seed
        }  # fmt: skip
        asked = {
            name: value if _given(call, name) else point.calibration.get(name, value) for name, value in asked.items()
        }
        text = replace(text, length=asked["length"], context=Context(asked["context"]))
        learning = Learning(text, asked["tokens"], asked["seed"], "cpu", offload=False, memory=None)
        corpus = learning.open(source, checkpoint, report)
        origin = Origin(source.fingerprint, text_digest(learning.batches(corpus)), learning.settings())
        return desk.learn(learning, source, corpus, Ranks(), report), origin, corpus.unknown


def verdict(point: FrontierPoint, origin: Origin, digest: str) -> str:
    """Whether a file is the one that a point measured, and if not, why it may differ."""
    if digest == point.digest:
        return f"this is the file that point {point.key} measured, byte for byte"
    made = {**origin.settings, "text": origin.text}
    differ = [name for name, value in point.calibration.items() if made.get(name) != value]
    why = f"other calibration ({', '.join(differ)})" if differ else "another machine, version or number of threads"
    return f"made as point {point.key} was, and yet not the same bytes: {why}; its measurements are about right"


def _given(call: typer.Context, name: str) -> bool:
    origin = call.get_parameter_source(name)
    return origin is not None and origin.name == "COMMANDLINE"
