"""How often intervals hold the truth, and how often nothing is called something: the tables behind two choices.

    python tests/benchmarks/bench_intervals.py [fpr | calls | verdicts]

``fpr``: the interval of FPR95 over few and many images, beside that of a bootstrap.  ``calls``: false calls of
`compare_over_seeds`, where two detectors are equally good on average and differ by skewed amounts from network to
network.  ``verdicts``: the same of `verdicts`, where the error of the images comes on top.

FPR95, share of 1500 runs in which the interval holds the truth, and its mean width:

    ID    OOD   easy (.009)    medium (.361)   hard (.874)
    20     50   .998  1.00     .994  .90       .995  .43
    20   1000   .995  1.00     .987  .86       .989  .36
    50     50   .997  1.00     .996  .86       .998  .34
    50   1000   .991  1.00     .989  .81       .991  .28
    100    50   .997   .14     .990  .54       .989  .29
    100  1000   .984   .08     .991  .45       .979  .20
    1000   50   .995   .09     .973  .30       .984  .21
    1000 1000   .972   .02     .953  .12       .979  .07

False calls in 100 at Student's t of 95 % and of 99 %, 200,000 runs:

    networks            3             5             8             10
    normal              4.9   1.0     5.0   1.0     5.0   1.0     5.0   1.0
    uniform             7.8   2.1     6.5   2.0     5.5   1.6     5.4   1.4
    chi-squared, 3      9.2   2.5     9.6   3.5     8.8   3.5     8.5   3.4
    exponential        11.6   3.7    11.9   5.1    10.6   4.9    10.0   4.6
    log-normal, 0.75   11.2   3.0    12.4   5.0    12.0   5.7    11.4   5.4
    log-normal, 1      16.3   5.4    17.8   8.7    16.9   9.5    16.1   9.1
    one in ten fails    6.3   1.3     8.3   2.0    10.3   3.1    10.6   3.6

False calls in 100 of verdicts over three networks, without and with kappa, by the spread of networks over the error of
the images, 100,000 runs:

    ratio               0.5           1             2             4
    normal              5.0   1.7     5.8   1.5     7.7   1.7     7.6   1.5
    exponential         4.9   2.6     6.1   2.8    11.3   4.5    15.4   5.4
    log-normal, 0.75    4.8   2.6     5.9   2.7    10.6   4.1    15.2   4.8
    log-normal, 1       4.8   3.0     5.6   3.1    10.3   5.1    19.1   7.8
"""

import math
import sys
from collections.abc import Callable

import numpy as np
import torch
from scipy.stats import norm, t

from ood_lib.evaluation.metrics import CALLED, fpr_at_tpr, student

Draw = Callable[[tuple[int, ...]], np.ndarray]

RANDOM = np.random.default_rng(0)

LAWS: dict[str, Draw] = {  # mean 0, standard deviation 1 but for the last
    "normal": RANDOM.standard_normal,
    "uniform": lambda shape: RANDOM.uniform(-(3**0.5), 3**0.5, shape),
    "chi-squared, 3": lambda shape: (RANDOM.chisquare(3, shape) - 3) / 6**0.5,
    "exponential": lambda shape: RANDOM.exponential(size=shape) - 1,
    "log-normal, 0.75": lambda shape: lognormal(0.75, shape),
    "log-normal, 1": lambda shape: lognormal(1.0, shape),
    "one in ten fails": lambda shape: RANDOM.standard_normal(shape) + 5 * ((RANDOM.random(shape) < 0.1) - 0.1),
}


def lognormal(s: float, shape: tuple[int, ...]) -> np.ndarray:
    variance = math.expm1(s * s) * math.exp(s * s)
    return (RANDOM.lognormal(0, s, shape) - math.exp(s * s / 2)) / math.sqrt(variance)


def bootstrap(known: np.ndarray, unknown: np.ndarray, draws: int = 2000) -> tuple[float, float]:
    """What resampling the images would give: a Beta rank, and a binomial count."""
    n, m = len(known), len(unknown)
    rank = math.ceil(round(0.95 * n, 9))
    ranks = (RANDOM.beta(rank, n + 1 - rank, draws) * n).astype(int).clip(max=n - 1)
    accepted = np.searchsorted(np.sort(unknown), np.sort(known)[ranks], side="right")
    low, high = np.quantile(RANDOM.binomial(m, accepted / m) / m, [0.025, 0.975])
    return low, high


def fpr(runs: int = 1000) -> None:
    print(f"FPR95, {runs} runs: how often the interval holds the truth, and its mean width; of a bootstrap in brackets")
    for n in (20, 50, 100, 1000):
        for m in (50, 1000):
            for name, shift in (("easy", 4.0), ("medium", 2.0), ("hard", 0.5)):
                truth, held, width = norm.cdf(norm.ppf(0.95) - shift), np.zeros(2), np.zeros(2)
                for _ in range(runs):
                    known, unknown = RANDOM.standard_normal(n), RANDOM.standard_normal(m) + shift
                    own = fpr_at_tpr(torch.from_numpy(known), torch.from_numpy(unknown))[1]
                    for i, (low, high) in enumerate((own, bootstrap(known, unknown))):
                        held[i] += low <= truth <= high
                        width[i] += high - low
                (a, b), (v, w) = held / runs, width / runs
                print(f"{n:5} ID {m:5} OOD {name:7} truth {truth:.3f}: {a:.3f} width {v:.2f} ({b:.3f} width {w:.2f})")


def calls(runs: int = 200_000) -> None:
    print("false calls in 100, Student's t at 95 % and, as compare_over_seeds calls, at 99 %")
    for n in (3, 4, 5, 8, 10):
        for name, draw in LAWS.items():
            x = draw((runs, n))
            reach = np.abs(x.mean(1)) / (x.std(1, ddof=1) / n**0.5)
            shares = (100 * (reach > student(n, level)).mean() for level in (0.95, CALLED))
            print(f"{n:3} networks, {name:17} {' '.join(f'{share:5.1f}' for share in shares)}")


def verdicts(runs: int = 100_000) -> None:
    print("false calls in 100 of verdicts: without and with the factor kappa; spread over networks to error of images")
    for n in (3, 5):
        for ratio in (0.5, 1.0, 2.0, 4.0, 1e9):
            for name, draw in LAWS.items():
                x, images = draw((runs, n)), 1 / (n * ratio**2)
                found = x.mean(1) + images**0.5 * RANDOM.standard_normal(runs)
                shares = []
                for kappa in (1.0, student(n, CALLED) / student(n)):
                    networks = kappa**2 * x.var(1, ddof=1) / n
                    freedom = (images + networks) ** 2 / (networks**2 / (n - 1))
                    wrong = np.abs(found) > t.ppf(0.975, freedom) * np.sqrt(images + networks)
                    shares.append(100 * wrong.mean())
                print(f"{n:3} networks, {ratio:g}: {name:17} {' '.join(f'{share:5.1f}' for share in shares)}")


if __name__ == "__main__":
    for which in sys.argv[1:] or ("fpr", "calls", "verdicts"):
        {"fpr": fpr, "calls": calls, "verdicts": verdicts}[which]()
