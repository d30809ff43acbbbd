"""Evaluate: bits per byte and KL, each with its paired confidence interval."""

from quantgolf.evaluate.interval import difference, kl_difference, kl_interval
from quantgolf.evaluate.score import evaluate, evaluate_against

__all__ = ["difference", "evaluate", "evaluate_against", "kl_difference", "kl_interval"]
