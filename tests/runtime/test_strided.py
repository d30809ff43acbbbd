"""Views as arithmetic: the same offset, sizes and strides as torch's own views."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quantgolf.runtime.strided import Strided

SHAPE = (3, 4, 6)


def assert_same(found: Strided | None, view: Tensor) -> None:
    assert found is not None
    base = torch.arange(view.untyped_storage().nbytes() // view.element_size())
    assert found.sizes == tuple(view.shape) and found.numel == view.numel()
    assert torch.equal(base.as_strided(found.sizes, found.strides, found.offset), view)
    if view.numel():
        assert found.last == int(view.flatten()[-1])


@pytest.mark.parametrize(
    "key",
    [1, -1, slice(1, 3), slice(None, None, 2), slice(5, 2), (0, 2), (..., 3), (slice(1, None), ..., slice(2, 4)), None,
     (None, 2, None), (slice(None), 1, slice(0, 6, 5)), ...],
)  # fmt: skip
def test_indices(key: Any) -> None:
    base = torch.arange(72).reshape(SHAPE)
    assert_same(Strided.contiguous(SHAPE).index(key if isinstance(key, tuple) else (key,)), base[key])


def test_what_is_no_view_and_what_is_out_of_range() -> None:
    place = Strided.contiguous(SHAPE)
    assert place.index((torch.tensor([0, 1]),)) is None and place.index((True,)) is None
    assert place.index((slice(None, None, -1),)) is None
    for key in ((3,), (-4,), (0, 0, 0, 0)):
        with pytest.raises(IndexError):
            place.index(key)
    for bad in (lambda: place.narrow(0, 2, 2), lambda: place.dim(3), lambda: place.permute((0, 0, 1))):
        with pytest.raises(IndexError):
            bad()
    with pytest.raises(ValueError, match="expected those of 72 elements"):
        place.reshape((5, 5))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_chains_of_views(data: st.DataObject) -> None:
    """Where torch has a view of the same memory so does this, and where it copies this says None."""
    tensor, place = torch.arange(72).reshape(SHAPE), Strided.contiguous(SHAPE)
    for _ in range(4):
        kind = data.draw(st.sampled_from(["permute", "narrow", "select", "reshape", "none"]))
        if kind == "permute":
            order = data.draw(st.permutations(range(tensor.ndim)))
            tensor, place = tensor.permute(order), place.permute(order)
        elif kind == "none":
            found = place.index((..., None))
            assert found is not None
            tensor, place = tensor[..., None], found
        elif kind == "reshape":
            sizes = data.draw(st.sampled_from(_factorings(tensor.numel())))
            found = place.reshape(sizes)
            try:
                tensor = tensor.view(sizes)
            except RuntimeError:
                assert found is None
                return
            assert found is not None
            place = found
        elif tensor.ndim:
            dim = data.draw(st.integers(0, tensor.ndim - 1))
            start = data.draw(st.integers(0, tensor.shape[dim] - 1))
            if kind == "narrow":
                length = data.draw(st.integers(1, tensor.shape[dim] - start))
                tensor, place = tensor.narrow(dim, start, length), place.narrow(dim, start, length)
            else:
                tensor, place = tensor.select(dim, start), place.select(dim, start)
        assert_same(place, tensor)


def _factorings(count: int) -> list[tuple[int, ...]]:
    divisors = [each for each in range(1, count + 1) if count % each == 0]
    return [(count,), (-1, 1), *((each, count // each) for each in divisors),
            *((each, -1, 2) for each in divisors if count // each % 2 == 0)]  # fmt: skip
