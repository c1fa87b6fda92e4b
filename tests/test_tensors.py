"""Laws of lengths, directions and order: those of the textbook, for numbers of any size."""

import pytest
import torch
from torch.nn import functional as F

from ood_lib.detectors.classical.rectifier import kept_mask
from ood_lib.tensors import ascending, directions, largest, lengths
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


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_largest_entries_are_those_of_a_sort_whatever_orders_them(dtype: torch.dtype):
    x = torch.randn(7, 30, generator=torch.Generator().manual_seed(0)).to(dtype)
    found, wanted = largest(x, 4), x.sort(1, descending=True).values[:, :4]
    assert torch.equal(found.sort(1, descending=True).values, wanted) and torch.equal(found[:, 0], wanted[:, -1])
    assert torch.equal(ascending(x), x.sort(1).values)


def test_what_needs_a_gradient_keeps_it_when_it_is_ordered():
    x = torch.tensor([[3.0, 1.0, 2.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(largest(x, 2).sum() + ascending(x)[0, 0], x)
    assert gradient.tolist() == [[1, 1, 1]]


def test_as_many_entries_are_kept_where_some_are_equal():
    z = torch.tensor([[0.0, 0, 0, 0, 5], [1, 1, 1, 1, 1], [1, 2, 3, 4, 5]])
    mask = kept_mask(z, 0.6)
    assert mask.sum(1).tolist() == [2, 2, 2] and bool(mask[0, 4]) and mask[2].tolist() == [False] * 3 + [True] * 2
