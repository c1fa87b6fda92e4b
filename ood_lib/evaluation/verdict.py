"""Is a method better than its baseline on this network?  One answer for each group of OOD sets, with its interval.

Larger score = more OOD.  What is compared is the AUROC, paired image by image and network by network.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from ood_lib.detectors.detector import Detector
from ood_lib.evaluation.comparison import wins
from ood_lib.evaluation.metrics import CALLED, as_percent, student, variance_of_mean
from ood_lib.extras import need
from ood_lib.features.bank import BenchmarkFeatures
from ood_lib.features.features import Features

__all__ = ["SetScores", "Verdict", "half_width", "score_verdicts", "tally", "verdicts"]

OodSet = tuple[str, str]  # group and name
LEVEL = 0.01  # an interval that stays within one point of zero says that nothing is gained that matters


class Verdict(NamedTuple):
    """Mean AUROC of a method minus that of its baseline, with the ends of its interval; all shares.

    ``a`` and ``b`` are the two means themselves.  ``word`` is what may be said of the difference, and the text of a
    verdict is number, interval and word.
    """

    a: float
    b: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        """Of the two means."""
        return self.a - self.b

    @property
    def word(self) -> str:
        """``better`` or ``worse`` where the interval leaves out zero, ``level`` within a point, else ``cannot tell``.

        A difference that shows as 0.0 points is level, however sure its sign.
        """
        if -LEVEL < self.low and self.high < LEVEL and (self.low <= 0 <= self.high or abs(self.difference) < 0.0005):
            return "level"
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "cannot tell"

    def __str__(self) -> str:
        return f"{as_percent(self.difference, self.low, self.high, signed=True)} {self.word}"


@dataclass(frozen=True, eq=False)
class SetScores:
    """Scores of one detector on the images of a benchmark, larger = more OOD.

    Args:
        test: (N,) of the ID test images.
        near, far: (M,) of each OOD set, by name.

    Example:
        >>> a, b = SetScores(torch.arange(6.0), {"letters": torch.arange(9.0)}, {}).halves(seed=0)
        >>> len(a.test), len(b.near["letters"])
        (3, 4)
    """

    test: Tensor
    near: dict[str, Tensor]
    far: dict[str, Tensor]

    @classmethod
    def of(cls, detector: Detector, features: BenchmarkFeatures) -> Self:
        """The scores of a detector; one that is not fitted is fitted on the features, `Detector.fits`."""
        if not detector.ready:
            detector.fit(features.train, features.val)
        near, far = ({n: detector.score(x) for n, x in sets.items()} for sets in features.groups().values())
        return cls(detector.score(features.test), near, far)

    def groups(self) -> dict[str, dict[str, Tensor]]:
        """The OOD sets by group name."""
        return {"near": self.near, "far": self.far}

    def only(self, kept: Collection[OodSet]) -> Self:
        """The same ID images, and those OOD sets whose (group, name) are kept."""
        near, far = ({n: x for n, x in sets.items() if (g, n) in kept} for g, sets in self.groups().items())
        return type(self)(self.test, near, far)

    def halves(self, seed: int = 0) -> tuple[Self, Self]:
        """Two with half of the images of each set, drawn at random: the same images for each detector.

        Raises:
            ValueError: a set has a single image.
        """

        def drawn(x: Tensor, part: int) -> Tensor:
            if len(x) < 2:
                raise ValueError("a set of a single image was given; expected two at least, one for each half")
            order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)
            return x[order[: (len(x) + 1) // 2] if part == 0 else order[(len(x) + 1) // 2 :]]

        near, far = ([{n: drawn(x, i) for n, x in sets.items()} for i in (0, 1)] for sets in self.groups().values())
        first, second = (type(self)(drawn(self.test, i), near[i], far[i]) for i in (0, 1))
        return first, second


def verdicts(compared: Iterable[tuple[BenchmarkFeatures, Detector, Detector]]) -> dict[str, Verdict]:
    r"""A method against its baseline on one or several networks: on near sets, far sets, and the mean of both.

    The difference of two AUROCs is a mean over images (DeLong). Over the ID images it is the mean share of OOD images
    that the method ranks above the image and the baseline does not, and likewise over the OOD images. Means over OOD
    sets, over groups and over networks are means of the same kind. So the variance of the result is that of the images
    plus that of the networks, where the ID images are shared by all sets:

    .. math:: \sigma^2 = \frac{\mathrm{var}_{\mathrm{ID}}}{N} + \sum_s w_s^2 \frac{\mathrm{var}_s}{M_s}
              + \kappa^2 \frac{\mathrm{var}_{\mathrm{networks}}}{n}

    The interval reaches Student's t times :math:`\sigma`, with Satterthwaite's degrees of freedom.  With one network it
    speaks of other images and of this network; with several, which are several seeds of a recipe, also of other seeds.
    Networks differ by skewed amounts, and few of them hide it.  So :math:`\kappa` is Student's t at 99 % over that at
    95 %, 2.3 for three networks.  With it at most about 5 of 100 verdicts of no true difference are wrong, also for
    exponential differences; without it up to 15 are (tests/benchmarks/bench_intervals.py).

    Args:
        compared: for each network its features, the method, and the baseline.  A detector that is not fitted is fitted
            on the features, `Detector.fits`; so each network has detectors of its own.  Several seeds of a method on
            one network are several entries.

    Returns:
        ``"near"``, ``"far"`` and ``"mean"``, of those groups that the benchmark has; ``"mean"`` needs both.

    Raises:
        ValueError: nothing to compare; networks that were shown different images; no OOD set; one detector for several
            networks, which would score all of them by what it learnt of the first.

    References:
        DeLong, DeLong & Clarke-Pearson, Biometrics 1988; Satterthwaite, An Approximate Distribution of Estimates of
        Variance Components, Biometrics Bulletin 1946.

    Example:
        >>> noise = torch.randn(3, 400, 1, generator=torch.Generator().manual_seed(0))
        >>> from ood_lib import Features, MSP, Energy
        >>> x, near = (Features(logits=torch.cat([v, -v], 1)) for v in (3 * noise[0], noise[1]))
        >>> found = verdicts([(BenchmarkFeatures(x, x, x, {"other": near}, {}), Energy(), MSP())])
        >>> print(found["near"])
        +0.0 [+0.0, +0.0] level
    """
    met: dict[int, tuple[Detector, Features]] = {}
    scored = []
    for features, *pair in compared:
        for detector in pair:
            _, rows = met.setdefault(id(detector), (detector, features.train))  # both live on: no other gets their id
            if detector.needs_fit and rows is not features.train:
                raise ValueError(
                    f"one {type(detector).__name__} was given for several networks; expected one for each, as it keeps "
                    "what it learnt of the first: make it inside the loop over the networks, or copy it"
                )
        scored.append((SetScores.of(pair[0], features), SetScores.of(pair[1], features)))
    return score_verdicts(scored)


def score_verdicts(compared: Sequence[tuple[SetScores, SetScores]]) -> dict[str, Verdict]:
    """`verdicts` of scores that are there already: those of the method and of its baseline, for each network.

    Both are of the same images, in the same order.

    Raises:
        ValueError: nothing to compare; pairs that were shown different images; no OOD set.

    Example:
        >>> a = SetScores(torch.tensor([0.0, 0.1, 0.2]), {}, {"noise": torch.tensor([0.5, 0.6, 0.7])})
        >>> score_verdicts([(a, a)])["far"].word
        'level'
    """
    scored = [s for pair in compared for s in pair]
    sets = {tuple((g, n, len(x)) for g, own in s.groups().items() for n, x in own.items()) for s in scored}
    known = {len(s.test) for s in scored}
    if len(sets) != 1 or len(known) != 1:
        raise ValueError(
            f"{len(compared)} networks with {sorted(known)} ID images and OOD sets {sorted(sets)} were given; expected "
            "one at least, and all of them shown the same images: make one verdict for each benchmark"
        )
    named = [(group, name) for group, name, _ in next(iter(sets))]
    if not named:
        raise ValueError("the benchmark has no OOD set; expected one at least, near or far")
    areas = torch.zeros(len(named), 2, dtype=torch.float64, device="cpu")
    gains: list[dict[OodSet, tuple[Tensor, Tensor]]] = []
    for pair in compared:
        gain = {}
        for row, (group, name) in enumerate(named):
            both = [(s.test, s.groups()[group][name]) for s in pair]
            above = [wins(o, k) for k, o in both]  # of each OOD image: the share of ID images below it
            below = [1 - wins(k, o) for k, o in both]  # of each ID image: the share of OOD images above it
            areas[row] += torch.stack([x.mean() for x in above]).cpu() / len(compared)
            gain[group, name] = (below[0] - below[1]).cpu(), (above[0] - above[1]).cpu()
        gains.append(gain)
    groups = {g: [s for s in named if s[0] == g] for g in ("near", "far")}
    weights = {g: dict.fromkeys(own, 1 / len(own)) for g, own in groups.items() if own}
    if len(weights) == 2:
        weights["mean"] = {s: w / 2 for g in ("near", "far") for s, w in weights[g].items()}
    return {g: _verdict(w, dict(zip(named, areas.tolist())), gains) for g, w in weights.items()}


def _verdict(
    weights: Mapping[OodSet, float],
    areas: Mapping[OodSet, Sequence[float]],
    gains: Sequence[Mapping[OodSet, tuple[Tensor, Tensor]]],
) -> Verdict:
    a, b = (sum(w * areas[s][side] for s, w in weights.items()) for side in (0, 1))
    known = torch.stack([torch.stack([w * gain[s][0] for s, w in weights.items()]).sum(0) for gain in gains])  # (n, N)
    images = variance_of_mean(known.mean(0), single=1.0)
    for s, w in weights.items():
        images += w**2 * variance_of_mean(torch.stack([gain[s][1] for gain in gains]).mean(0), single=1.0)
    n = len(gains)
    networks = known.mean(1).var().item() / n if n > 1 else 0.0
    half = float(half_width(images, networks, n))
    return Verdict(a, b, max(-1.0, a - b - half), min(1.0, a - b + half))


def half_width(images: Any, networks: Any, n: int, level: float = CALLED) -> Any:
    """Half of the interval of `verdicts`; of arrays, that of each entry.

    Args:
        images: variance of the mean difference over other images.
        networks: variance of the mean of n networks, before kappa widens it; 0 = one network.
        n: how many networks.
        level: of the Student's t that kappa takes; 0.95 = no widening.
    """
    wider = networks * (student(n, level) / student(n)) ** 2 if n > 1 else 0.0
    variance = images + wider
    with np.errstate(divide="ignore", invalid="ignore"):  # without a spread of networks: infinite, as of a normal
        freedom = np.nan_to_num((n - 1) * np.divide(variance, wider) ** 2, nan=np.inf, posinf=np.inf)
    return need("scipy.stats").t.ppf(0.975, freedom) * np.sqrt(variance)


def tally(found: Mapping[str, Verdict]) -> str:
    """Verdicts by the name of the network as one clause: ``better on ResNet-9 and DenseNet, cannot tell on digits``.

    Example:
        >>> sure, unsure = Verdict(0.9, 0.8, 0.05, 0.15), Verdict(0.7, 0.7, -0.2, 0.2)
        >>> tally({"A": sure, "B": sure, "C": unsure})
        'better on A and B, cannot tell on C'
    """
    by_word: dict[str, list[str]] = {}
    for name, verdict in found.items():
        by_word.setdefault(verdict.word, []).append(name)
    order = [word for word in ("better", "level", "worse", "cannot tell") if word in by_word]
    return ", ".join(f"{word} on {_listed(by_word[word])}" for word in order)


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
