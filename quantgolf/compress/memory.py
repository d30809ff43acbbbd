"""What this process takes, and what the machine has."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

PROCESS = Path("/proc/self")


def resident_bytes() -> int:
    """Memory this process takes now."""
    return int(psutil.Process().memory_info().rss)


def available_bytes() -> int:
    """Memory that programs can still take before the machine swaps."""
    return int(psutil.virtual_memory().available)


def growth_of(work: Callable[[], object]) -> int:
    """Bytes by which the process grew above what it takes now while `work` ran, at its peak; 0 where the system does
    not tell (it does on Linux)."""
    before, told = resident_bytes(), False
    with suppress(OSError):
        (PROCESS / "clear_refs").write_text("5")  # the peak counts from here
        told = True
    work()
    if not told:
        return 0
    lines = (PROCESS / "status").read_text().splitlines()
    peak = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
    return max(0, peak - before)
