"""Outputs stay apart from inputs: a command that would replace, add to or remove what it reads is refused before it
begins, with --overwrite as well as without."""

import errno
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from quantgolf.blob import MAGIC
from quantgolf.checkpoint import read_demo
from quantgolf.checkpoint.huggingface import path_of
from quantgolf.checkpoint.shards import INDEX
from quantgolf.cli.inputs import DEMO, SELF, TextOptions
from quantgolf.data.open import BYTES
from quantgolf.errors import QuantGolfError
from quantgolf.sweep.begin import folder_of

Given = Path | Iterable[Path] | None
POINT = b'{"key":'  # how a line of results begins


def inputs_of(
    checkpoint: str | None = None, model: str | None = None, text: TextOptions | None = None
) -> dict[str, list[Path]]:
    """What the options that most verbs share name, by option: paths alone, without what stands before or behind them,
    and what words stand for."""
    found = {"CKPT": [] if checkpoint is None else _checkpoint(checkpoint)}
    if model is not None:
        found["--model"] = [path_of(model) or script_of(model)]
    if text is not None:
        found["--data"] = data_of(text.data)
        found["--byte-counts"] = text.byte_counts or []
        if text.tokenizer is not None and text.tokenizer != Path(BYTES):
            found["--tokenizer"] = [read_demo().tokenizer if text.tokenizer == Path(DEMO) else text.tokenizer]
    return found


def data_of(given: list[Path] | None) -> list[Path]:
    """Files of `--data` and options like it; none for a word."""
    return [] if given is None or given in ([Path(DEMO)], [Path(SELF)]) else given


def script_of(spelled: str) -> Path:
    """The file of `path/to/script.py:name`; of anything else the path that it is."""
    path, _, _ = spelled.rpartition(":")
    return Path(path if path.endswith(".py") else spelled)


def refuse_same(outputs: Mapping[str, Given], inputs: Mapping[str, Given]) -> None:
    """Refuses an output that is one of the inputs, by whatever name or link.

    Args:
        outputs: files to write, by option.
        inputs: what is read, by option; a folder stands for the files in it, but for those that quantgolf wrote there.

    Raises:
        QuantGolfError: naming the option and the file.
    """
    for option, outs in outputs.items():
        for out in _each(outs):
            for source, given in inputs.items():
                for path in _each(given):
                    if (same := _met(out, path)) is not None:
                        raise QuantGolfError(
                            f"{option} {out}: is read by this command ({source} {same}), expected another file, since "
                            f"it would be written over; give another {option}"
                        )


def refuse_within(option: str, folder: Path, inputs: Mapping[str, Given]) -> None:
    """Refuses a folder that is replaced or removed as a whole while an input lies in it, or is it.

    Raises:
        QuantGolfError: naming the option, the folder and the input.
    """
    there = _stat(folder)
    for source, given in inputs.items():
        for path in _each(given):
            ways = (Path(os.path.abspath(path)), Path(os.path.realpath(path)))
            around = (_stat(each) for way in ways for each in (way, *way.parents))
            if there is not None and any(each is not None and os.path.samestat(each, there) for each in around):
                raise QuantGolfError(
                    f"{option}: the folder {folder} would be replaced or removed, and this command reads {path} in it "
                    f"({source}), expected a folder without that; give another {option}"
                )


def refuse_work(out: Path, inputs: Mapping[str, Given], remedy: str) -> None:
    """Refuses an output whose folder `OUT.work`, where what is finished is kept while the command works and which goes
    in the end, cannot have that name or holds an input.

    Args:
        remedy: what to give instead of a name that is too long.

    Raises:
        QuantGolfError: that.
    """
    if not out.name:  # a folder, which is refused as such
        return
    folder = folder_of(out)
    try:
        os.lstat(folder)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise QuantGolfError(
                f"--out {out}: {error.strerror} for the folder beside it, which has .work behind that name, expected "
                f"room for these five bytes; give {remedy}"
            ) from error
    refuse_within("--out", folder, inputs)


def _checkpoint(name: str) -> list[Path]:
    if name == DEMO:
        return [read_demo().checkpoint.parent]
    path = Path(name)
    if not name.endswith(INDEX):
        return [path]
    try:
        shards = {path.parent / shard for shard in json.loads(path.read_bytes())["weight_map"].values()}
    except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError):
        shards = set()  # whoever opens it says what is wrong with it
    return [path, *sorted(shards)]


def _each(given: Given) -> Iterable[Path]:
    return () if given is None else (given,) if isinstance(given, Path) else given


def _met(out: Path, path: Path) -> Path | None:
    """The file of an input that an output is."""
    if os.path.realpath(out) == os.path.realpath(path) and not path.is_dir():
        return path
    there = _stat(out)
    if there is None:
        return None
    for file in _files(path):
        each = _stat(file)
        if each is not None and os.path.samestat(each, there) and not (path.is_dir() and _ours(file)):
            return file
    return None


def _files(path: Path) -> Iterator[Path]:
    try:
        yield from (file for file in path.iterdir() if not file.is_dir())
    except NotADirectoryError:
        yield path
    except OSError:
        return  # whoever opens it says what is wrong with it


def _ours(file: Path) -> bool:
    """Whether a file of a model's folder is no part of it: an earlier output, or empty."""
    try:
        with file.open("rb") as stream:
            start = stream.read(len(POINT))
    except OSError:
        return False
    return not start or start.startswith((MAGIC, POINT))


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None
