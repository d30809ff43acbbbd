"""Whether kernels run on a device, and one visible warning where they should and cannot."""

import importlib.util
import warnings

import torch

OLDEST = (8, 0)  # compute capability: bf16 and its tensor cores


def runs_on(device: torch.device, otherwise: str) -> bool:
    """Whether kernels run there. Of a GPU where they do not, a warning says why, and what is done `otherwise`."""
    if device.type != "cuda":
        return False
    if importlib.util.find_spec("triton") is None:
        lacking = "triton is not installed"
    elif (found := torch.cuda.get_device_capability(device)) < OLDEST:
        lacking = f"its compute capability is {found[0]}.{found[1]}, expected at least {OLDEST[0]}.{OLDEST[1]}"
    else:
        return True
    warnings.warn(f"kernels do not run on {device}: {lacking}; {otherwise}", stacklevel=3)
    return False
