"""The page of findings says what the kept results say, and branches where an interval holds zero."""

import inspect
import json
import re
from pathlib import Path

import pytest
import torch
from ood_book.notebooks import Refused
from ood_book.site import findings

import ood_lib as ood
from ood_lib.detectors.classical.recipes import FAMILIES
from ood_lib.evaluation import metrics
from ood_lib.features.bank import BenchmarkFeatures
from tests.benchmarks import bench_intervals, recommendation

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "book/results"
PAGE = (ROOT / "book/findings.md").read_text(encoding="utf-8")
ORIGIN = {"command": "python -m x", "date": "2026-01-02", "device": "CPU", "versions": "torch 2"}


def kept(gaps, ours=1.0):
    """Networks with two sets each; `gaps` are what always taking A loses more than the recommendation."""
    rows = {
        f"network{i}": {
            "sets": {
                name: {
                    "lost": {"recommended": ours, "A": ours + gap, "B": 9.0},
                    "as_good": {"recommended": good, "A": 0, "B": 0},
                }
                for name, good in (("near", 1), ("far", 0))
            }
        }
        for i, gap in enumerate(gaps)
    }
    return {"provenance": ORIGIN, "draws": 1, "rows": rows}


@pytest.mark.parametrize(
    ("gaps", "said"),
    [
        ([1.0, 1.1, 0.9], "The recommendation is better: it gains +1.0 [+0.8, +1.2] points."),
        ([-0.5, -0.6, -0.4], "The recommendation is worse: it gains −0.5 [−0.7, −0.3] points."),
        ([2.0, -1.5, 0.5], "cannot tell: it gains +0.3"),
        ([1.0], "one network has no interval"),
    ],
)
def test_the_recommendation_is_called_better_only_where_its_interval_says_so(gaps, said):
    text = findings.recommendation(kept(gaps))
    assert said in text and "nan" not in text and not re.search(r"-\d", text.split("Made by")[0])
    assert f"On {2 * len(gaps)} OOD sets" in text and "**50.0" in text and f"on {2 * len(gaps)} sets." in text
    assert "| recommended | 50 % | 1.0 | 1.0 |  |" in text and "| always B | 0 % | 9.0 | 9.0 | +8.0" in text


def test_the_page_includes_every_part_and_none_compares_what_the_files_do_not():
    made = findings.fragments(RESULTS)
    assert set(re.findall(r"_generated/finding-(\w+)\.md", PAGE)) == set(made)
    assert [name for name, text in made.items() if "nan" in text or len(text) < 100] == []
    with pytest.raises(Refused, match="does not compare"):
        findings.compared(RESULTS, "weiper", [("MSP", "nothing", "nothing")])


def test_the_kept_file_holds_every_bank_and_set_and_the_numbers_are_its_means():
    content = json.loads((RESULTS / "studies/recommendation.json").read_text(encoding="utf-8"))
    assert list(content["rows"]) == list(recommendation.BANKS)
    sets = [one for row in content["rows"].values() for one in row["sets"].values()]
    mean = sum(one["lost"]["recommended"] for one in sets) / len(sets)
    assert len(sets) == 20 and f"It lost **{mean:.1f} [" in findings.recommendation(content)
    good, close = (
        sum(map(rule, sets)) / len(sets)
        for rule in (lambda s: s["as_good"]["recommended"], lambda s: s["lost"]["recommended"] < 2)
    )
    assert good < 0.5 and close > 0.6 and "seldom the best on a new one, and seldom far behind" in PAGE
    assert all(len(one["taken"]) == content["draws"] for one in sets)
    assert all(min(one["lost"].values()) >= 0 for one in sets)  # against the best on the set


def test_a_trial_chooses_without_the_set_and_is_judged_on_it_alone():
    generator = torch.Generator().manual_seed(0)
    noise = {name: torch.randn(400, generator=generator) for name in ("test", "a", "b")}
    good = {"x": {"a": 3.0, "b": 0.0}, "y": {"a": 0.0, "b": 3.0}}  # each detector finds one of the sets
    scored = {
        n: ood.SetScores(noise["test"], {"a": noise["a"] + g["a"]}, {"b": noise["b"] + g["b"]}) for n, g in good.items()
    }
    found = list(recommendation.trials(scored, {"x": 0.0, "y": 0.0}, seed=0))
    assert [(left, taken) for left, taken, _ in found] == [
        ("a", "y"),
        ("b", "x"),
    ]  # by the other set, and so the wrong one
    for _, taken, against in found:
        assert against[taken].high < 0 and against[taken].difference < -0.3
        assert max(v.difference for v in against.values()) == 0


def test_a_row_of_a_small_network_holds_each_rule_on_each_set():
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(6, 3).requires_grad_(False)
    head.weight.data, head.bias.data = torch.eye(3, 6), torch.zeros(3)

    def made(n, shift=0.0):
        z = (torch.randn(n, 6, generator=generator) + shift).relu()
        return ood.Features(penultimate=z, logits=head(z), labels=head(z).argmax(1))

    x = BenchmarkFeatures(made(90), made(40), made(40), {"near": made(40, 0.5)}, {"far": made(40, 2.0)}, head)
    found = recommendation.row(x, draws=2)
    assert set(found["sets"]) == {"near", "far"} and set(found["microseconds"]) == set(recommendation.detectors(x))
    for one in found["sets"].values():
        assert len(one["taken"]) == 2 and min(one["lost"].values()) >= 0
        assert one["lost"].keys() == one["as_good"].keys() == {*found["microseconds"], "recommended"}


def test_what_docstrings_and_page_say_of_intervals_is_what_was_simulated():
    content = json.loads((RESULTS / "studies/intervals.json").read_text(encoding="utf-8"))
    fpr, calls, verdicts = (content["rows"][part]["rows"] for part in ("fpr", "calls", "verdicts"))
    docs = inspect.getsource(metrics), " ".join((ood.verdicts.__doc__ or "").split())
    held = [100 * row["covered"] for row in fpr]
    assert f"covers in {min(held):.1f} to\n    {max(held):.0f} of 100" in docs[0]
    assert f"in as few as {100 * min(row['bootstrap_covered'] for row in fpr):.0f}." in docs[0]
    skewed = [row for row in calls if row["law"].startswith(("exp", "log"))]
    at_95, called = ([round(100 * row[key]) for row in skewed] for key in ("at_95", "called"))
    assert f"miss in {min(at_95)} to {max(at_95)} of 100" in docs[0]
    said = " ".join((ROOT / "book/notation.md").read_text(encoding="utf-8").split())
    assert (
        f"in {min(at_95)} to {max(at_95)} of 100 tables, and a 99 % interval in {min(called)} to {max(called)}" in said
    )
    assert min(held) >= 95  # what the page on certainty says of FPR95
    most = 100 * max(row["called"] for row in skewed if row["networks"] == 3)
    assert f"in {min(called)} to {max(called)} (in at most {most:.1f} for three networks)" in docs[0]
    three = [row for row in verdicts if (row["networks"], row["law"]) == (3, "exponential") and row["ratio"] < 1e3]
    without, corrected = (round(100 * max(row[key] for row in three)) for key in ("without", "with"))
    assert f"at most about {corrected} of 100 verdicts" in docs[1] and f"without it up to {without} are" in docs[1]
    text = findings.intervals(content)
    for n, m in ((20, 50), (1000, 1000)):
        own = [row for row in fpr if (row["id"], row["ood"]) == (n, m)]
        assert len(own) == 3
        cells = []
        for kind in ("", "bootstrap_"):
            held = sorted(100 * row[f"{kind}covered"] for row in own)
            width = 100 * sum(row[f"{kind}width"] for row in own) / 3
            cells += [f"{held[0]:.0f} to {held[-1]:.0f} %", f"{width:.0f} points"]
        assert f"| {n:,} | {m:,} | {' | '.join(cells)} |" in text
    few = [row for row in verdicts if row["networks"] == 3 and row["ratio"] < 1e3]
    least, most = (100 * end(row["with"] for row in few) for end in (min, max))
    assert "A verdict over 3 networks" in text and f"is wrong in {least:.0f} to {most:.0f} of 100 cases" in text
    assert f"it would be wrong in up to {100 * max(row['without'] for row in few):.0f}." in text


@pytest.mark.parametrize("part", bench_intervals.PARTS)
def test_a_simulation_is_the_same_again_and_its_shares_are_shares(part):
    one, two = (bench_intervals.measured(part, runs=8 if part == "fpr" else 500)["rows"] for _ in range(2))
    assert one == two
    shares = [v for row in one for k, v in row.items() if k in ("covered", "at_95", "called", "with", "without")]
    assert shares and min(shares) >= 0 and max(shares) <= 1


def test_the_pages_that_count_the_classical_detectors_count_them_right():
    assert sum(map(len, FAMILIES.values())) == 17
    pages = ("book/intro.md", "book/api/classical.md", "notebooks/notebooks.yaml")
    assert [page for page in pages if "seventeen" not in (ROOT / page).read_text(encoding="utf-8").lower()] == []
