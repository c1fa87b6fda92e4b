"""Label matrices: several labels per image, 1 = present, 0 = absent; checked, counted, and judged by average precision.

An image may carry no label at all.  A class that no training image carries can be learnt only as absent.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ood_lib.extras import need
from ood_lib.tensors import check_floats, why_not_dense

__all__ = ["class_indices", "LabelCounts", "average_precision", "count_labels", "label_matrix", "present"]


def class_indices(labels: Tensor, rows: int, classes: int | None = None) -> Tensor:
    """Labels (N,) as int64.

    Args:
        labels: (N,).
        rows: N, how many images there are.
        classes: C, how many logits the network has; None = labels are not looked at one by one.

    Raises:
        ValueError: they are not one integer per row; or, where C is known, one of them is none of 0, ..., C - 1.
    """
    what = why_not_dense(labels)
    whole = not what and not labels.is_floating_point()
    if not whole or labels.shape != (rows,) or labels.dtype == torch.bool:
        kind = what or f"{labels.dtype} of shape {tuple(labels.shape)}"
        column = "; of a column (N, 1) take labels.flatten()" if getattr(labels, "shape", ()) == (rows, 1) else ""
        raise ValueError(f"labels are {kind}; expected {rows} class indices, integers of shape ({rows},){column}")
    labels = labels.long()
    if classes is not None and rows and (labels.min() < 0 or labels.max() >= classes):
        raise ValueError(
            f"labels run from {labels.min()} to {labels.max()}, but the network knows the classes 0 to {classes - 1}: "
            "number the classes from 0, or give the network more outputs"
        )
    return labels


def label_matrix(labels: Tensor, rows: int, classes: int | None = None) -> Tensor:
    """Labels (N, C) as int64, each 0 or 1.

    Args:
        labels: (N, C).
        rows: N, how many images there are.
        classes: C, how many logits the network has; None = whatever was given.

    Raises:
        ValueError: another shape, or an entry other than 0 and 1.
    """
    wanted = f"({rows}, {'C' if classes is None else classes})"
    if what := why_not_dense(labels):
        raise ValueError(f"labels are {what}; expected a dense tensor {wanted}, one column of 0/1 per label")
    if labels.ndim != 2 or len(labels) != rows or classes not in (None, labels.shape[1]):
        raise ValueError(
            f"labels are of shape {tuple(labels.shape)}; expected {wanted}, one row per image and one column of 0/1 "
            "per label of the network"
        )
    if (wrong := (labels != 0) & (labels != 1)).any():
        row, column = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"labels hold {labels[row, column].item():g} in row {row}, column {column}; expected 1 where the label is "
            "present and 0 where it is absent"
        )
    return labels.long()


def present(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and classes of all labels (N, C) that are present: an image with two is named twice, one without never.

    Returns:
        Indices of images and of classes, both of the length labels.sum().

    Example:
        >>> present(torch.tensor([[1, 1], [0, 0], [0, 1]]))
        (tensor([0, 0, 2]), tensor([0, 1, 1]))
    """
    rows, classes = labels.nonzero(as_tuple=True)
    return rows, classes


class LabelCounts(NamedTuple):
    """What a label matrix holds, see `count_labels`."""

    images: int
    unlabelled: int  # images without any label
    cardinality: float  # labels per image, on average
    per_class: tuple[int, ...]  # images that carry each class

    @property
    def absent(self) -> list[int]:
        """Classes that no image carries."""
        return [c for c, count in enumerate(self.per_class) if count == 0]

    def __str__(self) -> str:
        counts = ", ".join(map(str, self.per_class))
        return (
            f"{self.images} images with {self.cardinality:.2f} labels each, {self.unlabelled} without any; "
            f"images per class: {counts}" + (f"; never present: classes {self.absent}" if self.absent else "")
        )


def count_labels(labels: Tensor) -> LabelCounts:
    """How often each label of a matrix (N, C) of 0/1 occurs, and how many images carry none.

    Raises:
        ValueError: an entry other than 0 and 1, or another shape.

    Example:
        >>> print(count_labels(torch.tensor([[1, 1, 0], [0, 0, 0], [0, 1, 0]])))
        3 images with 1.00 labels each, 1 without any; images per class: 1, 2, 0; never present: classes [2]
    """
    labels = label_matrix(labels, 0 if why_not_dense(labels) or labels.ndim == 0 else len(labels))
    each = labels.sum(1)
    mean = each.double().mean().item() if len(labels) else 0.0
    return LabelCounts(len(labels), int((each == 0).sum()), mean, tuple(labels.sum(0).tolist()))


def average_precision(logits: Tensor, labels: Tensor) -> Tensor:
    """Average precision of each class, (C,) in float64; its mean over the classes is the mAP.

    Images are ranked by the logit of the class.  A class that no image carries, or every image, has nothing to rank:
    NaN, which ``nanmean`` leaves out.

    Args:
        logits: (N, C).
        labels: (N, C) of 0/1.

    Raises:
        ValueError: labels that are not 0/1, or not of the shape of the logits.

    Example:
        >>> average_precision(torch.tensor([[2.0, 0.0], [1.0, 0.0]]), torch.tensor([[0, 0], [1, 0]]))
        tensor([0.5000,    nan], dtype=torch.float64)
    """
    check_floats("(N, C)", logits=logits)
    if bad := int((~logits.isfinite()).any(1).sum()):
        raise ValueError(f"{bad} of {len(logits)} rows of logits hold NaN or infinity; expected numbers to rank by")
    labels = label_matrix(labels, *logits.shape).cpu().resolve_neg()
    score = need("sklearn.metrics").average_precision_score
    pairs = zip(labels.T.numpy(), logits.detach().cpu().double().resolve_neg().T.numpy())
    found = [score(y, x) if 0 < y.sum() < len(y) else torch.nan for y, x in pairs]
    return torch.tensor(found, dtype=torch.float64, device="cpu")
