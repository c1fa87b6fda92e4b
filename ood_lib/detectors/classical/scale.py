"""SCALE: scaled activations.  Larger score = more OOD."""

from collections.abc import Callable

from torch import Tensor, nn

from ood_lib.detectors.classical.energy import energy
from ood_lib.detectors.classical.rectifier import Rectifier, kept, scale_factor

__all__ = ["SCALE", "scale"]


def scale(z: Tensor, percentile: float = 0.85) -> Tensor:
    r"""Scaled features :math:`z\,e^{S_1/S_2}`: as `ash_s`, but nothing is pruned, (N, K).

    A change of temperature, one per sample: with p = 0 it is the same factor e for all.

    Args:
        z: (N, K); a row of zeros stays one.
        percentile: p, share of the entries that is left out of S_2, see `kept`.

    Raises:
        ValueError: S_2 <= 0 in a row (features that can be negative), or the factor overflows.

    References:
        Xu et al., Scaling for Training Time and Post-hoc Out-of-distribution Detection Enhancement, ICLR 2024.
    """
    return z * scale_factor(z, percentile)


class SCALE(Rectifier):
    """Score of the logits of scaled features, see `scale`.

    Args:
        head, score: see `Rectifier`.
        percentile: share of each feature's entries that is left out of the smaller sum.

    Raises:
        ValueError: ``percentile`` leaves nothing; features of another width than the head; features that can be
            negative, see `scale`.
    """

    needs_fit = False

    def __init__(self, head: nn.Linear, percentile: float = 0.85, score: Callable[[Tensor], Tensor] = energy) -> None:
        super().__init__(head, score)
        kept(head.in_features, percentile)
        self.percentile = percentile

    def rectify(self, z: Tensor) -> Tensor:
        """See `scale`."""
        return scale(z, self.percentile)
