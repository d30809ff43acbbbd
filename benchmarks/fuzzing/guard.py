"""One input under watch: what may come out, how much memory it may take, and what a finding is called."""

import hashlib
import resource
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fuzzing.targets import TARGETS, Limits
from quantgolf.errors import QuantGolfError

PAGE = resource.getpagesize()
# What an input may add to the process: 1 MB of tensors in fp32 with what decoders hold beside them, about ten times as
# much at the worst (levels of F8), tables of all contexts (2 MB), a window of zstd (8 MB), and the allocators' slack.
MOST_MEMORY = 64 << 20


@dataclass(frozen=True)
class Finding:
    """Something that must not happen.

    Attributes:
        key: the same for the same fault: the exception and where it was raised.
        what: for people.
    """

    key: str
    what: str


def warm(target: str, seeds: Sequence[bytes]) -> None:
    """Runs a target on its seeds, all of which it takes: what is compiled or loaded once takes memory of its own."""
    for seed in seeds:
        TARGETS[target].run(seed, Limits())


def tried(target: str, data: bytes, limits: Limits) -> Finding | None:
    """Runs a target on an input; what it finds, or None if the input was taken or refused as promised."""
    before, peak = _now(), _peak()
    try:
        TARGETS[target].run(data, limits)
    except QuantGolfError as error:
        message = str(error)
        if not message.isprintable() or len(message) > 5000:
            return Finding(f"message-{_place(error)}", f"{message[:200]!r} is no short line of text")
    except MemoryError as error:
        return Finding(f"memory-{_place(error)}", traceback.format_exc())
    except Exception as error:
        return Finding(f"{type(error).__name__}-{_place(error)}", traceback.format_exc())
    if (after := _peak()) > peak and after - before > MOST_MEMORY:
        return Finding("memory", f"{(after - before) >> 20} MiB more, expected at most {MOST_MEMORY >> 20}")
    return None


def saved(finding: Finding, target: str, data: bytes, folder: Path) -> bool:
    """Keeps the input of a finding that is not there yet, with what was found; whether it was new."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{target}-{hashlib.blake2b(finding.key.encode(), digest_size=4).hexdigest()}"
    if path.exists():
        return False
    path.write_bytes(data)
    path.with_suffix(".txt").write_text(f"{finding.key}\n{finding.what}\n", encoding="utf-8")
    return True


def _place(error: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/quantgolf/" in frame.filename]
    return f"{Path(frames[-1].filename).name}:{frames[-1].name}:{frames[-1].line}" if frames else "target"


def _now() -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * PAGE


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
