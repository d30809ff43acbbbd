"""Blob: one file for one model, written atomically and read with suspicion. `docs/format.md` specifies it."""

from quantgolf.blob.container import MAGIC, VERSION, pack, parse
from quantgolf.blob.file import read_blob, write_blob

__all__ = ["MAGIC", "VERSION", "pack", "parse", "read_blob", "write_blob"]
