"""Ends and faults that every verb of the command line has to take in one line: signals, full disks, folders that cannot
be written, inputs that vanish, readers that go away.

    python benchmarks/faults.py --moments 4

Each command runs once undisturbed, in a process of its own on a small model of the demo's family with random weights;
then once for each fault. A run breaks the promise if it shows a traceback, says nothing or more than one line of its
own, ends with another exit code than the fault has, leaves a temporary file, or leaves an output that is neither what
was there before nor whole. Disks are file systems in memory, mounted for the run, which takes the rights to do so.
"""

import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from fault_runs import Command, Tally, commands, disk, fresh, prepare, problems_of, rests, run
from reliability_rows import RESULTS

FIRST = 1.0  # seconds that Python may take to come to the first line of quantgolf, on a busy machine


def signals(chosen: list[Command], here: Path, folder: Path, moments: int, draw: random.Random) -> Tally:
    """Ctrl-C and SIGTERM at random moments of every command."""
    tally = Tally("Ctrl-C and SIGTERM: one line, no leftovers")
    for command in chosen:
        out = fresh(folder)
        undisturbed = run(command, here, out)
        tally.note(command, "undisturbed", undisturbed, problems_of(undisturbed, (0, 1)[: 1 + (command.name == "diff")],
                   (0, 1)), fault=False)  # fmt: skip
        for number, each in ((signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")):
            for _ in range(moments):
                out, moment = fresh(folder), draw.uniform(0, undisturbed.seconds)

                def stop(process: subprocess.Popen[str], number: int = number, moment: float = moment) -> None:
                    time.sleep(moment)
                    process.send_signal(number)

                ended = run(command, here, out, stop)
                # Before Python has come to quantgolf's first line it ends as Python does.
                if ended.code in (-number, 1) and moment < FIRST:
                    continue
                found = [*problems_of(ended, (0, 1, 128 + number), (0, 1)), *rests(out, command)]
                tally.note(command, f"{each} after {moment:.2f} of {undisturbed.seconds:.2f} s", ended, found)
    return tally


def full_disks(chosen: list[Command], here: Path, folder: Path) -> Tally:
    """Disks with no room, room for a part, and for nearly all of what is written; and a full standard output."""
    tally = Tally("disk full")
    for command in chosen:
        if command.output:
            out = fresh(folder)
            run(command, here, out)
            size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) // 1024
            for room in sorted({max(4, size // 3), max(4, size * 9 // 10)}):
                with disk(room) as small:
                    ended = run(command, here, small)
                    tally.note(
                        command, f"{room} kB of {size}", ended, [*problems_of(ended, (0, 2)), *rests(small, command)]
                    )
        with open("/dev/full", "w") as full:
            ended = run(command, here, fresh(folder), stdout=full.fileno())
            tally.note(command, "standard output on a full disk", ended, problems_of(ended, (2,)))
    return tally


def read_only(chosen: list[Command], here: Path, folder: Path) -> Tally:
    """A folder that cannot be written, and one that is not there."""
    tally = Tally("read-only folder")
    for command in chosen:
        if not command.output:
            continue
        with disk(64) as small:
            subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
            for how, out in (("read-only", small), ("missing", folder / "no" / "such")):
                shutil.rmtree(folder / "no", ignore_errors=True)
                ended = run(command, here, out)
                made = command.name == "plot" and how == "missing"  # it makes its folder
                tally.note(command, how, ended, problems_of(ended, (0,) if made else (2,)))
    shutil.rmtree(folder / "no", ignore_errors=True)
    return tally


def vanished(chosen: list[Command], here: Path, folder: Path, moments: int, draw: random.Random) -> Tally:
    """Inputs that go at the start or later, or that another file replaces."""
    tally = Tally("vanished input")
    for command in chosen:
        seconds = run(command, here, fresh(folder)).seconds
        for name in command.inputs:
            for moment in [draw.uniform(0.2, 1) * seconds for _ in range(moments)]:
                with tempfile.TemporaryDirectory(dir=folder) as copy:
                    inputs, out = Path(copy) / "inputs", Path(copy) / "out"
                    shutil.copytree(here, inputs)
                    out.mkdir()

                    def remove(_: object, path: Path = inputs / name, moment: float = moment) -> None:
                        time.sleep(moment)
                        shutil.rmtree(path) if path.is_dir() else path.unlink()

                    ended = run(command, inputs, out, remove)
                    found = [*problems_of(ended, (0, 1, 2), (0, 1)), *rests(out, command)]
                    tally.note(command, f"{name} gone after {moment:.2f} of {seconds:.2f} s", ended, found)
    return tally


def closed_pipes(chosen: list[Command], here: Path, folder: Path) -> Tally:
    """Readers that go away before the command writes."""
    tally = Tally("closed pipe: nothing is said")
    for command in chosen:
        for more in ((), ("--json",)):
            asked = Command(command.name, (*command.arguments, *more))

            def close(process: subprocess.Popen[str]) -> None:
                assert process.stdout is not None
                process.stdout.close()
                process.stdout = None

            ended = run(asked, here, fresh(folder), close)
            tally.note(asked, "a closed pipe", ended, problems_of(ended, (141,), (141,)))
    return tally


def main(
    moments: Annotated[int, typer.Option(min=1, help="Random moments of each signal, and of each input.")] = 4,
    only: Annotated[str, typer.Option(help="signals, full, read-only, vanished, closed; with commas.")] = "",
    verbs: Annotated[str, typer.Option(help="Commands by name, with commas; default: all.")] = "",
    seed: Annotated[int, typer.Option(help="Of the moments.")] = 0,
    out: Annotated[Path, typer.Option(help="Results file to append to.")] = RESULTS,
) -> None:
    draw, asked = random.Random(seed), only.split(",") if only else []
    chosen = [each for each in commands() if not verbs or each.name in verbs.split(",")]
    command = f"python benchmarks/faults.py --moments {moments}" + "".join(
        f" --{name} {given}" for name, given in (("only", only), ("verbs", verbs)) if given
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        here = prepare(folder)
        cases: dict[str, Callable[[], Tally]] = {
            "signals": lambda: signals(chosen, here, folder, moments, draw),
            "full": lambda: full_disks(chosen, here, folder),
            "read-only": lambda: read_only(chosen, here, folder),
            "vanished": lambda: vanished(chosen, here, folder, max(1, moments // 2), draw),
            "closed": lambda: closed_pipes(chosen, here, folder),
        }
        for case, work in cases.items():
            if not asked or case in asked:
                row = work().row(command)
                row.append(out)
                print(f"{row.case}: {row.tried} runs, {row.faults} faults, {row.failures} failures, {row.seconds} s")


if __name__ == "__main__":
    typer.run(main)
