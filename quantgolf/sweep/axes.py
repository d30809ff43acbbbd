"""Axes of a sweep into its recipes: values of every option, multiplied where they mean something to a solver."""

import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from itertools import product
from typing import Any

from quantgolf.errors import QuantGolfError
from quantgolf.sizes import parse_size
from quantgolf.sweep.recipe import APPLIES, SLOPE, SOLVERS, Recipe, spelled

MOST = 100_000  # points of a grid: more than that are a slip
RANGE = re.compile(r"([^:]+):([^:]+)(?::([^:]+))?")
NAMES = {field.replace("_", "-"): field for field in (*APPLIES, "solver", "bpw")}


def axis_of(name: str, given: Any) -> list[Any]:
    """Values of an option, from a list of them, one of them, or a text as the command line has it: `8MB:20MB:1MB` or
    `1MB,1.2MB` for max-bytes, `3:6` or `mlp=4,5,6 attn=5,6` for bits (see `allocations`).

    Args:
        name: of the option, as a field of `Recipe` or `bpw`.
        given: as the command line or a YAML file has it.

    Raises:
        QuantGolfError: no values, one twice, or one that the option does not take.
    """
    if name == "bits":
        values: list[Any] = _bits(given)
    else:
        parts = _parts(name, given)
        values = [value for part in parts for value in _values(name, part)]
    if not values:
        raise QuantGolfError(f"{spelled([name])} has no values, expected at least one")
    twice = next((value for at, value in enumerate(values) if value in values[:at]), None)
    if twice is not None:
        raise QuantGolfError(f"{spelled([name])} has {twice} twice, expected each value once")
    return values


def recipes_of(axes: Mapping[str, Sequence[Any]], parameters: int, code_bytes: int = 0) -> list[Recipe]:
    """The product of axes: for each solver of those options that mean something to it. Limits and widths by hand are
    one axis, the size, of which a slope has limits alone.

    Args:
        axes: values by option, as `axis_of` gives them.
        parameters: of the checkpoint, for `bpw`.
        code_bytes: that count towards limits.

    Raises:
        QuantGolfError: no size, an option that means nothing to any of the solvers, or a value out of range.
    """
    axes = dict(axes)
    limits = [*axes.pop("max_bytes", ()), *(int(bpw * parameters / 8) for bpw in axes.pop("bpw", ()))]
    widths = list(axes.pop("bits", ()))
    solvers = list(axes.pop("solver", ())) or ([SLOPE] if limits else ["gptq"])
    unknown = [solver for solver in solvers if solver not in SOLVERS]
    if unknown:
        raise QuantGolfError(f"--solver {unknown[0]!r}, expected {', '.join(SOLVERS)}")
    if not limits and not widths:
        raise QuantGolfError(
            "the grid is empty: it has no size, expected limits (--max-bytes 8MB:20MB:1MB or --bpw 2:5:0.5) or widths "
            "(--bits); give one"
        )
    idle = [name for name in axes if not any(solver in APPLIES[name] for solver in solvers)]
    if widths and all(solver == SLOPE for solver in solvers):
        idle = ["bits", *idle]
    if idle:
        raise QuantGolfError(
            f"{spelled([idle[0]])} means nothing to --solver {', '.join(solvers)}, expected it with "
            f"{', '.join(APPLIES[idle[0]])}; leave it out or add one of these"
        )
    found: dict[Recipe, None] = {}
    for solver in solvers:
        if solver == SLOPE and not limits:
            raise QuantGolfError("--solver slope has no widths, expected limits for it; give --max-bytes or --bpw too")
        sizes = [{"max_bytes": limit} for limit in limits]
        sizes += [] if solver == SLOPE else [{"bits": each} for each in widths]
        own = {name: values for name, values in axes.items() if solver in APPLIES[name]}
        count = len(sizes)
        for values in own.values():
            count *= len(values)
        if count + len(found) > MOST:
            raise QuantGolfError(f"the grid has {count + len(found):,} points, expected at most {MOST:,}: check ranges")
        for chosen in product(*own.values()):
            for size in sizes:
                options = {**dict(zip(own, chosen, strict=True)), **size}
                found[Recipe.of({"solver": solver, "code_bytes": code_bytes, **options})] = None
    return list(found)


def allocations(text: str) -> list[str]:
    """Widths by hand, each with several choices: `4,5,6` everywhere, or `mlp=4,5,6 attn=5,6,7` for 9 of them.

    What has an equals sign begins the next pattern, and what has none is another width of the last one, so that
    `mlp=5,attn=6,emb=7` is one allocation, as for `compress`. `4:6` is 4, 5, 6.

    Raises:
        QuantGolfError: not of that form.
    """
    rules: list[tuple[str, list[str]]] = []
    for part in re.split(r"[,\s]+", text.strip()):
        pattern, equals, width = part.rpartition("=")
        if equals or not rules:
            rules.append((pattern or "*", []))
        match = re.fullmatch(r"(\d+)(?::(\d+))?", width)
        if match is None or (equals and not pattern):
            raise QuantGolfError(
                f"--bits {text!r}: {part!r} is no width, expected for example '4,5,6', '3:6' or 'mlp=4,5,6 attn=5,6'"
            )
        last = match[2] or match[1]
        rules[-1][1].extend(str(each) for each in range(int(match[1]), int(last) + 1))
    if len({pattern for pattern, _ in rules}) < len(rules):
        raise QuantGolfError(f"--bits {text!r} has a pattern twice, expected each once")
    patterns = [pattern for pattern, _ in rules]
    chosen = product(*(widths for _, widths in rules))
    if patterns == ["*"]:
        return [width for (width,) in chosen]
    return [",".join(f"{pattern}={width}" for pattern, width in zip(patterns, w, strict=True)) for w in chosen]


def _bits(given: Any) -> list[str]:
    """`allocations` of a text, of each of a list, or of a mapping from patterns to one or several widths."""
    if isinstance(given, Mapping):
        listed = {p: [w] if isinstance(w, str) or not isinstance(w, Sequence) else w for p, w in given.items()}
        return allocations(" ".join(f"{pattern}={','.join(map(str, widths))}" for pattern, widths in listed.items()))
    if isinstance(given, Sequence) and not isinstance(given, str):
        return [each for part in given for each in _bits(part)]
    return allocations(str(given))


def _parts(name: str, given: Any) -> list[Any]:
    """One value or several; a size may have commas of its own."""
    if isinstance(given, str):
        if name == "max_bytes" and re.fullmatch(r"\s*\d{1,3}(,\d{3})+\s*", given):
            return [given]
        return [part.strip() for part in given.split(",")]
    return list(given) if isinstance(given, Sequence) else [given]


def _values(name: str, given: Any) -> list[Any]:
    """The value, or the values of a range, that one part says."""
    kind = KINDS[name]
    if not isinstance(given, str):
        if name in FLAGS and isinstance(given, bool):
            return [given]
        if isinstance(given, bool) or not isinstance(given, int | float):
            raise QuantGolfError(f"{spelled([name])} {given!r}, expected {EXPECTED[name]}")
        given = str(given)
    match = RANGE.fullmatch(given)
    if match is None or name not in RANGES:
        return [_one(name, kind, given)]
    if match[3] is None:
        raise QuantGolfError(
            f"{spelled([name])} {given!r}, expected first:last:step, for example {RANGES[name]}; add the step"
        )
    first, last, step = (_one(name, _number if name != "max_bytes" else parse_size, part) for part in match.groups())
    if not step > 0 or last < first:
        raise QuantGolfError(
            f"{spelled([name])} {given!r} is empty, expected first:last:step with last not below first, for example "
            f"{RANGES[name]}"
        )
    count = int((last - first) / step) + 1
    if count > MOST:
        raise QuantGolfError(f"{spelled([name])} {given!r} has {count:,} values, expected at most {MOST:,}")
    return [_one(name, kind, str(first + at * step)) for at in range(count)]


def _one(name: str, kind: Callable[[str], Any], text: str) -> Any:
    try:
        return kind(text.strip())
    except (ValueError, InvalidOperation, KeyError) as error:
        raise QuantGolfError(f"{spelled([name])} {text!r}, expected {EXPECTED[name]}") from error


def _number(text: str) -> Decimal:
    found = Decimal(text)
    if not found.is_finite():
        raise ValueError(text)
    return found


def _positive(text: str) -> float:
    found = float(text)
    if not 0 < found < float("inf"):
        raise ValueError(text)
    return found


def _flag(text: str) -> bool:
    return {"on": True, "off": False, "true": True, "false": False, "yes": True, "no": False}[text.lower()]


FLAGS = ("asymmetric", "act_order", "across_rows")
KINDS: dict[str, Callable[[str], Any]] = {
    "max_bytes": parse_size, "bpw": _positive, "solver": str, "group_size": str, "scales": str, "codec": str,
    "states": int, "block_size": int, "damp": _positive, **dict.fromkeys(FLAGS, _flag),
}  # fmt: skip
RANGES = {"max_bytes": "8MB:20MB:1MB", "bpw": "2:5:0.5", "damp": "0.01:0.05:0.01"}
EXPECTED = {
    "max_bytes": "a size such as 16MB", "bpw": "bits a parameter, above 0", "solver": ", ".join(SOLVERS),
    "group_size": "columns from 1 on, 'row', or several to choose from, 32+row", "scales": "fp16 or log",
    "codec": "auto, rans or zstd", "states": "1, 4, 8 and so on to 256", "block_size": "columns from 1 on",
    "damp": "a share above 0 such as 0.01", **dict.fromkeys(FLAGS, "on or off"),
}  # fmt: skip
