"""Our side of a peer's job: lays it out, runs the peer's process, weighs the files and opens what came back."""

import json
import lzma
import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from quantgolf.errors import QuantGolfError

from .protocol import FILES, JOB, REPORT, WEIGHTS

HOST = Path(__file__).with_name("host.py")
LOG = "log.txt"
HOURS = 3 * 3600.0
OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True)
class Answer:
    """What a peer made of one variant.

    Attributes:
        variant: its name.
        error: why there is nothing, in one line; empty where there is.
        bytes: of its files as they lie on disk; `xz_bytes` of the same after `xz -9e`, file by file.
        tensors: every tensor of the model as the peer read it back, fp32.
        seconds: to quantize and write, and to read back. `versions`: of the peer's packages.
    """

    variant: str
    error: str
    bytes: int = 0
    xz_bytes: int = 0
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


def ask(peer: str, python: Path, folder: Path, seconds: float = HOURS) -> Iterator[Answer]:
    """Runs a peer on a job that was laid into `folder`, and gives the variants one by one as they are opened.

    Raises:
        QuantGolfError: the peer's process ended before it could report on anything.
    """
    names = json.loads((folder / JOB).read_text("utf-8"))["variants"]
    log = folder / LOG
    with log.open("wb") as stream:
        try:
            code = subprocess.run(
                [python, "-P", HOST, peer, folder], stdout=stream, stderr=subprocess.STDOUT, timeout=seconds,
                env=os.environ | OFFLINE, check=False,
            ).returncode  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise QuantGolfError(f"peer {peer}: {error}; see `frontier.py environments`") from error
    if code and not any((folder / name / REPORT).exists() for name in names):
        raise QuantGolfError(f"peer {peer} ended with {code}: {last_line(log)}")
    for name in names:
        yield answer_of(folder, name)


def answer_of(folder: Path, name: str) -> Answer:
    """What lies in the folder of one variant."""
    place = folder / name
    if not (place / REPORT).exists():
        return Answer(name, f"its process ended: {last_line(folder / LOG)}")
    report = json.loads((place / REPORT).read_text("utf-8"))
    if report["error"]:
        return Answer(name, report["error"], versions=report["versions"])
    size, packed = weigh(sorted(path for path in (place / FILES).rglob("*") if path.is_file()))
    return Answer(name, "", size, packed, load_file(place / WEIGHTS), report["seconds"], report["versions"])


def weigh(files: Iterable[Path]) -> tuple[int, int]:
    """Bytes of files, and of the same after `xz -9e`."""
    size = packed = 0
    for path in files:
        data = path.read_bytes()
        size += len(data)
        packed += len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))
    return size, packed


def last_line(log: Path) -> str:
    """The last words of a log, which for Python are the error."""
    lines = log.read_text("utf-8", errors="replace").split("\n") if log.exists() else []
    return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "it said nothing")
