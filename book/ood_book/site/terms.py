"""Words of the glossary in the text of the pages: the first time one is used on a page it leads to its entry.

Most words need no mark in the sources. Some also mean something else (a *score* may be a gradient, and KNN *scores* an
image). These are linked only where they are marked by hand, as in ``{term}`scores
<score>```; the glossary lists them in its front matter, under ``linked-by-hand``. A pointer that rests on a word shows
its definition.
"""

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import yaml
from docutils import nodes
from sphinx.addnodes import pending_xref

__all__ = ["by_hand", "definitions", "mark", "setup"]

GLOSSARY = "book/glossary"
ELSEWHERE = (nodes.table, nodes.reference, nodes.caption, nodes.legend)  # text in these stays as it is
SIGNS = {"\\propto": "∝", "\\nabla": "∇", "\\sigma": "σ", "\\log": "log", "^2": "²", "$": ""}
LINK = re.compile(r"\s*\{cite:p\}`[^`]*`|\s*\(\[[^()]*\]\([^()]*\)\)|\]\([^()]*\)|[\[`*]|\{[\w:]+\}")


def definitions(glossary: str) -> dict[str, str]:
    """Each word of the glossary and what it means, as plain text.

    Example:
        >>> definitions("```{glossary}\\nbank\\n  Features in a file\\n  ([data](data.md)).\\n```")
        {'bank': 'Features in a file.'}
    """
    inside = re.search(r"```\{glossary\}\n(.*?)```", glossary, re.S)
    entries = re.findall(r"^(\S.*)\n((?:(?:[ \t]+.*)?\n)+)", inside[1] if inside else "", re.M)
    return {word.strip(): _plain(text) for word, text in entries}


def by_hand(glossary: str) -> list[str]:
    """The words, without their brackets, that are linked where a source marks them and nowhere else.

    Example:
        >>> by_hand("---\\nlinked-by-hand: [score, head]\\n---\\n# Glossary")
        ['score', 'head']
    """
    front = re.match(r"---\n(.*?)\n---\n", glossary, re.S)
    return list((yaml.safe_load(front[1]) if front else {}).get("linked-by-hand", []))


def _plain(text: str) -> str:
    text = " ".join(LINK.sub("", text).split())
    for tex, sign in SIGNS.items():
        text = text.replace(tex, sign)
    return text


def mark(document: Any, words: dict[str, str], page: str, by_hand: Collection[str] = ()) -> None:
    """Make a reference of the first use of each word, in running text alone; not of one that is marked by hand."""
    done = _marked_by_hand(document)
    known = {_short(word): word for word in reversed(words)}  # of two that are written alike the first
    known = {short: word for short, word in known.items() if short not in by_hand and word.lower() not in done}
    left = dict.fromkeys(sorted(known.values(), key=len, reverse=True))
    for text in list(_running(document)):
        for part in _split(text.astext(), left, page):
            text.parent.insert(text.parent.index(text), part)
        text.parent.remove(text)


def _marked_by_hand(document: Any) -> set[str]:
    """The entries that a source refers to, in lower case; what refers to them is shown like all others."""
    found = set()
    for reference in document.findall(pending_xref):
        if reference.get("reftype") == "term":
            found.add(reference["reftarget"].lower())
            reference[0]["classes"].append("glossary-term")
    return found


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
        word = next(w for w in left if _short(w).lower() == found[1].lower().replace("’", "'"))
        del left[word]
        yield nodes.Text(text[: found.start()])
        yield _reference(word, found[0], page)
        text = text[found.end() :]
    yield nodes.Text(text)


def _pattern(words: dict[str, None]) -> re.Pattern[str]:
    """Any of the words, with a capital letter at the beginning of a sentence, and in the plural."""
    either = "|".join(f"[{w[0].upper()}{w[0]}]{re.escape(w[1:])}" for w in map(_short, words))
    either = either.replace("'", "['’]")  # Sphinx curves it
    return re.compile(rf"(?<![\w-])({either})s?(?![\w-])")


def _short(word: str) -> str:
    """The word without what stands in brackets behind it."""
    return word.partition(" (")[0]


def _reference(word: str, text: str, page: str) -> Any:
    about = {"refdomain": "std", "reftype": "term", "reftarget": word, "refdoc": page, "refwarn": True}
    shown = nodes.inline(text, text, classes=["glossary-term"])
    return pending_xref(text, shown, **about)


def _read(app: Any, config: Any) -> None:
    file = Path(app.srcdir) / f"{GLOSSARY}.md"
    glossary = file.read_text(encoding="utf-8") if file.is_file() else ""
    config.ood_book_words, config.ood_book_by_hand = definitions(glossary), by_hand(glossary)


def _on_page(app: Any, document: Any) -> None:
    page = app.env.docname
    if page.startswith(("notebooks/", "book/")) and not page.startswith((GLOSSARY, "book/api", "book/bibliography")):
        mark(document, app.config.ood_book_words, page, app.config.ood_book_by_hand)


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
    app.add_config_value("ood_book_by_hand", [], "env")
    app.connect("config-inited", _read)
    app.connect("doctree-read", _on_page)
    app.connect("doctree-resolved", _explain)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
