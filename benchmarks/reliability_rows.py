"""One promise tried: what the scripts behind `docs/reliability.md` write, a JSON line each.

`reliability_page.py` takes the last line of each promise and case, so that a script that is run again replaces its own.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from quantgolf.bench.machine import conditions
from quantgolf.errors import QuantGolfError

RESULTS = Path(__file__).parent / "results" / "reliability.jsonl"


@dataclass(frozen=True)
class Row:
    """What was tried of one promise.

    Attributes:
        promise: its name on the page, the same for all its cases.
        case: what of it was tried, in a few words; one row of the table.
        command: how to run it again, from the repository's root.
        tried: how many inputs, files, moments or mutants.
        faults: how many of them had a fault injected; 0 where there is none to inject.
        failures: how many broke the promise.
        seconds: how long all took.
        detail: whatever else was counted, for the page's last column: short keys, numbers or short strings.
    """

    promise: str
    case: str
    command: str
    tried: int
    faults: int
    failures: int
    seconds: float
    detail: dict[str, Any] = field(default_factory=dict)

    def append(self, path: Path = RESULTS) -> None:
        """Adds it to the results, with versions and day."""
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(self) | {"conditions": conditions(None)}) + "\n")


def read(path: Path = RESULTS) -> list[dict[str, Any]]:
    """The last line of each promise and case, in the order in which they first came.

    Raises:
        QuantGolfError: the file is missing, or a line is no row.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    number = 0
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):  # noqa: B007
            row = json.loads(line)
            found[row["promise"], row["case"]] = row
    except OSError as error:
        raise QuantGolfError(f"results {path}: {error.strerror}, expected lines of the reliability scripts") from error
    except (ValueError, KeyError, TypeError) as error:
        raise QuantGolfError(f"results {path} line {number} is no row ({error}); run its script again") from error
    return list(found.values())
