"""The chapters as notebooks, each parsed once: to read one takes a tenth of a second, and dozens of laws read them all.

What is kept is a pickle, so that every caller gets a notebook of its own, to change as it likes.
"""

import pickle
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
from ood_book import percent

__all__ = ["chapter", "executed"]


def chapter(source: Path) -> Any:
    """The notebook of a `.py`."""
    return pickle.loads(_chapter(source))


def executed(path: Path) -> Any:
    """The notebook of an `.ipynb`."""
    return pickle.loads(_executed(path))


@cache
def _chapter(source: Path) -> bytes:
    return pickle.dumps(percent.load(source))


@cache
def _executed(path: Path) -> bytes:
    return pickle.dumps(nbformat.read(path, as_version=4))
