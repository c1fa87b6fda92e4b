"""SHE: similarity to the stored pattern of the predicted class.  Larger score = more OOD."""

from typing import Literal

from torch import Tensor

from ood_lib.checks import check
from ood_lib.detectors.moments import Moments, class_moments
from ood_lib.detectors.shapes import check_pairs, check_width
from ood_lib.detectors.streaming import MomentDetector
from ood_lib.features.features import Features
from ood_lib.tensors import directions, lengths

__all__ = ["SHE", "she"]


def she(z: Tensor, patterns: Tensor, metric: Literal["inner", "euclidean", "cosine"] = "inner") -> Tensor:
    r"""Minus the similarity to the stored pattern of the predicted class, :math:`-\langle z, m_{\hat y} \rangle`, (N,).

    Larger = more OOD.  The other metrics are :math:`\lVert z - m_{\hat y} \rVert` and minus the cosine.

    Args:
        z: (N, K).
        patterns: (N, K), the pattern of the class predicted for each row.
        metric: ``"inner"`` (the paper's), ``"euclidean"`` or ``"cosine"``.

    Raises:
        ValueError: another metric; features and patterns of different shapes.

    References:
        Zhang et al., Out-of-Distribution Detection based on In-Distribution Data Patterns Memorization with Modern
        Hopfield Energy, ICLR 2023.
    """
    check(("inner", "euclidean", "cosine"), metric=metric)
    check_pairs(z=z, patterns=patterns)
    check_width(patterns, z.shape[1], "the features are", "patterns")
    if metric == "euclidean":
        return lengths(z - patterns)
    return -(directions(z) * directions(patterns)).sum(1) if metric == "cosine" else -(z * patterns).sum(1)


class SHE(MomentDetector):
    """Similarity to the mean feature of the predicted class, by the ``metric`` of `she`.

    The pattern of a class is the mean over its training samples that the network classifies correctly.

    Raises:
        ValueError: another metric; labels are missing; a class of which no training sample is classified correctly;
            features or logits of another width than those of the fit.
    """

    reads = ("penultimate", "logits")

    def __init__(self, metric: Literal["inner", "euclidean", "cosine"] = "inner") -> None:
        super().__init__()
        check(("inner", "euclidean", "cosine"), metric=metric)
        self.metric = metric

    def _measure(self, chunk: Features) -> Moments:
        labels = self._labels(chunk, chunk.logits.shape[1])
        right = chunk.logits.argmax(1) == labels
        return class_moments(chunk.penultimate[right], labels[right], self.kind, classes=chunk.logits.shape[1])

    def _finish(self, moments: Moments) -> None:
        self._need_every_class(moments, "a training sample that is classified correctly")

    def _score(self, features: Features) -> Tensor:
        z = features.penultimate
        check_width(z, self.means.shape[1])
        check_width(features.logits, len(self.means), what="logits")
        return she(z, self.means.to(z.dtype)[features.logits.argmax(1)], self.metric)
