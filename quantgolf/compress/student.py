"""The compressed model as a function of what stays continuous: a gain for rows and columns of each matrix on the
coded grid of fine steps, and the values of what is kept unquantized."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from quantgolf.checkpoint import Checkpoint
from quantgolf.checkpoint.call import logits_of
from quantgolf.checkpoint.match import first_names, state_of
from quantgolf.steps import FINE
from quantgolf.types import Block

OCTAVE = 4 * FINE  # fine steps an octave
LARGEST = 127  # of a fine step: a byte
# Kept numbers of a tensor that are tuned: norms, gains, biases and gates, and not a matrix that could not be followed.
MOST_KEPT = 1 << 16


@dataclass(frozen=True)
class Tuned:
    """What tuning found, as the file stores it.

    Attributes:
        fine_row, fine_column: int8 [N] and [K] by matrix, in 128ths of an octave.
        kept: tensors that are kept unquantized and were moved, in the checkpoint's dtype, by name.
    """

    fine_row: dict[str, Tensor]
    fine_column: dict[str, Tensor]
    kept: dict[str, Tensor]


class Student(nn.Module):
    """Gives the logits of a checkpoint's module with restored matrices in it, times gains that can be learned.

    Args:
        checkpoint: its module stays as it is.
        blocks: which part of which parameter each matrix is.
        restored: the matrices [N, K] fp32 as the file has them without tuning.
    """

    def __init__(self, checkpoint: Checkpoint, blocks: Mapping[str, Block], restored: Mapping[str, Tensor]) -> None:
        super().__init__()
        # In a list, so that its parameters are not this module's.
        self._asked = [_Asked(checkpoint.module)]
        self.device = next(checkpoint.module.parameters()).device
        self._fine = True
        self._checkpoint, self._blocks = checkpoint, blocks
        inside: dict[str, list[str]] = {}
        for name, block in blocks.items():
            inside.setdefault(block.parameter, []).append(name)
        self._inside = inside
        own = dict(checkpoint.module.named_parameters())
        # Two parameters may be the same memory: all names of a tensor get what it becomes.
        self._names: dict[str, list[str]] = {}
        for name, first in first_names(state_of(checkpoint.module)).items():
            self._names.setdefault(first, []).append(name)
        self._base: dict[str, Tensor] = {}
        for parameter, names in inside.items():
            whole = checkpoint.tensors[parameter].float().clone()
            for name in names:
                blocks[name].matrix(whole).copy_(restored[name])
            self._base[parameter] = whole.to(own[parameter].device)
        self.rows, self.columns, self.kept = nn.ParameterDict(), nn.ParameterDict(), nn.ParameterDict()
        self._keys = {name: f"{index}" for index, name in enumerate((*blocks, *checkpoint.tensors))}
        for name, block in blocks.items():
            device = self._base[block.parameter].device
            rows, columns = restored[name].shape
            self.rows[self._keys[name]] = nn.Parameter(torch.zeros(rows, device=device))
            self.columns[self._keys[name]] = nn.Parameter(torch.zeros(columns, device=device))
        for name, tensor in checkpoint.tensors.items():
            if name in own and name not in inside and tensor.is_floating_point() and tensor.numel() <= MOST_KEPT:
                self.kept[self._keys[name]] = nn.Parameter(own[name].detach().float().clone())

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [B, L, V] for int64 `tokens` [B, L]."""
        weights = {f"inner.{name}": value for first, value in self._weights() for name in self._names[first]}
        logits: Tensor = functional_call(self._asked[0], weights, (tokens,))
        return logits

    def reference(self, tokens: Tensor) -> Tensor:
        """The float model's logits."""
        logits: Tensor = self._asked[0](tokens)
        return logits

    def fix_steps(self) -> None:
        """Steps are what the solver made them, from now on."""
        for gain in (*self.rows.values(), *self.columns.values()):
            gain.data.zero_()
            gain.requires_grad_(False)
        self._fine = False

    def put(self, tuned: Tuned) -> None:
        """Makes this the state; what it does not name is as the solver and the checkpoint have it."""
        keys = self._keys
        with torch.no_grad():
            for gain in (*self.rows.values(), *self.columns.values()):
                gain.zero_()
            for name, tensor in self._checkpoint.tensors.items():
                if keys[name] in self.kept:
                    self.kept[keys[name]].copy_(tensor)
            for name in tuned.fine_row:
                self.rows[keys[name]].copy_(tuned.fine_row[name] / OCTAVE)
                self.columns[keys[name]].copy_(tuned.fine_column[name] / OCTAVE)
            for name, values in tuned.kept.items():
                self.kept[keys[name]].copy_(values)

    def tuned(self) -> Tuned:
        """All of it as the file stores it, on the CPU."""
        keys = self._keys
        now = {name: self.kept[key].detach().cpu() for name, key in keys.items() if key in self.kept}
        blocks = self._blocks if self._fine else ()
        return Tuned(
            {name: _fine(self.rows[keys[name]]) for name in blocks},
            {name: _fine(self.columns[keys[name]]) for name in blocks},
            {
                name: _narrow(values, self._checkpoint.tensors[name].dtype)
                for name, values in now.items()
                if not torch.equal(values, self._checkpoint.tensors[name].float().cpu())
            },
        )

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        keys = self._keys
        for parameter, names in self._inside.items():
            base = self._base[parameter]
            if len(names) == 1 and self._blocks[names[0]].matrix(base).numel() == base.numel():
                gain = self._gain(names[0])
                yield parameter, base * (gain.T if self._blocks[names[0]].transposed else gain).reshape(base.shape)
                continue
            gains = torch.ones_like(base)
            for name in names:
                self._blocks[name].matrix(gains).copy_(self._gain(name))
            yield parameter, base * gains
        for name in self._checkpoint.tensors:
            if keys[name] in self.kept:
                yield name, self.kept[keys[name]]

    def _gain(self, name: str) -> Tensor:
        """[N, K], on the grid; gradients pass through the rounding."""
        row, column = _rounded(self.rows[self._keys[name]]), _rounded(self.columns[self._keys[name]])
        return torch.exp2(row)[:, None] * torch.exp2(column)


class _Asked(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, tokens: Tensor) -> Tensor:
        return logits_of(self.inner, tokens).float()


def _rounded(octaves: Tensor) -> Tensor:
    found: Tensor = octaves + ((octaves * OCTAVE).round().clamp(-LARGEST, LARGEST) / OCTAVE - octaves).detach()
    return found


def _fine(octaves: Tensor) -> Tensor:
    return (octaves.detach().cpu() * OCTAVE).round().clamp(-LARGEST, LARGEST).to(torch.int8)


def _narrow(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Of `dtype`, fp32 ones with as many digits as fp16 has where they fit it: tuning is not as exact as that."""
    half = values.half()
    largest = torch.finfo(dtype).max
    return (half if dtype == torch.float32 and half.isfinite().all() else values.clamp(-largest, largest)).to(dtype)
