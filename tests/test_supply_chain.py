"""What may run code that is not ours: found in the syntax of every module we ship, and allowed one by one."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted([*ROOT.glob("quantgolf/**/*.py"), *ROOT.glob("kernels/**/*.py")])
PICKLES = {"pickle", "cPickle", "dill", "marshal", "shelve", "joblib", "cloudpickle"}
NETWORK = {"socket", "ssl", "http", "urllib", "urllib3", "requests", "httpx", "aiohttp", "ftplib", "huggingface_hub"}
PROCESSES = {"subprocess", "multiprocessing", "pty"}
BY_NAME = {"importlib", "imp", "runpy", "pkgutil"}
READ_ONLY = ("importlib.metadata", "importlib.resources")  # facts and files of installed packages
WATCHED = PICKLES | NETWORK | PROCESSES | BY_NAME | {"yaml", "ctypes", "code", "codeop"}

# Module → what of the above it does, and why it may.
ALLOWED = {
    "quantgolf/__init__.py": {"importlib": "its own rooms, when they are first asked for"},
    "quantgolf/bench/method.py": {
        "importlib": "--method: the user's own script, which the option says is executed",
        "subprocess": "a fresh process for it",
    },
    "quantgolf/bench/peers.py": {"importlib": "peers that may be installed, by names that stand in the module"},
    "quantgolf/checkpoint/huggingface.py": {"importlib": "transformers and what it needs, by fixed names"},
    "quantgolf/checkpoint/model.py": {"importlib": "--model script.py:factory, which the option says is executed"},
    "quantgolf/checkpoint/read.py": {"torch.load": "weights_only"},
    "quantgolf/checkpoint/sources.py": {"importlib": "where modules of the user's script lie; nothing is loaded"},
    "quantgolf/cli/demo.py": {"subprocess": "quantgolf eval in a new process"},
    "quantgolf/decoder/verify.py": {"subprocess": "an exported decoder in a process of its own"},
    "quantgolf/sweep/grid.py": {"yaml": "SafeLoader"},
    "quantgolf/sweep/process.py": {
        "pickle": "between processes of one sweep", "subprocess": "which are started here",
    },
    "quantgolf/sweep/worker.py": {"pickle": "between processes of one sweep"},
    "kernels/ahead.py": {
        "subprocess": "compiling for a GPU that is not there", "exec": "its own script, a string in the module",
        "compile": "the same",
    },
    "kernels/gpu.py": {"importlib": "whether triton is installed"},
}  # fmt: skip


def uses(tree: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Everything that is watched in a module, and where."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((root, node) for each in node.names if (root := _root(each.name)) in WATCHED)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            if (root := _root(node.module or "")) in WATCHED:
                yield root, node
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("eval", "exec", "compile", "__import__"):
                yield called, node
            if called in ("torch.load", "np.load", "numpy.load", "torch.hub.load", "torch.jit.load"):
                yield called, node
            if re.fullmatch(r"os\.(system|popen|exec\w+|spawn\w+|posix_spawn\w*|fork)", called):
                yield called, node
            for word in node.keywords:
                if word.arg in ("shell", "trust_remote_code", "allow_pickle") and not _is(word.value, False):
                    yield word.arg, node


def _root(module: str) -> str:
    return "" if module in READ_ONLY else module.partition(".")[0]


def _is(node: ast.AST, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_do_nothing_that_is_not_allowed(path: Path) -> None:
    allowed = ALLOWED.get(str(path.relative_to(ROOT)), {})
    for what, node in uses(ast.parse(path.read_text(encoding="utf-8"))):
        assert what in allowed, f"line {getattr(node, 'lineno', 0)} uses {what}; see docs/dependencies.md"


@pytest.mark.parametrize(
    "path", [*MODULES, *sorted(ROOT.glob("benchmarks/**/*.py"))], ids=lambda path: str(path.relative_to(ROOT))
)
def test_torch_loads_weights_only(path: Path) -> None:
    for what, node in uses(ast.parse(path.read_text(encoding="utf-8"))):
        if what == "torch.load":
            assert isinstance(node, ast.Call)
            assert any(word.arg == "weights_only" and _is(word.value, True) for word in node.keywords)


def test_what_is_allowed_is_there() -> None:
    """A list that names more than there is would hide the next one."""
    for name, reasons in ALLOWED.items():
        found = {what for what, _ in uses(ast.parse((ROOT / name).read_text(encoding="utf-8")))}
        assert found == set(reasons), name


def test_yaml_is_read_by_the_safe_loader() -> None:
    text = (ROOT / "quantgolf/sweep/grid.py").read_text(encoding="utf-8")
    assert set(re.findall(r"yaml\.(\w*[Ll]oad\w*|compose\w*)", text)) == {"compose", "SafeLoader"}


@pytest.mark.parametrize(
    "line",
    ["import pickle", "from os import path; import urllib.request", "eval('1')", "torch.load(x)", "os.system('x')",
     "subprocess.run(x, shell=True)", "from importlib import import_module", "np.load(x, allow_pickle=True)"],
)  # fmt: skip
def test_the_check_finds(line: str) -> None:
    assert list(uses(ast.parse(line)))


def test_every_dependency_is_explained_with_its_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(each for some in project["optional-dependencies"].values() for each in some)]
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    rows = {row[1]: row[2] for row in re.finditer(r"^\| ([\w-]+) \| `([^`]+)` \|", page, re.MULTILINE)}
    named = {}
    for requirement in wanted:
        name, bounds = re.match(r"([\w-]+)(?:\[[^\]]*\])?\s*([^;]*)", requirement).groups()  # type: ignore[union-attr]
        if name != "quantgolf":
            named[name] = bounds.strip()
    assert rows.keys() == named.keys()
    for name, bounds in named.items():
        assert rows[name].startswith(bounds), f"{name} {bounds}: docs/dependencies.md says {rows[name]}"
    for name in re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE):
        assert name in rows or name == "markupsafe", f"{name} is pinned and not explained"
