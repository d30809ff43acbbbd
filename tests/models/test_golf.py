"""The reference model: causal, sensitive to order, and the size its config says."""

import pytest
import torch

from quantgolf.errors import QuantGolfError
from quantgolf.models.golf import Golf, GolfConfig, rotary, rotate

CONFIG = GolfConfig(vocab_size=64, dim=32, layers=2, heads=4, kv_heads=2)


def drawn() -> Golf:
    model = Golf(CONFIG)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def test_no_token_sees_the_future() -> None:
    model, tokens = drawn(), torch.arange(20)[None]
    changed = tokens.clone()
    changed[0, 12] = 63
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :12], after[:, :12])
    assert not torch.allclose(before[:, 12:], after[:, 12:])
    assert before.shape == (1, 20, 64) and float(before.abs().max()) <= 30


def test_rotation_depends_on_distance_alone() -> None:
    cos, sin = rotary(CONFIG, 50, torch.device("cpu"))
    q, k = torch.randn(2, 8, generator=torch.Generator().manual_seed(1))
    near = rotate(q, cos[7], sin[7]) @ rotate(k, cos[3], sin[3])
    far = rotate(q, cos[44], sin[44]) @ rotate(k, cos[40], sin[40])
    torch.testing.assert_close(near, far)
    torch.testing.assert_close(rotate(q, cos[9], sin[9]).norm(), q.norm())


def test_fresh_weights_are_repeatable_and_start_as_the_identity() -> None:
    first, second = Golf(CONFIG), Golf(CONFIG)
    for model in (first, second):
        model.initialise(torch.Generator().manual_seed(5))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not first.blocks[0].attn.o.weight.any() and not first.blocks[1].down.weight.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 0}, "dim is 0"),
        ({"layers": 10**9}, "layers is 1000000000"),
        ({"kv_heads": 3}, "heads is 4, expected a multiple"),
        ({"dim": 12}, "dim is 12"),
    ],
)
def test_impossible_shapes_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(QuantGolfError, match=message):
        GolfConfig(**{"heads": 4, **changes})
