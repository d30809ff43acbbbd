"""`quantgolf decompress`: back to safetensors."""

import math
from pathlib import Path
from typing import Annotated

import typer

from quantgolf.atomic import refuse_unwritable
from quantgolf.blob import read_blob
from quantgolf.checkpoint import write_state
from quantgolf.cli import apart, inputs, show
from quantgolf.cli.verify import MaxDecodedOption, limit_of
from quantgolf.encode import DTYPES
from quantgolf.errors import FormatError
from quantgolf.runtime import restore
from quantgolf.types import CodedModel


def decompress_verb(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that `quantgolf compress` wrote.")],
    out: Annotated[Path, typer.Option("--out", help="The safetensors file to write.")],
    max_decoded_bytes: MaxDecodedOption = None,
    overwrite: inputs.OverwriteOption = False,
    json: inputs.JsonOption = False,
) -> None:
    """Write a compressed file's weights as safetensors, in the checkpoint's names, shapes and dtypes."""
    apart.refuse_same({"--out": out}, {"FILE": file})
    limit = limit_of(max_decoded_bytes)
    refuse_unwritable(out, overwrite)
    _, coded = read_blob(file, limit)
    refuse_larger(coded, file, limit)
    tensors = restore(coded)
    for entry in coded.tensors:
        for name in (entry.name, *entry.aliases):
            # safetensors refuses shared storage, so that a tied tensor is written out under each of its names.
            tensors[name] = tensors[name].to(DTYPES[entry.dtype], copy=True)
    write_state(out, tensors, overwrite=overwrite)
    document = {"file": str(file), "out": str(out), "tensors": len(tensors), "bytes": out.stat().st_size}
    if json:
        show.print_json(document)
    else:
        show.console(json).print(f"{out}: {len(tensors)} tensors, {document['bytes']:,} bytes")


def refuse_larger(coded: CodedModel, file: Path, limit: int) -> None:
    """Refuses a file of more than `limit` bytes once each name has its own: it has a tensor once, however many names.

    Raises:
        FormatError: as said.
    """
    names = sum(1 + len(entry.aliases) for entry in coded.tensors)
    size = sum(
        math.prod(entry.shape) * DTYPES[entry.dtype].itemsize * (1 + len(entry.aliases)) for entry in coded.tensors
    )
    if size > limit:
        raise FormatError(
            f"file {file}: its {len(coded.tensors)} tensors take {size:,} bytes under all of their {names} names, "
            f"expected at most {limit:,}; raise --max-decoded-bytes if you trust the file"
        )
