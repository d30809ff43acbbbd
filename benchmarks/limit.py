"""How many bits a weight a file takes above the rate-distortion limit of its weights, a matrix at a time and in all.

    python benchmarks/limit.py demo --bpw 3.5 --bpw 2.5
    python benchmarks/limit.py CKPT --model script.py:factory --tokenizer T --calibration C --data V --length 256 \\
        --bpw 3.5 --bpw 2.5 --max-bytes 1.2MB --out limit.jsonl

The limit is reverse water-filling for a Gaussian source (Cover & Thomas, 10.3.3). An error E of a matrix costs
½ tr(G E H Eᵀ) nats a token. In the eigenbases of G and H (eigenvalues γ_i and λ_k) weights that are i.i.d. N(0, σ²) are
independent components, and one that is given no bits costs a_ik = ½ σ² γ_i λ_k. At the water level θ the least rate is
Σ max(0, ½ log2(a_ik / θ)) bits, the loss Σ min(θ, a_ik). A matrix is held against the rate at its own loss, the file
against that at the sum of all losses under one θ.

What judges has learned from other text (the tokens behind), so that fitting H too closely counts as loss; beside it
stands the same judged by the statistics that compressed.
"""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from torch import Tensor

from quantgolf.blob import parse
from quantgolf.calibrate.store import read_calibration
from quantgolf.checkpoint import Checkpoint
from quantgolf.cli import inputs, show
from quantgolf.cli.inputs import Documents, Part
from quantgolf.compress import calibrate, compress
from quantgolf.data import Corpus
from quantgolf.encode import block_bytes, decode_model
from quantgolf.encode.contexts import read_contexts
from quantgolf.encode.diagonals import rolled
from quantgolf.encode.exponents import decode_exponents
from quantgolf.encode.lanes import symbols_of
from quantgolf.encode.table import PRECISION, SYMBOLS
from quantgolf.encode.varint import Cursor
from quantgolf.errors import QuantGolfError
from quantgolf.evaluate import evaluate_against, kl_interval
from quantgolf.runtime import restore
from quantgolf.sizes import parse_size
from quantgolf.solve.trellis import Trellis
from quantgolf.types import Calibration, CodedModel, QTensor, WeightStats

BARS = {3.5: 0.15, 2.5: 0.20}  # issue 4: bits above the limit, whole file
CONDITIONS = (
    "conditions: each matrix i.i.d. N(0, σ²) with its own mean square as σ²; G (shrunk) and H undamped; a weight with "
    "several uses priced by its H̄ and row weights as the solver does; what is kept unquantized has no bits in the limit"
)


@dataclass(frozen=True)
class Source:
    """Weights [N, K] of N(0, variance), the eigenvalues of G (row weights where only those are known) [N], and those of
    H [K], largest first; both are float64 and none is negative."""

    variance: float
    row: NDArray[np.float64]
    spectrum: NDArray[np.float64]

    @property
    def most(self) -> float:
        """The loss without any bits, nats a token."""
        return float(self.variance * self.row.sum() * self.spectrum.sum() / 2)

    @cached_property
    def _sums(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """By n: Σ log2 of the n largest eigenvalues, and the sum of the others, [K + 1] each."""
        logs = np.log2(np.maximum(self.spectrum, np.finfo(np.float64).tiny))
        rest = np.append(np.cumsum(self.spectrum[::-1])[::-1], 0.0)
        return np.append(0.0, np.cumsum(logs)), rest

    def at(self, water: float) -> tuple[float, float]:
        """Bits and loss (nats a token) of all weights at a water level > 0."""
        scale = self.variance / 2 * self.row
        scale = scale[scale > 0]
        above = np.searchsorted(-self.spectrum, -water / scale)  # how many components of each row lie above the water
        logs, rest = self._sums
        bits = (logs[above] + above * np.log2(scale / water)).sum() / 2
        return float(bits), float(water * above.sum() + scale @ rest[above])


def water_level(sources: Sequence[Source], loss: float) -> float:
    """The one θ at which these sources together lose `loss` nats a token; the largest component if that is all.

    Raises:
        QuantGolfError: no loss above zero, which takes bits without limit.
    """
    if not loss > 0:
        raise QuantGolfError(f"loss is {loss}, expected more than 0: without any loss the limit is no number of bits")
    high = np.log2(max(s.variance / 2 * s.row.max() * s.spectrum.max() for s in sources))
    low = min(high, np.log2(loss / sum(len(s.row) * len(s.spectrum) for s in sources)))  # if all were above the water
    for _ in range(100):  # the loss grows with θ
        middle = (low + high) / 2
        low, high = (low, middle) if sum(s.at(2.0**middle)[1] for s in sources) >= loss else (middle, high)
    return float(2.0**high)


def limit_bits(sources: Sequence[Source], loss: float) -> float:
    """Fewest bits of all weights of these sources at a loss in nats a token; none where no error costs anything."""
    if not any(source.most for source in sources):
        return 0.0
    water = water_level(sources, loss)
    return sum(source.at(water)[0] for source in sources)


def source_of(weight: Tensor, stats: WeightStats) -> Source:
    """The Gaussian source that stands for a matrix [N, K]."""
    spectrum, outputs = np.linalg.eigvalsh(stats.hessian().double().numpy())[::-1], stats.outputs()
    row = stats.row_weight().double().numpy() if outputs is None else np.linalg.eigvalsh(outputs.double().numpy())
    return Source(float(weight.double().square().mean()), np.maximum(row, 0), np.maximum(spectrum, 0))


def priced(error: Tensor, stats: WeightStats) -> float:
    """½ tr(G E H̄ Eᵀ) of an error [N, K], nats a token; with one use it is `WeightStats.loss`."""
    wide, outputs = error.double(), stats.outputs()
    felt = stats.row_weight().double()[:, None] * wide if outputs is None else outputs.double() @ wide
    return float(((wide @ stats.hessian().double()) * felt).sum() / 2)


def bits_by_matrix(coded: CodedModel) -> dict[str, float]:
    """Bits of each matrix of levels: what they take under the tables of their stream, and its share of exponents.

    What the stream has besides symbols (tables, lanes, escapes) is shared by number of weights, as `block_bytes` shares
    all of it.
    """
    shapes = {tensor.name: tensor.shape for tensor in coded.tensors}
    diagonal = [block.diagonal for tensor in coded.tensors for block in tensor.blocks if block.levels]
    parts = {
        place.name(shapes[place.parameter]): part.codes.numpy()
        for place, part in decode_model(coded)
        if isinstance(part, QTensor) and part.bits is None
    }
    shares = zip(coded.tensors, block_bytes(coded), strict=True)
    steps = [8 * s.steps for t, each in shares for b, s in zip(t.blocks, each, strict=True) if b.levels]
    exponents = decode_exponents(coded.exponents, [(n, (len(p), p.shape[1])) for n, p in parts.items()])
    trellis = Trellis(coded.states, coded.restart)
    sums = [np.add.outer(np.unique(e.row), np.unique(e.column)).astype(np.int64).ravel() for e in exponents]
    spreads = np.unique(np.concatenate([e.spread - each for e, each in zip(exponents, sums, strict=True)]))
    contexts = read_contexts(Cursor(coded.levels, "the stream of levels"), spreads, trellis.states > 1)
    lengths = PRECISION - np.log2(np.maximum(contexts.shares() & 0xFFFF, 1)).reshape(-1, SYMBOLS)
    class_at = contexts.class_at(np.arange(spreads[0], spreads[-1] + 1))
    symbols = []
    for levels, each, along in zip(parts.values(), exponents, diagonal, strict=True):
        counts, (some, more) = np.zeros(lengths.shape, dtype=np.int64), np.empty((2, levels.size), dtype=np.uint8)
        row, column = each.row.numpy().astype(np.int64), each.spread - spreads[0] - each.column.numpy()
        flat, shared = (rolled(levels) if along else levels.T).ravel(), (trellis.after, trellis.restart)
        symbols_of(flat, row, column, class_at, *shared, some, more, counts, along)
        symbols.append(float((counts * lengths).sum()))
    besides = (8 * len(coded.levels) - sum(symbols)) / sum(levels.size for levels in parts.values())
    known = zip(parts.items(), symbols, steps, strict=True)
    return {name: bits + side + besides * levels.size for (name, levels), bits, side in known}


@dataclass(frozen=True)
class Judged:
    """A matrix against its limit: bits a weight; loss in nats a token by H̄ and row weights; the limit at that loss."""

    name: str
    weights: int
    bits: float
    loss: float
    limit: float


def judge(
    checkpoint: Checkpoint, calibration: Calibration, coded: CodedModel, stats: Mapping[str, WeightStats]
) -> tuple[list[Judged], float]:
    """A file's matrices against the limits that statistics set, and the bits of all at one water level and their loss.

    Raises:
        QuantGolfError: the statistics lack a matrix.
    """
    tensors, found, sources = restore(coded), [], []
    for name, bits in bits_by_matrix(coded).items():
        if name not in stats:
            raise QuantGolfError(f"statistics to judge by lack {name}, expected all matrices: judge by more text")
        block, known = calibration.blocks[name], stats[name]
        weight = block.matrix(checkpoint.tensors[block.parameter]).float()
        loss, count = priced(block.matrix(tensors[block.parameter]) - weight, known), weight.numel()
        sources.append(source_of(weight, known))
        found.append(Judged(name, count, bits / count, loss, limit_bits(sources[-1:], loss) / count))
    return found, limit_bits(sources, sum(matrix.loss for matrix in found))


def statistics(
    source: Checkpoint, text: Corpus, tokens: int, length: int, seed: int
) -> tuple[Calibration, Calibration]:
    """What compresses, of the first `tokens` of a text, and what judges, of as many behind them.

    Raises:
        QuantGolfError: the text ends before them.
    """
    if len(text.tokens) <= 2 * tokens:
        raise QuantGolfError(
            f"calibration text has {len(text.tokens):,} tokens, expected more than {2 * tokens:,}, half to judge "
            "by: give more text or fewer --calibration-tokens"
        )
    behind = replace(text, tokens=text.tokens[tokens:], document=text.document[tokens:])
    first = calibrate(source, text, tokens=tokens, length=length, seed=seed)
    return first, calibrate(source, behind, tokens=tokens, length=length, seed=seed + 1)


def measure(
    source: Checkpoint, learned: Calibration, held_out: Calibration, text: Corpus, length: int, states: int,
    max_bytes: int,
) -> dict[str, Any]:  # fmt: skip
    """One file under a budget, against the limit and against the float model."""
    result = compress(source, learned, max_bytes=max_bytes, solver="slope", trellis=Trellis(states))
    coded = parse(result.data)[1]
    parts = {"levels": len(coded.levels), "steps": len(coded.exponents), "kept": len(coded.small)}
    parts["header"] = len(result.data) - sum(parts.values())
    (matrices, bound), (by_own, own) = (judge(source, learned, coded, by.stats) for by in (held_out, learned))
    scored, base = evaluate_against(result.module(deepcopy(source.module)), source.module, text, length=length)
    kl = kl_interval(scored)
    return {
        "limit": max_bytes, "bytes": len(result.data), "parameters": result.parameters, "bpw": result.bpw,
        "bound": bound / result.parameters, "above": result.bpw - bound / result.parameters,
        "above_own": result.bpw - own / result.parameters, "loss": sum(m.loss for m in matrices),
        "loss_own": sum(m.loss for m in by_own), "kept": result.kept,
        "parts": {kind: 8 * size / result.parameters for kind, size in parts.items()},
        "kl": kl.value, "kl_low": kl.low, "kl_high": kl.high, "float_bpb": base.bpb, "bpb": scored.bpb,
        "matrices": [
            asdict(m) | {"above": m.bits - m.limit, "above_own": o.bits - o.limit}
            for m, o in zip(matrices, by_own, strict=True)
        ],
    }  # fmt: skip


def main(
    checkpoint: inputs.CheckpointArgument,
    model: inputs.ModelOption = None,
    tokenizer: inputs.TokenizerOption = None,
    data: inputs.DataOption = None,
    calibration: Annotated[list[Path] | None, typer.Option(help="Text to calibrate on; not the one of --data.")] = None,
    stats: Annotated[tuple[Path, Path] | None, typer.Option(help="Saved ones: to compress with, to judge by.")] = None,
    documents: inputs.DocumentsOption = Documents.lines,
    bos: inputs.BosOption = True,
    length: inputs.LengthOption = 512,
    tokens: Annotated[int, typer.Option(help="Validation tokens.")] = 100_000,
    calibration_tokens: int = 32_768,
    max_bytes: Annotated[list[str] | None, typer.Option(help="A budget; again for more.")] = None,
    bpw: Annotated[list[float] | None, typer.Option(help="A budget in bits a number; again for more.")] = None,
    states: Annotated[int, typer.Option(help="Of the trellis; 1 is the scalar quantizer.")] = 128,
    seed: inputs.SeedOption = 0,
    out: Annotated[Path | None, typer.Option(help="JSON lines are appended here.")] = None,
) -> None:
    source = inputs.open_source(checkpoint, model)
    text = inputs.open_text(checkpoint, data, tokenizer, documents, bos, tokens, Part.validation)
    if stats is None:
        learn = inputs.open_text(
            checkpoint, calibration, tokenizer, documents, bos, 2 * calibration_tokens + length, Part.calibration
        )
        learned, held_out = statistics(source, learn, calibration_tokens, length, seed)
    else:
        learned, held_out = (read_calibration(folder, source.fingerprint)[0] for folder in stats)
    asked = bpw or ([] if max_bytes else list(BARS))
    budgets = [(int(bits * source.parameters / 8), BARS.get(bits)) for bits in asked]
    show.console(False).print(CONDITIONS)
    for size, bar in budgets + [(parse_size(size), None) for size in max_bytes or ()]:
        row = {
            "name": "limit", "checkpoint": Path(checkpoint).name,
            **measure(source, learned, held_out, text, length, states, size), "bar": bar, "states": states,
            "calibration_tokens": learned.tokens, "judging_tokens": held_out.tokens, "length": length, "seed": seed,
            "conditions": CONDITIONS, "python": platform.python_version(), "machine": platform.machine(),
            "versions": {package: version(package) for package in ("torch", "numpy", "quantgolf")},
            "cores": os.cpu_count(), "date": datetime.now(UTC).date().isoformat(),
        }  # fmt: skip
        print_table(row)
        if out is not None:
            with out.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")


def print_table(row: dict[str, Any]) -> None:
    whole = row | {"name": "whole file", "weights": row["parameters"], "bits": row["bpw"], "limit": row["bound"]}
    lines = [
        (m["name"], f"{m['weights']:,}", f"{m['bits']:.3f}", f"{m['limit']:.3f}", f"{m['above']:+.3f}",
         f"{m['above_own']:+.3f}", f"{m['loss']:.5f}")
        for m in (*row["matrices"], whole)
    ]  # fmt: skip
    columns = ("matrix", "weights", "bits", "limit", "above", "by its own statistics", "loss, nats/token")
    console = show.console(False)
    console.print(show.table(f"{row['bytes']:,} of {row['limit']:,} bytes", columns, lines))
    bar = "" if row["bar"] is None else f" (at most {row['bar']:.2f} asked)"
    parts = ", ".join(f"{kind} {bits:.3f}" for kind, bits in row["parts"].items())
    console.print(f"{row['above']:.3f} bits above the limit{bar}; bits of the file: {parts}")
    console.print(f"KL {row['kl']:.5f} ({row['kl_low']:.5f} to {row['kl_high']:.5f}) bits/byte")


if __name__ == "__main__":
    typer.run(main)
