"""`quantgolf export-decoder`: the reader that goes into a budget where code counts."""

from pathlib import Path
from typing import Annotated

import typer

from quantgolf.atomic import refuse_unwritable
from quantgolf.blob import read_blob, write_blob
from quantgolf.cli import apart, inputs, show
from quantgolf.decoder import ALL, export_decoder, features_of, verify
from quantgolf.errors import QuantGolfError


def export_decoder_verb(
    out: Annotated[Path, typer.Option("--out", help="The Python file to write.")] = Path("decoder.py"),
    file: Annotated[
        Path | None,
        typer.Option("--for", metavar="FILE", help="Leave out what this file does not need, and try the rest on it."),
    ] = None,
    readable: Annotated[bool, typer.Option("--readable", help="Neither shorten nor pack it.")] = False,
    ascii_only: Annotated[
        bool, typer.Option("--ascii", help="Packed as ASCII, to be pasted into a script; a quarter larger.")
    ] = False,
    overwrite: inputs.OverwriteOption = False,
    json: inputs.JsonOption = False,
) -> None:
    """Write one small Python file that restores weights with numpy, torch and zstandard alone, for --code to count.

    In Python its load(path_or_bytes) returns the tensors by name and the JSON of the model; as a script it takes a
    file and the .pt to write.
    """
    if readable and ascii_only:
        raise QuantGolfError("--readable and --ascii are given, expected one of them: what is readable is not packed")
    apart.refuse_same({"--out": out}, {"--for": file})
    refuse_unwritable(out, overwrite)
    features = ALL if file is None else features_of(read_blob(file)[1])
    code = export_decoder(features, readable=readable, ascii_only=ascii_only)
    seconds = None if file is None else verify(code, file)
    write_blob(out, code, overwrite)
    if json:
        show.print_json(
            {"out": str(out), "bytes": len(code), "for": None if file is None else str(file), "seconds": seconds}
        )
        return
    line = f"{out}: {len(code):,} bytes of code"
    if seconds is not None:
        line += f"; restores the weights of {file} bit for bit in {seconds:.1f} s"
    show.console(json).print(line, soft_wrap=True)
