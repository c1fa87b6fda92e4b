"""What tells two data sets apart: a mark of each item, made of all that a later run would see of it."""

import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset, default_collate

from ood_lib.data.images import ImageArray, ImageFiles
from ood_lib.data.length import length
from ood_lib.tensors import as_tensor, why_not_dense

__all__ = ["DataIdentity", "collate_items", "collate_labelled", "data_identity", "dataset_hash", "known_marks"]

LOOKS = 16  # items that are read twice where a data set may change them on the way


class DataIdentity(NamedTuple):
    """By what a data set is known again."""

    digest: str
    marks: Sequence[bytes] | None  # one for each item; None where the data set has a fingerprint of its own alone


# -- items ----------------------------------------------------------------------------------------------------------


def collate_labelled(items: list[Any]) -> Any:
    """The items of a batch together; without these checks the images of a batch of two would pass for images, labels.

    Raises:
        ValueError: items that are no pairs (image, label), images that are no tensors of one shape, labels that are no
            numbers.
    """
    for item in items:
        parts = [type(part).__name__ for part in item] if isinstance(item, tuple | list) else []
        if (len(parts) < 2 and not isinstance(item, dict)) or (len(parts) == 2 and item[1] is None):
            given = f"({', '.join(parts)})" if parts else type(item).__name__
            raise ValueError(
                f"the data set has no labels: an item is {given}; expected (image, label), with the label -1 where no "
                "class is known"
            )
        if len(parts) != 2:
            given = f"({', '.join(parts)})" if parts else f"a {type(item).__name__} with {list(item)}"
            raise ValueError(
                f"the items of the data set are no pairs: an item is {given}; expected (image, label): give a list of "
                "such pairs, or a data set of your own whose __getitem__ returns them"
            )
        _check_image(item[0])
        _check_label(item[1])
    shapes = {tuple(np.shape(item[0])): None for item in items}
    if len(shapes) > 1:
        raise ValueError(f"images of the shapes {[*shapes]} are in one batch; expected one shape: resize or crop them")
    shapes = {tuple(np.shape(item[1])): None for item in items}
    if len(shapes) > 1:
        raise ValueError(f"labels of the shapes {[*shapes]} are in one batch; expected the same for all images")
    return collate_items(items)


def collate_items(items: list[Any]) -> Any:
    """The items of a batch together, arrays of any byte order, stride and real type among them.

    Raises:
        ValueError: their parts are no numbers, or differ in shape.
    """
    try:
        return default_collate([_as_tensors(item) for item in items])
    except (TypeError, RuntimeError) as error:
        raise ValueError(
            f"the items of the data set cannot be put into one batch ({error}); expected pairs (image, label), images "
            "as tensors (channels, height, width) of one shape"
        ) from error


def _as_tensors(item: Any) -> Any:
    if not isinstance(item, tuple | list):
        return item
    return tuple(
        as_tensor(x, "a part of an item of the data set") if isinstance(x, np.ndarray | Tensor) else x for x in item
    )


def _check_image(image: Any) -> None:
    if isinstance(image, Tensor) and (what := why_not_dense(image)):
        raise ValueError(f"an image of the data set is {what}; expected a dense tensor (channels, height, width)")
    if not isinstance(image, Tensor | np.ndarray):
        advice = "; end its transform with torchvision.transforms.ToTensor()" if hasattr(image, "convert") else ""
        raise ValueError(
            f"an image of the data set is a {type(image).__name__}; expected a tensor (channels, height, width) in "
            f"[0, 1]{advice}"
        )


def _check_label(label: Any) -> None:
    good = isinstance(label, bool | int | float | np.number | np.bool_ | Tensor)
    if isinstance(label, np.ndarray):
        good = label.dtype.kind in "biuf"
    if good and not (isinstance(label, Tensor | np.ndarray) and label.ndim > 1):
        return
    given = f"{label!r:.60}" if isinstance(label, str | tuple | list) else f"a {type(label).__name__}"
    given = f"a tensor of shape {tuple(np.shape(label))}" if good else given
    raise ValueError(
        f"a label of the data set is {given}; expected a class index, -1 where no class is known, or a tensor (C,) "
        "of 0/1 where an image may show several classes"
    )


# -- marks ----------------------------------------------------------------------------------------------------------


def data_identity(dataset: Dataset, num_workers: int = 0) -> DataIdentity:
    """All labels and images of a data set in one digest, and a mark of each item.

    Sets whose items lie in memory, or in files, are known by what lies there: bytes, or names, sizes, times and
    labels.  A data set with a method ``fingerprint()`` is believed, and looked at in `LOOKS` items.  Of any other all
    items are read.

    Raises:
        ValueError: an item differs each time it is read, as random transforms make it.
    """
    marks, digest = known_marks(dataset), hashlib.sha256()
    if marks is None or not _is_plain(dataset):
        digest.update(b"".join(_looks(dataset)))
    if marks is None and (own := getattr(type(dataset), "fingerprint", None)):  # not one that a wrapper hands through
        digest.update(own(dataset).encode(errors="surrogateescape"))
    else:
        marks = _read_marks(dataset, num_workers) if marks is None else marks
        digest.update(b"".join(marks))
    return DataIdentity(digest.hexdigest(), marks)


def known_marks(dataset: Any) -> list[bytes] | None:
    """A mark of each item if it can be computed without reading the items; else None.

    Only of the very classes that are known: one that inherits from them may give other items.
    """
    for kind, marks in _KINDS.items():
        if type(dataset) is kind:
            return marks(dataset)
    if type(dataset) in _torchvision():
        return _torchvision_marks(dataset)
    return None


def _is_plain(dataset: Any) -> bool:
    """Whether a known data set gives items as they lie there, so that none need be looked at."""
    if type(dataset) is Subset:
        return _is_plain(dataset.dataset)
    if type(dataset) is ConcatDataset:
        return all(map(_is_plain, dataset.datasets))
    return type(dataset) in (TensorDataset, ImageArray, ImageFiles)


def _mark(*parts: Any) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else str(part).encode(errors="surrogateescape"))
        digest.update(b"\n")
    return digest.digest()[:16]


def _tensor_marks(*tensors: Tensor, also: str = "") -> list[bytes]:
    """A mark of each row."""
    form = f"{also}{[(x.dtype, tuple(x.shape[1:])) for x in tensors]}".encode()
    rows = [x.detach().cpu().contiguous().reshape(len(x), -1).view(torch.uint8).numpy() for x in tensors]
    start, marks = hashlib.sha256(form), []
    for parts in zip(*rows, strict=True):
        digest = start.copy()
        for part in parts:
            digest.update(part.data)
        marks.append(digest.digest()[:16])
    return marks


def _subset_marks(dataset: Subset) -> list[bytes] | None:
    inner = known_marks(dataset.dataset)
    return inner and [inner[i] for i in dataset.indices]


def _concat_marks(dataset: ConcatDataset) -> list[bytes] | None:
    parts = [known_marks(part) for part in dataset.datasets]
    return None if None in parts else [mark for part in parts if part for mark in part]


_KINDS: dict[type, Callable[[Any], list[bytes] | None]] = {
    ImageArray: ImageArray.marks,
    ImageFiles: ImageFiles.marks,
    TensorDataset: lambda dataset: _tensor_marks(*dataset.tensors),
    Subset: _subset_marks,
    ConcatDataset: _concat_marks,
}


def _torchvision() -> set[type]:
    """The classes of torchvision whose items are pictures in memory or in folders, if it is in use."""
    module = sys.modules.get("torchvision.datasets")
    names = "CIFAR10 CIFAR100 MNIST FashionMNIST KMNIST SVHN STL10 ImageFolder DatasetFolder".split()
    return {getattr(module, name) for name in names} if module else set()


def _torchvision_marks(dataset: Any) -> list[bytes]:
    """Of what lies in memory or on disk, and the label as it comes out; how pictures are transformed is looked at."""
    change = dataset.target_transform or (lambda label: label)
    if hasattr(dataset, "samples"):
        found = ((os.path.relpath(name, dataset.root), os.stat(name), label) for name, label in dataset.samples)
        return [_mark(name, stat.st_size, stat.st_mtime_ns, change(label)) for name, stat, label in found]
    labels = dataset.targets if hasattr(dataset, "targets") else dataset.labels
    pixels = torch.as_tensor(dataset.data)
    return [_mark(mark, change(int(label))) for mark, label in zip(_tensor_marks(pixels), labels, strict=True)]


def _looks(dataset: Any) -> list[bytes]:
    """Marks of a few items, evenly spread, each of which must be the same twice."""
    rows = torch.linspace(0, len(dataset) - 1, LOOKS, dtype=torch.float64).long().unique().tolist()
    found = []
    with torch.random.fork_rng(devices=[]):
        for i in rows:
            first, second = (_tensor_marks(*_tensors(collate_labelled([dataset[i]])))[0] for _ in range(2))
            if first != second:
                raise ValueError(
                    f"item {i} of the data set differs each time it is read, as random transforms make it: features in "
                    "a file would be those of images that nobody sees again; take the random transforms out, or leave "
                    "out cache= and out="
                )
            found.append(first)
    return found


def _read_marks(dataset: Dataset, num_workers: int) -> list[bytes]:
    loader = DataLoader(dataset, 256, num_workers=num_workers, collate_fn=collate_labelled)
    return [mark for batch in loader for mark in _tensor_marks(*_tensors(batch))]


def _tensors(batch: Sequence[Any]) -> tuple[Tensor, Tensor]:
    images, labels = batch
    return images, torch.as_tensor(labels)


def dataset_hash(dataset: Dataset, items: int | None = None, num_workers: int = 0) -> str:
    """The digest of `data_identity`; with `items` that of so many items alone, evenly spread, where it is not known.

    Args:
        dataset: items (image, label).
        items: how many to look at; None = all.
        num_workers: processes that load images.
    """
    if items is None:
        return data_identity(dataset, num_workers).digest
    if (marks := known_marks(dataset)) is None:
        rows = torch.linspace(0, length(dataset, "to hash") - 1, items, dtype=torch.float64).long()
        marks = _read_marks(Subset(dataset, rows.unique().tolist()), num_workers)
    return hashlib.sha256(b"".join(marks)).hexdigest()
