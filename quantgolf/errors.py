"""The few exceptions quantgolf raises on purpose; each message names the value, the expectation, the remedy."""


class QuantGolfError(Exception):
    """Bad input or a state quantgolf refuses to go on from; the command line exits with 2."""

    exit_code = 2


class FormatError(QuantGolfError):
    """A file is not a quantgolf blob, is damaged, or asks for more than the reader permits."""


class BudgetError(QuantGolfError):
    """A byte budget cannot be met; `nearest` is the smallest size that can. The command line exits with 3."""

    exit_code = 3

    def __init__(self, message: str, nearest: int) -> None:
        super().__init__(message)
        self.nearest = nearest

    def __reduce__(self) -> tuple[type["BudgetError"], tuple[str, int]]:  # it travels between processes
        return BudgetError, (str(self), self.nearest)
