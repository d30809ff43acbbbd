"""What test files of this room share: the page's reader, the golden files, and files around any header.

Test files do not import each other (pytest's importlib mode gives them no package), so it comes as fixtures.
"""

import importlib.util
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from types import ModuleType

import pytest

from quantgolf.blob import MAGIC, VERSION
from quantgolf.blob.header import WORDS
from quantgolf.encode import zstd
from quantgolf.encode.varint import varint


def beside(name: str) -> ModuleType:
    """A module that lies beside this file."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def page() -> ModuleType:
    """The reader that is written from docs/format.md alone."""
    return beside("page_reader")


@pytest.fixture(scope="session")
def goldens() -> ModuleType:
    """What the golden files were made of."""
    return beside("goldens")


@pytest.fixture(scope="session")
def container() -> Callable[..., bytes]:
    return make_container


def with_checksum(content: bytes) -> bytes:
    return content + blake2b(content, digest_size=8).digest()


def make_container(header: bytes, streams: bytes = b"", size: int | None = None) -> bytes:
    """A file whose envelope and checksum are right, whatever the header says."""
    packed = zstd.compress(header, WORDS)
    body = varint(len(header) if size is None else size) + varint(len(packed)) + packed + streams
    return with_checksum(MAGIC + bytes([VERSION]) + varint(len(body) + 8) + body)
