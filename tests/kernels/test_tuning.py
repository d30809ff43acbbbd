"""Which tile is chosen and from which file, files that are refused, and what the tiles that ship compile to."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quantgolf_kernels import tuning

CPU = torch.device("cpu")
GEMV = {"block_n": 4, "block_k": 128, "num_warps": 1, "num_stages": 2}
GEMM = {"block_n": 64, "block_m": 16, "block_k": 32, "split_k": 1, "num_warps": 4, "num_stages": 3}


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Files and choices are kept for a process; tests write their own."""
    yield
    tuning.read_tiles.cache_clear()
    tuning._chosen.cache_clear()


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a user's file and names it in the environment."""

    def call(document: Any) -> Path:
        path = tmp_path / "own.json"
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        monkeypatch.setenv(tuning.ENVIRONMENT, str(path))
        return path

    return call


@pytest.mark.parametrize("gpu, name", [
    ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA H100 PCIe", "h100"), ("NVIDIA H200", "h200"), ("NVIDIA H20", "h20"),
    ("NVIDIA A100-SXM4-80GB", "a100"), ("NVIDIA GH200 480GB", "gh200"), ("NVIDIA L40S", "l40s"),
    ("Tesla V100-SXM2-16GB", "v100"), ("NVIDIA GeForce RTX 4090", "rtx4090"), ("NVIDIA A10G", "a10g"),
    ("NVIDIA RTX 6000 Ada Generation", "rtx6000"), ("NVIDIA RTX PRO 6000 Blackwell", "rtxpro6000"),
    ("NVIDIA Graphics Device", "default"),
])  # fmt: skip
def test_a_family_is_in_the_name(gpu: str, name: str) -> None:
    assert tuning.family_name(gpu) == name


def test_a_gpu_of_no_known_family_takes_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: asked.append(index) or "NVIDIA X9000")
    tuning._family_of.cache_clear()
    try:
        device = torch.device("cuda", 3)
        expected = tuning.read_tiles(tuning.FOLDER / "default.json")[1]["gemv"][None, 1, 4096, 4096]
        assert tuning.choose("gemv", device, 4, 1, 4096, 4096) == expected
        tuning.choose("gemm", device, 4, 8, 4096, 4096)
        assert asked == [3]  # once
    finally:
        tuning._family_of.cache_clear()


def test_an_h200_is_like_an_h100_until_it_is_measured() -> None:
    for kernel, m in (("gemv", 1), ("gemm", 16), ("unpack", 128)):
        bucket = tuning.bucket(4, m, 8192, 8192)
        assert tuning._chosen(kernel, "h200", None, *bucket) == tuning._chosen(kernel, "h100", None, *bucket)


def test_importing_reads_nothing_and_asks_no_driver() -> None:
    script = """
import builtins, sys
import torch
def refuse(*arguments, **more):
    raise AssertionError(arguments)
torch.cuda.get_device_name = torch.cuda.current_device = torch.cuda.is_available = refuse
import pathlib
pathlib.Path.read_text = refuse
import quantgolf_kernels.tuning
"""
    environment = os.environ | {tuning.ENVIRONMENT: "missing.json"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@given(
    bits=st.integers(2, 8), m=st.integers(1, 5000), n=st.integers(1, 1 << 18), k=st.integers(1, 1 << 18),
    kernel=st.sampled_from(sorted(tuning.KERNELS)),
)  # fmt: skip
def test_every_shape_has_a_tile_and_every_bucket_a_spelling(bits: int, m: int, n: int, k: int, kernel: str) -> None:
    tile = tuning.choose(kernel, CPU, bits, m, n, k)
    assert tile.keys() == tuning.KERNELS[kernel].keys()
    bucket = tuning.bucket(bits, m, n, k)
    assert tuning.read_key(tuning.write_key(bucket)) == bucket
    assert n <= bucket[2] < 2 * n and k <= bucket[3] < 2 * k and (m <= bucket[1] or bucket[1] == 128)


@given(
    known=st.lists(st.tuples(st.sampled_from([None, 3, 4]), st.sampled_from(tuning.ROWS), st.integers(0, 9),
                             st.integers(0, 9)), min_size=1, max_size=8, unique=True),
    bits=st.sampled_from([3, 4, 5]), m=st.sampled_from(tuning.ROWS), n=st.integers(0, 9), k=st.integers(0, 9),
)  # fmt: skip
def test_nearest_is_what_the_module_says(known: list[Any], bits: int, m: int, n: int, k: int) -> None:
    tiles = {(width, row, 1 << a, 1 << b): {"at": index} for index, (width, row, a, b) in enumerate(known)}
    some = [each for each in known if each[0] == bits] or [each for each in known if each[0] is None]
    found = tuning.nearest(tiles, bits, m, 1 << n, 1 << k)
    if not some:
        assert found is None
        return
    above = [each for each in some if each[1] >= m]
    row = min(each[1] for each in above) if above else max(each[1] for each in some)
    best = sorted(
        (each for each in some if each[1] == row), key=lambda e: (abs(e[2] - n) + abs(e[3] - k), -e[2], -e[3])
    )
    assert found == {"at": known.index(best[0])}


def test_a_users_file_goes_first_and_says_only_what_it_says(write: Callable[..., Path]) -> None:
    ours = tuning.choose("gemm", CPU, 4, 16, 512, 512)
    other = tuning.choose("gemv", CPU, 5, 1, 512, 512)
    write({"gemv": {"4 1 512 512": GEMV | {"block_n": 32}}})
    assert tuning.choose("gemv", CPU, 4, 1, 8192, 8192)["block_n"] == 32
    assert tuning.choose("gemv", CPU, 5, 1, 512, 512) == other  # another width
    assert tuning.choose("gemm", CPU, 4, 16, 512, 512) == ours  # another kernel


def test_what_is_chosen_is_the_callers(write: Callable[..., Path]) -> None:
    write({"gemv": {"* 1 512 512": GEMV}})
    tuning.choose("gemv", CPU, 4, 1, 512, 512)["block_n"] = 7
    assert tuning.choose("gemv", CPU, 4, 1, 512, 512) == GEMV


@pytest.mark.parametrize("document, said", [
    ("{", "cannot be read"), ("[]", "object with keys"), ({"gemw": {}}, "object with keys"), ({"gemv": {}}, "buckets"),
    ({"gemv": []}, "buckets"), ({"like": "../x"}, "family"), ({"gemv": {"4 1 512": GEMV}}, "bucket is '4 1 512'"),
    ({"gemv": {"9 1 512 512": GEMV}}, "bucket is"), ({"gemv": {"4 2 512 512": GEMV}}, "bucket is"),
    ({"gemv": {"4 1 500 512": GEMV}}, "bucket is"), ({"gemv": {"4 1 512 512": GEMM}}, "expected an object of block_n"),
    ({"gemv": {"4 1 512 512": {**GEMV, "block_n": 3}}}, "block_n is 3, expected a power of two from 1 to 64"),
    ({"gemv": {"4 1 512 512": {**GEMV, "block_k": True}}}, "block_k is True"),
    ({"gemv": {"4 1 512 512": {**GEMV, "num_stages": 0}}}, "num_stages is 0, expected from 1 to 8"),
    ({"gemm": {"4 16 512 512": {**GEMM, "block_m": 8}}}, "block_m is 8, expected a power of two from 16"),
    ('{"gemv": {"4 1 512 512": {}, "4 1 512 512": {}}}', "twice"),
])  # fmt: skip
def test_a_malformed_file_is_refused_by_name(write: Callable[..., Path], document: Any, said: str) -> None:
    path = write(document)
    with pytest.raises(ValueError, match="tuning file") as caught:
        tuning.choose("gemv", CPU, 4, 1, 512, 512)
    assert str(path) in str(caught.value) and said in str(caught.value)


def test_a_missing_file_and_an_unknown_kernel_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="kernel is 'conv'"):
        tuning.choose("conv", CPU, 4, 1, 512, 512)
    monkeypatch.setenv(tuning.ENVIRONMENT, "nowhere.json")
    with pytest.raises(ValueError, match=r"nowhere\.json cannot be read"):
        tuning.choose("gemv", CPU, 4, 1, 512, 512)


def test_files_that_ship_are_understood_and_the_default_has_all() -> None:
    read = {path.stem: tuning.read_tiles(path) for path in sorted(tuning.FOLDER.glob("*.json"))}
    assert {"default", "h100", "h200"} <= read.keys()
    assert read["default"][1].keys() == tuning.KERNELS.keys()
    assert all(any(width is None for width, *_ in tiles) for tiles in read["default"][1].values())
    assert all(like is None or like in read for like, _ in read.values())


LARGE, SMALL = ("gemv", 1, 8192, 8192), ("gemv", 1, 2048, 512)
FEW, MANY = ("gemm", 16, 8192, 8192), ("gemm", 64, 512, 2048)


@pytest.mark.parametrize("bits, launches", [
    (2, (LARGE, MANY)), (3, (LARGE, FEW)), (4, (LARGE, SMALL, FEW, MANY)), (5, (SMALL, FEW)), (6, (LARGE, MANY)),
    (7, (SMALL, MANY)), (8, (LARGE, MANY)),
])  # fmt: skip
def test_tiles_that_ship_compile_for_an_h100(
    bits: int, launches: Any, ahead: Callable[[str], list[dict[str, Any]]]
) -> None:
    """No spills and no more shared memory than there is; products are on Hopper's tensor cores. Odd widths, which take
    the compiler longest, not for every shape."""
    found = ahead(f"""
from quantgolf_kernels.gemm import gemm
from quantgolf_kernels.gemv import gemv
from quantgolf_kernels.packing import row_words
from quantgolf_kernels.tuning import choose
from quantgolf_kernels.unpack import unpack_rows
bits = {bits}
for name, m, n, k in {launches}:
    x = torch.empty(m, k, dtype=torch.bfloat16)
    data = torch.empty(n, row_words(bits, k), dtype=torch.int32)
    tile = choose(name, x.device, bits, m, n, k)
    launch = gemv if name == "gemv" else gemm
    launch(x, data, torch.empty(n), torch.empty(k), None, None, None, bits, 1 << (bits - 1), k, 0, tile)
unpack_rows(None, data, torch.empty(n), torch.empty(k), None, None, None, bits, 0, k, 0, torch.bfloat16,
            choose("unpack", x.device, bits, n, n, k))
""")
    names = [kernel["name"] for kernel in found if kernel["name"] in ("gemv_kernel", "gemm_kernel")]
    assert names == [f"{name}_kernel" for name, *_ in launches] and found[-1]["name"] == "rows_kernel"
    for kernel in found:
        if kernel["name"] == "gemm_kernel":
            assert kernel["wgmma"] and not kernel["mma"]


@pytest.mark.parametrize("widths", [(2, 4, 8), (3,), (6,), (7,)])
def test_default_tiles_fit_smaller_gpus(
    widths: tuple[int, ...],
    ahead: Callable[[str], list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """99 KiB of shared memory is what GPUs of the desktop have; of fp32 and 16 bits."""
    monkeypatch.setenv(tuning.ENVIRONMENT, str(tuning.FOLDER / "default.json"))
    found = ahead(f"""
from quantgolf_kernels.gemm import gemm
from quantgolf_kernels.packing import row_words
from quantgolf_kernels.tuning import choose
for bits in {widths}:
    for m, dtype in ((16, torch.bfloat16), (64, torch.bfloat16), (64, torch.float32))[: 3 if bits % 2 == 0 else 2]:
        x, data = torch.empty(m, 4096, dtype=dtype), torch.empty(4096, row_words(bits, 4096), dtype=torch.int32)
        tile = choose("gemm", x.device, bits, m, 4096, 4096)
        gemm(x, data, torch.empty(4096), torch.empty(4096), None, None, None, bits, 8, 4096, 0, tile)
""")
    products = [kernel for kernel in found if kernel["name"] == "gemm_kernel"]
    assert len(products) == sum(3 if bits % 2 == 0 else 2 for bits in widths)
    assert max(kernel["shared"] for kernel in products) <= 99 * 1024
