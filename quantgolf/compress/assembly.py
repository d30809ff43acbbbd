"""A plan becomes a file: each matrix at its width, everything else as it was."""

from collections.abc import Mapping

from quantgolf.blob import VERSION, pack
from quantgolf.checkpoint import Checkpoint
from quantgolf.compress.candidates import Candidates
from quantgolf.encode import Entry, Quantized, encode_model
from quantgolf.types import BlobHeader, CodedModel


class Assembly:
    """Puts the tensors of a checkpoint together in its own order, matrices as `candidates` solved them."""

    def __init__(self, checkpoint: Checkpoint, candidates: Candidates) -> None:
        self.checkpoint, self.candidates = checkpoint, candidates
        self.header = BlobHeader(VERSION, checkpoint.description)

    def coded(self, bits: Mapping[str, int]) -> CodedModel:
        """The coded model of a plan, matrix → width; what has no width is kept as it is."""
        blocks = self.candidates.matrices.blocks
        inside: dict[str, list[Quantized]] = {}
        for name, solved in self.candidates.solve(bits).items():
            coded = Quantized(blocks[name], solved.row, bits[name], solved.codes)
            inside.setdefault(blocks[name].parameter, []).append(coded)
        return encode_model(
            [
                Entry(name, tensor, tuple(inside.get(name, ())), self.checkpoint.aliases.get(name, ()))
                for name, tensor in self.checkpoint.tensors.items()
            ]
        )

    def file(self, bits: Mapping[str, int]) -> bytes:
        """The complete file of a plan."""
        return pack(self.coded(bits), self.header.model)
