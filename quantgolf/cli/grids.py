"""What `compress` is asked of grids and codecs at fixed widths."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import typer

from quantgolf.cli.inputs import Solver
from quantgolf.errors import QuantGolfError
from quantgolf.solve.grid import Grid

ROW = "row"
EXPECTED = "expected a number of columns from 1 on, 'row', or several such as 32,128,row"


class ScalesOf(StrEnum):
    """How scales are stored."""

    fp16 = "fp16"
    log = "log"


class CodecOf(StrEnum):
    """What codes are coded by."""

    auto = "auto"
    rans = "rans"
    zstd = "zstd"


GroupSizeOption = Annotated[
    str | None,
    typer.Option(
        "--group-size",
        help="rtn, gptq_lite, gptq: columns that share a scale, or 'row' (the default); of several, 32,128,row, the "
        "best is chosen for every matrix.",
    ),
]
AsymmetricOption = Annotated[
    bool | None,
    typer.Option("--asymmetric/--symmetric", help="rtn, gptq_lite, gptq: a zero for each scale; default: symmetric."),
]
ScalesOption = Annotated[
    ScalesOf | None, typer.Option("--scales", help="rtn, gptq_lite, gptq: scales in fp16 (the default) or 2^(e/16).")
]
CodecOption = Annotated[
    CodecOf | None,
    typer.Option("--codec", help="rtn, gptq_lite, gptq: rANS or zstd; default: the smaller, stream by stream."),
]


@dataclass(frozen=True)
class Asked:
    """What was asked for.

    Attributes:
        grid: of all matrices; of several sizes of groups with the first.
        group_sizes: the sizes to choose from where there are several; None otherwise.
        codec: as `quantgolf.encode.encode_codes` has it.
    """

    grid: Grid
    group_sizes: tuple[int | None, ...] | None
    codec: CodecOf

    @staticmethod
    def of(
        solver: Solver,
        by_hand: bool,
        limited: bool,
        group_size: str | None,
        asymmetric: bool | None,
        scales: ScalesOf | None,
        codec: CodecOf | None,
    ) -> "Asked":
        """The options as they were given, None where they were not; `by_hand` says that widths are, and `limited` that
        there is a limit.

        Raises:
            QuantGolfError: no group sizes, or options that have no effect.
        """
        given = {
            "--group-size": group_size,
            "--asymmetric/--symmetric": asymmetric,
            "--scales": scales,
            "--codec": codec,
        }
        idle = [option for option, value in given.items() if value is not None]
        if solver is Solver.slope and idle:
            raise QuantGolfError(
                f"{idle[0]} is for codes of fixed widths, and --solver slope has none (its levels are coded by rANS, "
                "their steps are those of rows and columns); leave it out, or add --solver gptq"
            )
        sizes = (None,) if group_size is None else parse_sizes(group_size)
        if by_hand and not limited and len(sizes) > 1:
            raise QuantGolfError(
                f"--bits gives widths, and of --group-size {group_size} the best is chosen within a limit; give one "
                "size, or --max-bytes"
            )
        grid = Grid(sizes[0], symmetric=not asymmetric, scales="fp16" if scales is None else scales.value)
        return Asked(grid, sizes if len(sizes) > 1 else None, codec or CodecOf.auto)


def parse_sizes(text: str) -> tuple[int | None, ...]:
    """Sizes of groups, None for the row.

    Raises:
        QuantGolfError: not numbers from 1 on or `row`, or one of them twice.
    """
    found: list[int | None] = []
    for part in (each.strip() for each in text.split(",")):
        if part != ROW and (not part.isascii() or not part.isdigit() or int(part) < 1):
            raise QuantGolfError(f"--group-size: {part!r} in {text!r}, {EXPECTED}")
        found.append(None if part == ROW else int(part))
    if len(set(found)) < len(found):
        raise QuantGolfError(f"--group-size: {text!r} names a size twice, {EXPECTED}")
    return tuple(found)


def spelled(sizes: Sequence[int | None]) -> str:
    """Sizes as `--group-size` takes them."""
    return ",".join(ROW if size is None else str(size) for size in sizes)
