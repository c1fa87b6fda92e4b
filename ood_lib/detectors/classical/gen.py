"""GEN: a generalised entropy of the largest probabilities.  Larger score = more OOD."""

import torch
from torch import Tensor

from ood_lib.checks import check
from ood_lib.detectors.detector import Detector
from ood_lib.detectors.shapes import check_logits
from ood_lib.features.features import Features
from ood_lib.tensors import ascending

__all__ = ["GEN", "gen"]


def gen(logits: Tensor, gamma: float = 0.1, top: int = 100) -> Tensor:
    r"""Generalised entropy :math:`\sum_{j \in \text{top}} p_j^\gamma (1-p_j)^\gamma`, (...,); larger = more OOD.

    A small gamma lets the many small probabilities speak (:math:`10^{-9}` to the power 0.1 is 0.13).  So they are taken
    as logarithms, in which none is rounded to zero, and for the largest one 1 - p is summed from the others.

    Args:
        logits: (..., C).
        gamma: exponent in (0, 1).
        top: how many of the largest probabilities count; all of them when it exceeds C.

    Raises:
        ValueError: a single logit; integers; an argument out of its range.

    References:
        Liu, Lochman & Zach, GEN: Pushing the Limits of Softmax-Based Out-of-Distribution Detection, CVPR 2023.

    Example:
        >>> gen(torch.tensor([[0.0, 0.0], [9.0, 0.0]]), gamma=0.5)
        tensor([1.0000, 0.0222])
    """
    check_logits(logits, 2)
    check("(0, inf)", "a positive exponent", gamma=gamma)
    check("integer [1, inf)", "a number of probabilities", top=top)
    log_p = ascending(logits.log_softmax(-1))
    others = log_p[..., :-1]
    log_rest = torch.cat([torch.log1p(-others.exp()), others.logsumexp(-1, keepdim=True)], -1)
    return (gamma * (log_p + log_rest))[..., -top:].exp().sum(-1)


class GEN(Detector):
    """Generalised entropy of the largest probabilities, with the arguments of `gen`."""

    reads = ("logits",)
    needs_fit = False

    def __init__(self, gamma: float = 0.1, top: int = 100) -> None:
        super().__init__()
        check("(0, inf)", "a positive exponent", gamma=gamma)
        check("integer [1, inf)", "a number of probabilities", top=top)
        self.gamma, self.top = gamma, top

    def _score(self, features: Features) -> Tensor:
        return gen(features.logits, self.gamma, self.top)
