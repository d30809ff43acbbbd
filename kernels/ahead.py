"""Compiles every kernel that a script launches for an H100, on a machine that has none, and says what came of it.

Triton needs no GPU to compile for one. It does need a process of its own, since a kernel is compiled or interpreted
from the moment it is decorated: `compiled` starts one, which runs `python -m quantgolf_kernels.ahead` and prints its
findings. Tests read registers, spills and tensor-core instructions from them, `quantgolf bench kernels --static`
predicts time.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

Facts = dict[str, Any]
INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?([A-Z0-9_.]+)(.*?);", re.MULTILINE)


def compiled(script: str, timeout: float | None = None) -> list[Facts]:
    """What the compiler made for sm_90 of each launch of a script, in order.

    Args:
        script: Python that calls launchers, with tensors on the CPU that only have shapes (`torch.empty`): nothing
            runs. It finds `torch` imported.
        timeout: seconds, or None.

    Returns:
        For each launch `name`, the counts `wgmma` and `mma` in PTX, `registers`, bytes of `local` (spills) and `shared`
        memory, `warps`, `code` (opcodes in SASS, in order) and `loops` (first and last place in `code` of each).

    Raises:
        RuntimeError: the script fails, with the last line of what it said; or it launches nothing.
    """
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", __spec__.name, script],
        capture_output=True, text=True, env=environment, check=False, timeout=timeout,
    )  # fmt: skip
    if done.returncode:
        said = done.stderr.strip()
        raise RuntimeError(f"kernels were not compiled: {said.splitlines()[-1] if said else done.returncode}\n{said}")
    found: list[Facts] = json.loads(done.stdout.splitlines()[-1])
    if not found:
        raise RuntimeError("the script launched no kernel, expected at least one")
    return found


def loops(sass: str) -> tuple[list[str], list[tuple[int, int]]]:
    """Opcodes of a disassembly, and where in them its loops begin and end: jumps back, but not a trap's to itself."""
    found = [(int(address, 16), opcode, rest) for address, opcode, rest in INSTRUCTION.findall(sass)]
    at = {address: index for index, (address, _, _) in enumerate(found)}
    spans = []
    for index, (_, opcode, rest) in enumerate(found):
        target = re.search(r"0x([0-9a-f]+)\s*$", rest.strip())
        if opcode.split(".")[0] == "BRA" and target is not None:
            first = at.get(int(target[1], 16), index)
            if first < index:
                spans.append((first, index))
    return [opcode for _, opcode, _ in found], spans


def _facts(kernel: Any, name: str, tools: Path) -> Facts:
    ptx = kernel.asm["ptx"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage, sass = (
            subprocess.run([tools / "cuobjdump", what, file.name], capture_output=True, text=True, check=True).stdout
            for what in ("--dump-resource-usage", "-sass")
        )
    numbers = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    code, spans = loops(sass)
    return {
        "name": name,
        "wgmma": ptx.count("wgmma.mma_async"),
        "mma": ptx.count("mma.sync"),
        "registers": numbers["REG"],
        "local": numbers["LOCAL"] + numbers["STACK"],
        "shared": kernel.metadata.shared,
        "warps": kernel.metadata.num_warps,
        "code": code,
        "loops": spans,
    }


def _record(script: str) -> list[Facts]:
    """Runs a script with a driver that answers as an H100's would, and every launch a compilation."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver, jit

    class Hopper:
        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 90, 32)

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

        def get_active_torch_device(self) -> torch.device:
            return torch.device("cuda", 0)

    driver.set_active(Hopper())
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    launched: list[Facts] = []
    known: dict[int, Facts] = {}
    run = jit.JITFunction.run

    def record(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        if id(kernel) not in known:
            known[id(kernel)] = _facts(kernel, self.fn.__name__, tools)
        launched.append(known[id(kernel)])
        return kernel

    jit.JITFunction.run = record
    exec(compile(script, "script", "exec"), {"torch": torch})
    return launched


if __name__ == "__main__":
    print(json.dumps(_record(sys.argv[1])))
