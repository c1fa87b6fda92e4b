"""Laws of the exercises: each has a stub, a check, a typical mistake and a solution, and the check knows them apart.

What the checks say is read from the runs in `_build/run/quick`, which `make test` makes; the rest from the sources.
"""

import re
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext")
nbformat = pytest.importorskip("nbformat")

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.py"))
RUNS = [path for path in ((ROOT / "_build/run/quick" / f"{p.stem}.ipynb") for p in NOTEBOOKS) if path.is_file()]
KINDS = ("exercise", "check", "wrong", "solution")  # in the order of the page


def kind(cell):
    tags = cell.metadata.get("tags", [])
    return next((k for k in ("wrong", *KINDS) if k in tags), "")


def exercises(cells):
    """The labelled exercises: (label, [(kind, cell), ...]) with the code cells from its start to its solution's end."""
    found = []
    for cell in cells:
        if cell.cell_type == "markdown":
            found += [(label, []) for label in re.findall(r"\{exercise-start\}.*\n:label: (\S+)", cell.source)]
        elif found and kind(cell):
            found[-1][1].append((kind(cell), cell))
    return found


def said(cell):
    """What a cell shows at its end."""
    shown = [o for o in cell.outputs if o.output_type == "execute_result"]
    return shown[-1].data["text/plain"] if shown else ""


def out_of_order(parts):
    kinds = [k for k, n in parts]
    return [k for i, k in enumerate(kinds) if i == 0 or k != kinds[i - 1]] != list(KINDS)


def misjudged(parts):
    """Complaints about what the check says of no answer, of the typical mistake and of the solution."""
    last = dict(parts)
    no_answer, wrong, right = said(last["check"]), said(last["wrong"]), said(last["solution"])
    return [
        text for text, fine in (
            (no_answer, no_answer.startswith("not answered yet")),
            (wrong, wrong.startswith("not yet: ") and len(wrong) >= 29),
            (right, right == "correct"),
        ) if not fine
    ]  # fmt: skip


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_exercise_has_its_four_parts_in_order(path):
    assert [label for label, parts in exercises(jupytext.read(path).cells) if out_of_order(parts)] == []


def test_every_chapter_has_exercises():
    counts = {p.stem: len(exercises(jupytext.read(p).cells)) for p in NOTEBOOKS}
    assert min(n for name, n in counts.items() if name[0] in "12345" or name.startswith("05")) >= 6


@pytest.mark.parametrize("path", RUNS, ids=lambda p: p.stem)
def test_every_check_knows_no_answer_a_mistake_and_a_solution_apart(path):
    found = exercises(nbformat.read(path, as_version=4).cells)
    assert {label: complaints for label, parts in found if (complaints := misjudged(parts))} == {}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_typical_mistake_is_described(path):
    cells = [c.source for c in jupytext.read(path).cells if kind(c) == "wrong"]
    assert [text for text in cells if not re.match(r"# Tempting: .{15}", text)] == []


# -- the laws are able to fail ------------------------------------------------------------------------------------


def code(tags, output=""):
    cell = nbformat.v4.new_code_cell("...", metadata={"tags": tags})
    cell.outputs = [nbformat.v4.new_output("execute_result", {"text/plain": output})] if output else []
    return cell


def lesson(check="not answered yet: ...", wrong="not yet: " + 20 * "x", solution="correct"):
    return [
        nbformat.v4.new_markdown_cell("```{exercise-start} One\n:label: ex-one\n```"),
        code(["exercise"]), code(["check"], check), code(["solution", "wrong"], wrong), code(["solution"], solution),
    ]  # fmt: skip


def test_a_good_lesson_passes_and_each_fault_is_found():
    good = exercises(lesson())[0][1]
    assert not out_of_order(good) and not misjudged(good)
    for fault in ({"check": "correct"}, {"wrong": "correct"}, {"wrong": "not yet: x"}, {"solution": "not yet: no"}):
        assert misjudged(exercises(lesson(**fault))[0][1])
    for missing in range(1, 5):
        cells = lesson()
        del cells[missing]
        assert out_of_order(exercises(cells)[0][1])
