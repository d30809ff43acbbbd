"""Every kernel of packed weights, at every width and shape: right first, then timed, beside what it is held against.

    python benchmarks/kernels.py --out benchmarks/results/kernels.jsonl
    python benchmarks/kernels.py --static --shape 8192,512x2048 --m 1,16,64   # on a machine without a GPU

This is `quantgolf bench kernels` with all shapes; `--help` has its options, `quantgolf/bench/kernels.py` says how time
is taken, `quantgolf/bench/roofline.py` what is asked for. It wants an H100 or H200 and about half an hour; lines are
written as they are measured.
"""

import sys

from quantgolf.cli import main

if __name__ == "__main__":
    sys.argv[1:] = ["bench", "kernels", "--shape", "all", *sys.argv[1:]]  # of an option given twice the last one counts
    main()
