"""How fast WeiPer is, and how much memory it takes beside its input.

    python tests/benchmarks/bench_weiper.py [--quick] [--threads 2]

Two tables.  The first scores 10,000 images with a CIFAR-10 head (512 units, 10 classes, r = 100, 100 bins) in three
ways: with a histogram that compares every value with every edge, with the library's histogram, and in the limit of
infinitely many repeats.  The second fits and scores an ImageNet head (2048 units, 1000 classes, r = 100) on 2000 and on
8000 images, to show that memory does not grow with their number.

Every case runs in a process of its own, so that its peak of resident memory is its own; "extra" is what fitting and
scoring added to the peak, beyond the network's head, the features and the loaded libraries.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

# torch is imported in the cases only: a child process inherits the peak of its parent.

CIFAR = {"width": 512, "classes": 10, "repeats": 100}
IMAGENET = {"width": 2048, "classes": 1000, "repeats": 100}


def compare_with_every_edge(values: Any, low: float, high: float, bins: int, overflow: str = "clamp") -> Any:
    """Histogram as the released code makes it: bins + 2 comparisons per value, in blocks of 100 images."""
    import torch

    edges = torch.linspace(low, high, bins + 1, dtype=values.dtype)
    bottom = torch.cat([edges.new_tensor([-torch.inf]), edges])[:, None, None]  # two bins more for what lies outside
    top = torch.cat([edges, edges.new_tensor([torch.inf])])[:, None, None]
    counts = [((block >= bottom) & (block < top)).sum(2) for block in values.split(100)]  # (bins + 2, 100)
    counts = torch.cat(counts, 1).T
    if overflow == "clamp":
        counts[:, 1] += counts[:, 0]
        counts[:, -2] += counts[:, -1]
    return counts[:, 1:-1].to(values.dtype) / values.shape[1]


def peak() -> float:
    """Highest resident memory of this process so far, in MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def timed(action: Callable[[], Any], repeats: int = 1) -> tuple[float, float, Any]:
    """Best time in seconds, growth of the peak in MB, result."""
    before, seconds, result = peak(), [], None
    for _ in range(repeats):
        start = time.perf_counter()
        result = action()
        seconds.append(time.perf_counter() - start)
    return min(seconds), peak() - before, result


def make(width: int, classes: int, images: int, **_: Any) -> tuple[Any, Any]:
    """A random head and rectified features, made in pieces so that making them leaves no peak behind."""
    import torch

    from ood_lib import Features

    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(width, classes)
    rows = torch.empty(images, width)
    for piece in rows.split(100):
        piece.normal_(generator=generator).add_(0.3).clamp_(min=0)
    return head, Features(penultimate=rows)


def warm_up() -> None:
    """Load every kernel once, on next to no data."""
    from ood_lib import WeiPer

    head, features = make(8, 2, 20)
    for repeats in (2, None):
        WeiPer(head, repeats=repeats).fit(features).score(features)


def run_case(case: dict[str, Any]) -> dict[str, Any]:
    """Fit and score in this process; times, memory and the sum of the scores."""
    import torch

    import ood_lib.detectors.weiper
    from ood_lib import WeiPer

    torch.manual_seed(0)
    torch.set_num_threads(case["threads"])
    warm_up()
    head, features = make(**case)
    if case["way"] == "every edge":
        ood_lib.detectors.weiper.histogram = compare_with_every_edge
    detector = WeiPer(head, repeats=None if case["way"] == "limit" else case["repeats"])
    train = features[: case["train"]]
    fit_seconds, fit_memory, _ = timed(lambda: detector.fit(train))
    seconds, memory, scores = timed(lambda: detector.score(features), case["best_of"])
    return {
        "fit": fit_seconds,
        "score": seconds,
        "memory": fit_memory + memory,
        "input": features.penultimate.nbytes / 1e6,
        "sum": scores.double().sum().item(),
    }


def in_own_process(**case: Any) -> dict[str, Any]:
    """Run a case in a fresh interpreter."""
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def show(head: list[str], rows: list[list[Any]]) -> None:
    """A table whose columns line up."""
    cells = [head, *([f"{c:,.2f}" if isinstance(c, float) else str(c) for c in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    for row in cells:
        print("  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))]))
    print()


def scoring(images: int, threads: int, best_of: int = 3) -> None:
    """First table."""
    print(f"{images:,} images, {CIFAR}, 100 bins, best of {best_of}, {threads} threads")
    rows, first = [], None
    for way in ("every edge", "library", "limit"):
        found = in_own_process(**CIFAR, way=way, images=images, train=1000, threads=threads, best_of=best_of)
        first = first or found
        rows.append([way, found["score"], first["score"] / found["score"], found["memory"], found["sum"] / images])
    show(["histogram", "score s", "speed-up", "extra MB", "mean score"], rows)


def growing(shape: dict[str, int], sizes: tuple[int, ...], threads: int) -> None:
    """Second table."""
    print(f"fit and score on N images, {shape}, 100 bins, {threads} threads")
    rows = []
    for way in ("library", "limit"):
        for images in sizes:
            found = in_own_process(**shape, way=way, images=images, train=images, threads=threads, best_of=1)
            rows.append([way, images, *(found[name] for name in ("input", "fit", "score", "memory"))])
    show(["histogram", "N", "features MB", "fit s", "score s", "extra MB"], rows)


def main() -> None:
    """Both tables, or one case for the process that asked for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller shapes, a few seconds")
    parser.add_argument("--threads", type=int, default=2, help="threads that torch may use")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(run_case(json.loads(options.case))))
        return
    scoring(1000 if options.quick else 10_000, options.threads)
    shape = {"width": 256, "classes": 100, "repeats": 100} if options.quick else IMAGENET
    growing(shape, (2000, 8000), options.threads)


if __name__ == "__main__":
    main()
