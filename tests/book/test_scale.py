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
    return {
        "machine": {"rates": {"single": 1e15, "double": 1e15}},
        "rows": {"KNN": row(), "Mahalanobis": row(), "OOD sets": {"sets": sets}},
    }


def test_slopes_are_the_exponents_of_a_law_and_the_prediction_is_the_law():
    measured, wanted = row(), {"train": 1_000_000, "test": 3000, "width": 2048, "classes": 1000}
    found = [scale.slope(measured[axis], axis, what) for axis, what in scale.AXES.items()]
    assert found == pytest.approx([1, 1, 2, 0])
    assert scale.predicted(measured, wanted, "fit") == pytest.approx(law(wanted)["fit"][1])
    assert scale.predicted(measured, wanted, "score") == pytest.approx(law(wanted)["score"][0])


def test_no_extrapolation_is_below_the_time_of_the_matrix_products():
    content = growth()
    by_slopes = scale.extrapolated(content, "KNN", scale.IMAGENET, "score")
    assert by_slopes == pytest.approx(law(scale.IMAGENET)["score"][0])
    content["machine"]["rates"]["single"] = 1e9
    products = 2 * 1_281_167 * 50_000 * 2048 / 1e9
    assert (
        scale.extrapolated(content, "KNN", scale.IMAGENET, "score") == pytest.approx(products) and products > by_slopes
    )


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


def gpu() -> dict:
    ways = {
        "float32": {"rows_per_second": 1000.0, "share_of_rate": 0.25, "times_float32": 1.0, "memory_mb": 1500.0},
        "bfloat16": {"rows_per_second": 2600.0, "share_of_rate": 0.125, "times_float32": 2.6, "memory_mb": None},
        "compiled": {"error": "RuntimeError: no compiler\nmore"},
    }
    machine = {
        "device": "Chip 9",
        "torch": "2.1",
        "cuda": "12.1",
        "tiny": False,
        "rates": {"float32": 5e13, "bfloat16": 9e14},
    }
    return {"command": "tests/gpu/run.sh", "laws": "passed", "recipes": {"Flow": ways}, "machine": machine}


def test_each_way_on_a_gpu_is_a_row_and_what_failed_is_named():
    shown = scale.gpu_part(gpu())
    assert "| Flow | float32 | 1,000 | 1.0 | 25 % | 1.5 |" in shown
    assert "| Flow | bfloat16 | 2,600 | 2.6 | 12 % | – |" in shown
    assert "Chip 9" in shown and "50 TFLOP/s in float32 and 900 TFLOP/s in bfloat16" in shown and "passed" in shown
    assert "Not measured: Flow in compiled (RuntimeError: no compiler)." in shown and "more" not in shown


@pytest.mark.parametrize("content", [None, {"machine": {"tiny": True}}])
def test_without_a_gpu_the_page_says_how_to_measure(content):
    assert "tests/gpu/run.sh" in scale.gpu_part(content) and "|" not in scale.gpu_part(content)


def test_company_is_compared_with_the_calm_machine():
    def runs(*seconds: float) -> list[dict]:
        return [{"processor": s, "wall": 2 * s, "memory_mb": 10 * s} for s in seconds]

    content = {"machine": {"cores": 2}, "notebook": "10_weiper", "profile": "quick"}
    content["rows"] = {"6": runs(150, 180), "0": runs(90, 110), "2": runs(100)}
    shown = scale.in_company(content)
    lines = [line for line in shown.splitlines() if line.startswith("|")][2:]
    assert lines == [
        "| 0 | 2 | 100 | 1.00 (0.90 to 1.10) | 1.0 | 1100 |",
        "| 2 | 1 | 100 | 1.00 (1.00 to 1.00) | 1.0 | 1000 |",
        "| 6 | 2 | 165 | 1.65 (1.50 to 1.80) | 1.6 | 1800 |",
    ]
    assert "alone 0.90 to 1.10; beside 2 1.00 to 1.00, beside 6 1.50 to 1.80 busy processes." in shown
    assert "tests.benchmarks.company" in scale.in_company(None)
    with pytest.raises(ValueError, match="calm machine"):
        scale.in_company(content | {"rows": {"2": runs(1)}})


def test_the_page_shows_what_the_files_hold(tmp_path):
    page = (ROOT / "book/scale.md").read_text(encoding="utf-8")
    assert all(f"_generated/{name}" in page for name in ("speed.md", "growth.md", "growth.png", "gpu.md", "company.md"))
    (tmp_path / "results").symlink_to(ROOT / "book/results")
    scale.add_speed(tmp_path)
    peers = json.loads((ROOT / "book/results/speed/peers.json").read_text())
    table = (tmp_path / "_generated/speed.md").read_text()
    assert all(f"\n| {name} | " in table for name in peers["rows"])
    kept = {name: (ROOT / f"book/results/speed/{name}.json").is_file() for name in ("gpu", "company")}
    said = {name: (tmp_path / f"_generated/{name}.md").read_text() for name in kept}
    assert {name: text.startswith("Not measured yet") for name, text in said.items()} == {
        n: not k for n, k in kept.items()
    }


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
