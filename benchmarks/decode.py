"""The 36M reference model, packed against bf16: one token at a time in a CUDA graph, and evaluation in large batches.

    python benchmarks/decode.py --out benchmarks/results/decode.jsonl

This is `quantgolf bench decode`; `quantgolf/bench/model.py` says what the models are.
"""

import sys

from quantgolf.cli import main

if __name__ == "__main__":
    sys.argv[1:] = ["bench", "decode", *sys.argv[1:]]
    main()
