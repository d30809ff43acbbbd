"""The command line: one file per verb, and errors as one line with an exit code (2 bad input, 3 budget missed, 1 what
`diff` found to differ, 130 and 143 stopped by Ctrl-C and SIGTERM)."""

from quantgolf.cli.stopping import Interrupt, StoppedError, leave, listening
from quantgolf.errors import QuantGolfError

__all__ = ["main"]


def main() -> None:
    """Entry point of the `quantgolf` command."""
    with listening() as heard:
        try:
            # Here, because torch takes seconds to import, and Ctrl-C is most likely in the first of them.
            from quantgolf.cli.verbs import app

            heard.running = True
            app()
        except QuantGolfError as error:
            leave(error)
        except KeyboardInterrupt as error:
            leave(StoppedError(error))
        except Exception as error:
            if heard.last is None:
                raise
            leave(StoppedError(Interrupt(heard.last), f"in the middle of it {type(error).__name__}: {error}"))
