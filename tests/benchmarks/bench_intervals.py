"""How often intervals hold the truth, and how often nothing is called something: the tables behind two choices.

    python -m tests.benchmarks.bench_intervals [--parts fpr calls verdicts] [--out FILE]

``fpr``: the interval of FPR95 over few and many images, beside that of a bootstrap.  ``calls``: false calls of
`compare_over_seeds`, where two detectors are equally good on average and differ by skewed amounts from network to
network.  ``verdicts``: the same of `verdicts`, where the error of the images comes on top.

The tables are in ``book/results/studies/intervals.json``; the page of findings quotes them.  About two minutes.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import norm

import ood_lib as ood
from ood_lib.evaluation.metrics import CALLED, fpr_at_tpr, student
from ood_lib.evaluation.verdict import half_width
from tests.benchmarks.measure import Store

OUT = Path(__file__).parents[2] / "book/results/studies/intervals.json"

Random = np.random.Generator
Row = dict[str, Any]

LAWS: dict[str, Callable[[Random, tuple[int, ...]], np.ndarray]] = {  # mean 0, standard deviation 1 but for the last
    "normal": lambda random, shape: random.standard_normal(shape),
    "uniform": lambda random, shape: random.uniform(-(3**0.5), 3**0.5, shape),
    "chi-squared, 3": lambda random, shape: (random.chisquare(3, shape) - 3) / 6**0.5,
    "exponential": lambda random, shape: random.exponential(size=shape) - 1,
    "log-normal, 0.75": lambda random, shape: lognormal(random, 0.75, shape),
    "log-normal, 1": lambda random, shape: lognormal(random, 1.0, shape),
    "one in ten fails": lambda random, shape: random.standard_normal(shape) + 5 * ((random.random(shape) < 0.1) - 0.1),
}


def lognormal(random: Random, s: float, shape: tuple[int, ...]) -> np.ndarray:
    variance = math.expm1(s * s) * math.exp(s * s)
    return (random.lognormal(0, s, shape) - math.exp(s * s / 2)) / math.sqrt(variance)


def bootstrap(random: Random, known: np.ndarray, unknown: np.ndarray, draws: int = 2000) -> tuple[float, float]:
    """What resampling the images would give: a Beta rank, and a binomial count."""
    n, m = len(known), len(unknown)
    rank = math.ceil(round(0.95 * n, 9))
    ranks = (random.beta(rank, n + 1 - rank, draws) * n).astype(int).clip(max=n - 1)
    accepted = np.searchsorted(np.sort(unknown), np.sort(known)[ranks], side="right")
    low, high = np.quantile(random.binomial(m, accepted / m) / m, [0.025, 0.975])
    return low, high


def fpr(random: Random, runs: int = 1000) -> list[Row]:
    """FPR95: how often its interval holds the truth and how wide it is on average, and the same of a bootstrap."""
    rows = []
    for n in (20, 50, 100, 1000):
        for m in (50, 1000):
            for name, shift in (("easy", 4.0), ("medium", 2.0), ("hard", 0.5)):
                truth, held, width = norm.cdf(norm.ppf(0.95) - shift), np.zeros(2), np.zeros(2)
                for _ in range(runs):
                    known, unknown = random.standard_normal(n), random.standard_normal(m) + shift
                    own = fpr_at_tpr(torch.from_numpy(known), torch.from_numpy(unknown))[1]
                    for i, (low, high) in enumerate((own, bootstrap(random, known, unknown))):
                        held[i] += low <= truth <= high
                        width[i] += high - low
                (a, b), (v, w) = held / runs, width / runs
                rows.append(
                    {"runs": runs, "id": n, "ood": m, "task": name, "truth": truth, "covered": a, "width": v,
                     "bootstrap_covered": b, "bootstrap_width": w}
                )  # fmt: skip
    return rows


def calls(random: Random, runs: int = 200_000) -> list[Row]:
    """Share of false calls over several networks: Student's t at 95 %, and at 99 % as `compare_over_seeds` calls."""
    rows = []
    for n in (3, 4, 5, 8, 10):
        for name, draw in LAWS.items():
            x = draw(random, (runs, n))
            reach = np.abs(x.mean(1)) / (x.std(1, ddof=1) / n**0.5)
            wide, called = ((reach > student(n, level)).mean() for level in (0.95, CALLED))
            rows.append({"runs": runs, "networks": n, "law": name, "at_95": wide, "called": called})
    return rows


def verdicts(random: Random, runs: int = 100_000) -> list[Row]:
    """Share of false calls of verdicts, without and with kappa; ratio: spread over networks to error of images."""
    rows = []
    for n in (3, 5):
        for ratio in (0.5, 1.0, 2.0, 4.0, 1e9):
            for name, draw in LAWS.items():
                x, images = draw(random, (runs, n)), 1 / (n * ratio**2)
                found = x.mean(1) + images**0.5 * random.standard_normal(runs)
                spread = x.var(1, ddof=1) / n
                reaches = [half_width(images, spread, n, level) for level in (0.95, CALLED)]
                shares = [float((np.abs(found) > reach).mean()) for reach in reaches]
                row = {"runs": runs, "networks": n, "ratio": ratio, "law": name}
                rows.append(row | dict(zip(("without", "with"), shares)))
    return rows


PARTS: dict[str, Callable[..., list[Row]]] = {"fpr": fpr, "calls": calls, "verdicts": verdicts}


def measured(name: str, **runs: int) -> dict[str, Any]:
    """One part, with random numbers of its own; shares to four digits."""
    rows = PARTS[name](np.random.default_rng(list(PARTS).index(name)), **runs)
    return {"rows": [{k: round(float(v), 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows]}


def main() -> None:
    """Simulate, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="some of the parts")
    parser.add_argument("--out", type=Path, default=OUT, help="the file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    origin = ood.provenance("python -m tests.benchmarks.bench_intervals")
    Store(options.out, [*PARTS]).fill(options.parts, measured, again=True, provenance=origin)


if __name__ == "__main__":
    main()
