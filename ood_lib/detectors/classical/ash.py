"""ASH: pruned activations.  Larger score = more OOD."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from ood_lib.checks import check
from ood_lib.detectors.classical.energy import energy
from ood_lib.detectors.classical.rectifier import Rectifier, kept, kept_mask, scale_factor

__all__ = ["ASH", "ash_b", "ash_p", "ash_s"]


def ash_p(z: Tensor, percentile: float = 0.9) -> Tensor:
    """Pruned features: the largest entries of each row stay, the others become zero, (N, K); p = 0 changes nothing.

    Of entries that are equal those that come first stay.

    Args:
        z: (N, K).
        percentile: p, share of the entries that is pruned, see `kept`.

    References:
        Djurisic et al., Extremely Simple Activation Shaping for Out-of-Distribution Detection, ICLR 2023.

    Example:
        >>> import torch
        >>> ash_p(torch.tensor([[1.0, 4.0, 3.0, 2.0]]), 0.5)
        tensor([[0., 4., 3., 0.]])
    """
    return z.where(kept_mask(z, percentile), 0)


def ash_b(z: Tensor, percentile: float = 0.9) -> Tensor:
    """Binarised features: each of the k largest entries becomes 1/k of the sum of the whole row, the others zero.

    Features (N, K) to features (N, K) with the same row sums; ``percentile`` as in `ash_p`.

    Example:
        >>> import torch
        >>> ash_b(torch.tensor([[1.0, 4.0, 3.0, 2.0]]), 0.5)
        tensor([[0., 5., 5., 0.]])
    """
    share = z.sum(1, keepdim=True) / kept(z.shape[1], percentile)
    return share * kept_mask(z, percentile)


def ash_s(z: Tensor, percentile: float = 0.9) -> Tensor:
    r"""Pruned and sharpened features: the k largest entries times :math:`e^{S_1/S_2}`, the others zero, (N, K).

    S_1 is the sum of the row, S_2 the sum of what is kept; a row of zeros stays one.  ``percentile`` as in `ash_p`.

    Raises:
        ValueError: S_2 <= 0 in a row (features that can be negative), or the factor overflows.
    """
    return ash_p(z, percentile) * scale_factor(z, percentile)


class ASH(Rectifier):
    """Score of the logits of pruned features, see `ash_b`, `ash_s` and `ash_p`.

    Args:
        head, score: see `Rectifier`.
        percentile: share of each feature's entries that is pruned.
        variant: ``"b"`` (binarise), ``"s"`` (sharpen; the authors' choice for most networks) or ``"p"`` (prune only).

    Raises:
        ValueError: another variant; ``percentile`` leaves nothing; features of another width than the head; with
            ``"s"``, features that can be negative, see `ash_s`.
    """

    needs_fit = False

    def __init__(
        self,
        head: nn.Linear,
        percentile: float = 0.9,
        variant: Literal["b", "s", "p"] = "b",
        score: Callable[[Tensor], Tensor] = energy,
    ) -> None:
        super().__init__(head, score)
        check(("b", "s", "p"), variant=variant)
        kept(head.in_features, percentile)
        self.percentile, self.variant = percentile, variant

    def rectify(self, z: Tensor) -> Tensor:
        """The variant chosen."""
        return {"b": ash_b, "s": ash_s, "p": ash_p}[self.variant](z, self.percentile)
