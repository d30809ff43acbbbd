"""From a file to a module: of packed weights, or of floating point ones."""

from pathlib import Path

import torch
from torch import nn

from quantgolf.blob import read_blob
from quantgolf.checkpoint import build_model, fill
from quantgolf.checkpoint.model import module_from_description, unwrap
from quantgolf.errors import QuantGolfError
from quantgolf.runtime.functions import FLOATS
from quantgolf.runtime.parameter import PackedParameter
from quantgolf.runtime.place import place
from quantgolf.runtime.restore import restore
from quantgolf.runtime.subnormal import subnormals
from quantgolf.types import BlobHeader, CodedModel


def load(
    path: str | Path,
    model: str | Path | nn.Module | None = None,
    device: str | torch.device = "cpu",
    *,
    materialize: bool | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """The module of a compressed file, in evaluation mode.

    Packed, weights stay codes of 2 to 8 bits and are multiplied as they are: by kernels on a GPU, elsewhere by plain
    torch, slowly, with the same numbers to rounding. `nn.Linear` and `nn.Embedding` become `QuantLinear` and
    `QuantEmbedding`; other parameters (banks, transposed ones, those of modules with a forward of their own) are
    replaced by stand-ins that functions of torch take for tensors (`PackedParameter`). Packed weights are buffers, and
    no parameters. What is used in a way that codes cannot be used is unpacked at each such call, with a warning.
    `torch.compile(fullgraph=True)` takes both; of stand-ins, W @ x where x @ W fits too it refuses (write
    torch.matmul).

    Args:
        path: a file that `quantgolf compress` wrote.
        model: the module to fill, its card, or `path/to/script.py:factory`. Files of the reference family say
            themselves how to build it; a script is never run because a file asks for it.
        device: where the module goes.
        materialize: True for floating point weights, False for packed ones. None: packed on a CUDA device, floating
            point elsewhere.
        dtype: fp32, fp16 or bf16, of parameters in floating point, and of what a packed embedding gives. None: bf16 on
            a CUDA device, fp32 elsewhere. Buffers keep theirs.

    Raises:
        FormatError: the file is damaged or no quantgolf file.
        QuantGolfError: `model` is missing or does not match the file, or another dtype is asked for.
    """
    target = torch.device(device)
    if dtype is None:
        dtype = torch.bfloat16 if target.type == "cuda" else torch.float32
    if dtype not in FLOATS:
        raise QuantGolfError(f"dtype is {dtype}, expected fp32, fp16 or bf16")
    header, coded = read_blob(Path(path))
    source = f"file {path}"
    if not (target.type != "cuda" if materialize is None else materialize):
        bare = _bare(header, model, source)
        with subnormals():
            return place(bare, coded, source, target, dtype, empty=model is None)
    module = module_of(header, coded, model, source)
    with subnormals():
        for parameter in module.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
        return module.to(target)


def module_of(
    header: BlobHeader, coded: CodedModel, model: str | Path | nn.Module | None = None, source: str = "file"
) -> nn.Module:
    """The module of the parts of a file, on the CPU and in fp32; `source` names it in messages."""
    tensors = restore(coded)
    module = _bare(header, model, source)
    with subnormals():
        if model is None:
            fill(module, tensors, source)
            module = module.to_empty(device="cpu")
        fill(module, tensors, source, share=True)
    return module


def _bare(header: BlobHeader, model: str | Path | nn.Module | None, source: str) -> nn.Module:
    """The module in fp32, before it is filled; without memory where it is the file that describes it."""
    if isinstance(model, nn.Module):
        if any(isinstance(part, PackedParameter) for part in model.modules()):
            raise QuantGolfError(
                f"the module to fill with {source} holds packed weights already, expected parameters; build another, "
                "or call quantgolf.materialize(module)"
            )
        return unwrap(model).eval().float()
    if model is not None:
        return build_model(model).float()
    if header.model is not None:
        # A forged description could ask for any size: nothing is allocated before its shapes are those of the file.
        with torch.device("meta"):
            return module_from_description(header.model).float()
    raise QuantGolfError(
        f"{source} does not say how its module is built, expected the module it was compressed from; "
        "give --model path/to/script.py:factory"
    )
