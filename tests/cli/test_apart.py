"""No command writes over what it reads, whatever it is asked, by whatever name or link, and says so in one line."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantgolf.checkpoint import read_demo
from quantgolf.cli import apart
from quantgolf.cli.inputs import TextOptions
from quantgolf.errors import QuantGolfError
from quantgolf.report import TITLES

pytestmark = pytest.mark.usefixtures("one_thread")
Run = Callable[..., tuple[int, str, str]]
METHOD = "def compress(state_dict):\n    return b''\n\n\ndef decompress(data):\n    return {}\n"


@pytest.fixture
def folder(tiny_path: Path, prose: Path) -> Path:
    """A folder with something of every kind that is read; nothing of it has to be sound, since it is not opened."""
    place = tiny_path.parent
    for name in ("index", "code", "grid", "byte", "eval", "shard", "plan", "blob", "script", "tokens"):
        (place / f"{name}.any").write_text(f"{name} as it was")
    index = {"weight_map": {"a": "shard.any", "b": "tiny.safetensors"}}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    (place / "method.py").write_text(METHOD)
    for name in ("stats", "hf"):
        (place / name).mkdir()
        (place / name / "config.json").write_text("{}")
        (place / name / "statistics.json").write_text("{}")
    return place


CKPT = ("tiny.safetensors", "--model", "card.json", "--tokenizer", "tokens.any", "--data", "prose.txt")
SWEEP = ("sweep", *CKPT, "--bits", "4")
BPB = ("bench", "bpb", *CKPT, "--method", "method.py:Any")


@pytest.mark.parametrize(
    ("typed", "out", "source"),
    [
        (("compress", *CKPT), "tiny.safetensors", "CKPT tiny.safetensors"),
        (("compress", *CKPT), "card.json", "--model card.json"),
        (("compress", *CKPT), "prose.txt", "--data prose.txt"),
        (("compress", *CKPT), "tokens.any", "--tokenizer tokens.any"),
        (("compress", *CKPT, "--dry-run"), "tokens.any", "--tokenizer tokens.any"),
        (("compress", *CKPT, "--byte-counts", "byte.any"), "byte.any", "--byte-counts byte.any"),
        (("compress", *CKPT, "--code", "grid.any", "--code", "code.any"), "code.any", "--code code.any"),
        (("compress", *CKPT, "--plan", "plan.any"), "plan.any", "--plan plan.any"),
        (("compress", *CKPT, "--stats", "stats"), "stats/statistics.json", "--stats stats/statistics.json"),
        (("compress", "hf", *CKPT[3:]), "hf/config.json", "CKPT hf/config.json"),
        (("compress", "tiny.safetensors", "--model", "hf:hf"), "hf/config.json", "--model hf/config.json"),
        (("compress", "tiny.safetensors", "--model", "method.py:build"), "method.py", "--model method.py"),
        (("compress", "tiny.safetensors", "--model", "."), "card.json", "--model card.json"),
        (("compress", "model.safetensors.index.json"), "shard.any", "CKPT shard.any"),
        (("compress", "./tiny.safetensors"), "stats/../tiny.safetensors", "CKPT tiny.safetensors"),
        (("calibrate", *CKPT), "hf/../tokens.any", "--tokenizer tokens.any"),
        (("decompress", "blob.any"), "blob.any", "FILE blob.any"),
        (("export-decoder", "--for", "blob.any"), "blob.any", "--for blob.any"),
        (SWEEP, "tiny.safetensors", "CKPT tiny.safetensors"),
        (SWEEP, "card.json", "--model card.json"),
        ((*SWEEP, "--grid", "grid.any"), "grid.any", "--grid grid.any"),
        ((*SWEEP, "--code", "code.any"), "code.any", "--code code.any"),
        ((*SWEEP, "--stats", "stats"), "stats/statistics.json", "--stats stats/statistics.json"),
        ((*SWEEP, "--eval-data", "eval.any"), "eval.any", "--eval-data eval.any"),
        ((*SWEEP, "--eval-byte-counts", "byte.any"), "byte.any", "--eval-byte-counts byte.any"),
        ((*SWEEP, "--search", "local:3", "--around", "plan.any"), "plan.any", "--around plan.any"),
        (BPB, "tiny.safetensors", "CKPT tiny.safetensors"),
        (BPB, "method.py", "--method method.py"),
        ((*BPB, "--calibration", "eval.any"), "eval.any", "--calibration eval.any"),
        (("bench", "eval", "blob.any", *CKPT[3:]), "blob.any", "FILE blob.any"),
        (("bench", "eval", "blob.any", *CKPT[3:]), "prose.txt", "--data prose.txt"),
    ],
)
def test_an_output_that_is_an_input(
    run: Run, folder: Path, typed: tuple[str, ...], out: str, source: str, tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    appends = typed[0] in ("sweep", "bench")
    for more in ([], ["--overwrite"]) if not appends or typed[0] == "sweep" else ([],):
        status, _, err = run(*typed, "--out", out, *more)
        last = err.strip().splitlines()[-1]
        assert status == 2 and f"--out {out}: is read by this command ({source})" in last, err
        assert last.endswith("give another --out")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_the_picked_point_does_not_take_the_place_of_results_or_inputs(run: Run, folder: Path) -> None:
    for pick, source in (("r.jsonl", "--out r.jsonl"), ("tiny.safetensors", "CKPT tiny.safetensors")):
        status, _, err = run(*SWEEP, "--out", "r.jsonl", "--pick", pick, "--overwrite")
        assert status == 2 and f"--pick {pick}: is read by this command ({source})" in err
    assert not (folder / "r.jsonl").exists()


def test_pictures_do_not_take_the_place_of_results(run: Run, tmp_path: Path) -> None:
    for name in (*(f"{title}{end}" for title in TITLES for end in (".svg", ".png", "-dark.png")), "report.html"):
        results = tmp_path / name
        results.write_text("{}\n")
        for out in (results, tmp_path) if not name.endswith("-dark.png") else (tmp_path,):
            status, _, err = run("plot", results, "--out", out)
            assert status == 2 and f"--out {results}: is read by this command (RESULTS {results})" in err, err
        assert results.read_text() == "{}\n"
        results.unlink()


def test_links_and_folders(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    weights, results, file, empty = (model / name for name in ("weights", "results", "file", "empty"))
    weights.write_bytes(b"weights")
    results.write_bytes(b'{"key":"a"}\n')
    file.write_bytes(b"QGLF and more")
    empty.touch()
    (tmp_path / "soft").symlink_to(weights)
    (tmp_path / "nowhere").symlink_to(tmp_path / "none")
    os.link(weights, tmp_path / "hard")
    given = {"CKPT": model}
    for out in (weights, tmp_path / "soft", tmp_path / "hard"):
        with pytest.raises(QuantGolfError, match=r"\(CKPT .*weights\).*give another --out"):
            apart.refuse_same({"--out": out}, given)
        with pytest.raises(QuantGolfError):
            apart.refuse_same({"--out": weights}, {"CKPT": out})
    # What quantgolf wrote into a model's folder is none of the model; a sweep goes on with it.
    for out in (results, file, empty, model / "new", model, tmp_path / "nowhere"):
        apart.refuse_same({"--out": out}, given)
    for out in (results, file, empty):
        with pytest.raises(QuantGolfError):
            apart.refuse_same({"--out": out}, {"FILE": out})


def test_words_are_no_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("demo", "self", "bytes")
    for word in words:
        Path(word).write_text("an output of this name")
        text = TextOptions(data=[Path(word)] if word != "bytes" else None, tokenizer=Path("bytes"))
        apart.refuse_same({"--out": Path(word)}, apart.inputs_of("demo", None, text))
    named = apart.inputs_of("self", "bytes", TextOptions(data=[Path("demo"), Path("self")]))
    for word, source in (("self", "CKPT"), ("bytes", "--model"), ("demo", "--data")):
        with pytest.raises(QuantGolfError, match=rf"\({source} {word}\)"):
            apart.refuse_same({"--out": Path(word)}, named)
    shipped = read_demo()
    for path in (shipped.checkpoint, shipped.card_path, shipped.tokenizer):
        with pytest.raises(QuantGolfError, match="is read by this command"):
            apart.refuse_same({"--out": path}, apart.inputs_of("demo"))
    with pytest.raises(QuantGolfError, match="--tokenizer"):
        apart.refuse_same({"--out": shipped.tokenizer}, apart.inputs_of(text=TextOptions(tokenizer=Path("demo"))))


def test_folders_that_are_replaced_hold_no_input(run: Run, folder: Path) -> None:
    (folder / "stats" / "inner").mkdir()
    inner = folder / "stats" / "inner" / "model.safetensors"
    (folder / "tiny.safetensors").rename(inner)
    (folder / "link").symlink_to(inner)
    (folder / "stats" / "text").symlink_to(folder / "prose.txt")
    more = ["--tokenizer", "tokens.any", "--model", "card.json"]
    for source in ("stats/inner/model.safetensors", "link", "stats/inner"):
        status, _, err = run("calibrate", source, *more, "--data", "prose.txt", "--out", "stats", "--overwrite")
        assert (
            status == 2
            and f"--out: the folder stats would be replaced or removed, and this command reads {source}" in err
        )
    status, _, err = run("calibrate", "card.json", *more, "--data", "stats/text", "--out", "stats", "--overwrite")
    assert status == 2 and "reads stats/text in it (--data)" in err
    status, _, err = run("calibrate", inner, *more, "--tokenizer", "stats", "--out", "stats", "--overwrite")
    assert status == 2 and "would be replaced or removed" in err and inner.exists()


def test_statistics_in_the_folder_of_the_run_are_not_removed_by_it(
    run: Run, ran: Callable[..., Any], folder: Path
) -> None:
    (folder / "a.qg.work").mkdir()
    (folder / "stats").rename(folder / "a.qg.work" / "statistics")
    typed = ["compress", *CKPT[:3], "--stats", "a.qg.work/statistics", "--max-bytes", "18kB", "--out", "a.qg"]
    status, _, err = run(*typed)
    assert status == 2 and "the folder a.qg.work would be replaced or removed" in err and "(--stats)" in err
    assert (folder / "a.qg.work" / "statistics" / "statistics.json").exists()


@pytest.mark.parametrize("verb", ["compress", "sweep"])
def test_a_name_too_long_for_the_folder_beside_it(run: Run, folder: Path, verb: str) -> None:
    long = "a" * 249 + ".qg"
    status, _, err = run(verb, *CKPT, "--bits", "4", "--out", long)
    remedy = "a shorter name or --no-resume" if verb == "compress" else "a shorter name"
    assert status == 2 and "File name too long" in err and f"; give {remedy}\n" in err and not (folder / long).exists()


def test_overwriting_another_file_goes_on(run: Run, ran: Callable[..., Any], folder: Path, prose: Path) -> None:
    typed = [
        "compress",
        *CKPT[:3],
        "--tokenizer",
        read_demo().tokenizer,
        "--data",
        prose,
        "--length",
        64,
        "--tokens",
        256,
    ]
    more = ["--bits", "4", "--solver", "rtn", "--no-guard"]
    for _ in range(2):
        ran(*typed, *more, "--out", "a.qg", "--overwrite")
    assert (folder / "a.qg").read_bytes()[:4] == b"QGLF"
