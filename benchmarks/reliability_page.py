"""docs/reliability.md from the committed lines of the reliability scripts: every number on the page comes from there.

python benchmarks/reliability_page.py --out docs/reliability.md
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from reliability_rows import RESULTS, read

from quantgolf.errors import QuantGolfError

# In the order of the page: the promise, what it says, and how it is tried.
PROMISES = {
    "Hostile files": "No file, whoever made it, crashes the reader, hangs it, runs code, or takes more memory than it "
    "declares and the caller permits. Files are changed blindly and by structure, with a mended checksum, under the "
    "guidance of coverage; the exported decoder has to agree with every file that the reader accepts.",
    "Checks of the reader": "Every check of the reader is needed: each is taken out, or weakened, in a copy of the "
    "package, and a test has to fail.",
    "Bit-exact": "The same file gives the same weights under other threads, processors, compilers and libraries. What "
    "is tried are digests of decoded tensors by both readers and of files made anew; a fault is none.",
    "Interruption": "A killed or failing run leaves the old file, the complete new one, or none, and one clear line; "
    "typed again it goes on and gives the same bytes.",
    "Verification": "A file gets its name only after it was read back from the disk and every tensor compared with "
    "what was solved; `verify` and `diff` find what was changed.",
    "Numbers": "Files never pass their budget, sizes and losses follow the slope, statistics add up, solvers agree "
    "with slow oracles, and no weight, Hessian or text makes anything silently NaN or infinite.",
}
INTRODUCTION = """\
# Reliability

A compressed checkpoint is often the only copy. This page says what was done to break quantgolf, and what came of it. It
is written by `benchmarks/reliability_page.py` from `benchmarks/results/reliability.jsonl`; no number on it is typed by
hand, and every row names the script that makes it again.

Failures are inputs, moments or mutants that broke the promise when the script ran last. What was found on the way and
mended is counted as such where a script counts it, and told in the [notebook](notebook.md)."""


def main(
    results: Annotated[Path, typer.Argument(help="JSON lines of the reliability scripts.")] = RESULTS,
    out: Annotated[Path, typer.Option(help="Page to write.")] = Path("docs/reliability.md"),
) -> None:
    """Write the page."""
    out.write_text(page(read(results)), encoding="utf-8")


def page(rows: list[dict[str, Any]]) -> str:
    """The page of these rows.

    Raises:
        QuantGolfError: a row of a promise that the page does not know.
    """
    if foreign := {row["promise"] for row in rows} - PROMISES.keys():
        raise QuantGolfError(f"results have the promises {sorted(foreign)}, expected some of {', '.join(PROMISES)}")
    parts = [INTRODUCTION, totals(rows)]
    for promise, text in PROMISES.items():
        own = [row for row in rows if row["promise"] == promise]
        if own:
            parts += [f"## {promise}\n\n{text}", table(own)]
    return "\n\n".join([*parts, made_with(rows)]) + "\n"


def totals(rows: list[dict[str, Any]]) -> str:
    """One line a promise."""
    lines = ["| promise | tried | faults injected | failures |", "|---|--:|--:|--:|"]
    for promise in PROMISES:
        own = [row for row in rows if row["promise"] == promise]
        tried, faults, failures = (sum(row[name] for row in own) for name in ("tried", "faults", "failures"))
        if own:
            lines.append(
                f"| [{promise}](#{promise.lower().replace(' ', '-')}) | {tried:,} | {faults:,} | {failures:,} |"
            )
    return "\n".join(lines)


def table(rows: list[dict[str, Any]]) -> str:
    """One line a case."""
    lines = ["| case | tried | faults | failures | seconds | more |", "|---|--:|--:|--:|--:|---|"]
    for row in rows:
        more = ", ".join(f"{name.replace('_', ' ')} {told(value)}" for name, value in row["detail"].items())
        numbers = f"{row['tried']:,} | {row['faults']:,} | {row['failures']:,} | {row['seconds']:,.0f}"
        lines.append(f"| {row['case'].replace('|', '/')} | {numbers} | {more.replace('|', '/')} |")
    commands = sorted({row["command"] for row in rows})
    return "\n".join([*lines, "", "Again: " + ", ".join(f"`{command}`" for command in commands) + "."])


def told(value: object) -> str:
    """A number with commas, or words."""
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def made_with(rows: Iterable[dict[str, Any]]) -> str:
    """Versions and days of all rows."""
    conditions = [row["conditions"] for row in rows]
    versions = sorted({f"{name} {v}" for each in conditions for name, v in each["versions"].items() if v})
    days = sorted({each["date"] for each in conditions})
    machines = sorted({f"{each['machine']} with {each['cores']} cores" for each in conditions})
    return (
        f"Made with {', '.join(versions)}, on {', '.join(machines)}, {' to '.join(dict.fromkeys((days[0], days[-1])))}."
    )


if __name__ == "__main__":
    typer.run(main)
