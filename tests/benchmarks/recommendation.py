"""How often is the recommended detector right, and what would a fixed rule have lost?  Over the banks that are shipped.

    python -m tests.benchmarks.recommendation [--draws 3] [--out FILE]

Each OOD set of each network is left out in turn. `ood.recommend` chooses on one half of the ID images and of the images
of the other sets, as the page *Audit your network* does. The choice is judged on the set that was left out, with the
other half of the ID images. Its opponent is the detector that is best on that set, which nobody can know before.
What a detector costs is measured here; a cost below a tenth of a millisecond an image is none. About two minutes.
"""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import torch

import ood_lib as ood
from ood_lib.features.bank import BenchmarkFeatures
from tests.benchmarks.measure import Store, processor_seconds

OUT = Path(__file__).parents[2] / "book/results/studies/recommendation.json"
BANKS = ("cifar10-resnet9", "cifar10-densenet", "cifar10-resnet56", "cifar100-densenet")
LEAST = 1e-4  # seconds an image that count as none


def detectors(x: BenchmarkFeatures) -> dict[str, ood.Detector]:
    """Those of the audit: the classical ones, WeiPer in its closed form, a Gaussian of features of length one."""
    if x.head is None:
        raise ValueError("a bank without a head was given; expected one of a classifier")
    own = ood.classical_detectors(x.head, x.train)
    return own | {"GMM, length 1": ood.GMMPrior(), "WeiPer+KLD": ood.WeiPer(x.head, repeats=None)}


def cost(detector: ood.Detector, x: BenchmarkFeatures) -> float:
    """Processor seconds an image of a fitted detector, the least of three runs."""
    return min(processor_seconds(lambda: detector.score(x.test))[0] for _ in range(3)) / len(x.test)


def trials(
    scored: Mapping[str, ood.SetScores], seconds: Mapping[str, float], seed: int
) -> Iterator[tuple[str, str, dict[str, ood.Verdict]]]:
    """For each OOD set: its name, the detector chosen without it, and the verdict of each detector against the best."""
    halves = {name: s.halves(seed) for name, s in scored.items()}
    sets = [(group, n) for group, own in next(iter(scored.values())).groups().items() for n in own]
    for left in sets:
        seen = {n: a.only([one for one in sets if one != left]) for n, (a, _) in halves.items()}
        unseen = {n: b.only([left]) for n, (_, b) in halves.items()}
        yield left[1], ood.recommend(seen, seconds, LEAST).detector, ood.recommend(unseen).against_best


def row(x: BenchmarkFeatures, draws: int) -> dict[str, Any]:
    """Of one network: for each set what was taken, and what each rule loses there, in AUROC points."""
    own = detectors(x)
    scored = {name: ood.SetScores.of(detector, x) for name, detector in own.items()}
    seconds = {name: cost(detector, x) for name, detector in own.items()}
    found: dict[str, Any] = {}
    for draw in range(draws):
        for left, taken, against in trials(scored, seconds, draw):
            lost = {"recommended": -100 * against[taken].difference} | {
                n: -100 * v.difference for n, v in against.items()
            }
            good = {"recommended": against[taken].high >= 0} | {n: v.high >= 0 for n, v in against.items()}
            kept = found.setdefault(left, {"taken": [], "lost": [], "as_good": []})
            for key, value in (("taken", taken), ("lost", lost), ("as_good", good)):
                kept[key].append(value)
    for kept in found.values():  # the draws are halves of the same images: their mean is one trial
        for key in ("lost", "as_good"):
            kept[key] = {rule: round(mean(one[rule] for one in kept[key]), 4) for rule in kept[key][0]}
    return {"microseconds": {name: round(1e6 * s, 1) for name, s in seconds.items()}, "sets": found}


def main() -> None:
    """Measure, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=3, help="of the halves, for each set")
    parser.add_argument("--out", type=Path, default=OUT, help="the file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    origin = ood.provenance("python -m tests.benchmarks.recommendation")
    store = Store(options.out, BANKS, draws=options.draws)
    store.fill(BANKS, lambda name: row(ood.load_bank(name), options.draws), again=True, provenance=origin)


if __name__ == "__main__":
    main()
