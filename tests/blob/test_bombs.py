"""Files that ask for more than they hold: all that is too much is refused before any memory is taken for it."""

import json
import sys
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantgolf.blob import pack, parse
from quantgolf.encode import Entry, Leveled, Quantized, encode_codes, encode_model, zstd
from quantgolf.encode.exponents import encode_exponents
from quantgolf.encode.table import write_table
from quantgolf.encode.varint import varint
from quantgolf.errors import FormatError
from quantgolf.runtime import restore
from quantgolf.solve.trellis import Trellis
from quantgolf.types import Block, Exponents, Groups

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from fuzzing.mutate import changed_file
from fuzzing.seeds import golden_files

Container = Callable[..., bytes]
LIMIT = 1_000_000
GOLDEN = golden_files()


@pytest.fixture(scope="module", autouse=True)
def everything_is_loaded() -> None:
    """What is compiled or imported once takes memory of its own."""
    for data in GOLDEN:
        restore(parse(data)[1])


def peak_of(work: Callable[[], object]) -> int:
    """Most bytes that Python and NumPy held at once beyond those held before; torch is not seen."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def refused(data: bytes, message: str, most: int, limit: int = LIMIT) -> None:
    """Checks that a file is refused so, and that no more memory is taken for it."""

    def read() -> None:
        with pytest.raises(FormatError, match=message):
            restore(parse(data, limit)[1])

    assert peak_of(read) < most


@given(st.integers(0, 2**64 - 1), st.sampled_from(GOLDEN))
@settings(deadline=None, max_examples=100)
def test_memory_stays_below_its_bound(seed: int, data: bytes) -> None:
    """Eight times what is permitted, twice the file, and what tables of all contexts and a window of zstd take."""
    changed, limit = changed_file(data, Random(seed)), 20_000

    def read() -> None:
        with suppress(FormatError):
            restore(parse(changed, limit)[1])

    assert peak_of(read) < 8 * limit + 2 * len(changed) + 16_000_000


def worst_files() -> list[bytes]:
    """What takes most beside its weights, a million of them: steps of rows, of columns, by groups of one column."""
    count, found = 1 << 20, []
    for transposed in (False, True):
        steps = [torch.zeros(n, dtype=torch.int16) for n in (count, 1)]
        fine = [torch.ones(n, dtype=torch.int8) for n in (count, 1)]
        block, shape = Block("w", 1, 0, 1 if transposed else count, transposed), (count, 1)
        original = torch.zeros(shape[::-1] if transposed else shape, dtype=torch.uint8).view(torch.float8_e5m2)
        levels = Leveled(block, Exponents(*steps, 0, *fine), torch.zeros(shape, dtype=torch.int32), transposed)
        logarithms = Groups(torch.zeros(shape, dtype=torch.int16), torch.zeros(shape, dtype=torch.int8), 1)
        codes = encode_codes(torch.zeros(shape, dtype=torch.int8))
        for part in (levels, *(Quantized(block, each, 8, codes) for each in (logarithms, torch.ones(count).half()))):
            found.append(pack(encode_model([Entry("w", original, (part,))], Trellis(1)), None))
    return found


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not tell a peak")
def test_memory_of_the_worst_tensors_stays_below_its_bound() -> None:
    """All memory of the process, that of torch too."""
    for data in worst_files():
        limit = next(most for most in range(1 << 22, 1 << 26, 1 << 17) if fits(data, most))
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        restore(parse(data, limit)[1])
        assert resident("VmHWM") - before < 8 * limit + 4 * len(data) + (4 << 20)


def fits(data: bytes, limit: int) -> bool:
    try:
        parse(data, limit)
    except FormatError:
        return False
    return True


def resident(what: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) << 10


def one_tensor(shape: tuple[int, ...], dtype: int, storage: bytes, name: bytes = b"w") -> bytes:
    """A header with one tensor, up to its storage."""
    sizes = b"".join(map(varint, (len(shape), *shape)))
    return bytes([0, 1, 0, 0]) + varint(len(name)) + name + sizes + bytes([dtype]) + storage


def test_a_header_is_no_larger_than_what_is_permitted(container: Container) -> None:
    """Two bytes of a header are a block, which takes up to 9 kB once it is decoded."""
    header = varint(4090) + b'{"a":"' + b"x" * 4082 + b'"}' + bytes(3)
    assert len(header) == 4095 and parse(container(header), 0)[0].model is not None
    larger = b"\xfc\x1f" + header[2:-5] + b'xx"}' + bytes(3)
    assert len(larger) == 4097
    for limit in (0, 4096 * 4097 - 1):
        refused(container(larger), "declares 4097 bytes, expected at most 4096;", 100_000, limit)
    assert parse(container(larger), 4096 * 4097)[0].model is not None
    refused(container(bytes(10), size=2**22 + 1), "expected at most 4194304", 100_000, 2**60)
    refused(container(bytes(2**22)), "declares 4194304 bytes, expected at most 4096", 100_000)
    refused(container(bytes(10_000), size=5000), "no zstd frame of 5000 bytes", 8 * LIMIT, 2**30)
    refused(container(bytes(4000), size=4001), "unfolds to 4000 bytes, expected 4001", 100_000)


def test_names_and_blocks_are_counted_before_any_is_kept(container: Container) -> None:
    most = 2**17
    blocks = one_tensor((most + 1,), 9, bytes([1])) + varint(1) + varint(most + 1)
    header = blocks + b"\1" * (most + 1) + b"\x89" * (most + 1) + bytes(2)
    refused(container(header), "131073 blocks, expected at most 131072", 8_000_000, 2**33)
    header = bytes([0, 1]) + varint(most) + bytes(2 * most + 2)
    refused(container(header), "131073 names, expected at most 131072", 3_000_000, 2**33)
    header = bytes([0]) + varint(most + 1) + bytes(8 * most)
    refused(container(header), "131073 names, expected at most 131072", 8_000_000, 2**33)


def test_shapes_are_short_before_they_are_multiplied(container: Container) -> None:
    """The product of 400,000 sizes of 63 bits takes minutes."""
    refused(container(one_tensor((1,) * 17, 9, bytes([137, 0, 0]))), "a shape of 17 sizes", 100_000)
    assert len(parse(container(one_tensor((1,) * 16, 9, bytes([137, 0, 0]))))[1].tensors[0].shape) == 16
    header = one_tensor((2**63 - 1,) * 400_000, 9, bytes([137, 0, 0]))
    refused(container(header), "a shape of 400000 sizes, expected up to 16", 8_000_000, 2**36)


def test_names_are_short_and_reach_no_terminal_as_commands(container: Container) -> None:
    """A name stands in what is known of every block, of which there may be a hundred thousand."""
    for length in (1, 1024):
        name = b"n" * length
        assert parse(container(one_tensor((), 9, bytes([137, 0, 0]), name)))[1].tensors[0].name == name.decode()
    refused(container(one_tensor((), 9, bytes([137, 0, 0]), b"n" * 1025)), "a name takes 1025 bytes", 100_000)
    shared = bytes([0, 2, 0, 0, 0, 20]) + b"n" * 20 + bytes([20]) + varint(1005) + b"n" * 1005
    refused(container(shared + bytes(20)), "a name takes 1025 bytes, expected at most 1024", 100_000)
    beyond = bytes([0, 2, 0, 0, 0, 1]) + b"w" + bytes([2, 1]) + b"x" + bytes([0, 0, 9, 9, 137, 137, 0, 0])
    refused(container(beyond), "a name shares 2 bytes with b'w', expected at most all", 100_000)
    for code in (*range(0x20), *range(0x7F, 0xA0)):
        data = container(one_tensor((), 9, bytes([137, 0, 0]), f"a{chr(code)}b".encode()))
        refused(data, "has control characters, expected none", 100_000)
    for text in ("a b", "~", "\xa0", "ä", "🙂"):
        assert parse(container(one_tensor((), 9, bytes([137, 0, 0]), text.encode())))[1].tensors[0].name == text


def test_long_names_of_many_blocks_are_not_kept_for_each(container: Container) -> None:
    count, name = 1000, b"n" * 1024
    header = one_tensor((count,), 9, bytes([1]), name) + varint(1) + varint(count)
    header += b"\1" * count + b"\2" * count + bytes(count + 2)
    refused(container(header), "asks for 1 bytes where 0 are left", 1_500_000)


@pytest.mark.parametrize(("dtype", "size"), [(9, 4), (11, 4), (12, 4), (13, 4), (14, 8)])
@pytest.mark.parametrize("storage", [bytes([2, 0, 0, 0]), bytes([9, 0, 0, 1, 1, 0, 0])])
def test_quantized_tensors_count_as_what_they_are_decoded_to(
    dtype: int, size: int, storage: bytes, container: Container
) -> None:
    """Codes and levels of an 8-bit tensor take four bytes each once they are weights."""
    data = container(one_tensor((30, 50), dtype, storage))
    parse(data, 1500 * size)
    refused(data, f"to {1500 * size:,} decoded bytes", 100_000, 1500 * size - 1)
    kept = container(one_tensor((30, 50), dtype, bytes([128 + dtype, 0, 0])))
    parse(kept, 1500 * {9: 1, 11: 2, 12: 2, 13: 4, 14: 8}[dtype])


@pytest.mark.parametrize(
    ("shape", "dtype", "storage"),
    [
        ((2**40, 2**40), 13, bytes([2, 0, 0, 0])), ((2**40, 2**40), 13, bytes([9, 0, 0, 1, 1, 0, 0])),
        ((2**60, 0), 13, bytes([141, 0, 0])), ((0, 2**60), 13, bytes([141, 0, 0])),
        ((2**36 + 1,), 1, bytes([129, 0, 0])),
        ((2**63 - 1,) * 16, 14, bytes([142, 0, 0])),
        ((2**20, 2**20), 11, bytes([20]) + varint(3) + bytes(4)), ((2**20, 2**20), 9, bytes([66, 0, 0, 0])),
    ],
)  # fmt: skip
def test_huge_tensors_are_refused_before_anything_is_allocated(
    shape: tuple[int, ...], dtype: int, storage: bytes, container: Container
) -> None:
    refused(container(one_tensor(shape, dtype, storage)), "decoded bytes, expected at most", 100_000, 2**36)


def leveled(
    levels: bytes, exponents: bytes, shape: tuple[int, int] = (400, 500), states: int = 1
) -> tuple[bytes, bytes]:
    """Header and streams of a file with one matrix of levels."""
    numbers = varint(states) + varint(1) + varint(len(exponents)) + varint(len(levels))
    return one_tensor(shape, 13, bytes([9, 0, 0])) + numbers, exponents + levels


ONE = write_table(np.eye(1, 256, 128, dtype=np.int64)[0] * 2)  # of a symbol that has the whole share
FLAT = encode_exponents([("w", Exponents(torch.zeros(400).short(), torch.zeros(500).short(), 0))])


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (b"", "asks for 1 bytes where 0 are left"),
        (b"\0\xff\0" + bytes(23), "asks for 24 bytes where 23 are left"),
        (varint(2**62) + bytes(30), "4611686018427387905 classes, expected at most 64"),
        (varint(3) + varint(2**62) + bytes(30), "begin at spread"),
        (b"\0\xff" + varint(2**62) + bytes(30), "escapes, expected at most 200000, its weights"),
        (b"\0" + ONE + bytes(31), "does not end where its encoder began"),
    ],
)  # fmt: skip
def test_levels_that_claim_too_much_are_refused_early(levels: bytes, message: str, container: Container) -> None:
    data = container(*leveled(levels, FLAT))
    refused(data, message, 2_500_000 if "end where" in message else 200_000)


def test_streams_that_claim_too_much_are_refused_early(container: Container) -> None:
    """A matrix of 200,000 weights from a few bytes; numbers of lanes, roots and sizes that nothing stands behind."""
    steps = (varint(401) + bytes(401)) * 2
    for stream, message, most in (
        (b"", "declares 200000 symbols in 0 bytes", 50_000),
        (b"\1" + bytes(5), "declares 200000 symbols in 6 bytes, expected at most 32768 a byte", 50_000),
        (b"\1" + bytes(30), "no zstd frame of 200000 bytes", 250_000),
        (b"\0" + bytes(30), "asks for 200000 bytes where 30 are left", 50_000),
        (b"\2" + ONE + varint(2**62) + bytes(9), "4611686018427387904 lanes, expected 1 to 200000", 100_000),
        (b"\2" + ONE + varint(200_001) + bytes(9), "200001 lanes", 100_000),
        (b"\2" + ONE + varint(200_000) + bytes(9), "asks for 800000 bytes where 9 are left", 100_000),
        (b"\2\0\xff" + bytes(30), "a difference above 17 bits", 100_000),
        (b"\2\5\4" + bytes(30), "spells a table as no encoder does", 100_000),
        (b"\2\5\5\6" + bytes(30), "gives no symbol a share", 100_000),
    ):
        header = one_tensor((400, 500), 13, bytes([4])) + varint(len(stream)) + varint(804) + bytes(1)
        steps = (varint(401) + bytes(401)) * 2
        header = one_tensor((400, 500), 13, bytes([4])) + varint(len(stream)) + varint(len(steps)) + bytes(1)
        refused(container(header, stream + steps), message, most)


def test_a_stream_that_unfolds_to_more_is_stopped_there(container: Container) -> None:
    for size in (0, 1, 5999, 6001, 10_000_000):
        packed = b"\1" + zstd.compress(bytes(size))
        header = one_tensor((6000,), 1, bytes([129, 0])) + varint(len(packed) + len(varint(len(packed))))
        refused(container(header, varint(len(packed)) + packed), "no zstd frame of 6000|unfolds to|declares", 300_000)


@pytest.mark.parametrize("names", [(b"a", b"a"), (b"a", b"b", b"a")])
def test_names_come_once(names: tuple[bytes, ...], container: Container) -> None:
    """Of two tensors, and of a tensor and a further name."""
    written = b"".join(bytes([0, 1]) + name for name in names)
    count = len(names)
    apart = bytes([0, count]) + bytes(count) + written + bytes(count) + bytes([9] * count + [137] * count + [0, 0])
    tied = bytes([0, 1, count - 1]) + written + bytes([0, 9, 137, 0, 0])
    for header in (apart, tied):
        refused(container(header), "is empty or used twice", 100_000)


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 1000, b'{"a":' * 2000 + b"1" + b"}" * 2000, b'{"a":' + b"1" * 4000 + b"}", b'{"a":Infinity}', b"{}{}",
        b"\xff{}",
    ],
)  # fmt: skip
def test_descriptions_that_hurt_are_refused_or_read(text: bytes, container: Container) -> None:
    def read() -> None:
        try:
            assert json.dumps(parse(container(varint(len(text)) + text + bytes(3)), 2**30)[0].model)
        except FormatError as error:
            assert "the model description is" in str(error)

    assert peak_of(read) < 2_000_000
