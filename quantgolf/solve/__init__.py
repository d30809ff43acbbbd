"""Solve: weight, statistics and a width become codes and steps."""

from quantgolf.solve.solver import Prepared, SolveOptions, Solver, predict, prepare, solve

__all__ = ["Prepared", "SolveOptions", "Solver", "predict", "prepare", "solve"]
