"""A plan becomes a file: each matrix at its width, everything else as it was."""

from collections.abc import Mapping

from quantgolf.blob import VERSION, pack
from quantgolf.checkpoint import Checkpoint
from quantgolf.compress.candidates import Candidates
from quantgolf.compress.readback import Expected, expected_of
from quantgolf.encode import Entry, Quantized, encode_model
from quantgolf.types import BlobHeader, Choice, CodedModel


class Assembly:
    """Puts the tensors of a checkpoint together in its own order, matrices as `candidates` solved them."""

    def __init__(self, checkpoint: Checkpoint, candidates: Candidates) -> None:
        self.checkpoint, self.candidates = checkpoint, candidates
        self.header = BlobHeader(VERSION, checkpoint.description)

    def coded(self, choices: Mapping[str, Choice]) -> CodedModel:
        """The coded model of a plan, matrix → choice; what has none is kept as it is."""
        return encode_model(self._entries(choices), codec=self.candidates.codec)

    def expected(self, choices: Mapping[str, Choice]) -> tuple[Expected, ...]:
        """What the file of a plan has to give back."""
        blocks, solved = self.candidates.matrices.blocks, self.candidates.solve(choices)
        return expected_of(self._entries(choices), {blocks[name]: each.weights for name, each in solved.items()})

    def file(self, choices: Mapping[str, Choice]) -> bytes:
        """The complete file of a plan."""
        return pack(self.coded(choices), self.header.model)

    def _entries(self, choices: Mapping[str, Choice]) -> list[Entry]:
        blocks = self.candidates.matrices.blocks
        inside: dict[str, list[Quantized]] = {}
        for name, solved in self.candidates.solve(choices).items():
            coded = Quantized(blocks[name], solved.steps, choices[name].bits, solved.codes)
            inside.setdefault(blocks[name].parameter, []).append(coded)
        return [
            Entry(name, tensor, tuple(inside.get(name, ())), self.checkpoint.aliases.get(name, ()))
            for name, tensor in self.checkpoint.tensors.items()
        ]
