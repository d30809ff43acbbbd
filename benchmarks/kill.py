"""Killed at random moments: compress, calibrate and sweep lose nothing, and typed again they give the same bytes.

    python benchmarks/kill.py

Each verb runs once undisturbed, on a small model of the demo's family with random weights. Then it is killed with all
its children (`kill -9`) at moments drawn evenly over the time it takes, typed again, killed again, and after `--chain`
kills left alone. After every kill the output has to be what it was before, or absent, or the complete new one; in the
end it has to be the undisturbed run's, byte for byte, with nothing else beside it.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import Annotated

import torch
import typer
from reliability_rows import RESULTS, Row
from safetensors.torch import save_file
from sweep_kill import SAME

from quantgolf.checkpoint import read_demo
from quantgolf.models.golf import Golf, GolfConfig
from quantgolf.sweep.store import ResultsFile

OLD = b"what was there before"
Digest = Callable[[Path], str]


def small_model(folder: Path) -> list[str]:
    """A checkpoint with random weights and its card, as the first arguments of a verb."""
    torch.manual_seed(0)
    config = GolfConfig(vocab_size=read_demo().card["config"]["vocab_size"], dim=128, layers=4, heads=4, kv_heads=2)
    save_file(Golf(config).state_dict(), folder / "model.safetensors")
    (folder / "card.json").write_text(json.dumps({"family": "golf", "config": config.described()}))
    where = [str(folder / "model.safetensors"), "--model", str(folder / "card.json")]
    return [*where, "--data", "demo", "--tokenizer", "demo"]


def of_file(path: Path) -> str:
    """What a compressed file holds."""
    return blake2b(path.read_bytes(), digest_size=16).hexdigest()


def of_folder(path: Path) -> str:
    """What a folder of statistics holds."""
    whole = blake2b(digest_size=16)
    for each in sorted(path.iterdir()):
        whole.update(each.name.encode() + each.read_bytes())
    return whole.hexdigest()


def of_results(path: Path) -> str:
    """What a sweep measured, whatever its order."""
    points = ResultsFile(path).read().points
    told = {key: {name: asdict(point)[name] for name in SAME} for key, point in points.items()}
    return blake2b(json.dumps(told, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


def verbs(model: list[str]) -> dict[str, tuple[list[str], str, Digest]]:
    """By verb: what is typed before --out, the name of the output, and its digest."""
    compress = ["--bpw", "4", "--tokens", "8192", "--no-guard", "--tune-steps", "0"]
    sweep = ["--max-bytes", "400kB,500kB,600kB", "--solver", "rtn", "--tokens", "4096", "--eval-tokens", "1024"]
    return {
        "compress": (["compress", *model, *compress], "out.qg", of_file),
        "calibrate": (["calibrate", *model, "--tokens", "8192"], "statistics", of_folder),
        "sweep": (["sweep", *model, *sweep], "results.jsonl", of_results),
    }


def start(arguments: list[str], out: Path) -> subprocess.Popen[bytes]:
    """The verb as it is typed, in a process group of its own; what is there is overwritten, but by a sweep."""
    overwrite = out.exists() and arguments[0] != "sweep"
    command = [sys.executable, "-c", "from quantgolf.cli import main; main()", *arguments, "--out", str(out)]
    return subprocess.Popen(
        [*command, *(["--overwrite"] if overwrite else [])], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[bytes]) -> None:
    """Waits for a run that is left alone."""
    _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"a run that was left alone failed: {errors.decode()[-500:]}")


def main(
    kills: Annotated[int, typer.Option(help="How often each verb is killed.")] = 34,
    chain: Annotated[int, typer.Option(help="Kills in a row before a run is left alone.")] = 5,
    seed: Annotated[int, typer.Option(help="Of the moments.")] = 0,
    only: Annotated[str | None, typer.Option(help="One verb alone.")] = None,
    out: Annotated[Path, typer.Option(help="JSON lines; appended to.")] = RESULTS,
) -> None:
    """Kill runs and look what is left."""
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        (place / "model").mkdir()
        for verb, (arguments, name, digest) in verbs(small_model(place / "model")).items():
            if only is None or verb == only:
                tried(verb, arguments, name, digest, place / verb, kills, chain, draw).append(out)


def tried(
    verb: str, arguments: list[str], name: str, digest: Digest, place: Path, kills: int, chain: int,
    draw: random.Random,
) -> Row:  # fmt: skip
    """Kills one verb so often."""
    begun = time.monotonic()
    place.mkdir()
    for _ in range(2):  # the first fills caches
        shutil.rmtree(place)
        place.mkdir()
        since = time.monotonic()
        finish(start(arguments, place / name))
        takes = time.monotonic() - since
    right = digest(place / name)
    runs = landed = failures = partial = 0
    while landed < kills:
        shutil.rmtree(place)
        place.mkdir()
        replaces = verb == "compress" and draw.random() < 0.5
        if replaces:
            (place / name).write_bytes(OLD)
        for at in range(min(chain, kills - landed)):
            since = time.monotonic()
            process = start(arguments, place / name)
            try:
                process.wait(draw.uniform(0, takes))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                landed += 1
            process.communicate()
            runs += 1
            failures += not sound(verb, place / name, digest, right, replaces)
            partial += len(list(place.iterdir())) > (place / name).exists()
            if process.returncode == 0:  # it was faster than its moment
                takes = min(takes, time.monotonic() - since) if at == 0 else takes
                break
        if process.returncode:
            finish(start(arguments, place / name))
        left = {each.name for each in place.iterdir()} - {name, f"{name}.work"}
        failures += (
            digest(place / name) != right or bool(left) or (verb != "sweep" and (place / f"{name}.work").exists())
        )
        print(f"{verb}: {landed} of {kills} kills, {failures} failures {sorted(left)}", flush=True)
    return Row(
        "Interruption", f"kill -9 of {verb} at random moments, typed again", "python benchmarks/kill.py", runs, landed,
        failures, time.monotonic() - begun, {"undisturbed_s": round(takes, 1), "with_something_to_go_on_from": partial},
    )  # fmt: skip


def sound(verb: str, path: Path, digest: Digest, right: str, replaces: bool) -> bool:
    """Whether an output is what it was, absent, or complete; a sweep's grows by whole points."""
    if verb == "sweep":
        return not path.exists() or all(p.status == "done" for p in ResultsFile(path).read().points.values())
    if not path.exists():
        return not replaces
    return digest(path) == right or (replaces and path.read_bytes() == OLD)


if __name__ == "__main__":
    typer.run(main)
