"""Laws of lengths and directions: those of the textbook, for numbers of any size."""

import pytest
import torch
from torch.nn import functional as F

from ood_lib.tensors import directions, lengths
from tests.conftest import normal


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_squares_are_numbers_they_are_the_usual_ones_to_the_bit(dtype: torch.dtype):
    z = normal(500, 33).to(dtype) * torch.logspace(-4, 4, 500).to(dtype)[:, None]
    assert torch.equal(directions(z), F.normalize(z, dim=1)) and torch.equal(lengths(z), z.norm(dim=1))


@pytest.mark.parametrize("size", [1e38, 1e30, 1e19, 1.0, 1e-15, 1e-30, 1e-40])
def test_no_row_is_too_long_or_too_short(size: float):
    z = size * torch.tensor([[0.3, 0.0, -0.4], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    rel = 1e-4 if size < 1e-37 else 1e-6  # numbers this small have fewer digits
    assert lengths(z).tolist() == pytest.approx([0.5 * size, 0, size], rel=rel)
    expected = torch.tensor([[0.6, 0.0, -0.8], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert torch.allclose(directions(z), expected, atol=rel)


def test_gradients_are_those_of_the_length():
    z = (1e3 * normal(4, 3)).requires_grad_()
    assert torch.autograd.gradcheck(lengths, z) and torch.autograd.gradcheck(directions, z)
