"""Checkpoints in: the stored tensors, and the module they belong to."""

from quantgolf.checkpoint.demo import Demo, read_demo
from quantgolf.checkpoint.model import build_model, describe_model
from quantgolf.checkpoint.open import Checkpoint, fill, open_checkpoint
from quantgolf.checkpoint.read import read_state, write_state

__all__ = [
    "Checkpoint",
    "Demo",
    "build_model",
    "describe_model",
    "fill",
    "open_checkpoint",
    "read_demo",
    "read_state",
    "write_state",
]
