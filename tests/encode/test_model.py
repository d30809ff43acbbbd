"""Whole models through their streams: nothing is lost, and what does not fit is refused by name."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from quantgolf.encode import Entry, check_model, decode_model, encode_model, tensor_bytes
from quantgolf.encode.dtypes import DTYPES, stored_name
from quantgolf.errors import FormatError, QuantGolfError
from quantgolf.types import CodedModel, CodedTensor, QTensor, Steps


def quantized(rows: int, columns: int, bits: int, seed: int = 0) -> QTensor:
    generator = torch.Generator().manual_seed(seed)
    top = 2 ** (bits - 1) - 1
    codes = torch.randint(-top, top + 1, (rows, columns), generator=generator).to(torch.int8)
    return QTensor(codes, Steps((torch.rand(rows, generator=generator) + 0.01).half()), bits)


def entries() -> list[Entry]:
    generator = torch.Generator().manual_seed(1)
    kept = [
        Entry(f"kept.{name}", torch.ones(2, 3).to(dtype), aliases=("other",) if name == "F16" else ())
        for name, dtype in DTYPES.items()
    ]
    return [
        Entry("a", torch.zeros(5, 7), quantized(5, 7, 4)),
        *kept,
        Entry("conv", torch.zeros(4, 3, 2, dtype=torch.bfloat16), quantized(4, 6, 8)),
        Entry("noise", torch.randn(300, generator=generator)),
        Entry("exact", torch.randn(300, generator=generator, dtype=torch.float64)),
        Entry("scalar", torch.tensor(7)),
        Entry("nothing", torch.empty(0, 3)),
    ]


def test_models_return() -> None:
    given = entries()
    coded = encode_model(given)
    weights, small = decode_model(coded)
    assert [t.name for t in coded.tensors] == [e.name for e in given]
    assert list(weights) == ["a", "conv"]
    for entry, tensor in zip(given, coded.tensors, strict=True):
        assert tensor.shape == entry.original.shape and DTYPES[tensor.dtype] == entry.original.dtype
        assert tensor.aliases == entry.aliases
        if entry.quantized is not None:
            assert torch.equal(weights[entry.name].codes, entry.quantized.codes)
            assert torch.equal(weights[entry.name].steps.row, entry.quantized.steps.row)
            assert weights[entry.name].bits == entry.quantized.bits
        else:
            assert small[entry.name].dtype == entry.original.dtype
            torch.testing.assert_close(small[entry.name].double(), entry.original.double(), rtol=2**-11, atol=1e-3)
    assert encode_model(given) == coded


def test_bytes_add_up() -> None:
    coded = encode_model(entries())
    spent = tensor_bytes(coded)
    streams = sum(len(t.codes) for t in coded.tensors) + len(coded.steps) + len(coded.small)
    assert sum(s.codes + s.steps + s.small for s in spent) == pytest.approx(streams)
    assert all((s.codes > 0) == (t.bits is not None) for s, t in zip(spent, coded.tensors, strict=True))


@pytest.mark.parametrize(
    ("tensor", "name"),
    [
        (torch.tensor([1.0, -0.5, 3.14159, 0.0]), "F16"),
        (torch.randn(999, generator=torch.Generator().manual_seed(0)) * 1e-2, "F16"),
        (torch.tensor([1e5]), "F32"),
        (torch.tensor([torch.nan]), "F32"),
        (torch.randn(999, generator=torch.Generator().manual_seed(0)) * 1e-6, "F32"),
        (torch.tensor([1e5], dtype=torch.float64), "F32"),
        (torch.tensor([1e300], dtype=torch.float64), "F64"),
        (torch.tensor([1.0], dtype=torch.bfloat16), "BF16"),
        (torch.tensor([2**40]), "I64"),
    ],
)
def test_values_are_stored_as_narrow_as_they_survive(tensor: Tensor, name: str) -> None:
    (original,) = (key for key, dtype in DTYPES.items() if dtype == tensor.dtype)
    assert stored_name(tensor, original) == name


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (Entry("w", torch.zeros(5, 8), quantized(5, 7, 4)), r"codes \[5, 7\], expected \[N, K\] of its shape \[5, 8\]"),
        (Entry("w", torch.zeros(5, 7), replace(quantized(5, 7, 4), bits=3)), "magnitude 7, expected at most 3"),
        (Entry("w", torch.zeros(5, 7), replace(quantized(5, 7, 8), bits=9)), "9 bits, expected 2 to 8"),
        (Entry("w", torch.zeros(5, 7), QTensor(quantized(5, 7, 4).codes, Steps(torch.ones(5)), 4)), "float32 steps"),
        (
            Entry("w", torch.zeros(5, 7), QTensor(quantized(5, 7, 4).codes, Steps(torch.ones(5), torch.ones(7)), 4)),
            "has column steps",
        ),
        (Entry("w", torch.zeros(2, dtype=torch.complex64)), "complex64, expected one of"),
        (Entry("w", torch.zeros(2), aliases=("w",)), "used twice"),
        (Entry("", torch.zeros(2)), "empty or used twice"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(entry: Entry, message: str) -> None:
    with pytest.raises(QuantGolfError, match=message):
        encode_model([entry])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "F12"}, "dtype 'F12'"),
        ({"bits": 1}, "bits 1"),
        ({"bits": 4, "stored": "F32"}, "stored dtype F32"),
        ({"bits": 4, "dtype": "I64"}, "floating point"),
        ({"bits": 4, "shape": ()}, "at least one dimension"),
        ({"bits": None, "stored": "I64"}, "stored dtype I64"),
        ({"bits": None, "stored": "F32"}, "bytes of codes, expected none"),
        ({"shape": (1,) * 17}, "expected up to 16 sizes"),
        ({"shape": (2**20, 2**20)}, "decoded bytes"),
        ({"shape": (2**60, 0)}, "decoded bytes"),
    ],
)
def test_descriptions_that_nothing_writes_are_refused(changes: dict[str, object], message: str) -> None:
    coded = encode_model([Entry("w", torch.zeros(5, 7), quantized(5, 7, 4))])
    with pytest.raises(FormatError, match=message):
        check_model(replace(coded, tensors=(replace(coded.tensors[0], **changes),)))


def test_streams_that_do_not_fit_are_refused() -> None:
    coded = encode_model([Entry("w", torch.zeros(5, 7), quantized(5, 7, 4)), Entry("b", torch.ones(9) > 0)])
    for broken in (
        replace(coded, steps=coded.steps + b"\0"),
        replace(coded, steps=b""),
        replace(coded, small=coded.small + b"\0"),
        replace(coded, small=coded.small[:-1]),
        replace(coded, tensors=(replace(coded.tensors[0], bits=2), coded.tensors[1])),
    ):
        with pytest.raises(FormatError):
            decode_model(broken)


def test_truth_values_are_zero_or_one() -> None:
    coded = CodedModel((CodedTensor("b", (3,), "BOOL", "BOOL", None, b""),), b"", b"\x04\x00\x00\x01\x02")
    with pytest.raises(FormatError, match="truth value of 2"):
        decode_model(coded)


def test_steps_that_are_not_finite_are_refused() -> None:
    good = quantized(5, 7, 4)
    steps = Steps(torch.tensor([1, 1, np.inf, 1, 1]).half())
    with pytest.raises(FormatError, match="expected finite"):
        encode_model([Entry("w", torch.zeros(5, 7), replace(good, steps=steps))])
