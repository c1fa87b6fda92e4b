"""The box at the top of a chapter says what the kept results say, word for word, and refuses what they do not hold."""

import json
import math
import re
from pathlib import Path

import pandas as pd
import pytest
from ood_book.minute import found
from ood_book.notebooks import Refused

import ood_lib as ood

SURE, BELOW, FLAT = (
    ood.Verdict(0.9, b, low, high) for b, low, high in ((0.8, 0.05, 0.15), (0.95, -0.08, -0.02), (0.9, 0, 0))
)
ORIGIN = {"command": "ood-book run 10_weiper", "date": "2026-01-02"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    kept = {
        ("A", "B"): {"cifar10-resnet56": {"near": SURE, "far": BELOW}, "mine": {"near": FLAT, "far": FLAT}},
        ("A", "C"): {n: {"near": SURE, "far": SURE} for n in ("cifar10-densenet", "cifar100-densenet", "mine")},
    }
    (tmp_path / "book/results/verdicts").mkdir(parents=True)
    ood.save_verdicts(tmp_path / "book/results/verdicts/run.json", kept, origin=ORIGIN)
    rows = [
        {"detector": d, "ood_set": g, "group": g, "metric": m, "value": v, "low": v - 0.01, "high": v + 0.01, "seed": 0}
        for d, near, far in (("A", 0.8, 0.9), ("B", 0.7, 0.95))
        for g, v in (("near", near), ("far", far))
        for m in ("auroc", "fpr95")
    ]
    table = pd.DataFrame(rows).assign(seconds=0.0, seconds_per_1000=0.0, memory_mb=0.0)
    ood.save_results(
        tmp_path / "book/results/mine.json", table, benchmark="x", network="y", origin=ORIGIN, accuracy=math.nan
    )
    return tmp_path


def test_the_first_pair_is_a_table_and_the_others_a_sentence_that_names_where_it_holds(root):
    lines = found(root, {"duels": {"run": [["A", "B", "B"], ["A", "C", "the old one"]]}})
    assert "| ResNet-56 on CIFAR-10 | **better** +10.0 [+5.0, +15.0] | **worse** −5.0 [−8.0, −2.0] |" in lines
    assert any(re.match(r"\| mine \| \*\*level\*\* .* \| \*\*level\*\*", line) for line in lines)
    (sentence,) = [line for line in lines if line.startswith("- ")]
    assert sentence == (
        "- *A* against *the old one*. **Better near and far** (DenseNet on CIFAR-10, DenseNet on CIFAR-100, mine)."
    )
    assert "`ood-book run 10_weiper` on 2026-01-02" in lines[-1]


def test_values_and_leaders_are_those_of_the_result_files(root):
    lines = found(root, {"values": {"mine": {"B": "the second"}}, "leaders": ["mine"]})
    assert "| the second | 70.0 [69.0, 71.0] | 95.0 [94.0, 96.0] | other images |" in lines
    assert "| mine | A, 80.0 | B, 95.0 |" in lines


def test_level_is_who_lies_in_the_interval_of_the_best_and_means_are_those_of_the_files(root):
    path = root / "book/results/mine.json"  # near: 80 [79, 81] and 70 [69, 71]; far: 95 [94, 96] and 90 [89, 91]
    assert "| mine | A, 80.0 [79.0, 81.0]; 0 of 1 | B, 95.0 [94.0, 96.0]; 0 of 1 |" in found(root, {"level": ["mine"]})
    kept = json.loads(path.read_text())
    for row in kept["rows"]:
        row["low"] -= 0.06 * (row["group"] == "far")
    path.write_text(json.dumps(kept))
    assert "| mine | A, 80.0 [79.0, 81.0]; 0 of 1 | B, 95.0 [88.0, 96.0]; 1 of 1 |" in found(root, {"level": ["mine"]})
    asked = {"means": {"detectors": ["B", "A"], "runs": ["mine"]}}
    assert "| mine | B 70.0, A 80.0 | B 95.0, A 90.0 |" in found(root, asked)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"duels": {"run": [["B", "A", "A"]]}}, "does not compare 'B' with 'A'"),
        ({"values": {"mine": {"D": "D"}}}, "has no detector 'D'"),
        ({"means": {"detectors": ["D"], "runs": ["mine"]}}, "has no detector 'D'"),
        ({"tables": {}}, "expected some of"),
    ],
)
def test_what_the_results_do_not_hold_is_refused(root, asked, message):
    with pytest.raises(Refused, match=message):
        found(root, asked)
