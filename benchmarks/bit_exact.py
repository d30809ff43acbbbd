"""The same file, the same weights: every golden file decoded under other threads, processors, compilers and libraries.

    python benchmarks/bit_exact.py

Each case is a process of its own that decodes all golden files with quantgolf's reader and with the exported decoder,
makes them anew, and decodes and makes a file of the demo's size; all digests have to be the committed ones, and those
of the first case. Features of processors are switched off rather than processors exchanged: numpy, torch and numba are
told to do without AVX2, AVX-512 and fused multiplication, and numba also to compile nothing. `--libraries` installs
other versions of numpy and zstandard into temporary folders.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from hashlib import blake2b
from pathlib import Path
from typing import Annotated

import typer
from reliability_rows import RESULTS, Row

TESTS = Path(__file__).parents[1] / "tests" / "blob"
PLAIN = {"NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3 AVX512F AVX512CD AVX512_SKX", "ATEN_CPU_CAPABILITY": "default",
         "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}  # fmt: skip
CASES: dict[str, dict[str, str]] = {
    "1 thread": {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    "2 threads": {"OMP_NUM_THREADS": "2", "NUMBA_NUM_THREADS": "2"},
    "7 threads": {"OMP_NUM_THREADS": "7", "NUMBA_NUM_THREADS": "7"},
    "without AVX2, AVX-512 and FMA": PLAIN,
    "nothing compiled": {"NUMBA_DISABLE_JIT": "1"},
}
LIBRARIES = ("numpy==2.0.2", "numpy==2.2.6", "zstandard==0.23.0")


def tell() -> None:
    """Prints the digests of this process as JSON: of decoded tensors, of both readers, and of files made anew."""
    import numpy as np
    import torch

    from quantgolf.blob import pack, parse
    from quantgolf.decoder.source import load
    from quantgolf.encode import Entry, Leveled, encode_model
    from quantgolf.runtime import restore
    from quantgolf.solve.trellis import Trellis
    from quantgolf.types import Block, Exponents

    spec = importlib.util.spec_from_file_location("goldens", TESTS / "goldens.py")
    assert spec is not None and spec.loader is not None
    goldens = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(goldens)
    found: dict[str, str] = {}
    for path in sorted((TESTS / "golden").glob("*.qg")):
        data = path.read_bytes()
        listed = json.loads(path.with_suffix(".json").read_text())
        tensors = {name: goldens.digest(each) for name, each in restore(parse(data)[1]).items()}
        for name, each in load(data, exact=True)[0].items():
            found[f"{path.name} {name}"] = tensors[name] + " " * (goldens.digest(each) != tensors[name])
            if path.stem.endswith("_v1") and listed[name][2] != tensors[name]:
                found[f"{path.name} {name}"] += " not the committed one"
    for name, make in goldens.MAKERS.items():
        found[f"{name} made"] = blake2b(pack(make(), goldens.DESCRIPTION), digest_size=16).hexdigest()
    if os.environ.get("NUMBA_DISABLE_JIT") == "1":
        print(json.dumps(found))
        return
    draw, trellis = np.random.default_rng(0), Trellis()
    entries = []
    for at, (rows, columns) in enumerate([(768, 768), (3072, 256), (256, 3072)]):
        targets = draw.integers(-40, 40, (rows, columns)) * draw.integers(1, 9, rows)[:, None] / 8
        levels = np.stack([trellis.quantize(column) for column in targets.T], axis=1)
        steps = Exponents(torch.arange(rows).short() % 23 - 40, torch.arange(columns).short() % 19 - 9, -30)
        part = Leveled(Block(f"w{at}", 1, 0, rows), steps, torch.from_numpy(levels))
        entries.append(Entry(f"w{at}", torch.zeros(rows, columns), (part,)))
    data = pack(encode_model(entries, trellis), None)
    found["wide made"] = blake2b(data, digest_size=16).hexdigest()
    found |= {f"wide {name}": goldens.digest(each) for name, each in restore(parse(data)[1]).items()}
    print(json.dumps(found))


def told(environment: dict[str, str]) -> dict[str, str]:
    """What a process says under an environment."""
    done = subprocess.run(
        [sys.executable, __file__, "--tell"], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found: dict[str, str] = json.loads(done.stdout)
    return found


def main(
    tell_only: Annotated[bool, typer.Option("--tell", hidden=True)] = False,
    libraries: Annotated[bool, typer.Option(help="Also under other versions of libraries, from the registry.")] = True,
    out: Annotated[Path, typer.Option(help="JSON lines; appended to.")] = RESULTS,
) -> None:
    """Decode the golden files in many ways and compare."""
    if tell_only:
        tell()
        return
    with tempfile.TemporaryDirectory() as scratch:
        cases = dict(CASES)
        for library in LIBRARIES if libraries else ():
            place = Path(scratch) / library
            subprocess.run(
                [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(place), library],
                check=True,
            )
            cases[library.replace("==", " ")] = {"PYTHONPATH": str(place)}
        first: dict[str, str] | None = None
        for name, environment in cases.items():
            begun = time.monotonic()
            found = told(environment | {"NUMBA_CACHE_DIR": str(Path(scratch) / "cache" / name)})
            first = first or found
            # Another libzstd may pack a file otherwise; what it unpacks has to be the same.
            same = {key: value for key, value in found.items() if not ("zstandard" in name and key.endswith(" made"))}
            wrong = [key for key, value in same.items() if " " in value or first[key] != value]
            print(f"{name}: {len(same)} digests, {len(wrong)} differ {wrong[:5]}", flush=True)
            row = Row("Bit-exact", name, "python benchmarks/bit_exact.py", len(same), 0, len(wrong),
                      time.monotonic() - begun)  # fmt: skip
            row.append(out)


if __name__ == "__main__":
    typer.run(main)
