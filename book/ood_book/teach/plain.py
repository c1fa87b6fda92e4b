"""Markdown that Jupyter, Colab and GitHub show, made of the Markdown of the book with its directives and roles."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pybtex.database import parse_file

from ood_book.metadata import read_yaml
from ood_book.notebooks import Refused
from ood_book.site.reference import page_of

__all__ = ["ALONE", "Book", "Cited", "labels", "plain", "read_book", "references", "summary"]

DIRECTIVE = re.compile(r"^(`{3,}|:{3,})\{([\w:-]+)\} *([^\n]*)\n((?::[\w-]+:[^\n]*\n)*)(.*?)^\1$\n?", re.M | re.S)
NOTES = "note|tip|hint|important|warning|caution|attention|danger|error|seealso"  # boxes named after their kind
BOX = re.compile(rf"admonition|dropdown|{NOTES}")
ROLE = re.compile(r"\{([\w:-]+)\}`([^`]+)`")
TITLED = re.compile(r"(.+?)\s*<([^<>]+)>", re.S)  # `words <label>`
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?:\.\./(book|notebooks)/)?([\w-]*)(?:\.md|\.ipynb)?(#[\w-]+)?\)")
TARGET = re.compile(r"^\([\w-]+\)=\n", re.M)
HINT = re.compile(r"\s*\*Hint: (.+?)\*(?=\s*$|\n)", re.S)
FORMULA = re.compile(r"(\$\$.+?\$\$|\$[^$]+\$)", re.S)


class Cited(NamedTuple):
    """A work of the bibliography as a text names it."""

    names: str
    year: str
    url: str  # of the paper; empty where the bibliography has none


@dataclass(frozen=True)
class Book:
    """What the whole book knows of a text in it.

    Args:
        site: address of the pages, with a slash at its end; empty = links lead to the notebooks beside this one.
        cited: the works of the bibliography.
        labels: what to call the figure, the table, the section or the exercise of a label.
    """

    site: str = ""
    cited: Mapping[str, Cited] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


ALONE = Book()


def read_book(root: Path) -> Book:
    """The bibliography of a book, and where GitHub Pages shows its repository."""
    repository = read_yaml(root / "_config.yml").get("repository") or {}
    owner, _, name = str(repository.get("url", "")).removeprefix("https://github.com/").partition("/")
    folder = "" if name.endswith(".github.io") else f"{name}/"
    return Book(f"https://{owner}.github.io/{folder}" if name else "", references(root / "book/references.bib"))


def references(bibliography: Path) -> dict[str, Cited]:
    """The works of a BibTeX file by key: authors, year, and address of the paper where the entry names one."""
    entries = parse_file(str(bibliography)).entries
    return {key: Cited(_names(e), e.fields.get("year", ""), _address(e.fields)) for key, e in entries.items()}


def _names(entry: Any) -> str:
    names = [" ".join(re.sub(r"[{}]", "", x) for x in p.last_names) for p in entry.persons.get("author", [])]
    return f"{names[0]} et al." if len(names) > 2 or names[-1:] == ["others"] else " and ".join(names)


def _address(fields: Mapping[str, str]) -> str:
    doi = f"https://doi.org/{fields['doi']}" if "doi" in fields else ""
    paper = f"https://arxiv.org/abs/{fields['eprint']}" if "eprint" in fields else ""
    return doi or fields.get("url", "") or paper


def labels(notebook: Any) -> dict[str, str]:
    """What to call each figure, table, section and exercise of a notebook that has a label."""
    found: dict[str, str] = {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            found |= dict(re.findall(r"^\(([\w-]+)\)=\n#+ (.+)$", cell.source, re.M))
            found |= {label: f"“{title.rstrip('.')}”" for title, label in _named(cell.source)}
        elif figure := cell.metadata.get("mystnb", {}).get("figure"):
            first = re.split(r"(?<=\w)\. ", figure.get("caption", ""))[0].rstrip(".")
            found[figure.get("name", "")] = f"“{first}”"
    return found


def _named(text: str) -> Iterator[tuple[str, str]]:
    for title, options in re.findall(r"^(?:`{3,}|:{3,})\{[\w:-]+\} *([^\n]+)\n((?::[\w-]+:[^\n]*\n)+)", text, re.M):
        yield from ((title, label) for label in re.findall(r"^:(?:name|label): (\S+)", options, re.M))


def plain(text: str, book: Book = ALONE) -> str:
    """MyST as Markdown: a box becomes a quotation, a list table a table, a role its words, a hint something to unfold.

    Args:
        text: of a cell or a caption.
        book: what its citations, links and labels stand for.

    Raises:
        Refused: a directive that only the book can show, or a citation or a label that `book` does not know.

    Example:
        >>> hinton = {"hinton2002": Cited("Hinton", "2002", "https://doi.org/10.1162/1")}
        >>> plain("See {cite:p}`hinton2002` and {py:class}`~ood_lib.detectors.heat.heat.HEAT`. *Hint: think.*", Book(cited=hinton))
        'See ([Hinton, 2002](https://doi.org/10.1162/1)) and `HEAT`.\\n\\n<details><summary>Hint</summary>\\n\\nthink.\\n\\n</details>'
    """  # noqa: E501
    text = DIRECTIVE.sub(lambda found: _directive(found, book), text)
    text = ROLE.sub(lambda found: _role(found[1], found[2], book), TARGET.sub("", text))
    text = LINK.sub(lambda found: _link(found, book), text)
    return HINT.sub(lambda found: "\n\n" + summary("Hint", found[1]), text)


def summary(title: str, body: str) -> str:
    """Something to unfold; the blank lines let Markdown and formulas inside be read as such."""
    return f"<details><summary>{re.sub('[*`]', '', title)}</summary>\n\n{body.strip()}\n\n</details>"


def _directive(found: re.Match[str], book: Book) -> str:
    _, name, given, options, body = found.groups()
    match name:
        case "list-table":
            return _table(plain(given, book), plain(body, book), ":header-rows: 0" not in options)
        case "math":
            return f"$$\n{body.strip()}\n$$\n"
        case "code" | "code-block":
            return f"```{given}\n{body}```\n"
        case _ if not BOX.fullmatch(name):
            raise Refused(f"a notebook outside the book cannot show {{{name}}}: write it as Markdown or as code")
    if re.fullmatch(NOTES, name):  # these have no title of their own: what stands behind their name is text
        given, body = "", f"{given}\n{body}" if given else body
    title, body = plain(given, book) or name.rpartition(":")[2].capitalize(), plain(body, book).strip()
    if name == "dropdown" or re.search(r"^:class:.*\bdropdown\b", options, re.M):
        return summary(title, body) + "\n"
    # Jupyter sets a formula before it reads the quotation, and would take its marks for signs of the formula.
    body = FORMULA.sub(lambda formula: " ".join(formula[0].split()), body)
    return "\n".join(f"> {line}".rstrip() for line in [f"**{title}**", "", *body.splitlines()]) + "\n"


def _table(title: str, body: str, head: bool) -> str:
    """A list table, with its title above; the first row is the head, which Markdown cannot do without."""
    rows = [re.split(r"\n  [*-](?: |$)", row, flags=re.M) for row in re.split(r"^[*-] [*-] ", body, flags=re.M)[1:]]
    rows = [[_cell(text) for text in row] for row in rows]
    rows = [*([] if head else [[""] * len(rows[0])]), *rows]
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join([f"**{title}**", "", *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def _cell(text: str) -> str:
    """In one line, without the stroke that would end it."""
    parts = FORMULA.split(" ".join(text.split()))
    parts[1::2] = [part.replace(r"\|", r"\Vert ").replace("|", r"\vert ") for part in parts[1::2]]
    parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
    return "".join(parts)


def _role(name: str, text: str, book: Book) -> str:
    words, label = titled.groups() if (titled := TITLED.fullmatch(text)) else ("", text)
    match name.partition(":")[0]:
        case "math":
            return f"${text}$"
        case "cite":
            works = [_work(key.strip(), name == "cite:t", book) for key in text.split(",")]
            return ", ".join(works) if name == "cite:t" else f"({'; '.join(works)})"
        case "ref" | "numref" | "eq" | "doc":
            return words.replace("%s", book.labels.get(label, "")).strip() or _called(label, book)
        case "py":
            full = label.lstrip("~")
            shown = f"`{words or (full.rpartition('.')[2] if full != label else full)}`"
            anchor = f"module-{full}" if name == "py:mod" else full
            return f"[{shown}]({book.site}book/api/{page_of(full)}.html#{anchor})" if book.site else shown
        case "glue":
            raise Refused(f"a notebook outside the book cannot show {{{name}}}`{text}`: print the value from a cell")
    return words or text


def _called(label: str, book: Book) -> str:
    if label not in book.labels:
        raise Refused(f"the notebook has no label {label!r}: give the words to show, {{ref}}`words <{label}>`")
    return book.labels[label]


def _work(key: str, in_text: bool, book: Book) -> str:
    if key not in book.cited:
        raise Refused(f"{key!r} is cited and is not in book/references.bib")
    names, year, url = book.cited[key]
    words = f"{names} ({year})" if in_text else f"{names}, {year}"
    where = url or (f"{book.site}book/bibliography.html" if book.site else "")
    return f"[{words}]({where})" if where else words


def _link(found: re.Match[str], book: Book) -> str:
    """To a page of the site; without one a chapter travels along, and of a page of the book the words are left."""
    words, folder, page, anchor = found.groups(default="")
    chapter = re.fullmatch(r"\d\d_\w+", page)
    if chapter or folder:
        there = f"{book.site}{'notebooks' if chapter else folder}/{page}.html{anchor}" if book.site else ""
        beside = f"{page}.ipynb" if chapter else ""
        return f"[{words}]({there or beside})" if there or beside else words
    if not words or page in book.labels or not page:
        return words or _called(page or anchor.lstrip("#"), book)
    return found[0]
