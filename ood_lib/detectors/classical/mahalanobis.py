"""Mahalanobis distance to the nearest class mean, under one covariance.  Larger score = more OOD.

The fit adds up in float64.  A direction in which the training features do not vary (a dead unit, a copy of another one)
has no scale to measure by, and is left out, as a pseudo-inverse does.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.compiler import is_exporting

from ood_lib.detectors.moments import Moments
from ood_lib.detectors.shapes import check_width
from ood_lib.detectors.streaming import MomentDetector
from ood_lib.features.features import Features

__all__ = ["Mahalanobis", "mahalanobis", "whitening"]


def whitening(covariance: Tensor, means: Tensor) -> Tensor:
    r"""Matrix A with :math:`A^\top A = \Sigma^{-1}` (pseudo-inverse): z goes to A z, of unit covariance.

    A direction counts as constant when its variance is what the rounding of float32 makes of features of this length: K
    times (1.2e-7 of it) squared.  The same floor for the covariance inside the classes and for that of all features, or
    their distances could not be compared.

    Args:
        covariance: (K, K).
        means: (C, K), the means that it was taken around; they tell which variance is rounding.

    Returns:
        (R, K), R the rank of the covariance.

    Raises:
        ValueError: the covariance is zero.
    """
    values, vectors = torch.linalg.eigh(covariance)
    squared_length = values.clamp(min=0).sum() + means.square().sum(1).amax()
    alive = values > len(values) * torch.finfo(torch.float32).eps ** 2 * squared_length
    if not alive.any():
        raise ValueError(
            "all training features of a class are equal: their covariance is zero; look at the network, or the labels"
        )
    return vectors[:, alive].T / values[alive].sqrt()[:, None]


def mahalanobis(z: Tensor, means: Tensor, whitening: Tensor) -> Tensor:
    r"""Squared Mahalanobis distance to the nearest class mean, (N,); larger = more OOD.

    .. math:: \min_c (z-\mu_c)^\top \Sigma^{-1} (z-\mu_c) = \min_c \lVert A z - A \mu_c \rVert^2,
        \quad A^\top A = \Sigma^{-1}

    Args:
        z: (N, K).
        means: (C, K).
        whitening: A, (R, K) with R the rank of the covariance.

    References:
        Lee et al., A Simple Unified Framework for Detecting OOD Samples and Adversarial Attacks, NeurIPS 2018.
    """
    check_width(z, means.shape[1], "the means are")
    check_width(whitening, means.shape[1], "the means are", "rows of the whitening")
    return _nearest(z, means.mean(0), whitening, _white_means(means, whitening))


def _white_means(means: Tensor, whitening: Tensor) -> Tensor:
    """Means (C, K) around their own mean, and whitened, (C, R)."""
    return (means - means.mean(0)) @ whitening.T


def _nearest(z: Tensor, centre: Tensor, whitening: Tensor, white: Tensor) -> Tensor:
    # around the centre: of small numbers little is lost when the square is multiplied out
    return torch.cdist((z - centre) @ whitening.T, white).square().amin(1)


class Mahalanobis(MomentDetector):
    """Distance to the nearest class mean under one covariance shared by all classes, see `mahalanobis`.

    Classes are the true labels, the covariance is a sum over N samples divided by N.  As in OpenOOD's "MDS" it reads
    the penultimate feature alone; the paper adds the scores of earlier layers, weighed with OOD or adversarial
    samples, and a step on the image.

    Raises:
        ValueError: labels are missing, or a class has no sample, or no feature varies inside a class.
    """

    kind = "tied"
    grows: ClassVar[tuple[str, ...]] = (*MomentDetector.grows, "whitening")
    whitening: Tensor
    white: Tensor  # see `_white_means`; it follows from what was learnt, so no state holds it: empty before a score

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("white", torch.empty(0), persistent=False)

    def _finish(self, moments: Moments) -> None:
        self._need_every_class(moments)
        self.whitening = whitening(moments.scatter / moments.counts.sum(), moments.means)
        self.white = self.white.new_empty(0)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _complete(self) -> None:
        super()._complete()
        if not is_exporting() and not len(self.white) and self.fitted:
            self.white = _white_means(self.means.double(), self.whitening.double())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self.white = self.white.new_empty(0)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _distances(self, z: Tensor) -> Tensor:
        """`mahalanobis` of features (N, K) in float64, (N,)."""
        check_width(z, self.means.shape[1])
        means, whitening = self.means.double(), self.whitening.double()
        return _nearest(z, means.mean(0), whitening, self.white if len(self.white) else _white_means(means, whitening))

    def _score(self, features: Features) -> Tensor:
        z = features.penultimate
        return self._distances(z.double()).to(z.dtype)
