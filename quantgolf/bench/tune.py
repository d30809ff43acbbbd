"""Finds the fastest tile of each kernel for this GPU, and writes the file that `quantgolf_kernels.tuning` reads.

Tiles are timed in a CUDA graph with caches flushed: eager timings rank short kernels wrongly. A bucket's result is
written as soon as it is there, with what it was measured on, so that an interrupted search goes on where it stopped.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quantgolf.atomic import fill, written
from quantgolf.bench.cases import Case, clones, make
from quantgolf.bench.clock import Call, Timer, copies, measure
from quantgolf.bench.kernels import relative_error
from quantgolf.errors import QuantGolfError
from quantgolf_kernels import tuning
from quantgolf_kernels.packing import Packed

Tile = dict[str, int]
GRID: dict[str, dict[str, tuple[int, ...]]] = {
    "gemv": {
        "block_n": (1, 2, 4, 8, 16), "block_k": (128, 256, 512), "num_warps": (1, 2, 4), "num_stages": (1, 2, 3),
    },
    "gemm": {
        "block_n": (64, 128), "block_m": (16, 32, 64), "block_k": (16, 32, 64, 128), "split_k": (1, 2, 4, 8),
        "num_warps": (4, 8), "num_stages": (2, 3, 4),
    },
    "unpack": {"block_n": (1, 4, 8, 16), "block_k": (64, 128, 256), "num_warps": (1, 4, 8), "num_stages": (2,)},
}  # fmt: skip
TOLERANCE = 1e-2  # as in `bench.kernels`, bf16

Launch = Callable[[str, Tensor | None, Packed, Tile], Tensor]


@dataclass(frozen=True)
class Search:
    """What tiles are timed with. `launch` runs a kernel; `impossible` are the errors that say that a tile does not fit
    the GPU (too much shared memory, too many registers)."""

    timer: Timer
    device: torch.device
    dtype: torch.dtype
    cache_bytes: int
    launch: Launch
    impossible: tuple[type[Exception], ...]


def tiles(kernel: str, m: int) -> Iterator[Tile]:
    """The grid of a kernel without what is certain to be slow: warps without words of their own (`gemv`: 128 words a
    warp fill its loads of 16 bytes), blocks for more activations than there are, tiles of 128 rows on four warps."""
    names = list(GRID[kernel])
    for values in product(*GRID[kernel].values()):
        tile = dict(zip(names, values, strict=True))
        if kernel == "gemv" and tile["block_k"] != 128 * tile["num_warps"]:
            continue
        if kernel == "gemm" and (tile["block_m"] > max(16, m) or (tile["block_n"] == 128) != (tile["num_warps"] == 8)):
            continue
        yield tile


def buckets(
    kernels: Sequence[str], widths: Sequence[int], shapes: Sequence[tuple[int, int]], rows: Sequence[int]
) -> list[tuple[str, tuple[int, int, int, int]]]:
    """What is searched: each kernel with the rows of activations that it is used for."""
    used = {"gemv": (1,), "gemm": tuning.ROWS[1:], "unpack": (1, tuning.ROWS[-1])}
    found = [
        (kernel, tuning.bucket(bits, m, n, k))
        for kernel, bits, (n, k), m in product(kernels, widths, shapes, rows)
        if tuning.bucket(bits, m, n, k)[1] in used[kernel]
    ]
    return list(dict.fromkeys(found))


def best_tile(search: Search, kernel: str, bucket: tuple[int, int, int, int]) -> tuple[Tile, float, int]:
    """The fastest right tile of a bucket, its seconds, and how many did not fit the GPU.

    Raises:
        QuantGolfError: none fits, or one gives a wrong result.
    """
    bits, m, n, k = bucket
    generator = torch.Generator(search.device).manual_seed(n * k + bits)
    made = make(Case("product", "steps", bits, m, n, k), search.device, generator)
    x: Tensor | None
    if kernel != "unpack":
        x = torch.randn(m, k, device=search.device, generator=generator).to(search.dtype)
        wanted = torch.nn.functional.linear(x.double(), made.weights)
    elif m == 1:
        x = torch.randint(0, n, (1,), device=search.device, generator=generator)
        wanted = made.weights[x]
    else:
        x, wanted = None, made.weights
    several = clones(made.packed, copies(search.cache_bytes, made.packed.nbytes))
    best: tuple[Tile, float] | None = None
    impossible = 0
    for tile in tiles(kernel, m):
        try:
            found = search.launch(kernel, x, made.packed, tile)
            calls: list[Call] = [partial(search.launch, kernel, x, one, tile) for one in several]
            seconds = measure(search.timer, calls).seconds
        except search.impossible:
            impossible += 1
            continue
        error = relative_error(found, wanted)
        if not error <= TOLERANCE:
            where = f"{kernel} {tuning.write_key(bucket)} with {tile}"
            raise QuantGolfError(
                f"{where}: the result is {error:.2e} from that in fp64, expected at most {TOLERANCE:g}"
            )
        if best is None or seconds < best[1]:
            best = tile, seconds
    if best is None:
        raise QuantGolfError(f"{kernel} {tuning.write_key(bucket)}: none of {impossible} tiles fits this GPU")
    return *best, impossible


class TileFile:
    """A family's file while it is being measured; every change is written at once, whole or not at all.

    Raises:
        QuantGolfError: a file that was measured on something else, unless `overwrite`; one that was not measured at
            all, as those that ship, is replaced.
    """

    def __init__(self, path: Path, made: str, overwrite: bool = False) -> None:
        self.path, self.document = path, dict[str, Any](made=made)
        if path.is_file() and not overwrite:
            try:
                tuning.read_tiles.cache_clear()
                tuning.read_tiles(path)
            except ValueError as error:
                raise QuantGolfError(f"{error}; pass --overwrite to begin anew") from error
            known = json.loads(path.read_text(encoding="utf-8"))
            if known.get("made") == made:
                self.document = known
            elif str(known.get("made")).startswith("measured"):
                raise QuantGolfError(
                    f"{path} was {known['made']}, expected {made} to go on: name another --out, or pass --overwrite"
                )

    def has(self, kernel: str, bucket: tuple[int, int, int, int]) -> bool:
        return tuning.write_key(bucket) in self.document.get(kernel, {})

    def put(self, kernel: str, bucket: tuple[int, int, int, int], tile: Tile) -> None:
        """Adds a bucket and writes the file."""
        entries = {**self.document.get(kernel, {}), tuning.write_key(bucket): tile}
        self.document[kernel] = dict(sorted(entries.items(), key=lambda entry: str(tuning.read_key(entry[0]))))
        with written(self.path, overwrite=True) as beside:
            fill(beside, as_text(self.document).encode())


def as_text(document: dict[str, Any]) -> str:
    """A file of tiles as JSON, one bucket a line."""
    parts = []
    for key, value in document.items():
        if isinstance(value, dict):
            lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(tile)}" for name, tile in value.items())
            parts.append(f"  {json.dumps(key)}: {{\n{lines}\n  }}")
        else:
            parts.append(f"  {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"
