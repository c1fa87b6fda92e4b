"""From the text of a `.py` to a notebook, and from a notebook to the text of an `.ipynb`."""

from collections import Counter
from pathlib import Path
from typing import Any

import jupytext
import nbformat

from ood_book.notebooks import Refused, content_hash

__all__ = ["KERNEL", "as_ipynb", "executed", "load", "parse"]

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


def executed(run: Path, text: str) -> Any:
    """The notebook of a run as its source has it now: the outputs are the run's; prose, captions and tags may be newer.

    Args:
        run: the `.ipynb`.
        text: of the `.py`.

    Raises:
        Refused: the code is not that of the run.
    """
    ran, notebook = nbformat.read(run, as_version=4), parse(text)
    outcomes = [cell for cell in ran.cells if cell.cell_type == "code"]
    given = [cell for cell in outcomes if "injected-parameters" in cell.metadata.get("tags", [])]
    outcomes = [cell for cell in outcomes if cell not in given]
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if [cell.source for cell in cells] != [cell.source for cell in outcomes]:
        raise Refused(f"{run} was made by other code than its source has now; expected the same: run it again")
    for cell, outcome in zip(cells, outcomes):
        cell.update(outputs=outcome.outputs, execution_count=outcome.execution_count)
    for cell in given:  # by papermill, below the cell of the parameters
        cell.metadata = type(cell.metadata)(tags=cell.metadata.tags)
    own = (place for place, cell in enumerate(notebook.cells, 1) if "parameters" in cell.metadata.get("tags", []))
    notebook.cells[(place := next(own, 0)) : place] = given
    notebook.metadata |= {name: value for name, value in ran.metadata.items() if name != "papermill"}
    return notebook


def as_ipynb(notebook: Any) -> str:
    """The text of the `.ipynb`."""
    return jupytext.writes(notebook, "ipynb") + "\n"
