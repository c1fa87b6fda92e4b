"""FDBD: distances to the decision boundaries.  Larger score = more OOD."""

import torch
from torch import Tensor, nn

from ood_lib.detectors.head import FrozenHead
from ood_lib.detectors.moments import Moments, class_moments
from ood_lib.detectors.shapes import check_logits, check_pairs, check_width
from ood_lib.detectors.streaming import MomentDetector
from ood_lib.features.features import Features
from ood_lib.tensors import lengths

__all__ = ["FDBD", "class_gaps", "fdbd"]


def class_gaps(weight: Tensor) -> Tensor:
    r"""Distances between the class rows of a head, :math:`\lVert w_i - w_j \rVert`, (C, K) to (C, C) in float64.

    Raises:
        ValueError: fewer than two classes, or two that share one row, so that no boundary lies between them.
    """
    if len(weight) < 2:
        raise ValueError(
            f"a head of {len(weight)} class was given; expected two at least, with a boundary between them"
        )
    rows, columns = torch.triu_indices(len(weight), len(weight), 1, device=weight.device)
    gaps = weight.new_zeros(len(weight), len(weight), dtype=torch.float64)
    gaps[rows, columns] = gaps[columns, rows] = torch.pdist(weight.double())
    twins = (gaps == 0).triu(1).nonzero().tolist()
    if twins:
        raise ValueError(f"classes {twins[0]} have the same weights: no boundary lies between them; look at the head")
    return gaps


def fdbd(away: Tensor, logits: Tensor, gaps: Tensor) -> Tensor:
    r"""Minus the distances to the decision boundaries, per length of the feature seen from the training mean, (N,).

    .. math:: -\frac{1}{\lVert z - \mu \rVert}
        \sum_{c \neq \hat y} \frac{\ell_{\hat y} - \ell_c}{\lVert w_{\hat y} - w_c \rVert}

    Larger = more OOD: near a boundary although far from the mean.

    Args:
        away: (N, K), features minus the training mean.
        logits: (N, C).
        gaps: (C, C), see `class_gaps`.

    Raises:
        ValueError: a single logit; integers; features and logits of different numbers of images.

    References:
        Liu & Qin, Fast Decision Boundary based Out-of-Distribution Detector, ICML 2024.
    """
    check_logits(logits, 2)
    check_pairs(away=away, logits=logits)
    check_width(gaps, logits.shape[1], "the logits are", "gaps")
    best, predicted = logits.max(1)
    others = gaps[predicted].scatter(1, predicted[:, None], 1)  # the gap to itself is 0, and so is its numerator
    return -((best[:, None] - logits) / others).sum(1) / lengths(away)


class FDBD(MomentDetector):
    """Distances to the decision boundaries relative to the distance to the training mean, see `fdbd`.

    Learns nothing but the mean, so it needs no labels.  Logits are computed by ``head``, the network's last linear
    layer.  (OpenOOD may divide by the length of z instead, whichever does better on its OOD validation images.)

    Raises:
        ValueError: a head of one class, or with two of the same weights; features of another width than the head.
    """

    grows = (*MomentDetector.grows, "gaps")
    gaps: Tensor

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.head = FrozenHead(head)

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
