"""Four ways to ask for a file: bytes, bits per parameter, or what it may lose on held-out text, in KL or in loss.

The last two are promises: the smallest file that keeps one is searched. Both losses grow about fourfold when every
step doubles, so that a line through the logarithms of two solutions leads near the third.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from quantgolf.errors import QuantGolfError

ROUNDS = 6  # solutions that are tried
CLOSE = 0.02  # of a promise: a file that uses so much of it is not searched further, 0.3% of its bytes at 4 bits
FARTHEST = 4.0  # octaves of step from a solution to the next
NEAREST = 1 / 64  # octave of step: solutions so near each other are not worth another between them


@dataclass(frozen=True)
class Promise:
    """What a file may lose on held-out text at most, in bits per byte.

    Attributes:
        kind: "kl" to the float model, or "dbpb": loss above the float model's.
        most: of it.
    """

    kind: Literal["kl", "dbpb"]
    most: float

    @property
    def option(self) -> str:
        """How it is spelled on the command line."""
        return f"--max-{self.kind}"


@dataclass(frozen=True)
class Wish:
    """The ways to ask, of which one is taken: `max_bytes` or `bpw` for a limit, `max_kl` or `max_dbpb` for a promise,
    or none of them where all widths are given by hand.

    Attributes:
        max_bytes: limit of the complete file and the code.
        bpw: the same in bits per parameter: floor(bpw · parameters / 8) bytes.
        max_kl, max_dbpb: what a file may lose on held-out text at most, in bits per byte.
        by_hand: whether all widths are given; a limit may go with them and a promise may not.

    Raises:
        QuantGolfError: nothing asked for, more than one thing, or one out of range.
    """

    max_bytes: int | None = None
    bpw: float | None = None
    max_kl: float | None = None
    max_dbpb: float | None = None
    by_hand: bool = False

    def __post_init__(self) -> None:
        asked = self._asked()
        if len(asked) > 1:
            raise QuantGolfError(f"{' and '.join(asked)} are given, expected one way to ask; leave the others out")
        if not asked and not self.by_hand:
            raise QuantGolfError(
                "nothing is asked for, expected a limit (--max-bytes 16MB or --bpw 3.5), what may be lost (--max-kl or "
                "--max-dbpb), or widths by hand (--bits); give one"
            )
        for name, value in asked.items():
            if not (value > 0 and math.isfinite(value)):
                raise QuantGolfError(f"{name} is {value}, expected a number above 0")
        if self.by_hand and self.promise is not None:
            raise QuantGolfError(f"{self.promise.option} searches widths and --bits gives them; leave one out")

    @property
    def promise(self) -> Promise | None:
        """What is promised; None where there is a limit or widths alone."""
        if self.max_kl is not None:
            return Promise("kl", self.max_kl)
        return None if self.max_dbpb is None else Promise("dbpb", self.max_dbpb)

    def limit(self, parameters: int) -> int | None:
        """Bytes of file and code, for a checkpoint of so many numbers; None where they are not limited.

        Raises:
            QuantGolfError: less than a byte.
        """
        if self.bpw is None:
            return self.max_bytes
        found = int(Fraction(str(self.bpw)) * parameters / 8)  # as it is written, not as binary numbers round it
        if found == 0:
            raise QuantGolfError(f"--bpw is {self.bpw}, which is no byte for {parameters:,} parameters; give more")
        return found

    def _asked(self) -> dict[str, float]:
        ways = {"--max-bytes": self.max_bytes, "--bpw": self.bpw, "--max-kl": self.max_kl, "--max-dbpb": self.max_dbpb}
        return {name: value for name, value in ways.items() if value is not None}


def coarsest(value_of: Callable[[float], float], most: float, start: float, low: float, high: float) -> float | None:
    """About the largest x whose value is at most `most`; None where that of `low` is more.

    Args:
        value_of: grows about fourfold with every whole step of x, with some noise; at low x it may be negative.
        most: above 0.
        start: the first x that is tried.
        low, high: bounds of x.
    """
    known: dict[float, float] = {}
    x = start
    for _ in range(ROUNDS):
        known[x] = value_of(x)
        kept = max((at for at, value in known.items() if value <= most), default=None)
        broken = min((at for at, value in known.items() if value > most and (kept is None or at > kept)), default=None)
        if kept is not None and (
            known[kept] >= (1 - CLOSE) * most or kept >= high or (broken is not None and broken - kept < NEAREST)
        ):
            break
        if kept is None and x <= low:
            return None
        x = min(high, max(low, _next(known, kept, broken, most * (1 - CLOSE / 2))))
        if x in known:
            break
    kept = max((at for at, value in known.items() if value <= most), default=None)
    if kept is None and low not in known:
        return low if value_of(low) <= most else None
    return kept


def _next(known: dict[float, float], kept: float | None, broken: float | None, aim: float) -> float:
    """Where the value should be `aim`, by the nearest solutions."""
    if kept is not None and broken is not None:
        share = 0.5
        if known[kept] > 0:
            share = math.log(aim / known[kept]) / math.log(known[broken] / known[kept])
        return kept + min(0.95, max(0.05, share)) * (broken - kept)
    nearest = broken if kept is None else kept
    assert nearest is not None
    if known[nearest] <= 0:
        return nearest + 1
    growth = 2.0  # octaves of the value for one of x
    others = sorted(
        (at for at, value in known.items() if at != nearest and value > 0), key=lambda at: abs(at - nearest)
    )
    if others:
        growth = math.log2(known[others[0]] / known[nearest]) / (others[0] - nearest)
    step = math.log2(aim / known[nearest]) / min(4.0, max(0.5, growth))
    return nearest + math.copysign(min(FARTHEST, max(NEAREST, abs(step))), step)
