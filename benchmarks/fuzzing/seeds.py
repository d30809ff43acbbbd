"""What fuzzing begins with: golden files, and of each decoder alone what its encoder writes, behind a few choices."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from quantgolf.blob import VERSION, parse
from quantgolf.blob.header import write_header
from quantgolf.encode import encode_stream
from quantgolf.encode.exponents import encode_exponents
from quantgolf.encode.levels import Frame, Levels, encode_levels
from quantgolf.encode.planes import encode_planes
from quantgolf.encode.table import choose_roots, write_table
from quantgolf.encode.varint import varint
from quantgolf.solve.trellis import CODES, Trellis
from quantgolf.types import Exponents

BLOB = Path(__file__).parents[2] / "tests" / "blob"
LONGEST = 8192  # bytes of an input
MACHINES = (1, *CODES)


class Choices:
    """Small numbers from the beginning of an input; 0 where it has ended."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def below(self, count: int) -> int:
        self.at += 1
        return self.data[self.at - 1] % count if self.at <= len(self.data) else 0

    def rest(self) -> bytes:
        return self.data[self.at :]


def levels_of(data: bytes) -> tuple[list[Frame], Trellis, bytes]:
    """Matrices, their trellis and the stream of an input of `run_levels`."""
    choices = Choices(data)
    trellis = Trellis(MACHINES[choices.below(len(MACHINES))], 1 + choices.below(9))
    frames = []
    for _ in range(1 + choices.below(3)):
        shape, diagonal = (choices.below(40), choices.below(40)), choices.below(2) > 0
        spread, width, offset = choices.below(256) * 32 - 4096, 1 + choices.below(60), choices.below(256) * 16 - 2048
        row = (np.arange(shape[0]) * 7 % width + offset).astype(np.int16)
        column = (np.arange(shape[1]) * 5 % width).astype(np.int16)
        frames.append(Frame(shape, spread, row, column, diagonal))
    return frames, trellis, choices.rest()


def golden_files() -> list[bytes]:
    """The golden files of the present version but the large ones."""
    files = sorted((BLOB / "golden").glob(f"*_v{VERSION}.qg"))
    return [data for data in (path.read_bytes() for path in files) if len(data) < LONGEST]


def files(goldens: Sequence[bytes]) -> list[bytes]:
    return list(goldens)


def headers(goldens: Sequence[bytes]) -> list[bytes]:
    found = []
    for data in goldens:
        header, coded = parse(data)
        found.append(b"\xff\3" + write_header(coded, header.model))
    return found


def streams(goldens: Sequence[bytes]) -> list[bytes]:
    draws = np.random.default_rng(0)
    bell = np.rint(draws.normal(128, 3, 300)).astype(np.uint8)
    kinds = {"rans": bell, "zstd": np.tile(np.arange(9, dtype=np.uint8), 40), "auto": np.arange(5, dtype=np.uint8)}
    found = [varint(len(each)) + encode_stream(each, codec) for codec, each in kinds.items()]  # type: ignore[arg-type]
    return [*found, varint(70_000) + encode_stream(np.resize(bell, 70_000), "rans")]


def tables(goldens: Sequence[bytes]) -> list[bytes]:
    counts = [np.eye(1, 256, 7, dtype=np.int64)[0], np.arange(256, dtype=np.int64), np.array([3, 900, 4] + [0] * 253)]
    return [write_table(choose_roots(each)) for each in counts]


def planes(goldens: Sequence[bytes]) -> list[bytes]:
    values = [np.arange(24, dtype=np.uint8).reshape(3, 8), np.arange(40, dtype=np.uint8).reshape(5, 8)]
    found = [bytes([3, 2, 3, 5]) + encode_planes(values)]
    return [*found, bytes([0, 1, 200]) + encode_planes([np.zeros((200, 1), dtype=np.uint8)])]


def steps(goldens: Sequence[bytes]) -> list[bytes]:
    halves = np.arange(12, dtype=np.float16).view(np.uint8).reshape(12, 2)
    zeros = encode_planes([np.full((8, 1), 128, dtype=np.uint8)])
    rows = bytes([1, 4, 6, 2, 0, 0]) + encode_planes([halves[:4]])
    groups = bytes([1, 4, 6, 2, 2, 2, len(zeros)]) + zeros + encode_planes([halves[:8]])
    values = np.arange(8, dtype=np.int16).view(np.uint8).reshape(8, 2)
    logarithms = bytes([1, 4, 6, 2, 3, 5, 0, 2, 0]) + encode_planes([values])
    return [rows, groups, logarithms]


def exponents(goldens: Sequence[bytes]) -> list[bytes]:
    row, column = torch.arange(4).short() - 20, torch.arange(3).short() * 2
    fine = torch.tensor([1, 0, -128, 127], dtype=torch.int8)
    plain, tuned = Exponents(row, column, -5), Exponents(row, column, 7, fine)
    both = [("a", plain), ("b", tuned)]
    return [bytes([0, 4, 3]) + encode_exponents(both[:1]), bytes([1, 4, 3, 4, 3]) + encode_exponents(both)]


def levels(goldens: Sequence[bytes]) -> list[bytes]:
    found = []
    for machine, diagonal in ((0, 0), (1, 0), (1, 1), (2, 0), (2, 1)):
        head = bytes([machine, 3, 1, 9, 7, diagonal, 128, 20, 125, 6, 8, 0, 128, 20, 125])
        frames, trellis, _ = levels_of(head)
        matrices = [Levels(_allowed(frame, trellis), frame.spread, frame.row, frame.column, frame.diagonal)
                    for frame in frames]  # fmt: skip
        found.append(head + encode_levels(matrices, trellis))
    return found


def _allowed(frame: Frame, trellis: Trellis) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    """Levels [N, K] that the trellis gives, some far out."""
    n, k = frame.shape
    targets = np.arange(n * k).reshape(n, k) * 37 % 101 / 8 - 6
    targets[-1, -1] = 1e6
    i, j = np.arange(n)[:, None], np.arange(k)
    coded = i, (j - i) % k if frame.diagonal else j + 0 * i
    levels = np.empty((n, k), dtype=np.int32)
    levels[coded] = np.stack([trellis.quantize(column) for column in targets[coded].T], axis=1)
    return levels


def numbers(goldens: Sequence[bytes]) -> list[bytes]:
    return [b"".join(map(varint, (0, 1, 127, 128, 2**14, 2**62, 2**63 - 1)))]
