"""What tells two data sets apart: a hash of all their items."""

import hashlib
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Subset, default_collate

__all__ = ["collate_labelled", "dataset_hash"]


def collate_labelled(items: list[Any]) -> Any:
    """The items of a batch together; without this check the images of a batch of two would pass for images, labels."""
    for item in items:
        parts = [type(part).__name__ for part in item] if isinstance(item, tuple | list) else []
        if len(parts) != 2 or item[1] is None:
            given = f"({', '.join(parts)})" if parts else type(item).__name__
            raise ValueError(
                f"the data set has no labels: an item is {given}; expected (image, label), with the label -1 where no "
                "class is known"
            )
    return default_collate(items)


def dataset_hash(dataset: Dataset, items: int | None = None, num_workers: int = 0) -> str:
    """The data set's own ``fingerprint()`` when it has one, otherwise a sha256 over its items.

    Args:
        dataset: items (image, label).
        items: how many to look at, evenly spread; None = all.
        num_workers: processes that load images.
    """
    if fingerprint := getattr(dataset, "fingerprint", None):
        return fingerprint()
    digest = hashlib.sha256()
    if items is not None:
        rows = torch.linspace(0, len(dataset) - 1, items, dtype=torch.float64).long()  # type: ignore[arg-type]
        dataset = Subset(dataset, rows.unique().tolist())
    for images, labels in DataLoader(dataset, 256, num_workers=num_workers, collate_fn=collate_labelled):
        for part in (images, torch.as_tensor(labels)):
            digest.update(f"{part.dtype}{tuple(part.shape)}".encode())
            digest.update(part.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
