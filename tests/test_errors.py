"""Errors that have to survive a journey."""

import pickle

from quantgolf.errors import BudgetError


def test_a_budget_error_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(BudgetError("too small", 17)))
    assert str(error) == "too small" and error.nearest == 17 and error.exit_code == 3
