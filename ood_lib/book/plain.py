"""Markdown that every notebook viewer shows, made of the Markdown of the book with its directives and roles."""

import re

__all__ = ["plain"]

DIRECTIVE = re.compile(r"^(`{3,}|:{3,})\{([\w:-]+)\} *([^\n]*)\n((?::[\w-]+:[^\n]*\n)*)(.*?)^\1 *$", re.M | re.S)
HINT = re.compile(r"\s*\*Hint: (.+?)\*(?=\s*(?:\n\n|\Z))", re.S)
ROLE = re.compile(r"\{([\w:]+)\}`([^`]+)`")
TARGET = re.compile(r"^\([\w-]+\)=\n", re.M)
PAGE = re.compile(r"\[([^\]]*)\]\((\d\d_\w+)(?:\.md|\.ipynb)?\)")
ELSEWHERE = re.compile(r"(?<!!)\[([^\]]+)\]\(\.\./[^)]+\)")  # a page of the book, which does not travel along
EMPTY = re.compile(r"\[\]\(([^)]+)\)")


def plain(text: str) -> str:
    """The text without directives and roles: boxes as quotes, list tables as tables, hints folded, references as code.

    Example:
        >>> plain("By {cite:t}`granz2024weiper`, see {py:class}`~ood_lib.weiper.WeiPer`.")
        'By [granz2024weiper], see `WeiPer`.'
    """
    text = ROLE.sub(_role, DIRECTIVE.sub(_directive, TARGET.sub("", text)))
    text = PAGE.sub(lambda m: f"[{m[1] or m[2]}]({m[2]}.ipynb)", text)
    text = EMPTY.sub(r"`\1`", ELSEWHERE.sub(r"\1", text))
    return HINT.sub(_hint, text)


def _hint(found: re.Match[str]) -> str:
    hint = found[1][0].upper() + found[1][1:]
    return f"\n\n<details><summary>Hint</summary>\n\n{hint}\n\n</details>"


def _directive(found: re.Match[str]) -> str:
    _, name, title, _, body = found.groups()
    match name:
        case "list-table":
            return _table(title, body)
        case "math":
            return f"$$\n{body.strip()}\n$$"
    lines = [f"**{title or name.capitalize()}**", "", *body.strip().splitlines()]
    return "\n".join(f"> {line}".rstrip() for line in lines)


def _table(title: str, body: str) -> str:
    """A table with the first row as its head."""
    rows: list[list[str]] = []
    for line in body.strip().splitlines():
        if line.startswith("* - "):
            rows.append([line[4:]])
        elif line.startswith("  - "):
            rows[-1].append(line[4:])
        else:
            rows[-1][-1] += f" {line.strip()}"
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join([f"**{title}**", "", *(f"| {' | '.join(row)} |" for row in rows)])


def _role(found: re.Match[str]) -> str:
    name, content = found.groups()
    if name == "math":
        return f"${content}$"
    if name.startswith("cite"):
        return f"[{content}]"
    named = re.fullmatch(r"(.+?) *<.+>", content, re.S)
    return f"`{named[1] if named else content.rpartition('.')[2] if content.startswith('~') else content}`"
