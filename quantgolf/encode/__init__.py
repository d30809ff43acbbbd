"""Encode: codes, steps and small tensors become bytes, and bytes become them again."""

from quantgolf.encode.check import MAX_DECODED_BYTES, check_model
from quantgolf.encode.dtypes import DTYPES
from quantgolf.encode.groups import side_bytes
from quantgolf.encode.leveled import Leveled
from quantgolf.encode.model import Entry, Quantized, decode_model, encode_model
from quantgolf.encode.place import matrix_shape, places
from quantgolf.encode.spent import Spent, block_bytes, scale_bytes, tensor_bytes
from quantgolf.encode.stream import Codec, coded_bytes, decode_codes, decode_stream, encode_codes, encode_stream

__all__ = [
    "DTYPES",
    "MAX_DECODED_BYTES",
    "Codec",
    "Entry",
    "Leveled",
    "Quantized",
    "Spent",
    "block_bytes",
    "check_model",
    "coded_bytes",
    "decode_codes",
    "decode_model",
    "decode_stream",
    "encode_codes",
    "encode_model",
    "encode_stream",
    "matrix_shape",
    "places",
    "scale_bytes",
    "side_bytes",
    "tensor_bytes",
]
