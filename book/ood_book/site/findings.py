"""What the page of findings says in numbers, read from the kept results: nothing there is typed."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ood_book.minute import compared
from ood_book.site.tables import table
from ood_lib.evaluation.metrics import as_percent, mean_interval

__all__ = ["VERDICTS", "fragments", "intervals", "recommendation"]

OURS = "recommended"
SHOWN = ("MSP", "Mahalanobis")  # rules that many would take, beside the best one and the worst

Pairs = Sequence[tuple[str, str, str]]

#: What each finding compares: the file of verdicts, and of each pair the method, the baseline, and its name in words.
VERDICTS: dict[str, tuple[str, Pairs]] = {
    "knobs": (
        "weiper",
        [
            ("WeiPer+KLD", "its δ = 0", "the same score without perturbation, published settings"),
            ("WeiPer MSP, tuned", "MSP", "MSP"),
            ("WeiPer+KLD, tuned", "WeiPer+KLD, δ = 0, tuned", "the same score without perturbation, tuned alike"),
            ("WeiPer+ReAct, tuned", "ReAct, tuned", "ReAct, tuned alike"),
            ("WeiPer+KLD, tuned", "KNN, tuned", "KNN, tuned alike"),
        ],
    ),
    "residual": (
        "heat",
        [("GMM, ridge", "GMM", "the plain mixture"), ("HEAT", "untrained", "the same priors without training")],
    ),
    "updates": (
        "flow",
        [
            ("the paper's way", "Energy", "the energy of the logits"),
            ("the flow", "Mahalanobis", "the plain Mahalanobis distance"),
            ("the flow", "the tied Gaussian at length one", "a tied Gaussian on features of length one, with a ridge"),
        ],
    ),
    "calibration": ("snojoe", [("JointEnergy", "MaxLogit", "MaxLogit"), ("MaxLogit", "MSP", "softmax over labels")]),
}  # fmt: skip


def fragments(results: Path) -> dict[str, str]:
    """What the page includes, by name."""
    made = {name: "\n".join(compared(results, run, pairs)) for name, (run, pairs) in VERDICTS.items()}
    for name, write in (("recommendation", recommendation), ("intervals", intervals)):
        made[name] = write(json.loads((results / f"studies/{name}.json").read_text(encoding="utf-8")))
    return {name: f"{text}\n" for name, text in made.items()}


def _origin(content: Mapping[str, Any]) -> str:
    origin = content["provenance"]
    return f"Made by `{origin['command']}` on {origin['date']}: {origin['device']}; {origin['versions']}."


def recommendation(content: Mapping[str, Any]) -> str:
    """How often the recommended detector was as good as the best on a set that it was not chosen by, and its loss."""
    rows = {network: list(row["sets"].values()) for network, row in content["rows"].items()}
    rules = set.intersection(*({*one["lost"]} for own in rows.values() for one in own)) - {OURS}

    def by_network(rule: str, key: str) -> list[float]:
        return [statistics.fmean(float(one[key][rule]) for one in own) for own in rows.values()]

    lost = {rule: mean_interval(by_network(rule, "lost")) for rule in (*rules, OURS)}
    good = {rule: mean_interval(by_network(rule, "as_good")) for rule in (*rules, OURS)}
    worst = {rule: max(one["lost"][rule] for own in rows.values() for one in own) for rule in (*rules, OURS)}
    order = sorted(rules, key=lambda rule: lost[rule][0])
    gain = {r: mean_interval([a - b for a, b in zip(by_network(r, "lost"), by_network(OURS, "lost"))]) for r in rules}
    shown = dict.fromkeys([OURS, order[0], *(rule for rule in SHOWN if rule in rules), order[-1]])
    lines = []
    for rule in shown:
        cells = [f"{100 * good[rule][0]:.0f} %", f"{lost[rule][0]:.1f}", f"{worst[rule]:.1f}"]
        lines.append([OURS, *cells, ""] if rule == OURS else [f"always {rule}", *cells, _signed(*gain[rule])])
    count, sets = len(rows), sum(map(len, rows.values()))
    close = sum(one["lost"][OURS] < 2 for own in rows.values() for one in own)
    head = ["rule", "as good as the best", "points lost, mean", "points lost, worst set", "more than recommended"]
    ends = "one network, no interval" if count == 1 else f"{count} networks, 95 % interval of Student's t"
    return (
        f"On {sets} OOD sets that the choice did not see, the recommended detector was as good as the best one in "
        f"**{as_percent(*good[OURS])} %** of the cases, and within two points of it on {close} sets. It lost "
        f"**{_points(*lost[OURS])}** points of AUROC on average ({ends}). Of the rules that always take one detector, "
        f"*{order[0]}* loses least, which is known only from this table. {_gain(*gain[order[0]])}\n\n"
        f"{table(head, lines)}\nAs good: the paired interval of the difference holds zero. {_origin(content)}"
    )


def _points(mean: float, low: float, high: float) -> str:
    return f"{mean:.1f}" if low != low else f"{mean:.1f} [{max(0.0, low):.1f}, {high:.1f}]"


def _signed(mean: float, low: float, high: float) -> str:
    """Points with their sign, and their interval where there is one."""
    return as_percent(mean / 100, low / 100, high / 100, signed=True).removesuffix(" (one network)")


def _gain(mean: float, low: float, high: float) -> str:
    """The gain of the recommendation over the best fixed rule, in words that its interval allows."""
    gains = f"it gains {_signed(mean, low, high)} points"
    if low != low:
        return f"Against that rule {gains}; one network has no interval."
    if low <= 0 <= high:
        return f"Whether the recommendation is better, these networks cannot tell: {gains}."
    return f"The recommendation is {'better' if low > 0 else 'worse'}: {gains}."


def intervals(content: Mapping[str, Any]) -> str:
    """How often the interval of FPR95 holds the truth, and how often networks call a difference that is none."""
    fpr, calls, verdicts = (content["rows"][part]["rows"] for part in ("fpr", "calls", "verdicts"))
    head = ["ID images", "OOD images", "interval holds the truth in", "mean width", "a bootstrap in", "mean width"]
    lines = []
    for n, m in dict.fromkeys((row["id"], row["ood"]) for row in fpr):
        own = [row for row in fpr if (row["id"], row["ood"]) == (n, m)]
        cells = []
        for kind in ("", "bootstrap_"):
            covered = [row[f"{kind}covered"] for row in own]
            width = statistics.fmean(row[f"{kind}width"] for row in own)
            cells += [f"{100 * min(covered):.0f} to {100 * max(covered):.0f} %", f"{100 * width:.0f} points"]
        lines.append([f"{n:,}", f"{m:,}", *cells])
    skewed = [row for row in calls if row["law"] not in ("normal", "uniform")]
    few = [
        row for row in verdicts if row["networks"] == min(row["networks"] for row in verdicts) and row["ratio"] < 1e3
    ]
    tests = f"Between an easy and a hard OOD set, of {fpr[0]['runs']:,} simulated tests each:"
    return (
        f"{tests}\n\n{table(head, lines, words=())}\n"
        "An interval of 95 % over networks should miss in 5 of 100 cases. Where differences between networks are "
        f"skewed, Student's t misses in {_span(skewed, 'at_95')} of 100. At 99 %, as `compare_over_seeds` uses it, it "
        f"misses in {_span(skewed, 'called')}. A verdict over {few[0]['networks']} networks, in which the error of "
        f"the images is counted too, is wrong in {_span(few, 'with')} of 100 cases of no difference. Without its "
        f"correction it would be wrong in up to {_most(few, 'without')}. {_origin(content)}"
    )


def _span(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    return f"{100 * min(row[key] for row in rows):.0f} to {_most(rows, key)}"


def _most(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    return f"{100 * max(row[key] for row in rows):.0f}"
