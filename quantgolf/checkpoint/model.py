"""Modules to put checkpoints into: the reference family from its card, anybody's `script.py:factory`, or
Hugging Face's `hf:PATH`."""

import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from quantgolf.checkpoint import huggingface
from quantgolf.checkpoint.read import reason, shortened
from quantgolf.checkpoint.sources import digest_of_imports, watched
from quantgolf.errors import QuantGolfError
from quantgolf.models.golf import Golf, GolfConfig


def build_model(model: str | Path) -> nn.Module:
    """The module named by `model`, in evaluation mode on the CPU, with whatever weights it starts from.

    Args:
        model: a card (`card.json`, or the folder that holds it) of the reference family;
            `path/to/script.py:factory`, where `factory()` returns an `nn.Module` whose `forward(tokens)` gives
            logits or whose `forward(tokens, targets)` gives a loss (a script is executed: name only your own); or
            `hf:PATH`, a folder with Hugging Face's `config.json` or a `.gguf` file, of which the configuration is
            read and not the weights.

    Raises:
        QuantGolfError: no such file or factory, a card of another family, a factory that fails, or a model
            `transformers` does not know.
    """
    place = huggingface.path_of(model)
    if place is not None:
        return huggingface.from_config(place)
    text = str(model)
    path, colon, factory = text.rpartition(":")
    if colon and path.endswith(".py"):
        return _from_script(Path(path), factory)
    if text.endswith(".py"):
        raise QuantGolfError(f"model {text}: names no function, expected path/to/script.py:factory")
    return module_from_description(_read_card(Path(text)))


def describe_model(model: str | Path | nn.Module) -> dict[str, Any] | None:
    """What a file stores to rebuild the module: the card's family and config; None where the user brings it."""
    if isinstance(model, nn.Module):
        model = unwrap(model)
    if isinstance(model, Golf):
        return {"family": "golf", "config": model.config.described()}
    if isinstance(model, nn.Module) or ".py:" in str(model) or huggingface.path_of(model) is not None:
        return None
    card = _read_card(Path(model))
    return {"family": card["family"], "config": card["config"]}


def code_of(model: str | Path | nn.Module) -> str:
    """What computes with the weights, so that statistics of another computation are told apart: a script, which has
    run, by its text and those of its own modules that it imports, a Hugging Face model by its config, a module by its
    class."""
    if isinstance(model, nn.Module):
        return type(unwrap(model)).__qualname__
    place = huggingface.path_of(model)
    path, colon, factory = str(model).rpartition(":")
    if place is None and not (colon and path.endswith(".py")):
        return "card"
    file = Path(path) if place is None else place / "config.json" if place.is_dir() else None
    # A GGUF file holds its config beside the weights, whose fingerprint is taken anyway.
    digest = "gguf" if file is None else hashlib.blake2b(file.read_bytes(), digest_size=8).hexdigest()
    if place is not None:
        return digest
    imports = digest_of_imports(Path(path))
    return f"{factory} of {digest}{imports and f' with {imports}'}"


def unwrap(module: nn.Module) -> nn.Module:
    """The module itself where `torch.compile` was called on it."""
    while isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
        module = inner
    return module


def module_from_description(description: dict[str, Any]) -> nn.Module:
    """The reference model a card or a compressed file describes.

    Raises:
        QuantGolfError: another family, or a config that does not fit it.
    """
    family, config = description.get("family"), description.get("config")
    if family != "golf" or not isinstance(config, dict):
        raise QuantGolfError(
            f"model family {shortened(repr(family))} is unknown, expected 'golf' with its config; "
            "give the module with --model path/to/script.py:factory"
        )
    try:
        return Golf(GolfConfig(**config)).eval()
    except (TypeError, RuntimeError, OverflowError) as error:
        what = shortened(str(error).partition("\n")[0])  # torch goes on with where in its C++ that was
        raise QuantGolfError(
            f"golf config {shortened(repr(config))}: {what}; expected the fields of GolfConfig"
        ) from error


def _read_card(path: Path) -> dict[str, Any]:
    if path.is_dir():
        path = path / "card.json"
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise QuantGolfError(
            f"model {path}: {error.strerror}, expected a card.json, path/to/script.py:factory or hf:PATH"
        ) from error
    except (ValueError, RecursionError) as error:
        raise QuantGolfError(f"model {path}: not JSON ({error}), expected a card.json") from error
    if not isinstance(card, dict) or "family" not in card:
        raise QuantGolfError(
            f"model {path}: no 'family' in it, expected a card with 'family' and 'config'; for a "
            "module of your own give path/to/script.py:factory, for a Hugging Face folder hf:PATH"
        )
    return card


def _from_script(path: Path, factory: str) -> nn.Module:
    if not path.is_file():
        raise QuantGolfError(f"model script {path}: no such file, expected path/to/script.py:factory")
    name = f"quantgolf_script_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    sys.modules[name] = script  # dataclasses and torch look a class's module up by name
    with _beside(path), watched(path):
        try:
            spec.loader.exec_module(script)
        except (Exception, SystemExit) as error:  # whatever the user's own code raises; argparse exits
            raise QuantGolfError(
                f"model script {path}: {type(error).__name__}: {reason(error)}; it has to import and define {factory}()"
            ) from error
        build = getattr(script, factory, None)
        if not callable(build):
            raise QuantGolfError(
                f"model script {path}: has no function {factory!r}, expected one that returns a module"
            )
        try:
            module = build()
        except (Exception, SystemExit) as error:  # whatever the user's own code raises
            raise QuantGolfError(
                f"model script {path}: {factory}() failed, {type(error).__name__}: {reason(error)}; it is called "
                "without arguments and has to return the model"
            ) from error
    if not isinstance(module, nn.Module):
        raise QuantGolfError(
            f"model script {path}: {factory}() returned {type(module).__name__}, expected a torch.nn.Module"
        )
    return unwrap(module).eval()


@contextmanager
def _beside(path: Path) -> Iterator[None]:
    """While entered, a script finds the modules that lie beside it, as it does when Python runs it."""
    folder = str(path.parent.resolve())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
