"""The frozen dataclasses of what lies in a file, coded; `quantgolf.types` has them too, beside all the others."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CodedGroups:
    """How the scales of a block of codes lie in groups of its columns; see `quantgolf.types.Groups`.

    Attributes:
        size: columns of a group, 1 to K.
        zeros: whether each group has a zero too: the grid is asymmetric.
        base: of logarithmic scales, what is to be added to the exponents in the stream; None for fp16 ones.
    """

    size: int
    zeros: bool
    base: int | None


@dataclass(frozen=True)
class CodedBlock:
    """Consecutive rows of a tensor that are coded alike.

    Attributes:
        rows: of the tensor seen as [R, C].
        stored: spelling of the dtype the values are kept in; None for quantized rows.
        bits: width of the codes; None for rows kept as they are and for levels.
        codes: the coded codes of quantized rows, empty otherwise.
        transposed: whether the codes or levels are those of the rows' transpose, [N, K] = [C, rows].
        levels: whether the rows are unclipped levels, which lie in the model's one stream of them.
        diagonal: whether those are coded along the diagonals of [N, K] instead of down its columns.
        groups: of scales of codes; None where codes have one fp16 step a row.
    """

    rows: int
    stored: str | None
    bits: int | None
    codes: bytes
    transposed: bool = False
    levels: bool = False
    diagonal: bool = False
    groups: CodedGroups | None = None


@dataclass(frozen=True)
class CodedTensor:
    """One tensor of a file.

    Attributes:
        name: as in the checkpoint; `aliases` are further names of the same storage.
        shape: of the checkpoint's tensor.
        dtype: the checkpoint's, as safetensors spells it ("F16", "BF16", "F32", "I64", …).
        lead: how many of its first dimensions are merged into the rows R of [R, C]; 0 makes it one row.
        blocks: all its rows, in order. Kept whole, it is one block of lead 0.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    lead: int
    blocks: tuple[CodedBlock, ...]
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class CodedModel:
    """All tensors of a file in order, with the streams they share.

    Attributes:
        tensors: in the file's order.
        steps: fp16 steps of the rows of fixed-width codes, and scales of groups.
        small: values of all rows that are kept as they are.
        exponents: steps of the matrices of levels, in quarter octaves.
        levels: levels of all those matrices.
        states: of the trellis that allows the levels; 0 where there are none.
        restart: rows after which it begins again; 0 where there are no levels.
        zeros: of groups.
    """

    tensors: tuple[CodedTensor, ...]
    steps: bytes
    small: bytes
    exponents: bytes = b""
    levels: bytes = b""
    states: int = 0
    restart: int = 0
    zeros: bytes = b""

    @property
    def has_levels(self) -> bool:
        """Whether any block holds levels."""
        return any(block.levels for tensor in self.tensors for block in tensor.blocks)

    @property
    def has_groups(self) -> bool:
        """Whether any block has scales by groups."""
        return any(block.groups is not None for tensor in self.tensors for block in tensor.blocks)

    def streams(self) -> bytes:
        """All streams in the file's order, one after another."""
        codes = [block.codes for tensor in self.tensors for block in tensor.blocks]
        return b"".join([*codes, self.steps, self.zeros, self.small, self.exponents, self.levels])


@dataclass(frozen=True)
class BlobHeader:
    """What a file says of itself before its payloads: format version and the model it belongs to.

    `model` describes how to rebuild the module ({"family": "golf", "config": {…}}), or is None where the user
    has to bring the module along.
    """

    version: int
    model: dict[str, Any] | None
