"""RMDS: the Mahalanobis distance relative to that of all data.  Larger score = more OOD."""

from torch import Tensor

from ood_lib.detectors.classical.mahalanobis import Mahalanobis, mahalanobis, whitening
from ood_lib.detectors.moments import Moments, pooled
from ood_lib.features.features import Features

__all__ = ["RMDS", "relative_mahalanobis"]


def relative_mahalanobis(z: Tensor, means: Tensor, whitening: Tensor, mean: Tensor, background: Tensor) -> Tensor:
    r"""Distance to the nearest class relative to all data, :math:`\min_c M_c(z) - M_0(z)`, (N,); larger = more OOD.

    M_c is the squared Mahalanobis distance to class c under the covariance inside the classes, M_0 the one to the
    overall mean under the covariance of all training features.  Directions that tell no classes apart cancel.

    Args:
        z: (N, K).
        means: (C, K).
        whitening: of the covariance inside the classes, (R, K).
        mean: (1, K), the overall mean.
        background: whitening of the overall covariance, (R', K).

    References:
        Ren et al., A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection, 2021.
    """
    return mahalanobis(z, means, whitening) - mahalanobis(z, mean, background)


class RMDS(Mahalanobis):
    """Mahalanobis distance to the nearest class, relative to the distance to all data, see `relative_mahalanobis`.

    Raises:
        ValueError: labels are missing, or are of one class only, or a class has no sample, or no feature varies inside
            a class.
    """

    grows = (*Mahalanobis.grows, "mean", "background")
    mean: Tensor
    background: Tensor

    def _finish(self, moments: Moments) -> None:
        if len(moments.counts) < 2:
            raise ValueError(
                "all labels name one class, whose distance is that to all data, so that every image would score 0; "
                "expected two classes at least, or take Mahalanobis"
            )
        super()._finish(moments)
        total = pooled(moments)
        self.mean = total.means
        self.background = whitening(total.scatter / total.counts, total.means)

    def _score(self, features: Features) -> Tensor:
        z = features.penultimate
        overall = self.mean.double(), self.background.double()
        return (self._distances(z.double()) - mahalanobis(z.double(), *overall)).to(z.dtype)
