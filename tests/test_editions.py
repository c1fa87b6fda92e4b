"""Laws of the editions: students get no solution and every check, teachers get both, the grader a test for each."""

import ast
import re

import pytest
import yaml
from test_lessons import NOTEBOOKS as SOURCES
from test_lessons import ROOT, exercises, kind, nbformat

from ood_lib.book import cli
from ood_lib.book.editions import EDITIONS
from ood_lib.book.notebooks import Refused, load
from ood_lib.book.plain import plain

each_source = pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)


MYST = (  # a directive, an option, a row of a list table, a role, a target, a link that leads nowhere in a notebook
    r"^[> ]*(?:`{3}|:{3})\{.*|^[> ]*:[\w-]+:.*|^[> ]*\* - .*|\{[\w:]+\}`[^`]*`"
    r"|^\([\w-]+\)=|\]\(\.\./.*|\]\(\d\d_\w+\)|\[\]\(.*"
)


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
def test_the_grader_is_told_to_install_what_colab_installs(source):
    config = yaml.safe_load(EDITIONS["otter"](load(source)).cells[0].source)
    (needed,) = config["requirements"]
    assert needed.startswith("ood_lib[plots] @ git+https://") and f'SOURCE = "{needed}"' in text(load(source), "code")


@each_source
@pytest.mark.parametrize("edition", EDITIONS)
def test_every_edition_is_a_notebook_that_compiles_and_shows_no_directive(source, edition):
    notebook = EDITIONS[edition](load(source))
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            compile(cell.source, source.name, "exec")
    shown = text(notebook, "markdown")
    assert re.findall(MYST, shown, re.M) == []
    assert notebook == EDITIONS[edition](load(source))  # the same source, the same file


def names(cell, context):
    return {n.id for n in ast.walk(ast.parse(cell.source)) if isinstance(n, ast.Name) and isinstance(n.ctx, context)}


@each_source
def test_no_later_cell_needs_what_a_solution_defines(source):
    """As far as names tell: a student's notebook has to run to its end."""
    defined, hidden, missing = set(), set(), set()
    for cell in (c for c in load(source).cells if c.cell_type == "code"):
        if kind(cell) in ("solution", "wrong"):
            hidden |= names(cell, ast.Store) - defined
        else:
            defined |= names(cell, ast.Store)
            missing |= names(cell, ast.Load) & hidden - defined
    assert missing == set()


LESSON = """# %% [markdown]
# ```{exercise-start} One
# :label: ex-one
# ```
# %% tags=["exercise"]
answer = ...
# %% tags=["check"]
check_answer(answer)
# %% [markdown]
# ```{exercise-end}
# ```
# ```{solution-start} ex-one
# ```
# SECRET words, in a cell with a fence.
# %%
print("SECRET, without a tag")
# %% tags=["solution"]
answer = "SECRET"
# %% [markdown]
# SECRET words again.
# ```{solution-end}
# ```
# After it.
# %% tags=["solution"]
print("SECRET, outside")
"""


def test_what_lies_between_the_fences_is_hidden_whatever_its_tags(tmp_path):
    (tmp_path / "page.py").write_text(LESSON)
    shown = text(EDITIONS["student"](load(tmp_path / "page.py")))
    assert "SECRET" not in shown and shown.endswith("After it.")
    assert text(EDITIONS["instructor"](load(tmp_path / "page.py"))).count("SECRET") == LESSON.count("SECRET")


@pytest.mark.parametrize("edition", EDITIONS)
def test_a_solution_that_does_not_end_is_refused(edition, tmp_path):
    (tmp_path / "page.py").write_text(LESSON.replace("{solution-end}", "{note}"))
    with pytest.raises(Refused, match="solution ex-one has no"):
        EDITIONS[edition](load(tmp_path / "page.py"))


def test_the_solution_of_a_question_runs_before_its_check_and_after_what_is_given():
    weiper = EDITIONS["otter"](load(ROOT / "notebooks/10_weiper.py"))
    parts = "smoothed = ", "check_order = ", "order = ...", "def order(x)", "check_order(order)\n"
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
        ("a {term}`score`, its {term}`scores <score (Stein)>`", "a score, its scores"),
        ("{py:func}`~ood_lib.msma.score_norms` {math}`x^2`", "`score_norms` $x^2$"),
        ("(sec-a)=\n## A", "## A"),
        ("```{note}\na\n```\n", "> **Note**\n>\n> a\n"),
        ("[a](10_weiper), [b](../book/api.md#x), [](sec-a)", "[a](10_weiper.ipynb), b, `sec-a`"),
        (
            "```{list-table} T\n:header-rows: 1\n\n* - a\n  - b\n* - c\n    d\n  - e\n```\n",
            "**T**\n\n| a | b |\n| --- | --- |\n| c d | e |\n",
        ),
        ("```{admonition} Before\n:class: tip\n**a** b\nc\n```\n", "> **Before**\n>\n> **a** b\n> c\n"),
    ],
)
def test_myst_becomes_what_jupyter_shows(myst, markdown):
    assert plain(myst) == markdown
