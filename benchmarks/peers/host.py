"""Runs a peer in its own environment: `python -P benchmarks/peers/host.py PEER FOLDER`.

Each variant is quantized, written, and read back from its files alone. A variant that fails says so in its report, and
the others go on.
"""

import json
import sys
import time
import traceback
from importlib import import_module
from importlib.metadata import version
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any


def open_package() -> None:
    """Makes `peers` importable without its folder on the path, where its files would hide the libraries they name."""
    folder = Path(__file__).parent
    spec = spec_from_file_location("peers", folder / "__init__.py", submodule_search_locations=[str(folder)])
    assert spec is not None and spec.loader is not None
    sys.modules["peers"] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules["peers"])


def main(name: str, place: str) -> None:
    """Every variant that the job names, in one process, so that the library is imported once."""
    open_package()
    protocol = import_module("peers.protocol")
    peer: Any = import_module(f"peers.{name}")
    folder = Path(place)
    wanted = json.loads((folder / protocol.JOB).read_text("utf-8"))["variants"]
    for variant in (variant for variant in peer.VARIANTS if variant.name in wanted):
        out = folder / variant.name
        files = out / protocol.FILES
        files.mkdir(parents=True)
        report: dict[str, Any] = {"error": "", "seconds": {}, "versions": {}}
        stage, started = "quantize", time.monotonic()
        try:
            report["versions"] = {package: version(package) for package in ("torch", *peer.PACKAGES)}
            peer.quantize(protocol.read_weights(folder, variant), variant, files)
            report["seconds"][stage] = round(time.monotonic() - started, 2)
            stage, started = "load", time.monotonic()
            found = peer.load(files, variant)
            protocol.save_file({k: v.detach().float().contiguous() for k, v in found.items()}, out / protocol.WEIGHTS)
            report["seconds"][stage] = round(time.monotonic() - started, 2)
        except Exception as error:  # whatever a peer's library raises is what is reported
            traceback.print_exc()
            report["error"] = f"{stage}: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        (out / protocol.REPORT).write_text(json.dumps(report), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
