"""The words of the book: the field's own in place of coined ones, and sentences that can be read in one breath.

Held over the pages, the chapters (prose, boxes folded or not, lists, captions, alt texts, and the strings that cells
print), and the docstrings of what is public.
"""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

pytest.importorskip("jupytext")

from tests.book.chapters import chapter

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.py"))
PAGES = [*sorted([*ROOT.glob("book/*.md"), *ROOT.glob("book/api/*.md")]), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
MODULES = sorted(p for folder in ("ood_lib", "book/ood_book") for p in (ROOT / folder).rglob("*.py"))
LONG = 35  # words of a sentence at most

# What readers of the first edition stumbled over, and what the field says.
COINED = {
    r"\bstrangers?\b(?! (?:in|than)\b)": "OOD images, OOD set",
    r"\b(?:un)?told\b(?! (?:apart|you|us|me|them|that|to)\b)": "known, validation set, measured",
    r"\bspoil(?:s|t|ed|ing)?\b": "corrupt, distort",
    r"\bluck(?:y|ily)?\b": "chance, variance of the draw",
    r"\b(?:the|many|more|other|new|random|several|two|three|these|those|its|of|\d+) looks\b": "projections, checks",
    r"\bof (?:yours|ours)\b": "your own, our own",
    r"\bgoes on\b": "continues, resumes",
    r"\brivals?\b": "baseline, other methods",
    r"\bcontestants?\b": "method, detector",
    r"\bduels?\b": "paired comparison",
    r"\b(?:what|that|which|where it|it|they|where they) (?:is|are) there\b(?! [a-z])": "exists, is present, was found",
    r"\bby right\b|\buntouched ground\b|\bsame street\b": "say it plainly",
}


CODE = re.compile(r"^\s*(`{3,})(?:\{(?:code-block|math|bibliography|glue:\w+|raw)\}.*|[a-z]+)$")
BOX = re.compile(r"^\s*(`{3,})\{[\w-]+\}.*$")
MARKS = re.compile(r"^ *(?::{3,}.*|:[\w-]+:.*|</?\w[^>]*>|\([\w-]+\)=)$", re.M)  # of directives, tags


def without_code(text):
    """A Markdown text without its blocks of code; of other directives, such as boxes, what stands in them is kept."""
    kept, boxes, code = [], [], None
    for line in text.split("\n"):
        fence = line.strip()
        if code is not None:
            code = None if fence == code else code
        elif begun := CODE.match(line):
            code = begun[1]
        elif begun := BOX.match(line):
            boxes.append(begun[1])
        elif re.fullmatch(r"`{3,}", fence):
            if fence in boxes:
                boxes.remove(fence)
            else:
                code = fence
        else:
            kept.append(line)
            continue
        kept.append("")
    return "\n".join(kept)


def pieces(text):
    """Paragraphs, items and table cells of a Markdown text as plain words, without code and displayed formulas."""
    text = re.sub(r"\A---\n.*?\n---\n|<!--.*?-->", "", text, flags=re.S)
    text = MARKS.sub("\n", without_code(text))
    text = re.sub(r"\$\$.*?\$\$", " formula ", text, flags=re.S)
    text = re.sub(r"\$[^$]*\$", "X", text)
    text = re.sub(r"\{[\w:]+\}`([^`<]*?)(?: ?<[^`]*>)?`", r"\1", text)  # roles
    text = re.sub(r"``.+?``|`[^`]*`", "Code", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)|<[^>]*>", r"\1", text)  # links, tags
    parts = re.split(r"\n\s*\n|\n\s*(?:[*+-]|\d+\.|#+|>) +|\n?\|", text)
    return [" ".join(re.sub(r"\*\*|__|^#+ |^[*-] ", "", p).split()) for p in parts if p and p.strip(" -|:\n")]


@cache  # both laws read them
def sentences(text):
    """The sentences of a Markdown text."""
    end = r"(?<!\bal\.)(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\bvs\.)(?<=[.?!])[\"”')*_]*\s+(?=[\"“'(*_]*[A-Z0-9$δλσατβ])"
    return [s for piece in pieces(text) for s in re.split(end, piece) if s]


def words(sentence):
    return re.findall(r"[^\W_]+(?:['’.,-][^\W_]+)*", sentence)


def long_sentences(text):
    return [f"{len(words(s))} words: {s}" for s in sentences(text) if len(words(s)) > LONG]


def coined(text):
    """Coined words of a text, with what to write in their place."""
    found = ((re.search(word, s, re.I), better, s) for s in sentences(text) for word, better in COINED.items())
    return [f"{match[0]!r} ({better}): {s}" for match, better, s in found if match]


def spoken(code):
    """What a cell of code says to a reader: its strings of three words or more, f-strings joined; not tables."""
    made = ast.parse(code)
    within = {id(v) for n in ast.walk(made) if isinstance(n, ast.JoinedStr) for v in ast.walk(n) if v is not n}
    texts = []
    for node in ast.walk(made):
        if isinstance(node, ast.JoinedStr):
            texts.append("".join(v.value if isinstance(v, ast.Constant) else "0" for v in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in within:
            texts.append(node.value)
    return [t for t in texts if len(t.split()) > 2 and sum(c.isalpha() for c in t) > len(t) / 2]  # no tables


@cache
def said(path):
    """All that a page says: Markdown, captions, alt texts, and what its cells print."""
    if path.suffix == ".md":
        return [path.read_text(encoding="utf-8")]
    texts = []
    for cell in chapter(path).cells:
        if cell.cell_type == "markdown":
            texts.append(cell.source)
        else:
            figure, image = (cell.metadata.get("mystnb", {}).get(k, {}) for k in ("figure", "image"))
            texts += [figure.get("caption", ""), image.get("alt", ""), *spoken(cell.source)]
    return texts


def docstrings(path):
    """The docstrings of a module and of what is public in it, without the lists of arguments."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, kinds)]
    public = [n for n in nodes if not getattr(n, "name", "").startswith("_")]
    texts = [text for n in public if (text := ast.get_docstring(n))]
    return [re.split(r"\n\n(?:Args|Returns|Raises|Example|References)", text)[0] for text in texts]


def each(paths):
    return pytest.mark.parametrize("path", paths, ids=[str(p.relative_to(ROOT)) for p in paths])


@each([*PAGES, *NOTEBOOKS])
def test_a_page_uses_the_words_of_the_field(path):
    assert [found for text in said(path) for found in coined(text)] == []


@each([*PAGES, *NOTEBOOKS])
def test_no_sentence_of_a_page_is_long(path):
    assert [found for text in said(path) for found in long_sentences(text)] == []


def test_docstrings_of_public_names_are_short_and_use_the_words_of_the_field():
    said_there = [(path.name, text) for path in MODULES for text in docstrings(path)]
    assert [(name, found) for name, text in said_there for found in coined(text) + long_sentences(text)] == []


BOXES = "```{{admonition}} One\n:class: tip\n{}\n```\n\n````{{admonition}} Two\n:class: dropdown\n{}\n````\n"


@pytest.mark.parametrize(
    ("law", "good", "bad"),
    [
        (coined, "OOD images are told apart from ID images.", "Compare with the told strangers."),
        (coined, "The chapter looks at two networks.", "Project it by many looks."),
        (coined, "An interrupted run resumes; it is stranger than the others.", "The sweep goes on where it stopped."),
        (coined, "Say `goes on` in code.", "Compare it with its rivals."),
        (long_sentences, "word " * LONG + ". " + "Word " * LONG + ".", "word " * (LONG + 1) + "."),
        (long_sentences, "```python\n" + "word " * 40 + "\n```\n\nShort.", "* " + "word " * 40),
        (long_sentences, BOXES.format("Short.", "Short."), BOXES.format("Short.", "word " * 40)),
        (long_sentences, BOXES.format("Short.", "```\n" + "word " * 40 + "\n```"), BOXES.format("word " * 40, "")),
        (long_sentences, "Text $" + "x " * 40 + "$.\n\n" + "word " * 30 + "\n\n" + "word " * 30, "> " + "word, " * 40),
    ],
)
def test_a_law_accepts_the_good_and_refuses_the_bad(law, good, bad):
    assert not law(good)
    assert law(bad)


def test_generated_sentences_are_read_as_they_are_written():
    code = 'display(Markdown(f"The rivals of {name} " + "are here " "today."))'
    assert spoken(code) == ["The rivals of 0 ", "are here today."]
    assert docstrings(Path(__file__))[0].startswith("The words of the book")
