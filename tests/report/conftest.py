"""Points made up for pictures and pages: their bytes and losses are those of no model."""

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantgolf.sweep.point import Documents, FrontierPoint, Measured, Tensor

sys.path.insert(0, str(Path(__file__).parent))  # for browser.py

Make = Callable[..., FrontierPoint]
PARAMETERS = 2_000_000
ROLES = ("attn.q", "attn.v", "mlp.up", "mlp.down")


@pytest.fixture
def make() -> Make:
    return made


def made(method: str = "slope", size: int = 800_000, kl: float = 0.02, **changed: Any) -> FrontierPoint:
    """A measured point whose parts fit together."""
    tensors = [Tensor("emb.weight", "emb", None, 400_000, 4.0, 0.2 * size, 0.1 * kl)]
    for layer in range(3):
        for index, role in enumerate(ROLES):
            name = f"blocks.{layer}.{role}.weight"
            tensors.append(Tensor(name, role, layer, 120_000, 3 + 0.3 * index, 0.06 * size, kl * (1 + index) / 40))
    rng = np.random.default_rng(5)
    share = rng.uniform(0.5, 1.5, 8)
    nats = tuple(float(v) for v in kl * math.log(2) * 8000 * share / share.sum())
    values: dict[str, Any] = {
        "key": f"{method}-{size}", "model": "demo", "fingerprint": "0123456789abcdef", "parameters": PARAMETERS,
        "method": method, "options": {"solver": method, "max_bytes": size}, "bytes": size, "limit": None,
        "text": {"fingerprint": "fedcba9876543210", "tokens": 3200, "bytes": 8000, "documents": 8},
        "float_bpb": 1.2, "bpb": 1.2 + 0.6 * kl, "delta_bpb": Measured(0.6 * kl, 0.5 * kl, 0.8 * kl),
        "kl": Measured(kl, 0.9 * kl, 1.1 * kl), "top1": 0.95, "worst": 2 * kl, "tensors": tuple(tensors),
        "kinds": {"levels": int(0.96 * size), "exponents": int(0.02 * size), "header": int(0.01 * size)},
        "documents": Documents((1000,) * 8, (400,) * 8, nats, nats), "versions": {"torch": "2.13.0"},
        "machine": "a machine", "date": "2026-11-28T12:00:00Z", "seconds": {"solve": 2.0},
    }  # fmt: skip
    return FrontierPoint(**{**values, **changed})


@pytest.fixture
def sweep(make: Make) -> list[FrontierPoint]:
    """Two methods at four limits, and a point that failed."""
    points = [
        make(method, size, factor * (400_000 / size) ** 3, limit=size + 100)
        for size in (400_000, 560_000, 800_000, 1_100_000)
        for method, factor in (("slope", 0.1), ("gptq", 0.25))
    ]
    return [*points, failed("gptq")]


@pytest.fixture
def comparison(make: Make) -> list[FrontierPoint]:
    """Sixteen methods on three models, most of them a single point with a size after xz."""
    points = []
    for model, times in (("demo", 1), ("golf", 2), ("large", 70)):
        own = {"model": model, "fingerprint": f"checkpoint of {model}", "parameters": PARAMETERS * times}
        for size in (400_000, 560_000, 800_000, 1_100_000):
            for method, factor in (("slope", 0.1), ("gptq", 0.25), ("rtn", 0.3)):
                points.append(make(method, size * times, factor * (400_000 / size) ** 3, **own))
        for index in range(13):
            # As 4-bit formats do, most of them crowd round one size and one loss.
            size, kl = int(times * (900_000 + 9_000 * (index % 5) ** 3)), 0.02 * (1 + 0.2 * (index * 5 % 13))
            points.append(
                make(f"other {index} 4-bit", size, kl, xz_bytes=int(0.9 * size), documents=None, tensors=(), kinds={},
                     **own)
            )  # fmt: skip
    return points


def failed(method: str = "rtn", error: str = "no such width fits", **changed: Any) -> FrontierPoint:
    empty = dict.fromkeys(("bytes", "float_bpb", "bpb", "delta_bpb", "kl", "top1", "worst", "documents"))
    values = {"key": f"{method}-failed", "status": "failed", "error": error, "tensors": (), "kinds": {}, **empty}
    return replace(made(method), **{**values, **changed})


@pytest.fixture
def fail() -> Make:
    return failed
