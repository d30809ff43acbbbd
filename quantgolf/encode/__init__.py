"""Encode: codes, steps and small tensors become bytes, and bytes become them again."""

from quantgolf.encode.check import MAX_DECODED_BYTES, check_model
from quantgolf.encode.dtypes import DTYPES
from quantgolf.encode.leveled import Leveled
from quantgolf.encode.model import Entry, Quantized, Spent, block_bytes, decode_model, encode_model, tensor_bytes
from quantgolf.encode.place import matrix_shape, places
from quantgolf.encode.stream import coded_bytes, decode_codes, decode_stream, encode_codes, encode_stream

__all__ = [
    "DTYPES",
    "MAX_DECODED_BYTES",
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
    "tensor_bytes",
]
