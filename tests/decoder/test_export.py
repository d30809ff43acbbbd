"""The small file: strings of any bytes, programs with constants put in, and what a run of it is checked for."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from quantgolf.decoder import export_decoder, verify
from quantgolf.decoder.export import _literal
from quantgolf.decoder.specialise import specialise, without_typing
from quantgolf.errors import FormatError, QuantGolfError

GOLDEN = Path(__file__).parents[1] / "blob" / "golden" / "levels_v1.qg"


@given(st.binary())
@example(bytes(range(256)))
@example(b'\0001\0008\0"""\r\n\\"')
@example(b'\'"""\'"')
def test_a_literal_of_any_bytes_is_read_as_they_are(data: bytes) -> None:
    source = f"#coding:l1\nx={_literal(data)}.encode('l1')".encode("latin-1")
    space: dict[str, bytes] = {}
    exec(compile(source, "x.py", "exec"), space)
    assert space["x"] == data


def folded(text: str, **constants: bool | str) -> str:
    return specialise(text, constants).strip()


def test_known_constants_decide_branches() -> None:
    assert folded("A = True\nif A:\n    f()\nelse:\n    g()", A=True) == "f()"
    assert folded("A = True\nif A:\n    f()\nelse:\n    g()", A=False) == "g()"
    assert folded("if A and x:\n    f()", A=True) == "if x:\n    f()"
    assert folded("if A and x and y:\n    f()", A=True) == "if x and y:\n    f()"
    assert folded("if x and A:\n    f()\ng()", A=False) == "g()"
    assert folded("if A or x:\n    f()", A=True) == "if True or x:\n    f()"
    assert folded("A = 'ab'\nprint(A.split())", A="c") == "print('c'.split())"


def test_functions_that_nothing_calls_are_dropped_and_load_stays() -> None:
    text = "def a():\n    b()\n\ndef b():\n    pass\n\ndef load():\n    if A:\n        a()\n    c = 1"
    assert "def a" not in folded(text, A=False) and "def b" not in folded(text, A=False)
    assert "def a" in folded(text, A=True) and "def load" in folded(text, A=False)


def test_imports_for_annotations_go() -> None:
    assert without_typing("from typing import Any\nimport sys\nfrom math import prod") == (
        "import sys\nfrom math import prod"
    )


def test_a_decoder_is_run_and_checked() -> None:
    assert 0 < verify(export_decoder(), GOLDEN) < 60


def test_a_decoder_that_fails_is_refused() -> None:
    with pytest.raises(QuantGolfError, match=r"does not run on file .*no weights"):
        verify(b"def load(path, exact):\n    raise ValueError('no weights')", GOLDEN)


def test_a_decoder_that_is_a_bit_off_is_refused() -> None:
    code = export_decoder(readable=True).decode()
    off = code.replace(
        "    return found, model", "    next(iter(found.values())).view(-1)[0] += 1e-3\n    return found, model"
    )
    assert off != code
    with pytest.raises(QuantGolfError, match="otherwise than quantgolf"):
        verify(off.encode(), GOLDEN)


def test_a_damaged_file_is_refused_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "a.qg").write_bytes(GOLDEN.read_bytes()[:-1])
    with pytest.raises(FormatError, match="truncated"):
        verify(b"", tmp_path / "a.qg")


ALONE = """
import sys
for name in ("quantgolf", "quantgolf_kernels", "numba", "scipy", "safetensors"):
    sys.modules[name] = None
sys.path.insert(0, ".")
import decoder
found, model = decoder.load(sys.argv[1])
print(len(found), [name for name in dir(decoder) if name == "load"])
"""


def test_it_imports_where_quantgolf_is_not(tmp_path: Path) -> None:
    (tmp_path / "decoder.py").write_bytes(export_decoder())
    command = [sys.executable, "-W", "error", "-c", ALONE, str(GOLDEN.resolve())]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["5", "['load']"]


def test_the_packed_file_is_one_that_python_parses() -> None:
    assert isinstance(ast.parse(export_decoder()).body[-1], ast.Expr)
    assert torch.__name__ not in {
        alias.name for node in ast.parse(export_decoder()).body if isinstance(node, ast.Import) for alias in node.names
    }
