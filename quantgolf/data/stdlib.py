"""Text that every Python installation carries: the standard library's sources and CPython's help topics.

The demo model is trained, calibrated and measured on it, so nothing has to be downloaded or shipped.
Installations differ, so a text is named by its path and the sha256 of its characters, and whoever reads it
again asks for exactly those. Imports nothing beyond the standard library: running this file with any
Python prints that installation's listing, which is how the training script finds the texts that stay the
same from one Python to the next.
"""

import hashlib
import json
import sysconfig
from pathlib import Path

# Tests are stripped by some distributions; encodings are generated tables, near-copies of one another.
SKIPPED = {"test", "tests", "idle_test", "encodings", "site-packages", "dist-packages", "__pycache__", "_bundled"}


def read_stdlib() -> dict[str, str]:
    """All texts of the running Python, by name in sorted order.

    A source is named by its path below the library, a help topic `pydoc_data.topics:NAME`. Line breaks are
    read as `\\n` whatever the platform stores. Files that are not UTF-8 are left out.
    """
    library = Path(sysconfig.get_path("stdlib"))
    texts = {}
    for path in library.rglob("*.py"):
        parts = path.relative_to(library).parts
        if SKIPPED & set(parts) or parts[0].startswith(("config-", "_sysconfigdata", "pydoc_data", "lib-dynload")):
            continue
        try:
            texts["/".join(parts)] = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions leave the help topics out
        pass
    else:
        texts.update({f"pydoc_data.topics:{name}": text for name, text in topics.items()})
    return {name: texts[name] for name in sorted(texts) if texts[name].strip()}


def digest(text: str) -> str:
    """sha256 of the UTF-8 characters, hexadecimal."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def select(listing: dict[str, str], texts: dict[str, str]) -> tuple[list[str], list[str]]:
    """Texts of `listing` (name → sha256) found unchanged in `texts`, in order, and the names that were not."""
    found, skipped = [], []
    for name, sha256 in listing.items():
        text = texts.get(name)
        if text is not None and digest(text) == sha256:
            found.append(text)
        else:
            skipped.append(name)
    return found, skipped


if __name__ == "__main__":
    print(json.dumps({name: digest(text) for name, text in read_stdlib().items()}))
