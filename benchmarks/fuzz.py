"""Hostile files: coverage-guided fuzzing of the reader and of each decoder, and changes tried exhaustively.

    pip install atheris
    python benchmarks/fuzz.py run --seconds 3600 --out fuzz      # appends rows for docs/reliability.md
    python benchmarks/fuzz.py exhaustive
    python benchmarks/fuzz.py replay tests/blob/corpus/*/*
    python benchmarks/fuzz.py minimise --out fuzz                # what was found worth keeping, into the corpus

`run` needs atheris (libFuzzer for Python, Linux), which nothing else here does. Every target runs in two modes, one
process at a time: `guided`, with NUMBA_DISABLE_JIT, so that the inner loops of the decoders are Python and their
branches guide the search; and `compiled`, as users run them, with NUMBA_BOUNDSCHECK, fast and without sight of those
loops. Inputs that are files are changed by `fuzzing.mutate`, which mends lengths and checksum. After every input the
promise of `fuzzing.guard` is checked: a `QuantGolfError` of one short line or a model, no other exception, and no
memory beyond a bound; a process that crashes, takes longer than 10 seconds for one input or 2 GB in all is a finding
too. Findings lie in OUT/findings; with any of them the exit code is 1.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from fuzzing import exhaustive as every
from fuzzing.guard import tried, warm
from fuzzing.seeds import BLOB, LONGEST, golden_files
from fuzzing.targets import TARGETS, Limits
from reliability_rows import Row

from quantgolf.errors import QuantGolfError

CORPUS = BLOB / "corpus"
PROMISE = "Hostile files"
MODES = {"compiled": {"NUMBA_BOUNDSCHECK": "1"}, "guided": {"NUMBA_DISABLE_JIT": "1"}}
SECONDS = {"compiled": 10, "guided": 60}  # for one input; tables of 256 states take a second as Python, more under load
# Shares of the time: whole files are what a user opens.
WEIGHTS = {"file": 6, "decoder": 4, "levels": 3, "openers": 2, "cursor": 0.2, "table": 0.8}
MEMORY = 2048  # MiB of the whole process, which grows with what it has seen

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
OutOption = Annotated[Path, typer.Option("--out", help="Where inputs and findings of this run lie.")]


@dataclass(frozen=True)
class Run:
    """What a process of a target counted."""

    inputs: int
    edges: int
    crashed: bool


def seeded(target: str, out: Path) -> Path:
    """The folder of a run's inputs of a target, with its seeds in it."""
    folder = out / "corpus" / TARGETS[target].folder
    folder.mkdir(parents=True, exist_ok=True)
    for at, data in enumerate(TARGETS[target].seeds(golden_files())):
        (folder / f"seed_{at}").write_bytes(data)
    return folder


def libfuzzer(target: str, mode: str, out: Path, arguments: list[str]) -> tuple[int, str]:
    """Runs a process of a target; its exit code, and what it said."""
    findings = out / "findings"
    findings.mkdir(parents=True, exist_ok=True)
    flags = [f"-timeout={SECONDS[mode]}", f"-rss_limit_mb={MEMORY}", f"-max_len={LONGEST}", "-reload=0"]
    flags += [f"-artifact_prefix={findings}/{target}-{mode}-", "-print_final_stats=1", "-report_slow_units=9999"]
    child = [sys.executable, str(Path(__file__).parent / "fuzzing" / "child.py"), target, mode, str(findings)]
    environment = {"OMP_NUM_THREADS": "1", "NUMBA_CACHE_DIR": str(out / f"numba_{mode}")} | MODES[mode]
    done = subprocess.run(
        ["nice", "-n", "10", *child, *arguments, *flags],
        env=os.environ | environment, capture_output=True, text=True, errors="replace",
    )  # fmt: skip
    (out / f"{target}-{mode}.log").write_text(done.stderr[-100_000:], encoding="utf-8")
    return done.returncode, done.stderr


def fuzzed(target: str, mode: str, seconds: float, out: Path, corpus: Path) -> Run:
    """One process on a target, until the time is over or something ends it."""
    known = corpus / TARGETS[target].folder
    folders = [str(seeded(target, out)), *[str(known)] * known.is_dir()]
    code, said = libfuzzer(target, mode, out, [*folders, f"-max_total_time={max(1, int(seconds))}"])
    for line in said.splitlines():
        if line.startswith("finding of"):
            print(line, flush=True)
    # A process that ends itself says how many inputs there were at the end, one that is stopped in its progress.
    counts = re.findall(r"(?:^#|number_of_executed_units:\s*)(\d+)", said, re.MULTILINE)
    edges = re.findall(r"cov: (\d+)", said)
    return Run(max(map(int, counts), default=0), max(map(int, edges), default=0), code != 0)


@app.command()
def run(
    out: OutOption,
    seconds: Annotated[float, typer.Option(help="Of all targets and modes together.")] = 3600,
    target: Annotated[str, typer.Option(help="One of them, or all.")] = "all",
    corpus: Annotated[Path, typer.Option(help="Inputs to begin with, a folder for each target.")] = CORPUS,
    mended: Annotated[int, typer.Option(help="Findings of earlier runs that were mended; for the row.")] = 0,
    results: Annotated[Path | None, typer.Option(help="Append a row for each target.")] = None,
) -> None:
    """Fuzz, and fail if anything is found."""
    if find_spec("atheris") is None:
        raise QuantGolfError("atheris is not installed, expected it to run the fuzzer; pip install atheris")
    if target != "all" and target not in TARGETS:
        raise QuantGolfError(f"target is {target!r}, expected all or one of {', '.join(TARGETS)}")
    names = list(TARGETS) if target == "all" else [target]
    whole = sum(WEIGHTS.get(name, 1) for name in names)
    for name in names:
        begin, runs = time.monotonic(), list[Run]()
        for mode in MODES:
            end = time.monotonic() + seconds * WEIGHTS.get(name, 1) / whole / len(MODES)
            while (left := end - time.monotonic()) > 1:
                runs.append(fuzzed(name, mode, left, out, corpus))
                if not runs[-1].inputs:
                    raise QuantGolfError(f"the fuzzer does not start; see {out / f'{name}-{mode}.log'}")
        found = open_findings(out, name)
        count, spent = sum(each.inputs for each in runs), time.monotonic() - begin
        detail = {"edges": max(each.edges for each in runs), "crashes": sum(each.crashed for each in runs)}
        print(f"{name}: {count:,} inputs in {spent:.0f} s, {detail['edges']} edges, {len(found)} findings", flush=True)
        if results is not None:
            detail |= {"found_and_mended": mended} if name == "file" else {}
            command = f"python benchmarks/fuzz.py run --target {name} --seconds {spent:.0f} --out fuzz"
            what = f"fuzzed: {TARGETS[name].what}"
            Row(PROMISE, what, command, count, count, len(found), round(spent, 1), detail).append(results)
    _fail_on([path for name in names for path in open_findings(out, name)])


def open_findings(out: Path, target: str) -> list[Path]:
    """Inputs of a target that broke a promise."""
    return sorted(path for path in (out / "findings").glob(f"{target}-*") if path.suffix != ".txt")


@app.command()
def replay(files: list[Path]) -> None:
    """Try inputs again, each with the target its folder or its name says; others with all that take files."""
    failed, warmed = [], set[str]()
    for path in files:
        named = path.name.split("-")[0]
        folder = TARGETS[named].folder if named in TARGETS else path.parent.name
        targets = [name for name, each in TARGETS.items() if each.folder == folder]
        for target in targets or ["file", "openers", "decoder"]:
            if target not in warmed:
                warm(target, TARGETS[target].seeds(golden_files()))
                warmed.add(target)
            found = tried(target, path.read_bytes(), Limits())
            if found is not None:
                print(f"{path}: {target}: {found.what}")
                failed.append(path)
    print(f"{len(files)} inputs, {len(set(failed))} of them broke a promise")
    _fail_on(failed)


@app.command()
def minimise(
    out: OutOption,
    corpus: Annotated[Path, typer.Option(help="Where the inputs go that are kept, a folder for each target.")] = CORPUS,
    most: Annotated[int, typer.Option(help="Bytes of all inputs of a folder; the smallest are kept.")] = 40_000,
    only: Annotated[str, typer.Option("--target", help="One of them, or all.")] = "all",
) -> None:
    """Keep of a run's inputs, and of those kept before, what reaches something that no smaller one does."""
    for target in (name for name, each in TARGETS.items() if each.folder == name and only in ("all", name)):
        kept, merged = corpus / target, out / "merged" / target
        shutil.rmtree(merged, ignore_errors=True)
        merged.mkdir(parents=True)
        sources = [str(folder) for folder in (seeded(target, out), kept) if folder.is_dir()]
        code, said = libfuzzer(target, "guided", out, ["-merge=1", str(merged), *sources])
        inputs = sorted((path.read_bytes() for path in merged.iterdir()), key=lambda data: (len(data), data))
        if code or not inputs:
            raise QuantGolfError(f"inputs of {target} cannot be merged ({said[-300:]!r}), expected some to be kept")
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        total = 0
        for data in inputs:
            total += len(data)
            if total <= most:
                (kept / hashlib.blake2b(data, digest_size=6).hexdigest()).write_bytes(data)
        print(f"{target}: {len(list(kept.iterdir()))} of {len(inputs)} inputs that matter are kept")


@app.command()
def exhaustive(
    results: Annotated[Path | None, typer.Option(help="Append the rows.")] = None,
    large: Annotated[bool, typer.Option(help="Flip every bit of the large golden file too: minutes.")] = True,
) -> None:
    """Flip every bit of every golden file, cut it at every byte, add every byte: each has to be noticed."""
    rows = every.rows((BLOB / "golden").glob("*.qg"), large)
    for row in rows:
        print(f"{row.case}: {row.tried:,} tried, {row.failures} not noticed, {row.seconds:.1f} s")
        if results is not None:
            row.append(results)
    if any(row.failures for row in rows):
        raise SystemExit(1)


def _fail_on(findings: list[Path]) -> None:
    if findings:
        listed = " ".join(map(str, dict.fromkeys(findings)))
        print(f"{len(findings)} findings; to see one again: python benchmarks/fuzz.py replay {listed}", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    try:
        app()
    except QuantGolfError as error:
        raise SystemExit(f"error: {error}") from error
