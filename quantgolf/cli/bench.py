"""`quantgolf bench`: how fast packed weights are, kernel by kernel, decoding, and evaluating a file; and methods of
users against ours.

The scripts `benchmarks/kernels.py` and `benchmarks/decode.py` are these commands with everything asked for.
"""

import json as jsons
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer

from quantgolf.bench import decode, kernels, model, static
from quantgolf.bench.cases import KINDS, OPS, ROWS, SHAPES, parse_shape, plan
from quantgolf.bench.clock import EventTimer, GraphTimer
from quantgolf.bench.machine import conditions, open_gpu
from quantgolf.bench.peers import peers as installed_peers
from quantgolf.bench.roofline import measured_ceilings
from quantgolf.cli import apart, bench_tables, inputs, show
from quantgolf.cli.bench_bpb import bpb_verb
from quantgolf.cli.inputs import Part, TextOptions
from quantgolf.errors import QuantGolfError
from quantgolf.evaluate import evaluate
from quantgolf.json_lines import append_line, refuse_unlike
from quantgolf.runtime import load

Row = dict[str, Any]
bench_app = typer.Typer(
    help="Time packed weights: kernels, decoding, evaluation. Measure methods of your own: bpb.", no_args_is_help=True
)
bench_app.command("bpb")(bpb_verb)
bench_app.command("BPB", hidden=True)(bpb_verb)
OutOption = Annotated[Path | None, typer.Option("--out", help="JSON lines to append to, as they are measured.")]


@bench_app.command("kernels")
def kernels_verb(
    bits: Annotated[str, typer.Option("--bits", help="Widths, with commas.")] = "2,3,4,5,6,7,8",
    shape: Annotated[
        str, typer.Option("--shape", help="ROWSxCOLUMNS of matrices, or one number, with commas; or the word all.")
    ] = "8192,2048x512",
    m: Annotated[str, typer.Option("--m", help="Rows of activations, with commas.")] = ",".join(map(str, ROWS)),
    kind: Annotated[str, typer.Option("--kind", help=f"Among {','.join(KINDS)}.")] = ",".join(KINDS),
    op: Annotated[str, typer.Option("--op", help=f"Among {','.join(OPS)}.")] = ",".join(OPS),
    state: Annotated[str, typer.Option("--caches", help="warm, flushed or both, with a comma.")] = "warm,flushed",
    peers: Annotated[bool, typer.Option("--peers/--no-peers", help="torchao and gemlite too, if installed.")] = True,
    static_only: Annotated[
        bool, typer.Option("--static", help="No GPU: compile for an H100 and predict from what the compiler made.")
    ] = False,
    out: OutOption = None,
    seed: inputs.SeedOption = 0,
    json: inputs.JsonOption = False,
) -> None:
    """Check and time the kernels beside the bf16 dense product and the roofline."""
    refuse_unlike(out)
    widths, rows = _numbers("--bits", bits), _numbers("--m", m)
    shapes = SHAPES if shape == "all" else tuple(parse_shape(part) for part in shape.split(","))
    cases = list(plan(widths, shapes, rows, kind.split(","), op.split(",")))
    states = state.split(",")
    if not set(states) <= set(kernels.STATES):
        raise QuantGolfError(f"--caches is {state}, expected {' or '.join(kernels.STATES)}, or both with a comma")
    if static_only:
        found = [row | conditions(None) for row in static.predictions(widths, shapes, rows)]
        _finish(found, out, json, bench_tables.static_table)
        return
    gpu = open_gpu("bench kernels without --static")
    timer = GraphTimer(gpu.device)
    others, missing = installed_peers() if peers else ([], [])
    for note in missing:
        show.console(json).print(note, markup=False)
    bench = kernels.Bench(
        timer, gpu.device, torch.bfloat16, gpu.cache_bytes, measured_ceilings(timer, gpu.device), conditions(gpu),
        states, seed,
    )  # fmt: skip
    measured: list[Row] = []
    with show.bars() as report:
        total = sum(len(matrices) for _, matrices in cases)
        done = 0
        for one, matrices in cases:
            report("matrices", done, total)
            for row in kernels.run_shape(bench, one, matrices, others):
                measured.append(_kept(row, out))
            done += len(matrices)
            report("matrices", done, total)
            torch.cuda.empty_cache()
    _finish(measured, None, json, bench_tables.kernels_table)


@bench_app.command("decode")
def decode_verb(
    form: Annotated[
        str, typer.Option("--form", help="Random models of 36M parameters: slope, or a width of all, with commas.")
    ] = "slope,4,6,8",
    length: Annotated[int, typer.Option("--length", min=1, help="Tokens of a text, and kept while decoding.")] = 512,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Texts evaluated at once.")] = 64,
    what: Annotated[str, typer.Option("--what", help="decode, eval, or both with a comma.")] = "decode,eval",
    out: OutOption = None,
    seed: inputs.SeedOption = 0,
    json: inputs.JsonOption = False,
) -> None:
    """Time one-token decoding and evaluation of the 36M model, packed and as bf16."""
    refuse_unlike(out)
    asked = tuple(what.split(","))
    if not set(asked) <= {"decode", "eval"}:
        raise QuantGolfError(f"--what is {what}, expected decode or eval, or both with a comma")
    names = model.forms(form)
    gpu = open_gpu("bench decode")
    setting = decode.Setting(
        GraphTimer(gpu.device), EventTimer(gpu.device), gpu.device, torch.bfloat16, torch.compile, length, batch, seed
    )
    rows: list[Row] = []
    with show.bars() as report, tempfile.TemporaryDirectory() as folder:
        for done, name in enumerate(names):
            report("models", done, len(names))
            path = Path(folder) / f"{name}.qg"
            path.write_bytes(model.random_file(model.CONFIG_36M, name, seed))
            found = compare_file(setting, path, name, asked)
            rows += [_kept(row | conditions(gpu), out) for row in found]
            report("models", done + 1, len(names))
    _finish(rows, None, json, bench_tables.model_table)


def compare_file(setting: decode.Setting, path: Path, form: str, asked: tuple[str, ...]) -> list[Row]:
    """Lines of results for a file of the reference family."""
    packed = load(path, device=setting.device, materialize=False, dtype=setting.dtype)
    dense = load(path, device=setting.device, materialize=True, dtype=setting.dtype)
    reference = load(path, device=setting.device, materialize=True, dtype=torch.float32)
    return decode.compare(setting, form, packed, dense, reference, asked)


@bench_app.command("eval")
@inputs.reads_text
def eval_verb(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A compressed file.")],
    text: TextOptions,
    model: inputs.ModelOption = None,
    tokens: Annotated[int, typer.Option("--tokens", min=2, help="Evaluate so many.")] = 16_384,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Times that each is evaluated; the median.")] = 3,
    device: inputs.DeviceOption = "cpu",
    out: OutOption = None,
    json: inputs.JsonOption = False,
) -> None:
    """Time the evaluation of a file from its packed weights and from floating point ones."""
    apart.refuse_same({"--out": out}, {**apart.inputs_of(None, model, text), "FILE": file})
    refuse_unlike(out)
    target = inputs.open_device(device)
    corpus = text.open(inputs.DEMO if text.data is None else None, tokens, Part.validation)
    document: Row = {"name": "file eval", "file": str(file), "device": str(target), "repeats": repeats}
    for form, whole in (("packed", False), ("float", True)):
        module = load(file, model, target, materialize=whole)

        def run(module: torch.nn.Module = module) -> float:
            return evaluate(module, corpus, length=text.length, context=text.context.value).bpb

        bpb = run()  # compiles what is compiled, and fills caches
        seconds = median(_timed(run) for _ in range(repeats))
        document |= {f"{form}_seconds": seconds, f"{form}_bpb": bpb, f"{form}_bytes": decode.stored_bytes(module)}
    document |= {
        "tokens": len(corpus.tokens), "speed": document["float_seconds"] / document["packed_seconds"],
        "of_float_bytes": document["packed_bytes"] / document["float_bytes"],
        **conditions(open_gpu("bench eval", target) if target.type == "cuda" else None),
    }  # fmt: skip
    _kept(document, out)
    if json:
        show.print_json(document)
        return
    rows = [
        (form, f"{document[f'{form}_seconds']:.3f}", f"{document['tokens'] / document[f'{form}_seconds']:,.0f}",
         f"{document[f'{form}_bpb']:.5f}", f"{document[f'{form}_bytes']:,}")
        for form in ("packed", "float")
    ]  # fmt: skip
    title = f"{file}: packed at {document['speed']:.2f} of the speed in {document['of_float_bytes']:.2f} of the bytes"
    show.console(json).print(show.table(title, ("weights", "seconds", "tokens/s", "BPB", "bytes"), rows))


def _timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()  # gives a number, so that a GPU is waited for
    return time.perf_counter() - started


def _numbers(option: str, text: str) -> list[int]:
    with suppress(ValueError):
        found = [int(part) for part in text.split(",")]
        if all(number > 0 for number in found):
            return found
    raise QuantGolfError(f"{option} is {text!r}, expected whole numbers above 0 with commas")


def _kept(row: Row, out: Path | None) -> Row:
    if out is not None:
        append_line(out, jsons.dumps(row))
    return row


def _finish(rows: list[Row], out: Path | None, json: bool, table: Callable[[list[Row]], Any]) -> None:
    """Writes what is not written yet, and prints: the table, or one object with all lines."""
    for row in rows:
        _kept(row, out)
    if json:
        show.print_json({"rows": rows, "goals_not_met": bench_tables.unmet(rows)})
        return
    show.console(json).print(table(rows))
    if count := bench_tables.unmet(rows):
        show.console(json).print(f"{count} goals are not met")
