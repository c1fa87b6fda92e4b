"""Split conformal prediction: a threshold and p-values from n held-out scores, with guarantees for every n.

References:
    Vovk, Gammerman & Shafer, Algorithmic Learning in a Random World, 2005; Lei et al., Distribution-Free Predictive
    Inference for Regression, JASA 2018; Bates et al., Testing for Outliers with Conformal p-Values, Annals of
    Statistics 2023.
"""

import math

import torch
from torch import Tensor

from ood_lib.checks import check
from ood_lib.tensors import check_floats

__all__ = ["conformal_p_values", "conformal_rank"]


def conformal_rank(n: int, tpr: float) -> int:
    r"""The rank of the threshold among n held-out scores, :math:`k = \lceil (n + 1)\,\mathrm{tpr} \rceil`.

    A new score is one more draw, so each of the n + 1 ranks is equally likely for it.  So it is at most the k-th
    smallest of the others with probability k / (n + 1) >= tpr.  (The k-th with n tpr rounded up would reach the rate on
    the held-out scores only.)

    Raises:
        ValueError: ``tpr`` is not in (0, 1), or n < tpr / (1 - tpr): no rank promises so much.

    Example:
        >>> conformal_rank(99, 0.95)
        95
    """
    check("(0, 1)", "a share of ID images to accept", tpr=tpr)
    rank = math.ceil(round((n + 1) * tpr, 9))  # round: 200 * 0.95 is a little more than 190
    if rank > n:
        raise ValueError(
            f"{n} held-out ID samples cannot promise tpr={tpr}; it takes at least "
            f"{math.ceil(round(tpr / (1 - tpr), 9))} of them: hold out more, or ask for less"
        )
    return rank


def conformal_p_values(scores: Tensor, held_out: Tensor) -> Tensor:
    r"""The share of the held-out scores, and of the score s itself, that are at least s.

    .. math:: p = \frac{1 + \#\{i : s_i \ge s\}}{n + 1}

    Args:
        scores: (N,).
        held_out: (n,), ascending.

    Returns:
        p-values (N,) in (0, 1], in the precision of the scores; small = more OOD.  A score that is NaN gets the
        smallest, as if it were infinite.

    Raises:
        ValueError: the held-out scores are not in ascending order, or hold NaN; something is no floating-point number.

    Example:
        >>> conformal_p_values(torch.tensor([0.5, 9.0]), torch.tensor([1.0, 2.0, 3.0]))
        tensor([1.0000, 0.2500])
    """
    check_floats("(N,)", scores=scores, held_out=held_out)
    if (held_out[1:] < held_out[:-1]).any():
        raise ValueError("the held-out scores are not in ascending order: pass held_out.sort().values")
    if lost := int(held_out.isnan().sum()):
        raise ValueError(f"{lost} of {len(held_out)} held-out scores are NaN, which has no rank")
    known = held_out.to(scores.device, scores.dtype)
    return (1 + len(known) - torch.searchsorted(known, scores)).to(scores.dtype) / (len(known) + 1)
