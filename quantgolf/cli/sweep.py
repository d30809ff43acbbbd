"""`quantgolf sweep`: many files of one model, each measured, in a file of JSON lines that a killed run goes on from."""

import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from quantgolf.calibrate.store import read_calibration
from quantgolf.checkpoint import Checkpoint, read_demo
from quantgolf.cli import apart, frontier_table, inputs, learn, show
from quantgolf.cli.compress import size_of
from quantgolf.cli.inputs import OwnText, Part, TextOptions
from quantgolf.cli.stopping import resumable
from quantgolf.compress.heldout import behind
from quantgolf.data import Context, Corpus
from quantgolf.errors import BudgetError, QuantGolfError
from quantgolf.sizes import parse_size
from quantgolf.sweep.asked import Effort, Judge, Learned, Opener, Outcome
from quantgolf.sweep.axes import axis_of, recipes_of
from quantgolf.sweep.front import best_of
from quantgolf.sweep.grid import GridFile
from quantgolf.sweep.plan import write_point
from quantgolf.sweep.recipe import Recipe
from quantgolf.sweep.run import session
from quantgolf.sweep.search import Search, sensitivity

EVAL_TOKENS = 32_768
RANK_TIMEOUT = 24 * 60.0
SIZES = "Limits of file plus --code: 8MB:20MB:1MB or 1MB,1.2MB."


def axis(name: str, text: str) -> Any:
    """An option whose values are an axis."""
    return typer.Option(f"--{name}", help=text)


@inputs.reads_text
def sweep_verb(
    checkpoint: inputs.CheckpointArgument,
    text: TextOptions,
    out: Annotated[Path | None, typer.Option("--out", help="Results file of JSON lines; what it has is kept.")] = None,
    model: inputs.ModelOption = None,
    grid: Annotated[Path | None, typer.Option("--grid", help="YAML file with defaults, axes and points.")] = None,
    max_bytes: Annotated[str | None, axis("max-bytes", SIZES)] = None,
    bpw: Annotated[str | None, axis("bpw", "Limits in bits per parameter: 2:5:0.5.")] = None,
    bits: Annotated[
        str | None, axis("bits", "Widths by hand: 3:6 everywhere, 'mlp=4,5,6 attn=5,6 *=8' by name or role.")
    ] = None,
    solver: Annotated[
        str | None, axis("solver", "slope, gptq, gptq_lite, rtn; default: slope, with --bits alone gptq.")
    ] = None,
    group_size: Annotated[str | None, axis("group-size", "32,64,row; 32+row is one point that may choose.")] = None,
    asymmetric: Annotated[str | None, axis("asymmetric", "on,off: a zero for each scale.")] = None,
    scales: Annotated[str | None, axis("scales", "fp16,log.")] = None,
    codec: Annotated[str | None, axis("codec", "auto,rans,zstd.")] = None,
    states: Annotated[str | None, axis("states", "slope: states of the trellis, 1,8,128.")] = None,
    damp: Annotated[str | None, axis("damp", "slope, gptq: 0.01,0.03 or 0.01:0.05:0.01.")] = None,
    act_order: Annotated[str | None, axis("act-order", "slope, gptq: on,off.")] = None,
    across_rows: Annotated[str | None, axis("across-rows", "slope: on,off.")] = None,
    block_size: Annotated[str | None, axis("block-size", "slope, gptq: columns between updates.")] = None,
    sensitivity_scan: Annotated[
        bool,
        typer.Option("--sensitivity", help="Each matrix in turn at --high bits, others as planned."),
    ] = False,
    by: Annotated[str, typer.Option("--by", help="With --sensitivity: matrix or role.")] = "matrix",
    high: Annotated[int, typer.Option("--high", help="With --sensitivity: bits of the raised one.")] = 8,
    search: Annotated[
        str | None,
        typer.Option("--search", help="random:N or local:N plans around one (see --around)."),
    ] = None,
    around: Annotated[
        Path | None,
        typer.Option("--around", help="With --search: a point to start from, not the plan for --max-bytes."),
    ] = None,
    code: Annotated[
        list[Path] | None, typer.Option("--code", help="Source file whose raw bytes count; again for more.")
    ] = None,
    stats: learn.StatsOption = None,
    tokens: learn.TokensOption = 32_768,
    eval_data: Annotated[
        list[Path] | None,
        typer.Option("--eval-data", help="Text to measure on; default: what is behind the calibration text of --data."),
    ] = None,
    eval_byte_counts: Annotated[
        list[Path] | None, typer.Option("--eval-byte-counts", help="--byte-counts of --eval-data.")
    ] = None,
    eval_tokens: Annotated[int, typer.Option("--eval-tokens", min=1, help="Tokens to measure on.")] = EVAL_TOKENS,
    stride: Annotated[int | None, typer.Option("--stride", min=1, help="New tokens a window; default: all.")] = None,
    per_document: Annotated[
        bool, typer.Option("--per-document/--totals", help="Keep what was measured of every document, for pairing.")
    ] = True,
    jobs: Annotated[int | None, typer.Option("--jobs", min=1, help="Processes; default: one a core.")] = None,
    memory: Annotated[
        str | None, typer.Option("--memory", help="What all processes may take; default: 80% of what is free.")
    ] = None,
    shard: Annotated[
        str, typer.Option("--shard", help="2/8: every eighth point of the grid, from the second on.")
    ] = "1/1",
    retry: Annotated[bool, typer.Option("--retry", help="Do points again that failed.")] = False,
    pick: Annotated[Path | None, typer.Option("--pick", help="Write the point of least KL.")] = None,
    pick_within: Annotated[
        str | None, typer.Option("--pick-within", help="With --pick: of those of at most so many bytes.")
    ] = None,
    seed: inputs.SeedOption = 0,
    rank_timeout: learn.RankTimeoutOption = RANK_TIMEOUT,
    overwrite: inputs.OverwriteOption = False,
    json: inputs.JsonOption = False,
) -> None:
    """Compress a checkpoint under many options and measure each file; run it again to go on where it stopped."""
    given = {
        "max_bytes": max_bytes, "bpw": bpw, "bits": bits, "solver": solver, "group_size": group_size,
        "asymmetric": asymmetric, "scales": scales, "codec": codec, "states": states, "damp": damp,
        "act_order": act_order, "across_rows": across_rows, "block_size": block_size,
    }  # fmt: skip
    axes = {name: axis_of(name, value) for name, value in given.items() if value is not None}
    if out is None:
        raise QuantGolfError("--out is missing, expected a results file, for example results.jsonl")
    if not out.parent.is_dir():
        raise QuantGolfError(f"--out {out}: no folder {out.parent}, expected one that exists; make it")
    read = {
        **apart.inputs_of(checkpoint, model, text), "--grid": grid, "--around": around, "--code": code,
        "--stats": stats, "--eval-data": apart.data_of(eval_data), "--eval-byte-counts": eval_byte_counts,
    }  # fmt: skip
    apart.refuse_same({"--out": out, "--pick": pick}, read)
    apart.refuse_same({"--pick": pick}, {"--out": out})
    apart.refuse_work(out, {}, "a shorter name")
    wanted = searched(search, around, sensitivity_scan, by, high, seed, grid)
    designed = None if grid is None else GridFile(grid)
    effort = Effort(jobs or cores(), None if memory is None else parse_size(memory), shard_of(shard), retry)
    if pick is None and pick_within is not None:
        raise QuantGolfError("--pick-within is for --pick, expected both; add --pick or leave it out")
    if pick is not None and pick.exists() and not overwrite:
        raise QuantGolfError(f"--pick {pick}: exists already, expected a new name; choose another or pass --overwrite")
    within = None if pick_within is None else parse_size(pick_within)
    code_bytes = sum(size_of(path) for path in code or ())
    opener = Opener(*named(checkpoint, model))
    with resumable(f"what is finished is in {out}"), learn.ranks_and_bars(rank_timeout) as (ranks, report):
        if ranks.world > 1:
            effort = replace(effort, shard=divided(effort.shard, ranks.rank, ranks.world))
        source = opener()
        recipes: list[Recipe] = []
        if designed is not None:
            recipes = designed.recipes(axes, source.parameters, code_bytes)
        elif wanted is None:
            recipes = recipes_of(axes, source.parameters, code_bytes)
        learned, judge = texts(
            source, text, checkpoint, tokens, seed, stats, eval_data, eval_byte_counts, eval_tokens, stride,
            per_document, report,
        )  # fmt: skip
        with session(
            opener, learned, judge, out, model=checkpoint_name(checkpoint), effort=effort, code_bytes=code_bytes,
            points=len(recipes) or None, progress=report,
        ) as going:  # fmt: skip
            outcome = going.points(recipes) if wanted is None else wanted(going, axes, code_bytes)
        ranks.gather(None)
        if not ranks.writes:
            return
        if ranks.world > 1:
            outcome = replace(outcome, points=going.stored())
    finish(outcome, out, pick, within, overwrite, json)


def searched(
    search: str | None, around: Path | None, scan: bool, by: str, high: int, seed: int, grid: Path | None
) -> Any:
    """What makes points other than a grid does: a function of (session, axes, code bytes); None for a grid."""
    if scan and search is not None:
        raise QuantGolfError("--sensitivity and --search are given, expected one of them; leave one out")
    if (scan or search is not None) and grid is not None:
        raise QuantGolfError("--grid is given beside --sensitivity or --search, expected options alone; leave it out")
    if around is not None and search is None:
        raise QuantGolfError("--around is where --search begins, expected both; leave it out")
    if scan:
        if by not in ("matrix", "role"):
            raise QuantGolfError(f"--by {by}, expected matrix or role")
        return lambda going, axes, code_bytes: sensitivity(going, axes, code_bytes, by_role=by == "role", high=high)
    if search is None:
        return None
    return Search.parse(search, seed, around).run


def texts(
    source: Checkpoint,
    text: TextOptions,
    name: str,
    tokens: int,
    seed: int,
    stats: Path | None,
    eval_data: list[Path] | None,
    eval_byte_counts: list[Path] | None,
    eval_tokens: int,
    stride: int | None,
    documents: bool,
    report: show.Report,
) -> tuple[Learned, Judge]:
    """What to calibrate on and what to measure on."""
    own = OwnText(source.module, seed, lambda done, total: report("writing text", done, total))
    context: Context = text.context.value
    learned = Learned(None, tokens, text.length, context, seed, stats)
    if stats is not None:
        _, origin = read_calibration(stats, source.fingerprint, check=False)
        tokens = int(origin.settings["tokens"])
    else:
        learned = replace(learned, text=text.open(name, tokens, Part.calibration, own))
    demo = text.data is None or text.data == [Path(inputs.DEMO)]
    if eval_data is not None or (demo and name == inputs.DEMO):
        judged = replace(text, data=eval_data or text.data, byte_counts=eval_byte_counts)
        corpus = judged.open(name, eval_tokens, Part.validation)
    elif text.data == [Path(inputs.SELF)]:
        raise QuantGolfError("--data self is a text to calibrate on, expected another to measure on; give --eval-data")
    else:
        whole: Corpus = text.open(name, tokens + eval_tokens + 1, Part.calibration, own)
        corpus = behind(whole, tokens, eval_tokens, length=text.length, context=context)
    return learned, Judge(corpus, text.length, stride, context, seed, documents)


def finish(outcome: Outcome, out: Path, pick: Path | None, within: int | None, overwrite: bool, json: bool) -> None:
    """Prints what came of it and writes the picked point.

    Raises:
        QuantGolfError: no point could be made; BudgetError where all of them failed for their limits.
    """
    if not outcome.done:
        failed = outcome.failed
        if not failed:
            show.console(json).print(f"{out}: this shard of the grid has no points")
            return
        line = f"none of {len(failed)} points could be made; the first: {failed[0].error}"
        nearest = [point.nearest for point in failed if point.nearest is not None]
        if len(nearest) == len(failed):
            raise BudgetError(line, min(nearest))
        raise QuantGolfError(f"{line}; {frontier_table.again(failed)}")
    best = None if pick is None else best_of(outcome.done, within)
    if pick is not None and best is not None:
        write_point(pick, best, overwrite)
    if json:
        show.print_json(frontier_table.document(outcome, out))
    else:
        frontier_table.print_table(outcome, out)
    if pick is not None and best is not None:
        show.console(json).print(
            f"picked {best.key} ({best.bytes:,} bytes): quantgolf compress … --plan {shlex.quote(str(pick))} makes it"
        )


def named(checkpoint: str, model: str | None) -> tuple[str | Path, str | Path | None]:
    """Path and model of a checkpoint, of the word demo those that ship."""
    if checkpoint != inputs.DEMO:
        return checkpoint, model
    demo = read_demo()
    return demo.checkpoint, model or demo.card_path


def checkpoint_name(checkpoint: str) -> str:
    """What people call it: its file's name, or its folder's where the file is called like all others."""
    path = Path(checkpoint)
    plain = path.stem in ("model", "pytorch_model", "model.safetensors.index") and path.resolve().parent.name
    return path.resolve().parent.name if plain else path.stem or checkpoint


def shard_of(text: str) -> tuple[int, int]:
    """`2/8` as numbers.

    Raises:
        QuantGolfError: not of that form.
    """
    at, _, of = text.partition("/")
    if not (at.isdecimal() and of.isdecimal()):
        raise QuantGolfError(f"--shard {text!r}, expected i/n, for example 2/8")
    return int(at), int(of)


def divided(shard: tuple[int, int], rank: int, world: int) -> tuple[int, int]:
    """The part of a shard that a rank of several does."""
    at, of = shard
    return at + of * rank, of * world


def cores() -> int:
    """Those that this process may run on; of several ranks on a machine each has its share."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, found // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
