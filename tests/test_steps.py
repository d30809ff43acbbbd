"""The mantissas of the format are numbers that no library's last bit can move."""

from decimal import Decimal, getcontext
from hashlib import blake2b

from quantgolf.steps import MANTISSAS

MARGIN = Decimal("1e-4")  # of a last place of fp32, as docs/format.md has it


def test_mantissas_are_the_nearest_numbers_and_far_from_the_middle_of_two() -> None:
    getcontext().prec = 40
    for i, mantissa in enumerate(MANTISSAS):
        exact = Decimal(2) ** (Decimal(i) / 128) * 2**23
        nearest = exact.to_integral_value()
        assert Decimal(float(mantissa)) * 2**23 == nearest
        assert abs(abs(exact - nearest) - Decimal("0.5")) > MARGIN


def test_mantissas_stay_what_they_are() -> None:
    assert blake2b(MANTISSAS.astype("<f4").tobytes(), digest_size=8).hexdigest() == "5f28b4300f6f957d"
