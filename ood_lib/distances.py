"""Detectors that compare a feature with class patterns and class boundaries: SHE, FDBD.  Larger = more OOD."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ood_lib.detector import FrozenHead
from ood_lib.features import Features
from ood_lib.moments import MomentDetector, Moments, class_moments

__all__ = ["FDBD", "SHE", "class_gaps", "fdbd", "she"]


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
        ValueError: another metric; labels are missing; a class of which no training sample is classified correctly;
            features or logits of another width than those of the fit.
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
        self._check_width(features.logits, len(self.means), what="logits")
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
