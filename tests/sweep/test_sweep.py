"""Sweeps of an untrained model: killed and typed again, failing points, foreign files, shards, searches, and plans."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from quantgolf.checkpoint import Checkpoint
from quantgolf.compress import compress
from quantgolf.compress.pipeline import calibrate
from quantgolf.data import Corpus
from quantgolf.errors import QuantGolfError
from quantgolf.solve.trellis import Trellis
from quantgolf.sweep import Effort, Opener, Outcome, Recipe, sweep
from quantgolf.sweep import process as process_module
from quantgolf.sweep.asked import Judge, Learned
from quantgolf.sweep.crew import processes
from quantgolf.sweep.front import best_of, front
from quantgolf.sweep.plan import read_point, recipe_of, write_point
from quantgolf.sweep.point import FrontierPoint
from quantgolf.sweep.recipe import rules_of, widths_of
from quantgolf.sweep.run import session
from quantgolf.sweep.search import Search, sensitivity
from quantgolf.sweep.store import Claim, ResultsFile

pytestmark = pytest.mark.usefixtures("one_thread")
SAME = ("bytes", "digest", "kl", "bpb", "float_bpb", "delta_bpb", "top1", "worst", "kinds", "tensors", "documents")
CHILD = """
import pickle, sys
from quantgolf.sweep import Effort, Opener, sweep
text, judged, axes = pickle.load(open("sweep.pickle", "rb"))
sweep(Opener("tiny.safetensors", "."), text, judged, axes, "killed.jsonl", tokens=512, length=64, effort=Effort(jobs=1))
"""


def swept(source: Checkpoint, texts: tuple[Corpus, Corpus], axes: Any, out: Path, **more: Any) -> Outcome:
    return sweep(source, *texts, axes, out, **{"tokens": 512, "length": 64, **more})


def measured(point: FrontierPoint) -> dict[str, Any]:
    return {name: asdict(point)[name] for name in SAME}


def test_killed_in_the_middle_and_gone_on_with_it_is_as_if_undisturbed(
    tiny: Checkpoint, tiny_path: Path, texts: tuple[Corpus, Corpus]
) -> None:
    folder = tiny_path.parent
    axes = {"solver": ["slope", "gptq"], "states": [1], "max_bytes": "18kB:22kB:2kB"}
    whole = swept(tiny, texts, axes, folder / "whole.jsonl")
    assert len(whole.done) == 6 and whole.made == 6
    (folder / "sweep.pickle").write_bytes(pickle.dumps((*texts, axes)))
    killed, environment = ResultsFile(folder / "killed.jsonl"), {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-c", CHILD], cwd=folder, env=environment) as process:
        deadline = time.monotonic() + 300
        while len(killed.read().points) < 2 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    kept = set(killed.read().points)
    assert 2 <= len(kept) < 6, "it was killed in the middle"
    with killed.path.open("a") as stream:
        stream.write(whole.points[0].line()[:100])
    again = swept(tiny, texts, axes, killed.path)
    assert again.made == 6 - len(kept) and any("half written" in note for note in again.notes)
    assert [measured(point) for point in again.points] == [measured(point) for point in whole.points]
    assert len(killed.path.read_text().splitlines()) == 6  # no point was made twice
    assert swept(tiny, texts, axes, killed.path).made == 0


def test_points_that_cannot_be_made_fail_and_others_go_on(
    tiny: Checkpoint, texts: tuple[Corpus, Corpus], tmp_path: Path
) -> None:
    axes = {"solver": ["gptq"], "max_bytes": [5000, 18_000, 20_000]}
    first = swept(tiny, texts, axes, tmp_path / "r.jsonl")
    assert [point.status for point in first.points] == ["failed", "done", "done"]
    assert "5,000 bytes cannot be met" in first.points[0].error and "--max-bytes 1" in first.points[0].error
    assert swept(tiny, texts, axes, tmp_path / "r.jsonl").made == 0
    again = swept(tiny, texts, axes, tmp_path / "r.jsonl", effort=Effort(retry=True))
    assert again.made == 1 and [point.status for point in again.points] == ["failed", "done", "done"]


def test_a_point_is_the_file_that_compress_makes_and_what_lies_in_it_sums_to_its_bytes(
    tiny: Checkpoint, texts: tuple[Corpus, Corpus], tmp_path: Path
) -> None:
    axes = {"solver": ["slope", "gptq"], "max_bytes": [21_000], "states": [8], "group_size": ["16+row"]}
    found = swept(tiny, texts, axes, tmp_path / "r.jsonl").done
    calibration = calibrate(tiny, texts[0], tokens=512, length=64)
    for point in found:
        plain = compress(
            tiny, calibration, max_bytes=point.limit, solver=point.options["solver"], guard=False, tuning=False,
            group_sizes=None if point.options["solver"] == "slope" else (16, None), trellis=Trellis(8),
        )  # fmt: skip
        assert len(plain.data) == point.bytes == sum(point.kinds.values())
        rest = point.kinds["header"] + point.kinds["checksum"] + point.kinds["small tensors"]
        assert sum(t.bytes for t in point.tensors) == pytest.approx(point.bytes - rest)
        assert {t.depth for t in point.tensors} == {0, 1, None} and {"emb", "attn.q"} < {t.role for t in point.tensors}
        assert point.kl is not None and point.top1 is not None and point.worst is not None
        assert sum(point.documents.kl) == pytest.approx(point.kl.value * 0.6931 * sum(point.documents.bytes), rel=1e-3)  # type: ignore[union-attr]


def test_results_and_statistics_of_something_else_are_refused(
    tiny: Checkpoint, texts: tuple[Corpus, Corpus], tmp_path: Path
) -> None:
    out, axes = tmp_path / "r.jsonl", {"solver": ["rtn"], "bits": "4"}
    swept(tiny, texts, axes, out)
    other = replace(tiny, tensors={**tiny.tensors, "emb.weight": tiny.tensors["emb.weight"] * 2})
    with pytest.raises(QuantGolfError, match=r"of the model model .*expected the same; choose another --out"):
        swept(other, texts, axes, out)
    with pytest.raises(QuantGolfError, match=r"another text or with other windows .*tokens"):
        swept(tiny, (texts[0], texts[0]), axes, out)
    with pytest.raises(QuantGolfError, match="length 64 and not 32"):
        swept(tiny, texts, axes, out, length=32)
    with pytest.raises(QuantGolfError, match="made with tokens 512 and not 256"):
        swept(tiny, texts, axes, out, tokens=256)
    assert len(out.read_text().splitlines()) == 1
    with pytest.raises(QuantGolfError, match="the grid is empty"):
        swept(tiny, texts, {}, out)


def test_shards_divide_the_grid(tiny: Checkpoint, texts: tuple[Corpus, Corpus], tmp_path: Path) -> None:
    axes, out = {"solver": ["rtn"], "bits": "3:7"}, tmp_path / "r.jsonl"
    first, second = (swept(tiny, texts, axes, out, effort=Effort(shard=(at, 2))) for at in (1, 2))
    assert (first.made, second.made) == (3, 2)
    assert not {p.key for p in first.points} & {p.key for p in second.points}
    whole = swept(tiny, texts, axes, out)
    assert whole.made == 0 and [p.options["bits"] for p in whole.points] == list("34567")
    with pytest.raises(QuantGolfError, match="shard 3/2"):
        Effort(shard=(3, 2))


def test_a_point_that_another_sweep_makes_is_waited_for(
    tiny: Checkpoint, texts: tuple[Corpus, Corpus], tmp_path: Path
) -> None:
    out = tmp_path / "r.jsonl"
    recipes = [Recipe("rtn", bits="4"), Recipe("rtn", bits="5")]
    with session(tiny, Learned(texts[0], 512, 64), Judge(texts[1], 64), out, model="m") as going:
        other = Claim(out.with_name("r.jsonl.work") / "claims", going.key(recipes[0]))
        assert other.take()
        going.crew.note = lambda line: (going.notes.append(line), other.drop())  # type: ignore[assignment]
        found = going.points(recipes)
    assert len(found.done) == 2 and "another sweep on this file makes 1" in found.notes[0]


def test_sensitivity_raises_one_matrix_or_role_at_a_time(
    tiny: Checkpoint, texts: tuple[Corpus, Corpus], tmp_path: Path
) -> None:
    with session(tiny, Learned(texts[0], 512, 64), Judge(texts[1], 64), tmp_path / "r.jsonl", model="m") as going:
        found = sensitivity(going, {"solver": ["rtn"], "bits": ["3"]}, 0)
        roles = sensitivity(going, {"solver": ["rtn"], "bits": ["3"]}, 0, by_role=True, high=6)
        with pytest.raises(QuantGolfError, match="no widths to move"):
            sensitivity(going, {"solver": ["slope"], "max_bytes": [18_000]}, 0)
        with pytest.raises(QuantGolfError, match="2 plans"):
            sensitivity(going, {"bits": ["3", "4"]}, 0)
    base, *raised = found.done
    assert len(raised) == len(base.tensors) and "raised" not in base.options
    for point in raised:
        wide = [tensor.name for tensor in point.tensors if tensor.bits == 8]
        assert point.options["raised"] == f"{wide[0]}=8" and len(wide) == 1 and (point.bytes or 0) > (base.bytes or 0)
    assert len(roles.done) == 1 + len({tensor.role for tensor in base.tensors})
    assert {t.role for t in roles.done[1].tensors if t.bits == 6} == {roles.done[1].options["raised"].partition("=")[0]}


@pytest.mark.parametrize("kind", ["random:3", "local:5"])
def test_a_search_stays_within_the_limit_and_goes_on_where_it_was(
    kind: str, tiny: Checkpoint, texts: tuple[Corpus, Corpus], tmp_path: Path
) -> None:
    def searched(out: str) -> Outcome:
        with session(tiny, Learned(texts[0], 512, 64), Judge(texts[1], 64), tmp_path / out, model="m") as going:
            return Search.parse(kind, 7, None).run(going, {"solver": ["rtn"], "max_bytes": [21_000]}, 0)

    found = searched("r.jsonl")
    assert len(found.points) == int(kind[-1]) + 1 == found.made and len({p.key for p in found.points}) == found.made
    assert all((point.bytes or 0) <= 21_000 for point in found.done) and len(found.done) > 1
    lines = (tmp_path / "r.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "half.jsonl").write_text("".join(lines[:3]))
    again = searched("half.jsonl")
    assert again.made == found.made - 3 and [p.key for p in again.points] == [p.key for p in found.points]


def test_rules_of_widths_give_each_name_its_own() -> None:
    widths = {"emb.weight": 4, "a.emb.weight": 5, "a.emb.weight.0": 6}
    rules = [(name, int(width)) for name, _, width in (r.partition("=") for r in rules_of(widths).split(","))]
    assert widths_of(rules, widths) == widths
    assert widths_of([("attn", 3), ("*", 5)], ["blocks.0.self_attn.q_proj.weight", "up"]) == {
        "blocks.0.self_attn.q_proj.weight": 3, "up": 5,
    }  # fmt: skip
    with pytest.raises(QuantGolfError, match="no pattern matches up"):
        widths_of([("attn", 3)], ["blocks.0.attn.q.weight", "up"])


def test_a_plan_is_read_by_the_beginning_of_its_key_and_refused_for_another_model(
    tiny: Checkpoint, texts: tuple[Corpus, Corpus], tmp_path: Path
) -> None:
    found = swept(tiny, texts, {"solver": ["rtn"], "bits": "4,5", "codec": "rans"}, tmp_path / "r.jsonl").done
    write_point(tmp_path / "p.json", found[1])
    point = read_point(tmp_path / "p.json")
    assert point == read_point(tmp_path / "r.jsonl", found[1].key[:6])
    assert recipe_of(point, tiny.fingerprint) == Recipe("rtn", bits="5", codec="rans")
    for path, key, message in (
        ("r.jsonl", None, "2 points, expected one of"), ("r.jsonl", "zz", "no points have keys that begin with zz"),
        ("none", None, "no such file"),
    ):  # fmt: skip
        with pytest.raises(QuantGolfError, match=message):
            read_point(tmp_path / path, key)
    with pytest.raises(QuantGolfError, match="give the checkpoint that was swept"):
        recipe_of(point, "another")
    with pytest.raises(QuantGolfError, match="none of a sweep"):
        recipe_of(replace(point, options={"peer": "HQQ"}), tiny.fingerprint)
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(QuantGolfError, match="no point in it"):
        read_point(tmp_path / "empty")


def test_the_frontier_and_the_best_within_bytes(tiny: Checkpoint, texts: tuple[Corpus, Corpus], tmp_path: Path) -> None:
    done = swept(tiny, texts, {"solver": ["rtn"], "bits": "3,8,5"}, tmp_path / "r.jsonl").done
    beaten = replace(done[0], key="x", kl=replace(done[0].kl, value=9.0))  # type: ignore[type-var]
    assert front([*done, beaten], lambda point: point.kl and point.kl.value) == {point.key for point in done}
    assert best_of(done).options["bits"] == "8" and best_of(done, done[2].bytes).options["bits"] == "5"
    with pytest.raises(QuantGolfError, match="no point fits 9 bytes, the smallest has"):
        best_of(done, 9)


def test_memory_decides_how_many_processes_run() -> None:
    assert processes(4, 24, 10**9, 5 * 10**9) == (4, "")
    assert processes(4, 2, 10**9, 5 * 10**9) == (2, "")
    count, why = processes(4, 24, 2 * 10**9, 5 * 10**9)
    assert count == 2 and why == "2 of 4 processes run: each takes up to 2.0 GB, and there are 5.0 GB"
    with pytest.raises(QuantGolfError, match=r"--memory 1,000 is too little.*give --memory 2000"):
        processes(4, 24, 2000, 1000)


def test_a_checkpoint_that_is_open_here_has_no_processes_and_names_that_do_are_checked(
    tiny: Checkpoint, tiny_path: Path, texts: tuple[Corpus, Corpus], tmp_path: Path
) -> None:
    with pytest.raises(QuantGolfError, match="jobs is 2 and the checkpoint is open in this process"):
        swept(tiny, texts, {"bits": "4"}, tmp_path / "r.jsonl", effort=Effort(jobs=2))
    with pytest.raises(QuantGolfError):
        sweep(Opener(tmp_path / "none.safetensors", tiny_path.parent), *texts, {"bits": "4"}, tmp_path / "r.jsonl")
    assert not (tmp_path / "r.jsonl").exists()
    json.dumps(Recipe("gptq", bits="4").options())


def test_a_point_that_kills_its_processes_is_not_final_and_a_plain_rerun_makes_it(
    tiny_path: Path, texts: tuple[Corpus, Corpus], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, out = subprocess.Popen, tmp_path / "r.jsonl"
    killed = (
        "import os, quantgolf.sweep.worker as w; w.Maker.point = lambda maker, job: os.kill(os.getpid(), 9); w.main()"
    )
    opener, grid = Opener(tiny_path, tiny_path.parent / "card.json"), {"solver": ["rtn"], "bits": "4"}
    with monkeypatch.context() as patch:
        patch.setattr(
            process_module.subprocess, "Popen", lambda _, **given: start([sys.executable, "-c", killed], **given)
        )
        (point,) = swept(opener, texts, grid, out, effort=Effort(jobs=1)).failed  # type: ignore[arg-type]
    assert "two processes that were to make it ended, the last one by signal 9" in point.error and not point.final
    found = swept(opener, texts, grid, out, effort=Effort(jobs=1))  # type: ignore[arg-type]
    assert found.made == 1 and not found.failed and ResultsFile(out).read().points == {found.done[0].key: found.done[0]}
