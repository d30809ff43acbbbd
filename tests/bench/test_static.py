"""Predictions from what the compiler made, against numbers worked out by hand, and one small kernel compiled."""

from typing import Any

import pytest

from quantgolf.bench import static
from quantgolf.errors import QuantGolfError
from quantgolf_kernels import ahead

SASS = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   MOV R2, 0x10 ;
        /*0020*/                   LOP3.LUT R3, R2, 0xf, RZ, 0xc0, !PT ;
        /*0030*/                   FFMA R4, R3, R2, R4 ;
        /*0040*/              @!P0 IADD3 R2, R2, 0x1, RZ ;
        /*0050*/               @P1 BRA 0x20 ;
        /*0060*/                   ISETP.GE.AND P2, PT, R9, 0x8, PT ;
        /*0070*/               @P2 BRA 0x10 ;
        /*0080*/                   EXIT ;
        /*0090*/                   BRA 0x90;
"""


def facts(**more: Any) -> dict[str, Any]:
    code, spans = ahead.loops(SASS)
    return {"name": "gemv_kernel", "warps": 2, "registers": 40, "local": 0, "shared": 8, "wgmma": 0, "code": code,
            "loops": spans} | more  # fmt: skip


def test_loops_are_jumps_back() -> None:
    code, spans = ahead.loops(SASS)
    assert code[2] == "LOP3.LUT" and code[4] == "IADD3" and len(code) == 10
    assert spans == [(2, 5), (1, 7)]  # the last jump is to itself, where a kernel that ended is caught


def test_the_largest_loop_that_holds_no_other_is_the_main_one() -> None:
    assert static.main_loop(facts()) == ["LOP3.LUT", "FFMA", "IADD3", "BRA"]
    assert len(static.main_loop(facts(loops=[]))) == 10


def test_a_prediction_is_the_largest_of_three_times() -> None:
    row = static.prediction(4, 1, 8192, 8192, facts())
    tile = row["tile"]
    weights = tile["block_n"] * tile["block_k"] * 8  # 8 columns in a word
    passes = 8192 * 8192 / weights * 2  # by two warps
    assert row["bytes_us"] == pytest.approx((8192 * 8192 / 2 + 4 * 2 * 8192 + 2 * 2 * 8192) / 4.3e12 * 1e6)
    assert row["issue_us"] == pytest.approx(4 * passes / (132 * 4 * 1.75e9) * 1e6)
    assert row["integer_us"] == pytest.approx(2 * 32 * passes / (132 * 64 * 1.75e9) * 1e6)
    assert row["predicted_us"] == max(row["bytes_us"], row["issue_us"], row["integer_us"])
    assert row["what"] == "prediction, not a measurement" and row["bound"] == "bytes"
    assert row["per_weight"] == pytest.approx(4 * 32 * 2 / weights)


def test_a_product_with_more_rows_unpacks_once_a_tile_of_them() -> None:
    one, two = (static.prediction(4, m, 8192, 8192, facts(name="gemm_kernel")) for m in (64, 100))
    assert one["tile"] == two["tile"] and one["tile"]["block_m"] == 64
    assert two["issue_us"] == pytest.approx(2 * one["issue_us"]) and two["kernel"] == "gemm"


@pytest.mark.parametrize("kernel, bits, weights", [
    ("gemv", 8, 4), ("gemv", 6, 8), ("gemv", 3, 16), ("gemm", 8, 4), ("gemm", 6, 16), ("gemm", 3, 32),
])  # fmt: skip
def test_weights_of_a_pass(kernel: str, bits: int, weights: int) -> None:
    assert static.pass_weights(kernel, bits, 8192, {"block_n": 2, "block_k": 64}) == 2 * 64 * weights
    assert static.pass_weights(kernel, bits, 512, {"block_n": 2, "block_k": 1024}) <= 2 * 512


def test_small_kernels_are_compiled_and_predicted() -> None:
    one, few, rest = static.predictions([8], [(512, 256), (64, 64)], [1, 16])[:3]
    assert (one["kernel"], one["n"], one["k"]) == ("gemv", 512, 256) and one["wgmma"] == 0
    assert few["kernel"] == "gemm" and few["wgmma"] > 0 and few["m"] == 16
    assert rest["n"] == 64
    for row in (one, few):
        assert row["spilled"] == 0 and 16 < row["registers"] <= 255 and 0 < row["loop"] <= row["instructions"]
        assert 0.1 < row["per_weight"] < 40 and row["predicted_us"] > 0


def test_nothing_below_the_dense_product_is_refused() -> None:
    with pytest.raises(QuantGolfError, match="no rows below"):
        static.predictions([4], [(64, 64)], [4096])


def test_a_script_that_fails_says_so() -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        ahead.compiled("1 / 0")
    with pytest.raises(RuntimeError, match="launched no kernel"):
        ahead.compiled("x = 1")
