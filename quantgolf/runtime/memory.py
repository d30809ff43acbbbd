"""What a module's weights take in memory, beside what the file spends on them."""

from dataclasses import dataclass

from torch import nn

from quantgolf.runtime.blocks import KeptRows, PackedMatrix
from quantgolf.runtime.parameter import PackedParameter


@dataclass(frozen=True)
class TensorMemory:
    """One parameter or buffer of a module, tied ones once.

    Attributes:
        name: its first in the module.
        packed: weights that are packed.
        packed_bytes: of those, steps and outliers counted.
        float_bytes: of what is not packed.
        bits: widths of the fields of its packed matrices, in order.
        file_bits: what the file spends on the packed weights, bits each; None where they come from none.
    """

    name: str
    shape: tuple[int, ...]
    packed: int
    packed_bytes: int
    float_bytes: int
    bits: tuple[int, ...]
    file_bits: float | None

    @property
    def bpw(self) -> float | None:
        """Packed bits per packed weight."""
        return 8 * self.packed_bytes / self.packed if self.packed else None


@dataclass(frozen=True)
class Memory:
    """All parameters and buffers of a module."""

    tensors: tuple[TensorMemory, ...]

    @property
    def packed_bytes(self) -> int:
        """Of packed weights, steps and outliers counted."""
        return sum(tensor.packed_bytes for tensor in self.tensors)

    @property
    def float_bytes(self) -> int:
        """Of everything else."""
        return sum(tensor.float_bytes for tensor in self.tensors)

    @property
    def bpw(self) -> float | None:
        """Packed bits per packed weight; None where nothing is packed."""
        packed = sum(tensor.packed for tensor in self.tensors)
        return 8 * self.packed_bytes / packed if packed else None

    @property
    def file_bpw(self) -> float | None:
        """What the file spends on the packed weights, bits each; None where some come from none."""
        found = [(tensor.packed, tensor.file_bits) for tensor in self.tensors if tensor.packed]
        known = [(count, bits) for count, bits in found if bits is not None]
        if not found or len(known) < len(found):
            return None
        return sum(count * bits for count, bits in known) / sum(count for count, _ in known)


def memory(module: nn.Module) -> Memory:
    """Bytes of a module's weights, packed and in floating point, in its order."""
    found: list[TensorMemory] = []
    inside: set[nn.Module] = set()
    for name, part in module.named_modules():
        if isinstance(part, PackedParameter):
            found.append(_of(name, part))
            inside |= set(part.modules())
        elif part not in inside:
            prefix = f"{name}." if name else ""
            own = [*part.named_parameters(prefix="", recurse=False), *part.named_buffers(prefix="", recurse=False)]
            found += [TensorMemory(prefix + n, tuple(t.shape), 0, 0, t.nbytes, (), None) for n, t in own]
    return Memory(tuple(found))


def _of(name: str, weight: PackedParameter) -> TensorMemory:
    matrices = [block for block in weight.parts if isinstance(block, PackedMatrix)]
    packed = sum(block.packed.shape[0] * block.packed.shape[1] for block in matrices)
    spent = [block.file_bytes for block in matrices]
    known = [each for each in spent if each is not None]
    whole = packed > 0 and len(known) == len(spent)
    return TensorMemory(
        name,
        tuple(weight.shape),
        packed,
        sum(block.packed.nbytes for block in matrices),
        sum(block.values.nbytes for block in weight.parts if isinstance(block, KeptRows)),
        tuple(block.bits for block in matrices),
        8 * sum(known) / packed if whole else None,
    )
