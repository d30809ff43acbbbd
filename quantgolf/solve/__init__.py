"""Solve: weight, statistics and a width become codes and steps."""

from quantgolf.solve.solver import WIDTHS, Prepared, SolveOptions, Solver, predict, prepare, solve

__all__ = ["WIDTHS", "Prepared", "SolveOptions", "Solver", "predict", "prepare", "solve"]
