"""Markdown that Jupyter, Colab and GitHub show, made of the Markdown of the book with its directives and roles."""

import re

__all__ = ["plain"]

DIRECTIVE = re.compile(r"^(`{3,}|:{3,})\{([\w:-]+)\} *([^\n]*)\n((?::[\w-]+:[^\n]*\n)*)(.*?)^\1$\n?", re.M | re.S)
HINT = re.compile(r"\s*\*Hint: (.+?)\*(?=\s*$|\n)", re.S)
WORDS = [  # what only the book understands, and the words that stand for it
    (r"\{cite:t\}`([^`]+)`", r"\1"),
    (r"\{cite(?::p)?\}`([^`]+)`", r"[\1]"),
    (r"\{math\}`([^`]+)`", r"$\1$"),
    (r"\{(?:ref|numref|term)\}`([^`<]+?) *(?:%s)? *<[^`>]+>`", r"\1"),
    (r"\{(?:num)?ref\}`([^`<]+)`", r"\1"),
    (r"\{py:\w+\}`~?(?:[\w.]+\.)?(\w+)`", r"`\1`"),
    (r"\{[\w:]+\}`([^`]+)`", r"\1"),
    (r"^\([\w-]+\)=\n", ""),
    (r"\[([^\]]*)\]\((\d\d_\w+)\)", r"[\1](\2.ipynb)"),  # a chapter travels along,
    (r"(?<!!)\[([^\]]+)\]\(\.\./[^)]+\)", r"\1"),  # a page of the book does not
    (r"\[\]\(([^)]+)\)", r"`\1`"),
]


def plain(text: str) -> str:
    """MyST as Markdown: a box becomes a quotation, a list table a table, a role its words, a hint something to unfold.

    Example:
        >>> plain("See {cite:p}`hinton2002` and {py:class}`~ood_lib.heat.HEAT`. *Hint: think.*")
        'See [hinton2002] and `HEAT`.\\n\\n<details><summary>Hint</summary>\\n\\nthink.\\n\\n</details>'
    """
    text = DIRECTIVE.sub(_directive, text)
    for found, words in WORDS:
        text = re.sub(found, words, text, flags=re.M)
    return HINT.sub(r"\n\n<details><summary>Hint</summary>\n\n\1\n\n</details>", text)


def _directive(found: re.Match[str]) -> str:
    _, name, title, _, body = found.groups()
    match name:
        case "list-table":
            return _table(title, body)
        case "math":
            return f"$$\n{body.strip()}\n$$\n"
    lines = [f"**{title or name.capitalize()}**", "", *plain(body).splitlines()]
    return "\n".join(f"> {line}".rstrip() for line in lines) + "\n"


def _table(title: str, body: str) -> str:
    """A list table with its first row as the head, and its title above."""
    rows = [re.split(r"\n  - ", row) for row in re.split(r"^\* - ", body.strip(), flags=re.M)[1:]]
    rows.insert(1, ["---"] * len(rows[0]))
    lines = (" | ".join(re.sub(r"\s*\n\s*", " ", cell).strip() for cell in row) for row in rows)
    return "\n".join([f"**{title}**", "", *(f"| {line} |" for line in lines)]) + "\n"
