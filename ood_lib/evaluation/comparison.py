"""Two detectors on the same images: is one better, and by how much?  Larger score = more OOD.

An image that is hard for one detector is hard for the other: their errors go up and down together, and two intervals
that overlap may hide a sure difference.  The comparison is therefore paired, image by image.
"""

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ood_lib.checks import check
from ood_lib.evaluation.metrics import (
    CALLED,
    DIRECTIONS,
    Positive,
    as_percent,
    auroc,
    checked_scores,
    fpr_at_tpr,
    mean_interval,
    too_wide,
    variance_of_mean,
)
from ood_lib.tensors import ascending

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Comparison", "SeedComparison", "checked_table", "compare", "compare_over_seeds", "counted_once", "same_sets",
    "wins",
]  # fmt: skip

Interval = tuple[float, float]
Scores = tuple[Tensor, Tensor]  # of one detector on ID and on OOD images
Variances = tuple[float, float, float]  # of a, of b, of a - b


@dataclass(frozen=True)
class Comparison:
    """A metric of detector a minus that of detector b on the same images.

    ``low`` and ``high`` are the ends of the confidence interval of the difference. ``p_value`` is the probability of a
    difference at least as large, of either sign, if there is none. ``correlation`` is that of the two estimates: the
    larger it is, the more the pairing helps.
    """

    metric: str
    a: float
    b: float
    difference: float
    low: float
    high: float
    p_value: float
    correlation: float


def compare(
    id_a: Tensor,
    ood_a: Tensor,
    id_b: Tensor,
    ood_b: Tensor,
    *,
    metric: Literal["auroc", "fpr95"] = "auroc",
    positive: Positive = "id",
    confidence: float = 0.95,
    draws: int = 1000,
) -> Comparison:
    r"""Paired comparison of two detectors by their scores on the same images, in the same order.

    The estimates a and b have variances and a covariance: for the AUROC DeLong's, from what each image contributes; for
    FPR95 those of a bootstrap that draws images, each with both its scores.  The interval joins those of the two
    metrics (see `auroc` and `fpr_at_tpr`) by their correlation r (Zou's method), so it is not symmetric near 0 and 1,
    and stays inside [-1, 1]:

    .. math:: L = a - b - \sqrt{(a - l_a)^2 - 2 r (a - l_a)(u_b - b) + (u_b - b)^2}

    and likewise above.  The p-value is that of :math:`(a - b) / \sigma_{a-b}` under a normal distribution.

    Args:
        id_a: (N,) scores of detector a on the ID images.
        ood_a: (M,) scores of detector a on the OOD images.
        id_b: (N,) scores of detector b; entry i belongs to the same image as entry i of ``id_a``.
        ood_b: (M,), likewise.
        metric: ``"auroc"``, of which more is better, or ``"fpr95"``, of which less is.
        positive: the convention of ``"fpr95"``, see `Metrics`.
        confidence: coverage of the interval.
        draws: bootstrap draws for ``"fpr95"``, seeded; each costs O(N + M).

    Raises:
        ValueError: the scores of a and b differ in number; no scores, or scores that are NaN or infinite; an argument
            out of its range.

    References:
        DeLong, DeLong & Clarke-Pearson, Biometrics 1988; Zou, Toward Using Confidence Intervals to Compare
        Correlations, Psychological Methods 2007.

    Example:
        >>> noise = torch.randn(2, 300, generator=torch.Generator().manual_seed(0))
        >>> id_a, ood_a = noise[0], noise[1] + 3
        >>> result = compare(id_a, ood_a, id_a, ood_a - 1)  # b is the same detector, less sure of OOD
        >>> 0 < result.low < result.difference < result.high
        True
    """
    check(("auroc", "fpr95"), metric=metric)
    check(("id", "ood"), positive=positive)
    check("integer [2, inf)", "bootstrap draws", draws=draws)
    pairs = list(zip(_paired(id_a, id_b, "id"), _paired(ood_a, ood_b, "ood")))  # (ID, OOD) of a, and of b
    if metric == "auroc":
        found, variances = [auroc(*scores, confidence) for scores in pairs], _delong(*pairs)
    else:
        found = [fpr_at_tpr(*scores, 0.95, positive, confidence) for scores in pairs]
        variances = _bootstrap([s if positive == "id" else (-s[1], -s[0]) for s in pairs], draws)
    return _join(metric, found, variances, min(len(id_a), len(ood_a)))


class SeedComparison(NamedTuple):
    """Difference of two detectors over several networks, in points (hundredths); as text, what a page says of it.

    The difference has the sign of the values: positive where the first detector has more, which is better for an AUROC
    and worse for an FPR95.  ``word`` and ``ahead`` know which.

    A method is called better or worse where the interval leaves out zero.  It is Student's t at 99 %, because the
    differences of networks are skewed: then it keeps what 95 % promise, see `ood_lib.evaluation.metrics.CALLED`.
    """

    difference: float  # mean over networks
    half: float  # of its interval, Student's t at 99 %; NaN for one network
    ahead: int  # networks on which the first detector is better
    networks: int
    metric: str = "auroc"

    @property
    def word(self) -> str:
        """What may be said of it: a difference that shows as 0.0 is none, however sure its sign."""
        gain, sure = DIRECTIONS[self.metric] * self.difference, abs(self.difference) > self.half
        if self.networks == 1:
            return "one network: no interval"
        if too_wide(*self._shares()) and not sure:
            return "cannot tell"
        if abs(gain) < 0.05:
            return "no difference that shows"
        return ("better" if gain > 0 else "worse") if sure else "no clear difference"

    def _shares(self) -> tuple[float, float, float]:
        return self.difference / 100, (self.difference - self.half) / 100, (self.difference + self.half) / 100

    def __str__(self) -> str:
        gap, _, interval = as_percent(*self._shares(), signed=True).partition(" ")
        gap = f"{gap} {interval}" if interval.startswith("[") else gap  # else the word says why there is none
        ahead = f"; ahead on {self.ahead} of {self.networks} networks" if self.networks > 1 else ""
        return f"**{gap}** ({self.word}{ahead})"


def compare_over_seeds(
    table: "pd.DataFrame", one: str, other: str, group: str, metric: str = "auroc"
) -> SeedComparison:
    """Two detectors on the same networks: the mean over the sets of a group, paired network by network.

    Args:
        table: from `run_benchmark`, several seeds on top of each other.
        one, other: detectors; the difference is that of ``one`` minus ``other``.
        group: "near" or "far".
        metric: auroc, fpr95, aupr_in or aupr_out; of fpr95 less is better.

    Raises:
        ValueError: the metric is none of these; the table has no such rows, or none of the two on the same network; a
            row comes twice; the two were judged on different sets.

    Example:
        >>> import pandas as pd
        >>> rows = [("a", s, 0.9 + s / 100) for s in range(3)] + [("b", s, 0.8 + s / 50) for s in range(3)]
        >>> table = pd.DataFrame(rows, columns=["detector", "seed", "value"])
        >>> table = table.assign(metric="auroc", group="near", ood_set="letters")
        >>> print(compare_over_seeds(table, "a", "b", "near"))
        **+9.0 [+3.3, +14.7]** (better; ahead on 3 of 3 networks)
    """
    check(DIRECTIONS, metric=metric)
    checked_table(table)
    rows = table[(table["metric"] == metric) & (table["group"] == group)]
    if lacking := {one, other} - set(rows["detector"]):
        raise ValueError(f"no {metric} of {sorted(lacking)} on {group} sets; there are {sorted(set(rows['detector']))}")
    a, b = (_by_seed(rows[rows["detector"] == name]) for name in (one, other))
    seeds = [seed for seed in a if seed in b]
    if not seeds:
        raise ValueError(f"no seed has both {one!r} and {other!r}; expected one network at least that both have judged")
    for seed in seeds:
        if set(a[seed].index) != set(b[seed].index):
            raise ValueError(
                f"on {group} sets of seed {seed}, {one!r} was judged on {sorted(a[seed].index)} and {other!r} on "
                f"{sorted(b[seed].index)}; their means would compare the sets. Judge both on the same sets, or keep "
                f"the rows of those that both have: {sorted({*a[seed].index} & {*b[seed].index})}"
            )
    gap = [100 * (a[seed].astype(float).mean() - b[seed].astype(float).mean()) for seed in seeds]
    mean, low, _ = mean_interval(gap, CALLED)
    return SeedComparison(mean, mean - low, sum(DIRECTIONS[metric] * g > 0 for g in gap), len(gap), metric)


def _by_seed(rows: "pd.DataFrame") -> dict[int, "pd.Series"]:
    """The values of one detector by set, for each seed."""
    by_seed = counted_once(rows).dropna(subset="value").groupby("seed", sort=False)
    return {seed: own.set_index("ood_set")["value"] for seed, own in by_seed}


KEYS = ("detector", "group", "ood_set", "metric", "seed")


def checked_table(table: Any) -> None:
    """Raise ValueError when something is no table of `run_benchmark`: one value in [0, 1] or NaN under whole keys."""
    columns = getattr(table, "columns", None)
    if columns is None or (lacking := [name for name in (*KEYS, "value") if name not in columns]):
        what = f"a table without the columns {lacking}" if columns is not None else f"a {type(table).__name__}"
        raise ValueError(f"{what} was given; expected one from run_benchmark, or several on top of each other")
    if table.index.nlevels > 1 or table.index.name in KEYS:
        raise ValueError(f"the index of the table is {table.index.names}; expected columns alone: table.reset_index()")
    values = table["value"]
    good = values.map(lambda x: (isinstance(x, numbers.Real) and (x != x or 0 <= float(x) <= 1)) or x is None)
    if not good.all():
        raise ValueError(
            f"{int((~good).sum())} of {len(table)} values are no shares, the first of them "
            f"{values[~good].iloc[0]!r}; expected numbers between 0 and 1, or NaN for one that is not there"
        )
    if (missing := table[list(KEYS)].isna()).any(axis=None):
        names = [name for name in KEYS if missing[name].any()]
        raise ValueError(f"rows without {names}; expected each row to say what was judged where, and with which seed")


def counted_once(rows: "pd.DataFrame") -> "pd.DataFrame":
    """The rows of a benchmark table, each of which is there once: a mean over networks must not count one twice.

    Raises:
        ValueError: a detector has two values for the same set, metric and seed.
    """
    checked_table(rows)
    keys = list(KEYS)
    if (twice := rows.loc[rows.duplicated(keys), keys].drop_duplicates()).empty:
        return rows
    named = [f"{r.metric} of {r.detector!r} on {r.ood_set!r}, seed {r.seed}" for r in twice.head(3).itertuples()]
    more = f" and {len(twice) - 3} more" if len(twice) > 3 else ""
    raise ValueError(
        f"values that come more than once: {'; '.join(named)}{more}. Expected one row per detector, OOD set, metric "
        "and seed: give each network a seed of its own, `run_benchmark(..., seed=...)`, or leave out the repeated rows"
    )


def same_sets(rows: "pd.DataFrame") -> "pd.DataFrame":
    """The rows of one metric, of which means over the sets of a group can be compared: each is over the same sets.

    A value that is NaN is one that is not there.

    Raises:
        ValueError: a detector, on one of its seeds, was judged on other sets of a group than the rest.
    """
    rows = rows.dropna(subset="value")
    for group, own in rows.groupby("group", sort=False):
        judged = own.groupby(["detector", "seed"], sort=False)["ood_set"].agg(frozenset)
        every = frozenset().union(*judged)
        lacking = {who: sorted(every - sets) for who, sets in judged.items() if sets != every}
        if lacking:
            (detector, seed), sets = next(iter(lacking.items()))
            raise ValueError(
                f"of the {group} sets {sorted(every)}, {detector!r} was not judged on {sets} with seed {seed}"
                + (f" (and {len(lacking) - 1} more detectors or seeds lack sets)" if len(lacking) > 1 else "")
                + "; means over other sets cannot be compared. Judge all on the same sets, or keep those that all have"
            )
    return rows


def _paired(a: Tensor, b: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    a, b = checked_scores(a, f"{kind}_a"), checked_scores(b, f"{kind}_b")
    if len(a) != len(b):
        raise ValueError(
            f"{kind}_a holds {len(a)} scores and {kind}_b {len(b)}; they are paired entry by entry: let both detectors "
            f"score the same {kind.upper()} images, in the same order"
        )
    return a, b


def _delong(a: Scores, b: Scores) -> Variances:
    """Variances of the two areas and of their difference, from the share of the other set that each score beats."""
    shares = [(wins(known, unknown), wins(unknown, known)) for known, unknown in (a, b)]
    own = [sum(variance_of_mean(share) for share in both) for both in shares]
    return own[0], own[1], sum(variance_of_mean(x - y, single=1.0) for x, y in zip(*shares))


def wins(of: Tensor, against: Tensor) -> Tensor:
    """For each score, in the given order, the share of ``against`` below it; ties count one half."""
    ranked = ascending(against.to(torch.promote_types(of.dtype, against.dtype)))
    below, upto = (torch.searchsorted(ranked, of.contiguous().to(ranked.dtype), right=r) for r in (False, True))
    return (below + upto).double() / (2 * len(against))


def _bootstrap(pairs: Sequence[Scores], draws: int) -> Variances:
    """Variances of the two rates and of their difference, over draws of images."""
    known, unknown = pairs[0]
    size = max(1, 2**22 // (len(known) + len(unknown)))  # draws at once: bounds the memory
    generator = torch.Generator().manual_seed(0)
    rates = torch.cat(
        [
            torch.stack([_resampled_rate(*scores, *times) for scores in pairs])
            for start in range(0, draws, size)
            for times in [[_times(len(s), min(size, draws - start), generator).to(s.device) for s in pairs[0]]]
        ],
        1,
    )
    first, second, difference = torch.cat([rates, rates[:1] - rates[1:]]).var(1).tolist()
    return first, second, difference


def _times(n: int, draws: int, generator: torch.Generator) -> Tensor:
    """How often each of n images comes in each bootstrap draw, (draws, n)."""
    drawn = torch.randint(n, (draws, n), generator=generator, device="cpu")
    return torch.zeros(draws, n, dtype=torch.int32, device="cpu").scatter_add_(
        1, drawn, torch.ones_like(drawn, dtype=torch.int32)
    )


def _resampled_rate(known: Tensor, unknown: Tensor, known_times: Tensor, unknown_times: Tensor) -> Tensor:
    """Share of OOD accepted where 95 % of ID is, in each draw, (draws,)."""
    (known, by_known), (unknown, by_unknown) = known.sort(), unknown.sort()
    recalled = known_times[:, by_known].cumsum(1)
    rank = math.ceil(round(0.95 * len(known), 9))
    threshold = known[(recalled < rank).sum(1)]
    accepted = torch.searchsorted(unknown.to(known.dtype), threshold, right=True)
    passed = F.pad(unknown_times[:, by_unknown].cumsum(1), (1, 0)).gather(1, accepted[:, None])[:, 0]
    return passed.double() / len(unknown)


def _join(metric: str, found: Sequence[tuple[float, Interval]], variances: Variances, n: int) -> Comparison:
    (a, (low_a, high_a)), (b, (low_b, high_b)) = found
    own = math.sqrt(variances[0] * variances[1])
    r = max(-1.0, min(1.0, (variances[0] + variances[1] - variances[2]) / (2 * own))) if own > 0 else 0.0

    def reach(x: float, y: float) -> float:
        return math.sqrt(max(x * x - 2 * r * x * y + y * y, 0.0))

    difference, std = a - b, math.sqrt(variances[2])
    if std > 0:
        p_value = math.erfc(abs(difference) / std / math.sqrt(2))
    else:  # no image is torn: as certain as n of n tosses that show the same side
        p_value = 1.0 if difference == 0 else 2.0 ** (1 - n)
    low, high = difference - reach(a - low_a, high_b - b), difference + reach(high_a - a, b - low_b)
    return Comparison(metric, a, b, difference, low, high, p_value, r)
