"""Detectors that compare a feature with training features: KNN, NNGuide, SHE, FDBD.  Larger = more OOD."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ood_lib.detector import Detector, FrozenHead
from ood_lib.features import Features
from ood_lib.logits import energy
from ood_lib.moments import MomentDetector, Moments, class_moments

__all__ = ["FDBD", "KNN", "NNGuide", "SHE", "balanced_subset", "class_gaps", "fdbd", "knn_distance", "nnguide", "she"]


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

    The released code returns the squared distance, which ranks alike, and adds 1e-10 to each length; here a feature of
    zeros, which has no direction, stays zero and lies at distance 1 from the sphere.

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


def balanced_subset(labels: Tensor, fraction: float, generator: torch.Generator) -> Tensor:
    """Rows of a random subset that holds the same share of every class, rounded up: (N,) to (M,), sorted.

    Example:
        >>> labels = torch.tensor([0, 1, 1, 0, 1, 1, 2])
        >>> labels[balanced_subset(labels, 0.5, torch.Generator().manual_seed(0))].bincount()
        tensor([1, 2, 1])
    """
    labels = labels.cpu()
    kept = []
    for label in labels.unique():
        rows = (labels == label).nonzero().flatten()
        count = math.ceil(round(fraction * len(rows), 9))
        kept.append(rows[torch.randperm(len(rows), generator=generator, device="cpu")[:count]])
    return torch.cat(kept).sort().values


def nnguide(z: Tensor, logits: Tensor, bank: Tensor, k: int) -> Tensor:
    r"""Energy guided by similar training features, :math:`-G(z)\,\log\sum_j e^{\ell_j}`; larger = more OOD.

    The guidance G is the mean of the k largest inner products :math:`\langle v_n, \hat z \rangle` with
    :math:`\hat z = z / \lVert z \rVert`; bank vectors :math:`v_n = \hat z_n \log\sum_j e^{\ell_{nj}}` are directions of
    training features, as long as their network is confident.

    Args:
        z: (N, K).
        logits: (N, C).
        bank: v, (M, K), M >= k.
        k: number of neighbours.

    Returns:
        (N,)

    References:
        Park, Jung & Teoh, Nearest Neighbor Guidance for Out-of-Distribution Detection, ICCV 2023.
    """
    guidance = (F.normalize(z, dim=1) @ bank.T).topk(k, dim=1).values.mean(1)
    return guidance * energy(logits)


class NNGuide(Detector):
    """Energy guided by the nearest training features, see `nnguide`.

    The bank is a random subset, the same share of every class (a plain slice of data sorted by class would hold one
    class only).  The subset depends on ``seed`` and on the order of the training features.

    Args:
        k: number of neighbours.
        fraction: share of each class kept in the bank, rounded up.
        seed: of the subset.

    Raises:
        ValueError: ``k`` < 1, or more than the bank holds; ``fraction`` not in (0, 1]; labels are missing.
    """

    reads = ("penultimate", "logits")
    chunk = 512
    grows = ("bank",)
    bank: Tensor

    def __init__(self, k: int = 10, fraction: float = 0.01, seed: int = 0) -> None:
        super().__init__()
        if k < 1:
            raise ValueError(f"k={k} was given; expected a number of neighbours, k >= 1")
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction={fraction} was given; expected a share of each class, 0 < fraction <= 1")
        self.k, self.fraction, self.seed = k, fraction, seed
        self.register_buffer("bank", torch.empty(0, 0))

    def _fit(self, features: Features) -> None:
        rows = balanced_subset(self._labels(features), self.fraction, torch.Generator().manual_seed(self.seed))
        if len(rows) < self.k:
            raise ValueError(
                f"a share of {self.fraction} of each class makes a bank of {len(rows)} features, less than k={self.k}: "
                f"take a larger fraction of the {len(features)} training features, or a smaller k"
            )
        kept = self._prepare(features[rows.to(features.penultimate.device)])
        self.bank = -energy(kept.logits)[:, None] * F.normalize(kept.penultimate, dim=1)

    def _score(self, features: Features) -> Tensor:
        z = features.penultimate
        self._check_width(z, self.bank.shape[1])
        return nnguide(z, features.logits.to(z.dtype), self.bank.to(z.dtype), self.k)


def she(z: Tensor, patterns: Tensor, metric: Literal["inner", "euclidean", "cosine"] = "inner") -> Tensor:
    r"""Minus the similarity to the stored pattern of the predicted class, :math:`-\langle z, m_{\hat y} \rangle`.

    Larger = more OOD.  The other metrics are :math:`\lVert z - m_{\hat y} \rVert` and minus the cosine.

    Args:
        z: (N, K).
        patterns: (N, K), the pattern of the class predicted for each row.
        metric: ``"inner"`` (the paper's), ``"euclidean"`` or ``"cosine"``.

    Returns:
        (N,)

    References:
        Zhang et al., Out-of-Distribution Detection based on In-Distribution Data Patterns Memorization with Modern
        Hopfield Energy, ICLR 2023.
    """
    if metric == "euclidean":
        return (z - patterns).norm(dim=1)
    return -F.cosine_similarity(z, patterns, dim=1) if metric == "cosine" else -(z * patterns).sum(1)


class SHE(MomentDetector):
    """Similarity to the mean feature of the predicted class, see `she`.

    The pattern of a class is the mean over its training samples that the network classifies correctly.

    Args:
        metric: see `she`.

    Raises:
        ValueError: another metric; labels are missing; a class of which no training sample is classified correctly.
    """

    reads = ("penultimate", "logits")

    def __init__(self, metric: Literal["inner", "euclidean", "cosine"] = "inner") -> None:
        super().__init__()
        if metric not in ("inner", "euclidean", "cosine"):
            raise ValueError(f"metric={metric!r} was given; expected 'inner', 'euclidean' or 'cosine'")
        self.metric = metric

    def _measure(self, chunk: Features) -> Moments:
        labels = self._labels(chunk)
        right = chunk.logits.argmax(1) == labels
        return class_moments(chunk.penultimate[right], labels[right], self.kind, classes=chunk.logits.shape[1])

    def _finish(self, moments: Moments) -> None:
        self._need_every_class(moments, "a training sample that is classified correctly")

    def _score(self, features: Features) -> Tensor:
        z = features.penultimate
        self._check_width(z, self.means.shape[1])
        return she(z, self.means.to(z.dtype)[features.logits.argmax(1)], self.metric)


def class_gaps(weight: Tensor) -> Tensor:
    r"""Distances between the class rows of a head, :math:`\lVert w_i - w_j \rVert`, (C, K) to (C, C) in float64.

    Raises:
        ValueError: two classes share one row, so that no boundary lies between them.
    """
    gaps = torch.cdist(weight.double(), weight.double(), compute_mode="donot_use_mm_for_euclid_dist")
    twins = (gaps == 0).triu(1).nonzero().tolist()
    if twins:
        raise ValueError(f"classes {twins[0]} have the same weights: no boundary lies between them; look at the head")
    return gaps


def fdbd(away: Tensor, logits: Tensor, gaps: Tensor) -> Tensor:
    r"""Minus the distances to the decision boundaries, per length of the feature seen from the training mean.

    .. math:: -\frac{1}{\lVert z - \mu \rVert}
        \sum_{c \neq \hat y} \frac{\ell_{\hat y} - \ell_c}{\lVert w_{\hat y} - w_c \rVert}

    Larger = more OOD: near a boundary although far from the mean.

    Args:
        away: (N, K), features minus the training mean.
        logits: (N, C).
        gaps: (C, C), see `class_gaps`.

    Returns:
        (N,)

    References:
        Liu & Qin, Fast Decision Boundary based Out-of-Distribution Detector, ICML 2024.
    """
    best, predicted = logits.max(1)
    others = gaps[predicted].scatter(1, predicted[:, None], 1)  # the gap to itself is 0, and so is its numerator
    return -((best[:, None] - logits) / others).sum(1) / away.norm(dim=1)


class FDBD(MomentDetector):
    """Distances to the decision boundaries relative to the distance to the training mean, see `fdbd`.

    Learns nothing but the mean, so it needs no labels.  Logits are computed by ``head``.  (OpenOOD may divide by
    the length of z instead, whichever does better on its OOD validation images.)

    Args:
        head: the network's last linear layer.

    Raises:
        ValueError: two classes of the head have the same weights; features of another width than the head.
    """

    grows = (*MomentDetector.grows, "gaps")
    gaps: Tensor

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.head = FrozenHead(head)
        self.register_buffer("gaps", torch.empty(0, 0))

    def _measure(self, chunk: Features) -> Moments:
        z = chunk.penultimate
        self.head.check_width(z)
        return class_moments(z, torch.zeros(len(z), dtype=torch.long, device=z.device), self.kind)

    def _finish(self, moments: Moments) -> None:
        self.gaps = class_gaps(self.head.weight)

    def _score(self, features: Features) -> Tensor:
        z = features.penultimate
        logits = self.head(z)
        return fdbd(z - self.means.to(z.dtype), logits, self.gaps.to(z.dtype))
