"""The commands that `faults.py` disturbs, how one runs, and what is wrong with how it ended."""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kill import small_model
from reliability_rows import Row
from safetensors import safe_open

from quantgolf.blob import read_blob
from quantgolf.calibrate.store import read_calibration
from quantgolf.checkpoint import read_demo
from quantgolf.errors import QuantGolfError
from quantgolf.sweep.store import ResultsFile

START = [sys.executable, "-c", "from quantgolf.cli import main; main()"]
METHOD = """
import io, torch
def compress(state): buffer = io.BytesIO(); torch.save(state, buffer); return buffer.getvalue()
def decompress(data): return torch.load(io.BytesIO(data), weights_only=True)
"""
LONG = 300.0  # seconds


@dataclass(frozen=True)
class Command:
    """One verb with its arguments; {here} is the folder of inputs and {out} the folder to write to.

    Attributes:
        output: what it writes, "" for nothing; `inputs` are what it reads, in {here}.
    """

    name: str
    arguments: tuple[str, ...]
    output: str = ""
    inputs: tuple[str, ...] = ()


@dataclass
class Ended:
    """How a run ended."""

    code: int
    said: list[str]
    text: str
    seconds: float


@dataclass
class Tally:
    """What was tried of one case, and what broke the promise, a sentence each."""

    case: str
    tried: int = 0
    faults: int = 0
    broken: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def note(self, command: Command, how: str, ended: Ended, problems: Iterable[str], fault: bool = True) -> None:
        """Counts a run."""
        self.tried += 1
        self.faults += fault
        for problem in problems:
            self.broken.append(f"{command.name}, {how}: {problem}")
            print(f"BROKEN {self.broken[-1]}\n{ended.text[-1500:]}", flush=True)

    def row(self, command: str) -> Row:
        """As the results have it."""
        seconds = round(time.monotonic() - self.started, 1)
        detail = {"first failures": self.broken[:3]} if self.broken else {}
        return Row("Interruption", self.case, command, self.tried, self.faults, len(self.broken), seconds, detail)


def commands() -> list[Command]:
    """Every verb that reads or writes files."""
    model = ("{here}/model.safetensors", "--model", "{here}/card.json")
    text = ("--data", "{here}/text.txt", "--tokenizer", "{here}/tokenizer.model", "--length", "64")
    read = ("model.safetensors", "card.json", "text.txt", "tokenizer.model")
    quick = ("--no-guard", "--overwrite")
    return [
        Command("compress", ("compress", *model, *text, "--tokens", "4096", "--max-bytes", "300kB", "--tune-steps", "0",
                "--out", "{out}/a.qg", *quick), "a.qg", read),
        Command("compress --stats", ("compress", *model, "--stats", "{here}/stats", "--bits", "4", "--no-resume",
                "--out", "{out}/b.qg", *quick), "b.qg", ("model.safetensors", "card.json", "stats")),
        Command("calibrate", ("calibrate", *model, *text, "--tokens", "4096", "--out", "{out}/stats"), "stats", read),
        Command("sweep", ("sweep", *model, *text, "--tokens", "2048", "--eval-tokens", "1024", "--bits", "3,4",
                "--solver", "rtn", "--jobs", "1", "--out", "{out}/res.jsonl", "--pick", "{out}/best.json",
                "--overwrite"), "res.jsonl", read),
        Command("bench bpb", ("bench", "bpb", *model, *text, "--tokens", "1024", "--method", "{here}/method.py",
                "--ours", "none", "--out", "{out}/points.jsonl"), "points.jsonl", (*read, "method.py")),
        Command("decompress", ("decompress", "{here}/small.qg", "--out", "{out}/w.safetensors", "--overwrite"),
                "w.safetensors", ("small.qg",)),
        Command("export-decoder", ("export-decoder", "--for", "{here}/small.qg", "--out", "{out}/decoder.py",
                "--overwrite"), "decoder.py", ("small.qg",)),
        Command("plot", ("plot", "{here}/results.jsonl", "--out", "{out}/pictures"), "pictures", ("results.jsonl",)),
        Command("plot page", ("plot", "{here}/results.jsonl", "--out", "{out}/page.html"), "page.html",
                ("results.jsonl",)),
        Command("eval", ("eval", "{here}/small.qg", *text, "--tokens", "2048", "--reference",
                "{here}/model.safetensors", "--model", "{here}/card.json"), "", ("small.qg", *read)),
        Command("inspect", ("inspect", "{here}/small.qg"), "", ("small.qg",)),
        Command("verify", ("verify", "{here}/small.qg", "{here}/small.qg"), "", ("small.qg",)),
        Command("diff", ("diff", "{here}/small.qg", "{here}/model.safetensors", "--all"), "",
                ("small.qg", "model.safetensors")),
    ]  # fmt: skip


def prepare(folder: Path) -> Path:
    """The inputs of all commands; returns where they lie."""
    here = folder / "inputs"
    here.mkdir()
    small_model(here)
    shutil.copy(read_demo().tokenizer, here / "tokenizer.model")
    lines = (f"def f{i}(x): return {i * i} + x  # the square of {i}\n" for i in range(3000))
    (here / "text.txt").write_text("".join(lines), encoding="utf-8")
    (here / "method.py").write_text(METHOD, encoding="utf-8")
    by_name = {each.name: each for each in commands()}
    for name, given, made in (
        ("calibrate", "stats", "stats"), ("compress --stats", "b.qg", "small.qg"),
        ("sweep", "res.jsonl", "results.jsonl"),
    ):  # fmt: skip
        ended = run(by_name[name], here, folder)
        if ended.code != 0:
            raise QuantGolfError(f"{name} does not run undisturbed: {ended.text[-2000:]}")
        shutil.move(folder / given, here / made)
    return here


def run(
    command: Command, here: Path, out: Path, disturb: Callable[[subprocess.Popen[str]], None] | None = None,
    stdout: int | None = None,
) -> Ended:  # fmt: skip
    """Runs a command; `disturb` is called once it has started."""
    places = {"here": str(here), "out": str(out)}
    line = [*START, *(each.format(**places) for each in command.arguments)]
    started = time.monotonic()
    process = subprocess.Popen(
        line, stdout=subprocess.PIPE if stdout is None else stdout, stderr=subprocess.PIPE, text=True, cwd=here,
        start_new_session=True,
    )  # fmt: skip
    try:
        if disturb is not None:
            disturb(process)
        output, text = process.communicate(timeout=LONG)
    finally:
        process.kill()
    said = [line for line in text.splitlines() if line.startswith("quantgolf: ")]
    return Ended(process.returncode, said, text + (output or ""), time.monotonic() - started)


def problems_of(ended: Ended, codes: Iterable[int], silent: Iterable[int] = (0,)) -> Iterator[str]:
    """What is wrong with how a run ended; with codes in `silent` it may say nothing."""
    if "Traceback" in ended.text or "Exception ignored" in ended.text:
        yield "a traceback"
    if ended.code not in codes:
        yield f"exit code {ended.code}, expected one of {tuple(codes)}"
    if len(ended.said) != (ended.code not in silent):
        yield f"{len(ended.said)} lines of its own with exit code {ended.code}"


def rests(out: Path, command: Command, before: bytes | None = None) -> Iterator[str]:
    """What is wrong with what a run left: temporary files, or an output that is neither whole nor what it was."""
    for path in out.rglob("*.qgtmp"):
        yield f"{path.name} is left"
    path = out / command.output
    if not command.output or not path.exists() or (before is not None and path.read_bytes() == before):
        return
    try:
        if path.suffix == ".qg":
            read_blob(path)
        elif path.name == "stats":
            read_calibration(path)
        elif path.suffix == ".jsonl":
            if notes := ResultsFile(path).read().notes:
                yield notes[0]
        elif path.suffix == ".safetensors":
            with safe_open(path, "pt") as tensors:
                tensors.keys()
        elif path.suffix == ".py":
            compile(path.read_bytes(), str(path), "exec")
        elif path.suffix == ".html" and not path.read_text(encoding="utf-8").rstrip().endswith("</html>"):
            yield "half a page"
    except (QuantGolfError, OSError, SyntaxError, ValueError) as error:
        yield f"{path.name} is not whole: {error}"


@contextmanager
def disk(kilobytes: int) -> Iterator[Path]:
    """A file system of that size."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", folder], check=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "-l", folder], check=True)


def fresh(folder: Path) -> Path:
    """An empty folder to write to."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    return out
