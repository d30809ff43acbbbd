"""`quantgolf verify`: whether files are sound, without the model that they were made of."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from quantgolf.cli import inputs, show
from quantgolf.decoder import export_decoder
from quantgolf.decoder.check import Checked, check, check_again
from quantgolf.encode import MAX_DECODED_BYTES
from quantgolf.errors import QuantGolfError
from quantgolf.sizes import parse_size

MaxDecodedOption = Annotated[
    str | None,
    typer.Option("--max-decoded-bytes", help="Refuse files whose tensors would take more in memory; default: 64GiB."),
]
AUTO, ALWAYS, NONE = "auto", "always", "none"
AUTO_SECONDS = 60.0


def limit_of(max_decoded_bytes: str | None) -> int:
    """What `MaxDecodedOption` says, in bytes."""
    return MAX_DECODED_BYTES if max_decoded_bytes is None else parse_size(max_decoded_bytes)


def verify_verb(
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="Compressed files.")],
    decoder: Annotated[
        str,
        typer.Option(
            "--decoder",
            help="Which stand-alone decoder has to restore the same bits: the word always for the one that "
            "export-decoder writes, auto for files that it reads within a minute, none; or a file (IS EXECUTED). Only "
            "auto stops it, after three minutes with a file.",
        ),
    ] = AUTO,
    max_decoded_bytes: MaxDecodedOption = None,
    digests: Annotated[bool, typer.Option("--digests", help="Show a digest of every tensor's bits.")] = False,
    json: inputs.JsonOption = False,
) -> None:
    """Check files without their model: length, checksum, every description, every stream, every value.

    Two readers have to agree on every bit: quantgolf's, and the stand-alone decoder in a process of its own. A file
    that is not sound does not keep the others from being checked. Exit code 0 if all are sound, else 2.
    """
    limit = limit_of(max_decoded_bytes)
    which, code = "the stand-alone decoder", None
    if decoder in (AUTO, ALWAYS):
        code = export_decoder()
    elif decoder != NONE:
        which, code = decoder, read_code(Path(decoder))
        show.console(True).print(f"note: {decoder} is executed", markup=False, soft_wrap=True)
    found = []
    with show.bars() as report:
        for done, file in enumerate(files, 1):
            report("reading", done - 1, len(files))
            found.append(check(file, limit))
            report("reading", done, len(files))
    if code is not None:
        check_again(found, code, which, AUTO_SECONDS if decoder == AUTO else math.inf)
    wrong = [each for each in found if each.error is not None]
    if json:
        show.print_json({"sound": not wrong, "files": [document_of(each, digests) for each in found]})
    else:
        for each in found:
            print_checks(each, digests)
    if wrong:
        raise QuantGolfError(
            f"{len(wrong)} of {len(found)} files not sound: {'; '.join(str(each.error) for each in wrong)}"
        )


def document_of(found: Checked, digests: bool) -> dict[str, Any]:
    """As the JSON output spells it."""
    document: dict[str, Any] = {
        "file": str(found.file),
        "sound": found.error is None,
        "error": found.error,
        "bytes": found.bytes,
        "version": found.version,
        "model": found.model,
        "tensors": len(found.seen),
        "digest": None if found.error else found.digest,
        "checks": [
            {"check": name, "passed": not found.failed(name), "what": what} for name, what in found.checks.items()
        ],
    }
    if digests:
        document["digests"] = {
            name: {"dtype": each.dtype.removeprefix("torch."), "shape": list(each.shape), "digest": each.digest}
            for name, each in found.seen.items()
        }
    return document


def print_checks(found: Checked, digests: bool) -> None:
    console = show.console(False)
    head = "NOT SOUND"
    if found.error is None:
        head = f"sound; {found.bytes:,} bytes, format version {found.version}, digest of the weights {found.digest}"
    lines = [f"{found.file}: {head}"]
    for name, what in found.checks.items():
        lines.append(f"  {name:<8} {f'FAILED: {found.error}' if found.failed(name) else what}")
    if found.error is None and "decoder" not in found.checks:
        why = f"not asked: it would take {show.duration(found.again)}; --decoder {ALWAYS} asks it"
        if found.stopped is not None:
            why = f"stopped: it took more than {show.duration(found.stopped)}; --decoder {ALWAYS} waits for it"
        lines.append(f"  decoder  {why}")
    console.print("\n".join(lines), markup=False, soft_wrap=True)
    if digests and found.seen:
        rows = [
            (name, each.digest, each.dtype.removeprefix("torch."), "×".join(map(str, each.shape)))
            for name, each in found.seen.items()
        ]
        console.print(show.table(None, ("tensor", "digest", "dtype", "shape"), rows, words=2))


def read_code(path: Path) -> bytes:
    """The decoder of --decoder.

    Raises:
        QuantGolfError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise QuantGolfError(
            f"--decoder {path}: {error.strerror}, expected a decoder that `quantgolf export-decoder` wrote, or none"
        ) from error
