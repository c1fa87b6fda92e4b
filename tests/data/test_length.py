"""How many items a data set holds is asked before anything is computed: one at least, and known."""

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from ood_lib.data.length import length

ROWS = TensorDataset(torch.zeros(3, 1), torch.zeros(3))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(ROWS)


def test_it_is_the_number_of_items():
    assert length(ROWS, "to count") == 3
    assert length([(0, 0)], "to count") == 1  # a list is a data set too


@pytest.mark.parametrize("given", [DataLoader(ROWS), Stream(), iter(ROWS)])
def test_what_has_no_length_is_named_with_what_to_give_instead(given):
    with pytest.raises(TypeError, match=rf"{type(given).__name__} was given.*loader\.dataset"):
        length(given, "to count")


def test_an_empty_one_is_refused_with_the_purpose():
    with pytest.raises(ValueError, match=r"data set is empty.*to count"):
        length([], "to count")
