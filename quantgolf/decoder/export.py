"""The decoder's source as a small file: without what one file does not need, its names shortened, the rest packed.

What `python-minifier` leaves is compressed and becomes a string of Latin-1 characters, in a file that says on its first
line that it is Latin-1: Python reads that as it reads any other file, and no quarter is lost to base85. Of 4,500
minified bytes DEFLATE and LZMA leave the same within 25, LZMA's call is longer; the smaller file is taken.
"""

import ast
import lzma
import re
import zlib
from base64 import b85encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import python_minifier

from quantgolf.decoder.specialise import specialise, without_typing
from quantgolf.encode import DTYPES
from quantgolf.types import CodedModel

SOURCE = Path(__file__).with_name("source.py")
ENTRY = "load"


@dataclass(frozen=True)
class Features:
    """What a decoder is able to read.

    Attributes:
        levels: matrices on the grid of one slope.
        diagonals: those of them that are coded along their diagonals.
        codes: matrices of fixed-width codes.
        groups: those of them that have scales by groups of columns.
        cuts: tensors of several blocks (banks, experts, q and k and v).
        dtypes: of tensors and of what they are kept in, by the names safetensors gives them.
    """

    levels: bool
    diagonals: bool
    codes: bool
    groups: bool
    cuts: bool
    dtypes: frozenset[str]


ALL = Features(True, True, True, True, True, frozenset(DTYPES))


def features_of(coded: CodedModel) -> Features:
    """What reading this file takes."""
    blocks = [(tensor, block) for tensor in coded.tensors for block in tensor.blocks]
    return Features(
        levels=coded.has_levels,
        diagonals=any(block.diagonal for _, block in blocks),
        codes=any(block.bits is not None for _, block in blocks),
        groups=coded.has_groups,
        # A whole tensor has one block, of lead 1 where it is quantized and of lead 0 where it is kept.
        cuts=any(len(t.blocks) != 1 or t.lead != (t.blocks[0].stored is None) for t in coded.tensors),
        dtypes=frozenset(t.dtype for t, _ in blocks) | {block.stored for _, block in blocks if block.stored},
    )


def export_decoder(features: Features = ALL, *, readable: bool = False, ascii_only: bool = False) -> bytes:
    """A Python file with `load(path_or_bytes, exact=False) -> (tensors by name, JSON of the model)`.

    Run as a script it takes a file and the .pt to write. The same features, quantgolf, Python, minifier and zlib give
    the same bytes.

    Args:
        features: what it has to read.
        readable: neither shortened nor packed.
        ascii_only: packed in characters that can be pasted into any script, for a quarter more.
    """
    if readable and features == ALL:
        return SOURCE.read_bytes()
    text = _specialised(features)
    if readable:
        return text.encode()
    minified = python_minifier.minify(
        without_typing(text),
        remove_literal_statements=True,
        rename_globals=True,
        preserve_globals=[ENTRY],
        hoist_literals=False,  # shorter names for literals cost more than they save once all is compressed
        prefer_single_line=True,
    ).encode()
    return min(_packed(minified, ascii_only), key=len)


def _specialised(features: Features) -> str:
    text = SOURCE.read_text(encoding="utf-8")
    names = next(
        ast.literal_eval(node.value)
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "DTYPES"
    )
    known = zip(DTYPES, names.split(" "), strict=True)
    left = " ".join(name if dtype in features.dtypes else "" for dtype, name in known)
    known_now = {name.upper(): getattr(features, name) for name in ("levels", "diagonals", "codes", "groups", "cuts")}
    return specialise(text, {**known_now, "DTYPES": left})


def _packed(code: bytes, ascii_only: bool) -> Iterator[bytes]:
    """Files that run this code, one for each way to pack it."""
    lz = lzma.compress(
        code, lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 3, "pb": 0}]
    )
    for module, packed, more in [("zlib", _deflate(code), "-15"), ("lzma", lz, '3,None,[{"id":33}]')]:
        if ascii_only:
            yield (
                f'import base64,{module}\nexec({module}.decompress(base64.b85decode("{b85encode(packed).decode()}"),'
                f"{more}))\n"
            ).encode()
        else:
            yield (
                f"#coding:l1\nimport {module}\nexec({module}.decompress({_literal(packed)}.encode('l1'),{more}))\n"
            ).encode("latin-1")


def _deflate(code: bytes) -> bytes:
    """The smallest of zlib's streams; how much it gathers before it starts another block is what differs."""
    found = []
    for level in range(1, 10):
        packer = zlib.compressobj(9, zlib.DEFLATED, -15, level)
        found.append(packer.compress(code) + packer.flush())
    return min(found, key=len)


def _literal(data: bytes) -> str:
    """A Python string whose characters are these bytes; those that Python would not read as they are, are escaped."""
    text = data.decode("latin-1").replace("\\", r"\\").replace("\r", r"\r")
    text = re.sub(r"\0(?=[0-7])", r"\\000", text).replace("\0", r"\0")
    line = text.replace("\n", r"\n")
    several = text.replace('"""', r"\"\"\"")
    if several.endswith('"'):
        several = several[:-1] + r"\""
    return min("'" + line.replace("'", r"\'") + "'", '"' + line.replace('"', r"\"") + '"', f'"""{several}"""', key=len)
