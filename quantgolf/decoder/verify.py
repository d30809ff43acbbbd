"""Whether an exported decoder restores files' weights: it is run, in a process of its own, and says digests of them."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from quantgolf.blob import read_blob
from quantgolf.errors import QuantGolfError
from quantgolf.runtime import digest, restored
from quantgolf.types import CodedModel

RUN = """
import hashlib, json, runpy, sys, torch
load = runpy.run_path(sys.argv[1])["load"]
with open(sys.argv[2], "w") as out:
    for path in sys.argv[3:]:
        try:
            found, known = {}, {}
            for name, tensor in load(path, exact=True)[0].items():
                if id(tensor) not in known:
                    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
                    known[id(tensor)] = tensor, hashlib.blake2b(data, digest_size=16).hexdigest()
                found[name] = [str(tensor.dtype), list(tensor.shape), known[id(tensor)][1]]
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
        print(json.dumps(found), file=out, flush=True)
"""


@dataclass(frozen=True)
class Seen:
    """What a reader made of a tensor: its dtype and shape, and a digest of its bits (`runtime.digest`)."""

    dtype: str
    shape: tuple[int, ...]
    digest: str

    @classmethod
    def of(cls, tensor: Tensor) -> "Seen":
        """That of a tensor."""
        return cls(str(tensor.dtype), tuple(tensor.shape), digest(tensor))


def verify(decoder: bytes, path: str | Path) -> float:
    """Seconds that a decoder's process takes to restore the file at `path`, to the bit as `quantgolf.load` does.

    Raises:
        FormatError: `path` is damaged or no quantgolf file.
        QuantGolfError: the decoder fails, or restores something else.
    """
    _, coded = read_blob(path)
    expected = seen_of(coded)
    (found,), seconds = seen_by(decoder, [path])
    assert found is not None  # nothing stops it
    refuse_other(found, expected, path)
    return seconds


def seen_of(coded: CodedModel) -> dict[str, Seen]:
    """What quantgolf makes of every tensor of a file, by all of its names.

    Raises:
        FormatError: streams that do not fit their tensors.
    """
    found: dict[str, Seen] = {}
    for entry, whole in restored(coded):
        found.update(dict.fromkeys((entry.name, *entry.aliases), Seen.of(whole)))
    return found


def seen_by(
    decoder: bytes, paths: Sequence[str | Path], patience: float | None = None
) -> tuple[list[dict[str, Seen] | str | None], float]:
    """What a decoder makes of every tensor of each file, what it raised, or None where it was stopped; and the seconds
    that took, the start of Python with torch included.

    Args:
        decoder: Python, which is executed, in one process for all files, and another after each that it was stopped at.
        paths: of files, read one after the other.
        patience: seconds after which it is stopped if it has come to the end of no file meanwhile; None: never.
    """
    found: list[dict[str, Seen] | str | None] = []
    begin = time.perf_counter()
    while len(found) < len(paths):
        found += _run(decoder, paths[len(found) :], patience)
    return found, time.perf_counter() - begin


def _run(decoder: bytes, paths: Sequence[str | Path], patience: float | None) -> list[dict[str, Seen] | str | None]:
    """What one process makes of all files, or of those up to the one that it was stopped at."""
    with tempfile.TemporaryDirectory() as folder:
        code, out, err = (Path(folder) / name for name in ("decoder.py", "seen.jsonl", "stderr"))
        code.write_bytes(decoder)
        out.touch()
        command = [sys.executable, "-c", RUN, str(code), str(out), *(str(Path(path).resolve()) for path in paths)]
        with err.open("wb") as errors:
            process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=errors)
        try:
            stopped = not _ends(process, out, patience)
        finally:
            process.kill()
            process.wait()
        said = [json.loads(line) for line in _lines(out)]
        last = (err.read_text(encoding="utf-8", errors="replace").strip() or "no message").splitlines()[-1]
    found: list[dict[str, Seen] | str | None] = [each if isinstance(each, str) else _seen(each) for each in said]
    if len(found) == len(paths):
        return found
    ended = f"its process ended with exit code {process.returncode} ({last})"
    return [*found, None] if stopped else found + [ended] * (len(paths) - len(found))


def _ends(process: subprocess.Popen[bytes], out: Path, patience: float | None) -> bool:
    """Waits for the end of a process, but no longer than `patience` seconds for another line."""
    before = -1
    while (now := len(_lines(out))) > before:
        before = now
        try:
            process.wait(patience)
            return True
        except subprocess.TimeoutExpired:
            continue
    return False


def _lines(out: Path) -> list[str]:
    """Those that were written to their ends."""
    return out.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()


def refuse_other(found: Mapping[str, Seen] | str, expected: Mapping[str, Seen], path: str | Path) -> None:
    """Refuses a decoder that made something else of a file than quantgolf does.

    Raises:
        QuantGolfError: what is other first.
    """
    if isinstance(found, str):
        raise QuantGolfError(f"the decoder does not run on file {path} ({found}), expected weights; export it anew")
    if list(found) != list(expected):
        raise QuantGolfError(f"the decoder restores {len(found)} tensors, expected the {len(expected)} of file {path}")
    for name, wanted in expected.items():
        if found[name] != wanted:
            raise QuantGolfError(f"the decoder restores {name} otherwise than quantgolf, expected the same bits")


def _seen(said: Mapping[str, tuple[str, list[int], str]]) -> dict[str, Seen]:
    return {name: Seen(dtype, tuple(shape), bits) for name, (dtype, shape, bits) in said.items()}
