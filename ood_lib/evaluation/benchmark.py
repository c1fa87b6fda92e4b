"""Every detector on every OOD set, as one tidy table."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from ood_lib.checks import check
from ood_lib.detectors.compose import Composed
from ood_lib.detectors.detector import Detector
from ood_lib.evaluation.comparison import checked_table, counted_once, same_sets
from ood_lib.evaluation.cost import measure_cost
from ood_lib.evaluation.metrics import auroc, evaluate, student
from ood_lib.features.bank import BenchmarkFeatures
from ood_lib.warn import warn

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["group_auroc", "run_benchmark", "summarize"]

COLUMNS = [
    "detector", "ood_set", "group", "metric", "value", "low", "high", "seed",
    "seconds", "seconds_per_1000", "memory_mb",
]  # fmt: skip

NOTHING_JUDGED = (
    "an AUROC compares ID images with those of an OOD set, and there is none; of a folder:PATH those are the pictures "
    "in PATH/near/NAME/ and PATH/far/NAME/"
)


def run_benchmark(
    detectors: Mapping[str, Detector],
    features: BenchmarkFeatures,
    *,
    seed: int = 0,
    positive: Literal["id", "ood"] = "id",
    refit: bool = True,
) -> "pd.DataFrame":
    """Fit each detector on ID features and judge it on every OOD set.

    Args:
        detectors: name -> detector; fitted here, on ``features.train``, or ``features.val`` where its recipe says so
            (`Detector.fits`).  A new fit forgets the threshold of the old one: calibrate after this call, on rows
            that the detector was not fitted on, or give ``refit=False``.
        features: see `extract_benchmark`.
        seed: written into the table, to tell repeated runs apart.
        positive: convention of fpr95, see `Metrics`.
        refit: False judges a detector that has been fitted already as it is; only the others are fitted.

    Returns:
        One row per detector, OOD set and metric: detector, ood_set, group, metric, value, low, high, seed; seconds (to
        fit and to score all sets), seconds_per_1000 (to score 1000 images), memory_mb (of both, see `measure_cost`).
        Without detectors or OOD sets, these columns and no row; without OOD sets a warning says so.  A detector that
        fails is left out, and a warning names it and its error.

    Raises:
        ValueError: the detectors have no names.
        Exception: that of the first detector, where all of them fail.
    """
    import pandas as pd

    check(lambda given: isinstance(given, Mapping), 'detectors by name, as {"KNN": KNN()}', detectors=detectors)
    if not (features.near or features.far):
        warn(f"no row is made: {NOTHING_JUDGED}")

    found: list[dict[str, Any]] = []
    failed: dict[str, Exception] = {}
    for name, detector in detectors.items():
        try:
            rows, cost = _judge(detector, features, positive, refit)
        except Exception as error:  # whatever is wrong with one detector, the work on the others is kept
            failed[name] = error
            continue
        found += [{"detector": name} | row | {"seed": seed} | cost for row in rows]
    if failed and len(failed) == len(detectors):
        raise next(iter(failed.values()))
    for name, why in failed.items():
        warn(f"{name!r} is left out of the table, because it failed: {type(why).__name__}: {why}")
    return pd.DataFrame(found, columns=COLUMNS)  # these columns also without a row


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Say of which features a detector complains."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def _judge(
    detector: Detector, features: BenchmarkFeatures, positive: Literal["id", "ood"], refit: bool
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    device = detector.threshold.device
    learnt = "train and val" if isinstance(detector, Composed) else detector.fits
    with measure_cost(device) as fitting, _named(f"the ID {learnt} features"):
        if refit or not detector.ready:
            detector.fit(features.train, features.val)
    scores, images = {}, len(features.test)
    with measure_cost(device) as scoring:
        with _named("the ID test features"):
            id_scores = detector.score(features.test)
        for group, sets in features.groups().items():
            for name, ood in sets.items():
                with _named(f"the {group}-OOD set {name!r}"):
                    scores[name, group] = detector.score(ood)
                images += len(ood)
    rows = [
        {"ood_set": name, "group": group, **row}
        for (name, group), ood_scores in scores.items()
        for row in evaluate(id_scores, ood_scores, positive=positive).rows()
    ]
    return rows, {
        "seconds": fitting.seconds + scoring.seconds,
        "seconds_per_1000": 1000 * scoring.seconds / images,
        "memory_mb": max(fitting.memory_mb, scoring.memory_mb),
    }


def group_auroc(detector: Detector, features: BenchmarkFeatures) -> dict[str, float]:
    """Mean AUROC of a fitted detector over the near and over the far sets; NaN for a group without a set.

    `run_benchmark` fits, and gives intervals and other metrics too.

    Example:
        >>> import torch
        >>> from ood_lib import MSP, Features
        >>> x = Features(logits=torch.tensor([[4.0, 0.0], [3.0, 0.0]]))
        >>> group_auroc(MSP(), BenchmarkFeatures(x, x, x, {"a": Features(logits=x.logits / 9)}, {"b": x}))
        {'near': 1.0, 'far': 0.5}
    """
    own = detector.score(features.test)
    areas = {g: [auroc(own, detector.score(x))[0] for x in sets.values()] for g, sets in features.groups().items()}
    return {g: sum(values) / len(values) if values else math.nan for g, values in areas.items()}


def summarize(table: "pd.DataFrame", metric: str = "auroc") -> "pd.DataFrame":
    """Mean over the sets of each group, then over seeds, with a 95 % interval of Student's t over the seeds.

    Args:
        table: from `run_benchmark`, possibly several seeds on top of each other.
        metric: auroc, fpr95, aupr_in or aupr_out.

    Returns:
        One row per detector and group: value, low, high (both NaN for a single seed), seeds.  The ends are cut to
        [0, 1]: half of what lies between them is no half-width.

    Raises:
        ValueError: the table does not hold the metric, holds a value twice (see `counted_once`), or has no row at all;
            detectors or seeds were judged on different sets of a group (see `same_sets`).
    """
    checked_table(table)
    if table.empty:
        raise ValueError(f"the table has no row: no detector was given, or {NOTHING_JUDGED}")
    if metric not in set(table["metric"]):
        raise ValueError(f"metric={metric!r} was given; the table holds {sorted(set(table['metric']))}")
    chosen = same_sets(counted_once(table[table["metric"] == metric])).astype({"value": float})
    per_seed = chosen.groupby(["detector", "group", "seed"], sort=False)["value"].mean()
    out = per_seed.groupby(level=["detector", "group"], sort=False).agg(["mean", "std", "count"])
    half = out["std"] / out["count"] ** 0.5 * out["count"].map(student)
    return (
        out.assign(low=(out["mean"] - half).clip(0, 1), high=(out["mean"] + half).clip(0, 1))
        .rename(columns={"mean": "value", "count": "seeds"})[["value", "low", "high", "seeds"]]
        .reset_index()
    )
