"""Several processes write what one writes, byte for byte; and where one of them stops, the others say so and end.

Starting a process costs more than all it does here, so that three of them run every job, one after another: each
job takes the first one, two or three of them.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from quantgolf.models.golf import Golf, GolfConfig
from quantgolf.ranks import Ranks, joined

LIMIT = 300  # seconds; two workers of pytest make this module's files at once, on two cores
CONFIG = {"vocab_size": 256, "dim": 32, "layers": 2, "heads": 2, "kv_heads": 1, "mlp_mult": 2}
DRIVER = """
import contextlib, io, json, os, sys, torch
from quantgolf.cli import main
from quantgolf.errors import QuantGolfError
from quantgolf.ranks import joined


def refuses(job):
    raise QuantGolfError(f"job {job} has no solution, expected one; take another")


def spread():
    with joined() as ranks:
        print(ranks.spread([3, 2, 1], lambda job: (job, ranks.rank)), ranks.gather(ranks.rank))
        ranks.spread([1, 1], lambda job: job if job == 0 else refuses(job))


rank, found = int(os.environ["RANK"]), {}
for job in json.load(open(sys.argv[1])):
    if rank >= job["world"]:
        continue
    os.environ |= {"WORLD_SIZE": str(job["world"]), "MASTER_PORT": str(job["port"]), "JOB": job["name"]}
    sys.argv[1:], out, err, status = job["arguments"], io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main() if sys.argv[1:] else spread()
        except SystemExit as exit:
            status = exit.code or 0
        except QuantGolfError as error:
            status = str(error)
    found[job["name"]] = [status, out.getvalue(), err.getvalue()]
    assert torch.get_num_threads() == 1, "OMP_NUM_THREADS does not count any more"
    with open(f"rank{rank}.json", "w") as file:
        json.dump(found, file)
    os.path.exists("hanging") and rank == 0 and open("released", "w").close()
"""
# Calls with gradients are those of calibration, not of a look before it.
SCRIPT = """
import os, time, torch
from quantgolf.models.golf import Golf, GolfConfig


class Mortal(Golf):
    calls = 0

    def forward(self, tokens):
        if os.environ.get("RANK") == "1" and torch.is_grad_enabled():
            self.calls += 1
            if self.calls == 2 and os.environ["JOB"] == "death":
                os._exit(7)
            if self.calls == 2 and os.environ["JOB"] == "hang":
                open("hanging", "w").close()
                while not os.path.exists("released"):
                    time.sleep(0.05)
        return super().forward(tokens)


def build():
    return Mortal(GolfConfig(**CONFIG))
"""


@dataclass(frozen=True)
class Outcomes:
    """What every rank did in every job, [exit status, standard output, standard error], and where the files are."""

    folder: Path
    statuses: dict[int, int]
    of: dict[str, list[tuple[Any, str, str]]] = field(default_factory=dict)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and text for all jobs: three batches, so that two ranks have unequal work."""
    folder, model = tmp_path_factory.mktemp("ranks"), Golf(GolfConfig(**CONFIG))
    generator = torch.Generator().manual_seed(5)
    state = {name: 0.2 * torch.randn(p.shape, generator=generator) for name, p in model.state_dict().items()}
    save_file({name: tensor.half() for name, tensor in state.items()}, folder / "tiny.safetensors")
    (folder / "card.json").write_text(json.dumps({"family": "golf", "config": CONFIG}))
    (folder / "script.py").write_text(SCRIPT.replace("CONFIG", repr(CONFIG)))
    (folder / "driver.py").write_text(DRIVER)
    lines = [f"{'Sentence' * (i % 4)} {i} says that {i * i} is the square of {i}.\n" for i in range(900)]
    (folder / "prose.txt").write_text("".join(lines))
    return folder


TEXT = ["--tokenizer", "bytes", "--no-bos", "--data", "prose.txt", "--length", "64"]
SOURCE = ["tiny.safetensors", "--model", "card.json", *TEXT, "--tokens", "8256"]  # batches of 4,096, 4,096 and 64
ISOLATED = ["tiny.safetensors", "--model", "card.json", *TEXT, "--tokens", "3000", "--context", "isolated"]
MORTAL = ["tiny.safetensors", "--model", "script.py:build", *TEXT, "--tokens", "3000", "--context", "isolated"]


def environment(**more: object) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", **{k: str(v) for k, v in more.items()}}


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> Outcomes:
    jobs: list[dict[str, Any]] = []

    def job(world: int, name: str, *arguments: str) -> None:
        jobs.append({"world": world, "name": name, "port": free_port(), "arguments": arguments})

    for world in (3, 2, 1):
        job(world, f"plain{world}", "compress", *SOURCE, "--max-bytes", "15kB", "--out", f"plain{world}.qg", "--json")
    for world in (2, 1):
        job(world, f"isolated{world}", "compress", *ISOLATED, "--bits", "3", "--out",
            f"isolated{world}.qg", "--json")  # fmt: skip
        job(world, f"stats{world}", "calibrate", *SOURCE, "--out", f"stats{world}", "--json")
        job(world, f"offload{world}", "compress", *SOURCE, "--max-bytes", "15kB", "--offload", "--out",
            f"offload{world}.qg", "--json")  # fmt: skip
    job(2, "budget", "compress", *SOURCE, "--bits", "3", "--max-bytes", "8850", "--out", "budget.qg")
    job(2, "spread")
    job(2, "hang", "compress", *MORTAL, "--bits", "3", "--out", "hang.qg", "--rank-timeout", "0.1")
    job(2, "death", "calibrate", *MORTAL, "--out", "death")
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, "driver.py", "jobs.json"]
    processes = [subprocess.Popen(command, cwd=folder, env=environment(RANK=rank)) for rank in range(3)]
    try:
        found = Outcomes(folder, {rank: process.wait(LIMIT) for rank, process in enumerate(processes)})
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for rank in range(3):
        for name, outcome in json.loads((folder / f"rank{rank}.json").read_text()).items():
            found.of.setdefault(name, []).append(tuple(outcome))
    return found


def names(folder: Path) -> Iterator[str]:
    return (path.name for path in folder.iterdir())


@pytest.mark.parametrize("kind", ["plain", "isolated", "offload"])
def test_the_file_of_several_processes_is_that_of_one(outcomes: Outcomes, kind: str) -> None:
    worlds = (1, 2, 3) if kind == "plain" else (1, 2)
    files = [(outcomes.folder / f"{kind}{world}.qg").read_bytes() for world in worlds]
    assert all(file == files[0] for file in files) and len(files[0]) > 5000
    reports = []
    for world in worlds:
        first, *others = outcomes.of[f"{kind}{world}"]
        assert first[0] == 0 and others == [(0, "", "")] * (world - 1)  # only the first one speaks
        reports.append({**json.loads(first[1]), "file": ""})
        if (tuning := reports[-1]["tuning"]) is not None:
            assert tuning["steps"] > 0
            tuning |= {"seconds": 0, "line": ""}  # which says them too
    assert all(report == reports[0] for report in reports)


def test_statistics_on_disk_are_gone_afterwards(outcomes: Outcomes) -> None:
    assert not [name for name in names(outcomes.folder) if name.endswith(".qgtmp") and "death" not in name]


def test_the_statistics_of_two_processes_are_those_of_one(outcomes: Outcomes) -> None:
    one, two = outcomes.folder / "stats1", outcomes.folder / "stats2"
    assert sorted(names(one)) == sorted(names(two)) == ["statistics-00000.safetensors", "statistics.json"]
    assert (one / "statistics.json").read_text() == (two / "statistics.json").read_text()
    first, second = load_file(one / "statistics-00000.safetensors"), load_file(two / "statistics-00000.safetensors")
    assert first.keys() == second.keys() and len(first) > 13 and sum(key.endswith("/outputs") for key in first) == 12
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_budget_that_cannot_be_met_ends_every_process(outcomes: Outcomes) -> None:
    for status, out, err in outcomes.of["budget"]:
        assert status == 3 and not out
        assert "with 3 bits everywhere file and code take up to 8,914" in err  # found out by all, after solving
    assert "budget.qg" not in names(outcomes.folder)


def test_what_one_process_raises_all_raise(outcomes: Outcomes) -> None:
    for status, out, _ in outcomes.of["spread"]:
        assert status == "job 1 has no solution, expected one; take another"
        assert out == "[(0, 0), (1, 1), (2, 1)] [0, 1]\n"


def test_a_process_that_hangs_is_not_waited_for(outcomes: Outcomes) -> None:
    assert "hanging" in names(outcomes.folder) and "hang.qg" not in names(outcomes.folder)
    for rank, (status, out, err) in enumerate(outcomes.of["hang"]):  # the one that slept finds the others gone
        assert status == 2 and not out
        assert (
            err.splitlines()[-1].startswith(f"quantgolf, rank {rank}: the ranks lost each other")
            and "Traceback" not in err
        )


def test_a_process_that_dies_is_missed(outcomes: Outcomes) -> None:
    assert outcomes.statuses == {0: 0, 1: 7, 2: 0}
    ((status, out, err),) = outcomes.of["death"]
    assert status == 2 and not out and "Traceback" not in err
    assert err.splitlines()[-1].startswith("quantgolf, rank 0: the ranks lost each other")
    assert err.splitlines()[-1].endswith("nothing was written")
    assert not [name for name in names(outcomes.folder) if "death" in name]


def test_torchrun_as_users_type_it(outcomes: Outcomes) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port", str(free_port())]
    done = subprocess.run(
        [*command, "-m", "quantgolf", "compress", *SOURCE, "--max-bytes", "15kB", "--out", "torchrun.qg"],
        cwd=outcomes.folder, env=environment(), capture_output=True, text=True, encoding="utf-8", timeout=LIMIT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("torchrun.qg: ") == 1
    assert (outcomes.folder / "torchrun.qg").read_bytes() == (outcomes.folder / "plain1.qg").read_bytes()


@given(st.lists(st.floats(0, 1e9), max_size=40), st.integers(1, 9))
def test_work_is_divided_evenly(costs: list[float], world: int) -> None:
    owner = Ranks(0, world).divide(costs)
    assert len(owner) == len(costs) and set(owner) <= set(range(world))
    assert owner == Ranks(world - 1, world).divide(costs)  # nobody has to tell anybody
    loads = [sum(cost for cost, mine in zip(costs, owner, strict=True) if mine == rank) for rank in range(world)]
    assert max(loads) - min(loads) <= max(costs, default=0) * (1 + 1e-9)


def test_one_process_is_the_case_of_one_rank() -> None:
    done: list[int] = []
    with joined() as ranks:
        assert ranks == Ranks(0, 1) and ranks.writes and ranks.gather("x") == ["x"]
        assert ranks.spread([1, 5, 3], lambda job: job * 10, done.append) == [0, 10, 20]
        ranks.share([torch.zeros(2)], 0)
    assert done == [1, 2, 3]
