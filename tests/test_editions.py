"""Laws of the editions: nothing of a solution reaches a student, everything reaches an instructor, otter can grade."""

import ast
import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("jupytext")

from ood_lib.book import cli  # noqa: E402
from ood_lib.book.editions import EDITIONS, Exercise, instructor, otter, parts, student  # noqa: E402
from ood_lib.book.notebooks import Refused, load, sources  # noqa: E402
from ood_lib.book.plain import plain  # noqa: E402

ROOT = Path(__file__).parents[1]
BOOK = sources(ROOT)
every = pytest.mark.parametrize("source", BOOK.values(), ids=BOOK)

MYST = r"^\s*>?\s*(`{3,}|:{3,})\{|\{[a-z:]+\}`|^:label:|^\([\w-]+\)=|\]\(\.\./|\[\]\("

LESSON = '''# %% [markdown]
# Before.
# ```{exercise-start} One
# :label: ex-page-one
# ```
# What? *Hint: count
# again.*

# %% tags=["exercise"]
answer = ...

# %% tags=["check"]
check_answer = print
check_answer(answer)

# %% [markdown]
# ```{exercise-end}
# ```
#
# ```{solution-start} ex-page-one
# :class: dropdown
# ```
# SECRET words before.

# %% tags=["solution", "wrong", "remove-cell"]
answer = "SECRET mistake"

# %%
print("SECRET, though not tagged")

# %% tags=["solution"]
answer = "SECRET code"

# %% [markdown]
# SECRET words after.
# ```{solution-end}
# ```
# After, in the same cell.

# %% tags=["solution"]
print("SECRET, tagged outside the fences")
'''


@pytest.fixture
def lesson(tmp_path):
    path = tmp_path / "page.py"
    path.write_text(LESSON)
    return load(path)


def tagged(notebook, tag):
    return [c.source for c in notebook.cells if tag in c.metadata.get("tags", [])]


def text(notebook):
    return "\n".join(c.source for c in notebook.cells)


def exercises(notebook):
    return [p for p in parts(notebook) if isinstance(p, Exercise)]


def test_a_student_gets_nothing_between_the_fences_of_a_solution_nor_tagged_so(lesson):
    made = student(lesson)
    assert "SECRET" not in text(made)
    assert [c.source for c in made.cells if c.cell_type == "markdown"] == [
        "Before.", "### Exercise: One",
        "What?\n\n<details><summary>Hint</summary>\n\nCount\nagain.\n\n</details>", "After, in the same cell.",
    ]  # fmt: skip


def test_an_instructor_gets_all_in_order(lesson):
    found = re.findall(r"SECRET.*", text(instructor(lesson)))
    assert [f.split()[1].strip('",') for f in found] == ["words", "mistake", "though", "code", "words", "tagged"]


def test_otter_hides_the_solution_from_its_students(lesson):
    made = text(otter(lesson))
    shown = re.sub(r"# BEGIN SOLUTION NO PROMPT.*?\n# END SOLUTION", "", made, flags=re.S)
    assert "SECRET code" in made and "SECRET code" not in shown and "SECRET words" not in made
    assert "SECRET mistake" not in made


@every
def test_no_solution_survives_in_a_student_edition_and_every_question_does(source):
    notebook = load(source)
    made = student(notebook)
    cells = {c.source for c in made.cells}
    secret = [c for e in exercises(notebook) for c in e.solution]
    assert len(exercises(notebook)) == text(notebook).count("{solution-end}")
    assert [c.source for c in secret if c.source in cells or c.source in text(made)] == []
    assert tagged(made, "solution") == tagged(made, "wrong") == []
    for tag in ("exercise", "check", "parameters"):
        assert tagged(made, tag) == tagged(notebook, tag)


@every
def test_an_instructor_edition_has_every_solution_and_every_mistake(source):
    notebook = load(source)
    assert tagged(instructor(notebook), "solution") == tagged(notebook, "solution")
    assert tagged(instructor(notebook), "wrong") == tagged(notebook, "wrong")


@every
@pytest.mark.parametrize("edition", EDITIONS)
def test_an_edition_is_a_notebook_whose_code_compiles_and_whose_text_is_plain(source, edition):
    made = EDITIONS[edition](load(source))
    nbformat.validate(made)
    for cell in made.cells:
        if cell.cell_type == "code":
            compile(cell.source, source.name, "exec")
            assert not cell.outputs
        if cell.cell_type == "markdown":
            assert not re.search(MYST, cell.source, re.M)


@every
def test_what_a_solution_defines_no_later_cell_needs(source):
    """Names, as far as reading finds them; that a student edition runs to its end is tried by running it."""
    defined, hidden, needed = set(), set(), set()
    for cell in load(source).cells:
        if cell.cell_type != "code":
            continue
        names = [n for n in ast.walk(ast.parse(cell.source)) if isinstance(n, ast.Name)]
        stored = {n.id for n in names if isinstance(n.ctx, ast.Store)}
        if "solution" in cell.metadata.get("tags", []):
            hidden |= stored - defined
        else:
            defined |= stored
            needed |= {n.id for n in names if isinstance(n.ctx, ast.Load)} & (hidden - defined)
    assert needed == set()


@every
def test_otter_has_a_question_per_exercise_whose_test_calls_its_check(source):
    notebook = load(source)
    cells = otter(notebook).cells
    raw = [c.source.splitlines() for c in cells if c.cell_type == "raw"]
    expected = [e.name for e in exercises(notebook)]
    assert raw[0][0] == "# ASSIGNMENT CONFIG"
    marks = ["BEGIN QUESTION", "BEGIN SOLUTION", "END SOLUTION", "BEGIN TESTS", "END TESTS", "END QUESTION"]
    assert [r[0].removeprefix("# ") for r in raw[1:]] == marks * len(expected)
    assert [r[1] for r in raw if r[0] == "# BEGIN QUESTION"] == [f"name: {name}" for name in expected]
    assert len(set(expected)) == len(expected) and all(name.isidentifier() for name in expected)
    tests = [c.source for c, before in zip(cells[1:], cells) if before.source == "# BEGIN TESTS"]
    for exercise, test in zip(exercises(notebook), tests, strict=True):
        checks = [c.source.splitlines()[-1] for c in exercise.question if "check" in c.metadata.get("tags", [])]
        assert test == f"verdict = {checks[-1]}\nassert verdict, verdict"


def test_a_fence_without_its_other_half_is_refused(tmp_path):
    path = tmp_path / "page.py"
    for given, says in ((LESSON.replace("{solution-end}", "{note}"), "no end"),
                        (LESSON.replace("-start} ex-page-one", "-start} ex-page-two"), "ex-page-two")):  # fmt: skip
        path.write_text(given)
        with pytest.raises(Refused, match=says):
            student(load(path))


def test_directives_and_roles_become_plain_markdown():
    assert plain("```{admonition} Look\n:class: tip\nOne\n\ntwo\n```") == "> **Look**\n>\n> One\n>\n> two"
    table = plain("```{list-table} T\n:header-rows: 1\n\n* - a\n  - b\n* - c\n    d\n  - e\n```")
    assert table.splitlines()[2:] == ["| a | b |", "| --- | --- |", "| c d | e |"]
    assert plain("{math}`x` {numref}`the figure <fig-a>` [](10_weiper) [x](../book/api.md)") == (
        "$x$ `the figure` [10_weiper](10_weiper.ipynb) x"
    )


def test_the_command_writes_three_editions_and_refuses_an_unknown_name(tmp_path, capsys):
    assert cli.main(["teach", "weiper", "--root", str(ROOT), "--out", str(tmp_path)]) == 0
    found = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.*"))
    assert found == [f"{edition}/10_weiper.ipynb" for edition in sorted(EDITIONS)]
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.ipynb")}
    assert cli.main(["teach", "weiper", "--root", str(ROOT), "--out", str(tmp_path)]) == 0
    assert {p: p.read_bytes() for p in before} == before
    assert cli.main(["teach", "weipr", "--root", str(ROOT), "--out", str(tmp_path / "no")]) == 2
    assert "did you mean 'weiper'" in capsys.readouterr().err and not (tmp_path / "no").exists()
