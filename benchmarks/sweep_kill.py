"""The sweep's promise: 24 points on the demo model in under ten minutes on two cores, and killed in the middle the same
files and the same losses as undisturbed.

    python benchmarks/sweep_kill.py --out sweep_kill.jsonl

The sweep runs as a user types it, once undisturbed and once killed (`kill -9`, the whole of it) each time that some
points are finished, and typed again. Written are its time, the processors' time, and for every point whether bytes,
digest of the file, KL and BPB are those of the undisturbed one; times and dates are what may differ.
"""

import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from quantgolf.bench.machine import conditions
from quantgolf.sweep import FrontierPoint
from quantgolf.sweep.store import ResultsFile

GRID = ["--solver", "slope,gptq", "--max-bytes", "700kB:1.8MB:100kB"]
KILLS = (5, 13)  # points that are finished when it is killed
SAME = ("bytes", "digest", "kl", "bpb", "float_bpb", "delta_bpb", "top1", "worst", "kinds", "tensors", "documents")


def command(out: Path, arguments: list[str]) -> list[str]:
    """The sweep as it is typed."""
    start = [sys.executable, "-c", "from quantgolf.cli import main; main()", "sweep"]
    return [*start, *arguments, "--out", str(out), "--json"]


def finished(out: Path) -> int:
    """Points that a results file has."""
    return len(ResultsFile(out).read().points)


def killed(out: Path, arguments: list[str], after: int) -> int:
    """Runs the sweep until `after` points are finished and kills it; returns how many there are then."""
    with subprocess.Popen(command(out, arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while finished(out) < after and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    return finished(out)


def differing(a: FrontierPoint, b: FrontierPoint) -> list[str]:
    """What is not the same of two points."""
    return [name for name in SAME if asdict(a)[name] != asdict(b)[name]]


def main(
    checkpoint: Annotated[str, typer.Argument()] = "demo",
    out: Annotated[Path, typer.Option("--out", help="JSON lines; added to.")] = Path("sweep_kill.jsonl"),
    arguments: Annotated[str | None, typer.Option("--with", help="Arguments of the sweep instead of GRID.")] = None,
) -> None:
    """Measures and writes one line for the sweep and one for each point."""
    typed = [checkpoint, *(GRID if arguments is None else shlex.split(arguments))]
    with tempfile.TemporaryDirectory() as folder:
        whole, broken = Path(folder, "whole.jsonl"), Path(folder, "broken.jsonl")
        before, started = used(), time.monotonic()
        subprocess.run(command(whole, typed), check=True, stdout=subprocess.DEVNULL)
        seconds, processor = time.monotonic() - started, used() - before
        kills = [killed(broken, typed, after) for after in KILLS]
        again = json.loads(subprocess.run(command(broken, typed), check=True, stdout=subprocess.PIPE).stdout)
        first, second = ResultsFile(whole).read().points, ResultsFile(broken).read().points
        lines = sum(1 for line in broken.read_text().splitlines() if line)
    rows: list[dict[str, Any]] = [
        {"name": "sweep", "checkpoint": checkpoint, "points": len(first), "seconds": round(seconds, 1),
         "processor_seconds": round(processor, 1), "load": os.getloadavg()[0], "killed_at": kills,
         "made_after": again["made"], "lines": lines, "same_keys": set(first) == set(second)}
    ]  # fmt: skip
    for key, point in first.items():
        other = second.get(key)
        differ = ["missing"] if other is None else differing(point, other)
        rows.append({"name": "point", "key": key, "method": point.method, "bytes": point.bytes, "differ": differ})
    with out.open("a") as file:
        for row in rows:
            file.write(json.dumps({**row, **conditions(None)}) + "\n")
    wrong = [row for row in rows[1:] if row["differ"]]
    print(json.dumps(rows[0]))
    print(f"{len(rows) - 1 - len(wrong)} of {len(rows) - 1} points are the same")
    if wrong or not rows[0]["same_keys"] or rows[0]["lines"] != len(first):
        raise SystemExit(1)


def used() -> float:
    """Processor seconds of all processes that were waited for."""
    found = resource.getrusage(resource.RUSAGE_CHILDREN)
    return found.ru_utime + found.ru_stime


if __name__ == "__main__":
    typer.run(main)
