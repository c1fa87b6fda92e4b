"""Which detector for this network?  The cheapest of those that may be the best, on images that are not judged on.

Larger score = more OOD.
"""

from collections.abc import Mapping
from typing import NamedTuple

from ood_lib.checks import check
from ood_lib.evaluation.metrics import auroc
from ood_lib.evaluation.verdict import SetScores, Verdict, score_verdicts

__all__ = ["Recommendation", "recommend"]


class Recommendation(NamedTuple):
    """What `recommend` chose, and against what.

    ``against_best`` holds for every detector its verdict against the best, in falling order of the mean AUROC; the best
    itself comes first.  ``candidates`` are those that are not surely worse.
    """

    detector: str
    best: str
    candidates: tuple[str, ...]
    against_best: dict[str, Verdict]


def recommend(
    scored: Mapping[str, SetScores], seconds: Mapping[str, float] | None = None, least: float = 0.0, slack: float = 0.02
) -> Recommendation:
    """The detector to use: the cheapest that is not surely worse than the one of the largest mean AUROC.

    Not surely worse: the paired interval of their difference holds zero.  On few images it may hold a large loss too,
    so that of these only detectors are taken whose own mean lies within `slack` of the best.

    The mean is that of the near and of the far sets, or of the only group.  A choice made on images says
    little about itself on the same images: choose on one half and judge on the other (`SetScores.halves`), or leave an
    OOD set out (`SetScores.only`).

    Args:
        scored: the scores of each detector on the same images.
        seconds: to score one image, for each detector; None: all cost the same.
        least: a cost up to this counts as none, such as some percent of what the network itself takes; of detectors of
            one cost the one with the largest AUROC is taken.
        slack: how much AUROC, by estimate, may be given up for a lower cost.

    Raises:
        ValueError: no detector, no OOD set, or a detector without its cost.

    Example:
        >>> import torch
        >>> x = torch.randn(2, 300, generator=torch.Generator().manual_seed(0))
        >>> good, poor = (SetScores(x[0], {"letters": x[1] + gap}, {}) for gap in (2.0, 0.5))
        >>> recommend({"poor": poor, "good": good}, {"poor": 1e-6, "good": 1e-3}).detector
        'good'
    """
    if not scored:
        raise ValueError("no detector was given; expected the scores of one at least")
    check("[0, inf)", "seconds an image, and a share of AUROC", least=least, slack=slack)
    if seconds is not None and (lacking := [name for name in scored if name not in seconds]):
        raise ValueError(f"there is no cost of {lacking}; expected the seconds an image of each detector")
    means = {name: _mean(s) for name, s in scored.items()}
    order = sorted(scored, key=lambda name: -means[name])
    against = {name: _whole(scored[name], scored[order[0]]) for name in order}
    candidates = tuple(name for name in order if against[name].high >= 0)
    cost = {name: max(least, seconds[name]) if seconds else 0.0 for name in candidates}
    close = [name for name in candidates if against[name].difference >= -slack]
    return Recommendation(min(close, key=lambda name: cost[name]), order[0], candidates, against)


def _mean(scored: SetScores) -> float:
    """Mean AUROC over the sets of a group, then over the groups."""
    groups = [[auroc(scored.test, x)[0] for x in sets.values()] for sets in scored.groups().values() if sets]
    if not groups:
        raise ValueError("the scores are of no OOD set; expected one at least, near or far")
    return sum(sum(group) / len(group) for group in groups) / len(groups)


def _whole(one: SetScores, other: SetScores) -> Verdict:
    """The verdict over all sets: the mean of both groups, or the one group there is."""
    return list(score_verdicts([(one, other)]).values())[-1]
