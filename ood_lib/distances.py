"""Detectors that measure a distance to the training features: k nearest neighbours, Mahalanobis.  Larger = more OOD."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ood_lib.detector import Detector
from ood_lib.features import Features

__all__ = ["KNN", "Mahalanobis", "class_means", "knn_distance", "mahalanobis", "tied_covariance"]


def knn_distance(queries: Tensor, bank: Tensor, k: int, chunk: int = 65536) -> Tensor:
    r"""Euclidean distance to the k-th nearest row of the bank; larger = more OOD.

    The bank is visited in chunks and only the k best distances are carried along, so memory is
    O(queries x (chunk + k)) whatever the size of the bank.

    Args:
        queries: (N, K).
        bank: (M, K), M >= k.
        k: which neighbour, 1 = the nearest.
        chunk: bank rows compared at once.

    Returns:
        (N,)

    References:
        Sun et al., Out-of-Distribution Detection with Deep Nearest Neighbors, ICML 2022.

    Example:
        >>> knn_distance(torch.tensor([[0.0]]), torch.tensor([[1.0], [3.0]]), k=2)
        tensor([3.])
    """
    best = queries.new_empty(len(queries), 0)  # (N, <= k)
    for rows in bank.split(chunk):
        both = torch.cat([best, torch.cdist(queries, rows.to(queries.dtype))], 1)
        best = both.topk(min(k, both.shape[1]), largest=False).values
    return best[:, k - 1]


class KNN(Detector):
    """Distance to the k-th nearest training feature on the unit sphere, see `knn_distance`.

    Args:
        k: which neighbour (the paper's CIFAR script: 50).
        normalize: divide features by their length first, as the paper does.

    Raises:
        ValueError: ``k`` < 1, or more than there are training features.
    """

    chunk = 256
    grows = ("bank", "centre")
    bank: Tensor
    centre: Tensor

    def __init__(self, k: int = 50, normalize: bool = True) -> None:
        super().__init__()
        if k < 1:
            raise ValueError(f"k={k} was given; expected a neighbour to look at, k >= 1")
        self.k, self.normalize = k, normalize
        self.register_buffer("bank", torch.empty(0, 0))
        self.register_buffer("centre", torch.empty(0))

    def _place(self, z: Tensor) -> Tensor:
        # distances do not see a shift, rounding does: |a|^2 + |b|^2 - 2ab loses what a and b share
        return F.normalize(z, dim=1) if self.normalize else z - self.centre.to(z.dtype)

    def _fit(self, features: Features) -> None:
        if len(features) < self.k:
            raise ValueError(f"KNN(k={self.k}) was given {len(features)} training features; it needs at least k")
        z = self._prepare(Features(penultimate=features.penultimate)).penultimate
        self.centre = z.mean(0)
        self.bank = self._place(z)

    def _score(self, features: Features) -> Tensor:
        self._check_width(features.penultimate, self.bank.shape[1])
        return knn_distance(self._place(features.penultimate), self.bank, self.k)


def class_means(z: Tensor, labels: Tensor) -> Tensor:
    """Mean feature of each class, (N, K) and (N,) to (C, K) in float64, C = largest label + 1.

    Raises:
        ValueError: a label is negative, or a class below the largest one has no sample.
    """
    if labels.ndim != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels are {labels.dtype} of shape {tuple(labels.shape)}; expected class indices (N,)")
    labels = labels.long()
    if labels.min() < 0:
        raise ValueError(f"labels must be class indices >= 0; the smallest one given is {int(labels.min())}")
    counts = labels.bincount()
    if (counts == 0).any():
        raise ValueError(
            f"every class needs a training sample; none of class {(counts == 0).nonzero().flatten().tolist()}"
        )
    sums = z.new_zeros(len(counts), z.shape[1], dtype=torch.float64).index_add_(0, labels, z.double())
    return sums / counts[:, None]


def tied_covariance(z: Tensor, labels: Tensor, means: Tensor, chunk: int = 8192) -> Tensor:
    """Covariance (K, K) of the features around their class means, divided by N, summed in float64."""
    total = means.new_zeros(z.shape[1], z.shape[1])
    for rows, classes in zip(z.split(chunk), labels.split(chunk)):
        centred = rows.double() - means[classes.long()]
        total += centred.T @ centred
    return total / len(z)


def mahalanobis(z: Tensor, means: Tensor, whitening: Tensor) -> Tensor:
    r"""Squared Mahalanobis distance to the nearest class mean; larger = more OOD.

    .. math:: \min_c (z-\mu_c)^\top \Sigma^{-1} (z-\mu_c) = \min_c \lVert A z - A \mu_c \rVert^2,
        \quad A^\top A = \Sigma^{-1}

    Args:
        z: (N, K).
        means: (C, K).
        whitening: A, (R, K) with R the rank of the covariance.

    Returns:
        (N,)

    References:
        Lee et al., A Simple Unified Framework for Detecting OOD Samples and Adversarial Attacks, NeurIPS 2018.
    """
    return torch.cdist(z @ whitening.T, means @ whitening.T).square().amin(1)


class Mahalanobis(Detector):
    """Distance to the nearest class mean under one covariance shared by all classes, see `mahalanobis`.

    Directions in which the training features do not vary (dead units) are left out, as a pseudo-inverse does.
    The fit runs in float64.
    """

    grows = ("means", "whitening")
    means: Tensor
    whitening: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("means", torch.empty(0, 0))
        self.register_buffer("whitening", torch.empty(0, 0))

    def _fit(self, features: Features) -> None:
        if features.labels is None:
            raise ValueError(f"Mahalanobis needs the labels of the training features, which {features} does not hold")
        device = self.threshold.device
        z, labels = features.penultimate.to(device), features.labels.to(device)
        means = class_means(z, labels)
        values, vectors = torch.linalg.eigh(tied_covariance(z, labels, means))
        precision = torch.promote_types(z.dtype, torch.float32)  # half precision is computed as float32
        alive = values > values[-1] * len(values) * torch.finfo(precision).eps
        if not alive.any():
            raise ValueError("all training features of a class are equal: their covariance is zero")
        self.means = means
        self.whitening = vectors[:, alive].T / values[alive].sqrt()[:, None]

    def _score(self, features: Features) -> Tensor:
        z = features.penultimate
        self._check_width(z, self.means.shape[1])
        return mahalanobis(z.double(), self.means.double(), self.whitening.double()).to(z.dtype)
