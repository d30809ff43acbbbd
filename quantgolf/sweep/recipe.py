"""How one file of a sweep is made: the options of `compress` that decide its bytes, and the key they give it."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from hashlib import blake2b
from typing import Any, Self, cast

from quantgolf.allocate import parse_bits, widths_by_hand
from quantgolf.blob import VERSION
from quantgolf.compress import Compressed
from quantgolf.compress.workshop import Workshop
from quantgolf.encode import Codec
from quantgolf.errors import BudgetError, QuantGolfError
from quantgolf.solve import SolveOptions, Solver
from quantgolf.solve.grid import Grid
from quantgolf.solve.trellis import Trellis
from quantgolf.sweep.roles import role_of
from quantgolf.types import Choice

SLOPE, FIXED = "slope", ("rtn", "gptq_lite", "gptq")
SOLVERS = (*FIXED, SLOPE)
FED_BACK = ("gptq", SLOPE)
# Which solvers an option means anything to; with others it makes no second file.
APPLIES: dict[str, tuple[str, ...]] = {
    "max_bytes": SOLVERS, "bits": FIXED, "raised": FIXED, "group_size": FIXED, "asymmetric": FIXED, "scales": FIXED,
    "codec": FIXED, "states": (SLOPE,), "across_rows": (SLOPE,), "damp": FED_BACK, "act_order": FED_BACK,
    "block_size": FED_BACK, "code_bytes": SOLVERS,
}  # fmt: skip
ROW = "row"


@dataclass(frozen=True)
class Recipe:
    """What makes a file.

    Attributes:
        solver: one of `SOLVERS`.
        max_bytes: limit of file and code.
        bits: widths by hand as `compress --bits` takes them, where names of roles (`mlp`, `attn.q`, see `role_of`) are
            understood too; None for those the knapsack chooses, and for slope.
        raised: `NAME=WIDTH` of one matrix or role, before `bits`: what sensitivity scans raise.
        group_size: columns that share a scale, or `row`; of several, `32+64+row`, the best is chosen for each matrix.
        asymmetric, scales, codec, states, damp, act_order, across_rows, block_size: as `compress` has them.
        code_bytes: raw bytes of source files that count towards the limit.

    Raises:
        QuantGolfError: a value out of range, an option that the solver has no use for, or neither limit nor widths.
    """

    solver: str = SLOPE
    max_bytes: int | None = None
    bits: str | None = None
    raised: str | None = None
    group_size: str = ROW
    asymmetric: bool = False
    scales: str = "fp16"
    codec: str = "auto"
    states: int = Trellis().states
    damp: float | None = None
    act_order: bool = SolveOptions().act_order
    across_rows: bool = SolveOptions().across_rows
    block_size: int = SolveOptions().block_size
    code_bytes: int = 0

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise QuantGolfError(f"solver {self.solver!r}, expected one of {', '.join(SOLVERS)}")
        idle = [name for name, value in self._given().items() if self.solver not in APPLIES[name]]
        if idle:
            raise QuantGolfError(
                f"{spelled(idle[0])} means nothing to solver {self.solver}, expected it with "
                f"{', '.join(APPLIES[idle[0]])}; leave it out"
            )
        if self.max_bytes is None and self.bits is None:
            wanted = "a limit" if self.solver == SLOPE else "a limit or widths"
            raise QuantGolfError(f"solver {self.solver} without a size, expected {wanted}; give max-bytes, bpw or bits")
        if self.raised is not None and self.bits is None:
            raise QuantGolfError(f"raised {self.raised}, expected widths that it stands before; give bits")
        if self.scales not in ("fp16", "log") or self.codec not in ("auto", "rans", "zstd"):
            raise QuantGolfError(
                f"scales {self.scales} and codec {self.codec}, expected fp16 or log, and auto, rans or zstd"
            )
        self.solve_options(), self.rules(), Trellis(self.states)  # each says no to what is out of range

    def options(self) -> dict[str, Any]:
        """What is not as it is by default, by option name, the solver always."""
        return {"solver": self.solver, **self._given()}

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """The recipe of such options.

        Raises:
            QuantGolfError: an option that is none, or as the class has it.
        """
        unknown = set(options) - {field.name for field in fields(cls)}
        if unknown:
            raise QuantGolfError(
                f"options {', '.join(sorted(unknown))} are not those of a sweep, expected "
                f"{', '.join(field.name for field in fields(cls))}"
            )
        try:
            return cls(**options)
        except (TypeError, ValueError) as error:
            raise QuantGolfError(f"options {dict(options)} do not fit ({error}), expected those of a sweep") from error

    def _given(self) -> dict[str, Any]:
        found = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "solver"}
        defaults = {field.name: field.default for field in fields(self)}
        return {name: value for name, value in found.items() if value != defaults[name]}

    def method(self) -> str:
        """What its line in a picture is called: the solver, and what is neither by default nor a size."""
        parts = [
            spelled([name])[2:].replace("-", " ") + ("" if value is True else f" {value}")
            for name, value in self._given().items()
            if name not in ("max_bytes", "bits", "raised", "code_bytes", "act_order", "across_rows")
        ]
        parts += ["no " + name.replace("_", " ") for name in ("act_order", "across_rows") if name in self._given()]
        by_hand = "" if self.bits is None else " by hand" if self.raised is None else " raised"
        return ", ".join([self.solver + by_hand, *parts])

    def group_sizes(self) -> tuple[int | None, ...]:
        """The sizes of groups to choose from; None is a row."""
        parts = [part.strip() for part in self.group_size.split("+")]
        for part in parts:
            if part != ROW and (not part.isdecimal() or int(part) < 1):
                raise QuantGolfError(
                    f"group-size {self.group_size!r}, expected columns from 1 on, {ROW!r}, or several such as 32+{ROW}"
                )
        return tuple(None if part == ROW else int(part) for part in parts)

    def solve_options(self) -> SolveOptions:
        """As the solvers take them."""
        grid = Grid(self.group_sizes()[0], symmetric=not self.asymmetric, scales=cast(Any, self.scales))
        return SolveOptions(self.damp, self.act_order, self.block_size, across_rows=self.across_rows, grid=grid)

    def rules(self) -> list[tuple[str, int]]:
        """Widths by hand, `raised` first."""
        return [rule for part in (self.raised, self.bits) if part is not None for rule in parse_bits(part)]

    def refuse_misfit(self, names: Iterable[str]) -> None:
        """Refuses options that no file can be made of, whatever the statistics and the limit.

        Args:
            names: of the model's matrices.

        Raises:
            QuantGolfError: values out of range, or widths that do not fit the names.
        """
        self.solve_options()
        Trellis(self.states)
        if self.bits is not None:
            widths_of(self.rules(), names)

    def share(self) -> tuple[Any, ...]:
        """Recipes of equal shares have solved matrices in common."""
        alone = replace(self, max_bytes=1, bits=None, raised=None)
        return tuple(getattr(alone, field.name) for field in fields(alone))


def key_of(recipe: Recipe, model: str, calibration: Mapping[str, Any]) -> str:
    """What identifies a file: of one key there is one file, whatever made it.

    Args:
        model: the checkpoint's fingerprint.
        calibration: its text's digest and settings.
    """
    content = {"format": VERSION, "model": model, "calibration": dict(calibration), "options": recipe.options()}
    return blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()


def make(shop: Workshop, recipe: Recipe) -> Compressed:
    """The file of a recipe; the same whatever the workshop made before.

    Raises:
        BudgetError: it does not fit into its limit.
        QuantGolfError: widths that do not fit the names, or code of another size than the workshop's.
    """
    if recipe.code_bytes != shop.code_bytes:
        raise QuantGolfError(f"code of {shop.code_bytes:,} bytes, expected the {recipe.code_bytes:,} of the recipe")
    options = recipe.solve_options()
    if recipe.solver == SLOPE:
        assert recipe.max_bytes is not None
        return shop.slope(options, Trellis(recipe.states)).within(recipe.max_bytes)
    sizes = recipe.group_sizes()
    several = sizes if len(sizes) > 1 else None
    fixed = shop.fixed(cast(Solver, recipe.solver), options, several, cast(Codec, recipe.codec))
    if recipe.bits is None:
        assert recipe.max_bytes is not None
        return fixed.within(recipe.max_bytes)
    widths = widths_of(recipe.rules(), shop.matrices)
    if several is None:
        result = fixed.exactly({name: Choice(bits, sizes[0]) for name, bits in widths.items()})
        size = len(result.data) + recipe.code_bytes
        if recipe.max_bytes is not None and size > recipe.max_bytes:
            raise BudgetError(f"limit of {recipe.max_bytes:,} bytes cannot be met: these widths take {size:,}", size)
        return result
    return fixed.by_hand(list(widths.items()), recipe.max_bytes)


def widths_of(rules: Iterable[tuple[str, int]], names: Iterable[str]) -> dict[str, int]:
    """As `widths_by_hand`, where a pattern that is the beginning of a role (`mlp`, `attn.q`) and matches no name stands
    for all matrices of such roles.

    Raises:
        QuantGolfError: as `widths_by_hand`.
    """
    names = list(names)
    found: list[tuple[str, int]] = []
    for pattern, width in rules:
        alike = [name for name in names if f"{role_of(name)}.".startswith(f"{pattern}.")]
        named = [name for name in names if _matches(name, pattern, width)]
        found += [(name, width) for name in longest_first(alike)] if alike and not named else [(pattern, width)]
    return widths_by_hand([(p, w) for at, (p, w) in enumerate(found) if p not in {q for q, _ in found[:at]}], names)


def rules_of(widths: Mapping[str, int]) -> str:
    """Widths of matrices as rules that give each its own."""
    return ",".join(f"{name}={widths[name]}" for name in longest_first(widths))


def longest_first(names: Iterable[str]) -> list[str]:
    """Names in an order in which none is decided by the pattern of another: a name matches within longer ones."""
    return sorted(names, key=lambda name: (-len(name.split(".")), name))


def spelled(names: Iterable[str]) -> str:
    """Options as the command line has them."""
    return ", ".join("--" + re.sub("_", "-", name) for name in names)


def _matches(name: str, pattern: str, width: int) -> bool:
    try:
        return bool(widths_by_hand([(pattern, width)], [name]))
    except QuantGolfError:
        return False
