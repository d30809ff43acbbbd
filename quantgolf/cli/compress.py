"""`quantgolf compress`: a checkpoint and text in, a file under the byte limit out."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from quantgolf.allocate import parse_bits
from quantgolf.atomic import refuse_unwritable
from quantgolf.cli import apart, grids, inputs, judge, learn, planned, show, work, written
from quantgolf.cli.inputs import Solver, TextOptions
from quantgolf.cli.judge import Judging
from quantgolf.cli.learn import Learning
from quantgolf.compress import Wish, compress, dry_run, refuse_idle_rules, refuse_unreachable
from quantgolf.compress.tune import SECONDS as TUNE_SECONDS
from quantgolf.errors import QuantGolfError
from quantgolf.sizes import parse_size
from quantgolf.solve import SolveOptions
from quantgolf.solve.trellis import Trellis

DEFAULTS = SolveOptions()


@inputs.reads_text
def compress_verb(
    call: typer.Context,
    checkpoint: inputs.CheckpointArgument,
    text: TextOptions,
    out: Annotated[Path | None, typer.Option("--out", help="The file to write.")] = None,
    model: inputs.ModelOption = None,
    stats: learn.StatsOption = None,
    tokens: learn.TokensOption = 32_768,
    max_bytes: judge.MaxBytesOption = None,
    bpw: judge.BpwOption = None,
    max_kl: judge.MaxKlOption = None,
    max_dbpb: judge.MaxDbpbOption = None,
    code: Annotated[
        list[Path] | None, typer.Option("--code", help="Source file whose raw bytes count; again for more.")
    ] = None,
    bits: Annotated[
        str | None, typer.Option("--bits", help="Widths by hand, 'mlp.*=5,attn.*=6,emb=7'; first match wins.")
    ] = None,
    plan: planned.PlanOption = None,
    point: planned.PointOption = None,
    solver: Annotated[
        Solver | None, typer.Option("--solver", help="How codes are chosen; default: slope, with --bits gptq.")
    ] = None,
    group_size: grids.GroupSizeOption = None,
    asymmetric: grids.AsymmetricOption = None,
    scales: grids.ScalesOption = None,
    codec: grids.CodecOption = None,
    states: Annotated[
        int | None, typer.Option("--states", help="slope: states of the trellis quantizer, 1 for none; default: 128.")
    ] = None,
    damp: Annotated[
        float | None,
        typer.Option("--damp", help="Added to H and G, as a share of their mean diagonal; default: 0.01, slope 0.03."),
    ] = None,
    act_order: Annotated[
        bool, typer.Option("--act-order/--no-act-order", help="gptq, slope down columns: by falling activation.")
    ] = DEFAULTS.act_order,
    across_rows: Annotated[
        bool,
        typer.Option("--across-rows/--no-across-rows", help="slope: errors go to other rows, too."),
    ] = DEFAULTS.across_rows,
    block_size: Annotated[int, typer.Option("--block-size", min=1, help="slope, gptq: columns between updates.")] = (
        DEFAULTS.block_size
    ),
    held_out: judge.HeldOutOption = judge.HELD_OUT_TOKENS,
    guard: judge.GuardOption = None,
    tune_steps: judge.TuneStepsOption = None,
    tune_seconds: judge.TuneSecondsOption = None,
    dry: Annotated[
        bool, typer.Option("--dry-run", help="Predict bytes, memory and minutes in seconds, and write nothing.")
    ] = False,
    offload: learn.OffloadOption = False,
    memory: learn.MemoryOption = None,
    resume: work.ResumeOption = True,
    seed: inputs.SeedOption = 0,
    device: Annotated[
        str, typer.Option("--device", help="Where the model runs and is solved: cpu, cuda, cuda:1, …")
    ] = "cpu",
    rank_timeout: learn.RankTimeoutOption = learn.RANK_TIMEOUT,
    overwrite: inputs.OverwriteOption = False,
    json: inputs.JsonOption = False,
) -> None:
    """Compress a checkpoint into a file within a limit, or into the smallest that keeps a promise."""
    read = {**apart.inputs_of(checkpoint, model, text), "--stats": stats, "--code": code, "--plan": plan}
    apart.refuse_same({"--out": out}, read)
    if out is not None and resume and not dry:
        apart.refuse_work(out, read, "a shorter name" + " or --no-resume" * (plan is None))
    if plan is not None:
        counted = sum(size_of(path) for path in code or ())
        made = planned.Planned(plan, point, out, model, stats, tokens, seed, counted, overwrite, json)
        made.run(call, checkpoint, text)
        return
    if point is not None:
        raise QuantGolfError("--point names a point of --plan, expected both; add --plan or leave it out")
    rules = None if bits is None else parse_bits(bits)
    wish = Wish(None if max_bytes is None else parse_size(max_bytes), bpw, max_kl, max_dbpb, by_hand=rules is not None)
    code_bytes = sum(size_of(path) for path in code or ())
    notes: tuple[str, ...] = ()
    if solver is None:
        solver = Solver.slope if rules is None else Solver.gptq
        notes = (
            () if rules is None else ("--bits gives fixed widths: --solver gptq is taken, not slope, which has none",)
        )
    if states is not None and solver is not Solver.slope:
        raise QuantGolfError(
            f"--states is the trellis' of --solver slope, and --solver is {solver.value}; leave one out"
        )
    trellis = Trellis() if states is None else Trellis(states)
    if solver is Solver.slope and rules is not None:
        raise QuantGolfError("--solver slope has no widths, expected a limit or a promise; leave --bits out")
    limited = max_bytes is not None or bpw is not None
    asked = grids.Asked.of(solver, rules is not None, limited, group_size, asymmetric, scales, codec)
    options = SolveOptions(damp, act_order, block_size, across_rows=across_rows, grid=asked.grid)
    steps = tune_steps
    if solver is not Solver.slope or wish.promise is not None:
        if tune_steps:
            raise QuantGolfError("--tune-steps follows a solve by --solver slope into a limit; leave it out")
        steps = 0
    if steps == 0 and tune_seconds is not None:
        raise QuantGolfError("--tune-seconds is for tuning, and there is none; leave it out")
    judging = Judging(wish, guard, held_out, steps)
    learning = Learning(text, tokens, seed, device, offload, memory)
    learning.limit()
    if dry:
        refuse_dry(wish, stats)
    if out is None and not dry:
        raise QuantGolfError("--out is missing, expected the name of the file to write (or --dry-run)")
    if out is not None:
        refuse_unwritable(out, overwrite)
    source = inputs.open_source(checkpoint, model)
    limit = wish.limit(source.parameters)
    if limit is not None and not dry:
        refuse_unreachable(
            source, limit, rules=rules, solver=solver.value, code_bytes=code_bytes, length=text.length, options=options,
            group_sizes=asked.group_sizes, codec=asked.codec.value,
        )  # fmt: skip
    if rules is not None and stats is None:
        refuse_idle_rules(source, rules, text.length)
    with ExitStack() as stack:
        ranks, report = stack.enter_context(learn.ranks_and_bars(rank_timeout))
        if ranks.world > 1 and steps != 0 and (tune_seconds or TUNE_SECONDS) >= 60 * rank_timeout:
            raise QuantGolfError(
                f"--rank-timeout is {rank_timeout:g} minutes, expected more than the "
                f"{tune_seconds or TUNE_SECONDS:g} s that one rank may tune for; give fewer --tune-seconds"
            )
        desk = None if dry or out is None else stack.enter_context(work.working(out, ranks, resume))
        unknown, settings = None, learning.settings()
        if stats is not None:
            learn.open_on(source, device)
            calibration, settings, corpus, judged, more = judging.stored(
                stats, source, call, learning, checkpoint, report
            )
        else:
            learn.open_on(source, device)
            corpus, judged, more = judging.open(learning, source, checkpoint, report)
            unknown = corpus.unknown
            if dry:
                predicted = dry_run(
                    source, corpus, learning.batches(corpus), max_bytes=limit, rules=rules, solver=solver.value,
                    code_bytes=code_bytes, length=text.length, memory=learning.limit(),
                    judged=0 if judged is None or guard is False else len(judged.text.tokens), options=options,
                    group_sizes=asked.group_sizes, codec=asked.codec.value,
                )  # fmt: skip
            elif desk is not None:
                calibration = desk.learn(learning, source, corpus, ranks, report)
        if desk is not None:
            result = compress(
                source, calibration, max_bytes=wish.max_bytes, bpw=bpw, max_kl=max_kl, max_dbpb=max_dbpb, rules=rules,
                solver=solver.value, options=options, trellis=trellis, code_bytes=code_bytes, held_out=judged,
                guard=guard if judged is not None else False, tuning=judging.tuning(corpus, judged, tune_seconds),
                ranks=ranks, progress=report, group_sizes=asked.group_sizes, codec=asked.codec.value,
                shelf=desk.shelf,
            )  # fmt: skip
            if ranks.writes and out is not None:
                verified = desk.write(result, overwrite)
                more += tuple(desk.notes)
    if not ranks.writes:
        return
    if dry or out is None:
        written.print_dry_run(predicted, limit, json)
        return
    document = written.summary(result, verified, out, wish, limit) | {
        "calibration": {**settings, "tokens": calibration.tokens, "labels": calibration.labels},
        "unknown_pieces": unknown,
        "notes": [*source.notes, *notes, *more, *result.notes],
    }
    if json:
        show.print_json(document)
    else:
        written.print_summary(document)


def refuse_dry(wish: Wish, stats: Path | None) -> None:
    """Refuses what cannot be predicted in seconds."""
    if stats is not None:
        raise QuantGolfError("--dry-run predicts calibration too, expected it without --stats; leave one out")
    if wish.promise is not None:
        raise QuantGolfError(
            f"--dry-run predicts no loss on text, expected a limit or widths, not {wish.promise.option}; leave one out"
        )


def size_of(path: Path) -> int:
    """Raw bytes of a --code file as it lies there."""
    try:
        if path.is_file():
            return path.stat().st_size
    except OSError as error:
        raise QuantGolfError(f"--code {path}: {error.strerror}, expected a readable file") from error
    raise QuantGolfError(f"--code {path}: no such file, expected a source file whose bytes count towards the budget")
