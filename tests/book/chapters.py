"""The chapters as notebooks, each parsed once: to read one takes a tenth of a second, and dozens of laws read them all.

What is kept is a pickle, so that every caller gets a notebook of its own, to change as it likes.
"""

import pickle
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
from ood_book import percent
from ood_book.notebooks import Refused

__all__ = ["chapter", "executed", "stored"]

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def chapter(source: Path) -> Any:
    """The notebook of a `.py`."""
    return pickle.loads(_chapter(source))


def executed(run: Path) -> Any:
    """The notebook of a run of the book, with the words of its source; one of other code as it is."""
    return pickle.loads(_executed(run))


def stored(path: Path) -> Any:
    """The notebook of an `.ipynb`."""
    return pickle.loads(_stored(path))


@cache
def _chapter(source: Path) -> bytes:
    return pickle.dumps(percent.load(source))


@cache
def _executed(run: Path) -> bytes:
    try:
        return pickle.dumps(percent.executed(run, (NOTEBOOKS / f"{run.stem}.py").read_text(encoding="utf-8")))
    except Refused:
        return _stored(run)


@cache
def _stored(path: Path) -> bytes:
    return pickle.dumps(nbformat.read(path, as_version=4))
