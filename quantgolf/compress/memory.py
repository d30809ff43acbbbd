"""What this process takes, and what the machine has."""

import psutil


def resident_bytes() -> int:
    """Memory this process takes now."""
    return int(psutil.Process().memory_info().rss)


def available_bytes() -> int:
    """Memory that programs can still take before the machine swaps."""
    return int(psutil.virtual_memory().available)
