"""How well scores separate ID from OOD, with an interval for every number.  Larger score = more OOD.

Everything is exact under ties and runs on the device of the scores: each set is sorted once, and all numbers are sums
over what lies below each score.  The cost is O(N log N), the memory about 60 bytes per score.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ood_lib.checks import check
from ood_lib.extras import need
from ood_lib.tensors import as_tensor, ascending, single

__all__ = [
    "CALLED", "DIRECTIONS", "Metrics", "Positive", "as_percent", "aupr", "auroc", "checked_scores", "evaluate",
    "fpr_at_tpr", "mean_interval", "student", "too_wide", "variance_of_mean",
]  # fmt: skip

Positive = Literal["id", "ood"]
DIRECTIONS = {"auroc": 1, "fpr95": -1, "aupr_in": 1, "aupr_out": 1}  # -1: the smaller, the better
_Estimate = tuple[float, tuple[float, float]]  # value and interval


@dataclass(frozen=True)
class Metrics:
    """Four numbers in [0, 1] and, for each, the ends of its confidence interval.

    ``fpr95`` follows the convention named by ``positive``. With ``"id"`` it is the share of OOD accepted when 95 % of
    ID are accepted (ODIN and most papers); with ``"ood"``, the share of ID rejected when 95 % of OOD are rejected
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


class _Ranked(NamedTuple):
    """Two sets in ascending order, and for each score how many of the other set lie below it, and up to it."""

    known: Tensor  # (N,)
    unknown: Tensor  # (M,)
    known_below: Tensor  # (M,) ID scores < each OOD score
    known_upto: Tensor  # (M,) ID scores <= each OOD score
    unknown_below: Tensor  # (N,) OOD scores < each ID score
    unknown_upto: Tensor  # (N,) OOD scores <= each ID score


def checked_scores(scores: Tensor, name: str) -> Tensor:
    """Scores (N,) as float32 or float64, where float64 exists (not on MPS: there they go to the CPU).

    Raises:
        ValueError: no scores, or scores that are NaN or infinite; the message calls them ``name``.
    """
    scores = single(as_tensor(scores, name))
    if scores.ndim != 1 or len(scores) == 0 or not scores.isfinite().all():
        raise ValueError(
            f"{name} has shape {tuple(scores.shape)} and {int((~scores.isfinite()).sum())} entries that are NaN or "
            "infinite; expected a non-empty vector of finite scores, one per image"
        )
    scores = scores.cpu() if scores.device.type == "mps" else scores
    if not scores.is_floating_point() and (scores != scores.double()).any():
        raise ValueError(f"{name} holds integers beyond 2^53, which float64 cannot tell apart; expected smaller scores")
    return scores if scores.dtype == torch.float32 else scores.double()


def _rank(id_scores: Tensor, ood_scores: Tensor, names: tuple[str, str] = ("id_scores", "ood_scores")) -> _Ranked:
    known, unknown = (checked_scores(s, name) for s, name in zip((id_scores, ood_scores), names))
    dtype = torch.promote_types(known.dtype, unknown.dtype)
    known, unknown = (ascending(s.to(known.device, dtype)) for s in (known, unknown))
    below, upto = (torch.searchsorted(known, unknown, right=right) for right in (False, True))

    def mirrored(counts: Tensor) -> Tensor:  # an OOD score lies below the i-th ID score when at most i are up to it
        return counts.bincount(minlength=len(known) + 1).cumsum(0)[:-1]

    return _Ranked(known, unknown, below, upto, mirrored(upto), mirrored(below))


def auroc(id_scores: Tensor, ood_scores: Tensor, confidence: float = 0.95) -> tuple[float, tuple[float, float]]:
    """Probability that an OOD score (M,) exceeds an ID score (N,), ties counting one half, with DeLong's interval.

    The interval is taken on the logit scale, so it stays inside [0, 1].  Where the two sets are separated perfectly,
    DeLong's variance is zero and says nothing; the bound is then that of n successes in n trials
    (Clopper & Pearson), n being the smaller set.  No other interval may promise more than that one: near perfection
    DeLong's variance is too small as well.

    Raises:
        ValueError: no scores, or scores that are NaN or infinite.

    References:
        DeLong, DeLong & Clarke-Pearson, Biometrics 1988; Sun & Xu, IEEE Signal Processing Letters 2014.

    Example:
        >>> auroc(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]))[0]
        0.875
    """
    check("(0, 1)", "the coverage of an interval", confidence=confidence)
    return _auroc(_rank(id_scores, ood_scores), confidence)


def _auroc(ranked: _Ranked, confidence: float) -> _Estimate:
    n, m = len(ranked.known), len(ranked.unknown)
    area = (ranked.known_below.sum() + ranked.known_upto.sum()).item() / (2 * n * m)
    variance = variance_of_mean((ranked.known_below + ranked.known_upto).double() / (2 * n))
    variance += variance_of_mean((ranked.unknown_below + ranked.unknown_upto).double() / (2 * m))
    return area, _logit_interval(area, math.sqrt(variance), min(n, m), confidence)


def variance_of_mean(wins: Tensor, single: float = 0.25) -> float:
    """Variance of the mean of values (N,); ``single`` where there is one only, which tells nothing (0.25: shares)."""
    return wins.var().item() / len(wins) if len(wins) > 1 else single


def _logit_interval(value: float, std: float, n: int, confidence: float) -> tuple[float, float]:
    tail = ((1 - confidence) / 2) ** (1 / n)
    if value in (0.0, 1.0):
        return (0.0, 1 - tail) if value == 0 else (tail, 1.0)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre, half = math.log(value / (1 - value)), z * std / (value * (1 - value))
    low, high = (1 / (1 + math.exp(-max(x, -700.0))) for x in (centre - half, centre + half))
    return min(low, tail, value), max(high, 1 - tail, value)


def fpr_at_tpr(
    id_scores: Tensor, ood_scores: Tensor, tpr: float = 0.95, positive: Positive = "id", confidence: float = 0.95
) -> tuple[float, tuple[float, float]]:
    r"""False-positive rate where the true-positive rate first reaches ``tpr``, with an interval that is free of shapes.

    Two things are not known: which of the n sorted positives stand around the true threshold, and the rate there.  How
    many positives lie up to the threshold that recalls a share ``tpr`` of all there could be is binomial,
    :math:`B \sim \mathrm{Bin}(n, \mathrm{tpr})`, so that it lies between :math:`x_{(B)}` and :math:`x_{(B+1)}`.
    If c of m negatives lie up to a fixed point, Clopper and Pearson bound their rate there by quantiles of
    :math:`\mathrm{Beta}(c, m-c+1)` from below and of :math:`\mathrm{Beta}(c+1, m-c)` from above.  The ends are the
    quantiles of both together, a mixture over B, with c counted at :math:`x_{(B)}` and at :math:`x_{(B+1)}`.  Beyond
    the largest positive nothing is known, c = m.  In simulations with 20 to 1000 of each kind it covers in 96.9 to
    100 of 100 (tests/benchmarks/bench_intervals.py), where a bootstrap covers in as few as 46.

    With fewer than 72 positives (95 % of 95 %) the upper end is 1, whatever the scores are: the threshold may then lie
    beyond all of them.  A rate from so few images says little; report the AUROC instead, or take more ID images.  From
    100 on both ends tell something, from 1000 on they are about a tenth apart.

    OpenOOD reads its rate from scikit-learn's ``roc_curve``, which drops points between two others on a straight line.
    Without ties that is the same number; with ties its rate can be larger, never smaller: here no point is dropped.

    Args:
        id_scores, ood_scores: (N,) and (M,).
        tpr: share of positives to recall.
        positive: which class is to be recalled.  ``"id"``: share of OOD accepted when ``tpr`` of ID is accepted.
            ``"ood"`` (OpenOOD v1.5): share of ID rejected when ``tpr`` of OOD is rejected.
        confidence: coverage of the interval.

    Raises:
        ValueError: no scores, or scores that are NaN or infinite; an argument out of its range.

    References:
        Clopper & Pearson, The Use of Confidence or Fiducial Limits Illustrated in the Case of the Binomial, Biometrika
        1934; David & Nagaraja, Order Statistics, 2003, section 7.1 (the ranks around a quantile); Schweder & Hjort,
        Confidence, Likelihood, Probability, 2016 (confidence distributions put together).

    Example:
        >>> scores = torch.arange(100.0)
        >>> fpr_at_tpr(scores, scores + 50)[0]
        0.45
    """
    check("(0, 1)", "the coverage of an interval", confidence=confidence)
    check("(0, 1]", "a share of positives to recall", tpr=tpr)
    return _fpr(_rank(id_scores, ood_scores), tpr, positive, confidence)


def _fpr(ranked: _Ranked, tpr: float, positive: Positive, confidence: float) -> _Estimate:
    check(("id", "ood"), positive=positive)
    n, m = len(ranked.known), len(ranked.unknown)
    if positive == "id":  # by rank of the threshold: OOD scores up to it
        wrong = ranked.unknown_upto
    else:  # from above: ID scores not below it
        n, m, wrong = m, n, (n - ranked.known_below).flip(0)
    rank = math.ceil(round(tpr * n, 9))
    rate = wrong[rank - 1].item() / m
    low, high = _rate_interval(wrong.cpu().numpy(), m, tpr, confidence)
    return rate, (min(low, rate), max(high, rate))


def _rate_interval(wrong: np.ndarray, m: int, tpr: float, confidence: float) -> tuple[float, float]:
    """Ends of the interval of a rate, from the negatives (of m) up to each sorted positive, see `fpr_at_tpr`."""
    stats, special, optimize = (need(f"scipy.{name}") for name in ("stats", "special", "optimize"))
    n, tail = len(wrong), (1 - confidence) / 2
    first, last = stats.binom.ppf([1e-9, 1 - 1e-9], n, tpr).astype(int)
    ranks = np.arange(first, last + 1)
    weights = stats.binom.pmf(ranks, n, tpr)
    weights /= weights.sum()
    counts = np.concatenate([[0], wrong, [m]])
    below, above = counts[ranks], counts[ranks + 1]

    def up_to(x: float, c: np.ndarray, alpha: int) -> float:
        """Mass up to x of the mixture of Beta(c + alpha, m - c + 1 - alpha), points at 0 and 1 at its ends."""
        some = (c + alpha > 0) & (m - c + 1 - alpha > 0)
        inside = special.betainc(np.where(some, c + alpha, 1), np.where(some, m - c + 1 - alpha, 1), x)
        return float(weights @ np.where(some, inside, c + alpha == 0))

    def quantile(share: float, c: np.ndarray, alpha: int) -> float:
        if up_to(0.0, c, alpha) >= share:
            return 0.0
        if up_to(1 - 1e-12, c, alpha) <= share:
            return 1.0
        return float(optimize.brentq(lambda x: up_to(x, c, alpha) - share, 0, 1 - 1e-12, xtol=1e-9))

    return quantile(tail, below, 0), quantile(1 - tail, above, 1)


def aupr(positives: Tensor, negatives: Tensor, confidence: float = 0.95) -> tuple[float, tuple[float, float]]:
    """Average precision when positives (N,) should score higher than negatives (M,), with the logit interval.

    Average precision is a sum of steps, one per distinct score.  OpenOOD joins the points of the curve by straight
    lines instead (trapezoids), which no threshold reaches: on few scores the two differ in the second digit.  Here it
    is that of scikit-learn's ``average_precision_score``.

    Raises:
        ValueError: no scores, or scores that are NaN or infinite.

    References:
        Boyd, Eng & Page, Area under the Precision-Recall Curve: Point Estimates and Confidence Intervals, ECML 2013.

    Example:
        >>> aupr(torch.tensor([3.0, 1.0]), torch.tensor([2.0]))[0]
        0.8333333333333333
    """
    check("(0, 1)", "the coverage of an interval", confidence=confidence)
    return _aupr_out(_rank(negatives, positives, ("negatives", "positives")), confidence)


def _aupr_out(ranked: _Ranked, confidence: float) -> _Estimate:
    counts = ranked.unknown.unique_consecutive(return_counts=True)[1]  # a step per distinct score: ties enter together
    first = counts.cumsum(0) - counts
    wrong = len(ranked.known) - ranked.known_below[first]
    return _average_precision(counts, len(ranked.unknown) - first, wrong, confidence)


def _aupr_in(ranked: _Ranked, confidence: float) -> _Estimate:
    counts = ranked.known.unique_consecutive(return_counts=True)[1]
    last = counts.cumsum(0)
    return _average_precision(counts, last, ranked.unknown_upto[last - 1], confidence)


def _average_precision(counts: Tensor, right: Tensor, wrong: Tensor, confidence: float) -> _Estimate:
    n = int(counts.sum())
    area = min((right.double() / (right + wrong) * counts).sum().item() / n, 1.0)
    return area, _logit_interval(area, math.sqrt(area * (1 - area) / n), n, confidence)


def evaluate(id_scores: Tensor, ood_scores: Tensor, *, positive: Positive = "id", confidence: float = 0.95) -> Metrics:
    """Judge a detector by its scores on ID and OOD images; larger score = more OOD.

    Args:
        id_scores, ood_scores: (N,) and (M,).
        positive: the convention of ``fpr95``, see `Metrics`.
        confidence: coverage of the intervals.

    Raises:
        ValueError: no scores, or scores that are NaN or infinite.

    Example:
        >>> evaluate(torch.arange(50.0), torch.arange(25.0, 75.0)).auroc
        0.875
    """
    check("(0, 1)", "the coverage of an interval", confidence=confidence)
    ranked = _rank(id_scores, ood_scores)
    area, area_ci = _auroc(ranked, confidence)
    fpr, fpr_ci = _fpr(ranked, 0.95, positive, confidence)
    aupr_in, in_ci = _aupr_in(ranked, confidence)
    aupr_out, out_ci = _aupr_out(ranked, confidence)
    return Metrics(area, fpr, aupr_in, aupr_out, area_ci, fpr_ci, in_ci, out_ci, positive)


CALLED = 0.99
"""Confidence of the interval by which a method is called better or worse over several networks.

Student's t is exact for normal differences.  Differences of networks can be skewed: those of an exponential or a
log-normal distribution make an interval of 95 % miss in 10 to 18 of 100, for three
networks as for ten, and one of 99 % in 3 to 9 (in at most 5.3 for three networks).  So the latter is what keeps the
promise of the former; tests/benchmarks/bench_intervals.py has the table.
"""


def student(n: int, confidence: float = 0.95) -> float:
    """Quantile of Student's t with n - 1 degrees of freedom: how many standard errors a two-sided interval reaches.

    Args:
        n: values that were averaged; of a single one nothing is known, NaN.
        confidence: of the interval, for values that are normal; see `CALLED`.

    Example:
        >>> round(student(2), 1), student(1)
        (12.7, nan)
    """
    return float(need("scipy.stats").t.ppf((1 + confidence) / 2, n - 1)) if n > 1 else math.nan


def mean_interval(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean of a number over networks, with the interval of Student's t; its ends are not cut to any scale.

    Args:
        values: (N,), one per network.
        confidence: of the interval, see `student`.

    Returns:
        Mean, low, high; of one network the ends are NaN.

    Raises:
        ValueError: no values.

    Example:
        >>> [round(x, 2) for x in mean_interval([0.8, 0.9])]
        [0.85, 0.21, 1.49]
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"values of shape {values.shape} were given; expected one number at least, one per network")
    n = len(values)
    half = student(n, confidence) * values.std(ddof=1) / math.sqrt(n) if n > 1 else math.nan
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


def too_wide(value: float, low: float, high: float) -> bool:
    """Whether an interval tells nothing, because without its cuts it would be as wide as the scale from 0 to 1.

    It then reaches 0.5 or further to one side of its value.  A few networks that differ much make such intervals.
    """
    return max(value - low, high - value) >= 0.5


def as_percent(
    value: float, low: float = math.nan, high: float = math.nan, *, signed: bool = False, small: bool = False
) -> str:
    """A share and its interval in percent, as every page shows them: ``90.1 [75.7, 100.0]``.

    The ends are cut to the scale, [0, 1], or [-1, 1] of a difference. A number of one network has no interval, and an
    interval that is too wide to be useful is not shown (see `too_wide`): ``90.1 (one network)``,
    ``45.2 (cannot tell)``.

    Args:
        value: a share; "" is what is shown of NaN.
        low, high: ends of its interval; NaN where there is one network only.
        signed: the value is a difference: each number has its sign, and an interval of any width that leaves out zero
            is shown, because it tells the sign.
        small: the interval is set in small type, for HTML.

    Example:
        >>> as_percent(0.901, 0.757, 1.045), as_percent(-0.0004, -0.02, 0.01, signed=True)
        ('90.1 [75.7, 100.0]', '+0.0 [−2.0, +1.0]')
    """
    if math.isnan(value):
        return ""

    def number(share: float) -> str:
        return (f"{100 * share:+z.1f}" if signed else f"{100 * share:z.1f}").replace("-", "−")

    if math.isnan(low):
        interval = "(one network)"
    elif too_wide(value, low, high) and not (signed and low * high > 0):
        interval = "(cannot tell)"
    else:
        interval = f"[{number(max(low, -1.0 if signed else 0.0))}, {number(min(high, 1.0))}]"
    return f"{number(value)} <small>{interval}</small>" if small else f"{number(value)} {interval}"
