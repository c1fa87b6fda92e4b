"""One source, four editions: for a reader in Jupyter or Colab, for students, for teachers, for the grader `otter`.

Pure functions from a chapter to a notebook.  All of them are plain Markdown: Jupyter and Colab show no directives.
Slides are no notebook, and are made of a run: `slides.py`, `deck.py`.
"""

import ast
import re
from collections.abc import Iterator, Set
from dataclasses import replace
from functools import cache
from itertools import takewhile
from typing import Any, NamedTuple

from nbformat import v4

from ood_book.notebooks import Refused
from ood_book.teach.plain import ALONE, Book, labels, plain, summary

__all__ = ["EDITIONS", "Part", "instructor", "otter", "placed", "reader", "role", "student"]

FENCE = re.compile(r"^```\{(exercise|solution)-(start|end)\} *(.*)\n((?::\w+:.*\n)*)```\n?", re.M)
SOURCE = re.compile(r'^SOURCE = (".+")$', re.M)
ANSWER = re.compile(r"^\w+ = \.\.\..*$", re.M)
COMMENT = re.compile(r"(?:#+ (?!fmt:|%%).*\n)+")  # at the head of a cell
SOLVED = "**Solution**"
FOLDED = {"hide-input", "hide-cell", "remove-input", "remove-cell", "check"}
TAGS = ("parameters", "images", "exercise", "check", "solution")  # that stay
BACK = """This notebook is a page of [The OOD Book]({site}). [Read it there]({site}notebooks/{name}.html) with every
figure and number, or run it here, from the first cell to the last. Folded code runs like any other; a double click on
its title shows it."""


class Part(NamedTuple):
    """A cell, and where it stands: in no exercise, in one, or in its solution."""

    place: str
    cell: Any
    label: str


def reader(notebook: Any, book: Book = ALONE, name: str = "") -> Any:
    """The chapter as Jupyter and Colab open it: solutions folded, without the mistakes that the checks know.

    Args:
        notebook: the chapter, with its outputs or without.
        book: what its citations and links lead to.
        name: of its page, to which the first cell leads.
    """
    book = replace(book, labels=labels(notebook))
    cells = [_markdown(BACK.format(site=book.site, name=name))] if book.site else []
    for part in placed(notebook):
        if part.place == "solution" and part.cell.cell_type == "markdown":
            if part.cell.source != SOLVED:
                cells.append(_markdown(summary("Solution in words", plain(part.cell.source, book))))
        elif role(part.cell) != "wrong":
            cells += _shown(part.cell, book, FOLDED | {"solution"})
    return _notebook(notebook, cells)


def student(notebook: Any, book: Book = ALONE) -> Any:
    """The chapter without its solutions; the checks stay."""
    shown = [p.cell for p in placed(notebook) if p.place != "solution" and role(p.cell) not in ("solution", "wrong")]
    return _edition(notebook, book, shown)


def instructor(notebook: Any, book: Book = ALONE) -> Any:
    """The chapter with its solutions, and the mistakes that the checks know."""
    return _edition(notebook, book, [part.cell for part in placed(notebook)])


def _edition(notebook: Any, book: Book, cells: list[Any]) -> Any:
    book = replace(book, labels=labels(notebook))
    return _notebook(notebook, [made for cell in cells for made in _shown(cell, book)])


def otter(notebook: Any, book: Book = ALONE) -> Any:
    """The chapter as `otter assign` reads it: a question to each exercise, its check the test."""
    cells = [_raw("# ASSIGNMENT CONFIG\ninit_cell: true\nexport_cell: false\ncheck_all_cell: false" + _needs(notebook))]
    book, parts, waiting = replace(book, labels=labels(notebook)), list(placed(notebook)), list[Part]()
    for part in parts:
        if part.place != "exercise" and waiting:
            cells += _question(waiting, parts, book)
            waiting = []
        if part.place == "exercise":
            waiting.append(part)
        elif part.place == "":
            cells += _shown(part.cell, book)
    return _notebook(notebook, cells)


EDITIONS = {"student": student, "instructor": instructor, "otter": otter}


def _needs(notebook: Any) -> str:
    """What the grader has to install: what the chapter's first cell installs on Colab."""
    found = SOURCE.search("\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code"))
    return f"\nrequirements:\n  - {found.group(1)}" if found else ""


def _question(exercise: list[Part], parts: list[Part], book: Book) -> list[Any]:
    """Text, answer with its solution, check and test of one exercise; an exercise without a check is text."""
    label = exercise[0].label
    tagged = {
        kind: [p.cell for p in parts if p.label == label and role(p.cell) == kind]
        for kind in ("exercise", "check", "solution")
    }
    if not tagged["check"]:
        return [made for p in exercise for made in _shown(p.cell, book)]
    stub, check, solution = ("\n\n\n".join(c.source for c in cells) for cells in tagged.values())
    given, call = ANSWER.sub("", stub).strip(), check.splitlines()[-1]
    asked = next(iter(ANSWER.findall(stub)), stub)
    answer = f"{asked}\n# BEGIN SOLUTION NO PROMPT\n{solution.removesuffix(call).rstrip()}\n# END SOLUTION"
    text = [_markdown(plain(p.cell.source, book)) for p in exercise if p.cell.cell_type == "markdown"]
    begin = [_raw(f"# BEGIN QUESTION\nname: {label.replace('-', '_')}\npoints: 1"), *text]
    judge, named = check.removesuffix(call).rstrip(), _title(tagged["check"][0])
    before = [*([_code(given)] if given else []), _code(judge, title=named)]
    solved = [_raw("# BEGIN SOLUTION"), _code(answer), _raw("# END SOLUTION"), _code(call)]
    before_it = takewhile(lambda p: p.cell is not tagged["check"][0], parts)
    known = [p.cell.source for p in before_it if p.place != "solution" and p.cell.cell_type == "code"]
    test = f"{_own(judge, known)}\n\n\nassert {call}, {call}"
    return [*begin, *before, *solved, _raw("# BEGIN TESTS"), _code(test), _raw("# END TESTS"), _raw("# END QUESTION")]


def _own(code: str, known: list[str]) -> str:
    """Code after what it needs of the cells before it, imports and functions: it takes none of them from a student."""
    made = dict[str, str]()
    for found, stored in (pair for cell in known for pair in _names(cell)):
        for name in [] if found else stored:  # a value from here on
            made.pop(name, None)
        made |= found
    needed, left = set[str](), [code]
    while left:
        used = {n.id for n in ast.walk(ast.parse(left.pop())) if isinstance(n, ast.Name)}
        left += [made[name] for name in sorted(used & made.keys() - needed)]
        needed |= used & made.keys()
    return "\n\n".join([*(text for name, text in made.items() if name in needed), code])


@cache  # every question of a chapter asks for the cells before it
def _names(cell: str) -> list[tuple[dict[str, str], list[str]]]:
    """Of each statement of a cell what it imports or defines, and the names that it stores."""
    return [
        (dict(_made(node)), [n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)])
        for node in ast.parse(cell).body
    ]


def _made(node: ast.stmt) -> Iterator[tuple[str, str]]:
    """What a statement imports or defines, and the code that does so."""
    match node:
        case ast.Import(names=names):
            yield from ((a.asname or a.name.split(".")[0], ast.unparse(ast.Import([a]))) for a in names)
        case ast.ImportFrom(module=module, names=names):
            yield from ((a.asname or a.name, ast.unparse(ast.ImportFrom(module, [a], 0))) for a in names)
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            yield name, ast.unparse(node)
        case ast.Assign(targets=[ast.Name(id=name)], value=ast.Lambda()):
            yield name, ast.unparse(node)


def placed(notebook: Any) -> Iterator[Part]:
    """The cells with their places; one that holds a fence is cut there, and the fence becomes a heading."""
    place = label = ""
    for cell in notebook.cells:
        if cell.cell_type != "markdown":
            yield Part(place, cell, label)
            continue
        end = 0
        for fence in FENCE.finditer(cell.source):
            yield from _text(place, label, cell.source[end : fence.start()], cell)
            kind, side, title, options = fence.groups()
            end, place = fence.end(), kind if side == "start" else ""
            if side == "start":
                label = next(iter(re.findall(r":label: (\S+)", options)), title)
                yield from _text(place, label, f"**Exercise.** *{title}*" if kind == "exercise" else SOLVED, cell)
        yield from _text(place, label, cell.source[end:], cell)
    if place:
        raise Refused(f"the {place} {label} has no {{{place}-end}}")


def _text(place: str, label: str, text: str, cell: Any) -> Iterator[Part]:
    """A piece of a cell of text, with the tags of the whole."""
    if text.strip():
        piece = _markdown(text)
        piece.metadata["tags"] = cell.metadata.get("tags", [])
        yield Part(place, piece, label)


def role(cell: Any) -> str:
    """Of an exercise: exercise, check, wrong or solution; empty for any other cell."""
    tags = cell.metadata.get("tags", [])
    return "wrong" if "wrong" in tags else next((k for k in ("exercise", "check", "solution") if k in tags), "")


def _shown(cell: Any, book: Book, folds: Set[str] = FOLDED) -> list[Any]:
    """A cell as Jupyter and Colab show it, with the caption of its figure below."""
    if cell.cell_type == "markdown":
        return [_markdown(plain(cell.source, book))]
    tags, figure = set(cell.metadata.get("tags", [])), cell.metadata.get("mystnb", {})
    folded = tags & folds and "parameters" not in tags  # these are there to be changed
    made = _code(cell.source, [tag for tag in TAGS if tag in tags], _title(cell) if folded else "")
    if "solution" in tags & folds:  # "run all" runs it, too
        made.metadata |= {"collapsed": True, "jupyter": {"source_hidden": True, "outputs_hidden": True}}
    made.update(outputs=cell.outputs, execution_count=cell.execution_count)
    caption, alt = figure.get("figure", {}).get("caption", ""), figure.get("image", {}).get("alt", "")
    below = [f"*{plain(caption, book)}*"] * bool(caption) + [summary("The figure in words", alt)] * bool(alt)
    return [made, _markdown("\n\n".join(below))] if below else [made]


def _title(cell: Any) -> str:
    """What stands in place of folded code: what the cell is in an exercise, or its own first comment."""
    named = {"check": "Check (run it after your answer)", "solution": "Solution (double-click to show)"}
    comment = COMMENT.match(cell.source)
    said = " ".join(line.strip("# ") for line in comment[0].splitlines()) if comment else ""
    return named.get(role(cell)) or said or ("Code of the figure" if "mystnb" in cell.metadata else "Code")


def _markdown(source: str) -> Any:
    return v4.new_markdown_cell(source.strip())


def _code(source: str, tags: list[str] | None = None, title: str = "") -> Any:
    """A cell of code; with a title it is folded, as a form in Colab and as a hidden source in JupyterLab."""
    metadata: dict[str, Any] = {"tags": tags} if tags else {}
    if title:
        metadata |= {"cellView": "form", "jupyter": {"source_hidden": True}}
        source = f"#@title {title}\n{source}"
    return v4.new_code_cell(source, metadata=metadata)


def _raw(source: str) -> Any:
    return v4.new_raw_cell(source)


def _notebook(notebook: Any, cells: list[Any]) -> Any:
    made = v4.new_notebook(cells=cells, metadata={"kernelspec": notebook.metadata.kernelspec})
    for number, cell in enumerate(made.cells):
        cell.id = f"cell-{number}"  # the same source, the same file
    return made
