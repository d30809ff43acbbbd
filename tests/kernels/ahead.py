"""Compiles every kernel a script launches for an H100, on a machine that has none, and prints what the compiler made.

Run as `python ahead.py SCRIPT`, in a process of its own and without the interpreter: a kernel is one or the other from
the moment it is decorated. `ahead` in conftest.py is how tests ask for it.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver, jit

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
launched: list[dict[str, Any]] = []


class Hopper:
    """What triton asks of a driver before it launches, answered as an H100 would."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)


def facts(kernel: Any, name: str) -> dict[str, Any]:
    """Name, PTX instructions of note, registers, bytes of local memory (spills) and of shared memory."""
    ptx = kernel.asm["ptx"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [TOOLS / "cuobjdump", "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
        sass = subprocess.run([TOOLS / "cuobjdump", "-sass", file.name], capture_output=True, text=True, check=True)
    code = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z0-9_.]+)", sass.stdout, re.MULTILINE)
    numbers = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return {
        "name": name,
        "wgmma": ptx.count("wgmma.mma_async"),
        "mma": ptx.count("mma.sync"),
        "registers": numbers["REG"],
        "local": numbers["LOCAL"] + numbers["STACK"],
        "shared": kernel.metadata.shared,
        "warps": kernel.metadata.num_warps,
        "code": code,
    }


def install() -> None:
    """Makes every launch a compilation for Hopper that is written down instead of run."""
    driver.set_active(Hopper())
    run = jit.JITFunction.run

    def record(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        launched.append(facts(kernel, self.fn.__name__))
        return kernel

    jit.JITFunction.run = record


if __name__ == "__main__":
    install()
    exec(compile(sys.argv[1], "script", "exec"), {"torch": torch})
    print(json.dumps(launched))
