"""Laws of the editions: students get no solution and every check, teachers get both, the grader a test for each."""

import re

import pytest
from test_lessons import NOTEBOOKS as SOURCES
from test_lessons import ROOT, exercises, kind, nbformat

from ood_lib.book import cli
from ood_lib.book.editions import EDITIONS, plain
from ood_lib.book.notebooks import load

each_source = pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)


def text(notebook, *kinds):
    return "\n".join(c.source for c in notebook.cells if not kinds or c.cell_type in kinds)


def cells(source, *kinds):
    return [c.source for c in load(source).cells if kind(c) in kinds]


def prose_of_solutions(source):
    """The lines between the fences of each solution."""
    whole = "\n".join(c.source for c in load(source).cells if c.cell_type == "markdown")
    found = re.findall(r"\{solution-start\}.*\n(?::.*\n)*```\n(.*?)```\{solution-end\}", whole, re.S)
    return [line for part in found for line in part.splitlines() if len(line) > 25]


@each_source
def test_nothing_of_a_solution_reaches_a_student(source):
    shown = text(EDITIONS["student"](load(source)))
    assert [x for x in [*cells(source, "solution", "wrong"), *prose_of_solutions(source)] if x in shown] == []
    assert "solution-" not in shown


@each_source
def test_students_get_every_question_and_its_check(source):
    student = EDITIONS["student"](load(source))
    assert [x for x in cells(source, "exercise", "check") if x not in text(student, "code")] == []
    assert text(student).count("**Exercise.**") == len(exercises(load(source).cells))


@each_source
def test_teachers_get_all_of_it(source):
    shown = text(EDITIONS["instructor"](load(source)), "code")
    assert [c.source for c in load(source).cells if c.cell_type == "code" and c.source not in shown] == []


@each_source
def test_the_grader_gets_a_question_with_a_test_for_each_exercise(source):
    notebook = EDITIONS["otter"](load(source))
    raw = [c.source.split("\n")[0] for c in notebook.cells if c.cell_type == "raw"]
    count = len(exercises(load(source).cells))
    one = ["# BEGIN QUESTION", "# BEGIN SOLUTION", "# END SOLUTION", "# BEGIN TESTS", "# END TESTS", "# END QUESTION"]
    assert raw == ["# ASSIGNMENT CONFIG", *one * count]
    assert len(set(re.findall(r"^name: (\w+)$", text(notebook, "raw"), re.M))) == count
    assert len(re.findall(r"^assert check_\w+\(\w+\), check_\w+\(\w+\)$", text(notebook, "code"), re.M)) == count


@each_source
@pytest.mark.parametrize("edition", EDITIONS)
def test_every_edition_is_a_notebook_that_compiles_and_shows_no_directive(source, edition):
    notebook = EDITIONS[edition](load(source))
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            compile(cell.source, source.name, "exec")
    shown = text(notebook, "markdown")
    assert re.findall(r"^(?:`{3}|:{3})\{.*", shown, re.M) + re.findall(r"\{[\w:]+\}`[^`]*`", shown) == []
    assert notebook == EDITIONS[edition](load(source))  # the same source, the same file


def test_the_solution_of_a_question_runs_before_its_check_and_after_what_is_given():
    weiper = EDITIONS["otter"](load(ROOT / "notebooks/10_weiper.py"))
    parts = "smoothed = ", "check_far = ", "far = ...", "def max_of_mean", "check_far(far)\n"
    order = [text(weiper).index(part) for part in parts]
    assert order == sorted(order)


def test_the_command_writes_the_chosen_notebooks_and_refuses_others(tmp_path, capsys):
    out = ["--out", str(tmp_path), "--root", str(ROOT)]
    assert cli.main(["teach", "weiper", *out]) == 0
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*")) == [
        f"{edition}/10_weiper.ipynb" for edition in sorted(EDITIONS)
    ]
    assert cli.main(["teach", "wieper", *out]) == 2 and "did you mean 'weiper'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("myst", "markdown"),
    [
        ("see {cite:t}`a2020` and {cite:p}`b,c`", "see a2020 and [b,c]"),
        ("{numref}`Figure %s <fig-x>` of {ref}`the notes <n>`", "Figure of the notes"),
        ("{py:func}`~ood_lib.msma.score_norms` {math}`x^2`", "`score_norms` $x^2$"),
        ("(sec-a)=\n## A", "## A"),
        ("```{admonition} Before\n:class: tip\n**a** b\nc\n```\n", "> **Before**\n>\n> **a** b\n> c\n"),
    ],
)
def test_myst_becomes_what_jupyter_shows(myst, markdown):
    assert plain(myst) == markdown
