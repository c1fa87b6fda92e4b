"""One source, three editions: what students get, what the teacher gets, and a master for the grader `otter`.

Pure functions from a chapter to a notebook.  All three are plain Markdown: Jupyter and Colab show no directives.
The fourth edition, slides, is made of a run and no notebook: `slides.py`, `deck.py`.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from ood_lib.book.notebooks import Refused
from ood_lib.book.plain import plain
from ood_lib.extras import need

__all__ = ["EDITIONS", "Part", "instructor", "otter", "placed", "role", "student"]

FENCE = re.compile(r"^```\{(exercise|solution)-(start|end)\} *(.*)\n((?::\w+:.*\n)*)```\n?", re.M)
SOURCE = re.compile(r'^SOURCE = (".+")$', re.M)
ANSWER = re.compile(r"^\w+ = \.\.\..*$", re.M)


class Part(NamedTuple):
    """A cell, and where it stands: in no exercise, in one, or in its solution."""

    place: str
    cell: Any
    label: str


def student(notebook: Any) -> Any:
    """The chapter without its solutions; the checks stay."""
    shown = [p.cell for p in placed(notebook) if p.place != "solution" and role(p.cell) not in ("solution", "wrong")]
    return _notebook(notebook, [_shown(cell) for cell in shown])


def instructor(notebook: Any) -> Any:
    """The chapter with its solutions, and the mistakes that the checks know."""
    return _notebook(notebook, [_shown(part.cell) for part in placed(notebook)])


def otter(notebook: Any) -> Any:
    """The chapter as `otter assign` reads it: a question to each exercise, its check the test."""
    cells = [_raw("# ASSIGNMENT CONFIG\ninit_cell: true\nexport_cell: false\ncheck_all_cell: false" + _needs(notebook))]
    parts, waiting = list(placed(notebook)), list[Part]()
    for part in parts:
        if part.place != "exercise" and waiting:
            cells += _question(waiting, [p for p in parts if p.label == waiting[0].label])
            waiting = []
        if part.place == "exercise":
            waiting.append(part)
        elif part.place == "":
            cells.append(_shown(part.cell))
    return _notebook(notebook, cells)


EDITIONS = {"student": student, "instructor": instructor, "otter": otter}


def _needs(notebook: Any) -> str:
    """What the grader has to install: what the chapter's first cell installs on Colab."""
    found = SOURCE.search("\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code"))
    return f"\nrequirements:\n  - {found.group(1)}" if found else ""


def _question(exercise: list[Part], everything: list[Part]) -> list[Any]:
    """Text, answer with its solution, check and test of one exercise; an exercise without a check is text."""
    tagged = {kind: [p.cell for p in everything if role(p.cell) == kind] for kind in ("exercise", "check", "solution")}
    if not tagged["check"]:
        return [_shown(p.cell) for p in exercise]
    stub, check, solution = ("\n\n\n".join(c.source for c in cells) for cells in tagged.values())
    given, call = ANSWER.sub("", stub).strip(), check.splitlines()[-1]
    asked = next(iter(ANSWER.findall(stub)), stub)
    answer = f"{asked}\n# BEGIN SOLUTION NO PROMPT\n{solution.removesuffix(call).rstrip()}\n# END SOLUTION"
    text = [_shown(p.cell) for p in exercise if p.cell.cell_type == "markdown"]
    begin = [_raw(f"# BEGIN QUESTION\nname: {exercise[0].label.replace('-', '_')}\npoints: 1"), *text]
    before = [_code(x) for x in (given, check.removesuffix(call).rstrip()) if x]
    solved = [_raw("# BEGIN SOLUTION"), _code(answer), _raw("# END SOLUTION"), _code(call)]
    tests = [_raw("# BEGIN TESTS"), _code(f"assert {call}, {call}"), _raw("# END TESTS")]
    return [*begin, *before, *solved, *tests, _raw("# END QUESTION")]


def placed(notebook: Any) -> Iterator[Part]:
    """The cells with their places; one that holds a fence is cut there, and the fence becomes a heading."""
    place = label = ""
    for cell in notebook.cells:
        if cell.cell_type != "markdown":
            yield Part(place, cell, label)
            continue
        end = 0
        for fence in FENCE.finditer(cell.source):
            yield from _text(place, label, cell.source[end : fence.start()])
            kind, side, title, options = fence.groups()
            end, place = fence.end(), kind if side == "start" else ""
            if side == "start":
                label = next(iter(re.findall(r":label: (\S+)", options)), title)
                yield from _text(place, label, f"**Exercise.** *{title}*" if kind == "exercise" else "**Solution**")
        yield from _text(place, label, cell.source[end:])
    if place:
        raise Refused(f"the {place} {label} has no {{{place}-end}}")


def _text(place: str, label: str, text: str) -> Iterator[Part]:
    if text.strip():
        yield Part(place, need("nbformat", "book").v4.new_markdown_cell(text.strip()), label)


def role(cell: Any) -> str:
    """Of an exercise: exercise, check, wrong or solution; empty for any other cell."""
    tags = cell.metadata.get("tags", [])
    return "wrong" if "wrong" in tags else next((k for k in ("exercise", "check", "solution") if k in tags), "")


def _shown(cell: Any) -> Any:
    if cell.cell_type == "markdown":
        return need("nbformat", "book").v4.new_markdown_cell(plain(cell.source))
    return _code(cell.source, [t for t in cell.metadata.get("tags", []) if t in ("parameters", "exercise", "check")])


def _code(source: str, tags: list[str] | None = None) -> Any:
    return need("nbformat", "book").v4.new_code_cell(source, metadata={"tags": tags} if tags else {})


def _raw(source: str) -> Any:
    return need("nbformat", "book").v4.new_raw_cell(source)


def _notebook(notebook: Any, cells: list[Any]) -> Any:
    made = need("nbformat", "book").v4.new_notebook(cells=cells, metadata={"kernelspec": notebook.metadata.kernelspec})
    for number, cell in enumerate(made.cells):
        cell.id = f"cell-{number}"  # the same source, the same file
    return made
