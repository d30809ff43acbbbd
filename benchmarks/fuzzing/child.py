"""The loop of one process: `child.py TARGET MODE FINDINGS [libFuzzer's arguments]`, which `fuzz.py run` starts.

Findings are kept and the loop goes on, so that one fault does not hide the others; a crash of the process, a hang or
memory beyond libFuzzer's limits end it, and `fuzz.py` starts another.
"""

import importlib
import shlex
import sys
from pathlib import Path
from random import Random

import numpy  # noqa: F401  (what is imported before the instrumentation is not followed)
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
COMPILED = ("quantgolf.encode.lanes", "quantgolf.encode.rans", "quantgolf.encode.diagonals", "quantgolf.solve.trellis")


def main() -> None:
    target, mode, findings, *arguments = sys.argv[1:]
    atheris = importlib.import_module("atheris")
    followed = ["quantgolf.blob", "quantgolf.encode", "quantgolf.runtime.restore", "quantgolf.decoder.source"]
    # Numba cannot compile instrumented functions; the guided mode has none compiled.
    left_out = list(COMPILED) if mode == "compiled" else []
    with atheris.instrument_imports(include=followed, exclude=left_out):
        targets, guard = importlib.import_module("fuzzing.targets"), importlib.import_module("fuzzing.guard")
    limits = targets.Limits() if mode == "compiled" else targets.Limits(20_000, 3_000)
    mutate = targets.TARGETS[target].mutate
    torch.set_num_threads(1)

    guard.warm(target, targets.TARGETS[target].seeds(targets.seeds.golden_files()))

    def one_input(data: bytes) -> None:
        found = guard.tried(target, data, limits)
        if found is not None and guard.saved(found, target, data, Path(findings)):
            print(f"finding of {target}: {found.key}", file=sys.stderr, flush=True)

    def changed(data: bytes, most: int, seed: int) -> bytes:
        random = Random(seed)

        def change(part: bytes, random: Random) -> bytes:
            if part and random.random() < 0.5:
                return bytes(atheris.Mutate(part, len(part) + 64))
            return bytes(importlib.import_module("fuzzing.mutate").changed_bytes(part, random))

        return bytes(importlib.import_module("fuzzing.mutate").changed_file(data, random, change))[:most]

    options = {"custom_mutator": changed} if mutate is not None else {}
    # When it merges, libFuzzer starts itself again, by what it believes to be its own name.
    itself = shlex.join([sys.executable, *sys.argv[:4]])
    atheris.Setup([itself, *arguments], one_input, **options)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
