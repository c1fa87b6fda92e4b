"""From the text of a `.py` to a notebook, and from a notebook to the text of an `.ipynb`."""

from collections import Counter
from pathlib import Path
from typing import Any

import jupytext

from ood_book.notebooks import content_hash

__all__ = ["KERNEL", "as_ipynb", "load", "parse"]

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def load(source: Path) -> Any:
    """The notebook of a `.py`; never looks at an `.ipynb`, so no old output can leak."""
    return parse(source.read_text(encoding="utf-8"))


def parse(text: str) -> Any:
    """The notebook that the text of a `.py` stands for."""
    notebook = jupytext.reads(text, "py:percent")
    notebook.metadata = type(notebook.metadata)(kernelspec=KERNEL)
    seen: Counter[str] = Counter()
    for cell in notebook.cells:  # ids from the content: converting twice gives no difference
        seen[cell.source] += 1
        cell.id = content_hash(cell.cell_type, cell.source, str(seen[cell.source]))[:12]
    return notebook


def as_ipynb(notebook: Any) -> str:
    """The text of the `.ipynb`."""
    return jupytext.writes(notebook, "ipynb") + "\n"
