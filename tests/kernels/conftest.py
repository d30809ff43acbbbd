"""Kernels run under triton's interpreter where there is no GPU, and on the GPU where there is one."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from quantgolf_kernels.ahead import compiled

sys.path.insert(0, str(Path(__file__).parent))  # for packed_cases.py

GPU = torch.cuda.is_available()
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is decorated: before any of them is imported

MOST_SHARED = 227 * 1024  # bytes a block can have on an H100


@pytest.fixture
def device() -> torch.device:
    """Where kernels run in this process."""
    return torch.device("cuda" if GPU else "cpu")


@pytest.fixture
def ahead() -> Callable[[str], list[dict[str, Any]]]:
    """Compiles what a script launches for sm_90 (`quantgolf_kernels.ahead`) and checks what holds for every kernel: no
    spills, and no more shared memory than the chip has. The script finds `torch` imported."""

    def run(script: str) -> list[dict[str, Any]]:
        found = compiled(script)
        for kernel in found:
            assert kernel["local"] == 0, f"{kernel['name']} spills {kernel['local']} bytes"
            assert kernel["shared"] <= MOST_SHARED, f"{kernel['name']} wants {kernel['shared']} bytes of shared memory"
        return found

    return run
