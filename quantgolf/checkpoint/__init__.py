"""Checkpoints in: the stored tensors, and the module they belong to."""

from quantgolf.checkpoint.demo import Demo, read_demo
from quantgolf.checkpoint.fingerprint import fingerprint
from quantgolf.checkpoint.model import build_model, describe_model
from quantgolf.checkpoint.open import Checkpoint, fill, open_checkpoint
from quantgolf.checkpoint.read import Stored, write_state
from quantgolf.checkpoint.shards import read_stored

__all__ = [
    "Checkpoint",
    "Demo",
    "Stored",
    "build_model",
    "describe_model",
    "fill",
    "fingerprint",
    "open_checkpoint",
    "read_demo",
    "read_stored",
    "write_state",
]
