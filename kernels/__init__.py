"""quantgolf_kernels: the operations that turn stored codes into numbers, each behind a torch custom op.

The folder is called `kernels` and imported as `quantgolf_kernels`. Every op has a reference body in plain
torch, which is what runs on a CPU and what a faster kernel has to equal.
"""

from quantgolf_kernels.dequant import dequantize

__all__ = ["dequantize"]
