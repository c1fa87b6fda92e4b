"""What a teacher hands out: editions of a notebook, each made of the one source by its fences and tags.

An exercise is a question, from `{exercise-start}` to `{exercise-end}`, and a solution, from `{solution-start}` to
`{solution-end}`. A student gets the questions and their checks, an instructor everything, otter-grader a master
notebook of its own format. Directives and roles, which only the book understands, become plain Markdown.
"""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ood_lib.book.notebooks import Refused, load, with_ids
from ood_lib.book.plain import plain
from ood_lib.extras import need

__all__ = ["EDITIONS", "Exercise", "instructor", "otter", "parts", "student", "write_editions"]

FENCE = re.compile(r"^(`{3,})\{(exercise|solution)-(start|end)\} *(.*)\n((?::.*\n)*)\1 *$", re.M)
CALL = re.compile(r"(check_\w+\(.+\))\s*\Z")
Cell = Any


@dataclass
class Exercise:
    """One exercise: the cells a student sees, and those between the fences of its solution."""

    label: str
    title: str
    question: list[Cell] = field(default_factory=list)
    solution: list[Cell] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The label as an identifier."""
        return self.label.removeprefix("ex-").replace("-", "_")

    @property
    def call(self) -> str:
        """The call of its check, the last line of a check cell."""
        found = [call[1] for cell in self.question if "check" in _tags(cell) and (call := CALL.search(cell.source))]
        if not found:
            raise Refused(f"exercise {self.label} has no cell tagged check that ends in a call check_...(answer)")
        return found[-1]


def parts(notebook: Any) -> list[Cell | Exercise]:
    """The cells of a notebook in order, with each exercise and its solution gathered into one."""
    found: list[Cell | Exercise] = []
    exercises: dict[str, Exercise] = {}
    here: list[Any] = found
    for item in _pieces(notebook):
        match item:
            case ("exercise", "start", title, label):
                found.append(exercises.setdefault(label, Exercise(label, title)))
                here = exercises[label].question
            case ("solution", "start", label, _):
                if label not in exercises:
                    raise Refused(f"a solution of {label!r}, which no exercise before it is labelled")
                here = exercises[label].solution
            case (_, "end", _, _):
                here = found
            case cell:
                here.append(cell)
    if here is not found:
        raise Refused("the last exercise or solution has no end")
    return found


def _pieces(notebook: Any) -> Iterable[Cell | tuple[str, str, str, str]]:
    """Cells and fences; a Markdown cell is cut where a fence stands in it."""
    for cell in notebook.cells:
        if cell.cell_type != "markdown":
            yield _copy(cell)
            continue
        at = 0
        for fence in FENCE.finditer(cell.source):
            yield from _text(cell.source[at : fence.start()])
            label = re.search(r"^:label: (\S+)", fence[5], re.M)
            yield fence[2], fence[3], fence[4].strip(), label[1] if label else ""
            at = fence.end()
        yield from _text(cell.source[at:])


def _tags(cell: Cell) -> list[str]:
    return cell.metadata.get("tags", [])


def _copy(cell: Cell, source: str | None = None) -> Cell:
    """The cell without outputs."""
    copy = deepcopy(cell)
    copy.source = cell.source if source is None else source
    if copy.cell_type == "code":
        copy.outputs, copy.execution_count = [], None
    return copy


def _text(source: str) -> list[Cell]:
    text = plain(source).strip()
    return [need("nbformat", "book").v4.new_markdown_cell(text)] if text else []


def _raw(*lines: str) -> Cell:
    return need("nbformat", "book").v4.new_raw_cell("\n".join(lines))


def _question(exercise: Exercise) -> list[Cell]:
    return [*_text(f"### Exercise: {exercise.title}"), *exercise.question]


def _solution(exercise: Exercise) -> list[Cell]:
    cells = _text("**Solution**")
    for cell in exercise.solution:
        cells += _text("*A typical mistake, and what the check says of it:*") if "wrong" in _tags(cell) else []
        cells.append(cell)
    return cells


def _graded(exercise: Exercise) -> list[Cell]:
    """The question, its solution and its test between the raw cells of otter-assign, format v1."""
    answers = [c for c in exercise.solution if c.cell_type == "code" and "wrong" not in _tags(c)]
    test = need("nbformat", "book").v4.new_code_cell(f"verdict = {exercise.call}\nassert verdict, verdict")
    return [
        _raw("# BEGIN QUESTION", f"name: {exercise.name}", "points: 1"), *_question(exercise),
        _raw("# BEGIN SOLUTION"), *(_hidden(cell) for cell in answers), _raw("# END SOLUTION"),
        _raw("# BEGIN TESTS"), test, _raw("# END TESTS"), _raw("# END QUESTION"),
    ]  # fmt: skip


def _hidden(cell: Cell) -> Cell:
    return _copy(cell, f"# BEGIN SOLUTION NO PROMPT\n{cell.source}\n# END SOLUTION")


def _edition(notebook: Any, of_exercise: Callable[[Exercise], list[Cell]], first: Sequence[Cell] = ()) -> Any:
    cells = [c for p in parts(notebook) for c in (of_exercise(p) if isinstance(p, Exercise) else [p])]
    made = need("nbformat", "book").v4.new_notebook(metadata=deepcopy(notebook.metadata), cells=[*first, *cells])
    return with_ids(made)


def student(notebook: Any) -> Any:
    """The notebook without anything of a solution; questions, their stubs and their checks stay."""
    made = _edition(notebook, _question)
    made.cells = [cell for cell in made.cells if "solution" not in _tags(cell)]
    return made


def instructor(notebook: Any) -> Any:
    """The notebook with every solution, and before it the typical mistake with what the check says of it."""
    return _edition(notebook, _solved)


def _solved(exercise: Exercise) -> list[Cell]:
    return [*_question(exercise), *_solution(exercise)]


def otter(notebook: Any) -> Any:
    """The master notebook for `otter assign`: a question of one point per exercise, its test calls its check.

    References:
        Otter-Grader documentation, *Otter Assign: Notebook Format* (v1).
    """
    source = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    install = re.search(r'^SOURCE = "(.+)"$', source, re.M)
    needs = ["requirements:", f'    - "{install[1]}"'] if install else []
    return _edition(notebook, _graded, [_raw("# ASSIGNMENT CONFIG", "init_cell: true", "export_cell: false", *needs)])


EDITIONS: dict[str, Callable[[Any], Any]] = {"student": student, "instructor": instructor, "otter": otter}


def write_editions(source: Path, out: Path) -> list[Path]:
    """Write `<edition>/<name>.ipynb` of one notebook into a folder; each appears whole or not at all."""
    notebook, write = load(source), need("nbformat", "book").writes
    paths = [out / edition / f"{source.stem}.ipynb" for edition in EDITIONS]
    for path, make in zip(paths, EDITIONS.values()):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        partial.write_text(write(make(notebook)) + "\n", encoding="utf-8")
        os.replace(partial, path)
    return paths
