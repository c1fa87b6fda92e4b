r"""Moments: counts, means and scatter of the classes, which add up.  What needs nothing else can learn chunk by chunk.

Two parts of a training set, measured apart, give the moments of the whole (Chan, Golub & LeVeque 1983): with
:math:`\delta = \mu_b - \mu_a`,

.. math:: n = n_a + n_b, \qquad \mu = \mu_a + \tfrac{n_b}{n} \delta, \qquad
    S = S_a + S_b + \tfrac{n_a n_b}{n} \delta \delta^\top .

So a detector whose fit is a function of moments can see its training features in pieces, on one machine or on many.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ood_lib.data.labels import class_indices

__all__ = ["Kind", "Moments", "check_size", "class_moments", "gram", "merge_moments", "pooled", "rounding", "spread"]

Kind = Literal["none", "tied", "diagonal", "full"]
MOST = 2**20  # classes; a label beyond would only fill the memory


class Moments(NamedTuple):
    """Sums over the samples of C classes with K features each, all in float64."""

    counts: Tensor  # (C,)
    means: Tensor  # (C, K), zero for a class without samples
    scatter: Tensor  # sum of (z - mean)(z - mean)^T: tied (K, K), diagonal (C, K), full (C, K, K), none (0,)


def class_moments(z: Tensor, labels: Tensor, kind: Kind = "tied", classes: int = 0) -> Moments:
    r"""Count, mean and scatter :math:`S_c = \sum_{n: y_n = c} (z_n - \mu_c)(z_n - \mu_c)^\top` of each class.

    Args:
        z: (N, K).
        labels: (N,) class indices.
        kind: which part of the scatter is kept: ``"full"`` all, ``"diagonal"`` the variances, ``"tied"`` its sum over
            the classes, ``"none"`` nothing.
        classes: C at least; the largest label + 1 when that is more.

    Raises:
        ValueError: the labels are not one index >= 0 per row.

    Example:
        >>> class_moments(torch.tensor([[0.0], [2.0], [7.0]]), torch.tensor([0, 0, 1])).means.flatten().tolist()
        [1.0, 7.0]
    """
    labels = class_indices(labels, len(z))
    if len(labels) and not 0 <= labels.min() <= labels.max() < MOST:
        raise ValueError(
            f"labels run from {int(labels.min())} to {int(labels.max())}; expected class indices, counted from 0 "
            f"without gaps, and below {MOST}"
        )
    check_size(z)
    counts = labels.bincount(minlength=classes).double()
    if kind == "none" and len(counts) == 1:  # a mean errs no more than the rows do: no copy in float64
        return Moments(counts, z.sum(0, keepdim=True).double() / counts.clamp(min=1), counts.new_zeros(0))
    z = z.double()
    sums = z.new_zeros(len(counts), z.shape[1]).index_add_(0, labels, z)
    means = sums / counts.clamp(min=1)[:, None]
    if kind == "none":
        return Moments(counts, means, z.new_zeros(0))
    centred = z - means[labels]
    if kind == "full":
        own = [centred[labels == c] for c in range(len(counts))]
        return Moments(counts, means, torch.stack([rows.T @ rows for rows in own]))
    if kind == "diagonal":
        return Moments(counts, means, torch.zeros_like(means).index_add_(0, labels, centred.square()))
    return Moments(counts, means, gram(centred))


def check_size(z: Tensor) -> None:
    """Raise ValueError when rows are so large or small that sums of their squares are no numbers, even in float64."""
    if z.dtype == torch.float64 and z.numel():  # of any smaller precision they are
        low, high = 2.0**-480, 2.0**480
        if not (size := z.abs().amax().item()) == 0 and not low < size < high:
            raise ValueError(
                f"the largest entry of the features is {size:g}; expected one between {low:.0e} and {high:.0e}, whose "
                "square is a number too: rescale the features"
            )


def gram(z: Tensor) -> Tensor:
    """Products of all pairs of columns, z^T z, (N, K) to (K, K); those below the diagonal are copied, not computed."""
    if z.shape[1] <= 128:
        return z.T @ z
    left, right = z.tensor_split(2, 1)
    between = left.T @ right
    return torch.cat([torch.cat([gram(left), between], 1), torch.cat([between.T, gram(right)], 1)])


def spread(z: Tensor) -> Moments:
    """Moments of all rows (N, K) as one class, with the products in the precision of z.

    Around the mean, float32 products of a few thousand rows err by 1e-8 of the largest variance, no more than float32
    features do themselves.  On a GPU, where float32 may stand for TF32, the products are in float64.
    """
    check_size(z)
    z = z if z.device.type == "cpu" else z.double()
    size = z.abs().amax().item()
    power = 1.0 if size == 0 or 1e-12 < size < 1e12 else 2.0 ** math.frexp(size)[1]  # squares stay numbers in float32
    z = z if power == 1 else z / power
    near = z.mean(0)
    away = z - near
    mean = near.double() + away.mean(0).double()  # the second term is what the first one lost to rounding
    return Moments(mean.new_full((1,), len(z)), power * mean[None], power**2 * gram(away).double())


def merge_moments(a: Moments, b: Moments, kind: Kind = "tied") -> Moments:
    """Moments of two parts taken together; a class may be absent from either.

    Raises:
        ValueError: the parts differ in the number of features.
    """
    if a.means.shape[1] != b.means.shape[1]:
        raise ValueError(
            f"moments of {a.means.shape[1]} and of {b.means.shape[1]} features cannot be merged; "
            "expected features of one network"
        )
    classes = max(len(a.counts), len(b.counts))
    a, b = (_pad(m, classes, kind) for m in (a, b))
    counts = a.counts + b.counts
    share = b.counts / counts.clamp(min=1)
    delta = b.means - a.means
    between = _outer(delta, a.counts * share, kind)
    return Moments(counts, a.means + share[:, None] * delta, a.scatter + b.scatter + between)


def pooled(moments: Moments) -> Moments:
    """The classes of tied moments merged into one: overall mean (1, K), and scatter (K, K) around it."""
    count = moments.counts.sum(0, keepdim=True)
    mean = (moments.counts[:, None] * moments.means).sum(0, keepdim=True) / count
    return Moments(count, mean, moments.scatter + _outer(moments.means - mean, moments.counts, "tied"))


def rounding(means: Tensor) -> Tensor:
    """Variance (), below which features that are all equal seem to vary: (1e-13 of the largest mean) squared."""
    return (1e-13 * means.abs().amax()) ** 2


def _pad(moments: Moments, classes: int, kind: Kind) -> Moments:
    def grow(x: Tensor) -> Tensor:
        return torch.cat([x, x.new_zeros(classes - len(x), *x.shape[1:])])

    by_class = kind in ("diagonal", "full")
    return Moments(grow(moments.counts), grow(moments.means), grow(moments.scatter) if by_class else moments.scatter)


def _outer(delta: Tensor, weight: Tensor, kind: Kind) -> Tensor:
    """Weighted squares of rows (C, K), in the shape of the scatter."""
    scaled = weight[:, None] * delta
    if kind == "tied":
        return scaled.T @ delta
    if kind == "diagonal":
        return scaled * delta
    return scaled[:, :, None] * delta[:, None] if kind == "full" else delta.new_zeros(0)
