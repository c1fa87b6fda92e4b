r"""Joint energy: how sure a multi-label network is that none of its labels is present.  Larger = more OOD.

A network of independent labels gives each a probability :math:`p_i = \sigma(\ell_i)`.  Each label is a system of two
states, present with energy :math:`-\ell_i` and absent with energy 0, so its free energy is
:math:`E_i = -\log(1 + e^{\ell_i})`.  The joint energy adds them up, and is three things at once:

.. math:: E = -\sum_i \log(1 + e^{\ell_i}) = -\log \sum_{y \in \{0,1\}^C} e^{\sum_i y_i \ell_i}
    = \log \prod_i (1 - p_i),

minus the log-partition over all label sets, and the log-probability that no label is present.  Each :math:`E_i` is
negative: a label can only vouch for an image, never accuse it.  `SumProb` and `SumLogit` are the paper's baselines.
"""

import math

from torch import Tensor
from torch.nn import functional as F

from ood_lib.checks import check
from ood_lib.detectors.detector import Detector
from ood_lib.detectors.shapes import check_logits
from ood_lib.features.features import Features

__all__ = ["JointEnergy", "SumLogit", "SumProb", "joint_energy", "label_energies", "sum_logit", "sum_prob"]


def label_energies(logits: Tensor) -> Tensor:
    r"""Free energy of each label, :math:`E_i = -\log(1 + e^{\ell_i})`; larger (closer to 0) = more OOD.

    They add up to `joint_energy`, so they say which label vouches for an image: the one with the lowest energy.

    Logits (..., C) to energies of the same shape, nowhere positive.

    Example:
        >>> import torch
        >>> label_energies(torch.tensor([[100.0, 0.0, -9.0]]))
        tensor([[-1.0000e+02, -6.9315e-01, -1.2340e-04]])
    """
    check_logits(logits)
    return -F.softplus(logits)


def joint_energy(logits: Tensor, top: int | None = None, temperature: float = 1.0) -> Tensor:
    r"""Joint energy :math:`-T \sum_i \log(1 + e^{\ell_i / T})`, computed without overflow, (...,); larger = more OOD.

    Args:
        logits: (..., C).
        top: sum over the labels with the ``top`` largest logits only; None = all of them (the paper's score).  With
            ``top=1`` images rank as by `ood_lib.detectors.classical.max_logit.max_logit`.
        temperature: T > 0, 1 in the paper.  For T to 0 only present labels count, :math:`-\sum_i \max(\ell_i, 0)`; for
            T to infinity images rank as by `sum_logit`.  So the score needs logits of the right scale, as calibrated
            ones have.

    Raises:
        ValueError: ``top`` is below 1, or ``temperature`` is not positive.

    References:
        Wang, Liu, Bocchieri & Li, Can Multi-Label Classification Networks Know What They Don't Know?, NeurIPS 2021.

    Example:
        >>> import torch
        >>> joint_energy(torch.tensor([[0.0, 0.0], [0.0, 200.0]]))  # log of 1/4; the second is sure of one label
        tensor([  -1.3863, -200.6931])
    """
    check("integer [1, inf) or None", "how many labels to sum over", top=top)
    check("(0, inf)", temperature=temperature)
    check_logits(logits)
    energies = temperature * label_energies(logits / temperature)
    if top is None or top >= logits.shape[-1]:
        return energies.sum(-1)
    found = energies.topk(top, dim=-1, largest=False).values.sum(-1)
    return found.masked_fill(logits.isnan().any(-1), math.nan)  # which topk would leave out


def sum_prob(logits: Tensor) -> Tensor:
    r"""Minus the expected number of labels, :math:`-\sum_i \sigma(\ell_i)`, (..., C) to (...,); larger = more OOD.

    Example:
        >>> import torch
        >>> sum_prob(torch.zeros(1, 4))
        tensor([-2.])
    """
    check_logits(logits)
    return -logits.sigmoid().sum(-1)


def sum_logit(logits: Tensor) -> Tensor:
    r"""Minus the sum of the logits, :math:`-\sum_i \ell_i`, (..., C) to (...,); larger = more OOD.

    The many absent labels, each far below zero, drown the few that are present.

    Example:
        >>> import torch
        >>> sum_logit(torch.tensor([[1.0, 3.0]]))
        tensor([-4.])
    """
    check_logits(logits)
    return -logits.sum(-1)


class JointEnergy(Detector):
    """Energy of all labels together, with the arguments of `joint_energy`.

    `label_energies` says which label it owes its value to.  A ``temperature`` or ``top`` set later changes the scores
    and not the threshold: calibrate again.
    """

    reads = ("logits",)
    needs_fit = False

    def __init__(self, top: int | None = None, temperature: float = 1.0) -> None:
        super().__init__()
        check("integer [1, inf) or None", "how many labels to sum over", top=top)
        check("(0, inf)", temperature=temperature)
        self.top, self.temperature = top, temperature

    def _score(self, features: Features) -> Tensor:
        return joint_energy(features.logits, self.top, self.temperature)


class SumProb(Detector):
    """Sum of the label probabilities, see `sum_prob`."""

    reads = ("logits",)
    needs_fit = False

    def _score(self, features: Features) -> Tensor:
        return sum_prob(features.logits)


class SumLogit(Detector):
    """Sum of the logits, see `sum_logit`."""

    reads = ("logits",)
    needs_fit = False

    def _score(self, features: Features) -> Tensor:
        return sum_logit(features.logits)
