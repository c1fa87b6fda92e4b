"""Detectors that read the logits alone: MSP, MaxLogit, Energy.  Larger = more OOD.

Facts that tie them together: ``max_logit - log C <= energy <= max_logit`` (both negated scores, so energy is the lower
one) and ``log MSP = max_j l_j - logsumexp_j l_j``: MSP is what remains of the maximum once the energy is taken out.
"""

import torch
from torch import Tensor

from ood_lib.detector import Detector
from ood_lib.features import Features

__all__ = ["MSP", "Energy", "MaxLogit", "energy", "max_logit", "msp"]


def msp(logits: Tensor) -> Tensor:
    r"""Minus the maximum softmax probability, :math:`-\max_j p_j`; larger = more OOD, in [-1, -1/C].

    Args:
        logits: (..., C).

    Returns:
        (...,)

    References:
        Hendrycks & Gimpel, A Baseline for Detecting Misclassified and Out-of-Distribution Examples, ICLR 2017.

    Example:
        >>> msp(torch.tensor([[0.0, 0.0], [100.0, 0.0]]))
        tensor([-0.5000, -1.0000])
    """
    return -logits.softmax(-1).amax(-1)


def max_logit(logits: Tensor) -> Tensor:
    r"""Minus the largest logit, :math:`-\max_j \ell_j`; larger = more OOD.

    Args:
        logits: (..., C).

    Returns:
        (...,)

    References:
        Hendrycks et al., Scaling Out-of-Distribution Detection for Real-World Settings, ICML 2022.

    Example:
        >>> max_logit(torch.tensor([[1.0, 3.0]]))
        tensor([-3.])
    """
    return -logits.amax(-1)


def energy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Free energy :math:`-T \log \sum_j e^{\ell_j / T}`; larger = more OOD.

    Args:
        logits: (..., C).
        temperature: T > 0; for T to 0 the energy becomes `max_logit`.

    Returns:
        (...,)

    References:
        Liu et al., Energy-based Out-of-distribution Detection, NeurIPS 2020.

    Example:
        >>> energy(torch.zeros(1, 2))
        tensor([-0.6931])
    """
    return -temperature * torch.logsumexp(logits / temperature, -1)


class MSP(Detector):
    """Maximum softmax probability, see `msp`."""

    reads = ("logits",)
    needs_fit = False

    def _score(self, features: Features) -> Tensor:
        return msp(features.logits)


class MaxLogit(Detector):
    """Largest logit, see `max_logit`."""

    reads = ("logits",)
    needs_fit = False

    def _score(self, features: Features) -> Tensor:
        return max_logit(features.logits)


class Energy(Detector):
    """Free energy of the logits, see `energy`.

    Args:
        temperature: T > 0.

    Raises:
        ValueError: ``temperature`` is not positive.
    """

    reads = ("logits",)
    needs_fit = False

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature={temperature} was given; expected a positive number")
        self.temperature = temperature

    def _score(self, features: Features) -> Tensor:
        return energy(features.logits, self.temperature)
