"""What every verb prints with: tables and bars for people on the terminal, one JSON object for programs."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from quantgolf.cli.plain import plain

UNBOUNDED = 200
Report = Callable[[str, int, int], None]


class _Console(Console):
    """Prints no character that a terminal would obey, and leaves it to `stopping.told` what to do when nobody reads
    on."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(plain(each, breaks=True) if isinstance(each, str) else each for each in objects), **options)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console(json_output: bool) -> Console:
    """Where notes and tables go: standard output, or standard error when that belongs to the JSON."""
    # Names of tensors and of files are printed as they are, whatever they look like as markup.
    found = _Console(stderr=json_output, highlight=False, markup=False, emoji=False)
    if not found.is_terminal:
        found.width = UNBOUNDED  # in a file or a pipe nothing has to be cut to fit
    return found


def print_json(document: dict[str, Any]) -> None:
    """One JSON object on standard output, in ASCII, whatever its strings hold."""
    print(json.dumps(document, indent=1))


@contextmanager
def bars() -> Iterator[Report]:
    """Progress bars on standard error; the yielded function takes (stage, done, total)."""
    columns = (
        TextColumn("{task.description:<28}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    progress = Progress(*columns, console=Console(stderr=True))
    stages: dict[str, Any] = {}

    def report(stage: str, done: int, total: int) -> None:
        progress.start()  # not before: bars without a stage would print an empty line
        if stage not in stages:
            stages[stage] = progress.add_task(plain(stage), total=total)
        progress.update(stages[stage], completed=done, total=total)

    try:
        yield report
    finally:
        if stages:
            progress.stop()


def table(title: str | None, columns: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> Table:
    """A table whose first columns, `words` of them, are text and whose others are numbers; cells are escaped."""
    grid = Table(
        title=None if title is None else plain(title, breaks=True),
        title_justify="left",
        header_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for index, column in enumerate(columns):
        grid.add_column(plain(column, breaks=True), justify="left" if index < words else "right", overflow="fold")
    for row in rows:
        grid.add_row(*map(plain, row))
    return grid


def duration(seconds: float) -> str:
    """`12 s`, or `3.4 min` from two minutes on."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def calibrated(settings: dict[str, Any], unknown: int | None = None, held_out: dict[str, Any] | None = None) -> str:
    """What a model was calibrated on, in a sentence; unknown pieces are those of all text, the held-out part's too."""
    labels = {"sampled": "sampled from the model (the Fisher information)", "targets": "the text's own"}
    whose = "of them" if held_out is None else "of them and of the text behind them"
    pieces = "" if unknown is None else f", {unknown:,} {whose} unknown pieces"
    return (
        f"calibrated on {settings['tokens']:,} tokens{pieces}, {settings['context']} windows of up to "
        f"{settings['length']:,}; labels of the gradients: {labels[settings['labels']]}"
    )


def with_interval(value: dict[str, float | None], sign: str = "") -> str:
    """`value (low to high)`; a single document has no interval."""
    if value["low"] is None:
        return f"{value['value']:{sign}.5f} (one document: no interval)"
    return f"{value['value']:{sign}.5f} ({value['low']:{sign}.5f} to {value['high']:{sign}.5f})"
