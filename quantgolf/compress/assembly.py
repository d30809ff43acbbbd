"""A plan becomes a file: each weight at its width, everything else as it was."""

from collections.abc import Mapping

from quantgolf.blob import VERSION, pack
from quantgolf.checkpoint import Checkpoint
from quantgolf.compress.candidates import Candidates
from quantgolf.encode import Entry, encode_model
from quantgolf.types import BlobHeader, CodedModel


class Assembly:
    """Puts the tensors of a checkpoint together in its own order, weights as `candidates` solved them."""

    def __init__(self, checkpoint: Checkpoint, candidates: Candidates) -> None:
        self.checkpoint, self.candidates = checkpoint, candidates
        self.header = BlobHeader(VERSION, checkpoint.description)

    def coded(self, bits: Mapping[str, int]) -> CodedModel:
        """The coded model of a plan, name → width; names without a width are kept as they are."""
        entries = []
        for name, tensor in self.checkpoint.tensors.items():
            aliases = self.checkpoint.aliases.get(name, ())
            if name in bits:
                solved = self.candidates.solve(name, bits[name])
                entries.append(Entry(name, tensor, solved.tensor, aliases, solved.codes))
            else:
                entries.append(Entry(name, tensor, aliases=aliases))
        return encode_model(entries)

    def file(self, bits: Mapping[str, int]) -> bytes:
        """The complete file of a plan."""
        return pack(self.coded(bits), self.header.model)
