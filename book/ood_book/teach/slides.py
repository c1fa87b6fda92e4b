"""The slides of a chapter, made by rules of its executed notebook.

Slides contain what is short: bold questions and sentences, formulas, figures, tables, exercises, the quiz. The full
prose goes into the speaker's notes. A lecturer's tags come before the rules: a cell tagged `slide` begins a slide and
is shown whole, one tagged `skip` is left out. `deck.py` makes a file of them.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from html import escape
from typing import Any

import pygments
from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode
from mdit_py_plugins.dollarmath import dollarmath_plugin
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from ood_book.site.explorables import KIND, still
from ood_book.teach.editions import placed, role
from ood_book.teach.plain import Book, labels, plain

__all__ = ["Slide", "slides"]

ROOM = 12  # lines of text that a slide holds at about its full size
SHORT = 3  # lines that may stand above something large
LARGE = {"figure": 8, "table": 2, "code": 2}  # lines that it takes itself, beside those of its rows or its caption
ROWS = 14  # of a table; a longer one is cut
LETTERS = 1200  # of a table; one with more could not be read from the last row
LEAD = 170  # letters of a sentence that leads to a formula; a longer one stays in the notes
ATOM = r"\$[^$]+\$|`[^`]*`|\*\*.+?\*\*|\([^()]*\)|."
WHOLE = r"\*\*[^*]+[.?!]\*\*|\((?:\*\*)?[A-Z][^()]*[.?!]\)"  # a bold sentence, one in brackets
SENTENCE = re.compile(rf"\s*((?:{WHOLE})(?=\s|$)|(?:{ATOM})+?(?:(?<! al)[.?!](?=\s|$)|$))", re.S)
BOLD = re.compile(r"\*\*[^*]+\*\*")
LABEL = re.compile(r"\*\*(?:[^\s*]+ ?){1,6}\.\*\*")  # says what the next sentence is about
QUESTION = re.compile(r"^(?=\*\*\d+\. )", re.M)
CITED = re.compile(r"\{cite:(t|p)\}`([^`]+)`")
TABLE = re.compile(r"(.*<tbody>)(.*)(</tbody>.*)", re.S)


@dataclass
class Slide:
    """One page of a deck: where it stands, what it shows, and what the speaker reads."""

    kind: str  # title, text, figure, table, code, exercise or quiz
    title: str = ""
    where: str = ""  # the section around it
    parts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    lines: int = 0

    @property
    def html(self) -> str:
        """As reveal.js reads it; a heading with nothing below opens a section."""
        kind = self.kind if self.parts else "section"
        where = f'<p class="where">{self.where}</p>' if self.where else ""
        tag = "h1" if kind == "title" else "h2"
        head = f"<header><{tag}>{self.title}</{tag}>{where}</header>"
        notes = f'<aside class="notes">{"".join(self.notes)}</aside>' if self.notes else ""
        return f'<section class="{kind}"><div class="slide">{head}{"".join(self.parts)}</div>{notes}</section>\n'


def slides(notebook: Any, goal: str = "", cited: dict[str, str] | None = None) -> list[Slide]:
    """The slides of an executed notebook, without solutions and checks.

    Args:
        notebook: with its outputs.
        goal: a line for the title.
        cited: what to write for a key of the bibliography.
    """
    goal = f'<p class="goal">{escape(goal[:1].upper() + goal[1:])}</p>'
    deck = _Deck(goal, cited or {}, _made(notebook), Book(labels=labels(notebook)))
    for part in placed(notebook):
        tags = part.cell.metadata.get("tags", [])
        if part.place == "solution" or role(part.cell):
            continue
        if "skip" in tags:
            deck.skip(part.cell)
        elif part.cell.cell_type == "code":
            deck.code(part.cell)
        elif part.place == "exercise":
            deck.exercise(part.cell.source)
        elif "slide" in tags:
            deck.whole(part.cell.source)
        else:
            deck.prose(part.cell.source)
    return deck.slides


@dataclass
class _Deck:
    """The slides so far; what is added goes on the last one, or on a new one where that is full."""

    goal: str
    cited: dict[str, str]
    made: str
    book: Book
    slides: list[Slide] = field(default_factory=list)
    section: str = ""
    title: str = ""
    fresh: bool = False  # nothing was said since the heading
    waiting: str = ""  # for the notes of the slide that comes
    due: bool = False  # a heading was skipped: what comes belongs on a new slide

    def open(self, kind: str = "text", title: str = "") -> Slide:
        """A new slide, below the last heading."""
        title, self.due = title or self.title, False
        self.slides.append(Slide(kind, title, self.section if self.section != title else ""))
        return self.slides[-1]

    @property
    def last(self) -> Slide:
        """The slide that was opened last."""
        return self.slides[-1] if self.slides and not self.due else self.open()

    def large(self, kind: str, html: str, rows: int = 0) -> None:
        """A figure, a table or code on a slide of its own; a question that waits for it comes along."""
        last = self.last
        if last.kind != "text" or last.lines > SHORT:
            last = self.open()
        last.kind = kind
        last.parts.append(html)
        last.lines += LARGE[kind] + rows

    def show(self, html: str, lines: int, begins: bool = False) -> None:
        """A piece of text, where there is room; a question begins a slide, and has at most a little above it."""
        last = self.last
        full = last.kind in ("title", "quiz", "exercise") or last.lines + lines > ROOM
        if (full and last.parts) or (begins and last.lines > SHORT):
            last = self.open()
        last.parts.append(html)
        last.lines += lines

    def note(self, html: str, waits: bool = False) -> None:
        """What the speaker reads to the last slide, or to the one with the formula that this leads to."""
        self.waiting += html
        if not (waits or self.due):
            self.last.notes.append(self.waiting)
            self.waiting = ""

    # ------------------------------------------------------------------------------------------------ cells

    def prose(self, source: str) -> None:
        """A cell of Markdown, block by block; a quiz question by question."""
        text = self._plain(source)
        text, *questions = QUESTION.split(text) if text.startswith("### Quiz") else [text]
        blocks = _blocks(text)
        for before, block, after in zip([None, *blocks], blocks, [*blocks[1:], None]):
            self.block(block, before, after)
        for question in questions:
            self.open("quiz", "Quiz").parts.append(_html(question))

    def whole(self, source: str) -> None:
        """A cell of Markdown on a slide of its own, all of it; its headings begin further ones."""
        if (blocks := _blocks(self._plain(source)))[0].type != "heading":
            self.open()
        for block in blocks:
            if block.type == "heading":
                self.heading(block.tag, _inline(block.children[0].content))
            else:
                self.last.parts.append(_render(block))
        self.last.lines, self.fresh = ROOM, False

    def skip(self, cell: Any) -> None:
        """A cell that is left out, but for its headings: what comes stands below them."""
        for block in _blocks(self._plain(cell.source)) if cell.cell_type == "markdown" else ():
            if block.type == "heading":
                self.under(block.tag, _inline(block.children[0].content))
                self.due = True

    def exercise(self, source: str) -> None:
        """The question whole, for it is read by those who answer it; its hint is folded."""
        if heading := re.match(r"\*\*Exercise\.\*\* \*(.*)\*$", source):
            self.open("exercise", f"Exercise: {_inline(heading[1])}")
        else:
            self.last.parts.append(_html(self._plain(source)))

    def code(self, cell: Any) -> None:
        """What the cell has drawn, tabulated and said; its code where it asserts what a formula says, or is asked."""
        tags = cell.metadata.get("tags", [])
        hidden = any(tag.startswith(("hide", "remove")) for tag in tags)
        if "slide" in tags and (cell.outputs or not hidden):
            self.open()
        if ("assert " in cell.source or "slide" in tags) and not hidden:
            shown = _code(cell.source) + "".join(map(_printed, cell.outputs))
            self.large("code", shown, shown.count("\n"))
        for output in cell.outputs:
            self.output(cell.metadata.get("mystnb", {}), output.get("data", {}))

    def output(self, said: dict[str, Any], data: dict[str, Any]) -> None:
        """One output: a picture or a table on its own slide, Markdown like the rest of the prose."""
        html = re.sub(r"</?a\b[^>]*>|<script.*?</script>", "", data.get("text/html", ""), flags=re.S)
        chart = next((spec for kind, spec in data.items() if kind.startswith(KIND)), None)
        if chart:
            self.figure(still(chart), {"figure": {"caption": chart["usermeta"]["caption"]}})
        elif "image/png" in data:
            self.figure(_image(data["image/png"], said.get("image", {}).get("alt", "")), said)
        elif "<table" in html:
            for table in _cut(html):
                self.table(f'<div class="wide">{table}</div>')
        elif "<img" in html:
            self.figure(html, said)
        elif "text/markdown" in data:
            self.prose(data["text/markdown"])

    def figure(self, image: str, said: dict[str, Any]) -> None:
        """A picture with its caption, as large as the slide allows."""
        caption = _inline(self._plain(said.get("figure", {}).get("caption", "")))
        self.large("figure", f"<figure>{image}<figcaption>{caption}</figcaption></figure>", len(caption) // 100)

    def table(self, html: str) -> None:
        """A table of few words; one with many would be too small to read, and is the speaker's."""
        if len(re.sub(r"<style.*?</style>|<[^>]+>|\s", "", html, flags=re.S)) < LETTERS:
            self.large("table", html, html.count("<tr"))
        else:
            self.note(html)

    # ------------------------------------------------------------------------------------------------ blocks

    def block(self, block: Any, before: Any, after: Any) -> None:
        """A block of Markdown by its kind; `before` and `after` are its neighbours."""
        match block.type:
            case "heading":
                self.heading(block.tag, _inline(block.children[0].content))
                return
            case "math_block":
                lead = _sentences(before)[-1:] if before is not None and before.type == "paragraph" else []
                self.formula(block, lead)
            case "paragraph" if after is None or after.type != "table":
                self.paragraph(block)
            case "bullet_list" | "ordered_list":
                self.items(block)
            case "table":
                above = _render(before) if before is not None and before.type == "paragraph" else ""
                self.table(f'{above}<div class="wide">{_render(block)}</div>')
            case "fence":
                self.show(_render(block), 2 + block.content.count("\n"))
            case "blockquote" if claims := [_render(b) for b in block.children if _claims(b)]:
                (self.slides or [self.last])[0].parts += [*claims, self.made]
        self.note(_render(block), waits=after is not None and after.type == "math_block")
        self.fresh = False

    def heading(self, tag: str, text: str) -> None:
        """A new slide; the first heading is the title of the deck."""
        self.under(tag, text)
        self.fresh = True
        if tag == "h1":
            self.open("title").parts.append(self.goal)
        else:
            self.open()

    def under(self, tag: str, text: str) -> None:
        """What comes stands below this heading."""
        self.section, self.title = (text if tag == "h2" else self.section), text

    def paragraph(self, block: Any) -> None:
        """Its sentences with something bold, and the first of a section."""
        said = _sentences(block)
        shown = [s for s in said if "**" in s] or said[: self.fresh]
        if html := [f'<p class="{"key" if BOLD.fullmatch(s) else "said"}">{_inline(s)}</p>' for s in shown]:
            self.show("".join(html), sum(map(_lines, shown)), begins=any(s.endswith("?**") for s in shown))

    def formula(self, block: Any, lead: list[str]) -> None:
        """With the sentence that leads to it, unless the slide has just shown that."""
        text = _inline(lead[0]) if lead and len(lead[0]) < LEAD else ""
        shown = text and any(text in part for part in self.last.parts[-1:])
        above = f'<p class="lead">{text}</p>' if text and not shown else ""
        self.show(above + _render(block), 3 + 2 * block.content.count(r"\\") + bool(above))

    def items(self, block: Any) -> None:
        """The first sentence of each item; a long list in even parts."""
        said = [sentences[0] for item in block.children if (sentences := _sentences(item.children[0]))]
        for part in _even(said, -(-sum(map(_lines, said)) // ROOM)):
            self.show("".join(f'<p class="item">{_inline(x)}</p>' for x in part), sum(map(_lines, part)))

    def _plain(self, text: str) -> str:
        def named(found: re.Match[str]) -> str:
            names = [self.cited.get(key.strip(), key.strip()) for key in found[2].split(",")]
            return ", ".join(names) if found[1] == "t" else f"({'; '.join(names)})"

        return plain(CITED.sub(named, text), self.book)


def _made(notebook: Any) -> str:
    """When the numbers were made, and with which values."""
    record = notebook.metadata.get("ood_book")
    if not record:
        return ""
    values = ", ".join(f"{k} = {v}" for k, v in record["parameters"].items() if k in ("benchmark", "seeds", "epochs"))
    return f'<p class="made">Figures and numbers: run of {record["finished"][:10]}{f", {values}" if values else ""}</p>'


# ---------------------------------------------------------------------------------------------------- Markdown to HTML


@cache
def _markdown() -> MarkdownIt:
    """Markdown with formulas as MathJax reads them, and links as their words: a deck leads nowhere."""
    parser = MarkdownIt("commonmark").enable("table")
    dollarmath_plugin(parser, allow_labels=False)
    rules: dict[str, Callable[[str], str]] = {
        "math_inline": lambda tex: f'<span class="math">\\({escape(tex)}\\)</span>',
        "math_inline_double": lambda tex: f'<span class="math">\\[{escape(tex)}\\]</span>',
        "math_block": lambda tex: f'<div class="formula">\\[{escape(tex.strip())}\\]</div>',
        "link_open": lambda _: "",
        "link_close": lambda _: "",
    }
    for name, write in rules.items():
        parser.add_render_rule(name, lambda _, tokens, i, *rest, write=write: write(tokens[i].content))
    return parser


def _html(text: str) -> str:
    return _markdown().render(text)


def _inline(text: str) -> str:
    return _markdown().renderInline(text)


def _blocks(text: str) -> list[Any]:
    return SyntaxTreeNode(_markdown().parse(text)).children


def _render(block: Any) -> str:
    return _markdown().renderer.render(block.to_tokens(), _markdown().options, {})


def _sentences(block: Any) -> list[str]:
    """Of a paragraph; a bold sentence counts as one, and a bold label belongs to what it is the label of."""
    text = re.sub(r"\s+", " ", block.children[0].content).strip() if block.children else ""
    said = SENTENCE.findall(text)
    for i in range(len(said) - 2, -1, -1):
        if LABEL.fullmatch(said[i]):
            said[i : i + 2] = [f"{said[i]} {said[i + 1]}"]
    return said


def _claims(block: Any) -> bool:
    """Whether a paragraph says what a paper claims; it belongs on the title."""
    return block.type == "paragraph" and "".join(_sentences(block)).startswith("**The claim**")


def _lines(text: str) -> int:
    return 1 + len(re.sub(r"\\\w+|[{}$*]", "", text)) // 72


def _code(source: str) -> str:
    return pygments.highlight(source, PythonLexer(), HtmlFormatter(noclasses=True))


def _printed(output: Any) -> str:
    return f'<pre class="printed">{escape(output.text)}</pre>' if output.get("name") == "stdout" else ""


def _image(png: str, alt: str) -> str:
    return f'<img src="data:image/png;base64,{"".join(png.split())}" alt="{escape(alt)}">'


def _cut(table: str) -> Iterator[str]:
    """A long table in pieces, each with its head."""
    found = TABLE.fullmatch(table)
    rows = re.findall(r"<tr.*?</tr>", found[2], re.S) if found and "rowspan" not in table else []
    if not found or len(rows) <= ROWS:
        yield table
        return
    for part in _even(rows, -(-len(rows) // ROWS)):
        yield found[1] + "\n".join(part) + found[3]


def _even(items: list[str], count: int) -> list[list[str]]:
    """A list in so many parts."""
    return [items[len(items) * i // count : len(items) * (i + 1) // count] for i in range(count)]
