"""Modules that hold packed weights in place of `nn.Linear` and `nn.Embedding`."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from quantgolf.errors import QuantGolfError
from quantgolf.runtime.blocks import PackedMatrix
from quantgolf.runtime.functions import FLOATS, autocast, check, look_up
from quantgolf.runtime.parameter import PackedParameter
from quantgolf.runtime.subnormal import subnormals
from quantgolf_kernels import Packed, matmul

DTYPES = "fp32, fp16 or bf16"


class _Quant(nn.Module):
    """What both have: a packed `weight`, which functions of torch take for a tensor (`PackedParameter`)."""

    weight: PackedParameter
    was: type[nn.Module]

    @property
    def matrix(self) -> PackedMatrix:
        found = self.weight.matrix
        assert found is not None
        return found

    @property
    def packed(self) -> Packed:
        """Codes and steps, [N, K]; of a tied embedding and head the same."""
        return self.matrix.packed

    def float_weights(self) -> Tensor:
        """The dequantized weight [N, K] in its dtype, computed anew; `materialize` makes a parameter of it."""
        return self.weight.dequantize()

    def extra_repr(self) -> str:
        n, k = self.weight.shape
        return f"[{n}, {k}], bits={self.matrix.bits}, {self.packed.bpw:.3f} packed bits per weight"


class QuantLinear(_Quant):
    """y = x Wᵀ + b with packed W [N, K]: fp32, fp16 or bf16 activations [..., K] into [..., N] of the same dtype, which
    under torch.autocast is the dtype that it says. The gradient goes to the activations and the bias.

    `weight` is the packed weight, which other functions may use too (a tied head); `float_weights()` gives numbers.

    Args:
        packed: W.
        bias: b [N], a parameter that stays floating point.
        name: of the weight, for messages.
        dtype: what `weight` says of itself; follows `.to(dtype)`.
    """

    def __init__(
        self, packed: Packed, bias: nn.Parameter | None = None, name: str = "weight", dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = packed.shape
        self.bias = bias
        self.was = nn.Linear
        self.weight = PackedParameter.of(packed, name, dtype)

    def forward(self, x: Tensor) -> Tensor:
        matrix = self.matrix
        check(x, matrix.columns, matrix.data.device, self.weight.name)
        x = autocast(x)
        if x.dtype not in FLOATS:
            raise QuantGolfError(f"packed weight {self.weight.name} was given {x.dtype}, expected {DTYPES}; cast x")
        found: Tensor = matmul(x, matrix.packed)
        return found if self.bias is None else found + self.bias.to(found.dtype)


class QuantEmbedding(_Quant):
    """Rows of a packed table [V, D] for tokens int64 or int32 [...], [..., D] in `weight.dtype`, which follows
    `.to(dtype)` of the module. A head tied to it uses `weight`, and no second copy.

    Args:
        packed: the table.
        name, dtype: as of `QuantLinear`.
    """

    def __init__(self, packed: Packed, name: str = "weight", dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = packed.shape
        self.padding_idx: int | None = None
        self.was = nn.Embedding
        self.weight = PackedParameter.of(packed, name, dtype)

    def forward(self, tokens: Tensor) -> Tensor:
        return look_up(tokens, self.matrix, self.weight)


def attach(owner: nn.Module, attribute: str, weight: PackedParameter) -> None:
    """Puts a packed parameter where a module had a floating point one, which is gone already.

    An `nn.Linear` or `nn.Embedding`, or a subclass with the same forward, becomes a `QuantLinear` or `QuantEmbedding`
    in place: whoever holds the module still does, and its hooks, bias and attributes stay.
    """
    owner._modules[attribute] = weight
    plain = weight.matrix is not None and attribute == "weight" and set(owner._modules) == {"weight"}
    for kind, quant in ((nn.Linear, QuantLinear), (nn.Embedding, QuantEmbedding)):
        alike = isinstance(owner, kind) and type(owner).forward is kind.forward
        if plain and alike and set(owner._parameters) <= {"bias"} and not owner._buffers:
            owner.__dict__["was"] = type(owner)
            owner.__class__ = cast(Any, quant)


def materialize(module: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """Makes parameters of all packed weights of a module, in place, for training or for whatever needs numbers.

    Modules are again what they were, and ties stay ties. Call it before an optimizer is made, and before
    torch.compile.

    Args:
        module: what `load` gave, or any part of it.
        dtype: of the parameters; None for that of each weight (`load`'s).
    """
    made: dict[PackedParameter, nn.Parameter] = {}
    for owner in list(module.modules()):
        for attribute, child in list(owner._modules.items()):
            if isinstance(child, PackedParameter):
                if child not in made:
                    with subnormals():
                        made[child] = nn.Parameter(child.dequantize().to(dtype or child.dtype).contiguous())
                del owner._modules[attribute]
                if isinstance(owner, _Quant):
                    owner.__class__ = cast(Any, owner.__dict__.pop("was"))
                owner.register_parameter(attribute, made[child])
    return module
