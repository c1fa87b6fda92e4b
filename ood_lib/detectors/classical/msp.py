"""Maximum softmax probability (MSP).  Larger score = more OOD."""

from torch import Tensor

from ood_lib.checks import check
from ood_lib.detectors.detector import Detector
from ood_lib.detectors.shapes import check_logits
from ood_lib.features.features import Features

__all__ = ["MSP", "msp"]


def msp(logits: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Minus the maximum softmax probability, :math:`-\max_j p_j`, (...,); larger = more OOD, in [-1, -1/C].

    Args:
        logits: (..., C).
        temperature: T > 0, p is the softmax of the logits / T; `fit_temperature` finds a calibrated one.

    Raises:
        ValueError: a single logit, whose softmax is always 1; integers; ``temperature`` is not positive.

    References:
        Hendrycks & Gimpel, A Baseline for Detecting Misclassified and Out-of-Distribution Examples, ICLR 2017.

    Example:
        >>> import torch
        >>> msp(torch.tensor([[0.0, 0.0], [100.0, 0.0]]))
        tensor([-0.5000, -1.0000])
    """
    check_logits(logits, 2)
    check("(0, inf)", temperature=temperature)
    scaled = logits if temperature == 1 else logits / temperature
    return -1 / (scaled - scaled.amax(-1, keepdim=True)).exp_().sum(-1)  # the largest probability, without the others


class MSP(Detector):
    """Maximum softmax probability, with the ``temperature`` of `msp`.

    A ``temperature`` set later changes the scores and not the threshold: calibrate again.
    """

    reads = ("logits",)
    needs_fit = False

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        check("(0, inf)", temperature=temperature)
        self.temperature = temperature

    def _score(self, features: Features) -> Tensor:
        return msp(features.logits, self.temperature)
