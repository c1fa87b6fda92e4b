"""Detectors that see each class as a Gaussian or the features as a subspace: Mahalanobis, RMDS, ViM.

Larger = more OOD.  All fits add up in float64.  A direction in which the training features do not vary (a dead unit, a
copy of another one) has no scale to measure by, and is left out, as a pseudo-inverse does.
"""

from collections.abc import Iterator
from functools import partial, reduce
from typing import ClassVar

import torch
from torch import Tensor, nn

from ood_lib.detector import Detector, FrozenHead
from ood_lib.features import Features
from ood_lib.logits import energy
from ood_lib.moments import MomentDetector, Moments, merge_moments, pooled, spread

__all__ = ["RMDS", "Mahalanobis", "ViM", "mahalanobis", "relative_mahalanobis", "vim", "whitening"]


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
    centre = means.mean(0)  # of small numbers little is lost when the square is multiplied out
    return torch.cdist((z - centre) @ whitening.T, (means - centre) @ whitening.T).square().amin(1)


def relative_mahalanobis(z: Tensor, means: Tensor, whitening: Tensor, mean: Tensor, background: Tensor) -> Tensor:
    r"""Distance to the nearest class relative to all data, :math:`\min_c M_c(z) - M_0(z)`; larger = more OOD.

    M_c is the squared Mahalanobis distance to class c under the covariance inside the classes, M_0 the one to the
    overall mean under the covariance of all training features.  Directions that tell no classes apart cancel.

    Args:
        z: (N, K).
        means: (C, K).
        whitening: of the covariance inside the classes, (R, K).
        mean: (1, K), the overall mean.
        background: whitening of the overall covariance, (R', K).

    Returns:
        (N,)

    References:
        Ren et al., A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection, 2021.
    """
    return mahalanobis(z, means, whitening) - mahalanobis(z, mean, background)


def vim(logits: Tensor, residual: Tensor, alpha: float) -> Tensor:
    r"""Length of the residual against the energy, :math:`\alpha \lVert R^\top (z-u) \rVert - \log\sum_j e^{\ell_j}`.

    Larger = more OOD.  Up to a monotone map this is the softmax of a virtual class with the logit
    :math:`\alpha \lVert R^\top (z-u) \rVert`.

    Args:
        logits: (N, C).
        residual: (N, K-D), coordinates of the features outside the D main directions.
        alpha: scale that lifts residuals to the size of logits.

    Returns:
        (N,)

    References:
        Wang et al., ViM: Out-Of-Distribution with Virtual-logit Matching, CVPR 2022.
    """
    return alpha * residual.norm(dim=1) + energy(logits)


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

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("whitening", torch.empty(0, 0))

    def _finish(self, moments: Moments) -> None:
        self._need_every_class(moments)
        self.whitening = whitening(moments.scatter / moments.counts.sum(), moments.means)

    def _score(self, features: Features) -> Tensor:
        z = features.penultimate
        self._check_width(z, self.means.shape[1])
        return mahalanobis(z.double(), self.means.double(), self.whitening.double()).to(z.dtype)


class RMDS(Mahalanobis):
    """Mahalanobis distance to the nearest class, relative to the distance to all data, see `relative_mahalanobis`.

    Raises:
        ValueError: labels are missing, or a class has no sample, or no feature varies inside a class.
    """

    grows = (*Mahalanobis.grows, "mean", "background")
    mean: Tensor
    background: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.empty(0, 0))
        self.register_buffer("background", torch.empty(0, 0))

    def _finish(self, moments: Moments) -> None:
        super()._finish(moments)
        total = pooled(moments)
        self.mean = total.means
        self.background = whitening(total.scatter / total.counts, total.means)

    def _score(self, features: Features) -> Tensor:
        z = features.penultimate
        self._check_width(z, self.means.shape[1])
        learnt = (x.double() for x in (self.means, self.whitening, self.mean, self.background))
        return relative_mahalanobis(z.double(), *learnt).to(z.dtype)


class ViM(Detector):
    r"""Residual outside the main directions of the training features, weighed against the energy, see `vim`.

    The origin :math:`u = -W^{+} b` is the feature to which the head gives equal logits as far as it can; the D main
    directions are the leading eigenvectors of :math:`\sum_n (z_n-u)(z_n-u)^\top`; alpha makes the mean residual of the
    training features as long as their mean largest logit.  The fit passes over the features twice, so it cannot learn
    piece by piece.  Logits are computed by ``head``.

    Args:
        head: the network's last linear layer.
        dim: D; None = the paper's rule, 1000 for K >= 2048, 512 for K >= 768, otherwise K/2.

    Raises:
        ValueError: ``dim`` leaves no residual (dim >= K, or all training features lie in the main directions), or the
            mean largest logit is not positive, so that no scale can be matched to it.
    """

    grows = ("origin", "residual")
    origin: Tensor
    residual: Tensor
    alpha: Tensor

    def __init__(self, head: nn.Linear, dim: int | None = None) -> None:
        super().__init__()
        self.head = FrozenHead(head)
        width = head.in_features
        if dim is not None and not 1 <= dim < width:
            raise ValueError(f"dim={dim} was given; expected 1 <= dim < {width}, the width of the features")
        self.dim = dim
        self.register_buffer("origin", torch.empty(0))
        self.register_buffer("residual", torch.empty(0, 0))
        self.register_buffer("alpha", torch.tensor(torch.nan, dtype=torch.float64))

    def main_dimensions(self) -> int:
        """D, as given or by the paper's rule."""
        width = self.head.weight.shape[1]
        return self.dim or (1000 if width >= 2048 else 512 if width >= 768 else width // 2)

    def _fit(self, features: Features) -> None:
        self.head.check_width(features.penultimate)
        origin = -torch.linalg.pinv(self.head.weight.double()) @ self.head.bias.double()
        seen = reduce(partial(merge_moments, kind="tied"), map(spread, self._pieces(features)))
        away = seen.means - origin
        total = seen.scatter + seen.counts * away.T @ away
        vectors = torch.linalg.eigh(total).eigenvectors  # in ascending order of the eigenvalues
        residual = vectors[:, : len(vectors) - self.main_dimensions()].contiguous()
        rows = [
            torch.stack([self._outside(z, origin, residual).norm(dim=1), self.head(z).amax(1)])
            for z in self._pieces(features)
        ]
        length, logit = torch.cat(rows, 1).double().mean(1).tolist()
        size = total.diagonal().sum().div(len(features)).sqrt().item()
        self._check_scale(length, logit, size * max(1e-9, 2 * torch.finfo(rows[0].dtype).eps))
        self.origin, self.residual = origin, residual
        self.alpha.fill_(logit / length)

    def _pieces(self, features: Features) -> Iterator[Tensor]:
        for chunk in features.split(self.chunk):
            yield self._prepare(Features(penultimate=chunk.penultimate)).penultimate

    @staticmethod
    def _outside(z: Tensor, origin: Tensor, residual: Tensor) -> Tensor:
        return (z - origin.to(z.dtype)) @ residual.to(z.dtype)

    def _check_scale(self, residual: float, logit: float, rounding: float) -> None:
        if residual <= rounding:
            raise ValueError(
                f"the training features lie in {self.main_dimensions()} directions: nothing is left of them outside; "
                "choose a smaller dim"
            )
        if logit <= 0:
            raise ValueError(
                f"the mean largest logit is {logit:g}; expected a positive one to scale the residual by: "
                "add a constant to the bias of the head, which changes no softmax"
            )

    def _score(self, features: Features) -> Tensor:
        z = features.penultimate
        logits = self.head(z)
        return vim(logits, self._outside(z, self.origin, self.residual), self.alpha.item())
