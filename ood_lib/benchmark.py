"""Every detector on every OOD set, as one tidy table."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import nn
from torch.utils.data import Dataset

from ood_lib.data import Benchmark
from ood_lib.detector import Detector
from ood_lib.features import Features, extract
from ood_lib.metrics import evaluate, student
from ood_lib.networks import Network

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["BenchmarkFeatures", "extract_benchmark", "run_benchmark", "summarize"]

COLUMNS = ["detector", "ood_set", "group", "metric", "value", "low", "high", "seed", "seconds"]


@dataclass(frozen=True)
class BenchmarkFeatures:
    """A benchmark seen through one network: the features of each of its sets."""

    train: Features
    val: Features
    test: Features
    near: dict[str, Features]
    far: dict[str, Features]

    def groups(self) -> dict[str, dict[str, Features]]:
        """The OOD sets by group name."""
        return {"near": self.near, "far": self.far}


def extract_benchmark(network: Network | nn.Module, benchmark: Benchmark, **options: Any) -> BenchmarkFeatures:
    """Run the network over every set of a benchmark; ``options`` go to `extract`."""

    def run(data: Dataset) -> Features:
        return extract(network, data, **options)

    near, far = ({name: run(data) for name, data in sets.items()} for sets in (benchmark.near, benchmark.far))
    return BenchmarkFeatures(run(benchmark.train), run(benchmark.val), run(benchmark.test), near, far)


def run_benchmark(
    detectors: Mapping[str, Detector],
    features: BenchmarkFeatures,
    *,
    seed: int = 0,
    positive: Literal["id", "ood"] = "id",
) -> "pd.DataFrame":
    """Fit each detector on the ID training features and judge it on every OOD set.

    Args:
        detectors: name -> detector; fitted here, on ``features.train`` only.
        features: see `extract_benchmark`.
        seed: written into the table, to tell repeated runs apart.
        positive: convention of fpr95, see `Metrics`.

    Returns:
        One row per detector, OOD set and metric: detector, ood_set, group, metric, value, low, high, seed, seconds
        (to fit and to score all sets).  Without detectors or OOD sets, these columns and no row.
    """
    import pandas as pd

    return pd.DataFrame(
        [
            {"detector": name} | row | {"seed": seed, "seconds": seconds}
            for name, detector in detectors.items()
            for rows, seconds in [_judge(detector, features, positive)]
            for row in rows
        ],
        columns=COLUMNS,  # also of a table without rows
    )


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Say of which features a detector complains."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def _judge(
    detector: Detector, features: BenchmarkFeatures, positive: Literal["id", "ood"]
) -> tuple[list[dict[str, Any]], float]:
    start = time.perf_counter()
    with _named("the ID training features"):
        detector.fit(features.train)
    with _named("the ID test features"):
        id_scores = detector.score(features.test)
    scores = {}
    for group, sets in features.groups().items():
        for name, ood in sets.items():
            with _named(f"the {group}-OOD set {name!r}"):
                scores[name, group] = detector.score(ood)
    seconds = time.perf_counter() - start
    rows = [
        {"ood_set": name, "group": group, **row}
        for (name, group), ood_scores in scores.items()
        for row in evaluate(id_scores, ood_scores, positive=positive).rows()
    ]
    return rows, seconds


def summarize(table: "pd.DataFrame", metric: str = "auroc") -> "pd.DataFrame":
    """Mean over the sets of each group, then over seeds, with a 95 % interval of Student's t over the seeds.

    Args:
        table: from `run_benchmark`, possibly several seeds on top of each other.
        metric: auroc, fpr95, aupr_in or aupr_out.

    Returns:
        One row per detector and group: value, low, high (both NaN for a single seed), seeds.

    Raises:
        ValueError: the table does not hold the metric.
    """
    if metric not in set(table["metric"]):
        raise ValueError(f"metric={metric!r} was given; the table holds {sorted(set(table['metric']))}")
    chosen = table[table["metric"] == metric]
    per_seed = chosen.groupby(["detector", "group", "seed"], sort=False)["value"].mean()
    out = per_seed.groupby(level=["detector", "group"], sort=False).agg(["mean", "std", "count"])
    half = out["std"] / out["count"] ** 0.5 * out["count"].map(student)
    return (
        out.assign(low=(out["mean"] - half).clip(0, 1), high=(out["mean"] + half).clip(0, 1))
        .rename(columns={"mean": "value", "count": "seeds"})[["value", "low", "high", "seeds"]]
        .reset_index()
    )
