"""Every verb as a user types it: what it prints, what it writes, and how it says no."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from quantgolf.checkpoint import read_demo

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def options(tiny_path: Path, prose: Path) -> list[object]:
    """What `compress` needs to know about the tiny model."""
    return [
        tiny_path, "--model", tiny_path.parent / "card.json", "--tokenizer", read_demo().tokenizer,
        "--data", prose, "--length", 64, "--tokens", 2048,
    ]  # fmt: skip


def test_the_whole_way_there_and_back(run: Run, options: list[object], tmp_path: Path) -> None:
    file, checkpoint, card = tmp_path / "a.qg", options[0], options[2]
    code = tmp_path / "train.py"
    code.write_text("x" * 1000)
    asked = ["--solver", "gptq", "--max-bytes", "20kB", "--code", code, "--no-guard"]
    status, out, _ = run("compress", *options, *asked, "--out", file, "--json")
    assert status == 0
    report = json.loads(out)
    assert report["bytes"] == file.stat().st_size <= 19_000
    assert report["code_bytes"] == 1000 and report["max_bytes"] == 20_000
    assert report["verified"]["line"] == "verified: read back from disk, 19 tensors bit for bit"
    assert {w["bits"] for w in report["weights"].values()} <= set(range(2, 9)) and len(report["weights"]) == 13

    status, out, _ = run("inspect", file, "--json")
    document = json.loads(out)
    tensors = document["tensors"]
    assert status == 0 and document["model"]["family"] == "golf"
    assert {name: t["bits"] for name, t in tensors.items() if t["bits"]} == {
        name: w["bits"] for name, w in report["weights"].items()
    }
    kinds = ("code_bytes", "step_bytes", "small_bytes")
    spent = sum(t[kind] for t in tensors.values() for kind in kinds)
    assert spent + document["overhead_bytes"] == pytest.approx(file.stat().st_size)
    assert sum(t["share"] for t in tensors.values()) < 1
    more = ["--reference", checkpoint, *options[1:]]
    tensors = json.loads(run("inspect", file, "--json", *more)[1])["tensors"]
    assert tensors["emb.weight"]["loss"] == pytest.approx(report["weights"]["emb.weight"]["loss"], rel=1e-3)
    for arguments in (["inspect", file], ["inspect", file, *more]):
        status, out, _ = run(*arguments)
        assert status == 0 and "emb.weight" in out and "1024×32" in out

    restored = tmp_path / "back.safetensors"
    status, out, _ = run("decompress", file, "--out", restored, "--json")
    assert status == 0 and json.loads(out)["tensors"] == len(load_file(restored))
    before, after = load_file(Path(str(checkpoint))), load_file(restored)
    assert {n: (t.shape, t.dtype) for n, t in before.items()} == {n: (t.shape, t.dtype) for n, t in after.items()}

    text = [*options[3:7], "--length", 64, "--tokens", 3000, "--json"]
    reference = ["--reference", checkpoint, "--model", card]
    status, out, _ = run("eval", file, *text, *reference)
    measured = json.loads(out)
    assert status == 0 and measured["kl_bpb"]["value"] > 0
    assert measured["delta_bpb"]["value"] == pytest.approx(measured["bpb"] - measured["reference_bpb"])
    assert measured["kl_bpb"]["low"] < measured["kl_bpb"]["value"] < measured["kl_bpb"]["high"]
    again = json.loads(run("eval", restored, *text, *reference)[1])
    assert again["bpb"] == pytest.approx(measured["bpb"], abs=1e-3)  # its weights are rounded to fp16
    status, out, _ = run("eval", file, *text[:-1], *reference)
    assert status == 0 and "bits per byte" in out and "KL" in out


def test_widths_by_hand_and_tables_for_people(run: Run, options: list[object], tmp_path: Path) -> None:
    file = tmp_path / "a.qg"
    status, out, _ = run("compress", *options, "--bits", "attn.*=6,emb=7,*=3", "--solver", "gptq_lite", "--out", file)
    assert status == 0 and "blocks.1.attn.o.weight" in out and f"{file.stat().st_size:,} bytes" in out
    assert run("compress", *options, "--bits", "4", "--solver", "rtn", "--out", file, "--overwrite")[0] == 0
    assert run("decompress", file, "--out", tmp_path / "b.safetensors")[0] == 0


def test_scripts_bring_their_own_modules(run: Run, tmp_path: Path, prose: Path) -> None:
    script = tmp_path / "model.py"
    script.write_text(
        "import torch\nfrom torch import nn\n\nclass Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.emb = nn.Embedding(1024, 16)\n"
        "        self.spare = nn.Linear(16, 16)\n        self.head = nn.Linear(16, 1024, bias=False)\n\n"
        "    def forward(self, tokens):\n        return self.head(self.emb(tokens))\n\n"
        "def build():\n    torch.manual_seed(0)\n    return Net()\n"
    )
    state = {
        "emb.weight": torch.randn(1024, 16), "spare.weight": torch.randn(16, 16), "spare.bias": torch.randn(16),
        "head.weight": torch.randn(1024, 16),
    }  # fmt: skip
    save_file(state, tmp_path / "net.safetensors")
    file, model = tmp_path / "a.qg", ["--model", f"{script}:build"]
    text = ["--tokenizer", read_demo().tokenizer, "--data", prose, "--length", 32, "--tokens", 500]
    status, out, _ = run("compress", tmp_path / "net.safetensors", *model, *text, "--max-bytes", "15kB", "--out", file)
    assert status == 0 and "kept unquantized: spare.weight, because the forward pass was never seen to use it" in out
    assert run("eval", file, *model, *text, "--documents", "files", "--json")[0] == 0
    status, _, err = run("eval", file, *text)
    assert status == 2 and "give --model path/to/script.py:factory" in err


def bad(**changes: object) -> dict[str, object]:
    return changes


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        (bad(max_bytes="0"), 2, "size '0' is 0 bytes, expected a whole number > 0"),
        (bad(max_bytes="-5"), 2, "size '-5' is not understood"),
        (bad(max_bytes="12 parsecs"), 2, "expected bytes or a number with one of kB"),
        (bad(max_bytes="5kB", solver="gptq"), 3, "budget of 5,000 bytes cannot be met: with 2 bits everywhere"),
        (bad(max_bytes="200"), 3, "budget of 200 bytes cannot be met: code and what is kept take"),
        (bad(max_bytes=None), 2, "nothing is asked for, expected a limit (--max-bytes 16MB or --bpw 3.5)"),
        (bad(data="{tmp}/missing.txt"), 2, "No such file"),
        (bad(data="{tmp}/empty.txt"), 2, "0 documents in it"),
        (bad(data="{tmp}/short.txt"), 2, "expected at least one window of 65"),
        (bad(data="{tmp}/binary.txt"), 2, "is not UTF-8"),
        (bad(data=None), 2, "--data is missing"),
        (bad(tokenizer=None), 2, "--tokenizer is missing"),
        (bad(tokenizer="{tmp}/short.txt"), 2, "not a SentencePiece model"),
        (bad(model=None), 2, "--model is missing"),
        (bad(model="{tmp}/other.json"), 2, "where the model has"),
        (bad(model="{tmp}/padded.json", checkpoint="{tmp}/padded.safetensors"), 2, "1,024 pieces and the model 2,048"),
        (bad(checkpoint="{tmp}/missing.safetensors"), 2, "no such file"),
        (bad(checkpoint="{tmp}/nan.safetensors"), 2, "emb.weight has 1 values that are NaN or infinite"),
        (bad(checkpoint="{tmp}/cut.safetensors"), 2, "not a readable safetensors file"),
        (bad(out="{tmp}/taken.qg"), 2, "exists already"),
        (bad(out="{tmp}/no/folder.qg"), 2, "expected a folder to write to"),
        (bad(code="{tmp}/missing.py"), 2, "no such file, expected a source file"),
        (bad(code="{tmp}/large.py"), 3, "cannot be met"),
        (bad(bits="emb=9"), 2, "width 9"),
        (bad(bits="nothing=3,*=4"), 2, "nothing decides no weight"),
        (bad(bits="emb=3"), 2, "no pattern matches blocks.0"),
        (bad(damp="0"), 2, "damp is 0.0"),
        (bad(device="cuda:99"), 2, "device 'cuda:99'"),
        (bad(device="abacus"), 2, "device 'abacus'"),
    ],
)
def test_bad_input_gets_one_line_and_leaves_no_file(
    run: Run, options: list[object], tmp_path: Path, changes: dict[str, object], status: int, message: str
) -> None:
    for name, text in (("empty", "\n\n"), ("short", "a few words"), ("taken", "")):
        (tmp_path / f"{name}.txt").write_text(text)
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "taken.qg").write_text("precious")
    (tmp_path / "large.py").write_text("x" * 20_000)
    card = (tmp_path / "card.json").read_text()
    (tmp_path / "other.json").write_text(card.replace('"dim": 32', '"dim": 64'))
    (tmp_path / "padded.json").write_text(card.replace("1024", "2048"))
    state = load_file(tmp_path / "tiny.safetensors")
    save_file({**state, "emb.weight": state["emb.weight"].repeat(2, 1)}, tmp_path / "padded.safetensors")
    state["emb.weight"][3, 3] = torch.nan
    save_file(state, tmp_path / "nan.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "tiny.safetensors").read_bytes()[:5000])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    given: dict[str, object] = {str(k).removeprefix("--"): v for k, v in zip(options[1::2], options[2::2], strict=True)}
    given |= {"max_bytes": "20kB", "out": tmp_path / "a.qg", "checkpoint": options[0]} | changes
    given = {key: str(value).replace("{tmp}", str(tmp_path)) for key, value in given.items() if value is not None}
    checkpoint = given.pop("checkpoint")
    arguments = [part for key, value in given.items() for part in (f"--{key.replace('_', '-')}", value)]
    found, out, err = run("compress", checkpoint, *arguments)
    assert found == status
    assert err.startswith("quantgolf: ") and message in err and err.count("\n") == 1
    assert not out
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_damaged_and_foreign_files_are_refused_by_every_reader(run: Run, options: list[object], tmp_path: Path) -> None:
    file, out = tmp_path / "a.qg", tmp_path / "b.safetensors"
    assert run("compress", *options, "--bits", "3", "--solver", "rtn", "--out", file)[0] == 0
    whole = file.read_bytes()
    for data, message in (
        (whole[:-100], "is truncated"),
        (whole[:500] + bytes([whole[500] ^ 4]) + whole[501:], "checksum is"),
        (b"PK" + whole, "not a quantgolf file"),
        (b"", "not a quantgolf file"),
    ):
        file.write_bytes(data)
        for verb in (["inspect", file], ["decompress", file, "--out", out]):
            status, _, err = run(*verb)
            assert status == 2 and message in err and err.count("\n") == 1
            assert not out.exists()
    file.write_bytes(whole[:-1])
    status, _, err = run("eval", file, *options[3:])
    assert status == 2 and "is truncated" in err


def test_existing_and_unwritable_outputs_are_refused_by_decompress(
    run: Run, options: list[object], tmp_path: Path
) -> None:
    file, out = tmp_path / "a.qg", tmp_path / "b.safetensors"
    assert run("compress", *options, "--bits", "3", "--solver", "rtn", "--out", file)[0] == 0
    out.write_text("precious")
    status, _, err = run("decompress", file, "--out", out)
    assert status == 2 and "exists already" in err and out.read_text() == "precious"
    status, _, err = run("decompress", file, "--out", tmp_path / "no" / "b.safetensors")
    assert status == 2 and "expected a folder to write to" in err


def test_the_demo_runs_and_its_table_is_of_its_files(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    arguments = ["demo", "--out", folder, "--tokens", 4096, "--calibration-tokens", 4096]
    status, out, _ = run(*arguments, "--json")
    assert status == 0
    document = json.loads(out)
    assert set(document["methods"]) == {"rtn", "gptq_lite", "gptq", "slope"}
    for row in document["methods"].values():
        assert row["bytes"] == Path(row["file"]).stat().st_size <= document["max_bytes"]
        assert row["kl_bpb"]["value"] > 0 and row["bpb"] > document["float_bpb"]
    kl = {method: row["kl_bpb"]["value"] for method, row in document["methods"].items()}
    assert kl["slope"] < kl["gptq"] < kl["rtn"]
    assert document["max_bytes"] - document["methods"]["slope"]["bytes"] <= 256
    assert document["float_bpb"] < 0.8 * min(document["text_compressors_bpb"].values())
    assert Path(document["picture"]).read_bytes().startswith(b"\x89PNG")
    file = document["methods"]["gptq"]["file"]
    again = json.loads(run("eval", file, "--data", "demo", "--tokens", 4096, "--json")[1])
    assert again["bpb"] == pytest.approx(document["methods"]["gptq"]["bpb"], abs=1e-6)
    status, _, err = run("demo", "--out", folder, "--max-bytes", "1kB")
    assert status == 3 and "cannot be met" in err
    (tmp_path / "file").write_text("x")
    status, _, err = run("demo", "--out", tmp_path / "file")
    assert status == 2 and "output folder" in err


def test_the_installed_command_exits_with_the_code(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "quantgolf", "inspect", str(tmp_path / "none.qg")]
    done = subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", env={**os.environ, "COLUMNS": "40"}
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("quantgolf: file ") and done.stderr.count("\n") == 1
