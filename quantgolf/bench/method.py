"""A user's method, `compress(state_dict) -> bytes` and `decompress(bytes) -> state_dict`, run so that nothing leaks.

What was compressed comes back in another process, which gets the bytes and no weights. Run as a module this is that
process.
"""

import hashlib
import importlib.util
import inspect
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from quantgolf.checkpoint import Checkpoint, fill
from quantgolf.checkpoint.match import match
from quantgolf.checkpoint.read import listed
from quantgolf.errors import QuantGolfError

# What `compress` may ask for beside the weights, by the name of a parameter.
ASKED = {
    "max_bytes": "the limit in bytes",
    "model": "the float module",
    "batches": "calibration text, a list of (inputs, targets), int64 [B, L] each",
    "calibration": "quantgolf's statistics of it (quantgolf.types.Calibration)",
}
PROTOCOL = "expected compress(state_dict, …) -> bytes and decompress(bytes) -> state_dict"


@dataclass(frozen=True)
class Method:
    """A method of a script.

    Attributes:
        script: where it is from; `digest` of its text.
        name: of the class or object in it, or of the script where its functions are the method.
        compress, decompress: the method.
        asks: which of `ASKED` the first wants.
    """

    script: Path
    digest: str
    name: str
    compress: Callable[..., Any]
    decompress: Callable[..., Any]
    asks: frozenset[str]

    @property
    def spelled(self) -> str:
        """As `open_method` takes it."""
        return str(self.script) if self.name == self.script.stem else f"{self.script}:{self.name}"


@dataclass(frozen=True)
class Written:
    """What a method made: its file's bytes, and the seconds that took."""

    data: bytes
    seconds: float


def open_method(spelled: str) -> Method:
    """Runs a script and finds the method in it.

    Args:
        spelled: `path/to/script.py`, whose functions compress and decompress are the method, or
            `path/to/script.py:Name`, a class (called without arguments) or an object that has both.

    Raises:
        QuantGolfError: no such script or name, a script that fails, or no method.
    """
    path, colon, name = spelled.rpartition(":")
    if not (colon and path.endswith(".py")):
        path, name = spelled, ""
    script = Path(path).resolve()
    if script.suffix != ".py" or not script.is_file():
        raise QuantGolfError(f"method {spelled}: no such script, expected path/to/script.py or path/to/script.py:Name")
    found = _run(script)
    if name:
        if not hasattr(found, name):
            raise QuantGolfError(f"method {spelled}: the script has no {name!r}; {PROTOCOL} in a class or object of it")
        found = getattr(found, name)
        if isinstance(found, type):
            found = _tried(script, f"{name}()", found)
    pair = [getattr(found, each, None) for each in ("compress", "decompress")]
    if not (callable(pair[0]) and callable(pair[1])):
        missing = " and ".join(each for each, one in zip(("compress", "decompress"), pair, strict=True) if one is None)
        raise QuantGolfError(f"method {spelled}: has no {missing or 'function'}; {PROTOCOL}")
    digest = hashlib.blake2b(script.read_bytes(), digest_size=8).hexdigest()
    return Method(script, digest, name or script.stem, pair[0], pair[1], _asks(spelled, pair[0]))


def compressed(method: Method, source: Checkpoint, given: Mapping[str, Any]) -> Written:
    """Has a method compress the weights of a checkpoint, each storage once, as copies in the dtype they are stored in.

    Args:
        method: from `open_method`.
        source: what to compress.
        given: of `ASKED`, at least what the method asks for.

    Raises:
        QuantGolfError: it fails, returns no bytes, or more than `max_bytes`.
    """
    weights = {name: tensor.detach().clone() for name, tensor in source.tensors.items()}
    wanted = {name: given[name] for name in sorted(method.asks)}
    started = time.perf_counter()
    data = _tried(method.script, "compress()", lambda: method.compress(weights, **wanted))
    seconds = time.perf_counter() - started
    if not isinstance(data, bytes | bytearray):
        raise QuantGolfError(f"{method.name}: compress() returned {type(data).__name__}, expected bytes")
    limit = given.get("max_bytes")
    if limit is not None and len(data) > limit:
        raise QuantGolfError(f"{method.name}: compress() returned {len(data):,} bytes, expected at most {limit:,}")
    return Written(bytes(data), seconds)


def restored(method: Method, data: bytes, source: Checkpoint) -> tuple[dict[str, Tensor], float]:
    """The weights that a method makes of a file in a fresh process, which starts in an empty folder and is given the
    script and the file; and the seconds that took, the start of Python with torch included.

    Raises:
        QuantGolfError: it fails, or gives back other names, shapes or kinds of numbers, or some that are not finite.
    """
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / "file", Path(folder) / "restored.safetensors"
        file.write_bytes(data)
        (empty := Path(folder) / "empty").mkdir()
        command = [sys.executable, "-m", __name__, method.spelled, str(file), str(out)]
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace", cwd=empty)
        seconds = time.perf_counter() - started
        if done.returncode == QuantGolfError.exit_code and done.stderr.strip():
            raise QuantGolfError(done.stderr.strip().splitlines()[-1])
        if done.returncode or not out.is_file():
            said = " ".join(done.stderr.strip().splitlines()[-1:])
            raise QuantGolfError(
                f"{method.name}: the fresh process ended with exit code {done.returncode} in decompress()"
                f"{f' after {said!r}' if said else ''}, expected weights; see whether memory ran out"
            )
        # Read into memory of its own: the folder goes away.
        found = {name: tensor.clone() for name, tensor in load_file(out).items()}
    where = f"{method.name}: what decompress() returned"
    problems = match(source.module, found).problems or [
        # In fp32, because torch does not ask 8-bit floats.
        f"{name} has NaN or infinity"
        for name, tensor in found.items()
        if not tensor.float().isfinite().all()
    ]
    if problems:
        raise QuantGolfError(
            f"{where} is not what compress() got: {listed(problems)}; expected every name with its shape and finite "
            "numbers"
        )
    return found, seconds


def restore_to(spelled: str, file: Path, out: Path) -> None:
    """What the fresh process does: a file's weights as safetensors.

    Raises:
        QuantGolfError: the method fails, or returns no tensors by name.
    """
    method = open_method(spelled)
    found = _tried(method.script, "decompress()", lambda: method.decompress(file.read_bytes()))
    if not isinstance(found, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in found.items()
    ):
        held = type(found).__name__ if not isinstance(found, Mapping) else "something else in it"
        raise QuantGolfError(f"{method.name}: decompress() returned {held}, expected a dict of tensors by name")
    weights = {name: tensor.detach() for name, tensor in found.items()}
    _tried(
        method.script,
        "writing what decompress() returned",
        lambda: save_file({name: tensor.cpu().clone().contiguous() for name, tensor in weights.items()}, out),
    )


def filled(source: Checkpoint, weights: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the checkpoint's module with other weights, all of them."""
    module = deepcopy(source.module)
    fill(module, weights, "what decompress() returned")
    return module


def _run(script: Path) -> Any:
    name = f"quantgolf_method_{script.stem}"
    spec = importlib.util.spec_from_file_location(name, script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and torch look a class's module up by name
    sys.path.insert(0, str(script.parent))
    try:
        _tried(script, "the script", lambda: spec.loader.exec_module(module))  # type: ignore[union-attr]
    finally:
        sys.path.remove(str(script.parent))
    return module


def _asks(spelled: str, compress: Callable[..., Any]) -> frozenset[str]:
    try:
        parameters = list(inspect.signature(compress).parameters.values())
    except (TypeError, ValueError) as error:
        raise QuantGolfError(f"method {spelled}: compress has no signature ({error}); {PROTOCOL}") from error
    if not parameters:
        raise QuantGolfError(f"method {spelled}: compress takes nothing; {PROTOCOL}")
    named = [p for p in parameters[1:] if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    foreign = [p.name for p in named if p.name not in ASKED and p.default is p.empty]
    if foreign:
        known = "; ".join(f"{name}: {what}" for name, what in ASKED.items())
        raise QuantGolfError(f"method {spelled}: compress asks for {', '.join(foreign)}, expected any of {known}")
    return frozenset(p.name for p in named if p.name in ASKED)


def _tried(script: Path, what: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except QuantGolfError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's own code raises
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(script)]
        where = f"{script.name}, line {lines[-1]}" if lines else script.name
        raise QuantGolfError(f"method {where}: {what} failed, {type(error).__name__}: {error}") from error


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    try:
        restore_to(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
    except QuantGolfError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        sys.exit(QuantGolfError.exit_code)
