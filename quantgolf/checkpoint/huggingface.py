"""Hugging Face folders and GGUF files, through `transformers` where it is installed.

transformers is imported when a model asks for it, never before. Nothing is downloaded and no code that lies beside
a model is run: folders that need that are opened with a `script.py:factory` of the user's own.
"""

import copy
import functools
import importlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from quantgolf.checkpoint.finite import DIRECT
from quantgolf.checkpoint.match import first_names, state_of
from quantgolf.checkpoint.read import listed, reason
from quantgolf.errors import QuantGolfError

PREFIX = "hf:"
EXPECTED = "expected hf:PATH with a folder that has a config.json, or a .gguf file"


def is_hugging_face(path: Path) -> bool:
    """Whether a path is a folder with a `config.json`."""
    return (path / "config.json").is_file()


def path_of(model: object) -> Path | None:
    """The PATH of `hf:PATH`; None for any other model."""
    text = str(model) if isinstance(model, str | Path) else ""
    return Path(text.removeprefix(PREFIX)).expanduser() if text.startswith(PREFIX) else None


def from_config(path: Path) -> nn.Module:
    """The causal language model of a folder's `config.json` or a GGUF file's header, in evaluation mode and fp32.

    Its weights are memory that nothing was written to yet: `fill` gives them values. Buffers are computed.

    Raises:
        QuantGolfError: transformers is not installed, no such model, or one it does not know.
    """
    return _build(path, _config(path))


def read_gguf(path: Path) -> tuple[nn.Module, dict[str, Tensor]]:
    """What `from_config` gives for a GGUF file, and the file's tensors for it, dequantized to fp32.

    Raises:
        QuantGolfError: as `from_config`; or weights that are missing, surplus or of another shape.
    """
    config = _config(path)
    loaded = _pretrained(path, path.parent, gguf_file=path.name, config=copy.deepcopy(config), dtype=torch.float32)
    # What transformers loads from GGUF refuses .float() and the like: its weights move into a module of their own.
    return _build(path, config), stored_once(loaded)


def convert(folder: Path, stored: Iterable[Tensor]) -> dict[str, Tensor]:
    """A folder's tensors under today's names, as transformers itself loads them, each storage once.

    Older folders, and those of mixtures of experts, store other names and shapes than their module has. The tensors
    come in the dtype that holds all `stored` ones: what config.json says of it need not be true.

    Raises:
        QuantGolfError: as `read_gguf`.
    """
    config = _config(folder)
    if getattr(config, "quantization_config", None) is not None:
        raise QuantGolfError(
            f"checkpoint {folder}: config.json has a quantization_config, expected a model in floating point; take the "
            "one it was quantized from"
        )
    floats = {tensor.dtype for tensor in stored if tensor.dtype in DIRECT}
    dtype = functools.reduce(torch.promote_types, floats) if floats else torch.float32
    return stored_once(_pretrained(folder, folder, dtype=dtype))


def stored_once(module: nn.Module) -> dict[str, Tensor]:
    """The module's own tensors, shared with it, under the first name of each storage."""
    state = state_of(module)
    first = first_names(state)
    return {name: tensor.detach() for name, tensor in state.items() if first[name] == name}


def _build(path: Path, config: Any) -> nn.Module:
    config.use_cache = False  # keys and values are kept for generation alone; logits do not depend on it
    with _quietly(), _one_line(path), _KeepUnwritten():
        auto = _transformers(gguf=False).AutoModelForCausalLM
        module: nn.Module = auto.from_config(config, dtype=torch.float32, trust_remote_code=False)
    return module.eval()


def _config(path: Path) -> Any:
    gguf = path.suffix == ".gguf" and path.is_file()
    if not gguf and not is_hugging_face(path):
        what = "has no config.json" if path.exists() else "no such file or folder"
        raise QuantGolfError(f"model {PREFIX}{path}: {what}, {EXPECTED}")
    transformers = _transformers(gguf)
    place, more = (path.parent, {"gguf_file": path.name}) if gguf else (path, {})
    with _quietly(), _one_line(path):
        return transformers.AutoConfig.from_pretrained(
            str(place), local_files_only=True, trust_remote_code=False, **more
        )


def _pretrained(path: Path, folder: Path, **options: Any) -> nn.Module:
    with _quietly(), _one_line(path):
        module, info = _transformers(gguf=False).AutoModelForCausalLM.from_pretrained(
            str(folder),
            local_files_only=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are in `info` then
            output_loading_info=True,
            **options,
        )
    # transformers goes on with random numbers where weights are missing
    problems = [f"missing {name}" for name in sorted(info["missing_keys"])]
    problems += [f"surplus {name}" for name in sorted(info["unexpected_keys"])]
    problems += [
        f"{name} is {list(stored)} where the model has {list(own)}" for name, stored, own in info["mismatched_keys"]
    ]
    problems += [reason(ValueError(str(text))) for text in info.get("error_msgs", ())]
    if problems:
        raise QuantGolfError(f"checkpoint {path} does not match its own configuration: {listed(problems)}")
    built: nn.Module = module
    return built


def _transformers(gguf: bool) -> Any:
    """transformers, and whether what it reads GGUF files with is there too."""
    try:
        for needed in ("gguf", "accelerate") if gguf else ():
            importlib.import_module(needed)
        return importlib.import_module("transformers")
    except ImportError as error:
        raise QuantGolfError(
            f"{PREFIX} models need transformers, gguf and accelerate, and one cannot be imported ({reason(error)}); "
            "pip install 'quantgolf[hf]'"
        ) from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' own reports and bars: what matters in them is raised."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # transformers raises what its readers and model code raise
        raise QuantGolfError(
            f"model {PREFIX}{path}: transformers cannot open it, {type(error).__name__}: {reason(error)}; {EXPECTED}, "
            "of a causal language model that transformers knows without code of its own"
        ) from error


KEPT = ("requires_grad_",)


class _KeepUnwritten(TorchFunctionMode):
    """While entered, parameters are not initialised: memory that is never written is never resident, so that a module
    costs nothing before its weights come."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        first = args[0] if args else (kwargs or {}).get("tensor")
        name = getattr(func, "__name__", "")
        if isinstance(first, nn.Parameter) and name.endswith("_") and not name.startswith("_") and name not in KEPT:
            return first
        return func(*args, **(kwargs or {}))
