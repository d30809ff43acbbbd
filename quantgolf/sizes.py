"""Sizes as people write them: `16MB` is 16,000,000 bytes, `16MiB` is 16,777,216."""

import re

from quantgolf.errors import QuantGolfError

UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def parse_size(text: str) -> int:
    """Whole bytes of a size such as `15900000`, `16_000_000`, `16,000,000`, `16MB`, `1.7 MB` or `16MiB`.

    Raises:
        QuantGolfError: not a size, not a whole number of bytes, or not positive.
    """
    match = re.fullmatch(r"(\d[\d_,]*)(\.\d+)?\s*([a-z]*)", text.strip(), re.IGNORECASE)
    unit = UNITS.get(match[3].lower()) if match else None
    if match is None or unit is None:
        raise QuantGolfError(
            f"size {text!r} is not understood, expected bytes or a number with one of kB, MB, GB (decimal), KiB, "
            "MiB, GiB: for example 16MB"
        )
    whole, fraction = int(re.sub("[_,]", "", match[1])), (match[2] or ".")[1:]
    numerator = int(str(whole) + fraction) * unit
    size, rest = divmod(numerator, 10 ** len(fraction))
    if rest or size <= 0:
        raise QuantGolfError(f"size {text!r} is {numerator / 10 ** len(fraction):g} bytes, expected a whole number > 0")
    return int(size)
