"""A model is another one when a module that its script imports has changed, and the same one when anything else has."""

import subprocess
import sys
from pathlib import Path

import pytest

from quantgolf.checkpoint import build_model, sources
from quantgolf.checkpoint.model import code_of

NET = """
{first}
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(2, 2)

    def forward(self, x):
        {later}
        return self.up(x)

def build():
    {inside}
    return Net()
"""
FRESH = """
import sys
from quantgolf.checkpoint import build_model
from quantgolf.checkpoint.model import code_of
build_model(sys.argv[1])
print(code_of(sys.argv[1]))
"""


def seen(script: Path) -> str:
    """`code_of` as this process sees it."""
    build_model(f"{script}:build")
    return code_of(f"{script}:build")


def fresh(script: Path, tag: str) -> str:
    """`code_of` as another process would see it, which has not loaded what this test has."""
    for name in [name for name in sys.modules if name.startswith(tag)]:
        del sys.modules[name]
    sources._loaded.clear()
    return seen(script)


def net(folder: Path, first: str = "", later: str = "pass", inside: str = "pass") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "net.py").write_text(NET.format(first=first, later=later, inside=inside))
    return folder / "net.py"


@pytest.fixture
def tag(request: pytest.FixtureRequest) -> str:
    """Of this test alone: Python keeps modules by name."""
    return f"sources_{abs(hash(request.node.name))}"


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_a_script_alone_is_its_text(tmp_path: Path) -> None:
    """As before modules counted, so that statistics of then are still its own."""
    script = net(tmp_path / "a", first="import json, os.path, numpy.linalg\nfrom quantgolf.models.golf import Golf")
    assert len(seen(script).split()) == 3 and seen(script).startswith("build of ")
    write(tmp_path / "a", {"beside.py": "other = 1", "net.json": "{}"})
    assert seen(script) == code_of(f"{script}:build")


@pytest.mark.parametrize(
    "how",
    [
        {"first": "import TAG_layers"},
        {"first": "from TAG_layers import act as other"},
        {"first": "from TAG_layers import *"},
        {"inside": "import TAG_layers"},
        {"later": "import TAG_layers"},
        {"first": "import importlib; importlib.import_module('TAG_' + 'layers')"},
        {"inside": "__import__('TAG_' + 'layers')"},
        {"first": "from TAG_package.blocks import block"},
        {"first": "import TAG_package.blocks"},
        {"later": "from TAG_package import blocks"},
        {"first": "from TAG_namespace import middle"},
        {"first": "import sys; sys.path.append('ELSEWHERE')\nfrom TAG_far import act"},
    ],
)
def test_a_change_in_what_a_script_imports_is_a_change_of_the_model(
    tmp_path: Path, tag: str, how: dict[str, str]
) -> None:
    """However and whenever it does, also through another module; and other processes agree."""
    folder, far = tmp_path / "model", tmp_path / "far"
    files = {
        f"{tag}_layers.py": "act = 1\n",
        f"{tag}_package/__init__.py": "",
        f"{tag}_package/blocks.py": f"from . import inner\nfrom .inner import value\nimport {tag}_layers\nblock = 1\n",
        f"{tag}_package/inner.py": "value = 1\n",
        f"{tag}_namespace/middle.py": f"import {tag}_layers\n",
    }
    spelled = {key: value.replace("TAG", tag).replace("ELSEWHERE", str(far)) for key, value in how.items()}
    script = net(folder, **spelled)
    write(folder, files)
    write(far, {f"{tag}_far.py": "act = 1\n"})
    first = seen(script)
    assert " with " in first and seen(script) == first == fresh(script, tag)
    used = {
        path for path in [*(folder / name for name in files), far / f"{tag}_far.py"] if changes(path, script, first)
    }
    text = "".join(spelled.values())
    if "_package" in text:
        assert {path.name for path in used} == {"__init__.py", "blocks.py", "inner.py", f"{tag}_layers.py"}
    elif "_namespace" in text:
        assert {path.name for path in used} == {"middle.py", f"{tag}_layers.py"}
    else:
        assert [path.name for path in used] == [f"{tag}_far.py" if "_far" in text else f"{tag}_layers.py"]


def changes(path: Path, script: Path, first: str) -> bool:
    """Whether a change of a file makes it another model; the file is put back."""
    before = path.read_text()
    path.write_text(before + "\nchanged = 1\n")
    found = code_of(f"{script}:build")
    path.write_text(before)
    assert code_of(f"{script}:build") == first
    return found != first


def test_what_the_host_has_loaded_does_not_matter(tmp_path: Path, tag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep's processes load nothing but the script; a program that sweeps has more from the same folder."""
    script = net(tmp_path / "model", first=f"from {tag}_layers import act")
    write(tmp_path / "model", {f"{tag}_layers.py": "act = 1\n", f"{tag}_host.py": f"import {tag}_layers\n"})
    monkeypatch.syspath_prepend(str(tmp_path / "model"))
    __import__(f"{tag}_host")
    done = subprocess.run([sys.executable, "-c", FRESH, f"{script}:build"], capture_output=True, text=True, check=True)
    assert seen(script) == done.stdout.strip()
    assert changes(tmp_path / "model" / f"{tag}_layers.py", script, seen(script))
    assert not changes(tmp_path / "model" / f"{tag}_host.py", script, seen(script))


@pytest.mark.parametrize("how", [{"later": "import TAG_layers"}, {"inside": "__import__('TAG_' + 'layers')"}])
def test_a_folder_that_was_moved_holds_the_same_model(tmp_path: Path, tag: str, how: dict[str, str]) -> None:
    """And a script that is a link imports from the folder of the link."""
    here = net(tmp_path / "a", **{key: value.replace("TAG", tag) for key, value in how.items()})
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "net.py").symlink_to(here)
    for folder, act in (("a", "act = 1\n"), ("b", "act = 2\n")):
        write(tmp_path / folder, {f"{tag}_layers.py": act})
    first = fresh(here, tag)
    linked = fresh(tmp_path / "b" / "net.py", tag)
    assert " with " in linked and linked != first
    (tmp_path / "a").rename(tmp_path / "c")
    assert fresh(tmp_path / "c" / "net.py", tag) == first


def test_what_is_installed_beside_a_script_does_not_count(
    tmp_path: Path, tag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "model" / ".venv" / "lib" / "site-packages"
    write(site, {f"{tag}_dependency.py": "x = 1\n"})
    monkeypatch.syspath_prepend(str(site))
    assert " with " not in seen(net(tmp_path / "model", first=f"import {tag}_dependency"))


def test_odd_sources_are_taken_by_their_bytes(tmp_path: Path, tag: str) -> None:
    """One that is not Python, one that changed into no Python after it ran, one that goes above its package."""
    script = net(tmp_path / "model", first=f"import {tag}_loop\nimport {tag}_late")
    write(
        tmp_path / "model",
        {
            f"{tag}_loop.py": f"import {tag}_late\nimport net\ndef later():\n    from ... import nothing\n",
            f"{tag}_late.py": f"import {tag}_loop\n",
        },
    )
    first = seen(script)
    late = tmp_path / "model" / f"{tag}_late.py"
    for text in ("import (", "\0", "x = '\\ud800'"):
        late.write_text(text)
        assert code_of(f"{script}:build") != first
