"""What a measurement was taken on, and what every line of results says about it."""

import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from quantgolf.errors import QuantGolfError


@dataclass(frozen=True)
class Gpu:
    """A GPU: its name, bytes of L2, multiprocessors, bytes of memory."""

    device: torch.device
    name: str
    cache_bytes: int
    processors: int
    memory_bytes: int


def open_gpu(what: str, device: torch.device | None = None) -> Gpu:
    """The GPU `device`, or the current one.

    Raises:
        QuantGolfError: torch sees none; `what` says what would have been measured.
    """
    if not torch.cuda.is_available():
        raise QuantGolfError(f"{what} is measured on a GPU, expected one that torch sees, and none is here")
    if device is None or device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    facts = torch.cuda.get_device_properties(device)
    return Gpu(device, facts.name, facts.L2_cache_size, facts.multi_processor_count, facts.total_memory)


def conditions(gpu: Gpu | None) -> dict[str, Any]:
    """GPU, driver, versions and day, for a line of results."""
    return {
        "gpu": None if gpu is None else gpu.name,
        "driver": _driver() if gpu is not None else None,
        "versions": {name: _version(name) for name in ("torch", "triton", "quantgolf")},
        "cuda": torch.version.cuda,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _driver() -> str:
    """The version of the kernel module, as /proc says it."""
    try:
        with open("/proc/driver/nvidia/version", encoding="utf-8") as file:
            words = file.readline().split()
    except OSError:
        return "not known: /proc/driver/nvidia/version cannot be read"
    return next((word for word in words if word[:1].isdigit()), " ".join(words))
