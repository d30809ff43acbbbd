"""How much of a covariance of gradients is taken for noise."""

import pytest
import torch

from quantgolf.calibrate.totals import shrunk


@pytest.mark.parametrize("visits", [8, 32, 128, 1024])
def test_shrinking_comes_closer_to_the_truth_than_none_and_than_all(visits: int) -> None:
    generator = torch.Generator().manual_seed(3)
    mix = torch.eye(12, dtype=torch.float64) + 0.3 * torch.randn(12, 12, generator=generator, dtype=torch.float64)
    truth = mix @ mix.T
    errors = torch.zeros(3, dtype=torch.float64)
    for _ in range(40):
        slow = torch.randn(visits, 12, generator=generator, dtype=torch.float64) @ mix.T
        raw = slow.T @ slow / visits
        squares = slow.square()
        fourth = float((squares.sum(1).square() - squares.square().sum(1)).sum())
        found = shrunk(raw.float(), raw.diagonal().float(), fourth, visits)
        for index, guess in enumerate((found.double(), raw, raw.diagonal().diag())):
            errors[index] += (guess - truth).square().sum()
    assert errors[0] < errors[1] and errors[0] < errors[2]


def test_outputs_of_nothing_of_one_row_and_of_one_visit_are_their_diagonal() -> None:
    diagonal = torch.tensor([2.0, 0.0, 1.0])
    assert torch.equal(shrunk(diagonal.diag(), diagonal, 0.0, 5), diagonal.diag())
    assert torch.equal(shrunk(torch.zeros(3, 3), torch.zeros(3), 0.0, 5), torch.zeros(3, 3))
    assert torch.equal(shrunk(torch.ones(1, 1), torch.ones(1), 0.0, 5), torch.ones(1, 1))
    g = torch.tensor([1.0, -2.0, 3.0])
    squares = g.square()
    fourth = float(squares.sum() ** 2 - squares.square().sum())
    assert torch.equal(shrunk(torch.outer(g, g), squares, fourth, 1), squares.diag())
    # Twice the same is no noise.
    assert torch.equal(shrunk(torch.outer(g, g), squares, 2 * fourth, 2), torch.outer(g, g))
