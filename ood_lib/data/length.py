"""How many images a data set holds: what every function that goes through one asks first."""

from typing import Any

from torch.utils.data import DataLoader, IterableDataset

__all__ = ["length"]


def length(dataset: Any, purpose: str) -> int:
    """Number of items, of which there is one at least.

    Args:
        dataset: items (image, label).
        purpose: completes "expected at least one (image, label) item ...".

    Raises:
        TypeError: a loader or a stream, which has no length.
        ValueError: there is no item.
    """
    known = not isinstance(dataset, DataLoader | IterableDataset) and hasattr(dataset, "__getitem__")
    try:
        items = len(dataset) if known else -1
    except TypeError:  # of a tensor without a dimension, for instance
        items = -1
    if items < 0:
        raise TypeError(
            f"a {type(dataset).__name__} was given; expected a data set with a length: of a DataLoader pass "
            "loader.dataset, and batch_size where the function takes it; put a stream into a list first"
        )
    if items == 0:
        raise ValueError(f"the data set is empty: expected at least one (image, label) item {purpose}")
    return items
