"""However a command ends, it says one line and leaves nothing half written."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from quantgolf.blob import pack, write_blob
from quantgolf.cli import stopping
from quantgolf.cli.stopping import Heard, Interrupt, StoppedError, listening, resumable, told
from quantgolf.encode import Entry, encode_model
from quantgolf.errors import QuantGolfError

Run = Callable[..., tuple[int, str, str]]
VERBS = [
    ("decompress", "a.qg", "--out", "w.safetensors", "--overwrite"),
    ("export-decoder", "--out", "decoder.py", "--overwrite"),
    ("inspect", "a.qg"),
    ("verify", "a.qg", "--decoder", "none"),
    ("diff", "a.qg", "a.qg"),
]


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """Whoever starts the tests in the background has SIGINT ignored, also by the processes that tests start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.qg"
    write_blob(path, pack(encode_model([Entry("norm", torch.arange(4000).float())]), None))
    return path


def said(err: str) -> list[str]:
    assert "Traceback" not in err
    return [line for line in err.splitlines() if line.startswith("quantgolf:")]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_of_a_verb(
    run: Run, file: Path, monkeypatch: pytest.MonkeyPatch, verb: tuple[str, ...], number: signal.Signals
) -> None:
    """It comes where each verb works hardest: decoding, or writing."""

    def stop(*_: object, **__: object) -> None:
        os.kill(os.getpid(), number)
        time.sleep(5)

    where = {
        "decompress": "checkpoint.read.save_file", "export-decoder": "blob.file.fill", "inspect": "cli.inspect.rows_of",
        "verify": "decoder.check.read_blob", "diff": "runtime.compare.read_blob",
    }  # fmt: skip
    for name in ("w.safetensors", "decoder.py"):
        file.with_name(name).write_text("old")
    before = signal.getsignal(number)
    monkeypatch.setattr(f"quantgolf.{where[verb[0]]}", stop)
    status, _, err = run(*verb)
    name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    assert status == 128 + number and said(err) == [f"quantgolf: stopped by {name}"]
    assert sorted(path.name for path in file.parent.iterdir()) == ["a.qg", "decoder.py", "w.safetensors"]
    assert file.with_name("w.safetensors").read_text() == file.with_name("decoder.py").read_text() == "old"
    assert signal.getsignal(number) is before


def test_a_signal_while_everything_is_imported() -> None:
    """Imports turn exceptions into others (NumPy's makes a RecursionError of one), so that it ends at once."""
    code = (
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'quantgolf.cli.verbs':\n"
        "            try:\n"
        "                os.kill(os.getpid(), signal.SIGINT)\n"
        "            except BaseException as error:\n"
        "                raise RecursionError from error\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from quantgolf.cli import main\nmain()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "quantgolf: stopped by Ctrl-C\n")


def test_the_command_line_is_there_before_torch_is() -> None:
    code = "import sys; import quantgolf.cli; print([m for m in ('torch', 'numpy', 'typer') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_is_kept_and_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/quantgolf", "sweep", "a b", "--out", "r.jsonl"])
    with pytest.raises(StoppedError) as caught, told(), resumable("what is finished is in r.jsonl"):
        raise Interrupt(signal.SIGTERM)
    line = "stopped by SIGTERM; what is finished is in r.jsonl. To go on: quantgolf sweep 'a b' --out r.jsonl"
    assert str(caught.value) == line and caught.value.exit_code == 143
    with pytest.raises(StoppedError, match=r"^stopped by Ctrl-C$") as caught, told():
        raise KeyboardInterrupt
    assert caught.value.exit_code == 130


def test_a_stop_that_other_code_turned_into_an_error_is_a_stop(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except KeyboardInterrupt as error:
            raise ImportError("something else") from error

    monkeypatch.setattr("quantgolf.cli.inspect.read_blob", broken)
    status, _, err = run("inspect", "a.qg")
    assert status == 143
    assert said(err) == ["quantgolf: stopped by SIGTERM; in the middle of it ImportError: something else"]


@pytest.mark.parametrize("patience", [5.0, 0.0])
def test_an_import_is_finished_before_the_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: float
) -> None:
    """But not for ever."""
    (tmp_path / "slow.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\ndone = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(stopping, "LONGEST_IMPORT", patience)
    done = False
    with pytest.raises(Interrupt), listening() as heard:
        heard.running = True
        done = import_module("slow").done
        time.sleep(5)
    assert done == (patience > 0) and heard.last == signal.SIGTERM
    sys.modules.pop("slow", None)


def test_signals_that_were_ignored_stay_so_and_ranks_keep_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with listening():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_IGN, signal.SIG_DFL)
        monkeypatch.setenv("WORLD_SIZE", "2")
        with listening() as heard:
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
            assert isinstance(signal.getsignal(signal.SIGINT).__self__, Heard) and heard.last is None  # type: ignore[union-attr]
    finally:
        signal.signal(signal.SIGHUP, before)


def full(*_: object, **__: object) -> Iterator[None]:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("verb", VERBS[:2])
def test_a_full_disk(run: Run, file: Path, monkeypatch: pytest.MonkeyPatch, verb: tuple[str, ...]) -> None:
    out = file.with_name(verb[verb.index("--out") + 1])
    out.write_text("old")
    monkeypatch.setattr("quantgolf.atomic.os.fsync", full)
    status, _, err = run(*verb)
    assert status == 2 and said(err) == [
        f"quantgolf: output {out.name}: No space left on device, expected room for it; free some"
    ]
    assert out.read_text() == "old" and not list(file.parent.glob(".*"))


def test_readers_that_go_away_and_outputs_that_are_full(file: Path) -> None:
    command = [sys.executable, "-m", "quantgolf", "inspect", "a.qg"]
    shown = {"cwd": file.parent, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, **shown) as process:  # type: ignore[call-overload]
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 141 and said(err) == [] and "Exception" not in err
    if Path("/dev/full").exists():
        with open("/dev/full", "w") as out:
            done = subprocess.run(command, stdout=out, **shown)  # type: ignore[call-overload]
        (line,) = said(done.stderr)
        assert done.returncode == 2 and "No space left on device" in line and "Exception" not in done.stderr


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (FileNotFoundError(2, "No such file or directory", "gone.txt"), "gone.txt: No such file or directory"),
        (MemoryError(), "out of memory (MemoryError)"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "out of memory"),
    ],
)
def test_what_no_room_foresaw(error: Exception, words: str) -> None:
    with pytest.raises(QuantGolfError) as caught, told():
        raise error
    assert words in str(caught.value) and "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_faults_of_the_program_are_not_hidden() -> None:
    with pytest.raises(RuntimeError, match="shapes"), told():
        raise RuntimeError("shapes do not fit")
    with pytest.raises(ZeroDivisionError), told():
        raise ZeroDivisionError


def test_a_checkpoint_that_goes_while_it_is_read_is_still_there(run: Run, tmp_path: Path) -> None:
    """It is mapped: its name goes, what was opened stays; and a name that went before is one line."""
    path = tmp_path / "a.safetensors"
    save_file({"w": torch.ones(3)}, path)
    assert run("diff", path, path)[0] == 0
    path.unlink()
    status, _, err = run("diff", path, path)
    assert status == 2 and len(said(err)) == 1
    assert stopping.typed().startswith("quantgolf diff")
