"""Whether an exported decoder restores a file's weights: it is run, in a process of its own."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from quantgolf.blob import read_blob
from quantgolf.errors import QuantGolfError
from quantgolf.runtime import restore

RUN = (
    "import runpy, sys, torch; load = runpy.run_path(sys.argv[1])['load']; "
    "torch.save(load(sys.argv[2], exact=True)[0], sys.argv[3])"
)


def verify(decoder: bytes, path: str | Path) -> float:
    """Seconds that a decoder's process takes to restore the file at `path`, to the bit as `quantgolf.load` does.

    Raises:
        FormatError: `path` is damaged or no quantgolf file.
        QuantGolfError: the decoder fails, or restores something else.
    """
    _, coded = read_blob(path)
    expected = restore(coded)
    with tempfile.TemporaryDirectory() as folder:
        code, out = Path(folder) / "decoder.py", Path(folder) / "out.pt"
        code.write_bytes(decoder)
        begin = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", RUN, str(code), str(Path(path).resolve()), str(out)],
            cwd=folder, capture_output=True, text=True,
        )  # fmt: skip
        seconds = time.perf_counter() - begin
        if done.returncode:
            last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
            raise QuantGolfError(f"the decoder does not run on file {path} ({last}), expected weights; export it anew")
        found = torch.load(out, weights_only=True)
    if list(found) != list(expected):
        raise QuantGolfError(f"the decoder restores {len(found)} tensors, expected the {len(expected)} of file {path}")
    for name, tensor in expected.items():
        if not _same(tensor, found[name]):
            raise QuantGolfError(f"the decoder restores {name} otherwise than quantgolf, expected the same bits")
    return seconds


def _same(one: Tensor, other: Tensor) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    bits = [t.contiguous().reshape(-1).view(torch.uint8) if t.numel() else t.new_empty(0) for t in (one, other)]
    return torch.equal(*bits)
