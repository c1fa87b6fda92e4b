"""How well scores separate ID from OOD, with an interval for every number.  Larger score = more OOD.

Everything is exact under ties, costs O(N log N), and runs on the device of the scores.
"""

import math
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ood_lib.extras import need

__all__ = ["Metrics", "aupr", "auroc", "evaluate", "fpr_at_tpr", "student"]


@dataclass(frozen=True)
class Metrics:
    """Four numbers in [0, 1] and, for each, the ends of its confidence interval.

    ``fpr95`` follows the convention named by ``positive``: with ``"id"``, the share of OOD accepted when 95 % of ID
    are accepted (ODIN and most papers); with ``"ood"``, the share of ID rejected when 95 % of OOD are rejected
    (OpenOOD v1.5).
    """

    auroc: float
    fpr95: float
    aupr_in: float
    aupr_out: float
    auroc_ci: tuple[float, float]
    fpr95_ci: tuple[float, float]
    aupr_in_ci: tuple[float, float]
    aupr_out_ci: tuple[float, float]
    positive: str = "id"

    def rows(self) -> list[dict[str, str | float]]:
        """One record per number: metric, value, low, high."""
        values = asdict(self)
        names = ("auroc", "fpr95", "aupr_in", "aupr_out")
        return [dict(zip(("metric", "value", "low", "high"), (n, values[n], *values[f"{n}_ci"]))) for n in names]


def _wins(of: Tensor, against: Tensor) -> Tensor:
    """For each score, the share of ``against`` below it, ties counting one half."""
    ranked = against.sort().values
    below, upto = (torch.searchsorted(ranked, of.contiguous(), right=right) for right in (False, True))
    return (below + upto).double() / (2 * len(against))


def auroc(id_scores: Tensor, ood_scores: Tensor, confidence: float = 0.95) -> tuple[float, tuple[float, float]]:
    """Probability that an OOD score exceeds an ID score (ties count one half), with DeLong's interval.

    The interval is taken on the logit scale, so it stays inside [0, 1].  Where the two sets are separated perfectly,
    DeLong's variance is zero and says nothing; the bound is then that of n successes in n trials
    (Clopper & Pearson), n being the smaller set.

    Args:
        id_scores: (N,).
        ood_scores: (M,).
        confidence: coverage of the interval.

    Returns:
        The area and its interval.

    References:
        DeLong, DeLong & Clarke-Pearson, Biometrics 1988; Sun & Xu, IEEE Signal Processing Letters 2014.

    Example:
        >>> auroc(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]))[0]
        0.875
    """
    of_ood = _wins(ood_scores, id_scores)  # (M,)
    of_id = 1 - _wins(id_scores, ood_scores)  # (N,)
    area = of_ood.mean().item()
    variance = sum((w.var().item() if len(w) > 1 else 0.25) / len(w) for w in (of_ood, of_id))
    n = min(len(of_ood), len(of_id))
    return area, _logit_interval(area, math.sqrt(variance), n, confidence)


def _logit_interval(value: float, std: float, n: int, confidence: float) -> tuple[float, float]:
    tail = ((1 - confidence) / 2) ** (1 / n)
    if value in (0.0, 1.0):
        return (0.0, 1 - tail) if value == 0 else (tail, 1.0)
    z = torch.special.ndtri(torch.tensor((1 + confidence) / 2, dtype=torch.float64)).item()
    centre, half = math.log(value / (1 - value)), z * std / (value * (1 - value))
    ends = torch.sigmoid(torch.tensor([centre - half, centre + half], dtype=torch.float64))
    return ends[0].item(), ends[1].item()


def fpr_at_tpr(
    id_scores: Tensor,
    ood_scores: Tensor,
    tpr: float = 0.95,
    positive: Literal["id", "ood"] = "id",
    confidence: float = 0.95,
    draws: int = 2000,
) -> tuple[float, tuple[float, float]]:
    """False-positive rate where the true-positive rate first reaches ``tpr``, with a bootstrap interval.

    The interval needs no resampling of data: the k-th smallest of a bootstrap sample has a Beta-distributed rank, and
    given that threshold the number of false positives is binomial.

    Args:
        id_scores: (N,).
        ood_scores: (M,).
        tpr: share of positives to recall.
        positive: which class is to be recalled.  ``"id"``: share of OOD accepted when ``tpr`` of ID is accepted.
            ``"ood"`` (OpenOOD v1.5): share of ID rejected when ``tpr`` of OOD is rejected.
        confidence: coverage of the interval.
        draws: bootstrap draws, seeded.

    Returns:
        The rate and its interval.

    Example:
        >>> scores = torch.arange(100.0)
        >>> fpr_at_tpr(scores, scores + 50)[0]
        0.45
    """
    if positive == "ood":
        return fpr_at_tpr(-ood_scores, -id_scores, tpr, "id", confidence, draws)
    ranked, others = id_scores.sort().values, ood_scores.sort().values
    n, m = len(ranked), len(others)
    rank = math.ceil(round(tpr * n, 9))

    def accepted(ranks: Tensor) -> Tensor:
        return torch.searchsorted(others, ranked[ranks], right=True).double() / m

    rate = accepted(torch.tensor([rank - 1], device=ranked.device)).item()
    random = np.random.default_rng(0)
    ranks = torch.from_numpy((random.beta(rank, n + 1 - rank, draws) * n).astype(np.int64).clip(max=n - 1))
    counts = random.binomial(m, accepted(ranks.to(ranked.device)).cpu().numpy()) / m
    low, high = np.quantile(counts, [(1 - confidence) / 2, (1 + confidence) / 2]).tolist()
    zero, one = _logit_interval(0.0, 0.0, m, confidence)[1], _logit_interval(1.0, 0.0, m, confidence)[0]
    return rate, (min(low, one), max(high, zero))


def aupr(positives: Tensor, negatives: Tensor, confidence: float = 0.95) -> tuple[float, tuple[float, float]]:
    """Average precision when positives should score higher, with the logit interval.

    Args:
        positives: (N,).
        negatives: (M,).
        confidence: coverage of the interval.

    Returns:
        The area (as scikit-learn's ``average_precision_score``) and its interval.

    References:
        Boyd, Eng & Page, Area under the Precision-Recall Curve: Point Estimates and Confidence Intervals, ECML 2013.

    Example:
        >>> aupr(torch.tensor([3.0, 1.0]), torch.tensor([2.0]))[0]
        0.8333333333333333
    """
    levels = positives.unique()  # one step of the curve per distinct score, so ties enter together
    positives, negatives = positives.sort().values, negatives.sort().values
    above = len(positives) - torch.searchsorted(positives, levels)
    wrong = len(negatives) - torch.searchsorted(negatives, levels)
    steps = above - torch.cat([above[1:], above.new_zeros(1)])
    area = (steps * (above.double() / (above + wrong))).sum().item() / len(positives)
    area = min(area, 1.0)
    return area, _logit_interval(area, math.sqrt(area * (1 - area) / len(positives)), len(positives), confidence)


def evaluate(
    id_scores: Tensor,
    ood_scores: Tensor,
    *,
    positive: Literal["id", "ood"] = "id",
    confidence: float = 0.95,
) -> Metrics:
    """Judge a detector by its scores on ID and OOD images; larger score = more OOD.

    Args:
        id_scores: (N,).
        ood_scores: (M,).
        positive: the convention of ``fpr95``, see `Metrics`.
        confidence: coverage of the intervals.

    Raises:
        ValueError: no scores, or scores that are NaN or infinite.

    Example:
        >>> evaluate(torch.arange(50.0), torch.arange(25.0, 75.0)).auroc
        0.875
    """
    if positive not in ("id", "ood") or not 0 < confidence < 1:
        raise ValueError(f"positive={positive!r}, confidence={confidence} given; expected 'id' or 'ood', and 0 < c < 1")
    id_scores, ood_scores = (torch.as_tensor(s).detach().double() for s in (id_scores, ood_scores))
    for name, scores in (("id_scores", id_scores), ("ood_scores", ood_scores)):
        if scores.ndim != 1 or len(scores) == 0 or not scores.isfinite().all():
            raise ValueError(
                f"{name} has shape {tuple(scores.shape)} and {int((~scores.isfinite()).sum())} entries that are NaN or "
                "infinite; expected a non-empty vector of finite scores, one per image"
            )
    area, area_ci = auroc(id_scores, ood_scores, confidence)
    fpr, fpr_ci = fpr_at_tpr(id_scores, ood_scores, 0.95, positive, confidence)
    aupr_in, in_ci = aupr(-id_scores, -ood_scores, confidence)
    aupr_out, out_ci = aupr(ood_scores, id_scores, confidence)
    return Metrics(area, fpr, aupr_in, aupr_out, area_ci, fpr_ci, in_ci, out_ci, positive)


def student(n: int) -> float:
    """97.5 % quantile of Student's t with n - 1 degrees of freedom: how many standard errors an interval reaches.

    Args:
        n: values that were averaged; of a single one nothing is known, NaN.

    Example:
        >>> round(student(2), 1), student(1)
        (12.7, nan)
    """
    return float(need("scipy.stats").t.ppf(0.975, n - 1)) if n > 1 else math.nan
