"""Decoder: a reader of quantgolf files in one small Python file that needs numpy, torch and zstandard alone.

Where code counts towards the budget, quantgolf itself would not fit. `source.py` is that reader as people read it, and
is never imported here; `export` makes a small file of it, and `verify` runs such a file.
"""

from quantgolf.decoder.export import ALL, Features, export_decoder, features_of
from quantgolf.decoder.verify import verify

__all__ = ["ALL", "Features", "export_decoder", "features_of", "verify"]
