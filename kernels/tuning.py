"""Which tile a kernel takes: by family of GPU, kernel, width and shape, from JSON files, chosen at a launch.

Nothing is read or asked of a driver before the first launch. A family is what a GPU's name says between maker and
memory ("NVIDIA H100 80GB HBM3" is `h100`), and `configs/FAMILY.json` beside this file has its tiles:

    {"made": "in words", "like": "another family, or absent",
     "gemv": {"4 1 8192 8192": {"block_n": 8, …}, "* 1 2048 512": {…}}, "gemm": {…}, "unpack": {…}}

A key is a bucket "bits m n k" for activations [m, k] and a matrix [n, k]. bits is a width, or * for those without
entries of their own. m is 1, 16, 32, 64 or 128: the least that is not less than the rows of activations (128 for more).
n and k are rounded up to powers of two. Among a kernel's buckets the nearest is taken: first those of the width, or if
it has none those of *; of these the least m that is not less than the one sought, or else the largest; of these the one
whose n and k are fewest doublings away in all, the larger n, then the larger k where two are equally far.

Files are asked in turn, and the first that has the kernel and the width, or *, decides: the one that the environment
variable QUANTGOLF_TUNING names, if any; that of the GPU's family; that of the family it is like; `default.json`.
Without a GPU (the interpreter, or compiling ahead of time) the family is `h100`, so that what is tested is what would
be launched.
`benchmarks/retune.py` measures a family and writes its file.
"""

import json
import os
import re
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent / "configs"
ENVIRONMENT = "QUANTGOLF_TUNING"
DEFAULT, WITHOUT_GPU = "default", "h100"
ROWS = (1, 16, 32, 64, 128)
# What each number of a kernel's tile may be, all of them powers of two but the stages.
KERNELS = {
    "gemv": {"block_n": 64, "block_k": 4096, "num_warps": 32, "num_stages": 8},
    "gemm": {"block_n": 256, "block_m": 256, "block_k": 256, "split_k": 64, "num_warps": 32, "num_stages": 8},
    "unpack": {"block_n": 64, "block_k": 4096, "num_warps": 32, "num_stages": 8},
}
LEAST = {"gemm": {"block_n": 16, "block_m": 16, "block_k": 16}}  # of a product on tensor cores
Config = dict[str, int]
Bucket = tuple[int | None, int, int, int]
Tiles = dict[str, dict[Bucket, Config]]


def choose(kernel: str, device: torch.device, bits: int, m: int, n: int, k: int) -> Config:
    """The tile of `kernel` ("gemv", "gemm" or "unpack") for activations [m, k] and a matrix [n, k] of `bits`.

    For `unpack`, m is the rows that are unpacked.

    Raises:
        ValueError: a file of tiles that is not understood.
    """
    own = os.environ.get(ENVIRONMENT)
    return dict(_chosen(kernel, family(device), own, *bucket(bits, m, n, k)))


def bucket(bits: int, m: int, n: int, k: int) -> tuple[int, int, int, int]:
    """Width, rows of activations, and n and k as a key of a file spells them."""
    rows = next((least for least in ROWS if m <= least), ROWS[-1])
    return bits, rows, 1 << max(0, n - 1).bit_length(), 1 << max(0, k - 1).bit_length()


def family(device: torch.device) -> str:
    """The family of a GPU; of any other device that of `WITHOUT_GPU`."""
    if device.type != "cuda":
        return WITHOUT_GPU
    return _family_of(torch.cuda.current_device() if device.index is None else device.index)


def family_name(gpu: str) -> str:
    """ "NVIDIA GeForce RTX 4090" → "rtx4090", "NVIDIA A100-SXM4-80GB" → "a100", "NVIDIA H200" → "h200"."""
    found = re.search(r"(?:\b(RTX|GTX)\s+)?(?:\b(PRO)\s+)?\b([A-Z]{0,3}\d+[A-Z]{0,2})\b", gpu)
    return "".join(part or "" for part in found.groups()).lower() if found else DEFAULT


@cache
def _family_of(index: int) -> str:
    return family_name(torch.cuda.get_device_name(index))


@lru_cache(maxsize=4096)
def _chosen(kernel: str, name: str, own: str | None, bits: int, m: int, n: int, k: int) -> tuple[tuple[str, int], ...]:
    if kernel not in KERNELS:
        raise ValueError(f"kernel is {kernel!r}, expected one of {', '.join(KERNELS)}")
    if own is not None and (tile := nearest(read_tiles(Path(own))[1].get(kernel, {}), bits, m, n, k)):
        return tuple(tile.items())
    asked: list[str] = []
    while name not in asked:
        asked.append(name)
        path = FOLDER / f"{name}.json"
        like, known = read_tiles(path) if path.is_file() else (None, {})
        if tile := nearest(known.get(kernel, {}), bits, m, n, k):
            return tuple(tile.items())
        name = like or DEFAULT
    raise ValueError(
        f"no file of {', '.join(asked)} in {FOLDER} has tiles of {kernel} for {bits} bits, expected {DEFAULT}.json to"
    )


def nearest(tiles: dict[Bucket, Config], bits: int, m: int, n: int, k: int) -> Config | None:
    """The tile of the nearest bucket (see the module) to one of `bucket`; None if neither the width nor * has any."""
    width = bits if any(key[0] == bits for key in tiles) else None
    known = [key for key in tiles if key[0] == width]
    if not known:
        return None
    rows = {key[1] for key in known}
    row = min((least for least in rows if least >= m), default=max(rows))

    def away(key: Bucket) -> tuple[int, int, int]:
        doublings = sum(abs(a.bit_length() - b.bit_length()) for a, b in ((key[2], n), (key[3], k)))
        return doublings, -key[2], -key[3]

    return tiles[min((key for key in known if key[1] == row), key=away)]


@cache
def read_tiles(path: Path) -> tuple[str | None, Tiles]:
    """The family that a file's is like, or None, and the tiles it has, by kernel and bucket.

    Raises:
        ValueError: the file cannot be read, is no JSON, or has a key or a number that is not understood.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except (OSError, ValueError) as error:
        raise ValueError(f"tuning file {path} cannot be read, expected JSON: {error}") from error
    try:
        return _checked(document)
    except ValueError as error:
        raise ValueError(f"tuning file {path}: {error}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        raise ValueError(f"a key is there twice among {', '.join(key for key, _ in pairs)}")
    return document


def _checked(document: Any) -> tuple[str | None, Tiles]:
    known = ("made", "like", *KERNELS)
    if not isinstance(document, dict) or not document.keys() <= set(known):
        raise ValueError(f"expected an object with keys among {', '.join(known)}")
    like = document.get("like")
    if like is not None and not (isinstance(like, str) and re.fullmatch(r"\w+", like)):
        raise ValueError(f"like is {like!r}, expected the name of a family")
    tiles: Tiles = {}
    for kernel in KERNELS.keys() & document.keys():
        entries = document[kernel]
        if not isinstance(entries, dict) or not entries:
            raise ValueError(f"{kernel} is {entries!r}, expected an object of buckets")
        tiles[kernel] = {read_key(key): _tile(f"{kernel} {key!r}", kernel, tile) for key, tile in entries.items()}
    return like, tiles


def read_key(key: str) -> Bucket:
    """The bucket that a file's key means.

    Raises:
        ValueError: it means none.
    """
    found = re.fullmatch(r"([2-8]|\*) (\d{1,9}) (\d{1,9}) (\d{1,9})", key)
    if found is not None:
        m, n, k = (int(part) for part in found.groups()[1:])
        if m in ROWS and _is_power(n) and _is_power(k):
            return None if found[1] == "*" else int(found[1]), m, n, k
    raise ValueError(
        f'bucket is {key!r}, expected "bits m n k": 2 to 8 or *, one of {", ".join(map(str, ROWS))}, two powers of 2'
    )


def write_key(key: Bucket) -> str:
    """The inverse of `read_key`."""
    return " ".join("*" if part is None else str(part) for part in key)


def _tile(where: str, kernel: str, tile: Any) -> Config:
    most = KERNELS[kernel]
    if not isinstance(tile, dict) or tile.keys() != most.keys():
        raise ValueError(f"{where} is {tile!r}, expected an object of {', '.join(most)}")
    for name, value in tile.items():
        least = LEAST.get(kernel, {}).get(name, 1)
        whole = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most[name]
        if not whole or (name != "num_stages" and not _is_power(value)):
            power = "" if name == "num_stages" else "a power of two "
            raise ValueError(f"{where}: {name} is {value!r}, expected {power}from {least} to {most[name]}")
    return dict(tile)


def _is_power(value: int) -> bool:
    return value > 0 and value & (value - 1) == 0
