"""Weights that are subnormal, or products of subnormal steps, come back whatever a caller has told torch."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from quantgolf.blob import pack, parse, write_blob
from quantgolf.encode import Entry, Leveled, Quantized, encode_codes, encode_model
from quantgolf.runtime import digest, load, materialize, restore
from quantgolf.runtime.restore import restored
from quantgolf.runtime.subnormal import subnormals
from quantgolf.solve.trellis import Trellis
from quantgolf.types import Block, CodedModel, Exponents, Groups

GOLDEN = sorted((Path(__file__).parents[1] / "blob" / "golden").glob("*_v1.qg"))


@pytest.fixture
def flushing() -> Iterator[None]:
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def flushes() -> bool:
    return not bool(torch.tensor(2.0**-140) * torch.tensor(1.0))


def leveled(name: str, row: int, column: int, largest: int) -> Entry:
    steps = Exponents(torch.full((8,), row).short(), torch.full((8,), column).short(), 0)
    levels = (torch.arange(64).reshape(8, 8) * largest // 63).int()
    return Entry(name, torch.zeros(8, 8), (Leveled(Block(name, 1, 0, 8), steps, levels),))


@pytest.fixture
def coded() -> CodedModel:
    """Levels that are subnormal weights, and normal ones of steps that are not; steps that are subnormal themselves;
    codes of the least fp16 steps and scales; numbers that are kept."""

    def of_codes(name: str, steps: Tensor | Groups) -> Entry:
        codes = (torch.arange(64).reshape(8, 8) % 15 - 7).char()
        return Entry(name, torch.zeros(8, 8), (Quantized(Block(name, 1, 0, 8), steps, 4, encode_codes(codes)),))

    return encode_model(
        [
            leveled("weights", -280, -280, 63), leveled("products", -260, -260, 10**6),
            leveled("steps", -540, 100, 63), of_codes("codes", torch.full((8,), 2.0**-24).half()),
            of_codes("groups", Groups(torch.full((8, 2), -1904).short(), None, 4)),
            Entry("wide", torch.tensor([1e-40, 3e-40], dtype=torch.float64)),
            Entry("kept", torch.tensor([1e-40, 3e-40])),
        ],
        Trellis(1),
    )  # fmt: skip


def digests(coded: CodedModel) -> dict[str, str]:
    return {name: digest(tensor) for name, tensor in restore(coded).items()}


def test_they_come_back(coded: CodedModel, flushing: None) -> None:
    found = restore(coded)
    assert flushes()
    torch.set_flush_denormal(False)
    for name in ("weights", "products", "steps", "wide", "kept"):
        assert (found[name] != 0).sum() >= found[name].numel() - 1, name
    assert found["products"].max() > 2.0**-126 > found["weights"].max() > 0
    assert {name: digest(tensor) for name, tensor in found.items()} == digests(coded)


def test_between_two_tensors_the_caller_has_its_own_way(coded: CodedModel, flushing: None) -> None:
    for _ in restored(coded):
        assert flushes()


def test_an_error_leaves_the_setting_as_it_was(flushing: None) -> None:
    with pytest.raises(KeyError), subnormals():
        assert not flushes()
        raise KeyError
    assert flushes()
    torch.set_flush_denormal(False)
    with subnormals():
        pass
    assert not flushes()


def holder() -> nn.Module:
    module = nn.Module()
    module.weights = nn.Parameter(torch.ones(8, 8))
    return module


@pytest.mark.parametrize("packed", [False, True])
def test_modules_have_them(flushing: None, tmp_path: Path, packed: bool) -> None:
    write_blob(tmp_path / "a.qg", pack(encode_model([leveled("weights", -280, -280, 63)], Trellis(1)), None))
    found = materialize(load(tmp_path / "a.qg", holder(), materialize=not packed)).get_parameter("weights")
    assert flushes()
    torch.set_flush_denormal(False)
    # Of one step for all, a power of two, whose product with a level is a double to the last bit.
    assert torch.equal(found.double(), torch.arange(64).reshape(8, 8) * 2.0**-140) and found.any()


POOL = """
import torch
from quantgolf.encode import Entry, Leveled, encode_model
from quantgolf.runtime import restore
from quantgolf.runtime.subnormal import subnormals
from quantgolf.solve.trellis import Trellis
from quantgolf.types import Block, Exponents

torch.set_num_threads(3)
torch.set_flush_denormal(True)
torch.ones(1 << 20) * 2  # its threads flush from now on
n = 512
steps = Exponents(torch.full((n,), -280).short(), torch.full((n,), -280).short(), 0)
part = Leveled(Block("w", 1, 0, n), steps, torch.ones(n, n).int())
coded = encode_model([Entry("w", torch.zeros(n, n), (part,))], Trellis(1))
for setting in (True, False):
    torch.set_flush_denormal(setting)
    found = restore(coded)["w"]
    print(int((found.view(torch.int32) == 1 << 9).sum()), torch.get_num_threads())
with subnormals(10):  # too few for a second thread
    print(torch.get_num_threads())
"""


def test_threads_that_flush_for_good_are_not_asked(flushing: None) -> None:
    done = subprocess.run([sys.executable, "-c", POOL], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(512 * 512), "3"] * 2 + ["3"]


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_another_default_device_or_dtype_changes_nothing(path: Path) -> None:
    _, coded = parse(path.read_bytes())
    wanted = digests(coded)
    with torch.device("meta"):
        found = restore(coded)
    assert not any(tensor.is_meta for tensor in found.values())
    assert {name: digest(tensor) for name, tensor in found.items()} == wanted
    torch.set_default_dtype(torch.float64)
    try:
        assert digests(coded) == wanted
    finally:
        torch.set_default_dtype(torch.float32)
