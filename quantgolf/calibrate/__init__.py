"""Calibration: run text through the model and keep what each weight's inputs and outputs look like."""

from quantgolf.calibrate.capture import weights
from quantgolf.calibrate.collect import collect, survey

__all__ = ["collect", "survey", "weights"]
