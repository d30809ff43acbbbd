"""How long one slope takes and what it needs, on models of the reference family, with the limits beside it.

    python benchmarks/slope_speed.py --out benchmarks/results/slope_speed.jsonl

Weights and statistics are made up, on a realistic scale: rows and columns of unequal size, spectra that fall by a power
law, rows that the loss feels unequally. Nothing is tuned. `quantgolf compress --stats` runs as a process of its own, as
often as --threads says; the files have to be equal, byte for byte, and the time is that of the last run. Then one
thread decodes the file to weights and encodes its levels again, to the same bytes.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from safetensors.torch import save_file
from torch import Tensor

from quantgolf.blob import read_blob
from quantgolf.calibrate.collect import survey
from quantgolf.calibrate.store import Origin, write_calibration
from quantgolf.checkpoint import open_checkpoint
from quantgolf.cli import show
from quantgolf.encode import Leveled, decode_model
from quantgolf.encode.exponents import decode_exponents
from quantgolf.encode.leveled import encode_leveled
from quantgolf.errors import QuantGolfError
from quantgolf.models.golf import Golf, GolfConfig
from quantgolf.runtime import restore
from quantgolf.solve.trellis import Trellis
from quantgolf.types import WeightStats, WeightUse

TOKENS = 32_768
PEAK, DECODE, ENCODE = 3_000_000_000, 1.0, 2.0  # limits: bytes, and seconds of one core for a file of 16 MB
# Shape, budget and limit in seconds on two cores; the small one is that of the golf checkpoint at 3.5 bits.
CASES = {
    "golf": (GolfConfig(layers=6), 1_664_000, 60.0),
    "36M": (GolfConfig(vocab_size=8192, dim=512, layers=11, heads=8, kv_heads=4, mlp_mult=4), 16_000_000, 300.0),
    "134M": (GolfConfig(vocab_size=49_152, dim=576, layers=30, heads=9, kv_heads=3, mlp_mult=4), 70_000_000, 480.0),
}
USUAL = ("golf", "36M")


def main(
    cases: Annotated[
        list[str] | None, typer.Argument(help="golf, 36M, 134M (of the size of SmolLM2); default: the first two.")
    ] = None,
    threads: Annotated[str, typer.Option(help="OMP_NUM_THREADS of each run, the timed one last.")] = "1,3,2",
    out: Annotated[Path | None, typer.Option(help="JSON lines to append to.")] = None,
    measure: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Compress, decode and encode; print a table with the limits beside it."""
    if measure is not None:
        print(json.dumps(coder_seconds(measure)))
        return
    rows = []
    for name in cases or USUAL:
        if name not in CASES:
            raise QuantGolfError(f"case {name} is not known, expected one of {', '.join(CASES)}")
        config, max_bytes, limit = CASES[name]
        with tempfile.TemporaryDirectory() as folder:
            parameters = make(Path(folder), config)
            row = measured(Path(folder), max_bytes, [int(part) for part in threads.split(",")])
        rows.append({"name": f"slope_speed {name}", "parameters": parameters, "max_bytes": max_bytes, **row,
                     "limit_seconds": limit, "cores": os.cpu_count(), "machine": platform.machine(),
                     "versions": {p: version(p) for p in ("torch", "numpy", "numba", "quantgolf")},
                     "date": datetime.now(UTC).date().isoformat()})  # fmt: skip
        if out is not None:
            with out.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(rows[-1]) + "\n")
    print_table(rows)


def make(folder: Path, config: GolfConfig) -> int:
    """Writes a model with its card and statistics; returns its parameters."""
    generator = torch.Generator().manual_seed(0)

    def scatter(count: int, sigma: float) -> Tensor:
        return torch.randn(count, generator=generator).mul(sigma).exp()

    model = Golf(config)
    with torch.no_grad():
        for matrix in (parameter for parameter in model.parameters() if parameter.ndim == 2):
            rows, columns = matrix.shape
            matrix.normal_(0, columns**-0.5, generator=generator)
            matrix.mul_(scatter(rows, 0.3)[:, None] * scatter(columns, 0.3))
    save_file({name: value.half() for name, value in model.state_dict().items()}, folder / "model.safetensors")
    (folder / "card.json").write_text(json.dumps({"family": "golf", "config": asdict(config)}), encoding="utf-8")
    source = open_checkpoint(folder / "model.safetensors", folder / "card.json")
    seen = survey(source.module, torch.zeros(1, 8, dtype=torch.int64))
    spectra: dict[int, Tensor] = {}

    def second_moment(size: int) -> Tensor:
        if size not in spectra:
            mixing = torch.arange(1, size + 1)[:, None] ** -0.5 * torch.randn(size, size, generator=generator)
            inputs = torch.randn(2 * size, size, generator=generator) @ mixing
            spectra[size] = inputs.T @ inputs / len(inputs)
        scale = scatter(size, 0.5)
        return spectra[size] * scale[:, None] * scale

    stats = {}
    for name, block in seen.blocks.items():
        rows, columns = block.matrix(source.tensors[block.parameter]).shape
        if name in seen.outputs:
            outputs = 1e-4 * second_moment(rows)
            uses = [WeightUse("linear", outputs.diagonal().clone(), second_moment(columns), TOKENS, outputs)]
        else:
            uses = [WeightUse("linear", 1e-4 * scatter(rows, 1.0), second_moment(columns), TOKENS)]
        if block.parameter == "emb.weight":
            often = 1 / torch.arange(1, rows + 1)
            uses.append(WeightUse("lookup", often / often.sum(), 1e-4 * second_moment(columns), TOKENS))
        stats[name] = WeightStats(name, tuple(uses), TOKENS)
    calibration = replace(seen, stats=stats, tokens=TOKENS)
    write_calibration(folder / "stats", calibration, Origin(source.fingerprint, "made up", {"made up": True}))
    return source.parameters


def measured(folder: Path, max_bytes: int, threads: list[int]) -> dict[str, Any]:
    """Seconds, bytes and whether files are equal for a model of `make`."""
    files = []
    for index, count in enumerate(threads):
        files.append(folder / f"{index}.qg")
        _, seconds, busy, peak = run(
            count, "-m", "quantgolf", "compress", str(folder / "model.safetensors"), "--model",
            str(folder / "card.json"), "--stats", str(folder / "stats"), "--solver", "slope", "--max-bytes",
            str(max_bytes), "--out", str(files[-1]), "--json",
        )  # fmt: skip
    coder = json.loads(run(1, __file__, "--measure", str(files[-1]))[0])
    return {
        "bytes": files[-1].stat().st_size,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(busy, 2),
        "peak_bytes": peak,
        "threads": threads,
        "equal_files": len({file.read_bytes() for file in files}) == 1,
        **coder,
    }


def coder_seconds(path: Path) -> dict[str, float]:
    """CPU seconds to decode a file to weights and to encode its levels, the less of three times each."""
    torch.set_num_threads(1)
    decode, encode = [], []
    for _ in range(3):
        started = time.process_time()
        _, coded = read_blob(path)
        restore(coded)
        decode.append(time.process_time() - started)
        shapes = {tensor.name: tensor.shape for tensor in coded.tensors}
        found = [(place, part) for place, part in decode_model(coded) if not isinstance(part, Tensor)]
        names = [place.name(shapes[place.parameter]) for place, _ in found]
        sizes = [(part.codes.shape[0], part.codes.shape[1]) for _, part in found]
        exponents = decode_exponents(coded.exponents, list(zip(names, sizes, strict=True)))
        diagonal = [block.diagonal for tensor in coded.tensors for block in tensor.blocks if block.levels]
        leveled = [
            (name, Leveled(place, steps, part.codes, along))
            for name, (place, part), steps, along in zip(names, found, exponents, diagonal, strict=True)
        ]
        started = time.process_time()
        streams = encode_leveled(leveled, Trellis(coded.states, coded.restart))
        encode.append(time.process_time() - started)
        if streams != (coded.exponents, coded.levels):
            raise QuantGolfError(f"{path}: its levels encode to other bytes, expected the same; the coder is broken")
    return {"decode_seconds": round(min(decode), 3), "encode_seconds": round(min(encode), 3)}


def run(threads: int, *arguments: str) -> tuple[str, float, float, int]:
    """What a Python process printed, its seconds, those its cores were busy, and its peak memory in bytes."""
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        text=True,
        encoding="utf-8",
    )
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise QuantGolfError(f"python {' '.join(arguments)} ended with {process.returncode}")
    return printed, time.monotonic() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def print_table(rows: list[dict[str, Any]]) -> None:
    """Measurements with their limits."""
    show.console(False).print(
        show.table(
            f"limits: {PEAK:,} bytes at the peak; of 16 MB {DECODE:g} s to decode, {ENCODE:g} s to encode on one core",
            ("model", "bytes", "of", "seconds (busy)", "limit", "peak bytes", "decode, s", "encode, s", "threads"),
            [
                (
                    f"{row['parameters']:,}", f"{row['bytes']:,}", f"{row['max_bytes']:,}",
                    f"{row['seconds']:.1f} ({row['cpu_seconds']:.1f})", f"{row['limit_seconds']:g}",
                    f"{row['peak_bytes']:,}", f"{row['decode_seconds']:.2f}", f"{row['encode_seconds']:.2f}",
                    f"{','.join(map(str, row['threads']))}: {'equal' if row['equal_files'] else 'FILES DIFFER'}",
                )
                for row in rows
            ],
        )
    )  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
