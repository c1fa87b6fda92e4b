"""How long a notebook takes to read: the words of its main path, and a minute for each cell of code that it shows.

What a page folds (dropdowns, the choices of a quiz, code behind a bar) and the exercises are not on the main path. A
reader who wants only the idea and its evidence can skip them.
"""

import math
import re
from collections.abc import Iterator

from ood_book.notebooks import CELL, tags_of

__all__ = ["minutes"]

PACE = 200  # words a minute
FOLDS = {"hide-input", "hide-cell", "remove-input", "remove-cell"}
BOX = re.compile(r"^(`{3,}|:{3,})\{([\w:-]+)\}[^\n]*\n(.*?)^\1$", re.M | re.S)
ASIDE = re.compile(r"^(`{3,})\{(exercise|solution)-start\}.*?^\1\{\2-end\}", re.M | re.S)
SYNCED = re.compile(r"<!-- made by ood-book sync.*?<!-- end -->", re.S)  # else a sync would change what it counts
CHOICE = re.compile(r"<details>.*?</details>", re.S)


def minutes(source: str) -> int:
    """Minutes for the main path of a notebook, rounded to the nearest, at least one.

    Args:
        source: the text of its `.py`.

    Example:
        >>> text = "# %% [markdown]\\n# " + "word " * 600 + "\\n# %%\\nx = 1\\n# %% tags=[\\"hide-input\\"]\\ny = 2\\n"
        >>> minutes(text)
        4
    """
    text, shown = "", 0
    for place, folded, body in _cells(source):
        if place == "text":
            text += f"{body}\n"
        elif not folded and not _inside(text):
            shown += 1
    words = len(CHOICE.sub("", BOX.sub(_main, ASIDE.sub("", SYNCED.sub("", text)))).split())
    return max(1, math.floor(words / PACE + shown + 0.5))


def _cells(source: str) -> Iterator[tuple[str, bool, str]]:
    """Kind, whether it is folded, and body of each cell; text without the marks that make it a comment."""
    for head, body in CELL.findall(source):
        if "[markdown]" in head:
            yield "text", False, re.sub(r"^# ?", "", body, flags=re.M)
        else:
            yield "code", bool(FOLDS & tags_of(head)), body


def _inside(text: str) -> bool:
    """Whether an exercise or a solution is open at the end of a text."""
    return len(re.findall(r"^`{3,}\{(?:exercise|solution)-start\}", text, re.M)) > len(
        re.findall(r"^`{3,}\{(?:exercise|solution)-end\}", text, re.M)
    )


def _main(box: re.Match[str]) -> str:
    """What of a box stands on the page before anything is opened."""
    folded = box[2] == "dropdown" or re.search(r"^:class:.*\bdropdown\b", box[3], re.M)
    return "" if folded else box[3]
