"""`quantgolf decompress`: back to safetensors."""

from pathlib import Path
from typing import Annotated

import typer

from quantgolf.atomic import refuse_unwritable
from quantgolf.blob import read_blob
from quantgolf.checkpoint import write_state
from quantgolf.cli import inputs, show
from quantgolf.encode import DTYPES
from quantgolf.runtime import restore


def decompress_verb(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that `quantgolf compress` wrote.")],
    out: Annotated[Path, typer.Option("--out", help="The safetensors file to write.")],
    overwrite: inputs.OverwriteOption = False,
    json: inputs.JsonOption = False,
) -> None:
    """Write a compressed file's weights as safetensors, in the checkpoint's names, shapes and dtypes."""
    refuse_unwritable(out, overwrite)
    _, coded = read_blob(file)
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
