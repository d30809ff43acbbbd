"""`quantgolf diff`: two files, or a file and a checkpoint, tensor by tensor."""

from dataclasses import asdict
from typing import Annotated, Any

import typer

from quantgolf.checkpoint import Stored
from quantgolf.cli import inputs, show
from quantgolf.cli.verify import MaxDecodedOption, limit_of
from quantgolf.runtime.compare import (
    Comparison,
    Described,
    Row,
    Side,
    compare,
    is_compressed,
    open_side,
    side_of,
    ties_of,
)

SAME, DIFFERENT = 0, 1


def diff_verb(
    a: Annotated[str, typer.Argument(metavar="A", help="A compressed file, a checkpoint, or the word demo.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another, that errors are relative to.")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            callback=inputs.tell_executed,
            help="Opens checkpoints with their module, as compress does: then names are its own and ties are known. "
            "card.json, path/to/script.py:factory (is executed), or hf:PATH.",
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="List equal tensors too.")] = False,
    max_decoded_bytes: MaxDecodedOption = None,
    json: inputs.JsonOption = False,
) -> None:
    """Compare two files, or a file and a checkpoint, tensor by tensor.

    Two files are compared to the last bit of what they decode to; a file beside a checkpoint in the checkpoint's dtype,
    as `decompress` writes it. How values are stored is shown and is no difference. Exit code 0: all is the same; 1:
    something differs; 2: bad input.
    """
    limit = limit_of(max_decoded_bytes)
    one, other = (side(name, model, limit) for name in (a, b))
    rows = []
    with show.bars() as report:
        names = {**one.tensors, **other.tensors}
        for row in compare(one, other):
            rows.append(row)
            report("comparing", len(rows), max(len(rows), len(names)))
    ties, notes = ties_of(one, other)
    described = None if one.model is None or other.model is None else one.model == other.model
    found = Comparison(tuple(rows), tuple(ties), tuple(notes), described)
    if json:
        show.print_json(document_of(found, one, other))
    else:
        print_table(found, one, other, every)
    if not found.same:
        raise typer.Exit(DIFFERENT)


def side(name: str, model: str | None, limit: int) -> Side:
    """What an argument names."""
    if name == inputs.DEMO or (model is not None and not is_compressed(name)):
        source = inputs.open_source(name, model)
        return side_of(name, Stored(source.tensors), source.aliases)
    return open_side(name, limit)


def document_of(found: Comparison, a: Side, b: Side) -> dict[str, Any]:
    """As the JSON output spells it; what is infinite has the word "inf", since JSON knows no such number."""
    return {
        "a": {"name": a.label, "file": a.is_file, "model": a.model, "tensors": len(a.tensors), "bytes": total(a)},
        "b": {"name": b.label, "file": b.is_file, "model": b.model, "tensors": len(b.tensors), "bytes": total(b)},
        "same": found.same,
        "verdicts": dict(counted(found)),
        "max_abs": number(found.largest),
        "relative_error": found.error,
        "same_model": found.model,
        "ties": list(found.ties),
        "notes": list(found.notes),
        "tensors": {
            row.name: {
                "verdict": row.verdict,
                "a": None if row.a is None else asdict(row.a),
                "b": None if row.b is None else asdict(row.b),
                "max_abs": number(row.largest),
                "relative_error": row.error,
            }
            for row in found.rows
        },
    }


def print_table(found: Comparison, a: Side, b: Side, every: bool) -> None:
    console = show.console(False)
    console.print(f"A: {a.label}\nB: {b.label}", markup=False, soft_wrap=True)
    shown = [row for row in found.rows if every or row.verdict != "equal"]
    if shown:
        columns = ("tensor", "shape", "A", "B", "A, bytes", "B, bytes", "largest |A-B|", "‖A-B‖ / ‖B‖", "")
        console.print(show.table(None, columns, [*map(line_of, shown), total_line(found, a, b)]))
    for line in (*found.ties, *found.notes):
        console.print(line, markup=False, soft_wrap=True)
    if found.model is False:
        console.print(f"they describe other modules: {a.model} and {b.model}", markup=False, soft_wrap=True)
    parts = ", ".join(f"{count} {WORDS.get(verdict, verdict)}" for verdict, count in counted(found))
    console.print(f"{'the same' if found.same else 'different'}: {len(found.rows)} tensors, {parts}")


WORDS = {"shape": "of another shape", "dtype": "of equal values and another dtype", "differs": "differ"}


def line_of(row: Row) -> tuple[str, ...]:
    """A row of the table."""
    shapes = dict.fromkeys("×".join(map(str, each.shape)) or "scalar" for each in (row.a, row.b) if each is not None)
    values = [stored(row.a), stored(row.b), size(row.a), size(row.b)]
    compared = row.largest is not None
    largest = f"{row.largest:.3g}" if row.largest is not None else ""
    return (row.name, " / ".join(shapes), *values, largest, relative(row.error) if compared else "", row.verdict)


def total_line(found: Comparison, a: Side, b: Side) -> tuple[str, ...]:
    """The last row: all tensors."""
    sums = (f"{total(each):,.0f}" for each in (a, b))
    return ("all", "", "", "", *sums, f"{found.largest:.3g}", relative(found.error), "equal" if found.same else "")


def stored(tensor: Described | None) -> str:
    """How it is stored, and of what dtype that is no different word."""
    if tensor is None:
        return ""
    return tensor.storage if tensor.storage == tensor.dtype else f"{tensor.storage} of {tensor.dtype}"


def size(tensor: Described | None) -> str:
    return "" if tensor is None else f"{tensor.bytes:,.0f}"


def total(side: Side) -> float:
    """Bytes of all tensors, without header and checksum of a file."""
    return sum(tensor.bytes for tensor in side.tensors.values())


def relative(error: float | None) -> str:
    return "infinite" if error is None else f"{error:.3g}"


def number(value: float | None) -> float | str | None:
    return "inf" if value == float("inf") else value


def counted(found: Comparison) -> list[tuple[str, int]]:
    """How many rows have each verdict, for those that some have."""
    verdicts = [row.verdict for row in found.rows]
    return [(verdict, verdicts.count(verdict)) for verdict in dict.fromkeys(verdicts)]
