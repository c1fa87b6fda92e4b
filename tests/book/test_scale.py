"""What the page on large data says of speed follows from the measured files."""

import itertools
import json
from pathlib import Path

import pytest
from ood_book.site import scale
from PIL import Image

ROOT = Path(__file__).parents[2]
BASE = {"train": 5000, "test": 1000, "width": 128, "classes": 10}
STEPS = {"train": (5000, 40_000), "test": (1000, 8000), "width": (128, 512), "classes": (10, 100)}


def law(shape: dict[str, int]) -> dict:
    """A detector whose fit costs train x width^2, whose score costs test x train x width."""
    fit = 1e-9 * shape["train"] * shape["width"] ** 2
    score = 1e-12 * shape["test"] * shape["train"] * shape["width"]
    return shape | {
        "fit": [2 * fit, fit],
        "score": [score, 3 * score],
        "memory_mb": 4e-6 * shape["train"] * shape["width"],
    }


def row() -> dict:
    axes = {axis: [law({**BASE, axis: step}) for step in steps] for axis, steps in STEPS.items()}
    return axes | {"together": [law({"train": 40_000, "test": 4000, "width": 512, "classes": 100})]}


def growth() -> dict:
    sets = [{"sets": n, "score": [0.1 * n]} for n in (1, 8)]
    return {"rows": {"KNN": row(), "Mahalanobis": row(), "OOD sets": {"sets": sets}}}


def test_slopes_are_the_exponents_of_a_law_and_the_prediction_is_the_law():
    measured, wanted = row(), {"train": 1_000_000, "test": 3000, "width": 2048, "classes": 1000}
    found = [scale.slope(measured[axis], axis, what) for axis, what in scale.AXES.items()]
    assert found == pytest.approx([1, 1, 2, 0])
    assert scale.predicted(measured, wanted, "fit") == pytest.approx(law(wanted)["fit"][1])
    assert scale.predicted(measured, wanted, "score") == pytest.approx(law(wanted)["score"][0])


def test_the_table_shows_that_a_law_is_predicted_and_the_text_names_memory_and_sets():
    assert "| 1.0 | 1.0 | 2.0 | 0.0 | 1.0 and 1.0 |" in scale.growth_table(growth())
    text = scale.told(growth())
    assert "819 GB" in text and "8 times as many OOD sets took 8.0 times as long" in text
    assert "memory" not in text  # that of the law grows with the training images


def test_a_row_that_is_slower_is_named():
    def way(seconds: float) -> dict:
        return {"seconds": [seconds], "memory_mb": 0.0}

    rows = {
        n: {"ways": {"ood_lib": way(t), "p": way(1.0)}, "work": None} for n, t in (("A", 0.5), ("B", 1.05), ("C", 3))
    }
    text = scale.compared({"rows": rows, "machine": {"rates": {}}})
    assert text.startswith("In 2 of 3 rows") and "It is slower in: C (3.00 times its time)." in text


def test_the_figure_has_four_panels_with_a_line_for_each_detector(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(scale.plt, "close", shown.append)
    scale.draw_growth(growth(), tmp_path / "a.png")
    assert [len(ax.lines) for ax in shown[0].axes] == [2, 2, 2, 2] and Image.open(tmp_path / "a.png").width > 600


def test_the_page_shows_what_the_files_hold(tmp_path):
    page = (ROOT / "book/scale.md").read_text(encoding="utf-8")
    assert all(f"_generated/{name}" in page for name in ("speed.md", "growth.md", "growth.png"))
    (tmp_path / "results").symlink_to(ROOT / "book/results")
    scale.add_speed(tmp_path)
    peers = json.loads((ROOT / "book/results/speed/peers.json").read_text())
    table = (tmp_path / "_generated/speed.md").read_text()
    assert all(f"\n| {name} | " in table for name in peers["rows"])


@pytest.mark.parametrize("name", ["peers", "growth"])
def test_measured_files_hold_five_runs_of_the_library(name: str):
    content = json.loads((ROOT / f"book/results/speed/{name}.json").read_text())
    if name == "peers":
        runs = [row["ways"]["ood_lib"]["seconds"] for row in content["rows"].values()]
    else:
        points = itertools.chain.from_iterable(
            itertools.chain.from_iterable(r.values()) for r in content["rows"].values()
        )
        runs = [point["score"] for point in points]
    assert runs and min(map(len, runs)) >= 5
