"""How a command ends before its time, always in one line: by Ctrl-C or another signal, a reader that went away, a full
disk, no more memory. Nothing heavy is imported here, so that all of it holds from the first moment on."""

import atexit
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from quantgolf.cli.plain import plain
from quantgolf.errors import QuantGolfError

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
CLOSED_PIPE = 128 + 13  # what a shell says of a program that SIGPIPE ended
AGAIN, LONGEST_IMPORT = 0.05, 5.0  # seconds
OUT_OF_MEMORY = ("can't allocate memory", "out of memory")  # torch's words on a CPU and on a GPU


class Interrupt(KeyboardInterrupt):
    """A signal that asks the command to end, in Python's own terms, so that everything cleans up as after Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class StoppedError(QuantGolfError):
    """A command that was asked to end and did; its exit code is 128 plus the signal's number, as shells have it."""

    def __init__(self, by: KeyboardInterrupt, more: str = "") -> None:
        number = by.number if isinstance(by, Interrupt) else signal.SIGINT
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        super().__init__(f"stopped by {name}" + (f"; {more}" if more else ""))
        self.exit_code = 128 + number


class ClosedError(QuantGolfError):
    """Whoever read the output went away, as `head` does; nothing is to be said."""

    exit_code = CLOSED_PIPE

    def __init__(self) -> None:
        super().__init__("")


@dataclass
class Heard:
    """Signals so far.

    Attributes:
        last: the number of the last one; None where there was none.
        running: whether a verb runs, which has to clean up.
        since: when the first came while a module was imported, in seconds of the process' clock.
    """

    last: int | None = None
    running: bool = False
    since: float | None = None

    def signal(self, number: int, frame: FrameType | None) -> None:
        """What Python calls. While something is imported it waits: torch imports parts of itself from C++, where an
        exception aborts the process."""
        self.last = number
        if self.running:
            self.since = time.monotonic() if self.since is None else self.since
            if _importing(frame) and time.monotonic() < self.since + LONGEST_IMPORT:
                again = threading.Timer(AGAIN, os.kill, (os.getpid(), number))
                again.daemon = True
                again.start()
                return
            self.since = None
            raise Interrupt(number)
        error = StoppedError(Interrupt(number))
        with suppress(OSError):
            os.write(2, f"{line_of(error)}\n".encode())
        os._exit(error.exit_code)


@contextmanager
def listening() -> Iterator[Heard]:
    """While entered, signals that end a program are heard. Until the verb runs they end it on the spot, since imports
    turn exceptions into others; from then on they raise `Interrupt`, so that files half written are removed.

    Signals that the program's parent had ignored stay so (`nohup`). Of several ranks each leaves SIGTERM as it is:
    torchrun ends them by it while they wait for each other in code that Python's handlers cannot interrupt.
    """
    heard, before = Heard(), {}
    if threading.current_thread() is threading.main_thread():
        usual = (signal.SIG_DFL, signal.default_int_handler)
        wanted = SIGNALS[:1] if int(os.environ.get("WORLD_SIZE", "1")) > 1 else SIGNALS
        numbers = [getattr(signal, name) for name in wanted if hasattr(signal, name)]
        before = {number: signal.getsignal(number) for number in numbers if signal.getsignal(number) in usual}
    for number in before:
        signal.signal(number, heard.signal)
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        # Python takes a second to end with torch in it: what is done by then is not to look stopped.
        atexit.unregister(_ignore)
        atexit.register(_ignore, tuple(before))


@contextmanager
def resumable(kept: str) -> Iterator[None]:
    """While entered, a command that is stopped says also what is kept and what to type to go on.

    Args:
        kept: a clause, for example "what is finished is in results.jsonl".
    """
    try:
        yield
    except KeyboardInterrupt as error:
        raise StoppedError(error, f"{kept}. To go on: {typed()}") from error


def typed() -> str:
    """The command as it was typed."""
    return shlex.join(["quantgolf", *sys.argv[1:]])


@contextmanager
def told() -> Iterator[None]:
    """Turns what ends a verb from outside into errors of one line, and makes sure that its output arrived.

    Raises:
        QuantGolfError: for each of these; other exceptions, which are faults of the program, pass.
    """
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt as error:
        raise StoppedError(error) from error
    except BrokenPipeError as error:
        _give_up_output()
        raise ClosedError from error
    except OSError as error:
        if error.filename is None:
            _give_up_output()
        where, why = error.filename or "standard output or a file", error.strerror or str(error)
        raise QuantGolfError(
            f"{where}: {why}, expected to read or write it; see that it is there and has room"
        ) from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY):
            raise QuantGolfError(
                f"out of memory ({str(error)[:200] or 'MemoryError'}), expected more of it; close other programs, or "
                "give a smaller --length, or compress with --offload"
            ) from error
        raise


def leave(error: QuantGolfError) -> NoReturn:
    """Ends the process with an error's line on standard error and its exit code."""
    with suppress(OSError):
        if str(error) and sys.stderr is not None:
            print(line_of(error), file=sys.stderr, flush=True)
    sys.exit(error.exit_code)


def line_of(error: QuantGolfError) -> str:
    """What is said of an error."""
    # What other people's code raised, and is quoted here, may run over several lines; so may names in files, which may
    # hold anything else too.
    line = plain(" ".join(str(error).split()))
    who = f"quantgolf, rank {os.environ.get('RANK')}" if "RANK" in os.environ else "quantgolf"
    return f"{who}: {line}"


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _ignore(numbers: tuple[int, ...]) -> None:
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


def _give_up_output() -> None:
    """Drops what could not be written: Python flushes once more when it ends, and says so if that fails."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
