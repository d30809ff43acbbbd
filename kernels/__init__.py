"""quantgolf_kernels: the operations that turn stored codes into numbers, each behind a torch custom op.

The folder is called `kernels` and imported as `quantgolf_kernels`. Every op has a reference body in plain torch or
NumPy, which is what runs on a CPU and what the kernel has to equal. Importing this imports no triton: files with
kernels are imported when the first of them is launched.
"""

from quantgolf_kernels.dequant import dequantize
from quantgolf_kernels.ops import lookup, matmul, weights
from quantgolf_kernels.packing import Packed, pack

__all__ = ["Packed", "dequantize", "lookup", "matmul", "pack", "weights"]
