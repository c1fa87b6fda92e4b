"""Whether the images that come are still like the calibration set: evidence that grows when they are not."""

import bisect
import random
from typing import Any

import numpy as np

from ood_lib.checks import check
from ood_lib.evaluation.metrics import checked_scores

__all__ = ["Watch"]

BLOCK = 1000  # scores that are kept apart before they are merged into the others


class Watch:
    r"""Evidence that scores have changed since calibration, image by image; large evidence says: recalibrate.

    Each score is ranked among the calibration scores and all scores seen since.  As long as they are exchangeable, its
    rank p (ties broken at random) is uniform on (0, 1) and independent of those before it, for every detector and
    every number of calibration images.  A bet f on p has mean 1 then, and the statistic of Shiryaev and Roberts,

    .. math:: R_t = (1 + R_{t-1})\, f(p_t), \qquad \mathrm{E}[R_t] = t,

    reaches a level c after c images at the soonest, on average.  Half of the bets are that alarms, :math:`p \le
    \alpha`, come two, four or eight times as often; the others lean towards small or towards large p.  The evidence is
    the mean of their statistics.

    All scores are kept, 8 bytes each, so a watch over a stream without end grows with it: begin a new one now and then,
    with a fresh calibration.

    Args:
        calibration: scores of held-out ID images (N,), a tensor, an array or a list: ``detector.calibration``.
        alpha: share of ID images that are refused, 1 - tpr.
        patience: c, images to the first false alarm: no fewer, on average.
        seed: of the ties.

    Raises:
        ValueError: alpha is not in (0, 0.1], patience is not above 1, or there is no calibration score.

    References:
        Vovk, Gammerman & Shafer, Algorithmic Learning in a Random World, 2005; Volkhonskiy et al., Inductive Conformal
        Martingales for Change-Point Detection, COPA 2017.

    Example:
        >>> import torch
        >>> watch = Watch(torch.linspace(-2, 2, 500), patience=10_000)
        >>> watch.update([3.0] * 40) >= watch.patience
        True
    """

    def __init__(self, calibration: Any, alpha: float = 0.05, patience: float = 100_000, seed: int = 0) -> None:
        check("(0, 0.1]", "a share of ID images that are refused", alpha=alpha)
        check("(1, inf)", "a number of images", patience=patience)
        self.known = np.sort(_doubles(calibration, "calibration"))
        self.fresh: list[float] = []  # those not yet among the known, sorted as well
        self.alpha, self.patience, self.random = alpha, patience, random.Random(seed)
        self.rates, self.leans = [2 * alpha, 4 * alpha, 8 * alpha], [0.5, 1.0, -0.5]
        self.statistics = [0.0] * 6

    def update(self, scores: Any) -> float:
        """The evidence after these scores, in the order in which they came; at `patience` or above it is an alarm."""
        new = _doubles(scores, "scores")
        for start in range(0, len(new), BLOCK):
            self._take(new[start : start + BLOCK])
        return sum(self.statistics) / len(self.statistics)

    def _take(self, scores: np.ndarray) -> None:
        below, upto = self.known.searchsorted(scores).tolist(), self.known.searchsorted(scores, "right").tolist()
        for score, low, high in zip(scores.tolist(), below, upto):
            seen, place = len(self.known) + len(self.fresh), bisect.bisect_right(self.fresh, score)
            low, high = low + bisect.bisect_left(self.fresh, score), high + place
            p = (seen - high + self.random.random() * (high - low + 1)) / (seen + 1)
            self.fresh.insert(place, score)
            bets = [q / self.alpha if p <= self.alpha else (1 - q) / (1 - self.alpha) for q in self.rates]
            bets += [1 + lean * (1 - 2 * p) for lean in self.leans]
            self.statistics = [(1 + r) * bet for r, bet in zip(self.statistics, bets)]
        if len(self.fresh) >= BLOCK:
            self.known, self.fresh = np.insert(self.known, self.known.searchsorted(self.fresh), self.fresh), []


def _doubles(scores: Any, name: str) -> np.ndarray:
    return checked_scores(scores, name).double().cpu().numpy()
