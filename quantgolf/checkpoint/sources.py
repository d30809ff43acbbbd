"""What a model script imports besides what is installed, so that a change there is a change of the model."""

import ast
import hashlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Not the script's own even where they are developed in place; they load more of themselves from verb to verb.
OTHERS = {"quantgolf", "quantgolf_kernels", "torch", "transformers"}
INSTALLED = {"site-packages", "dist-packages"}

# By script: modules of its folder that its first run in this process loaded; later runs find them loaded.
_loaded: dict[Path, set[str]] = {}


@contextmanager
def watched(script: Path) -> Iterator[None]:
    """While entered, `script` runs, and what it loads from its folder is remembered for `digest_of_imports`."""
    folder, before = script.parent.resolve(), set(sys.modules)
    try:
        yield
    finally:
        files = {name: _own_file(name) for name in sys.modules.keys() - before}
        inside = {name for name, file in files.items() if file is not None and file.is_relative_to(folder)}
        _loaded.setdefault(folder / script.name, set()).update(inside)


def digest_of_imports(script: Path) -> str:
    """A digest of the modules that a script, which has run, imports, and of those that these import; empty for none.

    They are found where import statements name them, wherever they lie, and among all that the script has loaded from
    its own folder, however it did. What is installed (in a site-packages folder) and Python's own does not count.
    """
    folder = script.parent.resolve()  # a script that is a link imports from where the link is
    found: dict[str, Path] = {}
    waiting = _named_in(script, "") | _loaded.get(folder / script.name, set())
    while waiting:
        name = waiting.pop()
        file = _own_file(name) if name in sys.modules else _file_below(folder, name)
        if name not in found and file is not None:
            found[name] = file
            waiting |= _named_in(file, name if file.stem == "__init__" else name.rpartition(".")[0])
    whole = hashlib.blake2b(digest_size=8)
    for name in sorted(found):
        whole.update(f"{name}\n".encode() + hashlib.blake2b(found[name].read_bytes()).digest())
    return whole.hexdigest() if found else ""


def _named_in(file: Path, package: str) -> set[str]:
    """Names that the import statements of a source may load, with the packages around them."""
    names: set[str] = set()
    if file.suffix != ".py":
        return names
    with suppress(SyntaxError, ValueError):  # it has changed since it ran
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                with suppress(ImportError):  # a statement that did not run, since it cannot
                    base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
                    names |= {f"{base}.{alias.name}" for alias in node.names}
    return {name.rsplit(".", cut)[0] for name in names for cut in range(name.count(".") + 1)}


def _own_file(name: str) -> Path | None:
    """Where a loaded module lies; None where it is not the user's own."""
    place = getattr(sys.modules[name], "__file__", None)
    if not isinstance(place, str) or name.partition(".")[0] in OTHERS:
        return None
    file = Path(place).resolve()
    installed = INSTALLED & {*Path(place).parts, *file.parts}
    if installed or file.is_relative_to(Path(sysconfig.get_path("stdlib")).resolve()):
        return None
    return file if file.is_file() else None


def _file_below(folder: Path, name: str) -> Path | None:
    """Where a module would come from that is not loaded yet, as one that is imported in `forward`."""
    place = folder.joinpath(*name.split("."))
    return next((file for file in (place / "__init__.py", place.with_suffix(".py")) if file.is_file()), None)
