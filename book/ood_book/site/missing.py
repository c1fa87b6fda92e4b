"""Chapters without a complete run: the page in the place of each, and what other pages show and say of it."""

import re
import textwrap
from dataclasses import dataclass
from typing import Any, Self

from nbformat import v4

from ood_book.notebooks import title_of
from ood_book.percent import KERNEL
from ood_book.run.plan import Task

__all__ = ["Missing"]

LABEL = re.compile(r'"name": "([\w-]+)"|\(([\w-]+)\)=|:(?:name|label): ([\w-]+)')
ROLE = re.compile(r"\{(?:num)?ref\}`(?:([^`<]*?)\s*<([\w-]+)>|([\w-]+))`")
ANCHORED = r"(\]\([^()\s]*\b{name}(?:\.ipynb)?)#[^()\s]*\)"
SHOWN = r"^(?P<fence>`{{3,}}|:{{3,}})\{{\w+\}} +\S*_generated/{name}/.*?^(?P=fence) *$"
REASON = re.compile(r'([^:"\n]*(?:"[^"]*")?)(?:: )?(.*)', re.S)  # a sentence, and what follows its colon or its line
MARKS = re.compile(r"([!-/:-@\[-`{-~])")  # what Markdown may read as more than a letter
PAGE = """# {title}

``````````{{admonition}} This chapter is missing
:class: warning
It {sentence}.

{rest}
``````````

Run it, then build the pages again:

```bash
{commands}
```
"""


@dataclass(frozen=True)
class Missing:
    """One chapter that has no complete run.

    Args:
        name: of its notebook.
        title: of its page.
        reason: what became of its run, to be read after "it".
        commands: what runs it and builds the pages.
        labels: what other pages may refer to in it.
    """

    name: str
    title: str
    reason: str
    commands: tuple[str, ...]
    labels: frozenset[str]

    @classmethod
    def of(cls, task: Task, commands: tuple[str, ...]) -> Self:
        """The chapter of a task that is not done."""
        labels = frozenset(label for found in LABEL.findall(task.text) for label in found if label)
        reason = task.failure or "has not been run as it is now"
        return cls(task.name, title_of(task.text) or task.name, reason, commands, labels)

    def page(self) -> Any:
        """A notebook of one cell, so that links find it where they look for the chapter."""
        sentence, rest = REASON.findall(self.reason)[0]
        rest = textwrap.dedent(rest.strip("\n"))
        if self.reason.startswith("failed"):  # code and its error
            rest = f"~~~~~~~~~~text\n{rest}\n~~~~~~~~~~"
        shown = {"sentence": MARKS.sub(r"\\\1", sentence), "rest": rest, "commands": "\n".join(self.commands)}
        text = PAGE.format(title=self.title, **shown)
        return v4.new_notebook(cells=[v4.new_markdown_cell(text, id="missing")], metadata={"kernelspec": KERNEL})

    def mended(self, text: str) -> str:
        """The text of another page without what only the chapter has: what it wrote, its labels and its headings.

        Example:
            >>> flow = Missing("30_flow", "Feature flows", "failed", (), frozenset({"fig-flow"}))
            >>> flow.mended("{numref}`Figure %s <fig-flow>`, {ref}`heat`, [why](../notebooks/30_flow.ipynb#2-why)")
            '{doc}`Figure ? </notebooks/30_flow>`, {ref}`heat`, [why](../notebooks/30_flow.ipynb)'
        """
        name = re.escape(self.name)
        text = re.sub(SHOWN.format(name=name), self._note, text, flags=re.M | re.S)
        text = re.sub(ANCHORED.format(name=name), r"\1)", text)
        return ROLE.sub(self._to_page, text)

    def _note(self, shown: re.Match[str]) -> str:
        made_by = f"What stands here is made by {self._link()}, which is missing."
        return f"{shown['fence']}{{note}}\n{made_by}\n{shown['fence']}"

    def _link(self, text: str = "") -> str:
        page = f"/notebooks/{self.name}"
        return f"{{doc}}`{text} <{page}>`" if text else f"{{doc}}`{page}`"

    def _to_page(self, role: re.Match[str]) -> str:
        text, label = role[1], role[2] or role[3]
        if label not in self.labels:
            return role[0]
        return self._link((text or "").replace("%s", "?"))
