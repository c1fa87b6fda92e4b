"""How many images a data set holds: what every function that goes through one asks first."""

from torch.utils.data import DataLoader, Dataset, IterableDataset

__all__ = ["length"]


def length(dataset: Dataset | DataLoader, purpose: str) -> int:
    """Number of items, of which there is one at least.

    Args:
        dataset: items (image, label).
        purpose: completes "expected at least one (image, label) item ...".

    Raises:
        TypeError: a loader or a stream, which has no length.
        ValueError: there is no item.
    """
    if isinstance(dataset, DataLoader | IterableDataset) or not hasattr(dataset, "__len__"):
        raise TypeError(
            f"a {type(dataset).__name__} was given; expected a data set with a length: of a DataLoader pass "
            "loader.dataset, and batch_size and num_workers to extract; put a stream into a list first"
        )
    if not (items := len(dataset)):
        raise ValueError(f"the data set is empty: expected at least one (image, label) item {purpose}")
    return items
