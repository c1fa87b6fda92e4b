"""Detectors that measure a distance to the training features: k nearest neighbours.  Larger = more OOD."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ood_lib.detector import Detector
from ood_lib.features import Features

__all__ = ["KNN", "knn_distance"]


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
    bank: Tensor

    def __init__(self, k: int = 50, normalize: bool = True) -> None:
        super().__init__()
        if k < 1:
            raise ValueError(f"k={k} was given; expected a neighbour to look at, k >= 1")
        self.k, self.normalize = k, normalize
        self.register_buffer("bank", torch.empty(0, 0))

    def _unit(self, z: Tensor) -> Tensor:
        return F.normalize(z, dim=1) if self.normalize else z

    def _fit(self, features: Features) -> None:
        if len(features) < self.k:
            raise ValueError(f"KNN(k={self.k}) was given {len(features)} training features; it needs at least k")
        bank = self._unit(features.penultimate.to(self.threshold.device))
        self.bank = bank if self.normalize else bank.clone()  # never the caller's own tensor

    def _score(self, features: Features) -> Tensor:
        return knn_distance(self._unit(features.penultimate), self.bank, self.k)
