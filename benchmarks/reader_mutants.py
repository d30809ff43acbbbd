"""Mutation testing of the reader's checks: each is taken out, and a test has to fail.

    python benchmarks/reader_mutants.py                     # ten minutes on one core
    python benchmarks/reader_mutants.py --only header.py    # while writing tests

A check is an `if` that guards a `raise FormatError` (or, in the compiled loops and in `frames`, a `return` that says
so), an `except` that turns an error into one, or a call of a function that checks. Its mutants: the condition never
holds, each operand of `and` and `or` left out, each link of a comparison left out, each bound moved by one; the error
goes on as what it was; the call is left out. Mutants live in a process of their own, forked from one that has torch
loaded: the checkout is never touched.

First the tests run once, and for each check it is noted which of them meet it. A mutant that lets more pass than the
check can only show in those; one that refuses more in all tests of the module and of the container. Tests of random
examples are left out: a check that only luck meets has no test.
"""

import importlib
import sys
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from mutating.change import ROOT, all_mutants
from mutating.trial import tried
from reliability_rows import RESULTS, Row

PRELOADED = ("torch._dynamo", "scipy.linalg", "safetensors.torch", "zstandard", "hypothesis", "psutil", "rich.table")
# Mutants that no test can find because nothing changes by them, with the reason; each is checked to be needed still.
ALLOWED: dict[tuple[str, str], str] = {}


def main(
    only: Annotated[str, typer.Option(help="Modules whose path ends like this.")] = "",
    results: Annotated[Path | None, typer.Option(help=f"Append the row, for example to {RESULTS.name}.")] = None,
    listed: Annotated[bool, typer.Option("--list", help="Show what found each mutant.")] = False,
) -> None:
    """Try every mutant; exits with 1 if one survives."""
    for name in PRELOADED:
        importlib.import_module(name)
    torch.set_num_threads(1)
    begin = time.monotonic()
    _, every = all_mutants(compiled=False)
    chosen = [mutant for mutant in every if str(mutant.path).endswith(only)]
    found = tried([mutant for mutant in chosen if not mutant.compiled], compiled=False)
    found |= tried([mutant for mutant in chosen if mutant.compiled], compiled=True)
    survivors, allowed = 0, dict(ALLOWED)
    for mutant in chosen:
        place, finder = f"{mutant.path.relative_to(ROOT)}:{mutant.line}", found[mutant.number]
        if listed and finder:
            print(f"{place}: {mutant.what}\n    found by {finder}")
        if not finder and allowed.pop(mutant.key, None) is None:
            survivors += 1
            print(f"survives: {place}: {mutant.what}")
    needless = [key for key in allowed if any(mutant.path.name == key[0] for mutant in chosen)]
    for key in needless:
        print(f"allowed, but found or gone: {key}")
    seconds, checks = round(time.monotonic() - begin, 1), len({mutant.site for mutant in every})
    print(f"{len(chosen)} mutants of {checks} checks, {survivors} survive, {seconds} s")
    if results is not None and not only:
        detail = {"checks": checks, "changing_nothing": len(ALLOWED)}
        case, command = "each check left out or loosened", "python benchmarks/reader_mutants.py"
        Row("Checks of the reader", case, command, len(every), len(every), survivors, seconds, detail).append(results)
    if survivors or needless:
        raise SystemExit(1)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    typer.run(main)
