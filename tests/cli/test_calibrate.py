"""Calibration as a user meets it: looked at before, kept for later, and refused in one line where it cannot be."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from quantgolf.models.golf import Golf, GolfConfig

pytestmark = pytest.mark.usefixtures("one_thread")

Run = Callable[..., tuple[int, str, str]]
CONTEST = Path(__file__).parents[1] / "calibrate" / "contest_script.py"
CONFIG = {"vocab_size": 256, "dim": 32, "layers": 1, "heads": 2, "kv_heads": 1, "mlp_mult": 2}
MATRICES = {"emb.weight", "blocks.0.attn.q.weight", "blocks.0.attn.k.weight", "blocks.0.attn.v.weight",
            "blocks.0.attn.o.weight", "blocks.0.up.weight", "blocks.0.down.weight"}  # fmt: skip


def drawn(path: Path, state: dict[str, torch.Tensor]) -> None:
    generator = torch.Generator().manual_seed(2)
    save_file({name: 0.3 * torch.randn(t.shape, generator=generator) for name, t in state.items()}, path)


@pytest.fixture
def source(tmp_path: Path, prose: Path) -> list[object]:
    """A golf model that reads bytes."""
    drawn(tmp_path / "m.safetensors", Golf(GolfConfig(**CONFIG)).state_dict())
    (tmp_path / "card.json").write_text(json.dumps({"family": "golf", "config": CONFIG}))
    return ["m.safetensors", "--model", "card.json"]


TEXT = ["--tokenizer", "bytes", "--no-bos", "--data", "prose.txt", "--length", 64]
LEARN = [*TEXT, "--tokens", 2048]
REBUILT = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb, self.spare = nn.Embedding(256, 16), nn.Linear(16, 32)
        self.head = nn.Linear(16, 256, bias=False)

    def forward(self, tokens):
        x = self.emb(tokens)
        return {answer}


def build():
    return Net()


def fail():
    raise RuntimeError("no weights\\nto be found")
"""


def script(folder: Path, answer: str = "self.head(x)") -> list[object]:
    (folder / "net.py").write_text(REBUILT.format(answer=answer))
    shapes = {"emb.weight": (256, 16), "spare.weight": (32, 16), "spare.bias": (32,), "head.weight": (256, 16)}
    drawn(folder / "net.safetensors", {name: torch.empty(shape) for name, shape in shapes.items()})
    return ["net.safetensors", "--model", "net.py:build"]


@pytest.mark.parametrize("context", ["dense", "isolated"])
def test_kept_statistics_make_the_same_file(
    run: Run, ran: Callable[..., Any], source: list[object], tmp_path: Path, context: str
) -> None:
    learn = [*LEARN, "--context", context]
    once = ran("calibrate", *source, *learn, "--out", "stats")
    assert set(once["parameters"]) >= MATRICES and once["folder"] == "stats"
    assert once["bytes"] == sum(path.stat().st_size for path in (tmp_path / "stats").iterdir())
    for name, limit in (("a", "9kB"), ("b", "12kB")):  # one calibration serves every budget
        kept = ran("compress", *source, "--stats", "stats", "--max-bytes", limit, "--out", f"{name}-kept.qg")
        anew = ran("compress", *source, *learn, "--max-bytes", limit, "--tune-steps", 0, "--out", f"{name}.qg")
        assert (tmp_path / f"{name}-kept.qg").read_bytes() == (tmp_path / f"{name}.qg").read_bytes()
        other = ("file", "unknown_pieces", "held_out", "guard", "notes")  # statistics alone have no text
        assert {key: value for key, value in kept.items() if key not in other} == {
            key: value for key, value in anew.items() if key not in other
        }
        assert kept["guard"] is None and kept["notes"][0].startswith("no guard, no tuning: statistics alone")
        assert anew["guard"]["chosen"] == "slope" and not anew["notes"]
        assert anew["calibration"]["context"] == context
    reference = ["--reference", *source]
    seen = [ran("inspect", "a.qg", *reference, *more)["tensors"] for more in (learn, ["--stats", "stats"])]
    assert seen[0] == seen[1] and all(seen[0][name]["loss"] > 0 for name in MATRICES)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.endswith(".qgtmp")) == []
    status, out, _ = run("calibrate", *source, *learn, "--out", "stats", "--overwrite")
    assert status == 0 and "captured" in out and "--stats stats" in out and f"{context} windows" in out


def test_offloaded_statistics_lie_on_disk_and_nowhere_afterwards(
    ran: Callable[..., Any], source: list[object], tmp_path: Path
) -> None:
    """Windows come one by one there, so that other labels are drawn than without."""
    plain = ran("compress", *source, *LEARN, "--bits", 3, "--out", "a.qg")
    offloaded = ran("compress", *source, *LEARN, "--bits", 3, "--out", "b.qg", "--offload")
    ran("calibrate", *source, *LEARN, "--out", "stats", "--offload", "--memory", "64GB")
    ran("compress", *source, "--stats", "stats", "--bits", 3, "--out", "c.qg")
    assert (tmp_path / "b.qg").read_bytes() == (tmp_path / "c.qg").read_bytes() and not list(tmp_path.glob(".*"))
    assert offloaded["bytes"] == pytest.approx(plain["bytes"], rel=0.02)
    assert offloaded["predicted_loss"] == pytest.approx(plain["predicted_loss"], rel=0.2)


@pytest.mark.parametrize(
    "option",
    [
        ("--data", "prose.txt"), ("--tokenizer", "bytes"), ("--length", 64), ("--tokens", 32_768), ("--seed", 0),
        ("--context", "dense"), ("--no-bos",), ("--documents", "lines"), ("--offload",),
    ],
)  # fmt: skip
def test_what_statistics_have_decided_is_refused_by_name(run: Run, source: list[object], option: tuple[Any]) -> None:
    """Even where it is what the option is anyway: who types it expects it to count."""
    run("calibrate", *source, *LEARN, "--out", "stats")
    for verb in (["compress", *source, "--bits", 3, "--out", "a.qg"],):
        status, out, err = run(*verb, "--stats", "stats", *option)
        name = "--bos" if option == ("--no-bos",) else option[0]
        assert status == 2 and not out and err.count("\n") == 1
        assert err.startswith(f"quantgolf: {name} has no effect with --stats")


def test_a_dry_run_writes_nothing(run: Run, ran: Callable[..., Any], source: list[object], tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    found = ran("compress", *source, *LEARN, "--max-bytes", "9kB", "--dry-run", "--out", "a.qg")
    assert found["file_bytes"] <= found["max_bytes"] == 9000 and found["tokens"] == 2048
    status, out, _ = run("compress", *source, *LEARN, "--bits", 3, "--dry-run")
    assert status == 0 and "nothing is written" in out and "calibration on 2,048 tokens" in out
    status, _, err = run("compress", *source, *LEARN, "--solver", "gptq", "--max-bytes", "3kB", "--dry-run")
    assert status == 3 and "budget of 3,000 bytes cannot be met" in err and err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_capture_is_shown_before_anything_expensive(run: Run, ran: Callable[..., Any], tmp_path: Path) -> None:
    found = ran("inspect", "demo", "--capture")
    assert found["parameters"]["emb.weight"]["fate"] == "quantized"
    assert {p["fate"] for name, p in found["parameters"].items() if name.endswith("scale")} == {
        "kept, in 16 bits where they hold it"
    }
    spared = script(tmp_path)
    spare = ran("inspect", *spared, "--capture")["parameters"]["spare.weight"]
    assert (spare["status"], spare["matrices"], spare["uses"]) == ("not seen", [], [])
    assert "never" in spare["why"] and spare["fate"].startswith("kept")
    status, out, _ = run("inspect", *spared, "--capture")
    (row,) = [line for line in out.splitlines() if "spare.weight" in line]
    assert status == 0 and "32×16" in row and "not seen" in row and "never" in row
    assert list(tmp_path.glob("*.qg")) == []


def test_a_contest_script_all_the_way(run: Run, ran: Callable[..., Any], tokenizer: Any, prose: Path) -> None:
    """It gives a loss and no logits; those are found on the way."""
    from quantgolf.checkpoint import build_model, read_demo

    torch.save(build_model(f"{CONTEST}:build").state_dict(), prose.parent / "contest.pt")
    model = ["--model", f"{CONTEST}:build"]
    text = ["--tokenizer", read_demo().tokenizer, "--data", "prose.txt", "--length", 64]
    found = ran("inspect", "contest.pt", *model, "--capture")["parameters"]
    assert [use.split()[0] for use in found["tok_emb.weight"]["uses"]][:2] == ["embedding", "linear"]
    assert found["blocks.0.attn.c_q.weight"]["status"] == "captured"
    assert found["blocks.0.resid_mix"]["fate"].startswith("kept")
    seen = ran("inspect", "contest.pt", *model, "--capture", *text)["parameters"]
    assert {name: p["status"] for name, p in seen.items()} == {name: p["status"] for name, p in found.items()}
    report = ran("compress", "contest.pt", *model, *text, "--tokens", 2048, "--max-bytes", "30kB", "--out", "a.qg")
    assert report["bytes"] <= 30_000 and report["calibration"]["labels"] == "sampled"
    measured = ran("eval", "a.qg", *model, *text, "--tokens", 2048, "--reference", "contest.pt")
    assert 0 < measured["kl_bpb"]["value"] < 1


def test_a_loss_without_logits_is_calibrated_on_the_text_itself(
    run: Run, ran: Callable[..., Any], source: list[object], tmp_path: Path
) -> None:
    net = (tmp_path / "net.py", script(tmp_path))
    loss = "nn.functional.nll_loss(self.head(x).log_softmax(-1).flatten(0, 1), targets.flatten())"
    net[0].write_text(REBUILT.format(answer=loss).replace("(self, tokens)", "(self, tokens, targets)"))
    assert ran("inspect", *net[1], "--capture")["parameters"]["head.weight"]["status"] == "captured"
    report = ran("compress", *net[1], *LEARN, "--bits", 4, "--out", "a.qg")
    assert report["calibration"]["labels"] == "targets" and set(report["weights"]) == {"emb.weight", "head.weight"}
    status, _, err = run("eval", "a.qg", *net[1][1:], *TEXT)
    assert status == 2 and "expected logits" in err and err.splitlines()[0] == "note: net.py is executed"


def test_text_the_model_writes_itself(ran: Callable[..., Any], source: list[object], tmp_path: Path) -> None:
    own = ["--data", "self", "--tokenizer", "bytes", "--no-bos", "--length", 16, "--tokens", 256]
    report = ran("compress", *source, *own, "--bits", 3, "--out", "a.qg")
    assert report["calibration"]["tokens"] == 256 and set(report["weights"]) == MATRICES
    ran("calibrate", *source, *own, "--out", "stats")
    ran("compress", *source, "--stats", "stats", "--bits", 3, "--out", "b.qg")
    ran("compress", *source, *own, "--bits", 3, "--out", "c.qg", "--seed", 1)
    a, b, c = ((tmp_path / f"{name}.qg").read_bytes() for name in "abc")
    assert a == b != c


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["net.safetensors", "--model", "net.py:fail"], "fail() failed, RuntimeError: no weights to be found"),
        (["net.safetensors", "--model", "net.py:missing"], "has no function 'missing'"),
        (["net.safetensors", "--model", "flat.py:build"], "returned [1, 256]"),
        (["net.safetensors", "--model", "broken.py:build"], "ZeroDivisionError"),
        (["m.safetensors", "--data", "short.txt"], "expected at least one window of 65"),
        (["m.safetensors", "--data", "short.txt", "--context", "isolated"], "expected at least one window of 64"),
        (["m.safetensors", "--data", "none.txt"], "No such file"),
        (["m.safetensors", "--out", "no/such/stats"], "expected a folder to write to"),
        (
            ["m.safetensors", "--out", "prose.txt", "--overwrite"],
            "--out prose.txt: is read by this command (--data prose",
        ),
        (["m.safetensors", "--out", "flat.py", "--overwrite"], "holds no statistics"),
        (["m.safetensors", "--out", "taken"], "exists already"),
        (["m.safetensors", "--out", "taken", "--overwrite"], "holds no statistics"),
        (["m.safetensors", "--memory", "1GB"], "--memory is a limit of --offload"),
        (["m.safetensors", "--offload", "--memory", "1MB"], "a memory of 1,000,000 bytes is too small"),
    ],
)
def test_what_cannot_be_calibrated_gets_one_line_and_leaves_no_folder(
    run: Run, source: list[object], tmp_path: Path, change: list[str], message: str
) -> None:
    script(tmp_path)
    (tmp_path / "flat.py").write_text(REBUILT.format(answer="self.head(x)[:, 0]"))
    (tmp_path / "broken.py").write_text(REBUILT.format(answer="1 / 0"))
    (tmp_path / "short.txt").write_text("a few words")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("precious")
    before = sorted(path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts)
    checkpoint, *options = change
    given = {"--model": "card.json", "--data": "prose.txt", "--out": "stats", "--length": "64", "--tokens": "2048"}
    flags = []
    while options:
        name = options.pop(0)
        if options and not options[0].startswith("--"):
            given[name] = options.pop(0)
        else:
            flags.append(name)
    pairs = [part for pair in given.items() for part in pair]
    status, out, err = run("calibrate", checkpoint, *pairs, "--tokenizer", "bytes", "--no-bos", *flags)
    assert status == 2 and not out
    *notes, line = err.splitlines()
    assert line.startswith("quantgolf: ") and message in line and all(note.endswith(" is executed") for note in notes)
    assert sorted(path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts) == before


def test_statistics_of_another_model_or_none_are_refused(run: Run, source: list[object], tmp_path: Path) -> None:
    assert run("calibrate", *script(tmp_path), *LEARN, "--out", "other")[0] == 0
    for folder, message in (("other", "are of the model"), ("none", "cannot be read"), (".", "cannot be read")):
        status, out, err = run("compress", *source, "--stats", folder, "--bits", 3, "--out", "a.qg")
        assert status == 2 and not out and message in err and err.count("\n") == 1
    (tmp_path / "other" / "statistics-00000.safetensors").unlink()
    status, _, err = run("compress", *script(tmp_path), "--stats", "other", "--bits", 3, "--out", "a.qg")
    assert status == 2 and "cannot be read" in err.splitlines()[-1]
    assert not (tmp_path / "a.qg").exists()
