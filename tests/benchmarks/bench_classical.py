"""How fast the classical detectors and the metrics are, beside the fastest well-known alternatives.

    python tests/benchmarks/bench_classical.py [--quick] [--threads 2] [--rounds 3] [--only knn metrics]

All ways of a task run in this process, on the same data and the same threads, in turns: what else the machine does hits
all of them.  Each line shows the minimum and the median of wall time and of CPU time (of all threads), and how far the
result is from the library's; the last line the library's minimum over that of the fastest alternative (1 or less: as
fast).  faiss-cpu, pytorch-ood, scikit-learn and torchmetrics are optional: what is missing is said and left out.
"""

import argparse
import importlib
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ood_lib import GMM, KNN, Features, Mahalanobis, ViM, evaluate
from ood_lib.evaluation.metrics import auroc

Way = Callable[[], Any]
SLOW = ("scikit-learn", "sklearn, as far")  # one round is enough to see that


def optional(name: str) -> Any:
    """A module that the library does not need, or None."""
    try:
        return importlib.import_module(name)
    except ImportError:
        print(f"({name.split('.')[0]} is not installed: left out)")
        return None


def features(n: int, width: int, classes: int, seed: int) -> Features:
    """Rectified features around class means, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(n) % classes
    return Features(penultimate=(torch.randn(n, width, generator=generator) + centres[labels]).relu(), labels=labels)


def knn(quick: bool, threads: int) -> dict[str, Way]:
    """Distance to the 50th neighbour; fit and score."""
    train, test = features(5000 if quick else 50_000, 512, 10, 0), features(1000 if quick else 10_000, 512, 10, 1)
    ways: dict[str, Way] = {"ood_lib": lambda: KNN(50).fit(train).score(test)}
    bank, queries = (F.normalize(f.penultimate).numpy() for f in (train, test))
    if faiss := optional("faiss"):
        faiss.omp_set_num_threads(threads)

        def with_faiss() -> Tensor:
            index = faiss.IndexFlatL2(bank.shape[1])
            index.add(bank)
            return torch.from_numpy(index.search(queries, 50)[0][:, -1]).clamp(min=0).sqrt()

        ways["faiss-cpu"] = with_faiss
    if sk := optional("sklearn.neighbors"):
        ways["scikit-learn"] = lambda: torch.from_numpy(
            sk.NearestNeighbors(n_neighbors=50, algorithm="brute").fit(bank).kneighbors(queries)[0][:, -1]
        )
    return ways


def mahalanobis(quick: bool, threads: int) -> dict[str, Way]:
    """Fit and score."""
    train, test = features(5000 if quick else 50_000, 512, 10, 0), features(1000 if quick else 10_000, 512, 10, 1)
    z, y, q = train.penultimate, train.labels, test.penultimate
    ways: dict[str, Way] = {"ood_lib": lambda: Mahalanobis().fit(train).score(test)}
    if ood := optional("pytorch_ood.detector"):  # its covariance is a sum, not a mean, and its score one half
        ways["pytorch-ood"] = lambda: 2 * len(z) * ood.Mahalanobis(None).fit_features(z, y).predict_features(q)
    if sk := optional("sklearn.covariance"):

        def with_scikit_learn() -> Tensor:
            means = torch.stack([z[y == c].mean(0) for c in range(10)])
            covariance = sk.EmpiricalCovariance(assume_centered=True).fit((z - means[y]).numpy())
            each = [covariance.mahalanobis((q - mean).numpy()) for mean in means]
            return torch.stack([torch.from_numpy(d) for d in each]).amin(0)

        ways["scikit-learn"] = with_scikit_learn
    return ways


def vim(quick: bool, threads: int) -> dict[str, Way]:
    """Fit and score."""
    train, test = features(5000 if quick else 50_000, 512, 10, 0), features(1000 if quick else 10_000, 512, 10, 1)
    torch.manual_seed(0)
    head = nn.Linear(512, 10)
    ways: dict[str, Way] = {"ood_lib": lambda: ViM(head, 256).fit(train).score(test)}
    if ood := optional("pytorch_ood.detector"):
        z, y, q = train.penultimate, train.labels, test.penultimate
        ways["pytorch-ood"] = lambda: ood.ViM(None, 256, head.weight, head.bias).fit_features(z, y).predict_features(q)
    return ways


def gmm(quick: bool, threads: int) -> dict[str, Way]:
    """Tied mixture of 10 components by EM, without labels; fit and score."""
    train = features(2000 if quick else 10_000, 128, 10, 0)
    z = train.penultimate.double()
    ways: dict[str, Way] = {"ood_lib": lambda: GMM(components=10).fit(train).score(Features(penultimate=z))}
    if sk := optional("sklearn.mixture"):
        mixture = {"n_components": 10, "covariance_type": "tied", "random_state": 0}
        for name, more in (("sklearn, defaults", {}), ("sklearn, as far", {"tol": 1e-7, "n_init": 4, "max_iter": 500})):
            ways[name] = lambda more=more: (
                -torch.from_numpy(sk.GaussianMixture(**mixture, **more).fit(z.numpy()).score_samples(z.numpy()))
            )
    return ways


def scores(quick: bool) -> tuple[Tensor, Tensor]:
    """Float32 scores of ID and OOD images, 10 million together."""
    n = 200_000 if quick else 5_000_000
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, generator=generator), torch.randn(n, generator=generator) + 1


def area(quick: bool, threads: int) -> dict[str, Way]:
    """AUROC; the library's comes with DeLong's interval."""
    known, unknown = scores(quick)
    both, labels = torch.cat([known, unknown]), torch.cat([torch.zeros(len(known)), torch.ones(len(unknown))]).long()
    ways: dict[str, Way] = {"ood_lib": lambda: torch.tensor([auroc(known, unknown)[0]])}
    if tm := optional("torchmetrics.functional.classification"):
        ways["torchmetrics"] = lambda: tm.binary_auroc(both, labels, validate_args=False)[None]
    if sk := optional("sklearn.metrics"):
        ways["scikit-learn"] = lambda: torch.tensor([sk.roc_auc_score(labels.numpy(), both.numpy())])
    return ways


def metrics(quick: bool, threads: int) -> dict[str, Way]:
    """AUROC, FPR95, AUPR both ways; the library's come with their intervals."""
    known, unknown = scores(quick)
    both, labels = torch.cat([known, unknown]), torch.cat([torch.zeros(len(known)), torch.ones(len(unknown))]).long()

    def ours() -> Tensor:
        m = evaluate(known, unknown, positive="ood")
        return torch.tensor([m.auroc, m.fpr95, m.aupr_in, m.aupr_out])

    ways: dict[str, Way] = {"ood_lib": ours}
    if tm := optional("torchmetrics.functional.classification"):

        def with_torchmetrics() -> Tensor:
            fpr, tpr, _ = tm.binary_roc(both.sigmoid(), labels, validate_args=False)
            precision = [tm.binary_average_precision(s, y, validate_args=False)
                         for s, y in (((-both).sigmoid(), 1 - labels), (both.sigmoid(), labels))]  # fmt: skip
            return torch.stack([torch.trapezoid(tpr, fpr), fpr[(tpr >= 0.95).int().argmax()], *precision])

        ways["torchmetrics"] = with_torchmetrics
    if sk := optional("sklearn.metrics"):

        def with_scikit_learn() -> Tensor:
            y, s = labels.numpy(), both.numpy()
            fpr, tpr, _ = sk.roc_curve(y, s)
            out = sk.auc(fpr, tpr), fpr[(tpr >= 0.95).argmax()], sk.average_precision_score(1 - y, -s)
            return torch.tensor([*out, sk.average_precision_score(y, s)])

        ways["scikit-learn"] = with_scikit_learn
    return ways


TASKS = {"knn": knn, "mahalanobis": mahalanobis, "vim": vim, "gmm": gmm, "auroc": area, "metrics": metrics}


def measured(ways: dict[str, Way], rounds: int) -> None:
    """Run the ways in turns and print a line for each."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    results: dict[str, Tensor] = {}
    for turn in range(rounds):
        for name, way in ways.items():
            if turn and name in SLOW:
                continue
            wall, cpu = time.perf_counter(), time.process_time()
            results[name] = way().double()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    print(f"  {'':18}{'wall min':>9}{'median':>9}{'CPU min':>9}{'median':>9}  mean |difference|")
    for name, pairs in times.items():
        cells = [f(column) for column in zip(*pairs) for f in (min, statistics.median)]
        apart = (results[name] - results["ood_lib"]).abs().mean().item()
        print(f"  {name:18}" + "".join(f"{cell:9.3f}" for cell in cells) + f"  {apart:.1e}")
    wall, cpu = (relative(times, which) for which in (0, 1))
    print(f"  {'ours / fastest':18}{wall:9.2f}{'':9}{cpu:9.2f}", flush=True)


def relative(times: dict[str, list[tuple[float, float]]], which: int) -> float:
    """The library's least wall (0) or CPU (1) time over that of the fastest other way; NaN if there is none."""
    least = {name: min(pair[which] for pair in pairs) for name, pairs in times.items()}
    ours = least.pop("ood_lib")
    return ours / min(least.values(), default=math.nan)


def main() -> None:
    """Every task, or those that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller shapes, a few seconds")
    parser.add_argument("--threads", type=int, default=2, help="threads of every way")
    parser.add_argument("--rounds", type=int, default=3, help="turns that each way gets")
    parser.add_argument("--only", nargs="+", choices=TASKS, default=list(TASKS), help="some of the tasks")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.only:
        print(f"{name}: {TASKS[name].__doc__}")
        measured(TASKS[name](options.quick, options.threads), options.rounds)


if __name__ == "__main__":
    main()
