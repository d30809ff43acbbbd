"""Which files a checkpoint is made of: one, the shards of an index, or what lies in a folder."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from quantgolf.checkpoint.read import EXPECTED, SUFFIXES, Stored, listed, read_file, reason, shortened
from quantgolf.errors import QuantGolfError

INDEX = ".index.json"
# In the order Hugging Face looks for them.
USUAL = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def locate(path: Path) -> Path:
    """The file that holds a checkpoint, or its index of shards: `path` itself, or what a folder has of them.

    A folder holds Hugging Face's usual names (the first of `USUAL` is taken), or one index, or exactly one file
    that is a checkpoint, `.gguf` included.

    Raises:
        QuantGolfError: no such file or folder, or a folder that holds none or several.
    """
    if not path.exists():
        raise QuantGolfError(f"checkpoint {path}: no such file or folder, {EXPECTED}")
    if not path.is_dir():
        return path
    for name in USUAL:
        if (path / name).is_file():
            return path / name
    files = sorted(file for file in path.iterdir() if file.is_file())
    found = [file for file in files if file.name.endswith(INDEX)]
    found = found or [file for file in files if file.suffix in (*SUFFIXES, ".gguf")]
    if len(found) != 1:
        names = listed([file.name for file in found]) or "no checkpoint"
        raise QuantGolfError(
            f"checkpoint {path}: the folder holds {names}, expected exactly one file or an index of shards; "
            "name the file itself"
        )
    return found[0]


def read_stored(path: Path) -> Stored:
    """Tensors of a checkpoint: a file, an index of shards, or a folder (see `locate`), by name.

    Raises:
        QuantGolfError: unreadable; of shards, all that is wrong with them at once.
    """
    found = locate(path)
    return _read_shards(found) if found.name.endswith(INDEX) else read_file(found)


def _read_shards(index: Path) -> Stored:
    problems: list[str] = []
    places = _weight_map(index, problems)
    tensors: dict[str, Any] = {}
    held_by: dict[str, str] = {}
    notes: dict[str, None] = {}
    for shard in dict.fromkeys(places.values()):
        if Path(shard).name != shard:
            problems.append(f"shard {shortened(shard)!r} does not lie beside its index")
            continue
        if not os.path.isfile(index.parent / shard):  # unlike Path's, of a name that no file can have too
            problems.append(f"shard {shortened(shard)} is missing")
            continue
        try:
            stored = read_file(index.parent / shard)
        except QuantGolfError as error:
            problems.append(str(error))
            continue
        problems += [f"{name} is in {held_by[name]} and in {shard}" for name in stored.tensors if name in held_by]
        problems += [
            f"{name} is not in {shard}, where the index has it"
            for name, place in places.items()
            if place == shard and name not in stored.tensors
        ]
        tensors.update(stored.tensors)
        held_by.update(dict.fromkeys(stored.tensors, shard))
        notes.update(dict.fromkeys(stored.notes))
    if problems:
        raise QuantGolfError(f"checkpoint {index}: {listed(problems)}. Copy the shards and their index again")
    return Stored(tensors, tuple(notes))


def _weight_map(index: Path, problems: list[str]) -> dict[str, str]:
    """Shard of each tensor; a name that stands in the index twice is added to `problems`."""

    def once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                problems.append(f"{key} stands in the index twice")
            found[key] = value
        return found

    try:
        document = json.loads(index.read_text(encoding="utf-8"), object_pairs_hook=once)
    except (OSError, ValueError, RecursionError) as error:
        raise QuantGolfError(f"checkpoint {index}: not readable JSON ({reason(error)}); copy it again") from error
    places = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(shard, str) for shard in places.values()):
        raise QuantGolfError(
            f"checkpoint {index}: no 'weight_map' in it, expected one from tensor to shard; copy it again"
        )
    return places
