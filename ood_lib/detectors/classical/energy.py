"""Free energy of the logits.  Larger score = more OOD.

It is tied to its neighbours: ``max_logit - log C <= energy <= max_logit`` (both negated scores, so energy is the lower
one) and ``log MSP = max_j l_j - logsumexp_j l_j``: MSP is what remains of the maximum once the energy is taken out.
"""

import torch
from torch import Tensor

from ood_lib.checks import check
from ood_lib.detectors.detector import Detector
from ood_lib.detectors.shapes import check_logits
from ood_lib.features.features import Features

__all__ = ["Energy", "energy"]


def energy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Free energy :math:`-T \log \sum_j e^{\ell_j / T}`, (..., C) to (...,); larger = more OOD.

    T > 0 is the ``temperature``; for T to 0 the energy becomes `max_logit`.

    Raises:
        ValueError: integers; ``temperature`` is not positive.

    References:
        Liu et al., Energy-based Out-of-distribution Detection, NeurIPS 2020.

    Example:
        >>> energy(torch.zeros(1, 2))
        tensor([-0.6931])
    """
    check_logits(logits)
    check("(0, inf)", temperature=temperature)
    if temperature == 1:  # the usual one: neither a copy of the logits nor a product
        return -torch.logsumexp(logits, -1)
    return -temperature * torch.logsumexp(logits / temperature, -1)


class Energy(Detector):
    """Free energy of the logits, with the ``temperature`` of `energy`.

    A ``temperature`` set later changes the scores and not the threshold: calibrate again.
    """

    reads = ("logits",)
    needs_fit = False

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        check("(0, inf)", temperature=temperature)
        self.temperature = temperature

    def _score(self, features: Features) -> Tensor:
        return energy(features.logits, self.temperature)
