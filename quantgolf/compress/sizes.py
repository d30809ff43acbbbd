"""What a codec makes of codes, from their histogram alone."""

import heapq

import numpy as np
from numpy.typing import NDArray

from quantgolf.encode import Codec, coded_bytes

# Of Gaussian codes of 2 to 8 bits zstd's level 19 writes 0.2% to 0.7% more than Huffman codes and 30 to 90 bytes.
ABOVE_HUFFMAN, TABLE = 1.004, 40


def predicted_bytes(counts: NDArray[np.int64], codec: Codec) -> int:
    """Bytes that `encode_codes` takes for codes with this histogram over neighbouring levels, [at most 256].

    Without repeats zstd is left with Huffman codes of single codes (RFC 8878, section 4.2), whose bits are the sum of
    all nodes of their tree (Huffman 1952).
    """
    if codec != "zstd":
        return coded_bytes(counts)
    nodes = [int(count) for count in counts if count]
    total, bits = sum(nodes), 0
    heapq.heapify(nodes)
    while len(nodes) > 1:
        both = heapq.heappop(nodes) + heapq.heappop(nodes)
        bits += both
        heapq.heappush(nodes, both)
    return min(total, int(ABOVE_HUFFMAN * bits / 8) + TABLE) + 1 if total else 0
