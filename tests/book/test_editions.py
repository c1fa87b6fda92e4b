"""Laws of the editions: all are plain Markdown and run as the chapter does; each hides what it is to hide.

A reader in Jupyter or Colab gets solutions folded, students none and every check, teachers both, and the grader a test
for each.
"""

import ast
import json
import math
import re
import tomllib
import zipfile
from contextlib import suppress
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
import yaml
from ood_book import cli
from ood_book.notebooks import Refused
from ood_book.percent import load
from ood_book.teach.editions import EDITIONS, reader
from ood_book.teach.plain import Book, Cited, labels, plain, read_book, references

import ood_lib
from tests.book.chapters import chapter, stored
from tests.book.test_lessons import NOTEBOOKS as SOURCES
from tests.book.test_lessons import ROOT, exercises, kind, nbformat

BOOK = read_book(ROOT)
ALL = EDITIONS | {"reader": reader}
each_source = pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)


MYST = (  # a directive, an option, a row of a list table, a role, a target, a link that leads nowhere in a notebook
    r"^[> ]*(?:`{3}|:{3})\{.*|^[> ]*:[\w-]+:.*|^[> ]*\* - .*|\{[\w:]+\}`[^`]*`"
    r"|^\([\w-]+\)=|\]\(\.\./.*|\]\(\d\d_\w+\)|\[\]\(.*"
)


ROLES = r"\{(?:cite|ref|numref|eq|doc|term|py|glue)(?::\w+)?\}`"  # that a cell of code would display


@cache
def made(edition, source):
    """An edition of a chapter; made once, and only read."""
    return ALL[edition](chapter(source), BOOK)


def text(notebook, *kinds):
    return "\n".join(c.source for c in notebook.cells if not kinds or c.cell_type in kinds)


def cells(source, *kinds):
    return [c.source for c in chapter(source).cells if kind(c) in kinds]


def prose_of_solutions(source):
    """The lines between the fences of each solution."""
    whole = "\n".join(c.source for c in chapter(source).cells if c.cell_type == "markdown")
    found = re.findall(r"\{solution-start\}.*\n(?::.*\n)*```\n(.*?)```\{solution-end\}", whole, re.S)
    return [line for part in found for line in part.splitlines() if len(line) > 25]


@each_source
def test_nothing_of_a_solution_reaches_a_student(source):
    shown = text(made("student", source))
    assert [x for x in [*cells(source, "solution", "wrong"), *prose_of_solutions(source)] if x in shown] == []
    assert re.findall(r"\b[Ss]olutions?\b", shown) == []  # none is promised


@each_source
def test_students_get_every_question_and_its_check(source):
    student = made("student", source)
    assert [x for x in cells(source, "exercise", "check") if x not in text(student, "code")] == []
    assert text(student).count("**Exercise.**") == len(exercises(chapter(source).cells))
    checks = [c for c in student.cells if kind(c) == "check"]
    assert len(checks) == len(cells(source, "check")) and all(map(is_folded, checks))


def run_alone(code):
    """The names that code defines, up to where it needs one of the chapter's."""
    space = {"math": math, "torch": torch, "ood": ood_lib}
    with suppress(NameError):
        exec(code, space)
    return space


def constants(code):
    """Every value that an expression without names has."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.expr) and not any(isinstance(n, ast.Name | ast.Call) for n in ast.walk(node)):
            with suppress(ValueError, TypeError, SyntaxError):
                found += np.ravel(eval(compile(ast.Expression(node), "", "eval"))).tolist()
    return [x for x in found if isinstance(x, int | float)]


def given_away(check, solution):
    """Numbers of a check that are the answer, where this is one or two and computed without the chapter."""
    call = check.splitlines()[-1]
    answer = re.findall(r"\((\w+)\)", call)[0]
    space = run_alone(solution.removesuffix(call))
    wanted = np.ravel(space.get(answer, [])).tolist()
    wanted = [x for x in wanted if isinstance(x, int | float)] if len(wanted) < 3 else []
    return [x for x in constants(check) if any(math.isclose(x, y, rel_tol=1e-6, abs_tol=1e-12) for y in wanted)]


@each_source
def test_no_number_in_a_check_is_the_answer(source):
    found = {label: dict(parts) for label, parts in exercises(chapter(source).cells)}
    told = {label: given_away(p["check"].source, p["solution"].source) for label, p in found.items()}
    assert {label: x for label, x in told.items() if x} == {}


@each_source
def test_a_check_makes_functions_alone_so_that_no_name_holds_the_answer(source):
    for code in cells(source, "check"):
        *made, last, call = ast.parse(code).body
        assert isinstance(call, ast.Expr) and isinstance(last, ast.Assign) and "ood.Check(" in ast.unparse(last)
        assert [ast.unparse(x) for x in made if not isinstance(x, ast.FunctionDef | ast.Import | ast.ImportFrom)] == []


def test_an_answer_in_a_check_is_found_out():
    check = "check_p = ood.Check((lambda a: abs(a - (1 - 0.95**20)) < 1e-3, ''))\ncheck_p(p)"
    assert len(given_away(check, "p = 1 - math.pow(0.95, 20)\ncheck_p(p)")) == 1
    assert given_away(check, "p = 0.95\ncheck_p(p)") and not given_away(check, "p = 0.64\ncheck_p(p)")
    assert given_away(check, "p = f.test\ncheck_p(p)") == []  # needs the chapter


@each_source
def test_teachers_get_all_of_it(source):
    shown = text(made("instructor", source), "code")
    assert [c.source for c in chapter(source).cells if c.cell_type == "code" and c.source not in shown] == []


@each_source
def test_the_grader_gets_a_question_with_a_test_for_each_exercise(source):
    notebook = made("otter", source)
    raw = [c.source.split("\n")[0] for c in notebook.cells if c.cell_type == "raw"]
    count = len(exercises(chapter(source).cells))
    one = ["# BEGIN QUESTION", "# BEGIN SOLUTION", "# END SOLUTION", "# BEGIN TESTS", "# END TESTS", "# END QUESTION"]
    assert raw == ["# ASSIGNMENT CONFIG", *one * count]
    assert len(set(re.findall(r"^name: (\w+)$", text(notebook, "raw"), re.M))) == count
    assert len(re.findall(r"^assert check_\w+\(\w+\), check_\w+\(\w+\)$", text(notebook, "code"), re.M)) == count


def functions(notebook):
    """What a notebook defines outside its solutions, and a student may define again."""
    found = [ast.parse(c.source).body for c in notebook.cells if c.cell_type == "code"]
    return {x.name for body in found for x in body if isinstance(x, ast.FunctionDef | ast.ClassDef)}


def of_each_question(notebook):
    """The cells of code between the marks of each test."""
    cells = notebook.cells
    return [after.source for c, after in pairwise(cells) if c.cell_type == "raw" and c.source == "# BEGIN TESTS"]


@each_source
def test_a_test_takes_no_function_and_no_module_from_the_notebook_of_a_student(source):
    student = made("student", source)
    theirs = functions(student) | {"ood", "np", "torch", "math", "pd", "F", "nn", "auroc"}
    for code in of_each_question(made("otter", source)):
        tree = ast.parse(code)
        own = {x.name for x in tree.body if isinstance(x, ast.FunctionDef | ast.ClassDef)}
        own |= {a.asname or a.name for x in tree.body if isinstance(x, ast.Import | ast.ImportFrom) for a in x.names}
        bound = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        bound |= {a.arg for n in ast.walk(tree) if isinstance(n, ast.arguments) for a in [*n.args, *n.kwonlyargs]}
        loaded = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        assert loaded & theirs - own - bound == set(), code


def test_a_check_that_a_student_has_redefined_counts_for_nothing():
    (code,) = [x for x in of_each_question(made("otter", ROOT / "notebooks/20_heat.py")) if "check_nats" in x]
    cheat = {"check_nats": lambda a: True, "ood": None}
    with pytest.raises(AssertionError, match="multiply"):
        exec(code, cheat | {"nats": 0.1})
    exec(code, cheat | {"nats": 20})


@each_source
def test_the_grader_is_told_to_install_what_colab_installs(source):
    config = yaml.safe_load(made("otter", source).cells[0].source)
    (needed,) = config["requirements"]
    assert needed.startswith("ood_lib[plots] @ git+https://")
    assert f'SOURCE = "{needed}"' in text(chapter(source), "code")


@each_source
@pytest.mark.parametrize("edition", ALL)
def test_every_edition_is_a_notebook_that_compiles_and_shows_no_directive(source, edition):
    notebook = made(edition, source)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            compile(cell.source, source.name, "exec")
    shown = text(notebook, "markdown")
    assert re.findall(MYST, shown, re.M) == []
    assert [c.source for c in notebook.cells if c.cell_type == "code" and re.search(ROLES, c.source)] == []
    assert notebook == ALL[edition](load(source), BOOK)  # the same source, the same file


def names(cell, context):
    return {n.id for n in ast.walk(ast.parse(cell.source)) if isinstance(n, ast.Name) and isinstance(n.ctx, context)}


@each_source
@pytest.mark.parametrize("left_out", [("solution", "wrong"), ("wrong",)], ids=["student", "reader"])
def test_no_later_cell_needs_what_a_cell_defines_that_is_left_out(source, left_out):
    """As far as names tell: the notebook of a student and that of a reader have to run to their ends."""
    defined, hidden, missing = set(), set(), set()
    for cell in (c for c in chapter(source).cells if c.cell_type == "code"):
        if kind(cell) in left_out:
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
    weiper = made("otter", ROOT / "notebooks/10_weiper.py")
    parts = "smoothed = ", "check_order = ", "order = ...", "def order(x)", "check_order(order)\n"
    order = [text(weiper).index(part) for part in parts]
    assert order == sorted(order)


def test_the_command_writes_the_chosen_notebooks_and_refuses_others(tmp_path, capsys):
    out = ["--out", str(tmp_path), "--root", str(ROOT)]
    assert cli.main(["teach", "weiper", *out]) == 0
    written = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*")}
    quiz = {"quiz/10_weiper-canvas.zip", "quiz/10_weiper-moodle.xml"}
    assert written == {f"{edition}/10_weiper.ipynb" for edition in EDITIONS} | {"student.zip"} | quiz
    with zipfile.ZipFile(tmp_path / "student.zip") as bundle:
        assert bundle.namelist() == ["10_weiper.ipynb"]
        assert bundle.read("10_weiper.ipynb") == (tmp_path / "student/10_weiper.ipynb").read_bytes()
    assert cli.main(["teach", "weiper", "--at", "spring/2027-v1.0", *out]) == 0
    for edition in EDITIONS:
        made_for_it = (tmp_path / f"{edition}/10_weiper.ipynb").read_text(encoding="utf-8")
        assert "ood-book@main" not in made_for_it and "ood-book@spring/2027-v1.0" in made_for_it
    assert cli.main(["teach", "weiper", "--at", "a tag", *out]) == 2 and "'a tag' is no tag" in capsys.readouterr().err
    assert cli.main(["teach", "wieper", *out]) == 2 and "did you mean 'weiper'" in capsys.readouterr().err


def test_the_zip_file_for_students_holds_every_notebook_that_is_in_their_folder(tmp_path):
    for name in ("weiper", "ledger"):
        assert cli.main(["teach", name, "--out", str(tmp_path), "--root", str(ROOT)]) == 0
        (tmp_path / "student/answers.txt").write_text("not for students")
    with zipfile.ZipFile(tmp_path / "student.zip") as bundle:
        assert bundle.namelist() == ["10_weiper.ipynb", "70_ledger.ipynb"]
        assert bundle.read("10_weiper.ipynb") == (tmp_path / "student/10_weiper.ipynb").read_bytes()


# ------------------------------------------------------------------------------------------------ for a reader


def committed(source):
    """The file that Colab and Jupyter open."""
    return stored(source.with_suffix(".ipynb"))


def untitled(cell):
    return re.sub(r"\A#@title .+\n", "", cell.source)


def is_folded(cell):
    """In Colab by a form with a title, in JupyterLab by its own mark."""
    hidden = cell.metadata.get("jupyter", {}).get("source_hidden", False)
    marks = {cell.metadata.get("cellView") == "form", hidden, cell.source.startswith("#@title ")}
    assert len(marks) == 1, f"folded in one of them only: {cell.source[:40]}"
    return hidden


@each_source
def test_a_reader_runs_the_code_of_the_chapter_cell_by_cell(source):
    ours = [untitled(c) for c in committed(source).cells if c.cell_type == "code"]
    assert ours == [c.source for c in chapter(source).cells if c.cell_type == "code" and kind(c) != "wrong"]
    assert "SOURCE = " in ours[0] and "pip" in ours[0]


@each_source
def test_what_the_page_hides_is_folded_for_a_reader_and_nothing_else_but_solutions(source):
    hidden = {"hide-input", "hide-cell", "remove-input", "remove-cell", "solution", "check"}
    wanted = {
        c.source: bool(hidden & (tags := set(c.metadata.get("tags", [])))) and "parameters" not in tags
        for c in chapter(source).cells
    }
    found = {untitled(c): is_folded(c) for c in committed(source).cells if c.cell_type == "code"}
    assert [x.split("\n")[0] for x, folded in found.items() if folded != wanted[x]] == []


@each_source
def test_a_solution_is_folded_with_all_that_it_says_and_shows(source):
    notebook = committed(source)
    open_text = re.sub(r"<details>.*?</details>", "", text(notebook, "markdown"), flags=re.S)
    assert [line for line in prose_of_solutions(source) if line in open_text] == []
    solved = [c for c in notebook.cells if c.cell_type == "code" and kind(c) == "solution"]
    assert len(solved) == len(exercises(chapter(source).cells))
    assert all(is_folded(c) and c.metadata.jupyter.outputs_hidden and c.metadata.collapsed for c in solved)


@each_source
def test_the_first_cell_leads_back_to_the_page(source):
    first = committed(source).cells[0]
    assert (
        first.cell_type == "markdown"
        and f"](https://ood-book.github.io/ood-book/notebooks/{source.stem}.html)" in first.source
    )


@each_source
def test_every_citation_names_authors_and_year_and_leads_somewhere(source):
    prose = "\n".join(c.source for c in chapter(source).cells if c.cell_type == "markdown")
    keys = {key.strip() for found in re.findall(r"\{cite:\w\}`([^`]+)`", prose) for key in found.split(",")}
    shown = text(committed(source), "markdown")
    for names, year, url in (BOOK.cited[key] for key in keys):
        there = url or "https://ood-book.github.io/ood-book/book/bibliography.html"
        assert f"[{names}, {year}]({there})" in shown or f"[{names} ({year})]({there})" in shown


@each_source
def test_every_figure_has_its_caption_and_its_description_below(source):
    notebook, below = chapter(source), committed(source).cells
    figures = {c.source: c.metadata["mystnb"] for c in notebook.cells if "mystnb" in c.metadata}
    found = {untitled(c): after.source for c, after in pairwise(below) if untitled(c) in figures}
    assert len(found) == len(figures) > 0
    for code, said in figures.items():
        assert found[code].startswith(f"*{said['figure']['caption']}*") and said["image"]["alt"] in found[code]


@each_source
def test_what_is_unfolded_has_blank_lines_inside_and_a_formula_in_a_quotation_is_on_one_line(source):
    """Without them Jupyter leaves Markdown inside raw, and takes the mark of a quotation for a sign of the formula."""
    shown = text(committed(source), "markdown")
    opened = re.findall(
        r"<details><summary>[^\n]+</summary>\n\n(?:(?!<details>).)+?\n\n</details>$", shown, re.M | re.S
    )
    assert len(opened) == shown.count("<details>") == shown.count("</details>")
    quoted = re.findall(r"^> .*$", shown, re.M)
    assert quoted and [line for line in quoted if line.count("$") % 2] == []


def test_no_tool_writes_a_notebook_back_to_its_source():
    """Jupytext would, where `formats` pairs the two, and the directives would be gone."""
    assert "formats" not in tomllib.loads((ROOT / "notebooks/jupytext.toml").read_text())
    assert not any("formats" in source.read_text(encoding="utf-8").split("# %%")[0] for source in SOURCES)


def test_the_code_of_a_solution_keeps_the_outputs_of_a_run():
    notebook = chapter(SOURCES[0])
    cell = next(c for c in notebook.cells if kind(c) == "solution")
    cell.outputs = [nbformat.v4.new_output("stream", text="0.8")]
    assert json.dumps(reader(notebook, BOOK)).count('"0.8"') == 1


# ------------------------------------------------------------------------------------------------ MyST to Markdown


CITED = {
    "a": Cited("A and B", "2020", "https://x.org/a"),
    "b": Cited("C", "2021", ""),
    "c": Cited("D et al.", "2022", ""),
}
KNOWN = Book("https://site/", CITED, {"fig-x": "“A curve”", "sec-a": "the notes"})


def test_works_are_named_by_authors_and_year_with_the_address_that_the_entry_has(tmp_path):
    (tmp_path / "x.bib").write_text(
        "@book{a, author={Noether, Emmy}, year={1918}, doi={10.1/x}}\n@book{b, author={A B and C D}, year={1}}\n"
        "@misc{c, author={{van der Berg}, A and D, B and E, F}, year={2}, eprint={2405.04759}}\n"
        "@misc{d, author={Sun, Y and others}, year={3}, url={https://x.org}}\n"
    )
    assert references(tmp_path / "x.bib") == {
        "a": ("Noether", "1918", "https://doi.org/10.1/x"),
        "b": ("B and D", "1", ""),
        "c": ("van der Berg et al.", "2", "https://arxiv.org/abs/2405.04759"),
        "d": ("Sun et al.", "3", "https://x.org"),
    }


@pytest.mark.parametrize(
    ("address", "site"),
    [
        ("https://github.com/ada/book", "https://ada.github.io/book/"),
        ("https://github.com/ada/ada.github.io", "https://ada.github.io/"),
    ],
)
def test_the_pages_are_where_github_shows_those_of_a_repository(tmp_path, address, site):
    (tmp_path / "book").mkdir()
    (tmp_path / "book/references.bib").touch()
    (tmp_path / "_config.yml").write_text(f"repository: {{url: {address}}}\n")
    assert read_book(tmp_path).site == site


def test_a_label_is_known_by_what_it_is_set_to():
    cells = [
        nbformat.v4.new_markdown_cell(
            "(sec-a)=\n## Our values\n\n```{list-table} All of them.\n:name: tab-a\n\n* - x\n```"
        ),
        nbformat.v4.new_code_cell(
            "", metadata={"mystnb": {"figure": {"name": "fig-a", "caption": "A curve. It rises."}}}
        ),
    ]
    found = labels(nbformat.v4.new_notebook(cells=cells))
    assert found == {"sec-a": "Our values", "tab-a": "“All of them”", "fig-a": "“A curve”"}


@pytest.mark.parametrize(
    "myst",
    ["{ref}`sec-b`", "[](sec-b)", "{numref}`fig-y`", "{cite:p}`nobody`", "{glue}`x`", "```{include} a.md\n```\n"],
)
def test_what_has_no_words_outside_the_book_is_refused_and_not_shown_raw(myst):
    with pytest.raises(Refused, match=r"label|cited|cannot show"):
        plain(myst, KNOWN)


@pytest.mark.parametrize(
    ("myst", "markdown"),
    [
        ("[a](10_weiper), [b](../book/api.md#x)", "[a](10_weiper.ipynb), b"),
        (
            "{py:func}`~ood_lib.detectors.msma.score_norms`, {py:mod}`ood_lib.detectors.msma`",
            "`score_norms`, `ood_lib.detectors.msma`",
        ),
    ],
)
def test_without_pages_a_chapter_travels_along_and_a_page_is_its_words(myst, markdown):
    assert plain(myst) == markdown


@pytest.mark.parametrize(
    ("myst", "markdown"),
    [
        (
            "see {cite:t}`a`, {cite:t}`b,c`",
            "see [A and B (2020)](https://x.org/a), [C (2021)](B), [D et al. (2022)](B)",
        ),
        ("so {cite:p}`a, b`", "so ([A and B, 2020](https://x.org/a); [C, 2021](B))"),
        (
            "{numref}`Figure %s <fig-x>` of {ref}`the other notes <n>`, {ref}`sec-a`",
            "Figure “A curve” of the other notes, the notes",
        ),
        (
            "{py:func}`~ood_lib.detectors.msma.score_norms` {math}`x^2`",
            "[`score_norms`](https://site/book/api/papers.html#ood_lib.detectors.msma.score_norms) $x^2$",
        ),
        (
            "{py:mod}`ood_lib.detectors.msma`",
            "[`ood_lib.detectors.msma`](https://site/book/api/papers.html#module-ood_lib.detectors.msma)",
        ),
        ("a {term}`score`, its {term}`scores <score (Stein)>`", "a score, its scores"),
        ("(sec-a)=\n## A", "## A"),
        ("```{note}\na\n```\n", "> **Note**\n>\n> a\n"),
        (":::{tip} one\n- two\n:::\n", "> **Tip**\n>\n> one\n> - two\n"),
        ("[a](10_weiper), [](sec-a)", "[a](https://site/notebooks/10_weiper.html), the notes"),
        (
            "[b](../book/api.md#x), [c](../book/own-data)",
            "[b](https://site/book/api.html#x), [c](https://site/book/own-data.html)",
        ),
        ("[d](https://x.org), f[0](x)", "[d](https://x.org), f[0](x)"),
        (
            "```{list-table} T\n:header-rows: 1\n\n* - a\n  - b\n* - $|c|$\n    d|\n  -\n```\n",
            "**T**\n\n| a | b |\n| --- | --- |\n| $\\vert c\\vert $ d\\| |  |\n",
        ),
        ("```{list-table} T\n:header-rows: 0\n\n* - a\n```\n", "**T**\n\n|  |\n| --- |\n| a |\n"),
        ("```{admonition} Before\n:class: tip\n**a** b\nc\n```\n", "> **Before**\n>\n> **a** b\n> c\n"),
        ("```{admonition} B\n$a\n+ b$\n\n$$x\n= y$$\n```\n", "> **B**\n>\n> $a + b$\n>\n> $$x = y$$\n"),
        ("````{note}\n```{tip}\na\n```\n````\n", "> **Note**\n>\n> > **Tip**\n> >\n> > a\n"),
        (
            "```{admonition} *More*\n:class: dropdown\na\n```\n",
            "<details><summary>More</summary>\n\na\n\n</details>\n",
        ),
    ],
)
def test_myst_becomes_what_jupyter_shows(myst, markdown):
    assert plain(myst, KNOWN) == markdown.replace("(B)", "(https://site/book/bibliography.html)")
