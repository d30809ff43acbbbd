"""Evaluate: bits per byte, KL and agreement with a reference, each with its paired confidence interval."""

from quantgolf.evaluate.interval import difference, kl_difference, kl_interval, top1_difference, top1_interval
from quantgolf.evaluate.score import evaluate, evaluate_against, evaluate_together

__all__ = [
    "difference",
    "evaluate",
    "evaluate_against",
    "evaluate_together",
    "kl_difference",
    "kl_interval",
    "top1_difference",
    "top1_interval",
]
