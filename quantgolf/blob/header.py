"""The header: what a file says of its model and its tensors.

It lies in columns and its names are front-coded, so that one block of a network repeats the bytes of the block
before, and it is compressed against a short text of frequent words. For 37 tensors of the reference model that
makes 190 bytes of 900; the words alone save 100 of them.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

from quantgolf.encode.dtypes import DTYPES
from quantgolf.encode.varint import DAMAGED, Cursor, varint
from quantgolf.errors import FormatError, QuantGolfError
from quantgolf.types import CodedModel, CodedTensor

DTYPE_NAMES = tuple(DTYPES)
KEPT = 0x80
MAX_NAME_BYTES = 1 << 24

# Part of format version 0, to the byte.
WORDS = (
    b"model.layers.0.self_attn.q_proj.k_proj.v_proj.o_proj.mlp.gate_proj.up_proj.down_proj.input_layernorm.bias"
    b"transformer.h.0.attn.c_attn.c_proj.ln_1.wte.lm_head.norm.embed_tokens.emb.weightblocks.0.gain_scale"
    b'{"family":"golf","config":{"vocab_size":1024,"dim":512,"layers":12,"heads":8,"kv_heads":4,"mlp_mult":2,'
    b'"logit_softcap":30.0,"rope_base":10000.0}}'
)


def write_header(coded: CodedModel, model: dict[str, Any] | None) -> bytes:
    """Model description, then columns over all tensors: names, shapes, dtypes, storage, and bytes of each stream.

    Raises:
        QuantGolfError: a description JSON cannot hold, or a name UTF-8 cannot.
    """
    tensors = coded.tensors
    description = b"" if model is None else _to_json(model)
    lengths = [len(tensor.codes) for tensor in tensors if tensor.bits is not None]
    return b"".join(
        [
            varint(len(description)),
            description,
            varint(len(tensors)),
            *(varint(len(tensor.aliases)) for tensor in tensors),
            *_front_coded(name for tensor in tensors for name in (tensor.name, *tensor.aliases)),
            *(varint(size) for tensor in tensors for size in (len(tensor.shape), *tensor.shape)),
            bytes(DTYPE_NAMES.index(tensor.dtype) for tensor in tensors),
            bytes(map(_storage, tensors)),
            *map(varint, (*lengths, len(coded.steps), len(coded.small))),
        ]
    )


def read_header(data: bytes, payload: Cursor) -> tuple[dict[str, Any] | None, CodedModel]:
    """The model description, and the tensors with their streams, which are cut from `payload`.

    Raises:
        FormatError: not what `write_header` writes. What the columns say of a tensor is left to `check_model`.
    """
    cursor = Cursor(data, "the header")
    description = cursor.take(cursor.varint())
    model = _from_json(description) if description else None
    count = cursor.varint()
    if count > cursor.left:
        raise FormatError(f"the header declares {count} tensors in {cursor.left} bytes; {DAMAGED}")
    names, each = _names(cursor), range(count)
    aliases = [cursor.varint() for _ in each]
    named = [(next(names), tuple(next(names) for _ in range(more))) for more in aliases]
    shapes = [tuple(cursor.varint() for _ in range(cursor.varint())) for _ in each]
    dtypes = [_dtype(index) for index in cursor.take(count)]
    storage = [(None, byte) if byte < KEPT else (_dtype(byte - KEPT), None) for byte in cursor.take(count)]
    lengths = [0 if bits is None else cursor.varint() for _, bits in storage]
    steps, small = cursor.varint(), cursor.varint()
    cursor.finish()
    tensors = tuple(
        CodedTensor(name, shape, dtype, stored, bits, payload.take(length), others)
        for (name, others), shape, dtype, (stored, bits), length in zip(
            named, shapes, dtypes, storage, lengths, strict=True
        )
    )
    return model, CodedModel(tensors, payload.take(steps), payload.take(small))


def _front_coded(names: Iterable[str]) -> Iterator[bytes]:
    """Each name as the number of bytes it shares with the one before, the number of its other bytes, and those."""
    before = b""
    for name in names:
        try:
            text = name.encode()
        except UnicodeEncodeError as error:
            raise QuantGolfError(f"tensor name {name!r} cannot be written as UTF-8; rename it") from error
        pairs = zip(before, text, strict=False)
        shared = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(before), len(text)))
        yield varint(shared) + varint(len(text) - shared) + text[shared:]
        before = text


def _names(cursor: Cursor) -> Iterator[str]:
    """The names `_front_coded` wrote, as many as are asked for."""
    name, total = b"", 0
    while True:
        shared = cursor.varint()
        if shared > len(name):
            raise FormatError(f"a name shares {shared} bytes with {name!r}, expected at most all; {DAMAGED}")
        name = name[:shared] + cursor.take(cursor.varint())
        total += len(name)
        if total > MAX_NAME_BYTES:
            raise FormatError(
                f"the header unfolds to {total} bytes of names, expected up to {MAX_NAME_BYTES}; {DAMAGED}"
            )
        try:
            yield name.decode()
        except UnicodeDecodeError as error:
            raise FormatError(f"the header has the name {name!r}, expected UTF-8; {DAMAGED}") from error


def _storage(tensor: CodedTensor) -> int:
    """One byte: the width of the codes, or 128 + the dtype a kept tensor is stored in."""
    return KEPT | DTYPE_NAMES.index(tensor.stored) if tensor.stored is not None else tensor.bits or 0


def _dtype(index: int) -> str:
    if index >= len(DTYPE_NAMES):
        raise FormatError(f"the header names dtype {index}, expected 0 to {len(DTYPE_NAMES) - 1}; {DAMAGED}")
    return DTYPE_NAMES[index]


def _to_json(model: dict[str, Any]) -> bytes:
    try:
        return json.dumps(model, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise QuantGolfError(
            f"the model description cannot be written as JSON ({error}), expected numbers, strings, lists and dicts"
        ) from error


def _from_json(text: bytes) -> dict[str, Any]:
    try:
        model = json.loads(text.decode(), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the model description is not JSON ({error}); {DAMAGED}") from error
    if not isinstance(model, dict):
        raise FormatError(f"the model description is a {type(model).__name__}, expected an object; {DAMAGED}")
    return model


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number JSON knows")
