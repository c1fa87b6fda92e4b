"""ViM: the residual outside a subspace becomes a virtual logit.  Larger score = more OOD."""

from functools import partial, reduce

import torch
from torch import Tensor, nn

from ood_lib.checks import check
from ood_lib.detectors.classical.energy import energy
from ood_lib.detectors.detector import Detector
from ood_lib.detectors.head import FrozenHead
from ood_lib.detectors.moments import merge_moments, spread
from ood_lib.detectors.shapes import check_pairs
from ood_lib.features.features import Features
from ood_lib.tensors import lengths

__all__ = ["ViM", "vim"]


def vim(logits: Tensor, residual: Tensor, alpha: float) -> Tensor:
    r"""Length of the residual against the energy, :math:`\alpha \lVert R^\top (z-u) \rVert - \log\sum_j e^{\ell_j}`.

    One score for each image, (N,); larger = more OOD.  Up to a monotone map this is the softmax of a virtual class with
    the logit :math:`\alpha \lVert R^\top (z-u) \rVert`.

    Args:
        logits: (N, C).
        residual: (N, K-D), coordinates of the features outside the D main directions.
        alpha: scale that lifts residuals to the size of logits.

    References:
        Wang et al., ViM: Out-Of-Distribution with Virtual-logit Matching, CVPR 2022.
    """
    check_pairs(logits=logits, residual=residual)
    return alpha * lengths(residual) + energy(logits)


class ViM(Detector):
    r"""Residual outside the main directions of the training features, weighed against the energy, see `vim`.

    The origin :math:`u = -W^{+} b` is the feature whose logits are as equal as possible. The D main directions are the
    leading eigenvectors of :math:`\sum_n (z_n-u)(z_n-u)^\top`. The factor alpha makes the mean residual of the
    training features equal to their mean largest logit. The fit passes over the features twice, so it cannot learn
    piece by piece. Logits are computed by ``head``.

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
        check(f"integer [1, {head.in_features}) or None", "fewer directions than features", dim=dim)
        self.dim = dim
        self.register_buffer("alpha", torch.tensor(torch.nan, dtype=torch.float64))

    def main_dimensions(self) -> int:
        """D, as given or by the paper's rule."""
        width = self.head.weight.shape[1]
        return self.dim or (1000 if width >= 2048 else 512 if width >= 768 else width // 2)

    def _fit(self, features: Features) -> None:
        self.head.check_width(features.penultimate)
        origin = -torch.linalg.pinv(self.head.weight.double()) @ self.head.bias.double()
        seen = reduce(partial(merge_moments, kind="tied"), map(spread, self._chunks(features)))
        away = seen.means - origin
        total = seen.scatter + seen.counts * away.T @ away
        vectors = torch.linalg.eigh(total).eigenvectors  # in ascending order of the eigenvalues
        residual = vectors[:, : len(vectors) - self.main_dimensions()].contiguous()
        rows = [
            torch.stack([lengths(self._outside(z, origin, residual)), self.head(z).amax(1)])
            for z in self._chunks(features)
        ]
        length, logit = torch.cat(rows, 1).double().mean(1).tolist()
        size = total.diagonal().sum().div(len(features)).sqrt().item()
        self._check_scale(length, logit, size * max(1e-9, 2 * torch.finfo(rows[0].dtype).eps))
        self.origin, self.residual = origin, residual
        self.alpha.fill_(logit / length)

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
