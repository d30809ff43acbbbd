"""What needs a GPU: graphs are captured and timed, kernels and models are right before they are."""

from pathlib import Path

import pytest
import torch

from quantgolf.bench import decode, model
from quantgolf.bench.cases import plan
from quantgolf.bench.clock import EventTimer, GraphTimer, measure
from quantgolf.bench.kernels import Bench, run_shape
from quantgolf.bench.machine import conditions, open_gpu
from quantgolf.bench.roofline import measured_ceilings
from quantgolf.models.golf import GolfConfig
from quantgolf.runtime import load

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch sees none"),
]


def test_a_graph_takes_the_time_of_what_it_runs() -> None:
    gpu = open_gpu("this")
    large, small = (torch.randn(size, size, device=gpu.device) for size in (4096, 512))
    times = [measure(GraphTimer(gpu.device), [lambda x=x: x @ x]).seconds for x in (large, small)]
    assert times[0] > 10 * times[1] > 0
    eager = measure(EventTimer(gpu.device), [lambda: large @ large]).seconds
    assert eager == pytest.approx(times[0], rel=0.5)


def test_kernels_are_right_and_timed_in_every_kind() -> None:
    gpu = open_gpu("this")
    timer = GraphTimer(gpu.device)
    ceilings = measured_ceilings(timer, gpu.device, nbytes=1 << 26, square=1024)
    bench = Bench(timer, gpu.device, torch.bfloat16, 1 << 20, ceilings, conditions(gpu))
    for shape, matrices in plan([3, 4, 6, 8], [(520, 384)], [1, 5, 64, 200]):
        rows = list(run_shape(bench, shape, matrices, []))
        assert all(row["us"] > 0 and row["gpu"] == gpu.name for row in rows)


@pytest.mark.parametrize("form", ["slope", "4"])
def test_models_are_right_and_timed(tmp_path: Path, form: str) -> None:
    gpu = open_gpu("this")
    path = tmp_path / "a.qg"
    config = GolfConfig(vocab_size=512, dim=256, layers=2, heads=4, kv_heads=2, mlp_mult=2)
    path.write_bytes(model.random_file(config, form))
    packed, dense, exact = (
        load(path, device=gpu.device, materialize=whole, dtype=dtype)
        for whole, dtype in ((False, torch.bfloat16), (True, torch.bfloat16), (True, torch.float32))
    )
    setting = decode.Setting(
        GraphTimer(gpu.device), EventTimer(gpu.device), gpu.device, torch.bfloat16, torch.compile, length=64, batch=4
    )
    rows = decode.compare(setting, form, packed, dense, exact, ("decode", "eval"))
    assert [row["name"] for row in rows] == ["model decode", "model eval"]
    assert all(row["tokens_per_second"] > 0 and row["of_dense_bytes"] < 0.6 for row in rows)
