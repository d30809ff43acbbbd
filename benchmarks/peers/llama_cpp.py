"""llama.cpp's k-quants and IQ types, by its own compiled quantizer as `llama-cpp-python` builds it, through ctypes.

Without an importance matrix, and with one from the calibration text (the mean of every input's square). Rows that are
no multiple of 256 get the type that llama.cpp falls back to. `embedding Q6_K` is what llama.cpp gives a tied embedding
by itself.
"""

import ctypes
import os
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from peers.gguf_numpy import load as load
from peers.gguf_numpy import write
from peers.protocol import Variant, Weights

TITLE = "llama.cpp"
PACKAGES = ("llama_cpp_python", "gguf")
LIBRARY = "GGML_LIBRARY"  # names another place of libggml-base than the package's
K_QUANTS = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
IQ = ("IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS")
HEAD = "Q6_K"
FALLBACK = {
    "Q2_K": "IQ4_NL", "Q3_K": "IQ4_NL", "IQ2_XS": "IQ4_NL", "IQ2_S": "IQ4_NL", "IQ3_XXS": "IQ4_NL", "IQ3_S": "IQ4_NL",
    "IQ4_XS": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
}  # fmt: skip
VARIANTS = (
    *(Variant(name, options={"type": name}) for name in ("Q2_K", "Q4_K")),
    *(Variant(f"{name} imatrix", calibrated=True, options={"type": name}) for name in (*K_QUANTS, *IQ)),
    *(
        Variant(f"{name} imatrix, embedding {HEAD}", calibrated=True, options={"type": name, "head": HEAD})
        for name in ("Q2_K", "Q3_K", "Q4_K", "IQ3_S", "IQ4_XS")
    ),
)


def quantize(weights: Weights, variant: Variant, files: Path) -> None:
    """Every matrix in the variant's type, embeddings in that of the head where it says one."""
    quantized = {}
    for name, matrix in weights.matrices.items():
        kind = variant.options["type"]
        if name in weights.embeddings:
            kind = variant.options.get("head", kind)
        kind = fitting(kind, matrix.shape[1])
        moments = weights.moments.get(name)
        importance = None if moments is None else np.ascontiguousarray(moments.diagonal().numpy())
        quantized[name] = chunk(matrix.numpy(), kind, importance)
    write(weights, quantized, files)


def fitting(kind: str, columns: int) -> str:
    """The type, or what llama.cpp takes instead where rows are no multiple of its block."""
    return kind if columns % 256 == 0 or kind not in FALLBACK else FALLBACK[kind]


def chunk(matrix: Any, kind: str, importance: Any) -> tuple[Any, Any]:
    """Rows as ggml writes them, uint8 [N, bytes a row], and their type."""
    gguf, library = import_module("gguf"), ggml()
    chosen = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[chosen]
    rows, columns = matrix.shape
    out = np.zeros((rows, columns // block * size), dtype=np.uint8)
    floats = ctypes.POINTER(ctypes.c_float)
    pointer = None if importance is None else importance.ctypes.data_as(floats)
    library.ggml_quantize_init(int(chosen))
    written = library.ggml_quantize_chunk(
        int(chosen), np.ascontiguousarray(matrix).ctypes.data_as(floats), out.ctypes.data_as(ctypes.c_void_p),
        0, rows, columns, pointer,
    )  # fmt: skip
    if written != out.nbytes:
        raise ValueError(f"ggml_quantize_chunk wrote {written} bytes of {out.nbytes}")
    return out, chosen


def ggml() -> Any:
    """The compiled library inside the package."""
    place = os.environ.get(LIBRARY)
    if place is None:
        spec = find_spec("llama_cpp")
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError("llama_cpp is not installed")
        place = str(Path(spec.origin).parent / "lib" / "libggml-base.so")
    library = ctypes.CDLL(place)
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.POINTER(ctypes.c_float), ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64,
        ctypes.POINTER(ctypes.c_float),
    ]  # fmt: skip
    library.ggml_quantize_init.argtypes = [ctypes.c_int]
    library.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    return library
