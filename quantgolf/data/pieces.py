"""How many bytes of text a token stands for, where only tokens are left of the text.

Parameter Golf counts the bytes of its shards this way: a piece has the UTF-8 bytes of its characters, a leading space
counts unless the token before is a control piece (there the space is the tokenizer's own addition), a byte piece
counts one, control, unknown and unused pieces count nothing.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class PieceBytes:
    """What each of V pieces adds to the bytes of a text.

    Attributes:
        size: int64 [V], UTF-8 bytes without the leading space.
        space: bool [V], whether the piece begins with a space.
        silent: bool [V], whether the piece stands for no text: control, unknown and unused pieces.
    """

    size: NDArray[np.int64]
    space: NDArray[np.bool_]
    silent: NDArray[np.bool_]

    def count(self, tokens: NDArray[np.integer]) -> NDArray[np.int64]:
        """Bytes of each of `tokens` [T], all below V; the first counts as if it stood behind a control piece."""
        counted: NDArray[np.int64] = self.size[tokens]
        counted[1:] += self.space[tokens[1:]] & ~self.silent[tokens[:-1]]
        return counted
