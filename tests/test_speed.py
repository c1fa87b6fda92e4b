"""The measurements of speed still run, and say what they are made to say; the figures themselves are no test."""

import json

import pytest
import torch
from ood_book.site import scale

from tests.benchmarks import growth
from tests.benchmarks.measure import OURS, Apart, Case, Store, Work, compare
from tests.benchmarks.rows import QUICK, ROWS
from tests.gpu import recipes


@pytest.mark.parametrize("name", ROWS)
def test_all_ways_of_a_row_that_are_installed_compute_the_same_numbers(name: str):
    case = ROWS[name](QUICK)
    assert set(compare(case)) == set(case.ways) and OURS in case.ways


def test_a_way_that_computes_something_else_is_refused():
    case = Case({OURS: lambda: torch.arange(5.0), "other": lambda: torch.arange(5.0) + 1}, apart=0.1)
    with pytest.raises(Apart, match=r"other lies 0\.63 standard deviations"):
        compare(case)
    with pytest.raises(Apart):  # NaN is no number
        compare(Case({OURS: lambda: torch.arange(5.0), "other": lambda: torch.arange(5.0) / 0}))


def test_the_limit_is_what_takes_longer_products_or_memory():
    rates = {"single": 10.0, "double": 5.0, "memory": 2.0}
    assert scale.limit(vars(Work(single=20, double=10, moved=2)), rates) == 4
    assert scale.limit(vars(Work(single=20, moved=20)), rates) == 10 and scale.limit(None, rates) is None


def test_the_table_compares_the_least_times_and_names_the_best_peer():
    def way(*seconds: float) -> dict:
        return {"seconds": list(seconds), "memory_mb": 1.0}

    ways = {OURS: way(2.0, 1.0, 3.0), "slow": way(9.0, 8.0), "quick": way(0.5, 7.0)}
    row = {"ways": ways, "work": {"single": 5.0, "double": 0.0, "moved": 0.0}, "note": ""}
    rates = {"single": 10.0, "double": 1.0, "memory": 1.0}
    found = scale.relative(row, rates)
    assert (found["peer"], found["ratio"], found["limit"], found["spread"]) == ("quick", 2.0, 2.0, 1.0)
    line = "| a | 1.0 | +100 % | quick | 2.0 | 2.0 | 1 | 1 |"
    assert line in scale.speed_table({"rows": {"a": row}, "machine": {"rates": rates}})


def test_a_row_that_was_measured_is_kept_and_one_that_fails_leaves_the_others(tmp_path):
    asked = []

    def row(name: str) -> dict:
        asked.append(name)
        if name == "bad":
            raise Apart("apart")
        return {"value": name}

    order = ["one", "bad", "two", "three"]
    assert Store(tmp_path / "a.json", order).fill(["two", "bad", "one"], row) == ["bad: apart"]
    assert Store(tmp_path / "a.json", order).fill(order, row) == ["bad: apart"]
    assert asked == ["two", "bad", "one", "bad", "three"]
    assert list(json.loads((tmp_path / "a.json").read_text())["rows"]) == ["one", "two", "three"]


def test_a_row_that_is_measured_again_replaces_the_old_one_and_leaves_the_others_where_they_are(tmp_path):
    file, order = tmp_path / "a.json", ["one", "two", "three"]
    Store(file, order, base=7).fill(order, lambda name: name)

    def fails(name: str) -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Store(file, order, base=7).fill(["two"], fails, again=True)
    assert json.loads(file.read_text())["rows"] == {name: name for name in order}
    Store(file, order, base=7).fill(["two"], lambda name: "new", again=True, date="today")
    found = json.loads(file.read_text())
    assert [*found["rows"].items()] == [("one", "one"), ("two", "new"), ("three", "three")] and found["date"] == "today"


def test_rows_of_another_machine_or_size_do_not_come_together(tmp_path):
    file, here = tmp_path / "a.json", {"processor": "x", "rates": {"single": 1.0}}
    Store(file, ["one"], machine=here, size=[1]).fill(["one"], lambda name: name)
    before = file.read_bytes()
    Store(file, ["one"], machine=here | {"rates": {"single": 2.0}}, size=(1,))  # rates vary from hour to hour
    with pytest.raises(SystemExit, match=r"another machine: .*'x'.*'y'"):
        Store(file, ["one"], machine=here | {"processor": "y"}, size=[1])
    with pytest.raises(SystemExit, match=r"another size: \[\[1\]\]"):
        Store(file, ["one"], machine=here, size=[2])
    assert file.read_bytes() == before


def test_growth_measures_fit_and_score_of_every_shape(monkeypatch):
    monkeypatch.setattr(growth, "BASE", {"train": 60, "test": 20, "width": 8, "classes": 2})
    monkeypatch.setattr(growth, "STEPS", {"train": (60, 120), "classes": (2, 4)})
    monkeypatch.setattr(growth, "TOGETHER", {"train": 120, "test": 20, "width": 8, "classes": 4})
    monkeypatch.setattr(growth, "in_child", lambda action: action())
    found = growth.detector_row("Mahalanobis", 2)
    assert [p["train"] for p in found["train"]] == [60, 120] and [p["classes"] for p in found["classes"]] == [2, 4]
    assert all(len(p["fit"]) == len(p["score"]) == 2 for points in found.values() for p in points)


def test_the_recipes_for_a_gpu_run_on_the_cpu_in_tiny_sizes(tmp_path):
    out, device = tmp_path / "gpu.json", torch.device("cpu")
    names = ["HEAT, 512 dimensions, 40 steps", "flow, 2048 dimensions, training", "MSMA, U-Net, score norms"]
    recipes.run(out, device, 5, "skipped", names)
    kept = json.loads(out.read_text())["recipes"]
    assert list(kept) == names
    assert all(
        way.get("rows_per_second", 0) > 0 and way["operations"] > 0 for ways in kept.values() for way in ways.values()
    )


def test_a_recipe_that_fails_or_comes_too_late_says_so(tmp_path, monkeypatch):
    def broken(*_: object) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(recipes.RECIPES, "broken", recipes.Recipe(broken, (recipes.PLAIN,)))
    assert (
        "no such kernel"
        in recipes.run(tmp_path / "a.json", torch.device("cpu"), 5, "", ["broken"])["recipes"]["broken"]["float32"][
            "error"
        ]
    )
    late = recipes.run(tmp_path / "b.json", torch.device("cpu"), 0, "", ["broken"])["recipes"]["broken"]["float32"]
    assert late == {"error": "no time left"}


def test_operations_are_counted_forwards_and_backwards():
    x, w = torch.ones(4, 3), torch.ones(3, 2, requires_grad=True)
    with recipes.Operations() as counter:
        (x @ w).sum().backward()
    assert counter.total == 2 * (2 * 4 * 3 * 2)
