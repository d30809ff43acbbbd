"""Finds the fastest tiles of this GPU's family and writes them to kernels/configs/FAMILY.json.

    python benchmarks/retune.py --kernel gemv,gemm --bits 3,4,6 --shape 8192,2048x512

Each bucket's fastest tile of the grid in `quantgolf/bench/tune.py` is written as soon as it is known; run it again to
go on. QUANTGOLF_TUNING=FILE uses a file without installing it.
"""

import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from quantgolf.bench.cases import WIDTHS, parse_shape
from quantgolf.bench.clock import GraphTimer
from quantgolf.bench.machine import conditions, open_gpu
from quantgolf.bench.tune import Search, Tile, TileFile, best_tile, buckets
from quantgolf.cli import show
from quantgolf.errors import QuantGolfError
from quantgolf_kernels import tuning
from quantgolf_kernels.packing import Packed


def retune(
    kernel: Annotated[str, typer.Option(help="Among gemv, gemm and unpack, with commas.")] = "gemv,gemm,unpack",
    bits: Annotated[str, typer.Option(help="Widths, with commas.")] = ",".join(map(str, WIDTHS)),
    shape: Annotated[str, typer.Option(help="ROWSxCOLUMNS or one number, with commas.")] = (
        "512,2048x512,512x2048,2048,8192"
    ),
    m: Annotated[str, typer.Option(help="Rows of activations, with commas.")] = "1,16,32,64,128",
    out: Annotated[Path | None, typer.Option(help="Default: the family's file beside the kernels.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Forget what the file has.")] = False,
) -> None:
    """Search tiles by timing them."""
    kernels = kernel.split(",")
    if not set(kernels) <= set(tuning.KERNELS):
        raise QuantGolfError(f"--kernel is {kernel}, expected some of {', '.join(tuning.KERNELS)}")
    try:
        widths, rows = ([int(part) for part in text.split(",")] for text in (bits, m))
    except ValueError as error:
        raise QuantGolfError(f"--bits is {bits} and --m {m}, expected whole numbers with commas") from error
    if not set(widths) <= set(WIDTHS):
        raise QuantGolfError(f"--bits is {bits}, expected widths from {WIDTHS[0]} to {WIDTHS[-1]}")
    wanted = buckets(kernels, widths, [parse_shape(part) for part in shape.split(",")], rows)
    gpu = open_gpu("retune")
    found = conditions(gpu)
    versions = f"torch {torch.__version__}, triton {found['versions']['triton']}"
    made = f"measured on {gpu.name}, driver {found['driver']}, {versions}"
    path = out or tuning.FOLDER / f"{tuning.family(gpu.device)}.json"
    file = TileFile(path, made, overwrite)
    search = Search(GraphTimer(gpu.device), gpu.device, torch.bfloat16, gpu.cache_bytes, launch, impossible_errors())
    with show.bars() as report:
        for done, (name, bucket) in enumerate(wanted):
            report("buckets", done, len(wanted))
            if not file.has(name, bucket):
                tile, seconds, misfits = best_tile(search, name, bucket)
                file.put(name, bucket, tile)
                line = f"{name} {tuning.write_key(bucket)}: {seconds * 1e6:.2f} µs with {tile}, {misfits} did not fit"
                show.console(True).print(line, markup=False)
        report("buckets", len(wanted), len(wanted))
    print(path)


def launch(kernel: str, x: Tensor | None, packed: Packed, tile: Tile) -> Tensor:
    """One product, or what `unpack` unpacks: all rows, or those that x names."""
    from quantgolf_kernels.gemm import gemm
    from quantgolf_kernels.gemv import gemv
    from quantgolf_kernels.unpack import unpack_rows

    parts = (
        packed.data, packed.row, packed.column, packed.outliers, packed.scale, packed.zero, packed.bits, packed.offset,
        packed.columns, packed.group_size,
    )  # fmt: skip
    if kernel == "unpack":
        return unpack_rows(x, *parts, torch.bfloat16, tile)
    assert x is not None
    return (gemv if kernel == "gemv" else gemm)(x, *parts, tile)


def impossible_errors() -> tuple[type[Exception], ...]:
    """What triton raises for a tile that takes more than the GPU has."""
    from triton.runtime.errors import OutOfResources

    return (OutOfResources,)


if __name__ == "__main__":
    try:
        typer.run(retune)
    except QuantGolfError as error:
        print(f"retune: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
