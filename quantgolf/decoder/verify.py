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
            found = {}
            for name, tensor in load(path, exact=True)[0].items():
                data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
                bits = hashlib.blake2b(data, digest_size=16).hexdigest()
                found[name] = [str(tensor.dtype), list(tensor.shape), bits]
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


def seen_by(decoder: bytes, paths: Sequence[str | Path]) -> tuple[list[dict[str, Seen] | str], float]:
    """What a decoder makes of every tensor of each file, or what it raised; and the seconds its one process took, the
    start of Python with torch included.

    Args:
        decoder: Python, which is executed.
        paths: of files, read one after the other.
    """
    with tempfile.TemporaryDirectory() as folder:
        code, out = Path(folder) / "decoder.py", Path(folder) / "seen.jsonl"
        code.write_bytes(decoder)
        begin = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", RUN, str(code), str(out), *(str(Path(path).resolve()) for path in paths)],
            cwd=folder, capture_output=True, text=True, encoding="utf-8", errors="replace",
        )  # fmt: skip
        seconds = time.perf_counter() - begin
        lines = out.read_text(encoding="utf-8").splitlines() if out.is_file() else []
    last = (done.stderr.strip() or "no message").splitlines()[-1]
    ended = f"its process ended with exit code {done.returncode} ({last})"
    said = [json.loads(line) for line in lines] + [ended] * (len(paths) - len(lines))
    return [each if isinstance(each, str) else _seen(each) for each in said], seconds


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
