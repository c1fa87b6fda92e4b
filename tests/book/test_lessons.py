"""Laws of the exercises: each has a stub, a check, a typical mistake and a solution, and the check knows them apart.

And of the quizzes: five questions a chapter, one right choice each, every choice explained.

What the checks say is read from the runs in `_build/run/quick`, which `make test` makes; the rest from the sources.
"""

import re
from pathlib import Path

import pytest

pytest.importorskip("jupytext")
pytest.importorskip("nbformat")

import nbformat

from tests.book.chapters import chapter, executed

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.py"))
RUNS = [path for path in ((ROOT / "_build/run/quick" / f"{p.stem}.ipynb") for p in NOTEBOOKS) if path.is_file()]
QUIZZES = ("05", "06", "07", "10", "20", "30", "40", "50", "60")  # the chapters that have one
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
    assert [label for label, parts in exercises(chapter(path).cells) if out_of_order(parts)] == []


def test_every_chapter_has_exercises():
    counts = {p.stem: len(exercises(chapter(p).cells)) for p in NOTEBOOKS}
    first = [counts[name] for name in counts if name[:2] in ("05", "06", "07")]  # three short pages
    assert min(n for name, n in counts.items() if name[0] in "12345") >= 6
    assert min(first) >= 4 and sum(first) >= 12


@pytest.mark.parametrize("path", RUNS, ids=lambda p: p.stem)
def test_every_check_knows_no_answer_a_mistake_and_a_solution_apart(path):
    found = exercises(executed(path).cells)
    assert {label: complaints for label, parts in found if (complaints := misjudged(parts))} == {}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_typical_mistake_is_described(path):
    cells = [c.source for c in chapter(path).cells if kind(c) == "wrong"]
    assert [text for text in cells if not re.match(r"# Tempting: .{15}", text)] == []


CHOICE = re.compile(
    r"<details><summary>([A-D])\. [^\n]+</summary>\n\n\*\*(Right|No)\.\*\* ((?:(?!</?details).)+?)\n\n</details>",
    re.DOTALL,
)


def quiz(cells):
    """The questions of a chapter's quiz, each a list of (letter, right or not, explanation)."""
    (text,) = [c.source for c in cells if c.cell_type == "markdown" and c.source.startswith("### Quiz\n")]
    questions = re.split(r"^\*\*\d\. ", text, flags=re.MULTILINE)[1:]
    assert text.count("<details>") == sum(len(CHOICE.findall(q)) for q in questions), "a choice is out of form"
    return [[(letter, verdict == "Right", why) for letter, verdict, why in CHOICE.findall(q)] for q in questions]


def unfit(questions):
    """What is wrong with a quiz, in words."""
    right = [[letter for letter, fine, _ in choices if fine] for choices in questions]
    faults = {
        "not five questions": len(questions) != 5,
        "not three or four choices": any(len(choices) not in (3, 4) for choices in questions),
        "letters out of order": any("".join(c[0] for c in q) != "ABCD"[: len(q)] for q in questions),
        "not one right choice": any(len(letters) != 1 for letters in right),
        "a choice without a reason": any(len(why) < 25 for choices in questions for _, _, why in choices),
        "always the same letter": len({tuple(letters) for letters in right}) == 1,
    }
    return [fault for fault, found in faults.items() if found]


@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if p.stem[:2] in QUIZZES], ids=lambda p: p.stem)
def test_every_chapter_has_a_quiz_that_explains_each_choice(path):
    assert unfit(quiz(chapter(path).cells)) == []


def test_the_quiz_stands_directly_before_the_exercises():
    for path in NOTEBOOKS:
        if path.stem[:2] in QUIZZES:
            heads = re.findall(r"^#+ .+", "\n".join(
                c.source for c in chapter(path).cells if c.cell_type == "markdown"), re.MULTILINE)  # fmt: skip
            assert heads[heads.index("### Quiz") + 1].endswith("Exercises"), path.stem


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


def choice(letter, verdict="No", why=25 * "x"):
    return f"<details><summary>{letter}. choice</summary>\n\n**{verdict}.** {why}\n\n</details>\n\n"


def a_quiz(*questions):
    text = "### Quiz\n\n" + "".join(f"**{i}. Why?**\n\n{q}" for i, q in enumerate(questions, 1))
    return quiz([nbformat.v4.new_markdown_cell(text)])


def test_a_good_quiz_passes_and_each_fault_is_found():
    first = choice("A", "Right") + choice("B") + choice("C")
    second = choice("A") + choice("B", "Right") + choice("C")
    assert unfit(a_quiz(first, second, first, second, first)) == []
    assert unfit(a_quiz(first, second, first, second)) == ["not five questions"]
    assert unfit(a_quiz(*5 * [first])) == ["always the same letter"]
    for last, fault in (
        (choice("A", "Right") + choice("B"), "not three or four choices"),
        (choice("A", "Right") + choice("C") + choice("B"), "letters out of order"),
        (first.replace("No", "Right"), "not one right choice"),
        (first.replace("Right", "No"), "not one right choice"),
        (choice("A", "Right") + choice("B", why="x") + choice("C"), "a choice without a reason"),
    ):
        assert unfit(a_quiz(first, second, first, second, last)) == [fault]
    with pytest.raises(AssertionError, match="out of form"):  # without the blank lines its formulas stay raw
        a_quiz(first.replace("</summary>\n\n", "</summary>\n"))
