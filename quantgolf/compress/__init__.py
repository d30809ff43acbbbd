"""Compress: the rooms put together, from a checkpoint and text to the bytes of a file under the budget."""

from quantgolf.compress.dry_run import DryRun, dry_run
from quantgolf.compress.heldout import HeldOut, split_calibration
from quantgolf.compress.look import look
from quantgolf.compress.offload import calibrate_to
from quantgolf.compress.pipeline import batches_of, calibrate, compress
from quantgolf.compress.refuse import refuse_idle_rules, refuse_unreachable
from quantgolf.compress.result import Compressed
from quantgolf.compress.targets import Wish
from quantgolf.compress.tune import Tuning

__all__ = [
    "Compressed",
    "DryRun",
    "HeldOut",
    "Tuning",
    "Wish",
    "batches_of",
    "calibrate",
    "calibrate_to",
    "compress",
    "dry_run",
    "look",
    "refuse_idle_rules",
    "refuse_unreachable",
    "split_calibration",
]
