"""The largest logit.  Larger score = more OOD."""

from torch import Tensor

from ood_lib.detectors.detector import Detector
from ood_lib.detectors.shapes import check_logits
from ood_lib.features.features import Features

__all__ = ["MaxLogit", "max_logit"]


def max_logit(logits: Tensor) -> Tensor:
    r"""Minus the largest logit, :math:`-\max_j \ell_j`, (..., C) to (...,); larger = more OOD.

    References:
        Hendrycks et al., Scaling Out-of-Distribution Detection for Real-World Settings, ICML 2022.

    Example:
        >>> import torch
        >>> max_logit(torch.tensor([[1.0, 3.0]]))
        tensor([-3.])
    """
    check_logits(logits)
    return -logits.amax(-1)


class MaxLogit(Detector):
    """Largest logit, see `max_logit`."""

    reads = ("logits",)
    needs_fit = False

    def _score(self, features: Features) -> Tensor:
        return max_logit(features.logits)
