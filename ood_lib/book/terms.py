"""Words of the glossary in the text of the pages: the first time one is used on a page it leads to its entry.

Nothing is marked in the sources; the glossary is the only place that knows which words it holds.  A pointer that rests
on such a word shows what it means.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ood_lib.extras import need

__all__ = ["definitions", "mark", "setup"]

nodes = need("docutils.nodes", "book")
GLOSSARY = "book/glossary"
ELSEWHERE = (nodes.table, nodes.reference, nodes.caption, nodes.legend)  # text in these stays as it is
SIGNS = {"\\propto": "∝", "\\nabla": "∇", "\\sigma": "σ", "\\log": "log", "^2": "²", "$": ""}
LINK = re.compile(r"\s*\(\[[^()]*\]\([^()]*\)\)|\]\([^()]*\)|[\[`*]|\{[\w:]+\}")


def definitions(glossary: str) -> dict[str, str]:
    """Each word of the glossary and what it means, as plain text.

    Example:
        >>> definitions("```{glossary}\\nbank\\n  Features in a file\\n  ([data](data.md)).\\n```")
        {'bank': 'Features in a file.'}
    """
    inside = re.search(r"```\{glossary\}\n(.*?)```", glossary, re.S)
    entries = re.findall(r"^(\S.*)\n((?:(?:[ \t]+.*)?\n)+)", inside[1] if inside else "", re.M)
    return {word.strip(): _plain(text) for word, text in entries}


def _plain(text: str) -> str:
    text = " ".join(LINK.sub("", text).split())
    for tex, sign in SIGNS.items():
        text = text.replace(tex, sign)
    return text


def mark(document: Any, words: dict[str, str], page: str) -> None:
    """Make a reference of the first use of each word, in running text alone."""
    known = {_short(word): word for word in reversed(words)}  # of two that are written alike the first
    left = dict.fromkeys(sorted(known.values(), key=len, reverse=True))
    for text in list(_running(document)):
        for part in _split(text.astext(), left, page):
            text.parent.insert(text.parent.index(text), part)
        text.parent.remove(text)


def _running(document: Any) -> Iterator[Any]:
    for paragraph in document.findall(nodes.paragraph):
        if not any(isinstance(above, ELSEWHERE) for above in _above(paragraph)):
            yield from (child for child in paragraph.children if isinstance(child, nodes.Text))


def _above(node: Any) -> Iterator[Any]:
    while node.parent is not None:
        node = node.parent
        yield node


def _split(text: str, left: dict[str, None], page: str) -> Iterator[Any]:
    """The text in pieces, the words of the glossary as references; what was found is taken from `left`."""
    while left and (found := _pattern(left).search(text)):
        word = next(w for w in left if _short(w).lower() == found[1].lower())
        del left[word]
        yield nodes.Text(text[: found.start()])
        yield _reference(word, found[0], page)
        text = text[found.end() :]
    yield nodes.Text(text)


def _pattern(words: dict[str, None]) -> re.Pattern[str]:
    """Any of the words, with a capital letter at the beginning of a sentence, and in the plural."""
    either = (f"[{w[0].upper()}{w[0]}]{re.escape(w[1:])}" for w in map(_short, words))
    return re.compile(rf"(?<![\w-])({'|'.join(either)})s?(?![\w-])")


def _short(word: str) -> str:
    """The word without what stands in brackets behind it."""
    return word.partition(" (")[0]


def _reference(word: str, text: str, page: str) -> Any:
    about = {"refdomain": "std", "reftype": "term", "reftarget": word, "refdoc": page, "refwarn": True}
    shown = nodes.inline(text, text, classes=["glossary-term"])
    return need("sphinx.addnodes", "book").pending_xref(text, shown, **about)


def _read(app: Any, config: Any) -> None:
    file = Path(app.srcdir) / f"{GLOSSARY}.md"
    config.ood_book_words = definitions(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _on_page(app: Any, document: Any) -> None:
    page = app.env.docname
    if page.startswith(("notebooks/", "book/")) and page not in (GLOSSARY, "book/api", "book/bibliography"):
        mark(document, app.config.ood_book_words, page)


def _explain(app: Any, document: Any, page: str) -> None:
    """What a pointer shows that rests on a word."""
    meanings = {nodes.make_id(f"term-{word}"): text for word, text in app.config.ood_book_words.items()}
    for reference in document.findall(nodes.reference):
        if any("glossary-term" in child.get("classes", ()) for child in reference.findall(nodes.inline)):
            anchor = reference.get("refuri", "").partition("#")[2].lower()
            reference["reftitle"] = meanings.get(anchor, "")


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx, which finds this module in `_config.yml`."""
    app.add_config_value("ood_book_words", {}, "env")
    app.connect("config-inited", _read)
    app.connect("doctree-read", _on_page)
    app.connect("doctree-resolved", _explain)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
