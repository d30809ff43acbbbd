"""Whether a solver's inner loop runs as a kernel where a weight lies."""

from torch import Tensor

from quantgolf_kernels.gpu import runs_on


def on_gpu(weight: Tensor) -> bool:
    """Whether kernels solve this weight: it is on a GPU that they run on. Other GPUs' weights are solved on the CPU,
    with a warning."""
    return runs_on(weight.device, "weights are solved on the CPU")
