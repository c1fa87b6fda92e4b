"""How the cost of fit and score grows: with the number of images, the width, the classes, the heads, the OOD sets.

    python -m tests.benchmarks.growth [--rows KNN ViM] [--again] [--out FILE]

One quantity is doubled at a time, on one thread; a second run measures only what is missing.  At the end all of
them are made larger together, once: how far that lies from what the slopes predict is what an extrapolation is worth.
About five minutes.
"""

import argparse
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import ood_lib as ood
from ood_lib.features.bank import BenchmarkFeatures
from ood_lib.features.features import Features
from tests.benchmarks.measure import Store, in_child, machine, memory, processor_seconds

OUT = Path(__file__).parents[2] / "book/results/speed/growth.json"

BASE = {"train": 5000, "test": 1000, "width": 128, "classes": 10}  # images to fit to and to score
STEPS: dict[str, tuple[int, ...]] = {
    "train": (5000, 10_000, 20_000, 40_000), "test": (1000, 2000, 4000), "width": (128, 256, 512),
    "classes": (10, 20, 40),
}  # fmt: skip
TOGETHER = {"train": 20_000, "test": 2000, "width": 256, "classes": 20}
HEADS, SETS = (25, 50, 100, 200), (1, 2, 4, 8)

DETECTORS: dict[str, Callable[[nn.Linear], ood.Detector]] = {
    "Energy": lambda head: ood.Energy(),
    "Mahalanobis": lambda head: ood.Mahalanobis(),
    "ViM": lambda head: ood.ViM(head),
    "KNN": lambda head: ood.KNN(50),
    "GMM": lambda head: ood.GMM(),
    "WeiPer+KLD": lambda head: ood.WeiPer(head),
}


@cache
def made(n: int, width: int, classes: int, seed: int) -> tuple[nn.Linear, Features]:
    """A head and rectified features around the means of its classes."""
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    head = nn.Linear(width, classes).requires_grad_(False)
    head.weight.data, head.bias.data = centres / width**0.5, torch.zeros(classes)
    labels = torch.arange(n) % classes
    noise = torch.randn(n, width, generator=torch.Generator().manual_seed(seed))
    z = (noise + centres[labels]).relu()
    return head, Features(penultimate=z, logits=head(z), labels=labels)


def point(make: Callable[[nn.Linear], ood.Detector], shape: dict[str, int], rounds: int) -> dict[str, Any]:
    """Processor seconds of fit and of score, and the memory of both."""
    head, train = made(shape["train"], shape["width"], shape["classes"], 0)
    _, test = made(shape["test"], shape["width"], shape["classes"], 1)

    def runs() -> dict[str, Any]:
        make(head).fit(train[:200]).score(test[:50])  # loads what is loaded once
        found: dict[str, Any] = {"memory_mb": round(memory(lambda: make(head).fit(train).score(test)), 1)}
        fitted = [
            (detector := make(head), processor_seconds(lambda d=detector: d.fit(train))[0]) for _ in range(rounds)
        ]
        found["fit"] = [round(seconds, 7) for _, seconds in fitted]
        found["score"] = [round(processor_seconds(lambda d=d: d.score(test))[0], 7) for d, _ in fitted]
        return found

    return shape | in_child(runs)


def detector_row(name: str, rounds: int) -> dict[str, Any]:
    """All points of a detector: one quantity at a time, and all together."""
    measure = partial(point, DETECTORS[name], rounds=rounds)
    return {
        axis: [measure({**BASE, axis: step}) for step in steps] for axis, steps in STEPS.items()
    } | {"together": [measure(TOGETHER)]}  # fmt: skip


def heads_row(rounds: int) -> dict[str, Any]:
    """WeiPer by the number of perturbed heads."""
    return {
        "heads": [
            point(lambda head, r=r: ood.WeiPer(head, repeats=r), BASE, rounds) | {"heads": r} for r in HEADS
        ]
    }  # fmt: skip


def sets_row(rounds: int) -> dict[str, Any]:
    """A whole benchmark by the number of OOD sets: four detectors, all metrics with their intervals."""
    head, train = made(BASE["train"], BASE["width"], BASE["classes"], 0)
    _, test = made(BASE["test"], BASE["width"], BASE["classes"], 1)
    found = []
    for count in SETS:
        far = {
            f"set {i}": Features(**{**test.tensors(), "penultimate": test.penultimate + 0.1 * i}) for i in range(count)
        }
        bench = BenchmarkFeatures(train, test, test, {}, far, head)

        def once(bench: BenchmarkFeatures = bench) -> torch.Tensor:
            chosen = {
                name: make(head) for name, make in DETECTORS.items() if name in ("Energy", "Mahalanobis", "ViM", "KNN")
            }
            ood.run_benchmark(chosen, bench)
            return torch.empty(0)

        runs = in_child(lambda once=once: [round(processor_seconds(once)[0], 7) for _ in range(rounds + 1)][1:])
        found.append({"sets": count, "score": runs})
    return {"sets": found}


def row(name: str, rounds: int = 5) -> dict[str, Any]:
    """The points of one row."""
    made.cache_clear()
    special = {"heads of WeiPer": heads_row, "OOD sets": sets_row}
    return special[name](rounds) if name in special else detector_row(name, rounds)


NAMES = (*DETECTORS, "heads of WeiPer", "OOD sets")


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=NAMES, default=list(NAMES), metavar="ROW", help="some of the rows")
    parser.add_argument("--again", action="store_true", help="measure what the file holds already, too")
    parser.add_argument("--out", type=Path, default=OUT, help="the file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    store = Store(options.out, NAMES, command="python -m tests.benchmarks.growth", machine=machine(), base=BASE)
    store.fill(options.rows, row, options.again)


if __name__ == "__main__":
    main()
