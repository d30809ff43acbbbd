"""The search for tiles with a clock that knows which is best, and the file it writes."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from quantgolf.bench.tune import GRID, Search, TileFile, best_tile, buckets, tiles
from quantgolf.errors import QuantGolfError
from quantgolf_kernels import ops, tuning

CPU = torch.device("cpu")
TILE = {"block_n": 4, "block_k": 128, "num_warps": 1, "num_stages": 2}


class TooLargeError(Exception):
    """Stands for what triton raises."""


class Launcher:
    """Runs the reference, remembers the tile, and fails for those that are too large."""

    def __init__(self, factor: float = 1.0) -> None:
        self.tile: dict[str, int] = {}
        self.factor = factor

    def __call__(self, kernel: str, x: Tensor | None, packed: Any, tile: dict[str, int]) -> Tensor:
        if tile["block_n"] > 8 and kernel != "gemm":
            raise TooLargeError
        self.tile = tile
        if kernel == "unpack":
            return (ops.weights(packed) if x is None else ops.lookup(x, packed)) * self.factor
        assert x is not None
        return ops.matmul(x, packed) * self.factor


def search(launch: Launcher, price: Callable[[dict[str, int]], float]) -> Search:
    class Timer:
        def record(self, calls: Any, rounds: int) -> Callable[[], float]:
            for call in calls:
                call()
            tile = launch.tile
            return lambda: price(tile) * len(calls) * rounds

    return Search(Timer(), CPU, torch.float32, 1, launch, (TooLargeError,))


@pytest.mark.parametrize("kernel, m", [("gemv", 1), ("gemm", 32), ("unpack", 128), ("unpack", 1)])
def test_the_fastest_tile_that_fits_is_found(kernel: str, m: int) -> None:
    best, seconds, impossible = best_tile(
        search(Launcher(), lambda tile: 1.0 / tile["block_n"] + 0.01 * tile["num_stages"]), kernel, (4, m, 16, 64)
    )
    assert best["block_n"] == (128 if kernel == "gemm" else 8)  # 16 is faster and does not fit
    assert best["num_stages"] == min(GRID[kernel]["num_stages"])
    assert seconds == pytest.approx(1 / best["block_n"] + 0.01 * best["num_stages"])
    assert (impossible > 0) == (kernel != "gemm")


def test_a_wrong_result_ends_the_search() -> None:
    with pytest.raises(QuantGolfError, match="from that in fp64"):
        best_tile(search(Launcher(1.1), lambda tile: 1.0), "gemv", (4, 1, 16, 64))


def test_no_tile_that_fits_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GRID["gemv"], "block_n", (16,))
    with pytest.raises(QuantGolfError, match="none of 9 tiles fits this GPU"):
        best_tile(search(Launcher(), lambda tile: 1.0), "gemv", (4, 1, 16, 64))


@pytest.mark.parametrize("kernel", sorted(GRID))
def test_every_tile_of_the_grid_may_stand_in_a_file(kernel: str) -> None:
    known = list(tiles(kernel, 64))
    assert known and all(tuning._tile("", kernel, tile) == tile for tile in known)
    assert len({tuple(tile.values()) for tile in known}) == len(known)
    if kernel == "gemm":
        assert all(tile["block_m"] == 16 for tile in tiles(kernel, 16))
        assert any(tile["block_m"] == 64 for tile in known)


def test_kernels_are_searched_for_the_rows_they_are_used_for() -> None:
    found = buckets(["gemv", "gemm", "unpack"], [4], [(500, 500), (512, 512)], [1, 9, 16, 64, 4096])
    assert found == [
        ("gemv", (4, 1, 512, 512)), ("gemm", (4, 16, 512, 512)), ("gemm", (4, 64, 512, 512)),
        ("gemm", (4, 128, 512, 512)), ("unpack", (4, 1, 512, 512)), ("unpack", (4, 128, 512, 512)),
    ]  # fmt: skip


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    tuning.read_tiles.cache_clear()
    tuning._chosen.cache_clear()


def test_a_file_grows_bucket_by_bucket_and_is_what_tuning_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x100.json"
    file = TileFile(path, "measured on an X100")
    file.put("gemv", (4, 1, 512, 512), TILE)
    again = TileFile(path, "measured on an X100")
    assert again.has("gemv", (4, 1, 512, 512)) and not again.has("gemv", (5, 1, 512, 512))
    again.put("gemv", (3, 1, 512, 512), TILE | {"block_n": 8})
    assert list(json.loads(path.read_text())["gemv"]) == ["3 1 512 512", "4 1 512 512"]
    assert [each.name for each in tmp_path.iterdir()] == ["x100.json"]  # nothing beside it is left
    monkeypatch.setenv(tuning.ENVIRONMENT, str(path))
    tuning.read_tiles.cache_clear()
    assert tuning.choose("gemv", CPU, 3, 1, 512, 512)["block_n"] == 8


def test_a_file_measured_elsewhere_is_not_mixed_with(tmp_path: Path) -> None:
    path = tmp_path / "x100.json"
    TileFile(path, "measured on an X100").put("gemv", (4, 1, 512, 512), TILE)
    with pytest.raises(QuantGolfError, match="was measured on an X100, expected measured on a Y200"):
        TileFile(path, "measured on a Y200")
    assert not TileFile(path, "measured on a Y200", overwrite=True).has("gemv", (4, 1, 512, 512))


def test_a_file_that_was_reasoned_is_replaced_and_a_damaged_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "x100.json"
    path.write_text(json.dumps({"made": "by reasoning", "gemv": {"4 1 512 512": TILE}}))
    assert not TileFile(path, "measured on an X100").has("gemv", (4, 1, 512, 512))
    path.write_text("{")
    tuning.read_tiles.cache_clear()
    with pytest.raises(QuantGolfError, match="pass --overwrite"):
        TileFile(path, "measured on an X100")
